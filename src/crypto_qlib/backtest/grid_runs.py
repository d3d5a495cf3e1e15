"""What a grid of backtests consists of: axes of settings, one run for each combination, and the row each run leaves.

``strategy.max_open=5,10`` is an axis; the grid is the product of its axes. Only what is decided after the scores are made can
vary: settings of the strategy and the backtest. A run carries the very id a single run with its settings has.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from crypto_qlib.analytics.performance import equity_statistics, last_of_each, returns_from_equity
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult, at_closes_of
from crypto_qlib.backtest.run_backtest_leveraged import execution_of
from crypto_qlib.backtest.streaming import run_on_bars_of
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.portfolio.rules import rules_from_settings
from crypto_qlib.settings.load import with_overrides
from crypto_qlib.settings.schema import Settings

MAY_VARY: Final = ("strategy.", "backtest.")
FIXED: Final = ("backtest.segment",)
"""Settings of those sections that change which scores are traded."""
MOST_RUNS: Final = 100_000
_FEWEST_DAYS: Final = 60
"""Days from which daily returns are kept; below, those of every bar."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and the values it takes, as they are written on the command line."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GridRun:
    """One combination.

    Parameters
    ----------
    run_id : str
        Id of the run, that of a single backtest with the same settings.
    overrides : tuple of str
        ``section.key=value``, one for each axis.
    settings : Settings
        The settings with them.
    """

    run_id: str
    overrides: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class RunRow:
    """What is kept of one run.

    Parameters
    ----------
    run_id : str
        Its id.
    figures : dict
        Name -> number; fractions, USDT and counts.
    digest : str
        Hash of equity, fills and trades: equal digests are equal runs, bit for bit.
    returns : (n_periods,) float64
        Returns by UTC day, or by bar where the run is shorter than two months.
    days : (n_days,) int64
        UTC days since the epoch.
    equity : (n_days,) float64
        Last equity of each, USDT.
    """

    run_id: str
    figures: dict[str, float]
    digest: str
    returns: FloatArray
    days: IntArray
    equity: FloatArray


