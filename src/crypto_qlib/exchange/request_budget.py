"""A request budget shared by every process of this machine: OKX counts requests per address, not per program.

Each endpoint is a token bucket kept as one row of a small SQLite file (the generic cell rate algorithm): the row holds the
*theoretical arrival time* of the next request. Whoever asks moves it on by one interval and waits until its own turn comes.
With ``T = window / (0.8 limit)`` and a burst of ``0.15 limit`` no window of two seconds sees more than ``limit`` requests,
whoever sent them; the rest is room for requests that leave a little late. A refusal (429, 50011) pushes the row of that
endpoint into the future for everybody.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from crypto_qlib.core.clock import NS_PER_S, Clock, SystemClock
from crypto_qlib.core.errors import UserError

WINDOW_NS: Final = 2 * NS_PER_S
_STEADY_SHARE: Final = 0.8
_BURST_SHARE: Final = 0.15
_MAX_AHEAD_NS: Final = 120 * NS_PER_S
"""A row further in the future than this was left by a clock that ran ahead; it is not believed."""
_BUSY_S: Final = 30.0

LIMITS: Final[dict[str, int]] = {
    "publicGetPublicTime": 10,
    "publicGetPublicInstruments": 20,
    "publicGetPublicFundingRate": 20,
    "publicGetPublicFundingRateHistory": 10,
    "publicGetPublicOpenInterest": 20,
    "publicGetPublicPositionTiers": 10,
    "publicGetPublicMarkPrice": 10,
    "publicGetMarketCandles": 40,
    "publicGetMarketHistoryCandles": 20,
    "publicGetMarketMarkPriceCandles": 20,
    "publicGetMarketHistoryMarkPriceCandles": 20,
    "publicGetMarketIndexCandles": 20,
    "publicGetMarketHistoryIndexCandles": 20,
    "publicGetMarketBooks": 40,
    "publicGetMarketTickers": 20,
    "publicGetMarketTrades": 100,
    "publicGetRubikStatContractsOpenInterestHistory": 10,
    "publicGetRubikStatTakerVolumeContract": 5,
    "publicGetRubikStatContractsLongShortAccountRatioContract": 5,
    "privateGetAccountBalance": 10,
    "privateGetAccountConfig": 5,
    "privateGetAccountLeverageInfo": 20,
    "privateGetAccountPositions": 10,
    "privateGetTradeFillsHistory": 10,
    "privateGetTradeOrder": 60,
    "privateGetTradeOrdersAlgoHistory": 20,
    "privateGetTradeOrdersAlgoPending": 20,
    "privateGetTradeOrdersPending": 60,
    "privatePostAccountSetLeverage": 20,
}
"""Requests per two seconds by ccxt's name of the endpoint; account endpoints are counted by user, which is stricter here.

Source: OKX API v5, rate limit of each endpoint.
"""
PER_INSTRUMENT: Final = frozenset(
    {
        "publicGetPublicFundingRateHistory",
        "publicGetPublicOpenInterest",
        "publicGetRubikStatContractsOpenInterestHistory",
        "publicGetRubikStatTakerVolumeContract",
        "publicGetRubikStatContractsLongShortAccountRatioContract",
    }
)
"""Endpoints OKX counts by address *and* instrument. Source: OKX API v5, "Rate limit rule" of each."""
_DEFAULT_LIMIT: Final = 10


def default_path() -> Path:
    """Return the file all processes of this user share: the limit belongs to the machine's address, not to a workspace."""
    return Path(tempfile.gettempdir()) / f"crypto-qlib-okx-budget-{os.getuid()}.sqlite"


class RequestBudget:
    """Wait for one's turn.

    Parameters
    ----------
    path : Path
        SQLite file; created if absent.
    clock : Clock
        Real time, the same for all processes.
    sleep : callable
        Waits a number of seconds.

    Raises
    ------
    UserError
        If the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = default_path() if path is None else path
        self._clock = SystemClock() if clock is None else clock
        self._sleep = sleep
        try:
            self._db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")  # losing the file in a crash of the machine costs nothing
            self._db.execute("CREATE TABLE IF NOT EXISTS turns (name TEXT PRIMARY KEY, arrival_ns INTEGER NOT NULL)")
        except sqlite3.Error as e:
            raise UserError(
                f"cannot share the request budget in {self._path}: {e}", "delete that file, or free disk space"
            ) from e

    async def wait(self, endpoint: str, inst_id: str = "") -> float:
        """Wait for a turn at ``endpoint`` and return the seconds waited."""
        wait_ns = self.take(endpoint, inst_id)
        if wait_ns > 0:
            await self._sleep(wait_ns / NS_PER_S)
        return wait_ns / NS_PER_S

    def take(self, endpoint: str, inst_id: str = "") -> int:
        """Take the next turn and return the nanoseconds until it comes."""
        limit = LIMITS.get(endpoint, _DEFAULT_LIMIT)
        interval = int(WINDOW_NS / (_STEADY_SHARE * limit))
        ahead = max(int(_BURST_SHARE * limit) - 1, 0) * interval  # the first of a burst is on time anyway
        name = f"{endpoint}/{inst_id}" if endpoint in PER_INSTRUMENT else endpoint
        now = self._clock.now_ns()
        with self._exclusive():
            arrival = self._arrival(name, now)
            start = max(arrival, now - ahead)
            self._set(name, start + interval)
        return max(start - now, 0)

    def refused(self, endpoint: str, inst_id: str, pause_s: float) -> None:
        """Keep everybody off ``endpoint`` for ``pause_s``: the exchange has said so."""
        name = f"{endpoint}/{inst_id}" if endpoint in PER_INSTRUMENT else endpoint
        now = self._clock.now_ns()
        with self._exclusive():
            self._set(name, max(self._arrival(name, now), now + int(pause_s * NS_PER_S)))

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _exclusive(self) -> _Transaction:
        return _Transaction(self._db)

    def _arrival(self, name: str, now: int) -> int:
        row = self._db.execute("SELECT arrival_ns FROM turns WHERE name = ?", (name,)).fetchone()
        arrival = 0 if row is None else int(row[0])
        return arrival if arrival - now <= _MAX_AHEAD_NS else 0

    def _set(self, name: str, arrival_ns: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO turns VALUES (?, ?)", (name, arrival_ns))


class _Transaction:
    """``BEGIN IMMEDIATE`` ... ``COMMIT``: reading and writing a row is one step for all processes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")
