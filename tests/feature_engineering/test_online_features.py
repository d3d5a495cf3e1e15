"""One bar's work a bar gives the bits of a rebuild, and whatever is not exactly one new bar is a rebuild."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.feature_engineering import online_features
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features, lookback_bars
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.online_features import OnlineFeatures
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.observations import Observations
from tests.noise_market import changed, noise_panel, same_bits
from tests.side_market import noise_side, side_with_other_future

ALL = FeatureSettings(sets=tuple(FEATURE_SETS))
FEW = FeatureSettings(sets=("technical", "btc_relative", "cross_coin"))
PANEL = noise_panel(1300, 7, seed=3, with_gaps=True)
SIDE = noise_side(PANEL)
FRAME = build_features(PANEL, ALL, side=SIDE)
FIRST = 1268
"""Last bar of the first window: the look-back of every set is filled behind it."""


def close_of(bar: int) -> int:
    return int(PANEL.ts_open[bar]) + PANEL.frame_ns


def same_rows(a: FeatureFrame, b: FeatureFrame) -> bool:
    return (
        a.ts_open.tolist() == b.ts_open.tolist()
        and a.symbols == b.symbols
        and a.row_bar.tolist() == b.row_bar.tolist()
        and a.row_symbol.tolist() == b.row_symbol.tolist()
        and same_bits(a.values, b.values)
    )


def test_every_feature_of_every_set_online_has_the_bits_of_the_batch() -> None:
    online = OnlineFeatures(ALL)
    for bar in range(FIRST, PANEL.n_bars):
        # What becomes known beside the bars later differs from what the batch saw, as it does while one lives through it.
        live = online.latest(PANEL.rows(0, bar + 1), side_with_other_future(SIDE, close_of(bar), bar))
        rows = FRAME.row_span(bar, bar + 1)
        differing = [n for j, n in enumerate(FRAME.names) if not same_bits(live.values[:, j], FRAME.values[rows][:, j])]
        assert differing == [], bar
        assert live.row_symbol.tolist() == FRAME.row_symbol[rows].tolist()
    assert (online.rebuilt, online.advanced) == (1, PANEL.n_bars - FIRST - 1)


def test_rows_a_model_looks_back_on_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_features, "_BARS_BETWEEN_COPIES", 7)  # the window also goes back to the front of its memory
    online = OnlineFeatures(FEW, bars=5)
    for bar in range(1000, 1040):
        assert same_rows(online.latest(PANEL.rows(0, bar + 1), SIDE), latest_features(PANEL.rows(0, bar + 1), FEW, 5, SIDE)), (
            bar
        )
    assert (online.rebuilt, online.advanced) == (1, 39)


def late_bar(panel: MarketPanel) -> MarketPanel:
    close = panel.close.copy()
    close[-20, 2] = close[-21, 2] * 1.01
    return changed(panel, close=close)


def universe(panel: MarketPanel) -> MarketPanel:
    members = np.array(np.broadcast_to(panel.is_member, panel.close.shape))
    members[-30:, 4] = False
    return replace(panel, is_member=members)


def fewer_symbols(panel: MarketPanel) -> MarketPanel:
    names = [k for k in range(len(panel.symbols)) if k != 5]
    fields = {n: getattr(panel, n)[:, names] for n in PANEL_FIELDS}
    symbols = tuple(panel.symbols[k] for k in names)
    return MarketPanel(symbols, panel.frame_ns, panel.ts_open, has_mark=panel.has_mark[names], **fields)


@pytest.mark.parametrize("mend", [late_bar, universe, fewer_symbols], ids=lambda f: f.__name__)
def test_a_past_that_changed_is_built_anew(mend: Callable[[MarketPanel], MarketPanel]) -> None:
    online = OnlineFeatures(FEW)
    for bar in (1000, 1001):
        online.latest(PANEL.rows(0, bar + 1))
    mended = mend(PANEL.rows(0, 1003))
    assert same_rows(online.latest(mended), latest_features(mended, FEW))
    assert (online.rebuilt, online.advanced) == (2, 1)


def test_bars_that_came_together_are_a_rebuild_and_the_next_one_is_not() -> None:
    online = OnlineFeatures(FEW)
    for bar in (1000, 1003, 1004):
        assert same_rows(online.latest(PANEL.rows(0, bar + 1)), latest_features(PANEL.rows(0, bar + 1), FEW))
    assert (online.rebuilt, online.advanced) == (2, 1)


def test_a_correction_beside_the_bars_that_was_known_earlier_is_a_rebuild() -> None:
    of_side = FeatureSettings(sets=("derivatives",))
    online = OnlineFeatures(of_side)
    online.latest(PANEL.rows(0, 1201), SIDE)
    rows = SIDE.series["open_interest", PANEL.symbols[0]]
    back_filled = SideData({**SIDE.series, ("open_interest", PANEL.symbols[0]): Observations(
        rows.event_ns, rows.known_ns, rows.value * 1.01)}, SIDE.news)  # fmt: skip
    live = online.latest(PANEL.rows(0, 1202), back_filled)
    assert same_rows(live, latest_features(PANEL.rows(0, 1202), of_side, 1, back_filled))
    assert (online.rebuilt, online.advanced) == (2, 0)


def test_a_short_history_and_a_bar_without_any_price() -> None:
    online, n = OnlineFeatures(FEW), lookback_bars(FEW, PANEL.frame_ns)
    for bar in (n - 3, n - 2, n - 1, n):  # the window still grows, then is full, then moves
        assert same_rows(online.latest(PANEL.rows(0, bar + 1)), latest_features(PANEL.rows(0, bar + 1), FEW))
    assert (online.rebuilt, online.advanced) == (3, 1)
    close = PANEL.close[: n + 2].copy()
    close[-1] = np.nan
    with pytest.raises(SkipCycle):
        online.latest(changed(PANEL.rows(0, n + 2), close=close))
    assert same_rows(online.latest(PANEL.rows(0, n + 3)), latest_features(PANEL.rows(0, n + 3), FEW))
