"""Series beyond the bars of one coin: what is known beside them, and what the cross-section did.

They stand behind the plain series in the same array, and only where a chosen set reads them. Side series are served at each
bar's close (:mod:`side_data`); cross-sectional ones are computed from the rows of the bar and a window of returns.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.stock_sessions import us_sessions
from crypto_qlib.feature_engineering.bar_series import N_SERIES, QUOTE_VOLUME, RETURN, Cube, FeatureInputs
from crypto_qlib.feature_engineering.sectors import sector_ids
from crypto_qlib.feature_engineering.side_data import (
    SIDE_SERIES,
    SideData,
    column_of,
    first_vintage,
    hours,
)
from crypto_qlib.store.observations import Observations, join_as_of
from crypto_qlib.store.series_store import MARKET

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_NAMES: Final = tuple(SIDE_SERIES)
VALUE_OF: Final = {name: N_SERIES + 2 * k for k, name in enumerate(_NAMES)}
"""Series number of each side series' value; its age in hours follows."""
AGE_OF: Final = {name: VALUE_OF[name] + 1 for name in _NAMES}
_DERIVED: Final = N_SERIES + 2 * len(_NAMES)
QQQ_STEP: Final = _DERIVED
"""Log return of QQQ between the values known at this and the previous bar's close; NaN where no new bar became known."""
QQQ_RETURN_1D: Final = _DERIVED + 1
QQQ_RETURN_5D: Final = _DERIVED + 2
QQQ_VOL_20D: Final = _DERIVED + 3
QQQ_GAP: Final = _DERIVED + 4
US_SESSION: Final = _DERIVED + 5
US_EXTENDED: Final = _DERIVED + 6
HOURS_SINCE_CLOSE: Final = _DERIVED + 7
WHALE_SHARE: Final = _DERIVED + 8
NET_INFLOW: Final = _DERIVED + 9
TAKER_DELTA: Final = _DERIVED + 10
"""``2 * taker buys - volume``, base coins."""
INDEX_BASIS: Final = _DERIVED + 11
LOG_PAGEVIEWS: Final = _DERIVED + 12
ETH_RETURN: Final = _DERIVED + 13
MEAN_CORR: Final = _DERIVED + 14
"""Mean correlation of this coin's returns with those of the others over :data:`CORR_BARS`."""
CORR_SPREAD: Final = _DERIVED + 15
"""Standard deviation of this coin's correlations with the others."""
MARKET_CORR: Final = _DERIVED + 16
MARKET_CORR_SPREAD: Final = _DERIVED + 17
PEER_REL: Final = _DERIVED + 18
"""Return of 24 bars minus that of the coin's peers, weighted by squared positive correlation."""
SECTOR_REL: Final = _DERIVED + 19
"""Return of 24 bars minus the mean of the coin's sector (itself left out)."""
DISPERSION: Final = _DERIVED + 20
"""Standard deviation over coins of returns of 24 bars."""
BTC_SHARE: Final = _DERIVED + 21
"""BTC's share of the universe's turnover over 24 bars."""
N_WIDE: Final = _DERIVED + 22

CORR_BARS: Final = 168
REL_BARS: Final = 24


def fill_wide(inputs: FeatureInputs, panel: MarketPanel, first: int = 0) -> None:
    """Fill every series beyond the plain ones of ``inputs.data`` in place, of the bars of ``panel`` from ``first`` on."""
    names = list(inputs.names)
    fill_side(inputs.data[:, :, first:], names, panel.rows(first, panel.n_bars), inputs.side)
    fill_cross(inputs.data, names, inputs.is_member, inputs.first_bar)


def fill_side(data: Cube, names: list[str], panel: MarketPanel, side: SideData) -> None:
    """Fill the side series of ``data``, whose symbols are ``names``, in place."""
    closes = panel.ts_open + panel.frame_ns
    for name in _NAMES:
        by_column: dict[str, tuple[FloatArray, FloatArray]] = {}
        for s, symbol in enumerate(names):
            column = column_of(name, symbol)
            if (name, column) not in side.series:
                continue  # nothing is known of it, and NaN stands there already
            if column not in by_column:
                found = side.on_closes(name, column, closes)
                by_column[column] = (found.value, hours(found.age_ns))
            data[s, VALUE_OF[name]], data[s, AGE_OF[name]] = by_column[column]
    for slot, values in _market_series(closes, panel.frame_ns, side).items():
        data[:, slot] = values
    with np.errstate(divide="ignore", invalid="ignore"):
        data[:, WHALE_SHARE] = data[:, VALUE_OF["whale_supply"]] / data[:, VALUE_OF["supply"]]
        data[:, NET_INFLOW] = data[:, VALUE_OF["exchange_inflow_usd"]] - data[:, VALUE_OF["exchange_outflow_usd"]]
        data[:, INDEX_BASIS] = panel.close.T[_order(panel, names)] / data[:, VALUE_OF["index_close"]] - 1.0
        data[:, LOG_PAGEVIEWS] = np.log1p(data[:, VALUE_OF["pageviews"]])
    data[:, TAKER_DELTA] = 2.0 * data[:, VALUE_OF["taker_buy_volume"]] - panel.volume.T[_order(panel, names)]


