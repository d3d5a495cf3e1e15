"""Put a watch together: the exchange's clock, the websockets, and the market that has to be stepped where it is embedded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_S, ManualClock, SystemClock
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport, update_data
from crypto_qlib.data_collector.hot_follow import follow_lake
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.exchange.okx_stream import OkxStream
from crypto_qlib.scheduler.data_watch import Watch, watch
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.event_log import EventLog
from crypto_qlib.store.hold import HeldElsewhere
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths

_NAP_S: Final = 1.0
_STEP_NAP_S: Final = 0.3
"""Real time left for the sockets to tell what happened in one stepped bar."""
Chosen = Callable[[Gateway], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class WatchedMarket:
    """What is watched, and where what is seen goes.

    Parameters
    ----------
    access : ExchangeAccess
        The exchange.
    lake : Lake
        Where rows go.
    settings : Settings
        Sections ``data`` and ``exchange``.
    paths : Paths
        Where the hot store and Qlib's store lie.
    log : Path
        Structured log.
    reporter : Reporter
        Shows lines.
    """

    access: ExchangeAccess
    lake: Lake
    settings: Settings
    paths: Paths
    log: Path
    reporter: Reporter

    async def watch(
        self,
        gateway: Gateway,
        chosen: Chosen,
        rounds: int | None,
        *,
        with_stream: bool,
    ) -> int:
        """Watch until stopped, or for ``rounds`` closes; return how many rounds brought data.

        ``chosen`` says whom: it is asked at every close, so that a universe that changes is followed. Order flow is gathered
        of those chosen at the start.
        """
        symbols = await chosen(gateway)
        ledger_ns = 0
        clock = SystemClock() if not self.access.is_embedded else ManualClock(await gateway.server_time_ns())

        async def update() -> UpdateReport:
            nonlocal ledger_ns
            wanted = tuple(dict.fromkeys((*symbols, *await chosen(gateway))))
            now_ns = await gateway.server_time_ns()
            is_due = now_ns - ledger_ns >= NS_PER_HOUR
            report = await update_data(gateway, self.lake, wanted, self.settings.data, now_ns, with_ledger=is_due)
            ledger_ns = now_ns if is_due else ledger_ns
            await asyncio.to_thread(self._follow)
            return report

        async def wait_until(ts_ns: int) -> None:
            if isinstance(clock, ManualClock):
                await self._step_until(gateway, clock, ts_ns)
            else:
                await asyncio.sleep(max(ts_ns - clock.now_ns(), 0) / NS_PER_S)

        parts = Watch(self.lake, self.settings.data, symbols, update, clock, wait_until, self.reporter.say, EventLog(self.log))
        return await watch(parts, await self._stream(gateway, symbols) if with_stream else None, rounds)

    def _follow(self) -> None:
        """Let features, engine and Qlib see the bars that closed; who renews the store just now puts them there itself."""
        frame = self.settings.data.frame
        try:
            follow_lake(self.lake, self.paths.panels / frame, self.paths.qlib, frame)
        except HeldElsewhere as e:
            self.reporter.say(f"{e.message}: its bars are appended at the next close")

    async def _step_until(self, gateway: Gateway, clock: ManualClock, ts_ns: int) -> None:
        """Let an embedded market go on to ``ts_ns``: by stepping it, or by waiting where it runs by itself."""
        now_ns = await gateway.server_time_ns()
        while now_ns < ts_ns:
            if self.settings.exchange.speed > 0.0:
                await asyncio.sleep(min((ts_ns - now_ns) / NS_PER_S / self.settings.exchange.speed, _NAP_S))
            else:
                await asyncio.to_thread(self.access.embedded().step)
                await asyncio.sleep(_STEP_NAP_S)
            now_ns = await gateway.server_time_ns()
            clock.advance_to(now_ns)

    async def _stream(self, gateway: Gateway, symbols: tuple[str, ...]) -> OkxStream:
        wanted = frozenset(symbols)
        instruments = [i for i in await gateway.instruments() if i.symbol in wanted]
        connection = Connection(self.access.base_url, None, self.settings.exchange.mode == "demo")
        return OkxStream(connection, instruments)
