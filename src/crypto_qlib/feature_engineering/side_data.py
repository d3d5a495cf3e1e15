"""What is known beside the bars: open interest, taker flow, order book, stock index, sentiment, on-chain, news.

Every series comes as observations with the time each became known. :meth:`SideData.on_closes` serves it at the close of each
bar: the newest value known by then, NaN once it is older than its source allows, and its age. Nothing later than a bar's close
can reach that bar, whatever the source revised afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.data_collector.external_catalogue import CATALOGUE, YAHOO
from crypto_qlib.data_collector.stock_sessions import carried_until
from crypto_qlib.feature_engineering.news_events import NewsEvents
from crypto_qlib.store.observations import AsOf, Observations, join_as_of
from crypto_qlib.store.series_store import MARKET, SeriesStore

QUOTE: Final = "USDT"


class Key(Enum):
    """What a side series has one column for."""

    MARKET = "the whole market"
    COIN = "each coin"
    SYMBOL = "each contract"


@dataclass(frozen=True, slots=True)
class SideSpec:
    """One series beside the bars.

    Parameters
    ----------
    name : str
        Name in :class:`SideData`; for external series that of the external catalogue.
    key : Key
        Columns.
    carry_ns : int
        How long after it became known a value counts.
    says : str
        Meaning and unit.
    """

    name: str
    key: Key
    carry_ns: int
    says: str


def _external(name: str) -> SideSpec:
    spec = CATALOGUE[name]
    return SideSpec(name, Key.COIN if spec.is_by_coin else Key.MARKET, spec.carry_ns, spec.unit)


_EXTERNAL: Final = (
    "qqq_1h_open", "qqq_1h_close", "qqq_1d_close", "fear_greed", "btc_dominance", "total_market_cap", "active_addresses",
    "tx_count", "mvrv", "nvt", "whale_supply", "supply", "exchange_inflow_usd", "exchange_outflow_usd", "pageviews",
)  # fmt: skip

SIDE_SERIES: Final[dict[str, SideSpec]] = {
    spec.name: spec
    for spec in (
        *(_external(name) for name in _EXTERNAL),
        SideSpec("open_interest", Key.SYMBOL, 26 * NS_PER_HOUR, "contracts or coins, one unit a symbol"),
        SideSpec("long_short_ratio", Key.SYMBOL, 3 * NS_PER_HOUR, "accounts long / accounts short"),
        SideSpec("predicted_funding", Key.SYMBOL, 2 * NS_PER_HOUR, "rate announced for the next settlement, fraction"),
        SideSpec("taker_buy_volume", Key.SYMBOL, 0, "base coins bought by takers in the bar"),
        SideSpec("index_close", Key.SYMBOL, 0, "index price at the bar's close"),
        SideSpec("book_imbalance", Key.SYMBOL, NS_PER_HOUR, "(bid - ask) / (bid + ask) of depth near the mid"),
        SideSpec("book_spread", Key.SYMBOL, NS_PER_HOUR, "(ask - bid) / mid"),
        SideSpec("book_depth", Key.SYMBOL, NS_PER_HOUR, "log10 USDT of the best five levels of both sides"),
        SideSpec(
            "book_slope", Key.SYMBOL, NS_PER_HOUR, "log10 USDT a basis point of distance from the mid, mean of both sides"
        ),
        SideSpec("book_slope_skew", Key.SYMBOL, NS_PER_HOUR, "log(slope of the bids / slope of the asks)"),
        SideSpec("effective_spread", Key.SYMBOL, NS_PER_HOUR, "2 |price - mid| / mid of an hour's trades"),
        SideSpec("realised_spread", Key.SYMBOL, NS_PER_HOUR, "2 side (price - mid 5 s later) / mid of an hour's trades"),
    )
}
"""Every side series by name. ``carry_ns = 0``: the value must have become known at the very close of its bar."""

_ON_CHAIN: Final = "a day from the time its source calls it complete, else 08:00 UTC of the next"
_MINUTES: Final = "a minute from 5 s after its end"
KNOWN_FROM: Final[dict[str, str]] = {
    "funding": "a settled rate from the bar that opens at its settlement",
    "qqq_1h_open": "an hour of New York from its end and the quote's delay",
    "qqq_1h_close": "an hour of New York from its end and the quote's delay",
    "qqq_1d_close": "a session from an hour after its close",
    "fear_greed": "a day's index from 00:45 UTC of that day",
    "btc_dominance": "from when it was asked for",
    "total_market_cap": "from when it was asked for",
    "pageviews": "a day's views from the end of the next day",
    "active_addresses": _ON_CHAIN, "tx_count": _ON_CHAIN, "mvrv": _ON_CHAIN, "nvt": _ON_CHAIN, "whale_supply": _ON_CHAIN,
    "supply": _ON_CHAIN, "exchange_inflow_usd": _ON_CHAIN, "exchange_outflow_usd": _ON_CHAIN,
    "open_interest": "an hour's from its end, a snapshot from when it was asked for",
    "long_short_ratio": "an hour's from its end",
    "predicted_funding": "from when it was asked for",
    "taker_buy_volume": "a bar's from its close",
    "index_close": "a bar's from its close",
    "book_imbalance": _MINUTES, "book_spread": _MINUTES, "book_depth": _MINUTES, "book_slope": _MINUTES,
    "book_slope_skew": _MINUTES, "effective_spread": _MINUTES, "realised_spread": _MINUTES,
}  # fmt: skip
"""From when a value of each input beside the bars is known, in words, as a rule; every value carries its own time."""


@dataclass(frozen=True, slots=True)
class SideData:
    """Observations beside the bars.

    Parameters
    ----------
    series : mapping of (name, column) to Observations
        Columns are ``MARKET``, a base coin (``BTC``) or a symbol (``BTCUSDT``), by the series' :class:`Key`.
    news : NewsEvents, optional
        Articles as they were read.
    """

    series: Mapping[tuple[str, str], Observations] = field(default_factory=dict)
    news: NewsEvents | None = None

    def has(self, name: str) -> bool:
        """Return whether there is any observation of ``name`` (``news``: any article)."""
        if name == "news":
            return self.news is not None and len(self.news) > 0
        return any(n == name and len(rows) for (n, _), rows in self.series.items())

    def on_closes(self, name: str, column: str, closes: IntArray) -> AsOf:
        """Return ``name`` as it was known at each of ``closes``; too old is NaN."""
        spec = SIDE_SERIES[name]
        rows = self.series.get((name, column), Observations.empty())
        found = join_as_of(rows, closes, spec.carry_ns)
        if name in CATALOGUE and CATALOGUE[name].source == YAHOO:
            is_stale = closes >= carried_until(found.event_ns)
            return AsOf(np.where(is_stale, np.nan, found.value), found.age_ns, found.event_ns)
        return found


def side_digest(side: SideData, start_ns: int | None, end_ns: int) -> str:
    """Return a digest of what became known in ``(start_ns, end_ns]`` (``None``: from the beginning on).

    Rows of bars that close by ``end_ns`` can differ only where one of the digests up to theirs does.
    """
    begin_ns = np.iinfo(np.int64).min if start_ns is None else start_ns
    digest = hashlib.sha256()
    for key, rows in sorted(side.series.items()):
        new = rows.take((rows.known_ns > begin_ns) & (rows.known_ns <= end_ns))
        if len(new):
            digest.update(repr(key).encode())
            for array in (new.event_ns, new.known_ns, new.value):
                digest.update(np.ascontiguousarray(array).data)
    if side.news is not None:
        digest.update(side.news.digest(begin_ns, end_ns).encode())
    return digest.hexdigest()


def base_coin(symbol: str) -> str:
    """Return the base coin of a USDT contract: ``BTC`` of ``BTCUSDT``, ``PEPE`` of ``1000PEPEUSDT``."""
    return symbol.removesuffix(QUOTE).removeprefix("1000")


def column_of(name: str, symbol: str) -> str:
    """Return the column of series ``name`` that belongs to ``symbol``."""
    key = SIDE_SERIES[name].key
    return MARKET if key is Key.MARKET else base_coin(symbol) if key is Key.COIN else symbol


def load_external(store: SeriesStore, symbols: Sequence[str]) -> dict[tuple[str, str], Observations]:
    """Return every external series of the store that features use, for the coins of ``symbols``."""
    coins = dict.fromkeys(base_coin(s) for s in symbols)
    found: dict[tuple[str, str], Observations] = {}
    for name in _EXTERNAL:
        for column in coins if SIDE_SERIES[name].key is Key.COIN else (MARKET,):
            rows = store.read(name, column)
            if len(rows):
                found[name, column] = rows
    return found


def first_vintage(rows: Observations) -> Observations:
    """Return the first value of every event, oldest event first, with known times that never go back.

    Windows over a series' own calendar (sessions, days) use first values only: a later correction changes no window.
    """
    if not len(rows):
        return rows
    first = rows.take(np.append(True, rows.event_ns[1:] != rows.event_ns[:-1]))
    return Observations(first.event_ns, np.maximum.accumulate(first.known_ns), first.value)


def bar_observations(ts_open: IntArray, values: FloatArray, frame_ns: int) -> Observations:
    """Return a series of bars as observations known at their closes; NaN rows are left out."""
    keep = np.isfinite(values)
    return Observations(ts_open[keep], ts_open[keep] + frame_ns, values[keep])


def hours(age_ns: npt.NDArray[np.int64]) -> FloatArray:
    """Return ages in hours, NaN where nothing is known."""
    result: FloatArray = np.where(age_ns >= 0, age_ns / NS_PER_HOUR, np.nan)
    return result