def _order(panel: MarketPanel, names: list[str]) -> list[int]:
    at = {symbol: k for k, symbol in enumerate(panel.symbols)}
    return [at[name] for name in names]


def _market_series(closes: IntArray, frame_ns: int, side: SideData) -> dict[int, FloatArray]:
    """Return series that are one for the whole market."""
    found = {US_SESSION: us_session(closes), US_EXTENDED: us_extended(closes), HOURS_SINCE_CLOSE: hours_since_close(closes)}
    found[QQQ_STEP] = _new_return(side, closes, frame_ns)
    daily = first_vintage(side.series.get(("qqq_1d_close", MARKET), Observations.empty()))
    log_close = np.log(daily.value)
    returns = np.append(np.nan, np.diff(log_close))[: log_close.size]
    windows = {
        QQQ_RETURN_1D: returns,
        QQQ_RETURN_5D: _change(log_close, 5),
        QQQ_VOL_20D: _rolling_rms(returns, 20),
    }
    carry_ns = SIDE_SERIES["qqq_1d_close"].carry_ns
    for slot, values in windows.items():
        rows = Observations(daily.event_ns, daily.known_ns, values)
        found[slot] = join_as_of(rows, closes, carry_ns).value
    found[QQQ_GAP] = join_as_of(_gaps(side, daily), closes, carry_ns).value
    return found


def _change(values: FloatArray, w: int) -> FloatArray:
    result = np.full(values.size, np.nan)
    result[w:] = values[w:] - values[:-w] if values.size > w else result[w:]
    return result


def _rolling_rms(values: FloatArray, w: int) -> FloatArray:
    result = np.full(values.size, np.nan)
    for k in range(w, values.size):
        result[k] = math.sqrt(float(np.mean(values[k - w + 1 : k + 1] ** 2)))
    return result


def _new_return(side: SideData, closes: IntArray, frame_ns: int) -> FloatArray:
    edges = np.append(closes[:1] - frame_ns, closes)
    found = side.on_closes("qqq_1h_close", MARKET, edges)
    is_new = (found.event_ns[1:] != found.event_ns[:-1]) & (found.event_ns[:-1] >= 0)
    # A stale value is NaN but still the last price known: the step over a weekend is the step that became known on Monday.
    carried = join_as_of(side.series.get(("qqq_1h_close", MARKET), Observations.empty()), edges).value
    return np.where(is_new, np.diff(np.log(carried)), np.nan)


def _gaps(side: SideData, daily: Observations) -> Observations:
    """Return log(first open of a session / close of the one before), known when that first bar was."""
    opens = first_vintage(side.series.get(("qqq_1h_open", MARKET), Observations.empty()))
    sessions = us_sessions()
    at = np.searchsorted(sessions.open_ns, opens.event_ns)
    at = np.minimum(at, sessions.open_ns.size - 1)
    is_first = sessions.open_ns[at] == opens.event_ns
    opens = opens.take(is_first)
    previous = np.searchsorted(daily.event_ns, sessions.day_ns[at[is_first]]) - 1
    has_one = previous >= 0
    opens, previous = opens.take(has_one), previous[has_one]
    if not previous.size:
        return Observations.empty()
    known = np.maximum(opens.known_ns, daily.known_ns[previous])
    return Observations(opens.event_ns, known, np.log(opens.value / daily.value[previous]))


def us_session(closes: IntArray) -> FloatArray:
    """Return 1 where the New York session is open at the instant, else 0."""
    s = us_sessions()
    at = np.searchsorted(s.open_ns, closes, side="right") - 1
    return ((at >= 0) & (closes < s.close_ns[np.maximum(at, 0)])).astype(np.float64)


def us_extended(closes: IntArray) -> FloatArray:
    """Return 1 in pre- or after-market hours of New York, else 0."""
    s = us_sessions()
    inside = (s.holding(closes) >= 0).astype(np.float64)
    return inside - np.minimum(inside, us_session(closes))


def hours_since_close(closes: IntArray) -> FloatArray:
    """Return hours since the last New York session closed; 0 while one is open."""
    s = us_sessions()
    at = np.searchsorted(s.close_ns, closes, side="right") - 1
    since = np.where(at >= 0, (closes - s.close_ns[np.maximum(at, 0)]) / NS_PER_HOUR, np.nan)
    return np.where(us_session(closes) > 0.0, 0.0, since)


def fill_cross(data: Cube, names: list[str], is_member: npt.NDArray[np.bool_], first_bar: int) -> None:
    """Fill the cross-sectional series of bars from ``first_bar`` on, symbols in sorted-name order."""
    eth = names.index("ETHUSDT") if "ETHUSDT" in names else -1
    btc = names.index("BTCUSDT") if "BTCUSDT" in names else -1
    data[:, ETH_RETURN] = data[eth, RETURN] if eth >= 0 else np.nan
    _fill_cross(data, sector_ids(names), is_member, btc, first_bar)


