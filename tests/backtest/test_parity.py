"""The compiled engine and the exchange driven event by event in plain Python give the same run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.reference import ReferenceRun, run_reference
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_MS
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.order import ExitKind
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.rules import AT_MARKET, BY_LIMIT, POST_ONLY, Rules
from crypto_qlib.venue.matching import EXIT_KIND_BY_CODE
from tests.backtest.backtest_tapes import LOOSE, START_NS, Tape, inputs

Row = tuple[float, ...]
EXIT_CODES = {kind: code for code, kind in EXIT_KIND_BY_CODE.items()}


def grouped(rows: list[tuple[tuple[int, str], Row]]) -> dict[tuple[int, str], list[Row]]:
    result: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for key, row in rows:
        result[key].append(row)
    return result


def assert_same(a: dict[tuple[int, str], list[Row]], b: dict[tuple[int, str], list[Row]]) -> None:
    assert sorted(a) == sorted(b)
    for key, rows in a.items():
        np.testing.assert_allclose(rows, b[key], rtol=1e-9, atol=1e-9, err_msg=str(key))


def assert_parity(run: BacktestInputs) -> tuple[BacktestResult, ReferenceRun]:
    fast, slow = run_backtest(run), run_reference(run)
    t0, frame = int(fast.ts_open[0]), fast.frame_ns
    codes = {kind: code for code, kind in EXIT_KIND_BY_CODE.items()}

    def bar(ts_ns: int) -> int:
        return (ts_ns - t0) // frame

    f = fast.fills
    engine_fills = [
        ((int(r["bar"]), fast.symbols[r["symbol"]]), (r["lots"], r["price"], r["fee"], r["kind"], r["is_maker"])) for r in f
    ]
    venue_fills = [
        ((bar(x.ts_ns), x.symbol), (x.signed_lots, x.price, x.fee, codes[x.exit_kind] if x.exit_kind else 0, x.is_maker))
        for x in slow.fills
    ]
    assert_same(grouped(engine_fills), grouped(venue_fills))
    engine_funding = [((int(r["bar"]), fast.symbols[r["symbol"]]), (r["amount"], r["rate"], r["mark"])) for r in fast.funding]
    venue_funding = [((bar(x.ts_ns), x.symbol), (x.amount, x.rate, x.mark)) for x in slow.funding]
    assert_same(grouped(engine_funding), grouped(venue_funding))
    engine_liq = [
        ((int(r["bar"]), fast.symbols[r["symbol"]]), (r["lots"], r["mark"], r["pnl"], r["fee"], r["penalty"]))
        for r in fast.liquidations
    ]
    venue_liq = [((bar(x.ts_ns), x.symbol), (x.signed_lots, x.mark, x.pnl, x.fee, x.penalty)) for x in slow.liquidations]
    assert_same(grouped(engine_liq), grouped(venue_liq))
    np.testing.assert_allclose(fast.equity, slow.equity, rtol=1e-9, atol=1e-9 * run.initial_equity)
    return fast, slow


TAPES = [
    ("calm", Tape(seed=1, volatility=0.005), {}),
    ("wild", Tape(seed=2, volatility=0.04), {}),
    ("crash while long and short", Tape(seed=3, crash_at=60), {}),
    ("bars missing", Tape(seed=4, missing=0.1), {}),
    ("mark off last", Tape(seed=5, basis=0.01, volatility=0.03), {}),
    ("thin volume cuts entries", Tape(seed=6, thin=True), {}),
    ("a symbol ends mid-way", Tape(seed=7, delist=True), {}),
    ("no stop near, so liquidation comes first", Tape(seed=8, crash_at=50, volatility=0.03),
     {"min_stop_distance": 0.6, "max_stop_distance": 0.6, "liquidation_buffer": -1.0}),
    ("tier by tier", Tape(seed=9, crash_at=70, crash=-0.2, volatility=0.03),
     {"min_stop_distance": 0.6, "max_stop_distance": 0.6, "liquidation_buffer": -1.0, "position_fraction": 0.3}),
    ("equal risk with caps and replacement", Tape(seed=10),
     {"sizing": 0, "risk_per_trade": 0.02, "max_gross": 2.0, "max_net": 0.5, "replace_margin": 0.005}),
    ("every fourth bar", Tape(seed=11), {"decide_every_bars": 4, "holding_bars": 10}),
    ("targets near", Tape(seed=13), {"min_take_distance": 0.03, "max_take_distance": 0.03, "replace_margin": 1.0}),
    ("trailing stops", Tape(seed=14, volatility=0.015),
     {"trailing_atr": 1.0, "max_stop_distance": 0.05, "replace_margin": 1.0}),
    ("trailing stops on the mark, bars missing", Tape(seed=15, basis=0.01, missing=0.1),
     {"trailing_atr": 1.5, "stop_on_mark": True, "replace_margin": 1.0}),
    ("stops and targets on the mark", Tape(seed=16, basis=0.02, volatility=0.03),
     {"stop_on_mark": True, "min_take_distance": 0.04, "max_take_distance": 0.04, "replace_margin": 1.0}),
    ("trailing stops in a crash", Tape(seed=17, crash_at=60, basis=0.005, volatility=0.03),
     {"trailing_atr": 2.0, "max_stop_distance": 0.3, "liquidation_buffer": -1.0}),
    ("correlation and beta caps", Tape(seed=12, n_bars=260), {"max_correlation": 0.6, "max_beta": 1.0}),
    ("cluster caps", Tape(seed=14, n_bars=260), {"max_cluster": 1.0, "cluster_correlation": 0.3}),
    ("large positions near their stops", Tape(seed=15, volatility=0.03),
     {"position_fraction": 1.0, "leverage": 50.0, "min_stop_distance": 0.01, "liquidation_buffer": 0.5}),
    ("limit entries that take and rest", Tape(seed=20, thin=True),
     {"entry_order": BY_LIMIT, "entry_offset": 0.0, "decide_every_bars": 4, "entry_bars": 3, "replace_margin": 1.0}),
    ("post-only entries filled in parts", Tape(seed=21, thin=True, basis=0.01),
     {"entry_order": POST_ONLY, "entry_offset": 0.004, "decide_every_bars": 4, "entry_bars": 4, "trailing_atr": 2.0}),
    ("post-only entries in a crash, bars missing", Tape(seed=22, crash_at=60, missing=0.1, volatility=0.03),
     {"entry_order": POST_ONLY, "entry_offset": 0.02, "decide_every_bars": 6, "entry_bars": 6, "max_stop_distance": 0.6,
      "min_stop_distance": 0.6, "liquidation_buffer": -1.0}),
    ("limit entries on the mark, a symbol ends", Tape(seed=23, delist=True, basis=0.01),
     {"entry_order": BY_LIMIT, "entry_offset": 0.01, "decide_every_bars": 2, "entry_bars": 2, "stop_on_mark": True}),
]  # fmt: skip


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
@pytest.mark.parametrize(("tape", "changes"), [(t, c) for _, t, c in TAPES], ids=[name for name, _, _ in TAPES])
def test_engine_and_exchange_give_the_same_run(tape: Tape, changes: dict[str, float], cross: bool) -> None:
    equity = 200_000.0 if tape.seed == 9 else 10_000.0
    fast, _ = assert_parity(inputs(tape, LOOSE._replace(**changes, cross=cross), equity))
    assert fast.fills.size > 10, "a tape on which nothing happens proves nothing"


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
def test_fee_rates_that_change_within_a_run_give_the_same_run(cross: bool) -> None:
    """A new level half-way: fees, margin ratios, liquidation marks and the decisions' own costs follow it at once."""
    run = inputs(Tape(seed=3, crash_at=90), LOOSE._replace(cross=cross, entry_order=BY_LIMIT, entry_offset=0.0), 10_000.0)
    change = START_NS + 50 * NS_PER_HOUR
    fees = FeeHistory([FeeSchedule(0.0002, 0.0005), FeeSchedule(-0.0001, 0.0003, change)])
    fast, _ = assert_parity(replace(run, fees=fees))
    f = fast.fills
    price = f["price"] * np.abs(f["lots"]) * 0.1
    late = fast.ts_open[f["bar"]] >= change
    for is_late, maker, taker in ((False, 0.0002, 0.0005), (True, -0.0001, 0.0003)):
        ours = f["kind"] != EXIT_CODES[ExitKind.LIQUIDATION]
        for is_maker, rate in ((0, taker), (1, maker)):
            rows = (late == is_late) & ours & (f["is_maker"] == is_maker)
            assert rows.any()
            np.testing.assert_allclose(f["fee"][rows], rate * price[rows], rtol=1e-12)


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
def test_the_deleveraging_stress_gives_the_same_run(cross: bool) -> None:
    run = inputs(Tape(seed=3, crash_at=60), LOOSE._replace(cross=cross), 10_000.0)
    fast, _ = assert_parity(replace(run, execution=Execution(adl_stress_move=0.05)))
    assert (fast.fills["kind"] == EXIT_CODES[ExitKind.ADL]).any()


