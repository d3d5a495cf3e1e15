"""What a run reports beside its trades: exposures, bounds of ambiguous bars, and the same bits on any number of threads."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crypto_qlib.backtest.engine import run_backtest, run_prepared
from crypto_qlib.backtest.inputs import prepare
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.venue.matching import NO_EXIT, STOP, TAKE_PROFIT
from tests.backtest.backtest_tapes import LOOSE, Tape, inputs

LEDGERS = ("series", "fills", "trades", "funding", "liquidations", "ambiguous", "vetoes", "veto_values", "open_positions")
WILD = Tape(3, n_bars=200, n_symbols=6, volatility=0.03, crash_at=60, basis=0.01, missing=0.05)


def digest(result: BacktestResult) -> str:
    return hashlib.sha256(b"".join(getattr(result, name).tobytes() for name in LEDGERS)).hexdigest()


def of_this_process() -> str:
    """Return the digest of the wild tape, isolated and cross (also called in processes of their own)."""
    runs = [inputs(WILD, LOOSE._replace(cross=cross, trailing_atr=2.0)) for cross in (False, True)]
    return "".join(digest(run_backtest(run)) for run in runs)


def test_runs_side_by_side_in_threads_are_the_same_bit_for_bit() -> None:
    run = prepare(inputs(WILD, LOOSE._replace(trailing_atr=2.0)))
    alone = digest(run_prepared(run))
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: digest(run_prepared(run)), range(12))) == {alone}


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bits() -> None:
    code = "from tests.backtest.test_engine_outputs import of_this_process as f; print(f())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NUMBA_NUM_THREADS": n, "OMP_NUM_THREADS": n}, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout.strip()
        for n in ("1", "2")
    }  # fmt: skip
    assert found == {of_this_process()}


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
def test_exposures_add_up_to_gross_and_net(cross: bool) -> None:
    result = run_backtest(dataclasses.replace(inputs(WILD, LOOSE._replace(cross=cross)), with_exposure=True))
    assert result.exposure.shape == (result.ts_open.size, 6)
    np.testing.assert_allclose(np.abs(result.exposure).sum(axis=1), result.series["gross"], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(result.exposure.sum(axis=1), result.series["net"], rtol=1e-12, atol=1e-9)
    assert ((result.exposure != 0.0).sum(axis=1) == result.series["n_open"]).all()


def test_the_bounds_of_ambiguous_bars_hold_what_the_other_order_would_have_given() -> None:
    near = {"min_take_distance": 0.02, "max_take_distance": 0.02, "min_stop_distance": 0.02, "max_stop_distance": 0.02}
    result = run_backtest(inputs(Tape(5, volatility=0.03), LOOSE._replace(**near, replace_margin=1.0)))
    rows = result.ambiguous[result.ambiguous["booked_kind"] == STOP]
    assert rows.size > 5
    assert (rows["kindest_kind"] == TAKE_PROFIT).all()
    trades = {int(t["trade"]): t for t in result.trades}
    stopped = {int(f["trade"]): f for f in result.fills[result.fills["kind"] == STOP]}
    for row in rows:
        t = trades[int(row["trade"])]
        side, qty = np.sign(t["lots"]), abs(t["qty"] / t["lots"] * stopped[int(row["trade"])]["lots"])
        assert row["gain"] == pytest.approx(side * qty * (row["kindest_price"] - row["booked_price"]))
        assert side * row["booked_price"] < side * t["entry_price"] < side * row["kindest_price"]
    entry_bars = result.ambiguous[result.ambiguous["booked_kind"] == NO_EXIT]
    assert (entry_bars["gain"] >= 0.0).all()
    assert result.best_case_gain == pytest.approx(result.ambiguous["gain"].sum())
    assert result.n_ambiguous_bars == result.ambiguous.size


def test_scores_without_probabilities_may_be_one_row_for_every_moment() -> None:
    run = inputs(WILD)
    unknown = np.full(run.scores.expected_return.shape, np.nan)
    told = dataclasses.replace(run, scores=dataclasses.replace(run.scores, win_probability=unknown))
    one = dataclasses.replace(
        run, scores=dataclasses.replace(run.scores, win_probability=np.broadcast_to(np.nan, unknown.shape))
    )
    assert prepare(one).win_probability.shape == (1, 6)
    assert digest(run_backtest(one)) == digest(run_backtest(told))
