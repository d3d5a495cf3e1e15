"""The universe over time, for the main job: who ranks the coins, how the past is filled, who belongs when."""

from __future__ import annotations

import hashlib

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.membership import Membership, membership_of
from crypto_qlib.data_collector.asset_selector import rule_of
from crypto_qlib.data_collector.cap_backfill import ChartSource, backfill_days, backfill_rankings
from crypto_qlib.data_collector.coinmarketcap import CoinMarketCapRanking
from crypto_qlib.data_collector.contract_archive import archive_instruments, instrument_versions
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport
from crypto_qlib.data_collector.fetch_plan import wanted_span
from crypto_qlib.data_collector.market_caps import CoinGeckoRanking, CoinRanking
from crypto_qlib.data_collector.universe_history import UniverseSnapshot, load_membership
from crypto_qlib.data_collector.universe_rebuild import rebuild_history
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.settings.schema import Settings, UniverseSettings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.lake import Kind, Lake, Series, read_times


def coin_ranking(settings: Settings, secrets: Secrets, access: ExchangeAccess) -> CoinRanking:
    """Return the source of market caps the settings name; in embedded mode the embedded exchange speaks for CoinGecko.

    Raises
    ------
    UserError
        If CoinMarketCap is asked for without a key.
    """
    if settings.universe.market_cap_source == "coinmarketcap":
        if not secrets.coinmarketcap_api_key:
            raise UserError("universe.market_cap_source is coinmarketcap, but no key is given", "set COINMARKETCAP_API_KEY")
        return CoinMarketCapRanking(secrets.coinmarketcap_api_key, timeout_s=settings.exchange.timeout_s)
    url = f"{access.base_url}/api/v3" if access.is_embedded else ""
    return CoinGeckoRanking(url, secrets.coingecko_api_key, settings.exchange.timeout_s)


async def backfill_universe(
    gateway: Gateway, ranking: CoinRanking, lake: Lake, settings: Settings, now_ns: int, reporter: Reporter
) -> tuple[str, ...]:
    """Fill the rankings of the wanted history where the source has charts, and choose the universe again for all of it.

    Returns
    -------
    tuple of str
        What a person should know; an unreadable past is said, not raised: the universe of today stands.
    """
    start_ns = wanted_span(settings.data, now_ns)[0]
    lines: list[str] = []
    with lake.writing():
        archive_instruments(lake, await gateway.instruments(), now_ns)
        if isinstance(ranking, CoinGeckoRanking):
            lines += await _backfill(ranking, lake, settings, start_ns, reporter)
        elif isinstance(ranking, CoinMarketCapRanking):
            done = await backfill_days(ranking, lake, start_ns, reporter.progress("rankings of the past", 1.0))
            lines += [f"past rankings could not be had: {why}" for why in done.missing]
        rebuild_history(lake, settings.universe, settings.data.frame)
    return tuple(lines)


async def _backfill(source: ChartSource, lake: Lake, settings: Settings, start_ns: int, reporter: Reporter) -> list[str]:
    contracts = [v[-1] for v in instrument_versions(lake).values()]
    try:
        done = await backfill_rankings(
            source, lake, contracts, settings.universe, start_ns, reporter.progress("market caps of the past", 1.0)
        )
    except UserError as e:
        return [f"the universe's past could not be filled: {e.message}"]
    lines = [f"no market caps of the past of {line}" for line in done.missing[:3]]
    return lines + ([f"and of {len(done.missing) - 3} more coins"] if len(done.missing) > 3 else [])  # noqa: PLR2004


def universe_over_time(lake: Lake, newest: UniverseSnapshot, settings: UniverseSettings) -> Membership:
    """Return who belongs when; before the first thing known, its members stand in (see :func:`history_line`)."""
    if settings.point_in_time:
        known = load_membership(lake, rule_of(settings))
        if known.as_of_ns.size:
            return known.from_the_start()
    return membership_of([(newest.as_of_ns, newest.symbols)]).from_the_start()


def history_line(members: Membership, now_ns: int, settings: Settings) -> tuple[str, ...]:
    """Return what a person should know of the universe's past."""
    start_ns = wanted_span(settings.data, now_ns)[0]
    if not settings.universe.point_in_time or members.as_of_ns.size < 2:  # noqa: PLR2004 - one snapshot is no history
        return ("  chosen with hindsight: only today's universe is known, and it stands in for the whole history",)
    first = int(members.as_of_ns[1])
    changes = int((np.diff(members.is_member.astype(np.int8), axis=0) > 0).sum())
    line = f"  as known then: {len(members.ever(start_ns, now_ns + 1))} coins belonged at some time, {changes} joined later"
    late = first - start_ns > 2 * FRAME_NS["1d"]
    return (line, f"  before {iso(first)} the first known universe stands in (hindsight)") if late else (line,)


def members_with_bars(lake: Lake, frame: str, report: UpdateReport, members: Membership) -> tuple[str, ...]:
    """Return the collected symbols that have at least one bar while they belonged to the universe, in the order collected."""
    kept: list[str] = []
    for symbol in report.symbols:
        closes = read_times(lake, Series(Kind.CANDLES, frame, symbol), *report.span) + FRAME_NS[frame]
        if members.at((symbol,), closes).any():
            kept.append(symbol)
    return tuple(kept)


def digest_of(members: Membership) -> str:
    """Return a hash of who belongs when, for the keys of what is built from it."""
    digest = hashlib.sha256("\n".join(members.symbols).encode())
    digest.update(members.as_of_ns.tobytes())
    digest.update(np.ascontiguousarray(members.is_member).tobytes())
    return digest.hexdigest()[:16]
