"""Ways a session could open twice, lose a fill or trade on what is old, each found by reading the code as its enemy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S
from crypto_qlib.core.errors import BadAnswer, DoNotRetry, RetryLater, SkipCycle
from crypto_qlib.core.order import Fill, MarginMode, OrderRequest
from crypto_qlib.exchange.gateway import OrderReport
from crypto_qlib.live_trading.risk_control import RiskLimits
from tests.live_trading.paper_fakes import SYMBOLS, FakeExchange
from tests.live_trading.test_runner import FIRST, TAPE, run, sound


class SaysLater(FakeExchange):
    """Carries each order out and says it did not; an id is free again once its order is filled, as at OKX."""

    left = 3

    async def place(self, request: OrderRequest) -> OrderReport:
        if request.client_order_id in self.orders:
            raise AssertionError("the same order filled twice")
        report = await super().place(request)
        if self.left:
            self.left -= 1
            raise RetryLater("busy", retry_after_s=0.0)
        return report


async def test_an_order_said_to_be_refused_for_now_is_looked_up_before_it_is_sent_again(tmp_path: Path) -> None:
    exchange = SaysLater(TAPE, FIRST)
    await run(exchange, tmp_path / "l.sqlite", 6)
    assert exchange.left == 0
    sound(exchange, tmp_path / "l.sqlite")


class KnowsTheId(FakeExchange):
    """Takes the first order, loses it on the way back, and refuses its id as in use."""

    done = False

    async def place(self, request: OrderRequest) -> OrderReport:
        report = await super().place(request)
        if not self.done:
            self.done = True
            raise DoNotRetry("Client order ID already exists.", code="51016")
        return report


async def test_an_id_that_is_in_use_is_ours_and_is_looked_up_not_written_off(tmp_path: Path) -> None:
    exchange = KnowsTheId(TAPE, FIRST)
    await run(exchange, tmp_path / "l.sqlite", 2)
    sound(exchange, tmp_path / "l.sqlite")


class ShowsNoBalance(FakeExchange):
    """Answers for three bars without saying what the account holds."""

    async def account(self) -> AccountState:
        if self.hides:
            raise BadAnswer("OKX's balance shows no USDT", retry_after_s=0.0)
        return await super().account()

    @property
    def hides(self) -> bool:
        return 5 <= (self.now_ns - FIRST) // NS_PER_HOUR < 8


async def test_an_account_that_cannot_be_made_out_opens_nothing_and_is_no_drawdown(tmp_path: Path) -> None:
    exchange = ShowsNoBalance(TAPE, FIRST)
    limits = RiskLimits(max_daily_loss=0.2, halt_drawdown=0.4, balance_tolerance=0.01)
    result = await run(exchange, tmp_path / "l.sqlite", 16, limits=limits)
    opened = [(f.ts_ns - FIRST) // NS_PER_HOUR for f in result.fills if f.exit_kind is None]
    assert not [bar for bar in opened if 5 <= bar < 8]
    assert [bar for bar in opened if bar >= 8], "it trades again once the account is shown"
    told = [line for line in result.alerts if "account asks for" in line]
    assert [line.split("asks for ")[1].split(":")[0] for line in told] == ["REDUCE_ONLY", "ACTIVE"]
    assert result.mode.name == "ACTIVE"
    assert min(row.equity for row in result.equity) > 5_000.0
    sound(exchange, tmp_path / "l.sqlite")


class ListsLate(FakeExchange):
    """Lists the first fill of all only after a newer one was listed."""

    async def fills(self, since_ns: int) -> list[Fill]:
        known = [replace(f, ts_ns=f.ts_ns + 1_000_000 * k) for k, f in enumerate(self.executed)]
        shown = known if len(known) > 3 else known[1:]
        return [f for f in shown if f.ts_ns >= since_ns]


async def test_a_fill_listed_later_than_a_newer_one_is_not_lost(tmp_path: Path) -> None:
    exchange = ListsLate(TAPE, FIRST)
    result = await run(exchange, tmp_path / "l.sqlite", 8)
    assert len(exchange.executed) > 3
    assert len(result.fills) == len(exchange.executed)
    assert result.mode.name == "ACTIVE"


async def test_a_bar_costs_the_same_however_many_came_before(tmp_path: Path) -> None:
    """No table that grows with the session is read whole at each bar."""
    asked: list[str] = []

    def note(_db: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        await run(FakeExchange(TAPE, FIRST), tmp_path / "l.sqlite", 12)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    for table in ("equity", "fills", "intents", "funding", "journal"):
        whole = [s for s in asked if f"WHERE {table}.session_id = ?" in s and " AND " not in s]
        assert len(whole) <= 4, (table, len(whole))


class Suspends(FakeExchange):
    """One symbol stops trading: whatever is asked of it is refused for now."""

    suspended = "AAAUSDT"

    async def set_leverage(self, symbol: str, leverage: float, margin_mode: MarginMode) -> None:
        self._refuse(symbol)
        await super().set_leverage(symbol, leverage, margin_mode)

    async def place(self, request: OrderRequest) -> OrderReport:
        self._refuse(request.symbol)
        return await super().place(request)

    def _refuse(self, symbol: str) -> None:
        if symbol == self.suspended and self.now_ns > FIRST + 2 * TAPE.frame_ns:
            raise SkipCycle("the instrument is suspended")


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_an_instrument_that_does_not_trade_holds_up_no_other(symbol: str, tmp_path: Path) -> None:
    exchange = Suspends(TAPE, FIRST)
    exchange.suspended = symbol
    result = await run(exchange, tmp_path / "l.sqlite", 12)
    sound(exchange, tmp_path / "l.sqlite")
    assert not any("skipped" in alert for alert in result.alerts)
    later = [f for f in exchange.executed if f.ts_ns > FIRST + 2 * TAPE.frame_ns]
    assert later
    assert {f.symbol for f in later} <= set(SYMBOLS) - {symbol}


class WallClock:
    """The exchange's time, plus how long this machine slept."""

    def __init__(self, exchange: FakeExchange, lag_ns: int) -> None:
        self._exchange, self.lag_ns = exchange, lag_ns

    def now_ns(self) -> int:
        return self._exchange.now_ns + self.lag_ns


@pytest.mark.parametrize(("lag_ns", "opens"), [(2 * NS_PER_S, True), (20 * NS_PER_MINUTE, False)])
async def test_no_entry_is_sent_on_a_bar_that_closed_long_ago(lag_ns: int, opens: bool, tmp_path: Path) -> None:
    exchange = FakeExchange(TAPE, FIRST)
    await run(exchange, tmp_path / "l.sqlite", 3)
    held, before = len(exchange.positions), len(exchange.sent)
    assert held
    result = await run(exchange, tmp_path / "l.sqlite", 6, clock=WallClock(exchange, lag_ns))
    later = exchange.sent[before:]
    assert any(r.reduce_only for r in later), "exits go on"
    assert any(not r.reduce_only for r in later) is opens
    assert any("closed 1200 s ago" in alert for alert in result.alerts) is not opens