@njit
def _standardised(data: Cube, t: int, is_member: npt.NDArray[np.bool_], z: FloatArray) -> int:
    """Write unit vectors of each symbol's window of returns into ``z`` (zeros: too few of them); return how many there are."""
    n_symbols, w = z.shape
    count = 0
    for s in range(n_symbols):
        z[s, :] = 0.0
        if not is_member[s, t] or t < w - 1:
            continue
        total = 0.0
        n = 0
        for k in range(w):
            r = data[s, RETURN, t - w + 1 + k]
            if not math.isnan(r):
                total += r
                n += 1
        if 4 * n < 3 * w:
            continue
        square = 0.0
        for k in range(w):
            r = data[s, RETURN, t - w + 1 + k]
            z[s, k] = r - total / n if not math.isnan(r) else 0.0
            square += z[s, k] * z[s, k]
        if square > 0.0:
            for k in range(w):
                z[s, k] /= math.sqrt(square)
            count += 1
        else:
            z[s, :] = 0.0
    return count


@njit
def _sum_return(data: Cube, s: int, t: int) -> float:
    """Return the sum of the last :data:`REL_BARS` log returns; NaN if fewer than three quarters are there."""
    total = 0.0
    n = 0
    for k in range(max(0, t - REL_BARS + 1), t + 1):
        if not math.isnan(data[s, RETURN, k]):
            total += data[s, RETURN, k]
            n += 1
    return total if 4 * n >= 3 * REL_BARS else math.nan


@njit
def _write_correlations(data: Cube, t: int, corr: FloatArray, recent: FloatArray, is_known: npt.NDArray[np.bool_]) -> None:
    """Write what the correlation matrix of bar ``t`` says; only symbols in ``is_known`` take part."""
    n_symbols = corr.shape[0]
    total = 0.0
    square = 0.0
    pairs = 0
    for i in range(n_symbols):
        mean = 0.0
        moment = 0.0
        weight = 0.0
        peers = 0.0
        others = 0
        for j in range(n_symbols):
            if i == j or not (is_known[i] and is_known[j]):
                continue
            c = corr[i, j]
            mean += c
            moment += c * c
            others += 1
            if c > 0.0 and not math.isnan(recent[j]):
                weight += c * c
                peers += c * c * recent[j]
        if others > 0:
            total += mean
            square += moment
            pairs += others
            mean /= others
            data[i, MEAN_CORR, t] = mean
            data[i, CORR_SPREAD, t] = math.sqrt(max(moment / others - mean * mean, 0.0))
        if weight > 0.0:
            data[i, PEER_REL, t] = recent[i] - peers / weight
    if pairs > 0:
        mean = total / pairs
        spread = math.sqrt(max(square / pairs - mean * mean, 0.0))
        for i in range(n_symbols):
            data[i, MARKET_CORR, t] = mean
            data[i, MARKET_CORR_SPREAD, t] = spread


@njit
def _write_cross_section(
    data: Cube, t: int, recent: FloatArray, sector: IntArray, is_member: npt.NDArray[np.bool_], btc: int
) -> None:
    n_symbols = recent.size
    total = 0.0
    count = 0
    for s in range(n_symbols):
        if is_member[s, t] and not math.isnan(recent[s]):
            total += recent[s]
            count += 1
    square = 0.0
    for s in range(n_symbols):
        if is_member[s, t] and not math.isnan(recent[s]):
            square += (recent[s] - total / count) ** 2
    turnover = 0.0
    of_btc = 0.0
    for s in range(n_symbols):
        for k in range(max(0, t - REL_BARS + 1), t + 1):
            q = data[s, QUOTE_VOLUME, k]
            if not math.isnan(q) and is_member[s, t]:
                turnover += q
                of_btc += q if s == btc else 0.0
    for s in range(n_symbols):
        data[s, DISPERSION, t] = math.sqrt(square / count) if count > 2 else math.nan  # noqa: PLR2004 - a spread
        data[s, BTC_SHARE, t] = of_btc / turnover if turnover > 0.0 and btc >= 0 else math.nan
        others = 0.0
        n = 0
        for j in range(n_symbols):
            if j != s and sector[j] == sector[s] and is_member[j, t] and not math.isnan(recent[j]):
                others += recent[j]
                n += 1
        data[s, SECTOR_REL, t] = recent[s] - others / n if n > 0 else math.nan


@njit
def _fill_cross(data: Cube, sector: IntArray, is_member: npt.NDArray[np.bool_], btc: int, first_bar: int) -> None:
    n_symbols = data.shape[0]
    z = np.empty((n_symbols, CORR_BARS))
    recent = np.empty(n_symbols)
    is_known = np.empty(n_symbols, dtype=np.bool_)
    for t in range(first_bar, data.shape[2]):
        for s in range(n_symbols):
            recent[s] = _sum_return(data, s, t)
        _write_cross_section(data, t, recent, sector, is_member, btc)
        if _standardised(data, t, is_member, z) < 2:  # noqa: PLR2004 - a pair
            continue
        for s in range(n_symbols):
            is_known[s] = bool(np.any(z[s] != 0.0))
        _write_correlations(data, t, np.dot(z, z.T), recent, is_known)
