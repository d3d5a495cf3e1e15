"""Built features, kept by what they were made of: the same inputs are read back, a longer history is extended, else rebuilt.

Beside the frame lies ``made_of.json``: a digest of every input of the bars it covers, the settings, the side data and the code.
Rows of a bar depend on that bar and older ones only, so where the old bars' digest still holds the old rows do too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, load_feature_frame, save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import Progress, build_features, extend_features
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.settings.schema import FeatureSettings

MADE_OF: Final = "made_of.json"


def kept_features(
    folder: Path,
    panel: MarketPanel,
    settings: FeatureSettings,
    side: SideData | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> FeatureFrame:
    """Return the features of ``panel``, bit-equal to :func:`build_features`, doing only what ``folder`` does not hold yet.

    Parameters
    ----------
    folder : Path
        Where features are kept; brought up to date.
    panel : MarketPanel
        All bars.
    settings : FeatureSettings
        Which sets.
    side : SideData, optional
        What is known beside the bars.
    identity : str
        Digest of the side data and of the code: another one means a rebuild.
    progress : callable, optional
        Told the fraction just finished.
    """
    kept = _kept(folder)
    frame: FeatureFrame | None = None
    if kept is not None and kept["same"] == _same(panel, settings, identity) and kept["n_bars"] <= panel.n_bars:
        old = panel.rows(0, kept["n_bars"])
        if panel_digest(old) == kept["bars"]:
            frame = _read(folder)
    if frame is not None and frame.n_bars == panel.n_bars:
        return frame
    frame = build_features(panel, settings, progress, side) if frame is None else extend_features(frame, panel, settings, side)
    (folder / MADE_OF).unlink(missing_ok=True)  # a frame without it is rebuilt
    save_feature_frame(frame, folder)
    made_of = {"same": _same(panel, settings, identity), "n_bars": panel.n_bars, "bars": panel_digest(panel)}
    (folder / MADE_OF).write_text(json.dumps(made_of))
    return frame


def panel_digest(panel: MarketPanel) -> str:
    """Return a digest of every number of ``panel``; equal panels have equal digests on any machine."""
    digest = hashlib.sha256(repr((panel.symbols, panel.frame_ns)).encode())
    for array in (panel.ts_open, panel.is_member, *(getattr(panel, name) for name in PANEL_FIELDS)):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _same(panel: MarketPanel, settings: FeatureSettings, identity: str) -> list[Any]:
    return [list(panel.symbols), panel.frame_ns, int(panel.ts_open[0]), settings.model_dump(mode="json"), identity]


def _kept(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / MADE_OF).read_text())
    except (OSError, ValueError):
        return None
    return found if {"same", "n_bars", "bars"} <= set(found) else None


def _read(folder: Path) -> FeatureFrame | None:
    try:
        return load_feature_frame(folder)
    except UserError:
        return None