def parse_axis(text: str) -> Axis:
    """Return the axis ``section.key=value,value`` describes; commas inside ``[...]`` belong to a value.

    Raises
    ------
    UserError
        If it is not of that form, names a value twice, or a setting that cannot vary after the scores are made.
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    values = _split(rest)
    if not equals or not key or not values or "" in values:
        raise UserError(f"--vary {text} is not of the form section.key=value,value", "for example strategy.max_open=5,10")
    if not key.startswith(MAY_VARY) or key in FIXED:
        raise UserError(
            f"--vary {key}: a grid runs on scores that are made already, so it varies strategy.* and backtest.* only",
            "change anything else with --set, once for the whole grid",
        )
    doubled = {v for v in values if values.count(v) > 1}
    if doubled:
        raise UserError(f"--vary {key}: {min(doubled)} is given twice", "name every value once")
    return Axis(key, tuple(values))


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def grid_runs(axes: Sequence[Axis], settings: Settings, run_id_of: Callable[[Settings], str]) -> list[GridRun]:
    """Return one run for each combination of the axes' values, in the order of the axes; every setting is checked here.

    Raises
    ------
    UserError
        If there is no axis, one is named twice, a value is not allowed, or there are too many runs.
    """
    keys = [axis.key for axis in axes]
    if not keys:
        raise UserError("a grid needs something to vary", "for example --vary strategy.max_open=5,10")
    if len(set(keys)) < len(keys):
        raise UserError("a setting is varied twice", "give all its values in one --vary")
    n_runs = math.prod(len(axis.values) for axis in axes)
    if n_runs > MOST_RUNS:
        raise UserError(f"a grid of {n_runs:,} runs is too many", f"stay below {MOST_RUNS:,}")
    runs = []
    for values in itertools.product(*(axis.values for axis in axes)):
        overrides = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        varied = with_overrides(settings, overrides, "--vary")
        runs.append(GridRun(run_id_of(varied), overrides, varied))
    return runs


def run_one(inputs: BacktestInputs, run: GridRun, lake: Path | None = None) -> RunRow:
    """Run one combination on the grid's market and scores: the same call a single backtest makes.

    ``lake`` is the root of the lake that has the bars of ``backtest.execution_frame``, where that is finer than the bars
    decided on. Figures and returns are those at the closes of the bars decided on, as in a single run's report.

    Raises
    ------
    UserError
        As :func:`~crypto_qlib.backtest.streaming.run_on_bars_of`; it names the combination.
    """
    backtest = run.settings.backtest
    varied = replace(
        inputs,
        rules=rules_from_settings(run.settings),
        initial_equity=backtest.initial_equity,
        execution=execution_of(backtest),
        fees=backtest.costs.fees(),
        blacklist=run.settings.strategy.blacklist,
        with_exposure=False,
        veto_log_rows=0,
    )
    try:
        whole = run_on_bars_of(backtest.execution_frame, varied, lake)
    except UserError as e:
        raise UserError(f"{', '.join(run.overrides)}: {e.message}", e.hint) from e
    result = at_closes_of(whole, inputs.panel.frame_ns)
    day = (result.ts_close - 1) // NS_PER_DAY
    days, equity = np.unique(day), last_of_each(day, result.equity)
    return RunRow(run.run_id, _figures(result), result_digest(whole), _returns(result), days, equity)


def result_digest(result: BacktestResult) -> str:
    """Return a hash of equity, fills and trades of a run, bit for bit."""
    digest = hashlib.sha256()
    for rows in (result.equity, result.fills, result.trades):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:16]


def _figures(result: BacktestResult) -> dict[str, float]:
    ts = np.concatenate([result.ts_open[:1], result.ts_close])
    equity = np.concatenate([[result.initial_equity], result.equity])
    curve = equity_statistics(ts, equity, result.frame_ns)
    trades, fills, series = result.trades, result.fills, result.series
    net = trades["pnl"] - trades["fee"] + trades["funding"] - trades["penalty"] + trades["overshoot"]
    won, lost = float(net[net > 0.0].sum()), float(-net[net < 0.0].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        leverage = np.where(series["equity"] > 0.0, series["gross"] / series["equity"], 0.0)
    return {
        "final_equity": result.final_equity,
        "total_return": curve.total_return,
        "annual_return": curve.annual_return,
        "sharpe": curve.sharpe,
        "sortino": curve.sortino,
        "calmar": curve.calmar,
        "max_drawdown": curve.max_drawdown,
        "trades": float(trades.size),
        "win_rate": float(np.mean(net > 0.0)) if net.size else math.nan,
        "profit_factor": won / lost if lost > 0.0 else math.nan,
        "mean_leverage": float(leverage.mean()) if leverage.size else math.nan,
        "liquidations": float(result.liquidations.size),
        "fees": float(fills["fee"].sum()),
        "funding": float(result.funding["amount"].sum()),
        "ambiguous_bars": float(result.n_ambiguous_bars),
        "refusals": float(sum(result.veto_counts.values())),
    }


def _returns(result: BacktestResult) -> FloatArray:
    equity = result.equity
    days = (result.ts_close - 1) // NS_PER_DAY
    if int(days[-1] - days[0]) >= _FEWEST_DAYS:
        equity = last_of_each(days, equity)
    return returns_from_equity(np.concatenate([[result.initial_equity], equity]))


class Journal:
    """The finished runs of a folder, one file each, written whole or not at all: whoever is killed loses nothing finished.

    Parameters
    ----------
    folder : Path
        Where the files lie; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: RunRow) -> None:
        """Keep ``row``."""
        text = json.dumps({"run_id": row.run_id, "digest": row.digest, "figures": row.figures})
        scratch = self._folder / f".{row.run_id}.{os.getpid()}.tmp"
        with scratch.open("wb") as file:
            np.savez(file, row=np.frombuffer(text.encode(), np.uint8), returns=row.returns, days=row.days, equity=row.equity)
        scratch.replace(self._folder / f"{row.run_id}.npz")

    def read(self, run_id: str) -> RunRow | None:
        """Return the row of a run, or ``None`` where it is not finished; a damaged file counts as not finished."""
        try:
            with (self._folder / f"{run_id}.npz").open("rb") as raw, np.load(raw) as file:
                kept: dict[str, Any] = json.loads(file["row"].tobytes())
                return RunRow(kept["run_id"], kept["figures"], kept["digest"], file["returns"], file["days"], file["equity"])
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
            return None
