"""Formulas of the sets beyond one coin's bars, against independent computations and hand-worked cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import talib
from scipy.stats import norm

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.feature_engineering.news_events import NEVER, NewsEvents
from crypto_qlib.feature_engineering.news_lexicon import lexicon
from crypto_qlib.feature_engineering.side_data import SideData, base_coin
from crypto_qlib.feature_engineering.wide_series import hours_since_close, us_extended, us_session
from crypto_qlib.settings.schema import FeatureSetName, FeatureSettings
from crypto_qlib.store.observations import Observations
from tests.noise_market import START_NS, changed, noise_panel

N_BARS = 1200
PANEL = noise_panel(N_BARS, 5, seed=21)
SYMBOL, BTC, ETH = 3, 1, 0
NAME = PANEL.symbols[SYMBOL]
TS = PANEL.ts_open
CLOSES = TS + PANEL.frame_ns


def build(*sets: FeatureSetName, side: SideData | None = None, panel: MarketPanel = PANEL) -> FeatureFrame:
    return build_features(panel, FeatureSettings(sets=sets), side=side)


def column(frame: FeatureFrame, name: str, symbol: int = SYMBOL) -> np.ndarray:
    return frame.to_grid(frame.values[:, frame.names.index(name)].astype(np.float64))[:, symbol]


BARS = build("microstructure", "derivatives", "cross_coin", "multi_frame")
o, h, lo, c, v, q = (getattr(PANEL, n)[:, SYMBOL].copy() for n in ("open", "high", "low", "close", "volume", "quote_volume"))
close, quote = pd.Series(c), pd.Series(q)
every = pd.DataFrame(np.log(PANEL.close)).diff()
r, rb, re = every[SYMBOL], every[BTC], every[ETH]
sum24 = every.rolling(24).sum()
funding = pd.Series(PANEL.funding_rate[:, SYMBOL])
basis = pd.Series(PANEL.mark_close[:, SYMBOL] / c - 1.0)
turnover = pd.DataFrame(PANEL.quote_volume).rolling(24).sum()


def pairwise(t: int) -> np.ndarray:
    return np.corrcoef(every.to_numpy()[t - 167 : t + 1].T)


def off_diagonal(reduce: Callable[[np.ndarray], float], *, row: int | None = None) -> list[float]:
    values = [np.nan] * 168
    for t in range(168, N_BARS):
        m = pairwise(t)
        values.append(reduce(m[~np.eye(5, dtype=bool)] if row is None else np.delete(m[row], row)))
    return values


def peers() -> list[float]:
    values = [np.nan] * 168
    for t in range(168, N_BARS):
        w = np.clip(np.delete(pairwise(t)[SYMBOL], SYMBOL), 0.0, None) ** 2
        others = np.delete(sum24.to_numpy()[t], SYMBOL)
        values.append(sum24[SYMBOL][t] - np.dot(w, others) / w.sum())
    return values


def bulk(w: int) -> list[float]:
    values = [np.nan] * (w + 1)
    for t in range(w + 1, N_BARS):
        x = r[t - w + 1 : t + 1].to_numpy()
        part = v[t - w + 1 : t + 1]
        values.append(np.sum(part * (2.0 * norm.cdf(x / x.std()) - 1.0)) / part.sum())
    return values


def corwin_schultz(w: int) -> pd.Series:
    high, low = pd.Series(h), pd.Series(lo)
    beta = np.log(high / low) ** 2 + np.log(high.shift() / low.shift()) ** 2
    gamma = np.log(np.maximum(high, high.shift()) / np.minimum(low, low.shift())) ** 2
    k = 3.0 - 2.0 * np.sqrt(2.0)
    alpha = (np.sqrt(2.0 * beta) - np.sqrt(beta)) / k - np.sqrt(gamma / k)
    return (2.0 * (np.exp(alpha) - 1.0) / (1.0 + np.exp(alpha))).clip(lower=0.0).rolling(w).mean()


def abdi_ranaldo() -> pd.Series:
    mid = pd.Series((np.log(h) + np.log(lo)) / 2.0)
    log_close = np.log(close)
    product = (log_close - mid).shift() * (log_close.shift() - mid)
    return 2.0 * np.sqrt(product.rolling(72).mean().clip(lower=0.0))


def volume_time() -> list[float]:
    mean = quote.rolling(168).mean()
    values = []
    for t in range(N_BARS):
        total, k = 0.0, 0
        while t >= 168 and total < 24.0 * mean[t]:
            total += q[t - k]
            k += 1
        values.append(k / 24.0)
    return values


def liquidation(w: int) -> list[float]:
    shadow = (np.minimum(o, c) - lo - (h - np.maximum(o, c))) / c
    values = [np.nan] * w
    for t in range(w, N_BARS):
        part = slice(t - w + 1, t + 1)
        values.append(np.sum(np.clip(q[part] / q[part].mean() - 1.0, 0.0, None) * shadow[part]))
    return values


def cumulated_z() -> list[float]:
    rate = funding.fillna(0.0).to_numpy()
    values = [np.nan] * 720
    for t in range(720, N_BARS):
        sums = [rate[e - 23 : e + 1].sum() for e in range(t, t - 720, -24)]
        values.append((sums[0] - np.mean(sums)) / np.std(sums))
    return values


ROWS: list[tuple[str, Callable[[], object]]] = [
    ("VWAP_DIST6", lambda: close / (quote.rolling(6).sum() / pd.Series(v).rolling(6).sum()) - 1),
    ("BULK_DELTA24", lambda: bulk(24)),
    ("CORWIN_SCHULTZ24", lambda: corwin_schultz(24)),
    ("ABDI_RANALDO72", abdi_ranaldo),
    ("ROLL72", lambda: 2 * np.sqrt(np.clip([-np.cov(r[t - 71 : t + 1], r.shift()[t - 71 : t + 1], ddof=0)[0, 1] if t > 72 else
                                            np.nan for t in range(N_BARS)], 0, None))),
    ("AMIHUD24", lambda: np.log10((r.abs() / (quote * 1e-6)).rolling(24).mean())),
    ("KYLE72", lambda: np.log10((r.abs() * quote * 1e-6).rolling(72).mean() / ((quote * 1e-6) ** 2).rolling(72).mean())),
    ("HOUR_TURNOVER", lambda: np.log(quote / pd.concat([quote.shift(24 * k) for k in range(1, 14)], axis=1).mean(axis=1))),
    ("CONCENTRATION24", lambda: 24 * (quote**2).rolling(24).sum() / quote.rolling(24).sum() ** 2),
    ("VOLUME_TIME24", volume_time),
    ("FUNDING_168H", lambda: funding.rolling(168, min_periods=1).sum()),
    ("FUNDING_CUM_Z", cumulated_z),
    ("FUNDING_TO_SETTLE", lambda: (8.0 - CLOSES // NS_PER_HOUR % 8) % 8),
    ("BASIS_Z", lambda: (basis - basis.rolling(168).mean()) / basis.rolling(168).std(ddof=0)),
    ("LIQUIDATION_24H", lambda: liquidation(24)),
    ("MEAN_CORR168", lambda: off_diagonal(np.mean, row=SYMBOL)),
    ("CORR_SPREAD168", lambda: off_diagonal(np.std, row=SYMBOL)),
    ("MARKET_CORR168", lambda: off_diagonal(np.mean)),
    ("MARKET_CORR_SPREAD168", lambda: off_diagonal(np.std)),
    ("PEER_REL24", peers),
    ("DISPERSION24", lambda: sum24.std(axis=1, ddof=0)),
    ("BTC_TURNOVER_SHARE", lambda: turnover[BTC] / turnover.sum(axis=1)),
    ("ETH_RET24", lambda: re.rolling(24).sum()),
    ("ETH_BTC24", lambda: re.rolling(24).sum() - rb.rolling(24).sum()),
    ("ETH_BTC_CORR168", lambda: re.rolling(168).corr(rb)),
    ("CORR_ETH168", lambda: r.rolling(168).corr(re)),
    ("BETA_MARKET168", lambda: r.rolling(168).cov(every.mean(axis=1), ddof=0) / every.mean(axis=1).rolling(168).var(ddof=0)),
    ("BTC_LEADS2", lambda: r.rolling(168).corr(rb.shift(2))),
    ("LEADS_BTC1", lambda: rb.rolling(168).corr(r.shift(1))),
    ("RANK_REL_BTC24", lambda: ((sum24.sub(sum24[BTC], axis=0)).rank(axis=1)[SYMBOL] - 0.5) / 5 - 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "oracle"), ROWS, ids=[row[0] for row in ROWS])
def test_equals_an_independent_computation(name: str, oracle: Callable[[], object]) -> None:
    expected = np.asarray(oracle(), dtype=np.float64)
    tail = slice(800, None)
    assert np.isfinite(expected[tail]).all()
    np.testing.assert_allclose(column(BARS, name)[tail], expected[tail], rtol=3e-5, atol=3e-7)


def test_higher_frames_equal_indicators_of_resampled_bars_and_wait_for_the_close() -> None:
    stamps = pd.DatetimeIndex(TS.astype("datetime64[ns]"))
    four = (
        pd.DataFrame({"o": o, "h": h, "l": lo, "c": c, "q": q}, index=stamps)
        .resample("4h")
        .agg({"o": "first", "h": "max", "l": "min", "c": "last", "q": "sum"})
    )
    rsi = pd.Series(talib.RSI(four["c"].to_numpy(), 14), index=four.index + pd.Timedelta("4h"))  # known at its close
    mom = pd.Series((four["c"] / four["c"].shift(6) - 1.0).to_numpy(), index=rsi.index)
    at_close = stamps + pd.Timedelta("1h")
    for name, values, tolerance in (("4H_RSI14", rsi, 5e-3), ("4H_MOM6", mom, 2e-5)):
        expected = values.reindex(at_close, method="ffill").to_numpy()
        np.testing.assert_allclose(column(BARS, name)[800:], expected[800:], rtol=tolerance, atol=1e-6)
    hour = column(BARS, "4H_MOM1")
    changes = np.flatnonzero(np.diff(hour[800:]) != 0.0) + 801
    assert set((CLOSES[changes] % (4 * NS_PER_HOUR)).tolist()) == {0}, "a new value only where a 4 h bar closes"


def test_the_unfinished_higher_bar_says_nothing() -> None:
    day_start = int(np.flatnonzero(TS % NS_PER_DAY == 0)[-1])
    other = {n: getattr(PANEL, n).copy() for n in ("open", "high", "low", "close")}
    for values in other.values():
        values[day_start:] *= 7.0
    frame = build("multi_frame", panel=changed(PANEL, **other))
    last = day_start + 22  # the day's last hour but one
    assert column(frame, "1D_MOM1")[last] == column(BARS, "1D_MOM1")[last]


def test_sectors_compare_a_coin_with_its_own_kind() -> None:
    names = ("DOGEUSDT", "BTCUSDT", "SHIBUSDT", "1000PEPEUSDT", "XYZUSDT")
    panel = MarketPanel(names, PANEL.frame_ns, TS, has_mark=PANEL.has_mark, **{n: getattr(PANEL, n) for n in (
        "open", "high", "low", "close", "volume", "quote_volume", "mark_open", "mark_high", "mark_low", "mark_close",
        "funding_rate")})  # fmt: skip
    frame = build("cross_coin", panel=panel)
    ours = column(frame, "SECTOR_REL24", 0)
    np.testing.assert_allclose(ours[300:], (sum24[0] - (sum24[2] + sum24[3]) / 2)[300:], rtol=1e-5, atol=1e-7)
    assert np.isnan(column(frame, "SECTOR_REL24", 4)).all(), "an unknown coin has no sector"
    assert base_coin("1000PEPEUSDT") == "PEPE"


def at(event: object, known: object, value: object) -> Observations:
    return Observations(*(np.asarray(x, dtype=t) for x, t in ((event, np.int64), (known, np.int64), (value, np.float64))))


def test_side_series_count_from_their_publication_and_end_when_stale() -> None:
    published = START_NS + 100 * NS_PER_HOUR + 43 * NS_PER_MINUTE
    side = SideData({("fear_greed", "MARKET"): at([START_NS + 96 * NS_PER_HOUR], [published], [40.0])})
    frame = build("sentiment", side=side)
    value, age = column(frame, "FEAR_GREED"), column(frame, "FEAR_GREED_AGE")
    first = int(np.searchsorted(CLOSES, published))
    assert np.isnan(value[:first]).all()
    assert value[first] == pytest.approx(0.4)
    assert age[first] == pytest.approx(17 / 60)
    last = int(np.searchsorted(CLOSES, published + 26 * NS_PER_HOUR, side="right"))
    assert np.isfinite(value[first:last]).all()
    assert np.isnan(value[last:]).all(), "older than 26 hours is unknown, and its age says so"
    assert age[last] > 26.0


def test_open_interest_taker_and_book_of_one_coin_only() -> None:
    oi = np.exp(np.cumsum(np.random.default_rng(1).normal(0.0, 0.01, N_BARS)))
    taker = 0.3 * v
    side = SideData({
        ("open_interest", NAME): at(TS, CLOSES - NS_PER_MINUTE, oi),
        ("taker_buy_volume", NAME): at(TS, CLOSES, taker),
        ("book_imbalance", NAME): at(TS, CLOSES, np.full(N_BARS, 0.25)),
        ("predicted_funding", NAME): at(TS, CLOSES, np.full(N_BARS, 3e-4)),
        ("long_short_ratio", NAME): at(TS, CLOSES, np.full(N_BARS, np.e)),
        ("index_close", NAME): at(TS, CLOSES, c / 1.001),
    })  # fmt: skip
    frame = build("derivatives", "microstructure", side=side)
    gap = np.log(oi[24:] / oi[:-24]) - np.log(c[24:] / c[:-24])
    np.testing.assert_allclose(column(frame, "OI_PRICE_GAP_24H")[24:], gap, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(column(frame, "OI_CHANGE_24H")[24:], np.log(oi[24:] / oi[:-24]), rtol=1e-5, atol=1e-7)
    traded = pd.Series(v).rolling(24).sum() / oi
    np.testing.assert_allclose(column(frame, "OI_TURNOVER")[24:], traded[24:], rtol=1e-5)
    np.testing.assert_allclose(column(frame, "TAKER_DELTA6")[10:], -0.4, rtol=1e-5)
    for name, expected in (("BOOK_IMBALANCE", 0.25), ("FUNDING_PREDICTED", 3e-4), ("LONG_SHORT", 1.0), ("BASIS_INDEX", 1e-3)):
        np.testing.assert_allclose(column(frame, name)[10:], expected, rtol=1e-4)
    assert np.isnan(column(frame, "OI_CHANGE_24H", BTC)).all()


SESSIONS = [
    ("2024-07-08T13:29:00", 0.0, 1.0, "before the bell in summer (13:30 UTC)"),
    ("2024-07-08T13:30:00", 1.0, 0.0, "the bell in summer"),
    ("2024-01-08T13:30:00", 0.0, 1.0, "the same hour in winter is an hour early"),
    ("2024-01-08T14:30:00", 1.0, 0.0, "the bell in winter"),
    ("2024-11-29T18:00:00", 0.0, 1.0, "half day after Thanksgiving: closed at 13:00 New York"),
    ("2024-11-27T18:00:00", 1.0, 0.0, "the day before, open"),
    ("2024-11-28T18:00:00", 0.0, 0.0, "Thanksgiving"),
    ("2024-07-06T15:00:00", 0.0, 0.0, "Saturday"),
]


@pytest.mark.parametrize(("when", "is_open", "is_extended", "reason"), SESSIONS, ids=[s[3] for s in SESSIONS])
def test_new_york_keeps_its_own_time(when: str, is_open: float, is_extended: float, reason: str) -> None:
    instant = np.array([parse_utc(when)])
    assert us_session(instant)[0] == is_open, reason
    assert us_extended(instant)[0] == is_extended, reason


def test_hours_since_close_bridge_a_weekend_and_a_half_day() -> None:
    monday = np.array([parse_utc("2024-07-08T12:00:00"), parse_utc("2024-11-29T18:30:00"), parse_utc("2024-07-08T15:00:00")])
    assert hours_since_close(monday).tolist() == [64.0, 0.5, 0.0]


def qqq_side() -> tuple[SideData, dict[str, float]]:
    """Friday and Monday around a weekend, hours as Yahoo stamps them: at :30, the last one half an hour long."""
    friday, monday = parse_utc("2024-01-05T14:30:00"), parse_utc("2024-01-08T14:30:00")
    hours = [*(friday + k * NS_PER_HOUR for k in range(7)), monday, monday + NS_PER_HOUR]
    ends = [min(t + NS_PER_HOUR, friday + 390 * NS_PER_MINUTE) if t < monday else t + NS_PER_HOUR for t in hours]
    closes = [400.0, 401.0, 402.0, 403.0, 404.0, 405.0, 406.0, 410.0, 412.0]
    opens = [399.0, *closes[:6], 408.0, 410.0]
    days = [parse_utc("2024-01-04"), parse_utc("2024-01-05")]
    known_days = [parse_utc("2024-01-04T21:00:00"), parse_utc("2024-01-05T21:00:00")]
    side = SideData({
        ("qqq_1h_close", "MARKET"): at(hours, ends, closes),
        ("qqq_1h_open", "MARKET"): at(hours, ends, opens),
        ("qqq_1d_close", "MARKET"): at(days, known_days, [398.0, 406.0]),
    })  # fmt: skip
    return side, {"gap": np.log(408.0 / 406.0), "day": np.log(406.0 / 398.0), "weekend": np.log(410.0 / 406.0)}


def test_qqq_is_known_at_its_hour_and_never_before() -> None:
    side, known = qqq_side()
    frame = build("cross_market", side=side)

    def value(name: str, close: str) -> float:
        return float(column(frame, name)[int(np.searchsorted(CLOSES, parse_utc(close)))])

    assert np.isnan(value("QQQ_RET_1D", "2024-01-05T20:00:00")), "Friday's close is not known an hour before"
    assert value("QQQ_RET_1D", "2024-01-05T21:00:00") == pytest.approx(known["day"], rel=1e-6)
    assert value("QQQ_RET_1D", "2024-01-07T12:00:00") == pytest.approx(known["day"], rel=1e-6), "carried over the weekend"
    assert value("QQQ_GAP", "2024-01-08T15:00:00") == pytest.approx(np.log(399.0 / 398.0), rel=1e-6), "still Friday's"
    assert value("QQQ_GAP", "2024-01-08T16:00:00") == pytest.approx(known["gap"], rel=1e-6)
    assert np.isnan(value("QQQ_RET_24H", "2024-01-08T15:00:00"))
    assert value("QQQ_RET_24H", "2024-01-08T16:00:00") == pytest.approx(known["weekend"], rel=1e-6)
    assert value("QQQ_AGE", "2024-01-08T16:00:00") == pytest.approx(0.5)
    assert value("US_HOURS_CLOSED", "2024-01-07T21:00:00") == 48.0


def news(**columns: object) -> NewsEvents:
    n = len(columns["known_ns"])  # type: ignore[arg-type]
    fields: dict[str, object] = {
        "until_ns": np.full(n, NEVER), "sentiment": np.full(n, 0.5), "confidence": np.ones(n), "relevance": np.ones(n),
        "severity": np.ones(n), "event": np.ones(n, np.int64), "is_copy": np.zeros(n, np.bool_), "source": np.arange(n),
        "coins": (("BTC",),) * n, "topics": np.zeros((n, len(lexicon().topics)), np.bool_), "polls_ns": TS.copy(),
    }  # fmt: skip
    made = fields | columns | {"known_ns": np.array(columns["known_ns"], np.int64)}
    return NewsEvents(**{k: np.asarray(v) if isinstance(v, list) else v for k, v in made.items()})  # type: ignore[arg-type]


def news_value(events: NewsEvents, name: str, bar: int, symbol: int = BTC) -> float:
    return float(column(build("news", side=SideData(news=events), panel=PANEL.rows(0, 400)), name, symbol)[bar])


HOUR = [START_NS + k * NS_PER_HOUR for k in range(400)]


def test_an_article_counts_from_the_bar_that_closes_after_it() -> None:
    events = news(known_ns=[HOUR[201]])  # known at the very close of bar 200
    assert news_value(events, "NEWS_COUNT_24H", 199) == 0.0
    assert news_value(events, "NEWS_COUNT_24H", 200) == pytest.approx(np.log(2.0))
    late = news(known_ns=[HOUR[201] + 1])
    assert news_value(late, "NEWS_COUNT_24H", 200) == 0.0


def test_sentiment_decays_by_half_each_half_life() -> None:
    events = news(known_ns=[HOUR[195], HOUR[201]], sentiment=[-1.0, 1.0])
    expected = (1.0 - 0.5) / 1.5  # six hours apart, half-life 6
    assert news_value(events, "NEWS_SENT_6H", 200) == pytest.approx(expected, rel=1e-5)
    assert news_value(events, "NEWS_EVENT_HACK", 200) == pytest.approx(1.0 + 2.0 ** (-6 / 24), rel=1e-5)
    assert np.isnan(news_value(events, "NEWS_SENT_6H", 200, ETH)), "nothing was said about ETH"
    assert news_value(events, "NEWS_MARKET_SENT_6H", 200, ETH) == pytest.approx(expected, rel=1e-5)


def test_copies_are_reach_and_one_source_cannot_outvote_the_others() -> None:
    copied = news(known_ns=[HOUR[200], HOUR[200] + 1], sentiment=[1.0, -1.0], is_copy=[False, True])
    assert news_value(copied, "NEWS_SENT_24H", 200) == pytest.approx(1.0)
    assert news_value(copied, "NEWS_REACH_24H", 200) == 1.0
    flood = news(known_ns=[HOUR[201]] * 10, sentiment=[1.0] + [-1.0] * 9, source=[0] + [1] * 9)
    assert news_value(flood, "NEWS_SENT_24H", 200) == pytest.approx(0.0, abs=1e-6), "half the weight at most"


def test_a_replaced_reading_no_longer_counts() -> None:
    events = news(known_ns=[HOUR[200], HOUR[202]], until_ns=[HOUR[202], NEVER], sentiment=[-1.0, 1.0])
    assert news_value(events, "NEWS_SENT_24H", 200) == pytest.approx(-1.0)
    assert news_value(events, "NEWS_SENT_24H", 201) == pytest.approx(1.0)


def test_hours_without_a_poll_are_unknown_not_silent() -> None:
    events = news(known_ns=[HOUR[200]], polls_ns=np.array(HOUR[:202]))
    assert np.isfinite(news_value(events, "NEWS_COUNT_24H", 206))
    assert np.isnan(news_value(events, "NEWS_COUNT_24H", 207))
    assert news_value(events, "NEWS_GAP", 207) == 7.0


def test_the_index_of_a_day_is_used_from_its_end_on() -> None:
    day = START_NS + 5 * NS_PER_DAY
    events = news(known_ns=[day + NS_PER_HOUR, day + 23 * NS_PER_HOUR], sentiment=[-1.0, 1.0], confidence=[0.5, 1.0])
    bar = 6 * 24 - 1  # closes at the end of the day
    assert np.isnan(news_value(events, "NEWS_INDEX_DAY", bar - 1))
    assert news_value(events, "NEWS_INDEX_DAY", bar) == pytest.approx(1.0 / 3.0, rel=1e-5)
