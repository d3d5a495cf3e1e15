"""The feature step: which features this history has input for, what is known beside the bars, the frame kept or extended."""

from __future__ import annotations

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import settings_for_panel
from crypto_qlib.feature_engineering.feature_store import panel_source, stored_features
from crypto_qlib.feature_engineering.selection_store import load_selection, only
from crypto_qlib.feature_engineering.side_loading import load_side
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.settings.identity import code_identity
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths


def built_features(paths: Paths, lake: Lake, settings: Settings, panel: MarketPanel, reporter: Reporter) -> FeatureFrame:
    """Return the features of ``panel``, kept below ``paths.features``.

    Features without input in the *training* part are left out, by name: a column that only fills later would be all NaN there.

    Raises
    ------
    UserError
        If ``features.selection`` names none, or what is kept beside the bars is damaged.
    """
    advance = reporter.progress("feature sets", 1.0)
    side = load_side(paths, lake, settings, panel.symbols)
    learned_from = panel.rows(0, int(panel.n_bars * settings.model.train_fraction))
    wanted, left_out = settings_for_panel(learned_from, settings.features, side)
    for line in left_out:
        reporter.say(line)
    if settings.features.selection:
        wanted = only(wanted, load_selection(paths.selections, settings.features.selection), panel.frame_ns)
    return stored_features(paths.features, panel_source(panel), wanted, side, code_identity(), advance)
