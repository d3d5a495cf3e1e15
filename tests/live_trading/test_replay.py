"""The journal alone tells the session again: same machine, same orders, positions and equity; what was changed is found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import OrderStatus
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.journal import JournalRow, journal_form, readable, rows_of
from crypto_qlib.live_trading.replay import differences, replay
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.store.ledger import Ledger, SessionRow
from crypto_qlib.store.plain_values import decode, plain
from tests.live_trading.paper_fakes import FakeExchange
from tests.live_trading.test_controls import Desk
from tests.live_trading.test_runner import FIRST, TAPE, run

SESSION = SessionRow("s1", 0, "embedded", {})


async def test_a_session_with_commands_a_halt_and_a_restart_is_lived_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    def at_bar(bar: int) -> None:
        if bar == 4:
            desk.kill_file.touch()  # heard between two orders too
        if bar == 6:
            desk.ask("close", "")

    await desk.run(9, at_bar)
    desk.kill_file.unlink()
    desk.ask("resume")
    await desk.run(9)
    ledger = Ledger.open(desk.path, SESSION)
    lived = replay(rows_of(ledger.journal()))
    assert list(differences(lived, ledger)) == []
    assert lived.starts == 2
    assert lived.mode is Mode.ACTIVE
    assert len(lived.equity) == 19
    assert {s: p.lots for s, p in desk.exchange.positions.items()} == lived.positions
    assert {coid for coid, known in lived.orders.items() if known and known[0] is OrderStatus.FILLED} == set(
        desk.exchange.orders
    )
    assert list(ledger.fills()) == sorted(desk.exchange.executed, key=lambda f: f.ts_ns)
    ledger.close()


async def test_executions_written_but_never_told_are_in_the_next_start(tmp_path: Path) -> None:
    """The session dies after the executions are in the ledger and before the journal says so."""
    exchange, path = FakeExchange(TAPE, FIRST), tmp_path / "l.sqlite"
    real = Ledger.append_journal

    class DiedError(BaseException):
        pass

    def dies(self: Ledger, ts_ns: int, kind: str, payload: object) -> None:
        if kind == "FillsRead" and exchange.executed and payload["fills"]:  # type: ignore[index]
            raise DiedError
        real(self, ts_ns, kind, payload)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append_journal", dies)
        with pytest.raises(DiedError):
            await run(exchange, path, 6)
    assert exchange.executed
    await run(exchange, path, 6)
    ledger = Ledger.open(path, SESSION)
    rows = rows_of(ledger.journal())
    assert [len(row.payload["fills"]) > 0 for row in rows if row.kind == "Restored"] == [False, True]
    assert list(differences(replay(rows), ledger)) == []
    ledger.close()


def _lots(payload: Any) -> None:
    payload["intent"]["signed_lots"] += 1


def _equity(payload: Any) -> None:
    payload["account"]["equity"] += 1.0


def _filled(payload: Any) -> None:
    payload["fills"][0]["signed_lots"] += 1


CHANGES: list[tuple[str, str, Callable[[JournalRow], bool], Callable[[Any], None], str]] = [
    ("an order of another size", "PlaceOrder", lambda _: True, _lots, "PlaceOrder"),
    ("another equity", "AccountRead", lambda r: r.payload["purpose"] == "decide", _equity, "equity at"),
    ("another execution", "FillsRead", lambda r: bool(r.payload["fills"]), _filled, "lots by the journal"),
]


@pytest.mark.parametrize(("name", "kind", "where", "change", "found"), CHANGES, ids=[row[0] for row in CHANGES])
async def test_a_journal_that_was_changed_is_found_out(
    name: str, kind: str, where: Callable[[JournalRow], bool], change: Callable[[Any], None], found: str, tmp_path: Path
) -> None:
    await run(FakeExchange(TAPE, FIRST), tmp_path / "l.sqlite", 6)
    ledger = Ledger.open(tmp_path / "l.sqlite", SESSION)
    rows = copy.deepcopy(rows_of(ledger.journal()))
    change(next(row for row in rows if row.kind == kind and where(row)).payload)
    assert any(found in line for line in differences(replay(rows), ledger)), name
    ledger.close()


async def test_a_row_left_out_is_found_out(tmp_path: Path) -> None:
    await run(FakeExchange(TAPE, FIRST), tmp_path / "l.sqlite", 6)
    ledger = Ledger.open(tmp_path / "l.sqlite", SESSION)
    rows = rows_of(ledger.journal())
    cut = next(k for k, row in enumerate(rows) if row.kind == "SetLeverage")
    assert "the machine asks for SetLeverage" in replay(rows[:cut] + rows[cut + 1 :]).divergence
    ledger.close()


def test_no_number_is_lost_on_the_way_through_json() -> None:
    position = OpenPosition("AUSDT", -3, 0.3, 1.5, 1.25, 3.0, 0.1, 7, stop_price=math.nan, liquidation_price=math.inf)
    account = AccountState(5, 1.0, 0.5, (position,), ("BUSDT",), 2.0, math.inf, {"AUSDT": 9})
    read = ev.AccountRead(5, account, ev.Purpose.VERIFY)
    back = decode(ev.AccountRead, orjson.loads(orjson.dumps(plain(read))))
    assert plain(back) == plain(read)
    assert (back.account.margin_ratio, back.account.positions[0].liquidation_price) == (math.inf, math.inf)
    assert math.isnan(back.account.positions[0].stop_price)
    assert isinstance(back.account.positions, tuple)
    risk = ev.SaveRisk({"drawdown": (Mode.HALTED, "fell")}, 1.0, 2, 3.0)
    assert decode(ev.SaveRisk, orjson.loads(orjson.dumps(plain(risk)))) == risk
    with pytest.raises(TypeError, match="cannot be written to the journal"):
        plain(object())
    assert decode(np.ndarray, ["nan", 1]).tolist()[1] == 1.0


async def test_every_row_of_a_session_is_one_readable_line(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.run(8, lambda bar: desk.ask("close") if bar == 5 else None)  # type: ignore[arg-type, func-returns-value]
    ledger = Ledger.open(desk.path, SESSION)
    rows = rows_of(ledger.journal())
    ledger.close()
    lines = [readable(row) for row in rows]
    assert all("\n" not in line and len(line) < 400 for line in lines)
    assert {"Restored", "Started", "BarClosed", "PlaceOrder", "CloseAsked"} <= {row.kind for row in rows}
    entry = next(line for line, row in zip(lines, rows, strict=True) if row.kind == "PlaceOrder")
    assert "lots, entry, cq" in entry
    assert "stop " in entry
    for row in rows:
        assert journal_form(row.step()) == row.payload or row.kind == "BarClosed"


def test_a_row_of_another_version_is_one_clear_line() -> None:
    for row in (JournalRow(3, 1, "Teleported", {}), JournalRow(3, 1, "SaveDecided", {"ts_ns": 1})):
        with pytest.raises(UserError, match="row 3 of the journal"):
            row.step()
    with pytest.raises(UserError, match="journal is empty"):
        replay([])
