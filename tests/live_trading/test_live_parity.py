"""Days of hours through backtest and live session: what differs is explained in the docs; memory and journal hold still.

The year itself is run by ``python -m benchmarks live_parity``; its figures are in docs/live_proofs.md.
"""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.hours_market import Hours, okx_hours, simulated_hours
from benchmarks.live_again import relive
from benchmarks.live_parity import CASH, SESSION, Sample, backtest, differences, live

from crypto_qlib.live_trading.risk_control import Mode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "live_proofs.md"
HOURS, SYMBOLS = 64, 4
FIRST_SIMULATED = 440
"""Of the simulated year; in the hours after it a take-profit is faster than an exit, and an exit's slot is taken at once."""
ALLOWED = "51169"
"""OKX's word for an exit whose position is gone already."""
MIB = 2**20


def explained() -> set[str]:
    """Return the kinds of difference the page explains: the first column of its table."""
    section = PAGE.read_text().split("## What differs, and why")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z ]+)` \|", section, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simulated", pytest.param("okx", marks=pytest.mark.real_data)])
def test_backtest_and_live_session_differ_only_as_the_docs_explain(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    market = (
        simulated_hours(24 * 365, SYMBOLS).part(FIRST_SIMULATED, HOURS)
        if kind == "simulated"
        else okx_hours(request.getfixturevalue("shared") / "data", HOURS, SYMBOLS)
    )
    tested = backtest(market)
    lived = asyncio.run(live(market, tmp_path / "ledger.sqlite"))
    found = differences(market, tested, lived)
    assert [str(d) for d in found if d.kind not in explained()] == []
    assert tested.fills.size > 20
    assert tested.final_equity != CASH
    assert lived.result.mode is Mode.ACTIVE  # no drift between ledger and exchange, ever
    assert [alert for alert in lived.result.alerts if ALLOWED not in alert] == []
    assert_steady(market, lived.samples)
    assert relive(tmp_path / "ledger.sqlite", SESSION).differences == ()


def assert_steady(market: Hours, samples: tuple[Sample, ...]) -> None:
    """Memory stays where it was after the first quarter, and every quarter writes about as much of a journal as the others."""
    quarters = [s for s in samples if s.bar % (market.n_hours // 4) == 0]
    assert len(quarters) == 5
    assert quarters[-1].resident - quarters[1].resident < 16 * MIB
    rows = [b.journal - a.journal for a, b in pairwise(quarters)]
    assert max(rows) < 2 * min(rows)


def test_a_difference_nobody_explained_is_not_explained() -> None:
    assert not {"price", "fee", "equity", "funding", "book", "fill missing live", "fill only live"} & explained()
