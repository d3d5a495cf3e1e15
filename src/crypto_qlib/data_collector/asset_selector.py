"""Step 1: choose the universe, the top N coins by market cap that trade as live USDT swaps.

1. Coins come by market cap (CoinGecko) or, as the fall-back, by 24 h turnover of their swap.
2. Stablecoins, claims on other coins and gold are left out (:mod:`.coin_exclusions`).
3. Each coin is mapped to a swap by ticker *and price* (:mod:`.swap_mapping`).
4. Hysteresis: a member leaves only when it falls ``hysteresis`` ranks below N, and a newcomer pushes a member out only
   when it has climbed ``hysteresis`` ranks above N.
5. The snapshot, and the whole ranking it came from, are kept with their time; back-tests ask for the universe as known then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.data_collector.cap_rankings import keep_rankings
from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.market_caps import COINS_PER_PAGE, Coin, CoinRanking
from crypto_qlib.data_collector.peg_watch import PegWatch
from crypto_qlib.data_collector.swap_mapping import Swap, map_coins, split_multiple, swaps_by_ticker
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, keep_snapshot, universe_at
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Lake

_MAX_PAGES: Final = 4
BY_TURNOVER: Final = "24 h turnover on the exchange"
"""Source of a universe that was not ranked by market cap."""


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
    previous = universe_at(lake, now_ns)
    snapshot, coins = await looked_up(gateway, ranking, previous, settings, now_ns)
    keep_rankings(lake, ranking.name, [(now_ns, coins)])
    keep_snapshot(lake, snapshot)
    return snapshot


async def looked_up(
    gateway: Gateway, ranking: CoinRanking, previous: UniverseSnapshot | None, settings: UniverseSettings, now_ns: int
) -> tuple[UniverseSnapshot, tuple[Coin, ...]]:
    """Return the universe at ``now_ns`` and the whole ranking it came from; nothing is kept.

    Raises
    ------
    UserError
        As :func:`select_universe`.
    """
    swaps = await _live_swaps(gateway)
    found = await _rank(ranking, swaps, settings)
    ranked, notes = _with_included(found.members, swaps, settings), found.notes
    chosen = choose(ranked, frozenset() if previous is None else frozenset(previous.symbols), settings)
    if not chosen:
        raise UserError(
            f"the universe is empty: none of {len(swaps)} live USDT swaps qualifies", "check universe.size, exclude and include"
        )
    if len(chosen) < settings.size:
        notes = (f"only {len(chosen)} of universe.size = {settings.size} coins qualify", *notes)
    return UniverseSnapshot(now_ns, chosen, found.source, rule_of(settings), notes), found.coins


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


async def _live_swaps(gateway: Gateway) -> dict[str, Swap]:
    """Return live swaps by base name, ``1000PEPE`` as it stands."""
    tickers = {t.symbol: t for t in await gateway.tickers()}
    swaps: dict[str, Swap] = {}
    for item in await gateway.instruments():
        quote = tickers.get(item.symbol)
        if item.state is InstrumentState.LIVE and quote is not None and quote.last > 0.0:
            swaps[item.base] = Swap(item.symbol, item.base, item.inst_id, quote.last, quote.last, quote.quote_volume_24h)
    return swaps


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Coins that qualify, where the order comes from, all coins the source told, and what to tell a person."""

    source: str
    members: list[UniverseMember]
    coins: tuple[Coin, ...] = ()
    notes: tuple[str, ...] = ()


async def _rank(ranking: CoinRanking, swaps: dict[str, Swap], settings: UniverseSettings) -> _Ranked:
    if settings.market_cap_source == "volume":
        return _Ranked(BY_TURNOVER, _by_turnover(swaps, settings))
    try:
        found = await _by_market_cap(ranking, swaps, settings)
    except UserError as e:
        if settings.market_cap_source != "auto":
            raise
        return _Ranked(BY_TURNOVER, _by_turnover(swaps, settings), (), (f"{e.message}: ranked by turnover instead",))
    if not found.members and settings.market_cap_source == "auto":
        note = f"{ranking.source} knows none of the exchange's coins: ranked by turnover instead"
        return _Ranked(BY_TURNOVER, _by_turnover(swaps, settings), found.coins, (note,))
    return found


async def _by_market_cap(ranking: CoinRanking, swaps: dict[str, Swap], settings: UniverseSettings) -> _Ranked:
    by_ticker = swaps_by_ticker(swaps.values())
    members: list[UniverseMember] = []
    seen: list[Coin] = []
    refused: list[str] = []
    taken: set[str] = set()
    for number in range(1, _MAX_PAGES + 1):
        coins = await ranking.page(number)
        seen += coins
        mapped = map_coins(coins, by_ticker, lambda c: reason_to_leave_out(c, settings), len(members) + 1, taken)
        members += mapped.members
        refused += mapped.refused
        if len(coins) < COINS_PER_PAGE or len(members) >= settings.size + settings.hysteresis:
            break
    return _Ranked(ranking.source, members, tuple(seen), tuple(refused))


def reason_to_leave_out(coin: Coin, settings: UniverseSettings, watch: PegWatch | None = None) -> str:
    """Return why ``coin`` may not be a member, or an empty string.

    ``universe.exclude`` beats ``include``, which beats ``never_pegged``, which beats every rule about categories and pegs.
    """
    if coin.symbol in settings.exclude:
        return "universe.exclude"
    if coin.symbol in settings.include:
        return ""
    if not coin.market_cap > 0.0:
        return "no market cap"
    if not settings.exclude_stablecoins or coin.symbol in settings.never_pegged:
        return ""
    known = why_excluded(coin)
    follows = watch.pegged_to(coin) if watch is not None and not known else ""
    return known or (f"its price follows {follows}" if follows else "")


def _by_turnover(swaps: dict[str, Swap], settings: UniverseSettings) -> list[UniverseMember]:
    ordered = sorted(swaps.items(), key=lambda pair: (-max(0.0, pair[1].turnover), pair[0]))
    ranked: list[UniverseMember] = []
    for base, swap in ordered:
        _, name = split_multiple(base)
        coin = Coin(name, name, name, swap.low, 1.0)
        if base not in settings.exclude and not reason_to_leave_out(coin, settings):
            ranked.append(UniverseMember(swap.symbol, base, len(ranked) + 1))
    return ranked


def _with_included(ranked: list[UniverseMember], swaps: dict[str, Swap], settings: UniverseSettings) -> list[UniverseMember]:
    """Return ``ranked`` with the coins of ``include`` that the ranking does not know at its end."""
    known = {m.base for m in ranked}
    added = list(ranked)
    for base in settings.include:
        if base in known:
            continue
        if base not in swaps:
            raise UserError(f"universe.include: there is no live USDT swap of {base}", "check the coin's name")
        added.append(UniverseMember(swaps[base].symbol, base, len(added) + 1))
    return added
