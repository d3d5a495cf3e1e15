"""Which external sources a workspace asks, and what a person is told about their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crypto_qlib.core.clock import NS_PER_DAY, SystemClock, parse_utc
from crypto_qlib.data_collector.external_catalogue import ALTERNATIVE_ME, COINGECKO, COINMETRICS, WIKIMEDIA, YAHOO
from crypto_qlib.data_collector.fetch_external_data import SourceUpdate, fetch_external_data
from crypto_qlib.data_collector.sources.alternative_me import FearGreed
from crypto_qlib.data_collector.sources.coingecko_global import GlobalMarket
from crypto_qlib.data_collector.sources.coinmetrics import OnChain
from crypto_qlib.data_collector.sources.source import ExternalSource
from crypto_qlib.data_collector.sources.wikimedia import PageViews
from crypto_qlib.data_collector.sources.yahoo import StockIndex
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore

_WARM_UP_NS = 90 * NS_PER_DAY
"""History before the first bar, for features that look back."""


def external_sources(settings: Settings, secrets: Secrets, world_url: str = "") -> tuple[ExternalSource, ...]:
    """Return the sources ``external.sources`` names, at ``external.mirror`` or at the simulated world where one is given."""
    mirror, timeout_s = (world_url or settings.external.mirror).rstrip("/"), settings.external.timeout_s

    def at(path: str) -> str:
        return f"{mirror}{path}" if mirror else ""

    makers: dict[str, Callable[[], ExternalSource]] = {
        YAHOO: lambda: StockIndex(mirror, timeout_s),
        ALTERNATIVE_ME: lambda: FearGreed(mirror, timeout_s),
        COINGECKO: lambda: GlobalMarket(at("/api/v3"), secrets.coingecko_api_key, timeout_s),
        COINMETRICS: lambda: OnChain(at("/v4"), timeout_s),
        WIKIMEDIA: lambda: PageViews(at("/api/rest_v1"), timeout_s),
    }
    return tuple(makers[name]() for name in settings.external.sources)


def wants_external(settings: Settings) -> bool:
    """Return whether this workspace asks a world outside: by default not where recorded candles are replayed."""
    external, exchange = settings.external, settings.exchange
    has_world = exchange.mode != "embedded" or exchange.market != "replay"
    return bool(external.sources) and (external.when == "always" or (external.when == "online" and has_world))


@dataclass(frozen=True, slots=True)
class World:
    """The world that is asked: the real one, or the simulated one behind the embedded exchange.

    Parameters
    ----------
    url : str
        Address of the simulated world; empty = the sources themselves.
    now_ns : int
        Its time.
    """

    url: str
    now_ns: int


def real_world() -> World:
    """Return the world outside this machine, now."""
    return World("", SystemClock().now_ns())


def update_external(
    settings: Settings, secrets: Secrets, paths: Paths, coins: Sequence[str], world: World, progress: Callable[[float], None]
) -> tuple[SourceUpdate, ...]:
    """Ask every source and return what each brought; see :func:`fetch_external_data`."""
    now_ns = world.now_ns
    data = settings.data
    start_ns = parse_utc(data.since) if data.since else now_ns - data.history_days * NS_PER_DAY
    sources = external_sources(settings, secrets, world.url)
    return fetch_external_data(sources, SeriesStore(paths.series), coins, start_ns - _WARM_UP_NS, now_ns, progress)


def external_lines(updates: Sequence[SourceUpdate]) -> tuple[str, ...]:
    """Return what each source brought, and what it could not."""
    lines: list[str] = []
    for u in updates:
        if u.failure:
            lines.append(f"external: WARNING: nothing from {u.source}: {u.failure}; its series go without until it answers")
        else:
            lines.append(f"external: {u.source}: {u.added:,} new values, {u.corrected:,} corrected")
            lines += [f"  {note}" for note in u.notes]
    return tuple(lines)


OFFLINE_LINE = (
    "external series: not asked for; a replayed market has no outside world "
    "(import files with `crypto-qlib data import`, or set external.when=always)"
)
SIMULATED_LINE = "external series: invented with the market's prices; the embedded exchange speaks for their sources"
