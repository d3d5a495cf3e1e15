"""Alpha360 against Qlib's own expressions, evaluated by Qlib on a bin store written here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.alpha360 import alpha360_row, alpha360_specs
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import noise_panel, same_bits

ALPHA = FeatureSettings(sets=("alpha360",))

QLIB_SCRIPT = """
import sys, warnings
import qlib
from qlib.config import REG_US
from qlib.contrib.data.loader import Alpha360DL
from qlib.data import D
store, out = sys.argv[1:]
qlib.init(provider_uri={"60min": store}, region=REG_US, kernels=1, logging_level=40)
fields, names = Alpha360DL.get_feature_config()
frame = D.features(D.list_instruments(D.instruments("all"), freq="60min", as_list=True), fields, freq="60min")
frame.columns = names
frame.to_pickle(out)
"""


def write_bin_store(panel: MarketPanel, folder: Path) -> None:
    """Write Qlib's on-disk format: calendar, instruments, one little-endian float32 file per field with its start index."""
    for sub in ("calendars", "instruments", "features"):
        (folder / sub).mkdir(parents=True)
    stamps = [pd.Timestamp(ts).strftime("%Y-%m-%d %H:%M:%S") for ts in panel.ts_open]
    (folder / "calendars" / "60min.txt").write_text("\n".join(stamps) + "\n")
    (folder / "instruments" / "all.txt").write_text("".join(f"{s}\t{stamps[0]}\t{stamps[-1]}\n" for s in panel.symbols))
    fields = {n: getattr(panel, n) for n in ("open", "high", "low", "close", "volume")}
    fields["vwap"] = panel.quote_volume / panel.volume
    for k, symbol in enumerate(panel.symbols):
        (folder / "features" / symbol.lower()).mkdir()
        for name, values in fields.items():
            raw = np.concatenate(([0.0], values[:, k])).astype("<f4")
            raw.tofile(folder / "features" / symbol.lower() / f"{name}.60min.bin")


@pytest.mark.slow
def test_equals_qlibs_own_alpha360_to_float32_rounding(tmp_path: Path) -> None:
    panel = noise_panel(150, 5, seed=9, with_gaps=True)
    write_bin_store(panel, tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", QLIB_SCRIPT, str(tmp_path / "store"), str(tmp_path / "qlib.pkl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = pd.read_pickle(tmp_path / "qlib.pkl")
    ours = build_features(panel, ALPHA)
    assert list(theirs.columns) == list(ours.names)
    stamps = pd.DatetimeIndex(ours.ts_open.astype("datetime64[ns]"))[ours.row_bar]
    index = pd.MultiIndex.from_arrays([[ours.symbols[s] for s in ours.row_symbol], stamps])
    matched = theirs.reindex(index).to_numpy()
    assert np.array_equal(np.isnan(matched), np.isnan(ours.values))
    np.testing.assert_allclose(ours.values, matched, rtol=3e-7)
    left_over = theirs.drop(index=index)
    assert left_over["CLOSE0"].isna().all(), "rows we do not have are rows without a close"


def test_hand_worked_row() -> None:
    panel = noise_panel(3, 2)
    frame = build_features(panel, FeatureSettings(sets=("alpha360",), alpha360_window=5))
    row = dict(zip(frame.names, frame.values[-1].tolist(), strict=True))  # last bar, last name: ETHUSDT, column 0
    assert row["CLOSE0"] == 1.0
    assert row["CLOSE2"] == pytest.approx(panel.close[0, 0] / panel.close[2, 0], rel=1e-6)
    assert row["VWAP1"] == pytest.approx(panel.quote_volume[1, 0] / panel.volume[1, 0] / panel.close[2, 0], rel=1e-6)
    assert row["VOLUME2"] == pytest.approx(panel.volume[0, 0] / panel.volume[2, 0], rel=1e-6)
    assert np.isnan(row["LOW3"])


def test_vwap_falls_back_to_the_typical_price_in_a_bar_without_trades() -> None:
    panel = noise_panel(10, 2)
    panel.volume[9, 0] = panel.quote_volume[9, 0] = 0.0
    frame = build_features(panel, ALPHA)
    row = dict(zip(frame.names, frame.values[-1].tolist(), strict=True))
    typical = (panel.high[9, 0] + panel.low[9, 0] + panel.close[9, 0]) / 3.0
    assert row["VWAP0"] == pytest.approx(typical / panel.close[9, 0], rel=1e-6)
    assert row["VOLUME0"] == 0.0
    assert row["VOLUME1"] == pytest.approx(panel.volume[8, 0] / 1e-12, rel=1e-6)


def test_column_names_follow_qlibs_order() -> None:
    names = [s.name for s in alpha360_specs()]
    assert len(names) == 360
    assert names[:2] == ["CLOSE59", "CLOSE58"]
    assert [names[k] for k in (59, 60, 119, 120, 359)] == ["CLOSE0", "OPEN59", "OPEN0", "HIGH59", "VOLUME0"]


@pytest.mark.parametrize("n", [1, 30, 60, 61, 150])
def test_one_bar_row_equals_the_batch_row_bit_for_bit(n: int) -> None:
    panel = noise_panel(150, 6, seed=2, with_gaps=True).rows(0, n)
    batch = build_features(panel, ALPHA)
    row = alpha360_row(panel)
    rows = batch.row_span(n - 1, n)
    assert same_bits(row[batch.row_symbol[rows]], batch.values[rows])
    absent = np.setdiff1d(np.arange(len(panel.symbols)), batch.row_symbol[rows])
    assert np.isnan(row[absent]).all()


def test_row_of_an_empty_panel_skips_the_cycle() -> None:
    with pytest.raises(SkipCycle):
        alpha360_row(noise_panel(5, 2).rows(0, 0))
