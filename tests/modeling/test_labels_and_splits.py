"""When labels are known, and that no segment's labels touch the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.labels import excess_over_mean, forward_returns, make_labels
from crypto_qlib.modeling.splits import MIN_SEGMENT_BARS, Segment, TimeSplit, check_no_leak, split_bars
from crypto_qlib.settings.schema import ModelSettings
from tests.noise_market import changed, noise_panel

NAN = float("nan")


def test_entry_is_the_next_open_and_exit_the_open_n_bars_later() -> None:
    opens = np.array([[100.0], [101.0], [103.0], [99.0], [90.0]])
    got = forward_returns(opens, 2)[:, 0]
    np.testing.assert_allclose(got[:2], [99.0 / 101.0 - 1.0, 90.0 / 103.0 - 1.0])
    assert np.isnan(got[2:]).all(), "the last N + 1 rows have no exit yet"


ROWS = [
    ("no entry price", [100.0, NAN, 103.0, 104.0], 1, [NAN, 104 / 103 - 1, NAN, NAN]),
    ("delisted before the exit", [100.0, 101.0, 102.0, NAN], 1, [102 / 101 - 1, NAN, NAN, NAN]),
    ("a gap inside the holding time does not matter", [1.0, 2.0, NAN, 4.0], 2, [1.0, NAN, NAN, NAN]),
    ("history shorter than the horizon", [1.0, 2.0], 5, [NAN, NAN]),
]


@pytest.mark.parametrize(("reason", "opens", "horizon", "expected"), ROWS, ids=[r[0] for r in ROWS])
def test_missing_prices(reason: str, opens: list[float], horizon: int, expected: list[float]) -> None:
    np.testing.assert_allclose(forward_returns(np.array(opens)[:, None], horizon)[:, 0], expected, err_msg=reason)


def test_excess_leaves_out_missing_symbols_and_sums_to_zero() -> None:
    excess = excess_over_mean(np.array([[0.1, NAN, 0.3], [NAN, NAN, NAN]]))
    np.testing.assert_allclose(excess, [[-0.1, NAN, 0.1], [NAN, NAN, NAN]])


def test_label_is_known_when_its_exit_is() -> None:
    panel = noise_panel(60, 3)
    labels = make_labels(panel, ModelSettings(horizon_bars=5))
    assert np.array_equal(labels.known_at_ns, panel.ts_open + 6 * NS_PER_HOUR)
    for t in (0, 20, 53):
        opens = panel.open.copy()
        opens[panel.ts_open > labels.known_at_ns[t]] *= 3.0
        other = make_labels(changed(panel, open=opens), ModelSettings(horizon_bars=5))
        assert np.array_equal(other.forward_return[t], labels.forward_return[t])
        opens[panel.ts_open == labels.known_at_ns[t]] *= 3.0
        other = make_labels(changed(panel, open=opens), ModelSettings(horizon_bars=5))
        assert not np.array_equal(other.forward_return[t], labels.forward_return[t])


@given(
    n=st.integers(50, 5000),
    horizon=st.integers(1, 60),
    embargo=st.integers(0, 60),
    train=st.floats(0.3, 0.7),
    valid=st.floats(0.1, 0.25),
)
def test_label_spans_of_segments_never_touch(n: int, horizon: int, embargo: int, train: float, valid: float) -> None:
    settings = ModelSettings(horizon_bars=horizon, embargo_bars=embargo, train_fraction=train, valid_fraction=valid)
    try:
        split = split_bars(n, settings)
    except UserError:
        return
    spans = [np.arange(s.start + 1, s.stop - 1 + 1 + horizon + 1) for s in split.segments]  # bars from entry to exit
    assert not set(spans[0]) & set(spans[1])
    assert not set(spans[1]) & set(spans[2])
    assert split.valid.start - split.train.stop >= horizon + embargo
    assert all(s.n_bars >= MIN_SEGMENT_BARS for s in split.segments)
    assert split.test.stop == n


@pytest.mark.parametrize("gap", [0, 1, 4])
def test_leak_guard_refuses_a_gap_smaller_than_the_horizon(gap: int) -> None:
    split = TimeSplit(Segment("train", 0, 100), Segment("valid", 100 + gap, 150), Segment("test", 200, 300), horizon_bars=5)
    with pytest.raises(UserError, match="leak"):
        check_no_leak(split)


def test_leak_guard_accepts_a_gap_of_the_horizon() -> None:
    check_no_leak(TimeSplit(Segment("train", 0, 100), Segment("valid", 105, 150), Segment("test", 155, 300), horizon_bars=5))


def test_too_little_data_names_the_short_segment_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"too little data: 150 bars.*history_days"):
        split_bars(150, ModelSettings(horizon_bars=24, embargo_bars=24))
