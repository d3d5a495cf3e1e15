"""How many runs were tried before this one was liked? Reports beside each other, on the same data, judged together.

Every report keeps its equity and the identity of its run. Runs on the same data over the same days are trials of one search,
however they came about: what the best of them shows is partly luck, and the more there were the more of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crypto_qlib.analytics.inference import judge_trials
from crypto_qlib.analytics.performance import FloatArray, IntArray, last_of_each, returns_from_equity, sharpe
from crypto_qlib.backtest.report_words import number, percent
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError

EQUITY_FILE: Final = "equity.parquet"
CURVES_FILE: Final = "curves.parquet"
"""Equity by day of every run of a grid, one column a run, in the grid's folder ``reports/grid/NAME``."""
FIGURES_FILE: Final = "multi_asset_performance.json"
_DAYS: Final = 365.0
_LEAST_DAYS: Final = 3
_LEAST_SHARED: Final = 0.9
"""Share of a run's days that another must cover to count as a trial of the same search."""


@dataclass(frozen=True, slots=True)
class RunCurve:
    """One report's equity by day.

    Parameters
    ----------
    folder : Path
        Where the report lies.
    run : dict
        Identity stamped into it.
    day : (n,) int64
        UTC days since the epoch, increasing.
    equity : (n,) float64
        Last equity of each day, USDT.
    """

    folder: Path
    run: dict[str, Any]
    day: IntArray
    equity: FloatArray

    @property
    def run_id(self) -> str:
        """Return the run's id, the folder's name where it has none."""
        return str(self.run.get("run_id") or self.folder.name)


def read_curve(folder: Path) -> RunCurve:
    """Return the equity of the report in ``folder``.

    Raises
    ------
    UserError
        If there is no report, or its file is damaged.
    """
    path = folder / EQUITY_FILE
    if not path.is_file():
        raise UserError(f"no report in {folder}", "name a folder that holds equity.parquet, or run `crypto-qlib backtest`")
    try:
        table = pq.read_table(path, columns=["ts_close", "equity"])
        run = json.loads((table.schema.metadata or {}).get(b"run", b"{}"))
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise UserError(f"{path} cannot be read: {e}", "write the report again") from e
    ts = table.column("ts_close").cast(pa.timestamp("ns", "UTC")).cast(pa.int64()).to_numpy()
    day = (ts - 1) // NS_PER_DAY  # a close at midnight ends the day
    return RunCurve(folder, run, last_of_each(day, day).astype(np.int64), last_of_each(day, table.column("equity").to_numpy()))


def comparable(chosen: RunCurve, reports: Path) -> list[RunCurve]:
    """Return the runs below ``reports`` on the same data and days as ``chosen``, itself first; equal curves count once.

    Runs are reports of their own, and every run of a grid.
    """
    data = chosen.run.get("data")
    found = [chosen]
    seen = {_fingerprint(chosen)}
    for other in _others(chosen, reports) if data else ():
        shared = np.isin(chosen.day, other.day).mean() if chosen.day.size else 0.0
        if other.run.get("data") == data and shared >= _LEAST_SHARED and _fingerprint(other) not in seen:
            seen.add(_fingerprint(other))
            found.append(other)
    return found


def _others(chosen: RunCurve, reports: Path) -> Iterator[RunCurve]:
    """Yield the curves of the other reports and of the grids below ``reports``; what cannot be read nobody has looked at."""
    for path in sorted(reports.glob(f"*/{EQUITY_FILE}")):
        if path.parent.resolve() != chosen.folder.resolve():
            with suppress(UserError):  # half-written by a run that was killed
                yield read_curve(path.parent)
    for path in sorted(reports.glob(f"grid/*/{CURVES_FILE}")):
        with suppress(pa.ArrowException, OSError, ValueError, KeyError):
            table = pq.read_table(path)
            run = json.loads((table.schema.metadata or {}).get(b"run", b"{}"))
            day = table.column("day").to_numpy()
            for run_id in table.column_names[1:]:
                yield RunCurve(path.parent, {**run, "run_id": run_id}, day, table.column(run_id).to_numpy())


def write_curves(folder: Path, stamp: dict[str, Any], curves: Mapping[str, tuple[IntArray, FloatArray]]) -> Path:
    """Keep (days, equity) of every run of a grid beside its table, stamped with ``stamp``; return where.

    The runs of a grid trade the same bars, so they have the same days.
    """
    day = next(iter(curves.values()))[0]
    table = pa.table({"day": day, **{run_id: equity for run_id, (_, equity) in curves.items()}})
    path = folder / CURVES_FILE
    pq.write_table(table.replace_schema_metadata({b"run": json.dumps(stamp, default=str).encode()}), path)
    return path


def _fingerprint(curve: RunCurve) -> bytes:
    return curve.day.tobytes() + curve.equity.tobytes()


