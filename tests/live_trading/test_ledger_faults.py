"""The ledger's disk full, its database locked or gone, from any moment of a cycle: nothing sent, no trade lost, HALTED."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from crypto_qlib.live_trading.risk_control import Mode
from tests.live_trading import virtual_loop
from tests.live_trading.crash_rig import rig
from tests.live_trading.test_crashes import KILLS

BARS_OUT = 2
POINTS = range(1, 61) if KILLS else (1, 17, 34)
"""Transactions after the second bar began at which the outage begins: before a decision, between orders, after them.

All of two bars and more in a long run; see docs/live_proofs.md.
"""


class Outage:
    """A database that refuses from its n-th transaction on, as SQLite itself refuses, until it is over."""

    def __init__(self, kind: str, path: Path, nth: int) -> None:
        self._kind, self._path, self._left = kind, path, nth
        self.begins: Callable[[], None] = lambda: None
        self.is_armed = self.is_on = False
        self._lock: sqlite3.Connection | None = None
        self._engine: sa.Engine | None = None

    def prepare(self, engine: sa.Engine) -> None:
        """Listen to the session's own database connections."""
        self._engine = engine
        sa.event.listen(engine, "begin", self._begins)
        sa.event.listen(engine, "do_connect", self._connects)
        sa.event.listen(engine, "handle_error", self._refused)

    def _begins(self, db: sa.Connection) -> None:
        db.exec_driver_sql("PRAGMA busy_timeout=1")
        self._left -= self.is_armed and not self.is_on
        if self._left == 0 and not self.is_on:
            self.is_on = True
            if self._kind != "full":
                self.begins()
            if self._kind == "locked":
                self._lock = sqlite3.connect(self._path, isolation_level=None)
                self._lock.execute("BEGIN IMMEDIATE")
            elif self._kind == "gone" and self._engine is not None:
                self._engine.dispose()
        if self._kind == "full":
            db.exec_driver_sql(f"PRAGMA max_page_count={1 if self.is_on else 1_000_000}")  # never below what there is

    def _refused(self, _context: sa.ExceptionContext) -> None:
        """A full disk still takes what fits into the pages there are: it begins with the first row refused."""
        if self._kind == "full":
            self.begins()

    def _connects(self, *_about: Any) -> None:
        if self._kind == "gone" and self.is_on:
            raise sqlite3.OperationalError("unable to open database file")

    def ends(self) -> None:
        """Let the database answer again."""
        self.is_armed = self.is_on = False
        self._left = -1
        if self._lock is not None:
            self._lock.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "locked", "gone"])
@pytest.mark.parametrize("nth", POINTS)
def test_without_its_ledger_a_session_sends_nothing_and_goes_on_halted_when_it_is_back(
    kind: str, nth: int, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    outage = Outage(kind, path, nth)
    sent: list[int] = []
    bars: list[int] = []
    ends_at: list[int] = []

    async def lives() -> None:
        async with rig(path, 60, seed=3) as here:
            here.prepare = outage.prepare

            def begins() -> None:
                if ends_at:
                    return
                sent.append(len(here.exchange.venue.exchange.orders(here.account_id)))
                ends_at.append(len(bars) + 1 + BARS_OUT)

            outage.begins = begins

            async def at_each_bar(now_ns: int) -> None:
                bars.append(now_ns)
                if len(bars) == 2:
                    outage.is_armed = True
                if ends_at == [len(bars)]:
                    assert outage.is_on
                    sent.append(len(here.exchange.venue.exchange.orders(here.account_id)))
                    outage.ends()

            here.before_step = at_each_bar
            here.finished = lambda view: here.check(frozenset(view.pending)) if not outage.is_on else None
            result = await here.live(16)
            assert result is not None
            assert result.mode is Mode.HALTED
            assert any("ledger" in alert for alert in result.alerts)
            before, after = sent
            assert after <= before + 1, "orders were sent without a ledger"
            here.check()
            here.before_step = None
            again = await here.live(2)
            assert again is not None
            assert again.mode is Mode.HALTED, "a restart reset the halt"
            here.check()

    virtual_loop.run(lives())
