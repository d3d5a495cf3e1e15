"""Attribution, liquidation distance, capacity and ruin on runs of the real engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crypto_qlib.analytics.account_book import PARTS, number_positions
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import prepare
from crypto_qlib.backtest.liquidation_distance import isolated_distance, liquidation_distance
from crypto_qlib.backtest.performance_report import performance
from crypto_qlib.backtest.report_charts import distance_chart
from crypto_qlib.backtest.result_book import fill_book, position_book
from crypto_qlib.backtest.what_if import CapacityPoint, capital_limit, scaled_rules, what_if
from crypto_qlib.portfolio.btc_factor import btc_factor
from crypto_qlib.portfolio.rules import AT_MARKET, BY_LIMIT, FIXED_FRACTION, Rules
from crypto_qlib.venue.matching import LIQUIDATION
from tests.backtest.backtest_tapes import LOOSE, Tape, inputs

WILD = Tape(n_bars=240, volatility=0.03, crash_at=120, crash=-0.4, missing=0.02, basis=0.003, delist=True)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_parts_add_up_to_the_change_of_equity_whatever_happened(seed: int, cross: bool) -> None:
    unprotected = LOOSE._replace(min_stop_distance=0.4, max_stop_distance=0.4, liquidation_buffer=-1.0)
    asked = inputs(replace(WILD, seed=seed), (unprotected if seed < 2 else LOOSE)._replace(cross=cross))
    result = run_backtest(asked)
    a = performance(result, asked.panel, "simulated", None)["attribution"]
    assert result.liquidations.size or seed > 1, "without a near stop somebody is liquidated"
    assert abs(a["unexplained"]) < 1e-9 * result.initial_equity
    assert sum(a[part] for part in PARTS) == pytest.approx(a["total"], abs=1e-9 * result.initial_equity)
    for key in ("by_side", "by_exit_kind", "by_symbol"):
        for part in (*PARTS, "net"):
            whole = a["total"] - a["unexplained"] if part == "net" else a[part]
            assert sum(row[part] for row in a[key].values()) == pytest.approx(whole, abs=1e-8), (key, part)


@pytest.mark.parametrize("cross", [False, True])
def test_the_fold_of_the_fills_is_the_engines_own_trade_ledger(cross: bool) -> None:
    asked = inputs(replace(WILD, seed=3), LOOSE._replace(cross=cross))
    result = run_backtest(asked)
    book, t = position_book(result, btc_factor(asked.panel)), result.trades
    number = t["trade"]
    np.testing.assert_allclose(book.net[number], result.trades_frame()["net_pnl"], atol=1e-8)
    np.testing.assert_allclose(book.slippage[number], -t["slippage"], atol=1e-8)
    assert book.exit_kind[number].tolist() == result.trades_frame()["exit_kind"].tolist()
    assert np.flatnonzero(~book.is_closed).tolist() == sorted(result.open_positions["trade"].tolist())
    # a live ledger knows no trade numbers: counting them from the fills alone gives the very same
    fills = fill_book(result)
    assert number_positions(fills.symbol, fills.lots).tolist() == fills.position.tolist()


def test_market_is_the_whole_price_result_where_every_coin_is_bitcoin() -> None:
    asked = inputs(Tape(seed=1, n_bars=200), LOOSE._replace(holding_bars=3, stop_atr=50.0, max_stop_distance=0.9))
    panel = asked.panel
    same = {name: np.repeat(getattr(panel, name)[:, :1], 4, axis=1) for name in ("open", "high", "low", "close")}
    twins = replace(panel, **same, **{f"mark_{k}": v for k, v in same.items()})
    result = run_backtest(replace(asked, panel=twins))
    a = performance(result, twins, "simulated", None)["attribution"]
    price = sum(row["price"] for row in a["by_side"].values())
    assert set(a["by_exit_kind"]) <= {"time", "replaced", "signal", "open", "take_profit"}
    assert abs(price) > 1.0
    # what is left: the bars before betas are known count as 1 too; take-profits are booked in the middle of their bar
    time_exits = {k: v for k, v in a["by_exit_kind"].items() if k in ("time", "replaced", "signal")}
    for kind, row in time_exits.items():
        assert abs(row["signal"]) < 2e-3 * max(abs(row["market"]), abs(price)), kind


@pytest.mark.parametrize("entry", [AT_MARKET, BY_LIMIT], ids=["at the market", "in parts"])
@pytest.mark.parametrize("seed", range(4))
def test_the_distance_to_liquidation_is_the_engines_own(seed: int, entry: int) -> None:
    rules = LOOSE._replace(entry_order=entry, entry_offset=0.0, decide_every_bars=4, entry_bars=4)
    asked = inputs(replace(WILD, seed=seed, delist=False, thin=True), rules if entry else LOOSE)
    run, result = prepare(asked), run_backtest(asked)
    nearest, levels = isolated_distance(run, result)
    held = result.open_positions
    opened = result.fills[result.fills["kind"] == 0]
    assert (np.unique(opened["trade"]).size < opened.size) == (entry == BY_LIMIT)
    np.testing.assert_allclose(levels[held["trade"]], held["liq"], rtol=1e-9)
    if held.size:
        own = held["side"] * (held["mark"] - held["liq"]) / held["mark"]
        assert nearest[-1] == pytest.approx(float(own.min()), rel=1e-9)
    assert np.isfinite(nearest).tolist() == (result.series["n_open"] > 0).tolist()
    # whoever was liquidated inside a bar had its level between the mark of the close before and the extreme of that bar
    whole = result.liquidations[result.liquidations["partial"] == 0]
    entry = dict(zip(result.trades["trade"].tolist(), result.trades["entry_bar"].tolist(), strict=True))
    carried = [row for row in whole if entry[int(row["trade"])] < row["bar"]]
    bars = run.bars
    for row in carried:
        t, j = int(row["bar"]) + run.first_bar, int(row["symbol"])
        if np.isnan(bars.mark_low[t, j]):
            continue
        level = levels[int(row["trade"])]
        is_long = row["lots"] < 0
        worst = bars.mark_low[t, j] if is_long else bars.mark_high[t, j]
        assert (worst <= level * (1 + 1e-2)) if is_long else (worst >= level * (1 - 1e-2))


def test_in_cross_the_distance_is_the_common_move_that_uses_the_equity_up() -> None:
    asked = inputs(Tape(seed=2), LOOSE._replace(cross=True))
    run, result = prepare(asked), run_backtest(asked)
    d, s = liquidation_distance(run, result), result.series
    held = s["n_open"] > 0
    left = s["equity"] - d * s["gross"]
    need = s["maintenance"] + run.rules.taker_fee * s["gross"]
    np.testing.assert_allclose(left[held], need[held], rtol=1e-9)
    assert np.isnan(d[~held]).all()
    assert "all marks together" in distance_chart(result, d)


def test_more_exposure_risks_more_and_the_run_asked_for_is_among_them() -> None:
    rules = LOOSE._replace(leverage=2.0, position_fraction=0.3, sizing=FIXED_FRACTION, stop_atr=3.0)
    asked = inputs(replace(WILD, n_bars=600, seed=5, delist=False, crash_at=300), rules)
    result = run_backtest(asked)
    study = what_if(asked, result, capitals=(1.0, 100.0), multiples=(0.5, 1.0, 10.0))
    small, same, large = study.ruin
    assert same.liquidations == result.liquidations.size
    assert same.leverage == 2.0
    assert small.mean_leverage < same.mean_leverage < large.mean_leverage
    assert small.odds.drawdown[0.5] <= same.odds.drawdown[0.5] <= large.odds.drawdown[0.5]
    assert large.odds.liquidation == 1.0
    assert large.liquidations > same.liquidations
    plain = study.to_json()
    assert plain["ruin"][2]["odds"]["drawdown"]["0.5"] == large.odds.drawdown[0.5]
    assert plain["nearest_liquidation"] == pytest.approx(float(np.nanmin(study.distance)))


def test_more_capital_pays_more_slippage_and_earns_less_of_itself() -> None:
    asked = inputs(Tape(seed=4, n_bars=400, thin=True), LOOSE._replace(leverage=2.0))
    alone, tenfold = (what_if(asked, run_backtest(asked), (k,), (1.0,)).capacity[0] for k in (1.0, 10.0))
    result = run_backtest(asked)
    assert alone.capital == 10_000.0
    assert alone.entries_cut == result.entries_cut
    assert tenfold.slippage_bps > alone.slippage_bps
    assert tenfold.mean_leverage < alone.mean_leverage  # thin bars do not take the size


@pytest.mark.parametrize(
    ("name", "returns", "expected"),
    [
        ("half way between two powers of ten", [0.4, 0.3, 0.1], 10.0**4.5),  # 0.2 lies half way from 0.3 down to 0.1
        ("never halved", [0.4, 0.39, 0.38], float("nan")),
        ("nothing to halve", [-0.1, -0.2, -0.3], float("nan")),
    ],
)
def test_the_capital_limit_halves_the_small_accounts_return(name: str, returns: list[float], expected: float) -> None:
    points = [CapacityPoint(10.0 ** (3 + k), r, 0.0, 0.0, 0.0, 0.0, 0) for k, r in enumerate(returns)]
    assert capital_limit(points) == pytest.approx(expected, nan_ok=True), name


def test_what_leverage_cannot_give_margin_does() -> None:
    rules = Rules(leverage=4.0, position_fraction=0.1, risk_per_trade=0.01, max_gross=3.0, max_drawdown=0.3)
    ten = scaled_rules(rules, 10.0, 20.0)
    assert (ten.leverage, ten.max_gross, ten.max_drawdown) == (20.0, 30.0, 1.0)
    assert ten.leverage * ten.position_fraction == pytest.approx(10.0 * 4.0 * 0.1)
    assert ten.risk_per_trade == pytest.approx(0.1)
    tenth = scaled_rules(rules, 0.1, 20.0)
    assert tenth.leverage == 1.0
    assert tenth.leverage * tenth.position_fraction == pytest.approx(0.1 * 4.0 * 0.1)


def test_liquidations_are_counted_as_such() -> None:
    asked = inputs(replace(WILD, seed=0))
    result = run_backtest(asked)
    assert np.count_nonzero(result.trades["exit_kind"] == LIQUIDATION) > 0
    book = position_book(result, None)
    assert not book.market.any()
    assert book.liquidation.sum() == pytest.approx(
        float((result.trades["overshoot"] - result.trades["penalty"]).sum()), abs=1e-9
    )
