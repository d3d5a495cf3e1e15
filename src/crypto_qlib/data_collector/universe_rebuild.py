"""Choose the universe again for every past ranking, with nothing but what was known then.

1. Rankings are taken in order of time, at most one per ``universe.refresh_hours`` (:mod:`.cap_rankings`).
2. A swap takes part while it was listed; each coin gets its swap by ticker and by the price of *that* time
   (:mod:`.swap_mapping`); coins pegged to something by then are left out (:mod:`.coin_exclusions`, :mod:`.peg_watch`).
3. Hysteresis carries each choice into the next one, so that the rebuilt past is what a live system would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.data_collector.asset_selector import choose, reason_to_leave_out, rule_of
from crypto_qlib.data_collector.cap_rankings import Ranking, merged_rankings
from crypto_qlib.data_collector.contract_archive import instrument_versions
from crypto_qlib.data_collector.peg_watch import PegWatch
from crypto_qlib.data_collector.swap_mapping import Swap, map_coins, swaps_by_ticker
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, keep_history
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Kind, Lake

_PRICE_LOOKBACK_NS: Final = 36 * NS_PER_HOUR
"""A ranking's price is some hours older than the time it was known at."""
_EARLY_NS: Final = NS_PER_HOUR
"""A ranking that comes this much before the next refresh is due is not waited past."""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Closing prices of swaps, to verify that a coin is the swap's.

    Parameters
    ----------
    by_symbol : mapping
        (close times, highs, lows) by symbol, oldest first.
    """

    by_symbol: Mapping[str, tuple[IntArray, FloatArray, FloatArray]]

    def range_at(self, symbol: str, ts_ns: int) -> tuple[float, float]:
        """Return (low, high) over the 36 hours before ``ts_ns``; NaN where no bar is known."""
        found = self.by_symbol.get(symbol)
        if found is None:
            return math.nan, math.nan
        closes, highs, lows = found
        a, b = np.searchsorted(closes, [ts_ns - _PRICE_LOOKBACK_NS, ts_ns + 1])
        if a == b or not np.isfinite(lows[a:b]).any():
            return math.nan, math.nan
        return float(np.nanmin(lows[a:b])), float(np.nanmax(highs[a:b]))


def lake_prices(lake: Lake, frame: str, symbols: Iterable[str]) -> PriceTable:
    """Return the prices of the raw candles in the lake."""
    table = {}
    for symbol in symbols:
        bars = lake.read_bars(Kind.CANDLES, frame, symbol)
        if len(bars):
            table[symbol] = (bars.ts_open + FRAME_NS[frame], bars.high, bars.low)
    return PriceTable(table)


def rebuild(
    rankings: Sequence[Ranking], contracts: Iterable[Instrument], settings: UniverseSettings, prices: PriceTable
) -> list[UniverseSnapshot]:
    """Return the universe as it would have been chosen at each ranking, oldest first.

    Parameters
    ----------
    rankings : sequence of Ranking
        In order of time.
    contracts : iterable of Instrument
        Every swap there ever was, with its listing span.
    settings : UniverseSettings
        Size, exclusions, hysteresis, refresh.
    prices : PriceTable
        Prices of the swaps; where there are none, the ticker alone decides.
    """
    spans = list(contracts)
    watch = PegWatch()
    snapshots: list[UniverseSnapshot] = []
    due_ns = -1
    previous: frozenset[str] = frozenset()
    for ranking in rankings:
        watch.see(ranking.known_ns, ranking.coins)
        if ranking.known_ns < due_ns:
            continue
        swaps = [_swap(i, prices, ranking.known_ns) for i in spans if i.is_listed(ranking.known_ns)]
        mapped = map_coins(
            ranking.coins, swaps_by_ticker(swaps), lambda c: reason_to_leave_out(c, settings, watch), trust_tickers=True
        )
        ranked = _with_included(mapped.members, swaps, settings)
        chosen = choose(ranked, previous, settings)
        if not chosen:
            continue
        notes = (*mapped.refused, *((f"by ticker alone: {', '.join(mapped.unverified)}",) if mapped.unverified else ()))
        snapshots.append(UniverseSnapshot(ranking.known_ns, chosen, ranking.source, rule_of(settings), notes))
        previous = frozenset(m.symbol for m in chosen)
        due_ns = ranking.known_ns + int(settings.refresh_hours * NS_PER_HOUR) - _EARLY_NS
    return snapshots


def rebuild_history(lake: Lake, settings: UniverseSettings, frame: str) -> list[UniverseSnapshot]:
    """Choose the universe again for every ranking in the lake, keep the result there and return it.

    Raises
    ------
    UserError
        If a file is damaged or the lake cannot be written.
    """
    versions = instrument_versions(lake)
    contracts = [_whole_life(v) for v in versions.values()]
    rankings = merged_rankings(lake, (settings.market_cap_source, "coingecko", "coinmarketcap"))
    snapshots = rebuild(rankings, contracts, settings, lake_prices(lake, frame, versions))
    keep_history(lake, snapshots)
    return snapshots


def _whole_life(versions: Sequence[Instrument]) -> Instrument:
    """Return the newest specification; its ``listed_ns`` and ``delisted_ns`` span what is known of its life."""
    return versions[-1]


def _swap(item: Instrument, prices: PriceTable, ts_ns: int) -> Swap:
    low, high = prices.range_at(item.symbol, ts_ns)
    return Swap(item.symbol, item.base, item.inst_id, low, high)


def _with_included(
    members: tuple[UniverseMember, ...], swaps: Sequence[Swap], settings: UniverseSettings
) -> list[UniverseMember]:
    known = {m.base for m in members}
    listed = {s.base: s for s in swaps}
    added = [listed[b] for b in settings.include if b in listed and b not in known]
    return [*members, *(UniverseMember(s.symbol, s.base, len(members) + k) for k, s in enumerate(added, 1))]
