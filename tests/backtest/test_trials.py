"""Reports beside each other are trials of one search: found, lined up by day, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crypto_qlib.analytics.inference import probabilistic_sharpe
from crypto_qlib.backtest.analysis_report import write_report
from crypto_qlib.backtest.trials import (
    comparable,
    compare,
    comparison_lines,
    daily_returns,
    read_curve,
    trial_figures,
    write_curves,
)
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.schema import Settings
from tests.backtest.test_analysis_report import panel, result

START = pd.Timestamp("2025-01-01", tz="UTC")


def write_run(folder: Path, returns: np.ndarray, *, data: str = "d1", start: pd.Timestamp = START) -> Path:  # type: ignore[type-arg]
    """Write the equity of a run of four-hour bars as a report keeps it."""
    folder.mkdir(parents=True)
    ts = start + pd.Timedelta(hours=4) * np.arange(1, returns.size + 1)
    frame = pd.DataFrame({"ts_close": ts, "equity": 1e5 * np.cumprod(1.0 + returns)})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    run = {"run_id": folder.name, "data": data, "settings": f"s-{folder.name}"}
    pq.write_table(table.replace_schema_metadata({b"run": json.dumps(run).encode()}), folder / "equity.parquet")
    return folder


def noise(seed: int, drift: float = 0.0, n: int = 6 * 200) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(drift, 0.004, n)


def test_a_days_return_ends_at_midnight(tmp_path: Path) -> None:
    four_hours = np.array([0.1, 0, 0, 0, 0, 0, 0.2, 0, 0, 0, 0, 0, -0.5, 0, 0, 0, 0, 0])
    curve = read_curve(write_run(tmp_path / "a", four_hours))
    assert curve.day.size == 3
    np.testing.assert_allclose(curve.equity, [1.1e5, 1.32e5, 0.66e5])
    np.testing.assert_allclose(daily_returns([curve])[:, 0], [0.2, -0.5])


def test_only_other_runs_on_the_same_data_and_days_count_and_twins_once(tmp_path: Path) -> None:
    chosen = write_run(tmp_path / "a", noise(1))
    write_run(tmp_path / "b", noise(2))
    write_run(tmp_path / "same-curve", noise(2))  # the same settings after a change of code
    write_run(tmp_path / "other-data", noise(3), data="d2")
    write_run(tmp_path / "short", noise(4)[: 6 * 100])
    write_run(tmp_path / "longer", noise(5, n=6 * 230), start=START - pd.Timedelta(days=20))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "equity.parquet").write_bytes(b"PAR1")
    found = comparable(read_curve(chosen), tmp_path)
    assert [c.run_id for c in found] == ["a", "b", "longer"]


def test_every_run_of_a_grid_is_a_trial_of_the_single_run_beside_it(tmp_path: Path) -> None:
    """The same run as a report and within the grid counts once; a grid on other data, or cut short, not at all."""
    chosen = read_curve(write_run(tmp_path / "a", noise(1)))
    others = {name: read_curve(write_run(tmp_path / "elsewhere" / name, noise(seed))) for seed, name in enumerate("bcd", 2)}
    curves = {c.run_id: (c.day, c.equity) for c in (chosen, *others.values())}
    for name, data in (("one", "d1"), ("two", "d2"), ("broken", "d1")):
        folder = tmp_path / "grid" / name
        folder.mkdir(parents=True)
        path = write_curves(folder, {"run_id": "varied", "data": data}, curves)
        if name == "broken":
            path.write_bytes(path.read_bytes()[:100])
    found = comparable(chosen, tmp_path)
    assert [c.run_id for c in found] == ["a", "b", "c", "d"]
    figures = trial_figures(found)
    assert figures is not None
    assert figures["n_trials"] == 4


def test_the_best_of_many_useless_runs_is_deflated(tmp_path: Path) -> None:
    for seed in range(30):
        write_run(tmp_path / f"r{seed:02}", noise(seed))
    curves = [read_curve(folder) for folder in sorted(tmp_path.iterdir())]
    returns = daily_returns(curves)
    best = int(np.argmax(returns.mean(axis=0) / returns.std(axis=0)))
    found = trial_figures(comparable(curves[best], tmp_path))
    assert found is not None
    assert found["n_trials"] == 30
    assert found["is_best"]
    assert found["sharpe"] > 1.0
    assert found["deflated_sharpe"] < 0.8
    assert probabilistic_sharpe(returns[:, best]) > 0.9, "alone it would have looked like skill"
    assert 0.2 < found["probability_of_overfitting"] < 0.8


def test_a_run_alone_is_no_choice(tmp_path: Path) -> None:
    assert trial_figures([read_curve(write_run(tmp_path / "a", noise(1)))]) is None


def test_runs_are_compared_best_first(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, noise(k, drift)) for k, (name, drift) in enumerate((("bad", -1e-4), ("good", 4e-4)))]
    same = {"store": {"root": "here"}, "model": {"name": "linear"}}
    for folder, leverage in zip(folders, (2.0, 5.0), strict=True):
        figures = {
            "returns": {"total_return": 0.5, "max_drawdown": 0.1}, "trades": {"count": 7}, "liquidations": {"count": 1},
            "settings": {**same, "strategy": {"leverage": leverage, "max_open": 3}},
        }  # fmt: skip
        (folder / "multi_asset_performance.json").write_text(json.dumps(figures))
    folders.append(write_run(tmp_path / "bare", noise(9, -3e-4)))  # nothing but the equity
    got = compare(folders)
    assert [row["run_id"] for row in got.rows] == ["good", "bad", "bare"]
    assert got.rows[0]["differs"]["strategy.leverage"] == "5.0"
    text = comparison_lines(got)
    assert "3 runs over the 200 days" in text[0]
    assert [line.split()[0] for line in text[1:5]] == ["run", "good", "bad", "bare"]
    assert "strategy.leverage=2.0" in text[3]
    assert "n/a" in text[4]
    assert "deflated Sharpe ratio" in text[5]
    assert (got.rows[0]["trades"], got.rows[0]["liquidations"], got.rows[0]["total_return"]) == (7, 1, 0.5)
    assert got.rows[2]["trades"] is None
    assert got.n_days == 200
    assert got.judged is not None
    assert got.judged["is_best"]


def test_what_cannot_be_compared_is_one_clear_error(tmp_path: Path) -> None:
    early, late = write_run(tmp_path / "a", noise(1)), write_run(tmp_path / "b", noise(2), start=START + pd.Timedelta(days=500))
    with pytest.raises(UserError, match="share fewer than four days"):
        compare([early, late])
    with pytest.raises(UserError, match="no report in"):
        compare([early, tmp_path / "nowhere"])
    (late / "multi_asset_performance.json").write_text("{")
    with pytest.raises(UserError, match=r"multi_asset_performance.json cannot be read"):
        compare([late, late])
    (early / "equity.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read"):
        compare([early, late])


def test_a_report_says_how_many_runs_lie_beside_it(tmp_path: Path) -> None:
    run = result()
    # the hand-made run lasts two days: long enough to be found, too short to be judged
    stamp = {"run_id": "second", "data": "d"}
    write_report(run, panel(), Settings(), {"run_id": "first", "data": "d"}, None, tmp_path / "first")
    run.series["equity"] *= 1.01
    files = write_report(run, panel(), Settings(), stamp, None, tmp_path / "second")
    assert [c.run_id for c in comparable(read_curve(tmp_path / "second"), tmp_path)] == ["second", "first"]
    assert files.figures["trials"] is None
    assert "Chosen among many" not in files.page.read_text()
