"""``crypto-qlib live`` against a session that runs, one that does not, and none."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from crypto_qlib.cli.live_start import limit_lines, refuse_unfit
from crypto_qlib.core.errors import UserError
from crypto_qlib.live_trading.instance import SessionCard, one_instance
from crypto_qlib.settings.load import load_settings
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import EquityRow, Ledger, SessionRow
from tests.cli.command_line import Run

CARD = SessionCard("embedded-paper", "embedded", "", os.getpid(), 1_700_000_000_000_000_000)


@pytest.fixture
def card(tmp_path: Path) -> SessionCard:
    path = tmp_path / "workspace" / "ledger.sqlite"
    ledger = Ledger.open(path, SessionRow(CARD.session_id, CARD.started_ns, CARD.mode, {}))
    ledger.record_equity(EquityRow(CARD.started_ns, 9_876.5, 9_000.0, 12.0, 0.0, 0.0, 0))
    ledger.put_state("risk", {"voices": {"drawdown": [2, "fell"]}, "peak_equity": 1.0, "day": 1, "day_start_equity": 1.0})
    ledger.close()
    return SessionCard(CARD.session_id, CARD.mode, str(path), CARD.pid, CARD.started_ns)


def test_without_any_session_one_line_says_so(cli: Run) -> None:
    ended = cli("live", "status")
    assert ended.code == 2
    assert "no session of mode embedded" in ended.error_line


def test_status_reads_the_ledger_of_a_session_that_is_down(cli: Run, card: SessionCard, tmp_path: Path) -> None:
    with one_instance(tmp_path / "workspace" / "live", card):
        assert "runs, process" in cli("live", "status").out
    shown = cli("live", "status")
    assert shown.code == 0
    for words in ("does not run", "mode       HALTED", "drawdown asks for HALTED: fell", "9,876.50 USDT", "positions  none"):
        assert words in shown.out


def test_commands_wait_for_the_answer_of_a_session_that_runs(cli: Run, card: SessionCard, tmp_path: Path) -> None:
    def session() -> None:
        book = ControlBook(Path(card.ledger), card.session_id)
        while not (rows := book.waiting()):
            time.sleep(0.02)
        book.answer(rows[0].seq, 1, f"{rows[0].verb} {rows[0].argument}".strip() + " [done]")
        book.close()

    with one_instance(tmp_path / "workspace" / "live", card):
        for words, said in (
            ("halt --reduce", "reduce"), ("close btcusdt --yes", "close BTCUSDT"), ("close all --yes", "close"),
            ("resume --drawdown", "resume drawdown"), ("stop --flatten --yes", "stop flatten"), ("stop", "stop"),
            ("reconcile", "reconcile"),
            ("adopt btcusdt --yes", "adopt BTCUSDT"), ("adopt all --yes", "adopt"),
        ):  # fmt: skip
            answering = threading.Thread(target=session)
            answering.start()
            ended = cli("live", *words.split())
            answering.join()
            assert (ended.code, ended.out.strip()) == (0, f"{said} [done]")
        silent = cli("live", "halt", "--wait", "0.2")
        assert silent.code == 1
        assert "no answer within 0.2 s" in silent.error_line
    assert "unanswered halt" in cli("live", "status").out


def test_a_session_that_is_down_obeys_a_halt_later_and_refuses_to_close(cli: Run, card: SessionCard, tmp_path: Path) -> None:
    with one_instance(tmp_path / "workspace" / "live", card):
        pass
    anew = cli("live", "halt")
    assert (anew.code, "the next one begins anew with its market" in anew.error_line) == (2, True)
    assert "will obey when it starts" in cli("--set", "exchange.market=okx_public", "live", "halt").out
    ended = cli("live", "close", "all", "--yes")
    assert ended.code == 2
    assert "does not run" in ended.error_line


def test_a_command_finds_the_session_that_runs_though_the_settings_name_another_mode(
    cli: Run, card: SessionCard, tmp_path: Path
) -> None:
    folder = tmp_path / "workspace" / "live"
    ledger = tmp_path / "workspace" / "other.sqlite"
    Ledger.open(ledger, SessionRow("live-paper", 1, "live", {})).close()
    real = SessionCard("live-paper", "live", str(ledger), os.getpid(), CARD.started_ns + 1)
    with one_instance(folder, card):
        pass  # a paper session of before
    with one_instance(folder, real):
        shown = cli("live", "status")
        assert "session live-paper (live): runs" in shown.out
        assert "the session of mode live is meant; none of mode embedded runs" in shown.err
        assert "no answer within" in cli("live", "halt", "--wait", "0.1").err  # asked of the one that runs
        assert "unanswered halt" in cli("live", "status").out
        chosen = cli("--set", "exchange.mode=embedded", "live", "status")
        assert "session embedded-paper (embedded): does not run" in chosen.out
        demo = SessionCard("demo-paper", "demo", str(ledger), os.getpid(), CARD.started_ns + 2)
        with one_instance(folder, demo):
            which = cli("live", "halt")
            assert (which.code, "sessions of demo and live run" in which.error_line) == (2, True)
    assert "session embedded-paper (embedded): does not run" in cli("live", "status").out


def test_real_money_needs_its_confirmation_and_keys(cli: Run) -> None:
    ended = cli("live", "start", "--mode", "live")
    assert ended.code == 2
    assert "confirm_live" in ended.error_line
    ended = cli("--set", "live.confirm_live=true", "live", "start", "--mode", "live")
    assert ended.code == 2
    assert "OKX_API_KEY" in ended.error_line


def test_a_key_that_may_withdraw_or_may_not_trade_is_refused() -> None:
    refuse_unfit(may_trade=True, may_withdraw=False)
    with pytest.raises(UserError, match="may withdraw"):
        refuse_unfit(may_trade=True, may_withdraw=True)
    with pytest.raises(UserError, match="may not trade"):
        refuse_unfit(may_trade=False, may_withdraw=False)


def test_the_limits_in_force_are_printed_from_the_settings() -> None:
    settings = load_settings(None, ["strategy.max_open=7", "live.halt_drawdown=0.25", "live.adopt=true"], {})
    text = "\n".join(limit_lines(settings))
    for words in ("limits in force (embedded)", "positions at once", "7", "25%: nothing until", "adopted"):
        assert words in text
