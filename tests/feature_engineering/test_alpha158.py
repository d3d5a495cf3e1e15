"""Alpha158 against Qlib's own expressions, evaluated by Qlib on a bin store of the same float32 bars."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.alpha158 import alpha158_specs
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.settings.schema import FeatureSettings
from tests.feature_engineering.test_alpha360 import QLIB_SCRIPT, write_bin_store
from tests.noise_market import changed, noise_panel

SET = FeatureSettings(sets=("alpha158",))
WARM = 61


def in_float32(panel: MarketPanel) -> MarketPanel:
    """Return the bars rounded as Qlib's store rounds them, so that only the formulas can differ."""
    names = ("open", "high", "low", "close", "volume")
    rounded = {n: getattr(panel, n).astype(np.float32).astype(np.float64) for n in names}
    vwap = (panel.quote_volume / panel.volume).astype(np.float32).astype(np.float64)
    return changed(panel, **rounded, quote_volume=vwap * rounded["volume"])


@pytest.mark.slow
def test_equals_qlibs_own_alpha158_to_float32_rounding(tmp_path: Path) -> None:
    panel = in_float32(noise_panel(150, 4, seed=9))
    write_bin_store(panel, tmp_path / "store")
    script = QLIB_SCRIPT.replace("Alpha360DL", "Alpha158DL")
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(tmp_path / "qlib.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = pd.read_pickle(tmp_path / "qlib.pkl")
    ours = build_features(panel, SET)
    assert [f"A158_{name}" for name in theirs.columns] == list(ours.names)
    stamps = pd.DatetimeIndex(ours.ts_open.astype("datetime64[ns]"))[ours.row_bar]
    matched = theirs.reindex(pd.MultiIndex.from_arrays([[ours.symbols[s] for s in ours.row_symbol], stamps])).to_numpy()
    warm = ours.row_bar >= WARM
    wrong = []
    for j, name in enumerate(ours.names):
        a, b = ours.values[warm, j], matched[warm, j].astype(np.float64)
        if not (np.array_equal(np.isnan(a), np.isnan(b)) and np.allclose(a, b, rtol=2e-4, atol=3e-6, equal_nan=True)):
            wrong.append((name, float(np.nanmax(np.abs(a - b)))))
    assert wrong == []
    typical = np.nanmedian(np.abs(ours.values[warm] - matched[warm]) / np.maximum(np.abs(matched[warm]), 1e-3))
    assert typical < 3e-7, "float32 rounding"


def test_column_names_follow_qlibs_order() -> None:
    names = [s.name.removeprefix("A158_") for s in alpha158_specs()]
    assert len(names) == 158
    assert names[:2] == ["KMID", "KLEN"]
    assert [names[k] for k in (9, 12, 13, 17, 18, 157)] == ["OPEN0", "VWAP0", "ROC5", "ROC60", "MA5", "VSUMD60"]


def test_missing_bars_are_left_out() -> None:
    panel = noise_panel(120, 2)
    close = panel.close.copy()
    close[100:103, 0] = np.nan
    frame = build_features(changed(panel, close=close), SET)
    ma = frame.to_grid(frame.values[:, frame.names.index("A158_MA10")].astype(float))[:, 0]
    assert ma[105] == pytest.approx(np.nanmean(close[96:106, 0]) / close[105, 0], rel=1e-6)
