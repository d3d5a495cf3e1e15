"""Figures of a session from its ledger: settlements, what a fill was decided at, and ledgers that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.analytics.account_book import FillBook, number_positions
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.live_trading.session_report import session_figures, settlements, write_session_figures
from crypto_qlib.store.ledger import EquityRow, IntentRow, Ledger, SessionRow
from tests.live_trading.paper_fakes import RULES, START_NS, SYMBOLS, contracts, panel

HOUR = NS_PER_HOUR


def _fills(*rows: tuple[float, int]) -> FillBook:
    """Make fills of symbol 0 from (hours after the start, lots), one coin a lot."""
    ts = np.array([START_NS + int(h * HOUR) for h, _ in rows])
    lots = np.array([n for _, n in rows])
    symbol, one = np.zeros(lots.size, np.int64), np.ones(lots.size)
    return FillBook(ts, symbol, number_positions(symbol, lots), lots, one, one, one, one * 0, np.full(lots.size, "time"))


@pytest.mark.parametrize(
    ("reason", "rows", "rate", "expected"),
    [
        ("a long carried in pays a positive rate", [(0.0, 2)], 0.01, [(0, -0.02)]),
        ("a short carried in receives it", [(0.0, -2)], 0.01, [(0, 0.02)]),
        ("entered at the very instant: pays", [(4.0, 2)], 0.01, [(0, -0.02)]),
        ("entered at the very instant: does not receive", [(4.0, -2)], 0.01, []),
        ("left at the very instant: settled before", [(0.0, 2), (4.0, -2)], 0.01, [(0, -0.02)]),
        ("half left before", [(0.0, 2), (3.5, -1)], 0.01, [(0, -0.01)]),
        ("left and entered anew at the instant: both pay", [(0.0, 2), (4.0, -2), (4.0, 3)], 0.01, [(0, -0.02), (1, -0.03)]),
        ("turned round at the instant: the old one pays", [(0.0, 2), (4.0, -2), (4.0, -3)], 0.01, [(0, -0.02)]),
        ("not held any more", [(0.0, 2), (3.5, -2)], 0.01, []),
        ("not yet held", [(4.5, 2)], 0.01, []),
        ("a rate of zero moves nothing", [(0.0, 2)], 0.0, []),
    ],
)
def test_a_settlement_falls_to_who_held_the_position(
    reason: str, rows: list[tuple[float, int]], rate: float, expected: list[tuple[int, float]]
) -> None:
    market = panel(12)
    market.funding_rate[4, 0] = rate
    market.mark_open[4, 0] = 1.0
    got = settlements(_fills(*rows), market, START_NS + 10 * HOUR)
    assert got.position.tolist() == [number for number, _ in expected], reason
    assert got.amount.tolist() == pytest.approx([amount for _, amount in expected]), reason
    assert settlements(_fills(*rows), market, START_NS + 4 * HOUR).position.size == 0, "the session had ended"


def _ledger(path: Path, *, symbol: str = SYMBOLS[0]) -> Ledger:
    """Write a session of four hours: 100 lots bought at the second close and sold at the fourth, of a hundredth coin each."""
    market = panel(12)
    ledger = Ledger.open(path / "ledger.sqlite", SessionRow("s", START_NS, "embedded", {}))
    closes = [START_NS + (k + 1) * HOUR for k in range(5)]
    bought, sold = float(market.open[2, 0]), float(market.open[4, 0])
    nothing = {"leverage": None, "stop_price": None, "take_profit_price": None, "entry_score": None}
    ledger.record_intent(IntentRow("in", closes[1], symbol, 100, is_entry=True, exit_kind=None, **nothing))
    ledger.record_intent(IntentRow("out", closes[3], symbol, -100, is_entry=False, exit_kind=ExitKind.TIME, **nothing))
    ledger.record_fills([Fill(closes[1], symbol, 100, bought + 0.5, 0.1, client_order_id="in")])
    ledger.record_fills([Fill(closes[3], symbol, -100, sold - 0.5, 0.1, client_order_id="out")])
    gain = sold - bought - 1.0
    equity = [1_000.0, 1_000.0, 1_000.0 + float(market.close[2, 0]) - bought - 0.6, 1_000.0, 1_000.0 + gain - 0.2]
    for k, (ts, value) in enumerate(zip(closes, equity, strict=True)):
        gross = 100.0 if k in (2, 3) else 0.0
        ledger.record_equity(EquityRow(ts, value, value - gross / 5.0, None, gross, gross, int(gross > 0)))
    return ledger


def test_a_small_session_by_hand(tmp_path: Path) -> None:
    market, ledger = panel(12), _ledger(tmp_path)
    got = session_figures(ledger, market, contracts().instruments, RULES)
    ledger.close()
    a = got["attribution"]
    price = float(market.close[3, 0] - market.close[1, 0])  # one coin, between the closes it was decided at
    assert a["signal"] + a["market"] == pytest.approx(price)
    assert a["slippage"] == pytest.approx(-1.0)  # half a dollar each way; opens equal the closes before
    assert a["fees"] == pytest.approx(-0.2)
    assert a["unexplained"] == pytest.approx(0.0, abs=1e-9)
    assert set(a["by_exit_kind"]) == {"time"}
    assert got["trades"]["count"] == 1
    assert got["exposure"]["max_margin_use"] == pytest.approx(20.0 / min(1_000.0, 1_000.0 + price), rel=0.01)
    assert got["benchmarks"]["btc"]["total_return"] == pytest.approx(float(market.close[4, 2] / market.close[0, 2] - 1.0))
    path = write_session_figures(got, tmp_path, {"run_id": "r"})
    plain = json.loads(path.read_text())
    assert plain["run"] == {"run_id": "r"}
    assert plain["attribution"]["fees"] == pytest.approx(-0.2)
    assert not [value for value in plain["returns"].values() if isinstance(value, float) and math.isnan(value)]


def test_a_session_without_a_snapshot_or_with_strange_symbols_is_one_clear_error(tmp_path: Path) -> None:
    empty = Ledger.open(tmp_path / "empty.sqlite", SessionRow("s", START_NS, "embedded", {}))
    with pytest.raises(UserError, match="no snapshot"):
        session_figures(empty, panel(12), contracts().instruments, RULES)
    empty.close()
    strange = _ledger(tmp_path, symbol="NOPEUSDT")
    with pytest.raises(UserError, match="no bars or contract of NOPEUSDT"):
        session_figures(strange, panel(12), contracts().instruments, RULES)
    strange.close()
