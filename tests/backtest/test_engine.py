"""The compiled engine: hand-worked tapes, conservation of money, bad input, determinism, and the workload's known answer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.performance_report import performance
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.run_backtest_leveraged import run_backtest_leveraged
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.veto import VetoRule
from crypto_qlib.settings.schema import BacktestSettings, Settings, StrategySettings
from crypto_qlib.venue.matching import DELISTED
from tests.backtest.backtest_tapes import LOOSE, START_NS, Tape, inputs, quarters_under_hours

Bar = tuple[float, float, float, float]

# One coin at 100 USDT, 10 % of 10,000 USDT as margin at 5x = 50 coins, stop 5 %, target 10 %, no slippage, taker fee 0.1 %.
HAND = LOOSE._replace(
    max_open=1, leverage=5.0, position_fraction=0.1, min_stop_distance=0.05, max_stop_distance=0.05, min_take_distance=0.1,
    max_take_distance=0.1, impact_y=0.0, half_spread_bps=0.0, taker_fee=0.001, holding_bars=3, cooldown_bars=0,
    expect_funding=False, replace_margin=float("inf"),
)  # fmt: skip
FLAT: Bar = (100.0, 100.0, 100.0, 100.0)


def by_hand(
    bars: list[Bar],
    *,
    score: float = 0.5,
    marks: list[Bar] | None = None,
    funding: dict[int, float] | None = None,
    **rules: Any,
) -> BacktestResult:
    """Run one coin whose only score is known at the open of bar 1."""
    t = len(bars)
    o, h, lo, c = (np.array(bars)[:, k : k + 1].copy() for k in range(4))
    mo, mh, ml, mc = (np.array(marks or bars)[:, k : k + 1].copy() for k in range(4))
    rate = np.full((t, 1), np.nan)
    for bar, value in (funding or {}).items():
        rate[bar] = value
    ts = START_NS + np.arange(t, dtype=np.int64) * NS_PER_HOUR
    unknown = np.full((t, 1), np.nan)
    panel = MarketPanel(
        ("XUSDT",), NS_PER_HOUR, ts, o, h, lo, c, unknown, unknown, mo, mh, ml, mc, rate, np.array([marks is not None])
    )  # fmt: skip
    nothing = np.full((1, 1), np.nan)
    scores = ScorePanel(ts[1:2], ("XUSDT",), np.full((1, 1), score), nothing, nothing)
    table = TierTable(np.array([1e9]), np.array([0.01]), np.array([0.02]), np.array([50.0]))
    listed = {"XUSDT": Instrument("XUSDT", "X-USDT-SWAP", "X", 0.01, 0.01, 1.0, 1.0)}
    return run_backtest(
        BacktestInputs(
            panel,
            scores,
            listed,
            {"XUSDT": TierHistory([table])},
            HAND._replace(**rules),
            10_000.0,
            require_funding=False,
            execution=Execution(doubled_stop_spread=False),
        )
    )


HAND_TAPES: list[tuple[str, dict[str, Any], list[tuple[int, int, float]], float]] = [
    # (why, arguments, [(bar of the traded stretch, code, price)], final equity)
    ("opens at the next open, fee 5.00 on 5,000", {"bars": [FLAT] * 2}, [(0, 0, 100.0)], 9_995.0),
    ("leaves at the open three bars later", {"bars": [FLAT] * 5}, [(0, 0, 100.0), (3, 5, 100.0)], 9_990.0),
    ("a short gains when the price falls: 50 * 2 - 4.90", {"bars": [FLAT] * 4 + [(98.0,) * 4], "score": -0.5},
     [(0, 0, 100.0), (3, 5, 98.0)], 9_995.0 + 100.0 - 4.9),
    ("the stop fills at its level, in the entry bar too: -250 - 4.75", {"bars": [FLAT, (100.0, 100.0, 90.0, 99.0)]},
     [(0, 0, 100.0), (0, 1, 95.0)], 9_995.0 - 250.0 - 4.75),
    ("a stop gapped through fills at the open: -350 - 4.65", {"bars": [FLAT, FLAT, (93.0, 94.0, 92.0, 93.0)]},
     [(0, 0, 100.0), (1, 1, 93.0)], 9_995.0 - 350.0 - 4.65),
    ("the target fills at its level: +500 - 5.50", {"bars": [FLAT, FLAT, (100.0, 115.0, 99.0, 101.0)]},
     [(0, 0, 100.0), (1, 2, 110.0)], 9_995.0 + 500.0 - 5.5),
    ("no target in the entry bar", {"bars": [FLAT, (100.0, 115.0, 99.0, 101.0)]}, [(0, 0, 100.0)], 9_995.0 + 50.0),
    ("stop and target in one bar: the stop", {"bars": [FLAT, FLAT, (100.0, 115.0, 90.0, 101.0)]},
     [(0, 0, 100.0), (1, 1, 95.0)], 9_995.0 - 250.0 - 4.75),
    ("longs pay funding at the open: 50 * 100 * 1 %", {"bars": [FLAT] * 3, "funding": {2: 0.01}}, [(0, 0, 100.0)], 9_945.0),
    ("shorts receive it", {"bars": [FLAT] * 3, "funding": {2: 0.01}, "score": -0.5}, [(0, 0, 100.0)], 10_045.0),
    ("an entry at the settlement pays if it would pay", {"bars": [FLAT] * 2, "funding": {1: 0.01}}, [(0, 0, 100.0)], 9_945.0),
    ("and receives nothing if it would receive", {"bars": [FLAT] * 2, "funding": {1: 0.01}, "score": -0.5},
     [(0, 0, 100.0)], 9_995.0),
    ("funding before the time exit of the same open", {"bars": [FLAT] * 5, "funding": {4: 0.01}},
     [(0, 0, 100.0), (3, 5, 100.0)], 9_940.0),
    ("a mark gap liquidates before the stop: the whole margin of 1,000 is gone",
     {"bars": [FLAT, FLAT, (93.0, 94.0, 92.0, 93.0)], "marks": [FLAT, FLAT, (80.0, 80.0, 80.0, 80.0)]},
     [(0, 0, 100.0), (1, 3, 80.0)], 9_995.0 - 1_000.0),
    ("a last wick alone does not liquidate: the stop does its work",
     {"bars": [FLAT, FLAT, (100.0, 100.0, 70.0, 100.0)], "marks": [FLAT, FLAT, (100.0, 100.0, 99.0, 100.0)]},
     [(0, 0, 100.0), (1, 1, 95.0)], 9_995.0 - 250.0 - 4.75),
    ("a mark wick alone liquidates a position whose stop is on last",
     {"bars": [FLAT, FLAT, (100.0, 100.0, 99.0, 100.0)], "marks": [FLAT, FLAT, (100.0, 100.0, 70.0, 100.0)]},
     [(0, 0, 100.0), (1, 3, (100.0 - 20.0) / (1.0 - 0.011))], 9_995.0 - 1_000.0),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "fills", "equity"), [t[1:] for t in HAND_TAPES], ids=[t[0] for t in HAND_TAPES])
def test_tapes_worked_by_hand(arguments: dict[str, Any], fills: list[tuple[int, int, float]], equity: float) -> None:
    result = by_hand(**arguments)
    got = [(int(f["bar"]), int(f["kind"]), float(f["price"])) for f in result.fills]
    assert [g[:2] for g in got] == [f[:2] for f in fills]
    assert [g[2] for g in got] == [pytest.approx(f[2]) for f in fills]
    assert result.final_equity == pytest.approx(equity, abs=1e-9)


def test_stop_and_target_in_one_bar_is_ambiguous_and_says_what_the_target_would_have_given() -> None:
    result = by_hand([FLAT, FLAT, (100.0, 115.0, 90.0, 101.0)])
    assert result.n_ambiguous_bars == 1
    assert result.best_case_gain == pytest.approx(50 * (110.0 - 95.0))


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
@pytest.mark.parametrize("seed", range(6))
def test_equity_is_the_sum_of_what_the_ledgers_say(seed: int, cross: bool) -> None:
    tape = Tape(seed, crash_at=80, volatility=0.03, basis=0.01, missing=0.05)
    rules = LOOSE._replace(cross=cross, min_stop_distance=0.4, max_stop_distance=0.4, liquidation_buffer=-1.0)
    result = run_backtest(inputs(tape, rules))
    done, still = result.trades, result.open_positions
    total = sum(
        float((rows["pnl"] - rows["fee"] + rows["funding"] - rows["penalty"] + rows["overshoot"]).sum())
        for rows in (done, still)
    )
    total += float((still["side"] * still["qty"] * (still["mark"] - still["entry"])).sum())
    assert result.final_equity - result.initial_equity == pytest.approx(total, rel=1e-9, abs=1e-6)
    assert result.funding["amount"].sum() == pytest.approx(done["funding"].sum() + still["funding"].sum(), abs=1e-6)
    assert result.fills["fee"].sum() == pytest.approx(done["fee"].sum() + still["fee"].sum(), abs=1e-6)
    assert (result.series["cash"] >= -1e-9).all() or cross
    assert (result.series["n_open"] <= rules.max_open).all()


def test_two_runs_are_the_same_bit_for_bit() -> None:
    run = inputs(Tape(5, crash_at=40))
    a, b = run_backtest(run), run_backtest(run)
    for name in ("series", "fills", "trades", "funding", "liquidations"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def test_nothing_later_than_a_bar_changes_the_run_up_to_it() -> None:
    run = inputs(Tape(3, n_bars=120))
    panel = run.panel
    later = {
        n: getattr(panel, n).copy()
        for n in ("open", "high", "low", "close", "mark_open", "mark_high", "mark_low", "mark_close")
    }
    for values in later.values():
        values[80:] *= 1.2
    whole, changed = run_backtest(run), run_backtest(dataclasses.replace(run, panel=dataclasses.replace(panel, **later)))
    bars = 80 - 1  # the first traded bar is bar 1 of the panel
    assert whole.series[:bars].tobytes() == changed.series[:bars].tobytes()


def _panel(run: BacktestInputs, **changes: Any) -> BacktestInputs:
    return dataclasses.replace(run, panel=dataclasses.replace(run.panel, **changes))


def _poked(values: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    result = values.copy()
    result[row, column] = value
    return result


def _bad_inputs() -> list[tuple[str, BacktestInputs, str]]:
    run = inputs(Tape(1, n_bars=60))
    p = run.panel
    others = ("BTCUSDT", "S0USDT", "S1USDT", "ELSEUSDT")
    return [
        ("one price missing", _panel(run, high=_poked(p.high, 7, 2, np.nan)), "S1USDT at .*T07:00:00Z: last some prices"),
        ("negative price", _panel(run, low=_poked(p.low, 9, 1, -1.0)), "S0USDT at .*T09:00:00Z: last a price is zero"),
        ("high below low", _panel(run, high=_poked(p.high, 3, 0, 1.0)), "BTCUSDT at .*T03:00:00Z: last high is below low"),
        ("close above high", _panel(run, close=_poked(p.close, 3, 0, 1e5)), "BTCUSDT at .*T03:00:00Z: last open or close"),
        ("mark without a low", _panel(run, mark_low=_poked(p.mark_low, 4, 1, np.nan)), "S0USDT at .*T04:00:00Z: mark"),
        ("a symbol twice", _panel(run, symbols=("BTCUSDT", "S0USDT", "S0USDT", "S1USDT")), "S0USDT appears twice"),
        ("no tiers", dataclasses.replace(run, tiers={}), "BTCUSDT: no position tiers"),
        ("no contract", dataclasses.replace(run, instruments={}), "BTCUSDT: no contract specification"),
        ("scores of an unknown symbol", dataclasses.replace(run, scores=dataclasses.replace(run.scores, symbols=others)),
         "ELSEUSDT: scores from .* but no bars"),
        ("leverage above every cap", dataclasses.replace(run, rules=run.rules._replace(leverage=100.0)), "leverage 100"),
        ("no capital", dataclasses.replace(run, initial_equity=0.0), "initial equity must be positive"),
        ("no slots", dataclasses.replace(run, rules=run.rules._replace(max_open=0)), "max_open must be at least 1"),
        ("frames that do not fit", dataclasses.replace(run, rules=run.rules._replace(frame_ns=NS_PER_HOUR // 2)), "not divide"),
        ("no funding at all", dataclasses.replace(
            _panel(run, funding_rate=_poked(np.full_like(p.funding_rate, np.nan), 0, 0, 0.0)), require_funding=True),
         "BTCUSDT: no funding settlement between .*T01:00:00Z and .*T01:00:00Z"),
        ("scores of another time", dataclasses.replace(
            run, scores=dataclasses.replace(run.scores, as_of_ns=run.scores.as_of_ns - 10**18)), "no score lies"),
    ]  # fmt: skip


@pytest.mark.parametrize(("run", "message"), [r[1:] for r in _bad_inputs()], ids=[r[0] for r in _bad_inputs()])
def test_bad_input_is_one_clear_error_before_the_first_bar(run: BacktestInputs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_backtest(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ts: np.concatenate([ts[:5], ts[4:-1]]), "bar at .*T04:00:00Z is there twice"),
        (lambda ts: np.concatenate([ts[:5], ts[6:7], ts[5:6], ts[7:]]), "no bar between .*T04:00:00Z and .*T06:00:00Z"),
        (lambda ts: np.concatenate([ts[:6], ts[4:5], ts[7:]]), "bar at .*T04:00:00Z comes after the later bar at .*T05:00:00Z"),
        (lambda ts: np.concatenate([ts[:5], [ts[4] + NS_PER_HOUR // 2], ts[6:]]),
         "bar at .*T04:30:00Z begins before the bar at .*T04:00:00Z has ended: the time frames overlap"),
    ],
    ids=["doubled", "a gap", "unsorted", "half an hour among hours"],
)  # fmt: skip
def test_bars_that_are_no_regular_grid_are_refused_with_the_time(change: Any, message: str) -> None:
    p = inputs(Tape(1, n_bars=30)).panel
    with pytest.raises(UserError, match=message):
        dataclasses.replace(p, ts_open=change(p.ts_open))


def test_scores_given_twice_or_out_of_order_are_refused_with_the_time() -> None:
    s = inputs(Tape(1, n_bars=30)).scores
    twice, late = s.as_of_ns.copy(), s.as_of_ns.copy()
    twice[5], late[5] = late[4], late[2]
    with pytest.raises(UserError, match=r"scores of .*T05:00:00Z are there twice"):
        dataclasses.replace(s, as_of_ns=twice)
    with pytest.raises(UserError, match=r"scores of .*T03:00:00Z come after those of .*T05:00:00Z"):
        dataclasses.replace(s, as_of_ns=late)


@pytest.mark.parametrize(
    ("settled", "refused"),
    [
        (range(0, 120, 8), ""),
        (range(0, 120, 48), ""),  # two days less a bar between settlements
        ([0, 8, 64, 72, 112], "S0USDT: no funding settlement between .*T09:00:00Z and .*T09:00:00Z"),
        ([64, 72, 112], "S0USDT: no funding settlement between .*T01:00:00Z and .*T01:00:00Z"),
        ([0, 8, 48], "S0USDT: no funding settlement between .*T01:00:00Z and .*T01:00:00Z"),
    ],
    ids=["every eight hours", "every other day", "a hole", "late", "early end"],
)
def test_a_hole_in_the_funding_is_refused_with_symbol_and_time(settled: Any, refused: str) -> None:
    run = inputs(Tape(1, n_bars=120))
    funding = np.full_like(run.panel.funding_rate, np.nan)
    funding[::8] = 1e-4
    funding[:, 1] = np.nan
    funding[list(settled), 1] = 1e-4
    strict = dataclasses.replace(_panel(run, funding_rate=funding), require_funding=True)
    if refused:
        with pytest.raises(UserError, match=refused):
            run_backtest(strict)
    else:
        assert run_backtest(strict).fills.size


def test_every_symbol_with_a_hole_in_its_funding_is_named_the_earliest_hole_first() -> None:
    run = inputs(Tape(1, n_bars=160, n_symbols=4))
    funding = np.full_like(run.panel.funding_rate, 1e-4)
    funding[60:, 0] = np.nan
    funding[20:90, 2] = np.nan
    strict = dataclasses.replace(_panel(run, funding_rate=funding), require_funding=True)
    with pytest.raises(UserError, match=r"^S1USDT: no funding .*T20:00:00Z and .*T20:00:00Z; holes like it: BTCUSDT") as stop:
        run_backtest(strict)
    assert "universe.exclude=[S1,BTC]" in str(stop.value.hint)


def test_a_symbol_that_ends_is_closed_at_its_last_mark_and_named() -> None:
    gone = (np.nan,) * 4
    bars = [FLAT, FLAT, (100.0, 106.0, 100.0, 103.0), gone, gone]
    marks = [FLAT, FLAT, (100.0, 106.0, 100.0, 104.0), gone, gone]
    result = by_hand(bars, marks=marks, holding_bars=50)
    fills = [(int(f["bar"]), int(f["kind"]), float(f["price"])) for f in result.fills]
    assert fills == [(0, 0, 100.0), (2, DELISTED, 104.0)]
    assert result.ended == ("XUSDT",)
    assert result.final_equity == pytest.approx(9_995.0 + 50 * 4.0 - 5.2)
    report = performance(result, inputs(Tape(7, n_bars=5, n_symbols=1)).panel, "replay", None)
    assert report["delisted_in_the_run"] == ["XUSDT"]
    assert report["positions_closed_by_delisting"]


def test_refusals_are_counted_and_the_first_ones_kept() -> None:
    run = dataclasses.replace(inputs(Tape(2), LOOSE._replace(min_win_probability=0.6)), veto_log_rows=5)
    result = run_backtest(run)
    assert result.veto_counts[VetoRule.MIN_WIN_PROBABILITY] > 5
    assert len(result.vetoes_frame()) == 5


def test_tables_carry_times_symbols_and_reasons() -> None:
    result = run_backtest(inputs(Tape(2)))
    trades, fills = result.trades_frame(), result.fills_frame()
    assert set(trades.columns) >= {"entry_ts", "exit_ts", "symbol", "side", "exit_kind", "net_pnl", "rank", "score"}
    assert set(fills.reason) >= {"entry", "stop"}
    assert str(result.account_frame().index.tz) == "UTC"
    assert len(result.account_frame()) == result.ts_open.size


def test_minutes_are_traded_under_hourly_scores() -> None:
    result = run_backtest(quarters_under_hours(Tape(4, n_bars=240)))
    entries = result.fills[result.fills["kind"] == 0]["bar"]
    exits = result.fills[result.fills["kind"] == 1]["bar"]
    assert (result.ts_open[entries] % NS_PER_HOUR == 0).all()
    assert (result.ts_open[exits] % NS_PER_HOUR != 0).any()


def test_the_step_runs_as_the_settings_say() -> None:
    run = inputs(Tape(2, n_bars=120))
    settings = Settings(
        strategy=StrategySettings(max_open=2, min_listing_days=0, min_daily_turnover=0.0, leverage=10.0),
        backtest=BacktestSettings(initial_equity=5_000.0),
    )
    funding = np.where(np.isnan(run.panel.funding_rate), np.nan, run.panel.funding_rate)
    panel = dataclasses.replace(run.panel, funding_rate=funding)
    result = run_backtest_leveraged(panel, run.scores, run.instruments, run.tiers, settings)
    assert result.series["n_open"].max() <= 2
    assert result.initial_equity == 5_000.0
    assert result.exposure.shape == (result.ts_open.size, 4)
    finer = settings.model_copy(update={"backtest": BacktestSettings(execution_frame="1m")})
    with pytest.raises(UserError, match="execution_frame = 1m: finer bars are streamed from a workspace's lake"):
        run_backtest_leveraged(panel, run.scores, run.instruments, run.tiers, finer)


@pytest.mark.slow
def test_the_workload_gives_the_published_answer() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        from benchmarks import workload_product  # noqa: PLC0415 - benchmarks are no package of the product
    finally:
        sys.path.pop(0)
    found = workload_product.check("A", workload_product.build("A"))
    assert found["trades"] == 10_713


def test_rules_are_a_record_of_the_same_numbers() -> None:
    assert Rules() == Rules(*Rules())
