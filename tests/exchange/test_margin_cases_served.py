"""Cards 200-209: OKX's own position, liquidation and closing records come out of the API when their state is set up through it.

The cases are real payloads. Each is reached by orders, added margin, settlements and mark prices alone; those whose average
entry is no tick price came from several fills that were not recorded and cannot be repeated.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.instrument import Instrument
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
NO_TICK_PRICE = {"iso_eth_long_5x_partial_2026", "cross_eth_long_20x_a_2025", "closed_eth_short_100x_demo_2023"}


def cases(*kinds: str) -> list[dict[str, Any]]:
    found = json.loads(REFERENCE.read_text())["cases"] if REFERENCE.is_file() else []
    return [case for case in found if case["kind"] in kinds and case["id"] not in NO_TICK_PRICE]


def swap(inst_id: str, ct_val: float, tick: float) -> Instrument:
    base = inst_id.split("-", maxsplit=1)[0]
    return Instrument(
        f"{base}USDT", inst_id, base, ct_val=ct_val, tick_size=tick, lot_size=0.01, min_size=0.01, max_leverage=125.0
    )


def served(market: ScriptedMarket, equity: float = 100_000.0) -> EmbeddedExchange:
    frictionless = VenueConfig(impact_y=0.0, half_spread_bps=0.0)
    options = EmbeddedOptions(
        start_ns=START_NS + NS_PER_HOUR, venue=frictionless, fees=FeeSchedule(0.0002, 0.0005), paper_equity=equity
    )
    return EmbeddedExchange(market, options)


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
    # A maker's order rests inside a bar that opens away from it and trades through it; a taker's fills at the open.
    is_maker = case["id"] in MAKERS
    away, through = entry + sign * 2 * tick * is_maker, entry - sign * 2 * tick * is_maker
    opening = Bar((away, max(away, through), min(away, through), entry), (entry,) * 4)
    falling = Bar((entry,) * 4, (entry, max(entry, mark), min(entry, mark), mark))
    bars = [Bar.flat(entry), opening, Bar.flat(entry), falling, Bar.flat(entry, mark)]
    market = ScriptedMarket(item, bars, float(given["mmr_rate"]), 125.0, {2: -sign * funding / (qty * entry)})
    cash = 1e5
    if "mgnRatio_reported" in given:
        need = qty * mark * (float(given["mmr_rate"]) + 0.0005)
        cash = float(given["mgnRatio_reported"]) * need - sign * qty * (mark - entry) + qty * entry * 0.0005
    exchange = served(market, cash)
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": mode})
    kind = {"ordType": "limit", "px": given["avgPx"]} if is_maker else {"ordType": "market"}
    order = {"instId": item.inst_id, "tdMode": mode, "side": order_side, "sz": given["contracts"]}
    done(exchange, "trade/order", order | kind)
    await exchange.step(3)
    (row,) = posted(exchange, "GET", "/api/v5/account/positions")["data"]
    assert (float(row["markPx"]), float(row["avgPx"])) == pytest.approx((mark, entry), rel=1e-14)
    wrong = []
    for name, expected in case["expected"].items():
        if name in FIELDS and expected is not None:
            tolerance = case["tolerance"].get(name, case["tolerance"]["*"])
            if not is_close(row[FIELDS[name]], expected, tolerance):
                wrong.append((name, row[FIELDS[name]], expected))
    if "margin" in given:
        assert float(row["margin"]) == pytest.approx(float(given["margin"]), rel=1e-12)
    assert wrong == []


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
    entry, close, qty = float(given["openAvgPx"]), float(given["closeAvgPx"]), float(given["base_qty"])
    item = swap(given["instId"], 0.1, 0.01)
    bars = [
        Bar.flat(entry), Bar.flat(entry), Bar((entry, close + 1.0, entry, close), (entry, close, entry, close)),
        Bar.flat(close),
    ]  # fmt: skip
    exchange = served(ScriptedMarket(item, bars, 0.004, 125.0, {2: -float(given["fundingFee"]) / (qty * entry)}))
    done(exchange, "account/set-leverage", {"instId": item.inst_id, "lever": given["lever"], "mgnMode": "isolated"})
    order = {"instId": item.inst_id, "tdMode": "isolated", "sz": f"{qty / item.ct_val:g}"}
    done(exchange, "trade/order", order | {"side": "buy", "ordType": "market"})
    done(exchange, "trade/order", order | {"side": "sell", "ordType": "limit", "px": given["closeAvgPx"], "reduceOnly": True})
    await exchange.step(2)
    (row,) = posted(exchange, "GET", "/api/v5/account/positions-history")["data"]
    wrong = [
        (name, row[name])
        for name, expected in case["expected"].items()
        if name in row and not is_close(row[name], expected, case["tolerance"]["*"])
    ]
    assert wrong == []