def test_the_tapes_reach_resting_entries_of_every_fate() -> None:
    """Filled at once, as a maker, in parts, in vain, and refused because it would have taken."""
    at_once = makers = parts = expired = rejected = 0
    for _name, tape, changes in TAPES:
        if "entry_order" in changes:
            result = run_backtest(inputs(tape, LOOSE._replace(**changes), 10_000.0))
            opened = result.fills[result.fills["kind"] == 0]
            at_once += int((opened["is_maker"] == 0).sum())
            makers += int(opened["is_maker"].sum())
            parts += opened.size - np.unique(opened["trade"]).size
            expired += result.entries_expired
            rejected += result.entries_rejected if changes["entry_order"] == POST_ONLY else 0
    assert min(at_once, makers, parts, expired, rejected) > 0, (at_once, makers, parts, expired, rejected)


def test_the_tapes_reach_every_way_a_position_can_end() -> None:
    kinds: set[ExitKind] = set()
    for _, tape, changes in TAPES:
        equity = 200_000.0 if tape.seed == 9 else 10_000.0
        result = run_backtest(inputs(tape, LOOSE._replace(**changes), equity))
        kinds |= {EXIT_KIND_BY_CODE[k] for k in np.unique(result.fills["kind"]) if k}
    assert kinds == {
        ExitKind.STOP, ExitKind.TAKE_PROFIT, ExitKind.TIME, ExitKind.REPLACED, ExitKind.LIQUIDATION,
        ExitKind.PARTIAL_LIQUIDATION, ExitKind.DELISTED, ExitKind.TRAILING,
    }  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    volatility=st.sampled_from([0.005, 0.02, 0.06]),
    crash_at=st.integers(-1, 60),
    missing=st.sampled_from([0.0, 0.2]),
    basis=st.sampled_from([0.0, 0.02]),
    leverage=st.sampled_from([1.0, 5.0, 50.0]),
    stop=st.sampled_from([0.01, 0.05, 0.5]),
    cross=st.booleans(),
    trailing=st.sampled_from([0.0, 0.5, 3.0]),
    on_mark=st.booleans(),
    entry=st.sampled_from([AT_MARKET, BY_LIMIT, POST_ONLY]),
    every=st.sampled_from([1, 3]),
)
def test_random_markets_give_the_same_run(
    seed: int, volatility: float, crash_at: int, missing: float, basis: float, leverage: float, stop: float, cross: bool,
    trailing: float, on_mark: bool, entry: int, every: int,
) -> None:  # fmt: skip
    tape = Tape(seed, 80, 4, volatility, crash_at, -0.3, missing, basis)
    rules = LOOSE._replace(
        leverage=leverage, min_stop_distance=0.6 * stop, max_stop_distance=stop, liquidation_buffer=-1.0, cross=cross,
        trailing_atr=trailing, stop_on_mark=on_mark, entry_order=entry, entry_offset=0.003, entry_bars=every,
        decide_every_bars=every,
    )  # fmt: skip
    assert_parity(inputs(tape, rules, 50_000.0))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
