"""``crypto-qlib live journal``: rows a person can read, and the session lived again."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from crypto_qlib.live_trading.instance import SessionCard, one_instance
from crypto_qlib.store.ledger import Ledger, SessionRow
from tests.cli.command_line import Run
from tests.live_trading.paper_fakes import FakeExchange
from tests.live_trading.test_runner import FIRST, TAPE, run


@pytest.fixture
async def ledger_file(tmp_path: Path) -> Path:
    path = tmp_path / "workspace" / "ledger.sqlite"
    path.parent.mkdir()
    await run(FakeExchange(TAPE, FIRST), path, 5)
    with one_instance(path.parent / "live", SessionCard("s1", "embedded", str(path), 1, FIRST)):
        pass
    return path


async def test_rows_are_shown_newest_last_and_by_kind(cli: Run, ledger_file: Path) -> None:
    shown = cli("live", "journal", "--kind", "PlaceOrder,CycleDone", "--last", "4")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert len(lines) == 4
    assert all("PlaceOrder" in line or "CycleDone" in line for line in lines)
    assert "USDT" in lines[-1]
    assert len(cli("live", "journal", "--last", "0").out.splitlines()) > 50
    refused = cli("live", "journal", "--kind", "Nonsense")
    assert refused.code == 2
    assert "--kind Nonsense is no kind of row" in refused.error_line


async def test_the_session_is_lived_again_and_a_ledger_that_differs_is_an_error(cli: Run, ledger_file: Path) -> None:
    same = cli("live", "journal", "--replay")
    assert same.code == 0, same.err
    assert "the journal alone gives the orders, positions and equity of the ledger" in same.out
    ledger = Ledger.open(ledger_file, SessionRow("s1", 0, "embedded", {}))
    with ledger.engine.begin() as db:
        db.execute(sa.text("UPDATE fills SET signed_lots = signed_lots * 2 WHERE seq = 1"))
    ledger.close()
    other = cli("live", "journal", "--replay")
    assert other.code == 3
    assert "lots by the journal" in other.out
    assert "do not agree" in other.error_line
