"""Properties every feature must keep, applied to the whole catalogue so that new ones are covered by being listed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import SkipCycle, UserError
from crypto_qlib.core.market import PANEL_PRICES, MarketPanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import (
    build_features,
    feature_catalogue,
    latest_features,
    lookback_bars,
    settings_for_panel,
)
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.side_data import KNOWN_FROM, SIDE_SERIES
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import changed, noise_panel, same_bits, with_other_future
from tests.side_market import noise_side, side_with_other_future

N_BARS = 1300
ALL = FeatureSettings(sets=tuple(FEATURE_SETS))
PANEL = noise_panel(N_BARS, 7, seed=3, with_gaps=True)
SIDE = noise_side(PANEL)
FRAME = build_features(PANEL, ALL, side=SIDE)


def differing(names: tuple[str, ...], a: np.ndarray, b: np.ndarray) -> list[str]:
    return [n for j, n in enumerate(names) if not same_bits(a[:, j], b[:, j])]


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cut=st.integers(2, N_BARS - 1), seed=st.integers(0, 10_000))
def test_nothing_after_as_of_changes_a_feature_by_a_bit(cut: int, seed: int) -> None:
    as_of_ns = int(PANEL.ts_open[cut - 1]) + PANEL.frame_ns
    other = build_features(with_other_future(PANEL, cut, seed), ALL, side=side_with_other_future(SIDE, as_of_ns, seed))
    rows, other_rows = FRAME.row_span(0, cut), other.row_span(0, cut)
    assert differing(FRAME.names, FRAME.values[rows], other.values[other_rows]) == []


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(n=st.integers(1, N_BARS))
def test_live_row_equals_batch_row_bit_for_bit(n: int) -> None:
    as_of_ns = int(PANEL.ts_open[n - 1]) + PANEL.frame_ns
    live = latest_features(PANEL.known_until(as_of_ns), ALL, side=side_with_other_future(SIDE, as_of_ns, n))
    rows = FRAME.row_span(n - 1, n)
    assert live.ts_open.tolist() == [int(PANEL.ts_open[n - 1])]
    assert live.row_symbol.tolist() == FRAME.row_symbol[rows].tolist()
    assert differing(FRAME.names, live.values, FRAME.values[rows]) == []


def test_rows_exist_exactly_where_a_close_exists() -> None:
    assert np.array_equal(FRAME.mask, np.isfinite(PANEL.close))


def test_rows_are_in_bar_then_symbol_name_order() -> None:
    keys = [(int(b), PANEL.symbols[s]) for b, s in zip(FRAME.row_bar, FRAME.row_symbol, strict=True)]
    assert keys == sorted(keys)


def test_a_row_is_known_at_the_close_of_its_bar() -> None:
    assert np.array_equal(FRAME.known_at_ns, PANEL.ts_open + NS_PER_HOUR)


def test_order_of_symbols_in_the_panel_does_not_matter() -> None:
    order = [4, 2, 6, 0, 5, 1, 3]
    fields = {n: getattr(PANEL, n)[:, order] for n in (*PANEL_PRICES, "volume", "quote_volume", "funding_rate")}
    names = tuple(PANEL.symbols[k] for k in order)
    shuffled = MarketPanel(names, PANEL.frame_ns, PANEL.ts_open, has_mark=PANEL.has_mark, **fields)
    other = build_features(shuffled, ALL, side=SIDE)
    assert differing(FRAME.names, FRAME.values, other.values) == []
    assert [names[k] for k in other.row_symbol[:7]] == [PANEL.symbols[k] for k in FRAME.row_symbol[:7]]


def test_features_do_not_depend_on_the_price_unit() -> None:
    # A power of two scales floats exactly, so even rounding is the same; log(price) features are differences of logs.
    scaled = changed(PANEL, **{n: getattr(PANEL, n) * 4.0 for n in PANEL_PRICES}, volume=PANEL.volume / 4.0)
    free = {s.name for s in feature_catalogue(ALL) if "index" in s.needs or "taker" in s.needs or s.needs == "open_interest"}
    other = build_features(scaled, ALL, side=SIDE)
    assert other.values.shape == FRAME.values.shape
    for j, name in enumerate(FRAME.names):
        # Alpha360's volume floor and Alpha158's tolerances are absolute; some side series have units of their own.
        if not name.startswith(("VOLUME", "A158_")) and name not in free:
            np.testing.assert_allclose(other.values[:, j], FRAME.values[:, j], rtol=2e-4, atol=1e-6, err_msg=name)


def test_a_dead_market_gives_no_infinities() -> None:
    # Real venues go on printing flat bars without volume for days after the last trade of a delisted coin.
    panel = noise_panel(400, 4, seed=6)
    for name in PANEL_PRICES:
        getattr(panel, name)[150:, 2] = panel.close[149, 2]
    for name in ("volume", "quote_volume"):
        getattr(panel, name)[150:, 2] = 0.0
    frame = build_features(panel, ALL, side=noise_side(panel))
    assert not np.isinf(frame.values).any()


def test_every_feature_has_values_once_its_look_back_is_filled() -> None:
    panel = noise_panel(N_BARS, 5, seed=4)
    whole = build_features(panel, ALL, side=noise_side(panel))
    tail = whole.values[whole.row_span(lookback_bars(ALL, NS_PER_HOUR), N_BARS)]
    empty = [n for j, n in enumerate(whole.names) if not np.isfinite(tail[:, j]).any()]
    assert empty == ["SECTOR_REL24"], "the coins of this market have no sector"


@pytest.mark.parametrize("group", [name for name in FEATURE_SETS if name not in {"alpha360", "news"}])
def test_declared_look_back_is_enough(group: str) -> None:
    one = FeatureSettings(sets=(group,))  # type: ignore[arg-type]
    for spec in feature_catalogue(one)[::5]:
        others = tuple(s.name for s in feature_catalogue(one) if s.name != spec.name)
        just = FeatureSettings(sets=(group,), exclude=others)  # type: ignore[arg-type]
        n = spec.lookback_bars
        long_row = latest_features(PANEL, just, side=SIDE).values
        cut_row = build_features(PANEL.rows(N_BARS - n, N_BARS), just, side=SIDE)
        assert same_bits(cut_row.values[cut_row.row_span(n - 1, n)], long_row), spec.name


def test_catalogue_names_are_unique_and_described() -> None:
    specs = feature_catalogue(ALL)
    assert len({s.name for s in specs}) == len(specs)
    assert all(s.formula and s.unit and s.lookback_bars >= 1 and s.known_at for s in specs)
    vague = [s.name for s in specs if s.needs not in {"", "mark"} and s.known_at == "close of bar t"]
    assert vague == [], "what comes from beside the bars says from when its source is known"
    assert set(KNOWN_FROM) == {*SIDE_SERIES, "funding"}
    assert FRAME.names == tuple(s.name for s in specs)


def test_chosen_sets_and_exclusions_decide_the_columns() -> None:
    chosen = FeatureSettings(sets=("funding", "alpha360"), alpha360_window=5, exclude=("CLOSE0", "FUNDING_Z"))
    frame = build_features(PANEL, chosen)
    assert frame.names == tuple(s.name for s in feature_catalogue(chosen))
    assert frame.names[0] == "FUNDING"
    assert not {"CLOSE0", "FUNDING_Z"} & set(frame.names)
    full = dict(zip(FRAME.names, FRAME.values.T, strict=True))
    assert all(same_bits(frame.values[:, j], full[n]) for j, n in enumerate(frame.names))


def test_features_without_input_are_left_out_by_name() -> None:
    blind = changed(PANEL, funding_rate=np.full(PANEL.close.shape, np.nan), mark_open=PANEL.open, mark_high=PANEL.high,
                    mark_low=PANEL.low, mark_close=PANEL.close)  # fmt: skip
    kept, notes = settings_for_panel(blind, ALL)
    assert {"no funding settlement is known", "no mark price is known", "no fear_greed is known", "no news is known"} <= {
        note.partition(":")[0] for note in notes
    }
    names = build_features(blind, kept).names
    assert not [n for n in names if n.startswith(("NEWS_", "FEAR_", "OI_", "QQQ_"))]
    assert settings_for_panel(PANEL, ALL, SIDE) == (ALL, ())
    assert not [n for n in names if "FUNDING" in n or "BASIS" in n]
    assert "TURNOVER_24H" in names


def test_unknown_exclusion_is_refused() -> None:
    with pytest.raises(UserError, match="NO_SUCH"):
        feature_catalogue(FeatureSettings(exclude=("NO_SUCH",)))


def test_leader_missing_from_the_universe_is_one_clear_line() -> None:
    panel = noise_panel(60, 4)
    lone = MarketPanel(
        ("ETHUSDT", "XUSDT", "YUSDT", "ZUSDT"),
        panel.frame_ns,
        panel.ts_open,
        has_mark=panel.has_mark,
        **{n: getattr(panel, n) for n in (*PANEL_PRICES, "volume", "quote_volume", "funding_rate")},
    )
    with pytest.raises(UserError, match="BTCUSDT"):
        build_features(lone, ALL)


def test_panel_without_prices_is_one_clear_line() -> None:
    panel = noise_panel(30, 3)
    with pytest.raises(UserError, match="no prices"):
        build_features(changed(panel, close=np.full(panel.close.shape, np.nan)), ALL)


def test_newest_bar_without_prices_skips_the_cycle() -> None:
    panel = noise_panel(30, 3)
    close = panel.close.copy()
    close[-1] = np.nan
    with pytest.raises(SkipCycle):
        latest_features(changed(panel, close=close), ALL)


def test_frame_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        FeatureFrame(
            FRAME.values, FRAME.names[:-1], FRAME.ts_open, FRAME.frame_ns, FRAME.symbols, FRAME.row_bar, FRAME.row_symbol, ALL
        )
