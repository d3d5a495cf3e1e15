"""What a grid leaves for people: a table (parquet and terminal), heat maps, and the verdict on the best run."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crypto_qlib.backtest.grid import GridResult
from crypto_qlib.backtest.grid_runs import Axis
from crypto_qlib.backtest.trials import write_curves
from crypto_qlib.core.market import FloatArray

TABLE: Final = "grid.parquet"
PICTURE: Final = "grid.png"
VERDICT: Final = "grid.json"
"""Names of the files; :data:`~crypto_qlib.backtest.trials.CURVES_FILE` beside them holds every run's equity by day."""

MEASURES: Final = (("sharpe", "Sharpe ratio"), ("total_return", "total return"), ("max_drawdown", "largest drawdown"))
"""Figures drawn as heat maps, and their titles."""
_SHOWN: Final = 10
_COLUMNS: Final = (
    ("total_return", "return", "{:+.1%}"),
    ("sharpe", "Sharpe", "{:.2f}"),
    ("max_drawdown", "drawdown", "{:.1%}"),
    ("trades", "trades", "{:.0f}"),
    ("win_rate", "won", "{:.0%}"),
    ("mean_leverage", "leverage", "{:.2f}"),
    ("liquidations", "liquidated", "{:.0f}"),
)
_MOST_CELLS_WITH_TEXT: Final = 120


@dataclass(frozen=True, slots=True)
class GridFiles:
    """Where the files lie."""

    table: Path
    picture: Path
    verdict: Path


def grid_frame(result: GridResult) -> pd.DataFrame:
    """Return one row a run: the varied settings as written, the figures, run id and digest."""
    rows = []
    for run, row in zip(result.runs, result.rows, strict=True):
        varied = dict(override.split("=", 1) for override in run.overrides)
        rows.append({**varied, **row.figures, "run_id": row.run_id, "digest": row.digest})
    return pd.DataFrame(rows)


def write_grid(result: GridResult, stamp: dict[str, Any], folder: Path) -> GridFiles:
    """Write table, picture and verdict to ``folder`` and return where they lie.

    Parameters
    ----------
    stamp : dict
        Identity of the run whose settings the grid varies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = GridFiles(folder / TABLE, folder / PICTURE, folder / VERDICT)
    grid_frame(result).to_parquet(files.table, index=False)
    write_curves(folder, stamp, {row.run_id: (row.days, row.equity) for row in result.rows})
    best = result.runs[result.verdict.best]
    verdict = {
        "run": stamp,
        "axes": {axis.key: list(axis.values) for axis in result.axes},
        "best": {"overrides": list(best.overrides), "run_id": best.run_id, **result.rows[result.verdict.best].figures},
        "verdict": {name: _or_none(value) for name, value in asdict(result.verdict).items()},
    }
    files.verdict.write_text(json.dumps(verdict, indent=1, default=float))
    draw_grid(result, files.picture)
    return files


def grid_lines(result: GridResult, files: GridFiles) -> tuple[str, ...]:
    """Return the best runs as a table, and what the best is worth, for the terminal."""
    order = sorted(range(len(result.rows)), key=lambda k: -_rank_value(result.rows[k].figures["sharpe"]))
    heads = [axis.key for axis in result.axes] + [name for _, name, _ in _COLUMNS]
    cells = [
        [override.split("=", 1)[1] for override in result.runs[k].overrides]
        + [_text(form, result.rows[k].figures[key]) for key, _, form in _COLUMNS]
        for k in order[:_SHOWN]
    ]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [heads, *cells]]
    if len(order) > _SHOWN:
        lines.append(f"... and {len(order) - _SHOWN:,} more runs in {files.table}")
    reused = f" ({result.n_reused:,} of them from the journal)" if result.n_reused else ""
    v = result.verdict
    lines.append(
        f"{v.n_trials:,} runs{reused}; the best of so many useless ones would show a Sharpe ratio per period of "
        f"{v.expected_best:.3f}, this best one shows {v.sharpe:.3f}"
    )
    lines.append(
        f"probability that the best run is better than luck (deflated Sharpe ratio): {_text('{:.0%}', v.deflated_sharpe)}; "
        f"probability of overfitting: {_text('{:.0%}', v.probability_of_overfitting)}"
    )
    lines.append(f"table {files.table}, picture {files.picture}")
    return tuple(lines)


def draw_grid(result: GridResult, path: Path) -> None:
    """Draw each measure: one axis as a line, more as heat maps of every pair of axes, the mean over the others in each cell."""
    frame = grid_frame(result)
    pairs = list(itertools.combinations(result.axes, 2))
    rows = max(len(pairs), 1)
    figure: Any = Figure(figsize=(14, 1.0 + 3.9 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, len(MEASURES), squeeze=False)
    for column, (measure, title) in enumerate(MEASURES):
        if not pairs:
            _draw_line(grid[0, column], frame, result.axes[0], measure, title)
        for row, pair in enumerate(pairs):
            _draw_heat(figure, grid[row, column], frame, pair, measure, title)
    figure.suptitle(
        f"{len(result.rows):,} runs, {', '.join(axis.key for axis in result.axes)}", x=0.01, ha="left", weight="bold"
    )
    figure.savefig(path)


def _draw_line(axes: Any, frame: pd.DataFrame, axis: Axis, measure: str, title: str) -> None:
    values = [float(frame.loc[frame[axis.key] == v, measure].mean()) for v in axis.values]
    axes.plot(range(len(values)), values, marker="o", color="#0072b2")
    axes.set_xticks(range(len(values)), axis.values)
    axes.set_xlabel(axis.key)
    axes.set_title(title, loc="left")
    axes.grid(color="#e6e8ec")


def _draw_heat(figure: Any, axes: Any, frame: pd.DataFrame, pair: Sequence[Axis], measure: str, title: str) -> None:
    across, down = pair
    table: FloatArray = np.array(
        [
            [frame.loc[(frame[across.key] == x) & (frame[down.key] == y), measure].mean() for x in across.values]
            for y in down.values
        ],
        np.float64,
    )
    finite = table[np.isfinite(table)]
    reach = float(np.max(np.abs(finite))) if finite.size else 1.0
    # Signed figures get a map with a middle; the drawdown is never negative and is worse the darker.
    is_signed = measure != "max_drawdown"
    colours = {"cmap": "PuOr", "vmin": -reach, "vmax": reach} if is_signed else {"cmap": "Oranges", "vmin": 0.0, "vmax": reach}
    image = axes.imshow(table, aspect="auto", origin="lower", **colours)
    axes.set_xticks(range(len(across.values)), across.values, rotation=45 if len(across.values) > 8 else 0)  # noqa: PLR2004
    axes.set_yticks(range(len(down.values)), down.values)
    axes.set_xlabel(across.key)
    axes.set_ylabel(down.key)
    axes.set_title(title, loc="left")
    if table.size <= _MOST_CELLS_WITH_TEXT:
        form = "{:.2f}" if measure == "sharpe" else "{:.0%}"
        middle = reach * 0.6
        for (i, j), value in np.ndenumerate(table):
            dark = abs(value) > middle
            axes.text(j, i, _text(form, value), ha="center", va="center", fontsize=8, color="white" if dark else "#20242a")
    figure.colorbar(image, ax=axes, shrink=0.85)


def _text(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _rank_value(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
