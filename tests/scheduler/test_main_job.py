"""The main job as a whole: it ends with its files, repeats nothing, survives a kill, and is the same everywhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.workflow import R

from crypto_qlib.cli import main
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock, MarketPanel
from crypto_qlib.data_collector.qlib_data_adapter import init_qlib
from crypto_qlib.live_trading.instance import last_session
from crypto_qlib.live_trading.session_status import session_status
from crypto_qlib.modeling.registry import promote
from crypto_qlib.scheduler import pipeline_scheduler
from crypto_qlib.scheduler.pipeline_scheduler import Pipeline
from crypto_qlib.scheduler.reporter import SilentReporter
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.lake import TIME, Kind, Lake, Series
from crypto_qlib.store.paths import Paths
from tests.scheduler.conftest import SMALL, MakePipeline

NAMED_FILES = (
    "multi_asset_pnl_curve.png",
    "multi_asset_performance.json",
    "symbol_exposure_history.png",
    "liquidation_events.log",
    "report.html",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, list[str]]:
    root = tmp_path_factory.mktemp("whole")
    settings = load_settings(None, [f"store.root={root}", *SMALL], {})
    pipeline = Pipeline(settings, Secrets(), SilentReporter())
    return pipeline, pipeline.run().summary_lines()


def report_of(root: Path) -> Path:
    """Return the folder of the only backtest report below ``root``."""
    (page,) = root.glob("*/reports/*/report.html")
    return page.parent


def trades_of(root: Path) -> pd.DataFrame:
    return pd.read_parquet(report_of(root) / "trades.parquet")


def test_a_run_ends_with_every_file_the_user_was_promised(finished: tuple[Pipeline, list[str]]) -> None:
    folder = report_of(finished[0].settings.store.root)
    assert [name for name in NAMED_FILES if not (folder / name).stat().st_size] == []
    models = list(finished[0].paths.models.glob("*/model_performance_report.json"))
    assert len(models) == 1


def test_the_models_report_says_what_its_scores_earned(finished: tuple[Pipeline, list[str]]) -> None:
    pipeline = finished[0]
    (file,) = pipeline.paths.models.glob("*/model_performance_report.json")
    earned = json.loads(file.read_text())["details"]["portfolio"]
    figures = json.loads((report_of(pipeline.settings.store.root) / "multi_asset_performance.json").read_text())
    assert earned["sharpe"] == figures["returns"]["sharpe"]
    assert earned["max_drawdown"] == figures["returns"]["max_drawdown"]
    page = file.with_name("model_report.html").read_text()
    assert (file.parent / f"../../reports/{earned['run_id']}/report.html").is_file()
    assert f"../../reports/{earned['run_id']}/report.html" in page


def test_the_summary_speaks_of_everything_a_person_asks(finished: tuple[Pipeline, list[str]]) -> None:
    text = "\n".join(finished[1])
    for word in (
        "RankIC",
        "Return",
        "Sharpe",
        "drawdown",
        "Turnover",
        "fees",
        "funding",
        "Liquidations",
        "Open positions",
        "Report",
    ):
        assert word in text, word
    assert "invented prices" in text


def test_it_traded_and_the_paper_session_too(finished: tuple[Pipeline, list[str]]) -> None:
    assert len(trades_of(finished[0].settings.store.root)) > 10
    assert any(line.startswith("paper session") and " 0 fills" not in line for line in finished[1])
    session = json.loads((report_of(finished[0].settings.store.root) / "paper_performance.json").read_text())
    assert session["run"]["run_id"] == report_of(finished[0].settings.store.root).name
    assert session["costs"]["traded_notional"] > 0.0
    a = session["attribution"]
    assert abs(a["unexplained"]) < 1e-3 * abs(a["total"]) + 1.0, "fills and settlements explain the change of equity"


def test_the_commands_of_a_session_reach_the_one_that_ran_and_its_gap_is_nil(
    finished: tuple[Pipeline, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = finished[0].settings
    # What a person does after a first run: look at the session, with the options it was run with or with the folder alone.
    chosen = [word for override in (f"store.root={settings.store.root}", *SMALL) for word in ("--set", override)]

    def said(*words: str) -> str:
        assert main.run([*chosen, "live", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "does not run" in said("status")
    assert "SaveDecided" in said("journal")
    assert "the journal alone gives the orders, positions and equity of the ledger" in said("journal", "--replay")
    gap = said("gap")
    # The session lived through what the backtest makes of the same bars: no cause adds anything.
    parts = re.findall(r"^  (data|signal|fill|fee|funding|latency) +([+-][\d,.]+)  ", gap, re.MULTILINE)
    assert len(parts) == 6, gap
    assert all(abs(float(value.replace(",", ""))) < 1.0 for _, value in parts), gap
    assert last_session(Paths(settings.store.root).live, "embedded") is not None


def test_a_session_that_runs_is_halted_resumed_and_stopped_from_other_processes(
    finished: tuple[Pipeline, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished[0].settings.store.root, root)
    kill_file = root / "live" / "HALT"
    chosen = [word for override in (f"store.root={root}", *SMALL) for word in ("--set", override)]
    command = [sys.executable, "-m", "crypto_qlib", *chosen, "live"]

    def said(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def until(words: str) -> None:
        end = time.monotonic() + 120.0
        while True:
            card = last_session(root / "live", "embedded")
            if card is not None and Path(card[0].ledger).exists() and words in "\n".join(session_status(*card).lines()):
                return
            assert session.poll() is None, session.communicate()
            assert time.monotonic() < end, words
            time.sleep(0.2)

    start = [*command, "start", "--mode", "embedded", "--bars", "20000"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as session:
        try:
            until(f"runs, process {session.pid}")
            assert "mode HALTED" in said("halt")
            assert "operator asks for HALTED" in said("status")
            kill_file.write_text("")
            until("kill_file asks for HALTED")
            session.send_signal(signal.SIGUSR1)
            until("signal asks for HALTED")
            kill_file.unlink()
            assert "mode ACTIVE" in said("resume")
            said("stop", "--leave")
            assert session.wait(120) == 0
        finally:
            session.kill()


def test_every_artefact_of_the_run_carries_its_id(finished: tuple[Pipeline, list[str]]) -> None:
    folder = report_of(finished[0].settings.store.root)
    figures = json.loads((folder / "multi_asset_performance.json").read_text())
    assert figures["run"]["run_id"] == folder.name
    assert folder.name in (folder / "report.html").read_text()
    assert folder.name in (folder / "liquidation_events.log").read_text()


def test_qlib_reads_the_store_with_its_own_expressions(finished: tuple[Pipeline, list[str]]) -> None:
    pipeline = finished[0]
    init_qlib(pipeline.paths)
    got = D.features(["BTCUSDT"], ["$close", "Mean($close, 24)"], freq="60min")
    panel = pipeline.data.panel()
    close = panel.close[:, panel.symbols.index("BTCUSDT")]
    np.testing.assert_allclose(got["$close"].to_numpy(), close.astype(np.float32), rtol=1e-6)
    mean = pd.Series(close).rolling(24, min_periods=1).mean()
    np.testing.assert_allclose(got["Mean($close, 24)"].to_numpy(), mean, rtol=1e-5)


def test_a_qlib_user_finds_the_training_with_qlibs_recorder(finished: tuple[Pipeline, list[str]]) -> None:
    pipeline = finished[0]
    init_qlib(pipeline.paths)
    (run_id,) = (p.name for p in pipeline.paths.models.iterdir() if (p / "model.json").is_file())
    (recorder,) = R.list_recorders(experiment_name="crypto_qlib").values()
    assert (recorder.name, recorder.status) == (run_id, "FINISHED")
    assert recorder.list_params()["horizon_bars"] == str(pipeline.settings.model.horizon_bars)
    assert recorder.list_metrics()["trees"] >= 1.0


def test_running_again_fetches_and_builds_nothing(finished: tuple[Pipeline, list[str]]) -> None:
    root = finished[0].settings.store.root
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and "paper_ledger" not in p.name}
    again = Pipeline(finished[0].settings, Secrets(), SilentReporter())
    assert again.data.is_hot(), "a run leaves the panel mapped: whoever comes next does not open the lake's month files"
    lines = again.run().summary_lines()
    assert next(line for line in lines if line.startswith("data:")).endswith("0 new rows, 0 corrected")
    unchanged = {line.partition(":")[0] for line in again.workspace.reporter.lines if line.endswith("unchanged")}  # type: ignore[attr-defined]
    assert unchanged >= {"data check", "qlib store", "features", "train", "backtest and report"}
    rebuilt = [
        p for p, mtime in before.items() if p.stat().st_mtime_ns != mtime and p.suffix in (".npy", ".txt", ".html", ".bin")
    ]
    assert [p for p in rebuilt if "model" in p.parts or "reports" in p.parts or "features" in p.parts] == []


def test_a_changed_strategy_repeats_the_backtest_and_not_the_training(finished: tuple[Pipeline, list[str]]) -> None:
    settings = load_settings(None, [f"store.root={finished[0].settings.store.root}", *SMALL, "strategy.max_open=2"], {})
    changed = Pipeline(settings, Secrets(), SilentReporter())
    changed.train()
    changed.backtest()
    compared = "\n".join(changed.compare().lines)
    assert "2 runs over" in compared
    assert "strategy.max_open=2" in compared
    shutil.rmtree(changed.paths.reports / json.loads((changed.paths.steps / "backtest.json").read_text())["key"])
    said = changed.workspace.reporter.lines  # type: ignore[attr-defined]
    assert "train: unchanged" in said
    assert "backtest and report: unchanged" not in said


def test_missing_funding_of_the_time_traded_is_told_before_the_training(
    finished: tuple[Pipeline, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished[0].settings.store.root, root)
    settings = load_settings(None, [f"store.root={root}", *SMALL, "model.num_boost_round=16"], {})
    pipeline = Pipeline(settings, Secrets(), SilentReporter())
    whole = pipeline.data.panel()
    funding = whole.funding_rate.copy()
    funding[-60:, 3] = np.nan
    monkeypatch.setattr(pipeline.data, "panel", lambda: dataclasses.replace(whole, funding_rate=funding))
    with pytest.raises(UserError, match=f"^{whole.symbols[3]}: no funding settlement between"):
        pipeline.run()
    said = pipeline.workspace.reporter.lines  # type: ignore[attr-defined]
    assert not any(line.startswith("train") for line in said), said


def test_the_same_id_gives_the_same_trades_in_another_workspace(
    finished: tuple[Pipeline, list[str]], make_pipeline: MakePipeline
) -> None:
    other = make_pipeline()
    other.run()
    first, second = report_of(finished[0].settings.store.root), report_of(other.settings.store.root)
    assert first.name == second.name
    pd.testing.assert_frame_equal(
        pd.read_parquet(first / "trades.parquet"), pd.read_parquet(second / "trades.parquet"), check_exact=True
    )


@pytest.mark.timeout(600)
def test_a_run_killed_again_and_again_ends_with_the_same_trades(finished: tuple[Pipeline, list[str]], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "crypto_qlib", "run", "--set", f"store.root={tmp_path}"]
    for override in SMALL:
        arguments += ["--set", override]
    lives = iter(np.random.default_rng(11).uniform(2.0, 14.0, 6))
    for seconds in lives:
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=float(seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = report_of(finished[0].settings.store.root), report_of(tmp_path)
    assert first.name == second.name
    pd.testing.assert_frame_equal(trades_of(finished[0].settings.store.root), trades_of(tmp_path), check_exact=True)


@pytest.mark.parametrize("trades", ["champion", "auto"])
def test_a_session_trades_the_model_that_the_settings_name(
    trades: str, finished: tuple[Pipeline, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished[0].settings.store.root, root)
    given = [f"store.root={root}", *SMALL, "live.paper_bars=1", "model.tracking=off"]
    other = Pipeline(load_settings(None, [*given, "model.num_boost_round=3"], {}), Secrets(), SilentReporter())
    other.train()
    champion = other._model()
    promote(other.paths.models, champion.identity)
    pipeline = Pipeline(load_settings(None, [*given, f"model.trades={trades}"], {}), Secrets(), SilentReporter())
    own = pipeline._model().sha256
    assert own != champion.sha256
    pipeline.paper()
    newest = max(root.glob("*/reports/*/paper_performance.json"), key=lambda p: p.stat().st_mtime_ns)
    wanted = champion.sha256 if trades == "champion" else own  # auto: at the embedded exchange what the settings train
    assert json.loads(newest.read_text())["run"]["model"] == wanted
    asked = []
    monkeypatch.setattr(pipeline_scheduler, "opinion", lambda model, _side: asked.append(model.sha256))
    monkeypatch.setattr(pipeline_scheduler, "lived_market", lambda *given: given[:3])
    with pytest.raises(AttributeError):  # there is no session to re-simulate here
        pipeline.session_gap("s", None, (None, None))  # type: ignore[arg-type]
    assert asked == [wanted], "its gap is measured against the same model"


def test_a_backtest_decides_on_hours_and_trades_on_the_finer_bars_collected(
    finished: tuple[Pipeline, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished[0].settings.store.root, root)
    overrides = [f"store.root={root}", *SMALL, "backtest.execution_frame=15m"]
    pipeline = Pipeline(load_settings(None, overrides, {}), Secrets(), SilentReporter())
    with pytest.raises(UserError, match=r"the lake has no candles 15m bars.*--frames 15m"):
        pipeline.backtest()
    with pytest.raises(UserError, match=r"strategy\.max_open=2: .* the lake has no candles 15m bars"):
        pipeline.grid(["strategy.max_open=2,4"], workers=1)
    lake, panel = Lake(pipeline.paths.lake), pipeline.data.panel()
    for j, symbol in enumerate(panel.symbols):
        lake.write_bars(Kind.CANDLES, "15m", symbol, quarters(panel, j))
    pipeline.backtest()
    pipeline.grid(["backtest.execution_frame=1h,15m"], workers=2)
    pages = {p.parent for p in root.glob("*/reports/*/report.html")}
    (folder,) = (p for p in pages if "15m" in (p / "multi_asset_performance.json").read_text())
    equity = pd.read_parquet(folder / "equity.parquet")
    assert equity["ts_close"].diff().dropna().unique() == [pd.Timedelta("15min")]
    fills = pd.read_parquet(folder / "fills.parquet")
    assert (fills.loc[fills["reason"] == "entry", "ts"].dt.minute == 0).all(), "decisions are hourly"
    figures = json.loads((folder / "multi_asset_performance.json").read_text())
    assert (figures["what_if"]["frame"], figures["what_if"]["traded_frame"]) == ("1h", "15m")
    assert (folder / "report.html").read_text().count("it traded on bars of 15m") == 3, "above, at capacity and at ruin"
    (table,) = root.glob("*/reports/grid/*/grid.parquet")
    by_frame = pd.read_parquet(table).set_index("backtest.execution_frame")
    assert by_frame.loc["15m", "run_id"] == folder.name
    assert by_frame.loc["15m", "final_equity"] == equity["equity"].iloc[-1]
    assert by_frame.loc["15m", "sharpe"] == pytest.approx(figures["returns"]["sharpe"], rel=1e-12)
    assert by_frame["digest"].nunique() == 2
    assert figures["attribution"]["total"] == pytest.approx(equity["equity"].iloc[-1] - 100_000.0)
    short = lake.read_bars(Kind.CANDLES, "15m", "BTCUSDT")
    lake.replace(Series(Kind.CANDLES, "15m", "BTCUSDT"), {TIME: short.ts_open[:5], **{n: getattr(short, n)[:5] for n in BAR}})
    (folder / "report.html").unlink()
    with pytest.raises(UserError, match=r"BTCUSDT: 15m bars from .* do not cover"):
        pipeline.backtest()


BAR = ("open", "high", "low", "close", "volume", "quote_volume")


def quarters(panel: MarketPanel, j: int) -> BarBlock:
    """Return four bars for each hour: its low in the second, its high in the third, its close at the end of the last."""
    there = np.isfinite(panel.close[:, j])
    o, h, lo, c, v, q = (getattr(panel, name)[there, j] for name in BAR)
    ts = panel.ts_open[there][:, None] + NS_PER_HOUR // 4 * np.arange(4)
    open_ = np.stack([o, o, lo, h], axis=1)
    close = np.stack([o, lo, h, c], axis=1)
    rows = (
        open_,
        np.maximum(open_, close),
        np.minimum(open_, close),
        close,
        *(np.stack([a / 4.0] * 4, axis=1) for a in (v, q)),
    )
    return BarBlock(ts.ravel(), *(np.ascontiguousarray(a).ravel() for a in rows))


def test_a_grid_trades_the_same_scores_and_its_runs_carry_the_ids_of_single_runs(finished: tuple[Pipeline, list[str]]) -> None:
    pipeline = finished[0]
    own = report_of(pipeline.settings.store.root)
    said = pipeline.grid(["strategy.max_open=2,4", "strategy.holding_bars=6,12"], workers=2)
    assert said.lines[0].split()[:2] == ["strategy.max_open", "strategy.holding_bars"]
    (table,) = pipeline.paths.reports.glob("grid/*/grid.parquet")
    rows = pd.read_parquet(table).set_index("run_id")
    # 4 open and 12 bars are the settings of the run itself
    same = rows.loc[own.name]
    assert (same["strategy.max_open"], same["strategy.holding_bars"]) == ("4", "12")
    assert same["trades"] == len(trades_of(pipeline.settings.store.root))
