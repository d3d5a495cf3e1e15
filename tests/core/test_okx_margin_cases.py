"""Every published OKX number is reproduced by our own functions at the case's own tolerance.

The oracle is a file of real payloads and documented examples; it shares no code with us. One small function per kind of
case says which of our functions answers which of its figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_qlib.core import account_math, funding, margin
from crypto_qlib.core.costs import trading_fee
from crypto_qlib.core.order import Fill
from crypto_qlib.core.position import Position, fold
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.venue.liquidation import isolated_liquidation

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
CASES_FILE = REFERENCE / "okx_margin_cases.json"
TIERS_FILE = REFERENCE / "position_tiers.json"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not CASES_FILE.is_file(), reason="the reference folder is not beside this checkout"),
]

Case = dict[str, Any]
Answers = dict[str, float | Decimal]


def cases() -> list[Case]:
    return list(json.loads(CASES_FILE.read_text())["cases"]) if CASES_FILE.is_file() else []


def side_of(inputs: Case) -> float:
    return 1.0 if inputs["side"] == "long" else -1.0


def number(inputs: Case, key: str) -> float:
    """NaN where a payload does not tell: only figures that need it come out as NaN."""
    value = inputs.get(key)
    return float("nan" if value in (None, "") else value)


def base_qty(inputs: Case) -> float:
    return float(exact_qty(inputs))


def exact_qty(inputs: Case) -> Decimal:
    if inputs.get("base_qty") not in (None, ""):
        return Decimal(str(inputs["base_qty"]))
    return Decimal(str(inputs["contracts"])) * Decimal(str(inputs["ctVal"])) * Decimal(str(inputs.get("ctMult") or "1"))


def isolated_position(inputs: Case) -> Answers:
    s, q, a = side_of(inputs), base_qty(inputs), number(inputs, "avgPx")
    lever, m, mark = number(inputs, "lever"), number(inputs, "margin"), number(inputs, "markPx")
    mmr, fee = number(inputs, "mmr_rate"), number(inputs, "taker_fee_rate")
    analytic = margin.liquidation_price_isolated(s, q, a, m, mmr, fee)
    # This figure is printed to more digits than a float holds: the same formula is run on exact decimals.
    exact: Any = getattr(margin.initial_margin_isolated, "py_func")  # noqa: B009 - numba's name of the plain function
    frozen = exact(exact_qty(inputs), *(Decimal(str(inputs[key])) for key in ("avgPx", "lever")))
    return {
        "upl": margin.unrealised_pnl(s, q, a, mark),
        "mmr_amount": margin.maintenance_margin(q, mark, mmr),
        "mgnRatio": margin.margin_ratio_isolated(s, q, a, m, mark, mmr, fee),
        "liqPx": margin.reported_liquidation_price(s, analytic, number(inputs, "tickSz")),
        "liqPx_analytic": analytic,
        "uplRatio": margin.upl_ratio(s, q, a, mark, lever),
        "initial_margin": margin.initial_margin_isolated(q, a, lever),
        "initial_margin_plus_funding": frozen + Decimal(str(inputs.get("fundingFee_accrued") or "0")),
        "bePx": margin.break_even_price(s, q, a, float(inputs.get("realizedPnl") or 0.0), fee),
    }


def cross_position(inputs: Case) -> Answers:
    s, q, a = side_of(inputs), base_qty(inputs), number(inputs, "avgPx")
    lever, mark = number(inputs, "lever"), number(inputs, "markPx")
    mmr, fee = number(inputs, "mmr_rate"), number(inputs, "taker_fee_rate")
    need = margin.requirement(q, mark, mmr, fee)
    equity = account_math.equity_from_margin_ratio(number(inputs, "mgnRatio_reported"), need)
    return {
        "mgnRatio": margin.margin_ratio_cross(equity, need),
        "upl": margin.unrealised_pnl(s, q, a, mark),
        "imr": margin.initial_margin_cross(q, mark, lever),
        "mmr_amount": margin.maintenance_margin(q, mark, mmr),
        "uplRatio": margin.upl_ratio(s, q, a, mark, lever),
        "equity_implied": equity,
        "liqPx": margin.liquidation_price_cross(s, q, mark, equity, 0.0, mmr, fee),
        "bePx": margin.break_even_price(s, q, a, float(inputs.get("realizedPnl") or 0.0), fee),
    }


def isolated_liq_analytic(inputs: Case) -> Answers:
    s, q, a, m = side_of(inputs), base_qty(inputs), number(inputs, "avgPx"), number(inputs, "margin")
    return {
        "liqPx_analytic": margin.liquidation_price_isolated(
            s, q, a, m, number(inputs, "mmr_rate"), number(inputs, "taker_fee_rate")
        )
    }


def account_multi_currency(inputs: Case) -> Answers:
    mm, value, fee = number(inputs, "mmr_amount"), number(inputs, "notionalUsd"), number(inputs, "taker_fee_rate")
    return {
        "mgnRatio": account_math.multi_currency_margin_ratio(number(inputs, "adjEq"), mm, value, fee),
        "imr": margin.initial_margin_cross(1.0, value, number(inputs, "lever")),
        "mmr_amount_check": margin.maintenance_margin(1.0, value, 0.004),
    }


def account_single_currency(inputs: Case) -> Answers:
    cash, upl = number(inputs, "cashBal"), float(inputs.get("upl", 0.0))
    iso = account_math.isolated_equity(float(inputs.get("margin", 0.0)), float(inputs.get("isoUpl", 0.0)))
    equity = account_math.account_equity(cash, upl, iso)
    frozen = float(inputs.get("frozenBal", 0.0))
    return {
        "eq": equity,
        "isoEq": iso,
        "availEq": account_math.available_equity(equity, frozen),
        "notionalLever": account_math.notional_leverage(frozen * float(inputs.get("notional_over_eq_lever", "nan")), equity),
    }


def closed_position(inputs: Case) -> Answers:
    s, q, lever = side_of(inputs), base_qty(inputs), number(inputs, "lever")
    open_px, close_px = number(inputs, "openAvgPx"), number(inputs, "closeAvgPx")
    fees = [trading_fee(q, px, number(inputs, key)) for px, key in ((open_px, "open_fee_rate"), (close_px, "close_fee_rate"))]
    fills = [Fill(0, "XUSDT", int(s), open_px, fees[0]), Fill(1, "XUSDT", -int(s), close_px, fees[1])]
    paid, penalty = float(inputs.get("fundingFee") or 0.0), -float(inputs.get("liqPenalty") or 0.0)
    done = fold(Position("XUSDT", base_per_lot=q, leverage=lever, funding=paid, liquidation_penalty=penalty), fills)
    return {
        "pnl": done.realised_pnl,
        "fee": -done.fee,
        "realizedPnl": done.net_realised,
        "pnlRatio": margin.closed_pnl_ratio(done.net_realised, q, open_px, lever),
    }


def lead_subposition(inputs: Case) -> Answers:
    s, q, a = side_of(inputs), base_qty(inputs), number(inputs, "openAvgPx")
    lever, mark = number(inputs, "lever"), number(inputs, "markPx")
    return {
        "margin": margin.initial_margin_isolated(q, a, lever),
        "upl": margin.unrealised_pnl(s, q, a, mark),
        "uplRatio": margin.upl_ratio(s, q, a, mark, lever),
    }


def fee(inputs: Case) -> Answers:
    price, size = inputs.get("fillPx") or inputs["avgPx"], inputs.get("fillSz") or inputs.get("contracts") or "nan"
    qty = number(inputs, "base_qty") if inputs.get("base_qty") else float(size) * number(inputs, "ctVal")
    return {"fee": -trading_fee(qty, float(price), number(inputs, "rate"))}


def funding_fee(inputs: Case) -> Answers:
    flows = [
        funding.funding_cash_flow(side_of(inputs), base_qty(inputs), float(event["mark"]), float(event["rate"]))
        for event in inputs["events"]
    ]
    return {"cashflow": sum(flows), **{f"event_{k}": flow for k, flow in enumerate(flows)}}


def funding_rate_formula(inputs: Case) -> Answers:
    premium, hours = number(inputs, "avg_premium"), number(inputs, "interval_h")
    cap = float(inputs["cap"].split()[0].lstrip("+-"))
    formula = inputs["formula"]
    if "noRate" in formula:
        rate = funding.funding_rate_no_rate(premium, -cap, cap)
    elif "withRate" in formula:
        rate = funding.funding_rate_with_rate(premium, hours, -cap, cap)
    else:
        rate = funding.funding_rate_2026(premium, hours, -cap, cap)
    return {"rate": rate, "daily": rate * 24.0 / hours}


def liquidation(inputs: Case) -> Answers:
    s, q, lever = side_of(inputs), base_qty(inputs), number(inputs, "lever")
    entry, trigger = number(inputs, "openAvgPx"), number(inputs, "closeAvgPx_trigger_mark")
    mmr, taker = number(inputs, "mmr_rate"), number(inputs, "taker_fee_rate")
    posted = number(inputs, "margin") if inputs.get("margin") else margin.initial_margin_isolated(q, entry, lever)
    pnl, close_fee, penalty, overshoot = isolated_liquidation(s, q, entry, posted, trigger, mmr, taker)
    assert pnl - close_fee - penalty == pytest.approx(-posted - overshoot, rel=1e-12)
    paid = trading_fee(q, entry, number(inputs, "open_fee_rate")) + close_fee
    return {
        "pnl": pnl,
        "liqPenalty": -penalty,
        "close_fee": -close_fee,
        "fee_total": -paid,
        "realizedPnl": pnl - paid - penalty + float(inputs.get("fundingFee") or 0.0),
        "analytic_liqPx": margin.liquidation_price_isolated(s, q, entry, posted, mmr, taker),
    }


def table_of(rows: list[list[str]]) -> TierTable:
    """Rows are (min, max, mmr) or (tier, min, max, mmr, imr, max leverage)."""
    wide = len(rows[0]) > 3
    column = np.array([[float(x) for x in row] for row in rows]).T
    mmr = column[3] if wide else column[2]
    imr, lever = (column[4], column[5]) if wide else (mmr, np.floor(1.0 / mmr))
    return TierTable(column[2] if wide else column[1], mmr, imr, lever)


def tier_lookup(inputs: Case) -> Answers:
    rows = inputs.get("table") or json.loads(TIERS_FILE.read_text())["families"][inputs["instFamily"]]["tiers"]
    table = table_of(rows)
    contracts = float(inputs.get("contracts") or inputs["size_units"])
    row = table.row(contracts)
    return {
        "tier": row + 1,
        "mmr": float(table.mmr[row]),
        "imr": float(table.imr[row]),
        "maxLever": table.leverage_cap(contracts),
    }


ANSWERS: dict[str, Callable[[Case], Answers]] = {
    function.__name__: function
    for function in (
        isolated_position,
        cross_position,
        isolated_liq_analytic,
        account_multi_currency,
        account_single_currency,
        closed_position,
        lead_subposition,
        fee,
        funding_fee,
        funding_rate_formula,
        liquidation,
        tier_lookup,
    )
}


def is_close(got: float | Decimal, expected: str | float, tolerance: dict[str, float]) -> bool:
    want = Decimal(str(expected))
    allowed = Decimal(str(tolerance.get("abs", 0.0))) + Decimal(str(tolerance.get("rel", 0.0))) * abs(want)
    return abs(Decimal(str(got)) - want) <= allowed


@pytest.mark.parametrize("case", [c for c in cases() if not c["kind"].startswith("contrast")], ids=lambda c: c["id"])
def test_our_figures_match_okx_at_the_cases_own_tolerance(case: Case) -> None:
    answers = ANSWERS[case["kind"]](case["inputs"])
    for key, expected in case["expected"].items():
        if expected is None:  # OKX has no maintenance amount, and neither have we
            assert key not in answers
            continue
        tolerance = case["tolerance"].get(key, case["tolerance"]["*"])
        assert is_close(answers[key], expected, tolerance), f"{key}: {answers[key]} is not {expected}"


def binance_liquidation(inputs: Case) -> float:
    """Binance USDT-M: a maintenance *amount* is subtracted and the fee is no part of it."""
    s, q, entry = side_of(inputs), base_qty(inputs), number(inputs, "entry")
    free = number(inputs, "wallet_balance") - number(inputs, "other_maint_margin") + number(inputs, "other_upnl")
    return (free + number(inputs, "maintenance_amount_cum") - s * q * entry) / (q * number(inputs, "mmr_rate") - s * q)


def bybit_liquidation(inputs: Case) -> float:
    """Bybit (older formula): maintenance margin on the *entry* value, linear in the entry price."""
    s, entry = side_of(inputs), number(inputs, "entry")
    return entry * (1.0 - s * (1.0 / number(inputs, "lever") - number(inputs, "mmr_rate")))


@pytest.mark.parametrize("case", [c for c in cases() if c["kind"].startswith("contrast")], ids=lambda c: c["id"])
def test_other_exchanges_formulas_reproduce_their_numbers_and_ours_does_not(case: Case) -> None:
    inputs = case["inputs"]
    if case["kind"] == "contrast_binance":
        key, theirs = "liqPx_binance", binance_liquidation(inputs)
        qty, posted = base_qty(inputs), number(inputs, "wallet_balance")
    else:
        key, theirs = "liqPx_bybit", bybit_liquidation(inputs)
        qty, posted = 1.0, number(inputs, "entry") / number(inputs, "lever")
    tolerance = case["tolerance"].get(key, case["tolerance"]["*"])
    assert is_close(theirs, case["expected"][key], tolerance)
    ours = margin.liquidation_price_isolated(
        side_of(inputs), qty, number(inputs, "entry"), posted, number(inputs, "mmr_rate"), 0.0005
    )
    assert not is_close(ours, case["expected"][key], tolerance)
    assert abs(ours - theirs) > 1e-4 * theirs


def test_every_kind_of_case_is_answered() -> None:
    kinds = {case["kind"] for case in cases()}
    assert {kind for kind in kinds if not kind.startswith("contrast")} <= set(ANSWERS)
    assert len(cases()) >= 35


def test_every_recorded_tier_table_loads_and_gets_stricter_with_size() -> None:
    families = json.loads(TIERS_FILE.read_text())["families"]
    loaded = 0
    for family in families.values():
        rows = family.get("tiers")
        if not rows:
            continue
        table = table_of(rows)
        assert np.all(np.diff(table.mmr) > 0)
        assert np.all(np.diff(table.max_leverage) < 0)
        for row, bound in enumerate(table.max_contracts):
            assert table.row(float(bound)) == row
            assert table.leverage_cap(float(bound)) == table.max_leverage[row]
        loaded += 1
    assert loaded >= 2