def daily_returns(curves: Sequence[RunCurve]) -> FloatArray:
    """Return daily returns on the days all ``curves`` have, ``(n_days - 1, n_curves)``."""
    days = curves[0].day
    for curve in curves[1:]:
        days = np.intersect1d(days, curve.day)
    columns = [returns_from_equity(c.equity[np.isin(c.day, days)]) for c in curves]
    return np.column_stack(columns)


def trial_figures(curves: Sequence[RunCurve]) -> dict[str, Any] | None:
    """Return what the first of ``curves`` is worth given the others; ``None`` where there is no other or too few days.

    Sharpe ratios are of daily returns, annualised over 365 days.
    """
    if len(curves) < 2:  # noqa: PLR2004 - a choice needs two
        return None
    returns = daily_returns(curves)
    if returns.shape[0] < _LEAST_DAYS:
        return None
    judged = judge_trials(returns, chosen=0)
    return {
        "n_trials": judged.n_trials,
        "sharpe": sharpe(returns[:, 0], _DAYS),
        "expected_best_sharpe": judged.expected_best * _DAYS**0.5,
        "deflated_sharpe": judged.deflated_sharpe,
        "probability_of_overfitting": judged.probability_of_overfitting,
        "is_best": judged.chosen == judged.best,
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs next to each other.

    Parameters
    ----------
    rows : tuple of dict
        One run each: ``run_id``, ``folder``, figures of its whole report and ``differs``, the settings that are not the same in
        all of them; best Sharpe ratio on the shared days first.
    n_days : int
        Days all of them have.
    judged : dict | None
        What the best of them is worth given that the others were tried, see :func:`trial_figures`.
    """

    rows: tuple[dict[str, Any], ...]
    n_days: int
    judged: dict[str, Any] | None


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare the reports in ``folders``.

    Raises
    ------
    UserError
        If a folder holds no report, or they share no three days.
    """
    curves = [read_curve(folder) for folder in folders]
    returns = daily_returns(curves)
    if returns.shape[0] < _LEAST_DAYS:
        raise UserError("the runs share fewer than four days", "compare runs over the same time")
    ratios = [sharpe(returns[:, k], _DAYS) for k in range(len(curves))]
    order = sorted(range(len(curves)), key=lambda k: -np.nan_to_num(ratios[k], nan=-np.inf))
    figures = [_figures(curves[k]) for k in order]
    flat = [_flat(f.get("settings") or {}) for f in figures]
    varied = sorted(key for key in set().union(*flat) if len({f.get(key) for f in flat}) > 1)
    rows = tuple(
        _row(curves[k], ratios[k], f) | {"differs": {key: mine.get(key, "") for key in varied if not key.startswith("store.")}}
        for k, f, mine in zip(order, figures, flat, strict=True)
    )
    return Comparison(rows, returns.shape[0] + 1, trial_figures([curves[k] for k in order]))


def comparison_lines(found: Comparison) -> tuple[str, ...]:
    """Return a comparison as a table for the terminal, and what the best run is worth given that the others were tried."""
    lines = [
        f"{len(found.rows)} runs over the {found.n_days:,} days all of them have; best Sharpe ratio of daily returns first"
    ]
    head = ("run", "Sharpe", "return", "drawdown", "trades", "fees", "slippage", "liquidated")
    cells = [head, *(_cells(row) for row in found.rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    for row, shown in zip(("", *found.rows), cells, strict=True):
        first, *rest = (text.rjust(width) for text, width in zip(shown, widths, strict=True))
        differs = ", ".join(f"{key}={value}" for key, value in row["differs"].items()) if isinstance(row, dict) else ""
        lines.append("  ".join((first.strip().ljust(widths[0]), *rest, differs)).rstrip())
    if found.judged is not None:
        sure, overfitted = found.judged["deflated_sharpe"], found.judged["probability_of_overfitting"]
        lines.append(
            f"probability that the best is better than luck {percent(sure)} (deflated Sharpe ratio), "
            f"of overfitting {percent(overfitted)}"
        )
    return tuple(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["run_id"]),
        number(row["sharpe_shared_days"]),
        percent(row["total_return"], sign=True),
        percent(row["max_drawdown"]),
        *("n/a" if row[key] is None else f"{row[key]:,.0f}" for key in ("trades", "fees", "slippage", "liquidations")),
    )


def _figures(curve: RunCurve) -> dict[str, Any]:
    path = curve.folder / FIGURES_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}", "write the report again") from e
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _row(curve: RunCurve, ratio: float, figures: dict[str, Any]) -> dict[str, Any]:
    returns, trades, costs = (figures.get(key) or {} for key in ("returns", "trades", "costs"))
    return {
        "run_id": curve.run_id,
        "folder": str(curve.folder),
        "settings": curve.run.get("settings", ""),
        "sharpe_shared_days": ratio,
        "total_return": returns.get("total_return"),
        "max_drawdown": returns.get("max_drawdown"),
        "trades": trades.get("count"),
        "fees": costs.get("fees"),
        "slippage": costs.get("slippage"),
        "liquidations": (figures.get("liquidations") or {}).get("count"),
    }