def test_real_hours_of_the_april_2025_sell_off_give_the_same_run(shared: Path, cross: bool) -> None:
    assert_parity(real_slice(shared, LOOSE._replace(cross=cross, max_open=5)))


MINUTE_RULES = [
    ("isolated market", {}),
    ("cross, post-only behind the price", {"cross": True, "entry_order": POST_ONLY, "entry_offset": 0.001}),
    ("isolated, limits at the close", {"entry_order": BY_LIMIT, "entry_offset": 0.0, "trailing_atr": 1.5}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("changes", [c for _, c in MINUTE_RULES], ids=[name for name, _ in MINUTE_RULES])
def test_real_minutes_of_the_april_2025_sell_off_give_the_same_run(shared: Path, changes: dict[str, float]) -> None:
    """Two days of OKX minutes under hourly scores, with the settlements that took place; execution on every minute."""
    rules = LOOSE._replace(max_open=5, holding_bars=6, leverage=40.0, **changes)
    fast, _ = assert_parity(real_minutes(shared, rules))
    assert fast.frame_ns == NS_PER_MINUTE
    assert fast.fills.size > 100
    assert fast.funding.size > 0


def real_minutes(shared: Path, rules: Rules) -> BacktestInputs:
    """Return 5 to 8 April 2025, traded on minutes from noon of the 6th on."""
    hourly, minutes = (_real_panel(shared, f"okx_perp_{frame}.parquet", frame) for frame in ("1h", "1m"))
    rng = np.random.default_rng(5)
    known = hourly.ts_open + NS_PER_HOUR
    nothing = np.full(hourly.close.shape, np.nan)
    scores = ScorePanel(known, hourly.symbols, rng.normal(0.0, 0.03, nothing.shape), nothing + 0.6, nothing)
    table = TierTable(np.array([1e5, 1e7]), np.array([0.004, 0.01]), np.array([0.01, 0.02]), np.array([50.0, 25.0]))
    listed = {s: Instrument(s, s, s[:-4], 0.1, 0.00001, 1.0, 1.0) for s in hourly.symbols}
    start = int(pd.Timestamp("2025-04-06T12:00Z").value)
    return BacktestInputs(
        minutes, scores, listed, dict.fromkeys(hourly.symbols, TierHistory([table])), rules, 100_000.0,
        state_panel=hourly, start_ns=start,
    )  # fmt: skip


def _real_panel(shared: Path, file: str, frame: str) -> MarketPanel:
    start, end = pd.Timestamp("2025-04-05", tz="UTC"), pd.Timestamp("2025-04-08", tz="UTC")
    rows = pd.read_parquet(shared / "data" / file, filters=[("ts", ">=", start), ("ts", "<", end)])
    rates = pd.read_parquet(shared / "data" / "okx_funding.parquet", filters=[("ts", ">=", start), ("ts", "<", end)])
    names = sorted(set(pd.read_parquet(shared / "data" / "okx_perp_1m.parquet", columns=["symbol"]).symbol) & set(rates.symbol))
    index = pd.date_range(start, end, freq=frame.replace("m", "min"), inclusive="left")
    o, h, lo, c, v = (
        np.ascontiguousarray(rows.pivot_table(index="ts", columns="symbol", values=k).reindex(index, columns=names), np.float64)
        for k in ("open", "high", "low", "close", "volume")
    )
    funding = rates.pivot_table(index="ts", columns="symbol", values="funding_rate").reindex(index, columns=names)
    symbols = tuple(n.split("/")[0] + "USDT" for n in names)
    frame_ns = NS_PER_HOUR if frame == "1h" else NS_PER_MINUTE
    return MarketPanel(
        symbols, frame_ns, index.as_unit("ns").asi8, o, h, lo, c, v, v * c, o, h, lo, c,
        np.ascontiguousarray(funding, np.float64), np.zeros(len(symbols), bool),
    )  # fmt: skip


def real_slice(shared: Path, rules: Rules) -> BacktestInputs:
    frame = pd.read_parquet(shared / "data" / "okx_perp_1h.parquet")
    frame = frame[(frame.ts >= "2025-03-20") & (frame.ts < "2025-04-15")]
    columns = {k: frame.pivot_table(index="ts", columns="symbol", values=k) for k in ("open", "high", "low", "close", "volume")}
    names = [c for c in columns["close"].columns if columns["close"][c].notna().all()][:12]
    symbols = tuple(n.split("/")[0] + "USDT" for n in names)
    o, h, lo, c, v = (np.ascontiguousarray(columns[k][names].to_numpy(np.float64)) for k in columns)
    ts = columns["close"].index.as_unit("ms").asi8 * NS_PER_MS
    rng = np.random.default_rng(3)
    funding = np.full(c.shape, np.nan)
    funding[::8] = rng.normal(1e-4, 2e-4, funding[::8].shape)
    panel = MarketPanel(symbols, NS_PER_HOUR, ts, o, h, lo, c, v, v * c, o, h, lo, c, funding, np.zeros(len(symbols), bool))
    expected = rng.normal(0.0, 0.03, c.shape)
    scores = ScorePanel(ts + NS_PER_HOUR, symbols, expected, np.full(c.shape, 0.6), np.full(c.shape, np.nan))
    table = TierTable(np.array([1e5, 1e7]), np.array([0.004, 0.01]), np.array([0.01, 0.02]), np.array([50.0, 25.0]))
    listed = {s: Instrument(s, s, s[:-4], 0.1, 0.00001, 1.0, 1.0) for s in symbols}
    return BacktestInputs(panel, scores, listed, dict.fromkeys(symbols, TierHistory([table])), rules, 100_000.0)
