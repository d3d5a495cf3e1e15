"""Step 1: choose the universe, the top N coins by market cap that trade as live USDT swaps.

1. Coins come by market cap (CoinGecko) or, as the fall-back, by 24 h turnover of their swap.
2. Stablecoins, claims on other coins and gold are left out (:mod:`.coin_exclusions`).
3. Each coin is mapped to a swap by ticker *and price*: two coins may share a ticker, and ``1000X`` swaps are quoted per
   thousand coins. A coin whose price is not the swap's is refused.
4. Hysteresis: a member leaves only when it falls ``hysteresis`` ranks below N, and a newcomer pushes a member out only
   when it has climbed ``hysteresis`` ranks above N.
5. The snapshot is kept with its time; back-tests ask for the universe as known then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument, InstrumentState
from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.market_caps import COINS_PER_PAGE, Coin, CoinRanking
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, keep_snapshot, universe_at
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Lake

_THOUSANDS: Final = re.compile(r"^(10{3,})(?=\D)(.+)$")
_PRICE_TOLERANCE: Final = 0.1
"""Two prices of one coin differ by less than this (log); two coins of one ticker hardly ever do."""
_MAX_PAGES: Final = 4
_BY_TURNOVER: Final = "24 h turnover on the exchange"


@dataclass(frozen=True, slots=True)
class _Swap:
    """A live swap with its price and turnover; ``multiple`` coins make one base unit."""

    instrument: Instrument
    multiple: int
    last: float
    turnover: float


def rule_of(settings: UniverseSettings) -> str:
    """Return the settings that decide membership, as text kept with each snapshot."""
    return settings.model_dump_json(exclude={"refresh_hours"})


def fresh_universe(lake: Lake, settings: UniverseSettings, now_ns: int) -> UniverseSnapshot | None:
    """Return the newest snapshot if it is younger than ``refresh_hours`` and was chosen by the same settings."""
    newest = universe_at(lake, now_ns)
    if newest is None or newest.rule != rule_of(settings):
        return None
    return newest if now_ns - newest.as_of_ns < settings.refresh_hours * NS_PER_HOUR else None


async def select_universe(
    gateway: Gateway, ranking: CoinRanking, lake: Lake, settings: UniverseSettings, now_ns: int
) -> UniverseSnapshot:
    """Choose the universe at ``now_ns``, keep the snapshot in the lake and return it.

    Parameters
    ----------
    gateway : Gateway
        The exchange whose swaps may be chosen.
    ranking : CoinRanking
        Coins by market cap, e.g. :class:`~crypto_qlib.data_collector.market_caps.CoinGeckoRanking`; not asked when
        ``market_cap_source`` is ``volume``.
    lake : Lake
        Where snapshots are kept; the previous one feeds the hysteresis.
    settings : UniverseSettings
        Size, exclusions, hysteresis.
    now_ns : int
        Time of the snapshot.

    Raises
    ------
    UserError
        If no coin qualifies, a coin of ``universe.include`` has no live swap, or market caps cannot be read
        (``market_cap_source = coingecko``; ``auto`` falls back to turnover and says so in ``notes``).
    """
    swaps = await _live_swaps(gateway)
    source, ranked, notes = await _rank(ranking, swaps, settings)
    ranked = _with_included(ranked, swaps, settings)
    previous = universe_at(lake, now_ns)
    chosen = choose(ranked, frozenset() if previous is None else frozenset(previous.symbols), settings)
    if not chosen:
        raise UserError(
            f"the universe is empty: none of {len(swaps)} live USDT swaps qualifies", "check universe.size, exclude and include"
        )
    if len(chosen) < settings.size:
        notes = (f"only {len(chosen)} of universe.size = {settings.size} coins qualify", *notes)
    snapshot = UniverseSnapshot(now_ns, chosen, source, rule_of(settings), notes)
    keep_snapshot(lake, snapshot)
    return snapshot


def choose(
    ranked: Sequence[UniverseMember], previous: frozenset[str], settings: UniverseSettings
) -> tuple[UniverseMember, ...]:
    """Return at most ``size`` members of ``ranked``, by rank.

    First the coins of ``include``; then ranks up to ``size - hysteresis``; then previous members down to rank
    ``size + hysteresis``; then whoever ranks next.
    """
    sure = settings.size - settings.hysteresis
    kept = settings.size + settings.hysteresis

    def order(member: UniverseMember) -> tuple[int, int]:
        if member.base in settings.include:
            return 0, member.rank
        if member.rank <= sure:
            return 1, member.rank
        return (2 if member.symbol in previous and member.rank <= kept else 3), member.rank

    size = max(settings.size, sum(m.base in settings.include for m in ranked))
    return tuple(sorted(sorted(ranked, key=order)[:size], key=lambda m: m.rank))


async def _live_swaps(gateway: Gateway) -> dict[str, _Swap]:
    """Return live swaps by base name, ``1000PEPE`` as it stands."""
    tickers = {t.symbol: t for t in await gateway.tickers()}
    swaps: dict[str, _Swap] = {}
    for item in await gateway.instruments():
        quote = tickers.get(item.symbol)
        if item.state is not InstrumentState.LIVE or quote is None or not quote.last > 0.0:
            continue
        thousands = _THOUSANDS.match(item.base)
        swaps[item.base] = _Swap(item, int(thousands[1]) if thousands else 1, quote.last, quote.quote_volume_24h)
    return swaps


async def _rank(
    ranking: CoinRanking, swaps: dict[str, _Swap], settings: UniverseSettings
) -> tuple[str, list[UniverseMember], tuple[str, ...]]:
    if settings.market_cap_source == "volume":
        return _BY_TURNOVER, _by_turnover(swaps, settings), ()
    try:
        ranked, refused = await _by_market_cap(ranking, swaps, settings)
    except UserError as e:
        if settings.market_cap_source == "coingecko":
            raise
        return _BY_TURNOVER, _by_turnover(swaps, settings), (f"{e.message}: ranked by turnover instead",)
    if not ranked and settings.market_cap_source == "auto":
        note = f"{ranking.source} knows none of the exchange's coins: ranked by turnover instead"
        return _BY_TURNOVER, _by_turnover(swaps, settings), (note,)
    return ranking.source, ranked, tuple(refused)


async def _by_market_cap(
    ranking: CoinRanking, swaps: dict[str, _Swap], settings: UniverseSettings
) -> tuple[list[UniverseMember], list[str]]:
    by_coin: dict[str, list[_Swap]] = {}
    for base, swap in swaps.items():
        by_coin.setdefault(base, []).append(replace(swap, multiple=1))
        if swap.multiple > 1:
            by_coin.setdefault(base.removeprefix(str(swap.multiple)), []).append(swap)
    ranked: list[UniverseMember] = []
    refused: list[str] = []
    taken: set[str] = set()
    for number in range(1, _MAX_PAGES + 1):
        coins = await ranking.page(number)
        for coin in sorted(coins, key=lambda c: -c.market_cap if c.market_cap > 0.0 else 0.0):
            reason = _refusal(coin, settings)
            found = [s for s in by_coin.get(coin.symbol, ()) if s.instrument.symbol not in taken]
            if reason or not found:
                continue
            same = [s for s in found if is_same_price(coin.price * s.multiple, s.last)]
            if not same:
                refused.append(_other_coin(coin, found[0]))
                continue
            swap = max(same, key=lambda s: s.turnover)
            taken.add(swap.instrument.symbol)
            ranked.append(UniverseMember(swap.instrument.symbol, swap.instrument.base, len(ranked) + 1, coin.market_cap))
        if len(coins) < COINS_PER_PAGE or len(ranked) >= settings.size + settings.hysteresis:
            break
    return ranked, refused


def _refusal(coin: Coin, settings: UniverseSettings) -> str:
    if coin.symbol in settings.exclude:
        return "universe.exclude"
    if coin.symbol in settings.include:
        return ""
    if not coin.market_cap > 0.0:
        return "no market cap"
    return why_excluded(coin) if settings.exclude_stablecoins else ""


def is_same_price(coin_price: float, swap_price: float) -> bool:
    """Return whether both are prices of one coin: less than 10 % apart (log); False where one is unknown."""
    return coin_price > 0.0 and swap_price > 0.0 and abs(math.log(coin_price / swap_price)) < _PRICE_TOLERANCE


def _other_coin(coin: Coin, swap: _Swap) -> str:
    return (
        f"{coin.symbol} ({coin.name}) costs {coin.price:g}, {swap.instrument.inst_id} {swap.last:g}: "
        "another coin of the same ticker, left out"
    )


def _by_turnover(swaps: dict[str, _Swap], settings: UniverseSettings) -> list[UniverseMember]:
    ordered = sorted(swaps.items(), key=lambda pair: (-max(0.0, pair[1].turnover), pair[0]))
    ranked: list[UniverseMember] = []
    for base, swap in ordered:
        name = base.removeprefix(str(swap.multiple)) if swap.multiple > 1 else base
        coin = Coin(name, name, name, swap.last, 1.0)
        if base not in settings.exclude and not _refusal(coin, settings):
            ranked.append(UniverseMember(swap.instrument.symbol, base, len(ranked) + 1))
    return ranked


def _with_included(ranked: list[UniverseMember], swaps: dict[str, _Swap], settings: UniverseSettings) -> list[UniverseMember]:
    """Return ``ranked`` with the coins of ``include`` that the ranking does not know at its end."""
    known = {m.base for m in ranked}
    added = list(ranked)
    for base in settings.include:
        if base in known:
            continue
        if base not in swaps:
            raise UserError(f"universe.include: there is no live USDT swap of {base}", "check the coin's name")
        added.append(UniverseMember(swaps[base].instrument.symbol, base, len(added) + 1))
    return added
