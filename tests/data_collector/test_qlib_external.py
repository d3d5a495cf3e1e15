"""External series in Qlib: as fields of every frequency, never before they were known; and a whole `qrun` on the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from qlib.data import D

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.data_collector.external_catalogue import CATALOGUE
from crypto_qlib.data_collector.qlib_data_adapter import PROVIDERS, init_qlib, recorder_config, update_from_panel
from crypto_qlib.data_collector.qlib_external import coin_of, external_fields
from crypto_qlib.data_collector.qlib_store import QLIB_FREQ
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import MARKET, SeriesStore

T0 = 1_735_689_600_000_000_000  # 2025-01-01
SYMBOLS = ("BTCUSDT", "1000PEPEUSDT", "ETHUSDT")


def make_panel(frame: str, n: int, n_symbols: int = 3) -> MarketPanel:
    rng = np.random.default_rng(5)
    symbols = SYMBOLS if n_symbols == 3 else tuple(f"C{j:02d}USDT" for j in range(n_symbols))
    close = 100.0 * np.exp(np.cumsum(rng.standard_normal((n, n_symbols)) * 0.01, axis=0))
    columns = {name: close.copy() for name in PANEL_FIELDS}
    columns["volume"] = rng.uniform(1, 2, close.shape)
    columns["quote_volume"] = columns["volume"] * close
    columns["funding_rate"] = np.full(close.shape, np.nan)
    ts = T0 + FRAME_NS[frame] * np.arange(n, dtype=np.int64)
    return MarketPanel(symbols, FRAME_NS[frame], ts, has_mark=np.zeros(n_symbols, np.bool_), **columns)


def with_series(paths: Paths) -> SeriesStore:
    store = SeriesStore(paths.series)
    days = T0 + NS_PER_DAY * np.arange(3)
    known = days + 45 * NS_PER_MINUTE
    store.append("fear_greed", MARKET, Observations(days, known, np.array([20.0, 30.0, 40.0])), T0 + 9 * NS_PER_DAY)
    corrected = Observations(days[1:2], known[1:2] + 5 * NS_PER_HOUR, np.array([33.0]))
    store.append("fear_greed", MARKET, corrected, T0 + 9 * NS_PER_DAY)
    store.append("active_addresses", "PEPE", Observations(days[:1], days[1:2], np.array([7.0])), T0 + 9 * NS_PER_DAY)
    return store


@pytest.mark.filterwarnings("ignore")  # Qlib and what it imports warn of their own past
@pytest.mark.parametrize(("frame", "n"), [("1m", 2900), ("5m", 700), ("15m", 250), ("1h", 75), ("4h", 20)])
def test_every_frequency_serves_external_series_as_known_at_each_close(tmp_path: Path, frame: str, n: int) -> None:
    paths = Paths(tmp_path)
    with_series(paths)
    panel = make_panel(frame, n)
    update_from_panel(paths, panel)
    init_qlib(paths)
    freq = QLIB_FREQ[frame]
    got = D.features(D.instruments(), ["$close", "$fear_greed", "Ref($fear_greed,1)", "$active_addresses"], freq=freq)
    assert len(got) == 3 * n
    closes = panel.ts_open + panel.frame_ns
    day = 24 * NS_PER_HOUR
    wanted = np.full(n, np.nan)
    for start, value in ((0, 20.0), (day, 30.0), (day + 5 * NS_PER_HOUR, 33.0), (2 * day, 40.0)):
        wanted[closes >= T0 + start + 45 * NS_PER_MINUTE] = value
    wanted[closes > T0 + 2 * day + 45 * NS_PER_MINUTE + CATALOGUE["fear_greed"].carry_ns] = np.nan
    for symbol in SYMBOLS:
        np.testing.assert_array_equal(got.loc[symbol, "$fear_greed"].to_numpy(), wanted.astype(np.float32))
        np.testing.assert_array_equal(got.loc[symbol, "Ref($fear_greed,1)"].to_numpy()[1:], wanted[:-1].astype(np.float32))
    pepe = got.loc["1000PEPEUSDT", "$active_addresses"].to_numpy()
    old = closes > T0 + day + CATALOGUE["active_addresses"].carry_ns
    np.testing.assert_array_equal(np.isnan(pepe), (closes < T0 + day) | old)
    assert got.loc["BTCUSDT", "$active_addresses"].isna().all()
    days = D.features(["BTCUSDT"], ["$fear_greed"], freq="day")["$fear_greed"].to_numpy()
    # a day bar knows at its close what was published in it
    np.testing.assert_array_equal(days, np.array([20.0, 33.0, 40.0], np.float32)[: days.size])


def test_perturbing_what_became_known_later_changes_no_earlier_field(tmp_path: Path) -> None:
    panel = make_panel("1h", 75)
    one, two = (Paths(tmp_path / n) for n in ("one", "two"))
    before = external_fields(with_series(one), panel)
    later = with_series(two)
    moment = T0 + NS_PER_DAY + 12 * NS_PER_HOUR
    noise = Observations(np.array([T0, T0 + NS_PER_DAY]), np.array([moment + 1] * 2), np.array([99.0, 98.0]))
    later.append("fear_greed", MARKET, noise, T0 + 9 * NS_PER_DAY)
    after = external_fields(later, panel)
    known = panel.ts_open + panel.frame_ns <= moment
    np.testing.assert_array_equal(before["fear_greed"][known], after["fear_greed"][known])
    assert not np.array_equal(before["fear_greed"][~known], after["fear_greed"][~known], equal_nan=True)


COINS = {"BTCUSDT": "BTC", "1000PEPEUSDT": "PEPE", "1INCHUSDT": "1INCH", "0GUSDT": "0G", "1000000MOGUSDT": "MOG"}


@pytest.mark.parametrize(("symbol", "coin"), list(COINS.items()))
def test_a_swap_is_about_its_coin(symbol: str, coin: str) -> None:
    assert coin_of(symbol) == coin


@pytest.mark.slow
def test_a_qrun_file_trains_and_records_on_the_store(tmp_path: Path) -> None:
    """Qlib's own command line, its own handler and model, on 24/7 hours with an external series among the features."""
    paths = Paths(tmp_path / "workspace")
    with_series(paths)
    panel = make_panel("1h", 600, n_symbols=12)
    update_from_panel(paths, panel)
    start, cut, end = ("2025-01-01 00:00:00", "2025-01-18 00:00:00", "2025-01-25 23:00:00")
    loader = {
        "class": "QlibDataLoader",
        "kwargs": {
            "config": {
                "feature": [["$close/Ref($close,24)", "Std($change,24)", "$fear_greed"], ["R24", "V24", "FNG"]],
                "label": [["Ref($close,-2)/Ref($close,-1)-1"], ["LABEL0"]],
            },
            "freq": "60min",
        },
    }
    handler = {
        "class": "DataHandlerLP",
        "module_path": "qlib.data.dataset.handler",
        "kwargs": {"instruments": "all", "start_time": start, "end_time": end, "data_loader": loader,
                   "learn_processors": [{"class": "DropnaLabel"}]},
    }  # fmt: skip
    task = {
        "model": {
            "class": "LGBModel",
            "module_path": "qlib.contrib.model.gbdt",
            "kwargs": {"num_boost_round": 3, "num_threads": 1},
        },
        "dataset": {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {"handler": handler, "segments": {"train": [start, cut], "valid": [cut, end], "test": [cut, end]}},
        },
        "record": [{"class": "SignalRecord", "module_path": "qlib.workflow.record_temp",
                    "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"}}],
    }  # fmt: skip
    config = {
        "qlib_init": {"provider_uri": str(paths.qlib), "region": "us", "kernels": 1, **PROVIDERS,
                      "exp_manager": recorder_config(paths.mlflow)},
        "experiment_name": "qrun",
        "task": task,
    }  # fmt: skip
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-W", "ignore", "-m", "qlib.cli.run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((paths.root / "mlflow_files/qrun").glob("*/artifacts/pred.pkl"))
