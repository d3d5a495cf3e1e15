"""Cards 200-209: OKX's own position, liquidation and closing records come out of the API when their state is set up through it.

Each case is reached by orders, settlements, added margin and mark prices alone. An average that is no tick price came from
several fills: it is reached by two of neighbouring ticks (``fills_of``), or on a finer grid where a partial closing left no
such pair. Left out are the cases of other exchanges, of the multi-currency mode and of a premium formula: no account here has
such a state.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.venue.venue_config import VenueConfig
from tests.exchange.fake_market import START_NS
from tests.exchange.scripted_market import Bar, ScriptedMarket
from tests.exchange.test_recorded_samples import posted

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "okx_margin_cases.json"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference folder is not beside this checkout"),
]
FIELDS = {"upl": "upl", "mmr_amount": "mmr", "mgnRatio": "mgnRatio", "liqPx": "liqPx", "uplRatio": "uplRatio", "bePx": "bePx",
          "imr": "imr"}  # fmt: skip
MAKERS = {"iso_sol_long_3x_demo_2023"}
OFF_GRID = {"iso_eth_long_5x_partial_2026", "cross_eth_long_20x_a_2025"}
FINE = 1e-9
NOT_OURS = {
    "contrast_binance": "another exchange", "contrast_bybit": "another exchange",
    "account_multi_currency": "accounts here are in futures mode", "funding_rate_formula": "rates are given, not made",
}  # fmt: skip


def cases(*kinds: str) -> list[dict[str, Any]]:
    found = json.loads(REFERENCE.read_text())["cases"] if REFERENCE.is_file() else []
    return [case for case in found if case["kind"] in kinds and case["id"] not in OFF_GRID]


def off_grid() -> list[dict[str, Any]]:
    found = json.loads(REFERENCE.read_text())["cases"] if REFERENCE.is_file() else []
    return [case for case in found if case["id"] in OFF_GRID]


def fills_of(average: float, contracts: float, tick: float, lot: float) -> list[tuple[str, float]]:
    """Return (contracts, price) of one fill, or of two of neighbouring ticks, that come to ``average``."""
    lots = round(contracts / lot)
    total = round(average * contracts / (tick * lot))
    first, above = divmod(total, lots)
    parts = [(lots - above, first), (above, first + 1)] if above else [(lots, first)]
    return [(f"{n * lot:.10g}", round(ticks * tick, 12)) for n, ticks in parts]


def swap(inst_id: str, ct_val: float, tick: float) -> Instrument:
    base = inst_id.split("-", maxsplit=1)[0]
    return Instrument(
        f"{base}USDT", inst_id, base, ct_val=ct_val, tick_size=tick, lot_size=0.01, min_size=0.01, max_leverage=125.0
    )


def served(market: ScriptedMarket, equity: float = 100_000.0, taker: float = 0.0005) -> EmbeddedExchange:
    frictionless = VenueConfig(impact_y=0.0, half_spread_bps=0.0)
    options = EmbeddedOptions(
        start_ns=START_NS + NS_PER_HOUR, venue=frictionless, fees=FeeSchedule(0.0002, taker), paper_equity=equity
    )
    return EmbeddedExchange(market, options)


def wrong_in(row: dict[str, Any], case: dict[str, Any], least: float = 0.0) -> list[tuple[str, str, str]]:
    """Return (field, ours, OKX's) of what differs by more than the case allows."""
    wrong = []
    for name, expected in case["expected"].items():
        allowed = dict(case["tolerance"].get(name, case["tolerance"]["*"]))
        allowed["abs"] = max(allowed.get("abs", 0.0), least)
        if name in row and expected is not None and not is_close(row[name], expected, allowed):
            wrong.append((name, row[name], expected))
    return wrong


def done(exchange: EmbeddedExchange, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = posted(exchange, "POST", f"/api/v5/{path}", body)
    assert answer["code"] == "0", answer
    return answer


def is_close(got: str, want: str, tolerance: dict[str, float]) -> bool:
    allowed = tolerance.get("abs", 0.0) + tolerance.get("rel", 0.0) * abs(float(want))
    return abs(float(Decimal(got) - Decimal(want))) <= max(allowed, 1e-12 * abs(float(want)))


@pytest.mark.parametrize("case", cases("isolated_position", "cross_position"), ids=lambda case: case["id"])
async def test_card_200_a_position_shows_okx_own_figures(case: dict[str, Any]) -> None:
    given = case["inputs"]
    entry, mark, side = float(given["avgPx"]), float(given["markPx"]), given["side"]
    tick = float(given.get("tickSz", 0.1))
    item = swap(given["instId"], float(given["ctVal"]), tick)
    mode, order_side = given["mgnMode"], "buy" if side == "long" else "sell"
    funding = float(given.get("fundingFee_accrued", 0.0))
    qty = float(given["contracts"]) * item.ct_val
    sign = 1.0 if side == "long" else -1.0
    fills = fills_of(entry, float(given["contracts"]), tick, item.lot_size)
    # A maker's order rests inside a bar that opens away from it and trades through it; a taker's fills at the open.
    is_maker = case["id"] in MAKERS
    openings = []
    for _, at in fills:
        away, through = at + sign * 2 * tick * is_maker, at - sign * 2 * tick * is_maker
        openings.append(Bar((away, max(away, through), min(away, through), at), (entry,) * 4))
    falling = Bar((entry,) * 4, (entry, max(entry, mark), min(entry, mark), mark))
    bars = [Bar.flat(entry), *openings, Bar.flat(entry), falling, Bar.flat(entry, mark)]
    rates = {1 + len(fills): -sign * funding / (qty * entry)}
    market = ScriptedMarket(item, bars, float(given["mmr_rate"]), 125.0, rates)
    cash = 1e5
    if "mgnRatio_reported" in given:
        need = qty * mark * (float(given["mmr_rate"]) + 0.0005)
        cash = float(given["mgnRatio_reported"]) * need - sign * qty * (mark - entry) + qty * entry * 0.0005
    exchange = served(market, cash)
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": mode})
    kind = {"ordType": "limit", "px": given["avgPx"]} if is_maker else {"ordType": "market"}
    for size, _ in fills:
        order = {"instId": item.inst_id, "tdMode": mode, "side": order_side, "sz": size}
        done(exchange, "trade/order", order | kind)
        await exchange.step()
    await exchange.step(2)
    (row,) = posted(exchange, "GET", "/api/v5/account/positions")["data"]
    assert (float(row["markPx"]), float(row["avgPx"])) == pytest.approx((mark, entry), rel=1e-14)
    assert wrong_in({name: row[ours] for name, ours in FIELDS.items()}, case) == []
    if "margin" in given:
        assert float(row["margin"]) == pytest.approx(float(given["margin"]), rel=1e-12)


@pytest.mark.parametrize("case", off_grid(), ids=lambda case: case["id"])
async def test_card_210_a_position_that_was_reduced_before_shows_okx_own_figures(case: dict[str, Any]) -> None:
    """Opened larger than it is now and reduced once, at the price that realises what had been realised."""
    given = case["inputs"]
    entry, mark, tick = float(given["avgPx"]), float(given["markPx"]), float(given.get("tickSz", 0.01))
    item = swap(given["instId"], float(given["ctVal"]), FINE)
    qty, fee, funding = float(given["contracts"]) * item.ct_val, 0.0005, float(given.get("fundingFee_accrued", 0.0))
    # One coin more is sold at p: (p - entry) - fees of both sides + funding = what the position has realised.
    sold_at = (float(given["realizedPnl"]) - funding + entry + fee * entry * (qty + 1.0)) / (1.0 - fee)
    bars = [
        Bar.flat(entry),
        Bar.flat(entry),
        Bar.flat(sold_at, entry),
        Bar.flat(entry),
        Bar.flat(entry, mark),
        Bar.flat(entry, mark),
    ]
    market = ScriptedMarket(item, bars, float(given["mmr_rate"]), 125.0, {3: -funding / (qty * entry)})
    exchange = served(market)
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": given["mgnMode"]})
    order = {"instId": item.inst_id, "tdMode": given["mgnMode"], "ordType": "market"}
    done(exchange, "trade/order", order | {"side": "buy", "sz": f"{float(given['contracts']) + 1.0 / item.ct_val:.10g}"})
    await exchange.step()
    done(exchange, "trade/order", order | {"side": "sell", "sz": f"{1.0 / item.ct_val:.10g}", "reduceOnly": True})
    await exchange.step(3)
    (row,) = posted(exchange, "GET", "/api/v5/account/positions")["data"]
    if "margin" in given:
        missing = float(given["margin"]) - float(row["margin"])
        move = {"instId": item.inst_id, "type": "add" if missing > 0 else "reduce", "amt": f"{abs(missing):.13f}"}
        done(exchange, "account/position/margin-balance", move)
        (row,) = posted(exchange, "GET", "/api/v5/account/positions")["data"]
    # The price shown lies one tick before liquidation; the grid is finer here.
    row["liqPx"] = str(float(row["liqPx"]) + tick - FINE) if row["liqPx"] else ""
    assert wrong_in({name: row[ours] for name, ours in FIELDS.items()}, case, least=1e-6) == []
    assert float(row["realizedPnl"]) == pytest.approx(float(given["realizedPnl"]), abs=1e-6)


@pytest.mark.parametrize("case", cases("liquidation"), ids=lambda case: case["id"])
async def test_card_201_a_liquidation_is_recorded_as_okx_recorded_it(case: dict[str, Any]) -> None:
    given = case["inputs"]
    entry, trigger = float(given["openAvgPx"]), float(given["closeAvgPx_trigger_mark"])
    item = swap(given["instId"], 0.01, 0.0001)
    bars = [Bar.flat(entry), Bar.flat(entry), Bar.flat(trigger), Bar.flat(trigger)]
    exchange = served(ScriptedMarket(item, bars, float(given["mmr_rate"]), 125.0))
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": "isolated"})
    size = f"{float(given['base_qty']) / item.ct_val:g}"
    order = {"instId": item.inst_id, "tdMode": "isolated", "side": "buy", "ordType": "market", "sz": size}
    done(exchange, "trade/order", order)
    await exchange.step(2)
    assert posted(exchange, "GET", "/api/v5/account/positions")["data"] == []
    (row,) = posted(exchange, "GET", "/api/v5/account/positions-history")["data"]
    assert (row["type"], row["closeAvgPx"]) == ("3", given["closeAvgPx_trigger_mark"])
    names = {"pnl": "pnl", "liqPenalty": "liqPenalty", "fee_total": "fee", "realizedPnl": "realizedPnl"}
    wrong = [
        (name, row[ours])
        for name, ours in names.items()
        if not is_close(row[ours], case["expected"][name], case["tolerance"].get(name, case["tolerance"]["*"]))
    ]
    assert wrong == []
    (child, _) = posted(exchange, "GET", "/api/v5/trade/orders-history?instType=SWAP")["data"]
    assert (child["category"], child["state"], child["avgPx"]) == ("full_liquidation", "filled", row["closeAvgPx"])
    bills = posted(exchange, "GET", "/api/v5/account/bills?type=5")["data"]
    assert [bill["subType"] for bill in bills] == ["104"]


@pytest.mark.parametrize("case", cases("closed_position"), ids=lambda case: case["id"])
async def test_card_202_a_closed_position_is_recorded_as_okx_recorded_it(case: dict[str, Any]) -> None:
    given = case["inputs"]
    entry, qty, sides = float(given["openAvgPx"]), float(given["base_qty"]), ("buy", "sell")
    item = swap(given["instId"], 0.1, 0.01)
    size = qty / item.ct_val
    opened = fills_of(entry, size, item.tick_size, item.lot_size)
    closed = fills_of(float(given["closeAvgPx"]), size, item.tick_size, item.lot_size)
    sides = sides if given["side"] == "long" else sides[::-1]
    deals = [(sides[0], *fill) for fill in opened] + [(sides[1], *fill) for fill in closed]
    bars = [Bar.flat(entry), *(Bar.flat(at, entry) for _, _, at in deals), Bar.flat(entry)]
    sign = 1.0 if given["side"] == "long" else -1.0
    rates = {1 + len(opened): -sign * float(given["fundingFee"]) / (qty * entry)}
    # The closing rate of the recorded case may be a maker's: the fee rates are those it names.
    open_rate, close_rate = (float(given.get(name, "0.0005")) for name in ("open_fee_rate", "close_fee_rate"))
    exchange = served(ScriptedMarket(item, bars, 0.004, 125.0, rates), taker=open_rate)
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": "isolated"})
    for n, (side, lots, _) in enumerate(deals):
        if n == len(opened):
            exchange.venue.exchange.set_fees(exchange.credentials.key, FeeSchedule(0.0002, close_rate))
        order = {"instId": item.inst_id, "tdMode": "isolated", "side": side, "ordType": "market", "sz": lots}
        done(exchange, "trade/order", order)
        await exchange.step()
    (row,) = posted(exchange, "GET", "/api/v5/account/positions-history")["data"]
    assert wrong_in(row, case) == []


@pytest.mark.parametrize("case", cases("fee"), ids=lambda case: case["id"])
async def test_card_203_a_fill_is_charged_what_okx_charged(case: dict[str, Any]) -> None:
    given = case["inputs"]
    price, size = float(given.get("fillPx", given.get("avgPx", 0))), given.get("fillSz", given.get("contracts"))
    item = swap("ABC-USDT-SWAP", float(given["ctVal"]), 1e-6)
    exchange = served(ScriptedMarket(item, [Bar.flat(price)] * 3, 0.004, 125.0), taker=float(given["rate"]))
    order = {"instId": item.inst_id, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": size}
    done(exchange, "trade/order", order)
    (fill,) = posted(exchange, "GET", "/api/v5/trade/fills?instType=SWAP")["data"]
    assert wrong_in(fill, case) == []


@pytest.mark.parametrize("mode", ["cross", "isolated"])
@pytest.mark.parametrize("case", cases("funding_fee"), ids=lambda case: case["id"])
async def test_card_204_funding_moves_what_it_moved_elsewhere(case: dict[str, Any], mode: str) -> None:
    given = case["inputs"]
    marks = [float(event["mark"]) for event in given["events"]]
    item = swap("ABC-USDT-SWAP", 1.0, 0.01)
    rates = {2 + n: float(event["rate"]) for n, event in enumerate(given["events"])}
    bars = [Bar.flat(marks[0])] * 2 + [Bar.flat(mark) for mark in marks] + [Bar.flat(marks[-1])]
    exchange = served(ScriptedMarket(item, bars, 0.004, 125.0, rates))
    side = "buy" if given["side"] == "long" else "sell"
    order = {"instId": item.inst_id, "tdMode": mode, "side": side, "ordType": "market", "sz": given["base_qty"]}
    done(exchange, "trade/order", order)
    await exchange.step(1 + len(marks))
    bills = posted(exchange, "GET", "/api/v5/account/bills?type=8")["data"][::-1]
    moved = [float(bill["balChg"] if mode == "cross" else bill["posBalChg"]) for bill in bills]
    told = {"cashflow": str(sum(moved))} | {f"event_{n}": str(flow) for n, flow in enumerate(moved)}
    assert wrong_in(told, case) == []
    assert {bill["subType"] for bill in bills} == {"174" if moved[0] > 0 else "173"}


@pytest.mark.parametrize("case", cases("isolated_liq_analytic", "lead_subposition"), ids=lambda case: case["id"])
async def test_card_205_isolated_positions_at_a_given_leverage(case: dict[str, Any]) -> None:
    given = case["inputs"]
    entry = float(given.get("avgPx", given.get("openAvgPx", 0)))
    mark = float(given.get("markPx", entry))
    item = swap(given.get("instId", "ABC-USDT-SWAP"), 0.1, 1e-9 if "avgPx" in given else 0.01)
    bars = [Bar.flat(entry), Bar.flat(entry), Bar.flat(entry, mark), Bar.flat(entry, mark)]
    market = ScriptedMarket(item, bars, float(given.get("mmr_rate", 0.004)), 125.0)
    exchange = served(market, taker=float(given.get("taker_fee_rate", 0.0005)))
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": "isolated"})
    side, size = "buy" if given["side"] == "long" else "sell", f"{float(given['base_qty']) / item.ct_val:.10g}"
    done(exchange, "trade/order", {"instId": item.inst_id, "tdMode": "isolated", "side": side, "ordType": "market", "sz": size})
    await exchange.step(2)
    (row,) = posted(exchange, "GET", "/api/v5/account/positions")["data"]
    assert wrong_in(row | {"liqPx_analytic": row["liqPx"]}, case) == []


async def test_card_206_equity_and_what_is_available_of_a_cross_account() -> None:
    (case,) = [c for c in cases("account_single_currency") if "cashBal" in c["inputs"] and "upl" in c["inputs"]]
    given = case["inputs"]
    upl, frozen, lever = float(given["upl"]), float(given["frozenBal"]), float(given["notional_over_eq_lever"])
    mark = frozen * lever
    entry, fee = mark - upl, 0.0005
    item = swap("ABC-USDT-SWAP", 1.0, 1e-9)
    market = ScriptedMarket(item, [Bar.flat(entry), Bar.flat(entry), Bar.flat(mark), Bar.flat(mark)], 0.004, 125.0)
    exchange = served(market, float(given["cashBal"]) + entry * fee)
    done(
        exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["notional_over_eq_lever"], "mgnMode": "cross"}
    )
    order = {"instId": item.inst_id, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "1"}
    done(exchange, "trade/order", order)
    await exchange.step(2)
    (row,) = posted(exchange, "GET", "/api/v5/account/balance")["data"]
    usdt = row["details"][0]
    assert float(usdt["frozenBal"]) == pytest.approx(frozen, rel=1e-9)
    assert wrong_in({name: usdt[name] for name in ("eq", "availEq")}, case, least=1e-9) == []


async def test_card_207_isolated_margin_and_its_result_stand_outside_the_cash() -> None:
    (case,) = [c for c in cases("account_single_currency") if "isoUpl" in c["inputs"]]
    given = case["inputs"]
    margin, upl = float(given["margin"]), float(given["isoUpl"])
    item = swap("ABC-USDT-SWAP", 1.0, 1e-9)
    entry = margin * 5
    market = ScriptedMarket(item, [Bar.flat(entry), Bar.flat(entry), Bar.flat(entry, entry + upl)] * 2, 0.004, 125.0)
    exchange = served(market, float(given["cashBal"]) + margin + entry * 0.0005)
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": 5, "mgnMode": "isolated"})
    order = {"instId": item.inst_id, "tdMode": "isolated", "side": "buy", "ordType": "market", "sz": "1"}
    done(exchange, "trade/order", order)
    await exchange.step(2)
    (row,) = posted(exchange, "GET", "/api/v5/account/balance")["data"]
    assert wrong_in({name: row["details"][0][name] for name in ("eq", "isoEq")}, case, least=1e-8) == []


@pytest.mark.parametrize("case", cases("tier_lookup"), ids=lambda case: case["id"])
async def test_card_208_a_size_falls_into_okx_own_tier(case: dict[str, Any]) -> None:
    given = case["inputs"]
    families = json.loads((REFERENCE.parent / "position_tiers.json").read_text())["families"]
    known = families.get(given["instFamily"], {}).get("tiers") or [
        [n, low, high, mmr, "0.1", "10"] for n, (low, high, mmr) in enumerate(given.get("table", []), start=1)
    ]
    table = TierTable(*(np.array([float(row[k]) for row in known]) for k in (2, 3, 4, 5)))
    item = swap(f"{given['instFamily'].partition('(')[0]}-SWAP", 0.1, 0.01)
    market = ScriptedMarket(item, [Bar.flat(100.0)] * 3, 0.004, 125.0)
    market.become(table)
    rows = posted(
        served(market), "GET", f"/api/v5/public/position-tiers?instType=SWAP&tdMode=cross&instFamily={item.inst_id[:-5]}"
    )
    size = float(given.get("contracts", given.get("size_units", 0)))
    # A size between two tiers of a table in whole contracts belongs to the upper one.
    row = next(row for row in rows["data"] if size <= float(row["maxSz"]))
    expected = {name: value for name, value in case["expected"].items() if value is not None}
    assert {name: row[name] for name in expected} == {name: str(value) for name, value in expected.items()}


def test_card_209_no_case_is_forgotten() -> None:
    found = json.loads(REFERENCE.read_text())["cases"]
    shown = {
        "isolated_position", "cross_position", "liquidation", "closed_position", "fee", "funding_fee", "isolated_liq_analytic",
        "lead_subposition", "account_single_currency", "tier_lookup",
    }  # fmt: skip
    assert {case["kind"] for case in found} == shown | set(NOT_OURS)
    assert len(found) == 38
