"""Every label by hand, the trades behind the barrier labels against the venue's own rules, and the overlap of spans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.modeling.label_kernels import barrier_outcome, funding_over, net_of_cost, trailing_volatility, uniqueness
from crypto_qlib.modeling.labels import VOLATILITY_BARS, TradeRule, centred_ranks, make_labels, span_bars
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import ModelSettings
from tests.noise_market import changed, noise_panel

NAN = float("nan")
LONG, SHORT = 1, -1
# (reason, side, opens, highs, lows, return, exit bar); entry at the open of bar 0, stop 5 %, take-profit 10 %, 3 bars
TRADES = [
    ("time exit at the open of the last bar", LONG, [100, 101, 102, 103], [101, 102, 103, 104], [99, 100, 101, 90], 0.03, 3),
    ("stop inside a bar fills at its level", LONG, [100, 99, 98, 97], [100, 99, 98, 97], [99, 94, 98, 97], -0.05, 1),
    ("a gap through the stop fills at the open", LONG, [100, 90, 98, 97], [100, 91, 98, 97], [99, 89, 98, 97], -0.10, 1),
    ("take-profit inside a later bar", LONG, [100, 101, 102, 103], [101, 111, 103, 104], [99, 100, 101, 102], 0.10, 1),
    ("no take-profit in the entry bar", LONG, [100, 101, 102, 103], [115, 102, 103, 104], [99, 100, 101, 102], 0.03, 3),
    ("a stop in the entry bar counts", LONG, [100, 101, 102, 103], [101, 102, 103, 104], [94, 100, 101, 102], -0.05, 0),
    ("stop before take-profit in one bar", LONG, [100, 101, 102, 103], [101, 112, 103, 104], [99, 94, 101, 102], -0.05, 1),
    ("a gap through the take-profit fills at the open", LONG, [100, 113, 9, 9], [101, 114, 9, 9], [99, 112, 9, 9], 0.13, 1),
    ("short: stop above", SHORT, [100, 101, 102, 103], [101, 106, 103, 104], [99, 100, 101, 102], -0.05, 1),
    ("short: take-profit below", SHORT, [100, 99, 95, 90], [101, 100, 96, 91], [99, 98, 89, 88], 0.10, 2),
    ("a missing bar is passed over", LONG, [100, NAN, 102, 103], [101, NAN, 103, 104], [99, NAN, 101, 102], 0.03, 3),
    ("no price at the time exit", LONG, [100, 101, 102, NAN], [101, 102, 103, NAN], [99, 100, 101, NAN], NAN, -1),
]


@pytest.mark.parametrize(("reason", "side", "opens", "highs", "lows", "expected", "bar"), TRADES, ids=[r[0] for r in TRADES])
def test_barrier_trade(
    reason: str, side: int, opens: list[float], highs: list[float], lows: list[float], expected: float, bar: int
) -> None:
    prices = (np.array(p, dtype=np.float64) for p in (opens, highs, lows))
    got, end = barrier_outcome(*prices, 0, 3, side, 0.05, 0.10)
    np.testing.assert_allclose(got, expected, atol=1e-12, err_msg=reason)
    assert end == bar


def test_net_return_keeps_what_the_better_side_earns() -> None:
    np.testing.assert_allclose(net_of_cost(np.array([0.05, -0.05, 0.001, NAN]), 0.002), [0.048, -0.048, 0.0, NAN])


def test_funding_counts_settlements_after_the_entry_up_to_the_exit() -> None:
    rates = np.array([[9.0], [9.0], [0.1], [NAN], [0.2], [9.0]])
    np.testing.assert_allclose(funding_over(rates, 3)[:, 0], [0.3, 9.2, NAN, NAN, NAN, NAN])


def test_trailing_volatility_is_the_root_mean_square_of_log_returns() -> None:
    close = 100.0 * np.exp(np.cumsum([0.0, 0.01, -0.02, 0.02]))[:, None]
    want = np.sqrt(np.mean(np.square([0.01, -0.02, 0.02])))
    assert trailing_volatility(close, 3)[3, 0] == pytest.approx(want)
    assert np.isnan(trailing_volatility(close, 3)[0, 0])


def test_ranks_span_minus_one_to_one_and_leave_out_the_missing() -> None:
    got = centred_ranks(np.array([[0.3, NAN, 0.1, 0.2], [NAN, 5.0, NAN, NAN], [1.0, 1.0, 0.0, NAN]]))
    np.testing.assert_allclose(got, [[1.0, NAN, -1.0, 0.0], [NAN, 0.0, NAN, NAN], [0.5, 0.5, -1.0, NAN]])


class TestUniqueness:
    def test_labels_that_do_not_overlap_are_unique(self) -> None:
        ends = np.full((7, 1), -1, np.int32)
        ends[0], ends[3] = 3, 6  # spans [1, 3) and [4, 6)
        np.testing.assert_allclose(uniqueness(ends)[[0, 3], 0], [1.0, 1.0])

    def test_two_labels_sharing_half_their_span(self) -> None:
        ends = np.full((5, 1), -1, np.int32)
        ends[0], ends[1] = 3, 4  # spans {1, 2} and {2, 3}: bar 2 is shared
        np.testing.assert_allclose(uniqueness(ends)[:2, 0], [0.75, 0.75])

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=30))
    def test_weights_times_spans_add_up_to_the_bars_covered(self, lengths: list[int]) -> None:
        n = len(lengths) + 10
        ends = np.full((n, 1), -1, np.int32)
        covered = np.zeros(n + 1, dtype=bool)
        for t, length in enumerate(lengths):
            ends[t, 0] = t + 1 + length
            covered[t + 1 : t + 1 + length] = True
        total = sum(uniqueness(ends)[t, 0] * length for t, length in enumerate(lengths))
        assert total == pytest.approx(covered.sum())


KINDS = ["forward_return", "excess_return", "excess_btc", "net_return", "direction", "vol_scaled", "rank", "triple_barrier"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_looks_beyond_the_time_it_is_known(kind: str) -> None:
    panel = noise_panel(160, 6, with_gaps=True)
    settings = ModelSettings.model_validate({"label": kind, "horizon_bars": 6, "win_label": "trade"})
    rule = TradeRule(holding_bars=9)
    labels = make_labels(panel, settings, rule)
    assert labels.horizon_bars == span_bars(settings, rule) == 9
    rng = np.random.default_rng(3)
    for t in (30, 90, 140):
        later = panel.ts_open > labels.known_at_ns[t]
        fields = {name: getattr(panel, name).copy() for name in ("open", "high", "low", "close", "funding_rate")}
        for values in fields.values():
            values[later] *= rng.uniform(0.5, 2.0)
        other = make_labels(changed(panel, **fields), settings, rule)
        for name in ("values", "realised", "trade_long", "trade_short"):
            np.testing.assert_array_equal(getattr(other, name)[: t + 1], getattr(labels, name)[: t + 1], err_msg=name)
    assert np.isfinite(labels.values).any()
    assert np.nanmean(labels.weight) == pytest.approx(1.0)


N, HOLDING, COST, STOP, TAKE = 5, 7, 0.002, 0.02, 0.05


def by_hand(kind: str, panel: MarketPanel, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (label, return it stands for) of row ``t`` written down once more from the definition: enter at open ``t + 1``."""
    entry, leave = panel.open[t + 1], panel.open[t + 1 + N]
    earned = leave / entry - 1.0
    relative = earned - earned.mean()
    paid = np.nansum(panel.funding_rate[t + 2 : t + 2 + N], axis=0)
    steps = np.log(panel.close[t - VOLATILITY_BARS + 1 : t + 1] / panel.close[t - VOLATILITY_BARS : t])
    order = np.argsort(np.argsort(earned))
    trades = [[trade(panel, t + 1, j, side) - COST for side in (LONG, SHORT)] for j in range(len(earned))]
    label = {
        "forward_return": earned,
        "excess_return": relative,
        "excess_btc": earned - earned[panel.symbols.index("BTCUSDT")],
        "net_return": np.sign(earned - paid) * np.maximum(np.abs(earned - paid) - COST, 0.0),
        "direction": np.sign(earned),
        "vol_scaled": earned / (np.sqrt(np.mean(steps**2, axis=0)) * np.sqrt(N)),
        "rank": 2.0 * order / (len(order) - 1) - 1.0,
        "triple_barrier": np.array([(long_ - short) / 2.0 for long_, short in trades]),
    }[kind]
    stands_for = {"excess_return": relative, "excess_btc": relative, "rank": relative, "triple_barrier": label}
    return label, stands_for.get(kind, earned)


def trade(panel: MarketPanel, entry_bar: int, j: int, side: int) -> float:
    """Return what the trade of one coin earns before costs, walked through bar by bar."""
    entry = panel.open[entry_bar, j]
    stop, take = entry * (1.0 - side * STOP), entry * (1.0 + side * TAKE)
    for k in range(entry_bar, entry_bar + HOLDING + 1):
        opened = panel.open[k, j]
        worst, best = (panel.low[k, j], panel.high[k, j])[::side]
        is_out = side * (opened - stop) <= 0.0 or side * (opened - take) >= 0.0 or k == entry_bar + HOLDING
        if k > entry_bar and is_out:
            return float(side * (opened / entry - 1.0))
        if side * (worst - stop) <= 0.0:
            return -STOP
        if k > entry_bar and side * (best - take) >= 0.0:
            return TAKE
    raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
def test_every_label_is_about_the_trade_entered_at_the_next_open(kind: str) -> None:
    # Opens away from the close before: a label that is a bar early or late, at either end, is another number.
    panel = noise_panel(260, 6)
    jumps = np.random.default_rng(8).normal(1.0, 0.003, panel.open.shape)
    opens = np.clip(panel.open * jumps, panel.low, panel.high)
    panel = changed(panel, open=opens)
    settings = ModelSettings.model_validate({"label": kind, "horizon_bars": N})
    rule = TradeRule(min_stop=STOP, max_stop=STOP, min_take=TAKE, max_take=TAKE, holding_bars=HOLDING, cost=COST)
    labels = make_labels(panel, settings, rule)
    for t in (170, 200, 233, 250):
        want, stands_for = by_hand(kind, panel, t)
        np.testing.assert_allclose(labels.values[t], want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(labels.realised[t], stands_for, rtol=1e-9, atol=1e-12)


def test_returns_relative_to_btc_leave_btc_without_a_label_of_its_own() -> None:
    panel = noise_panel(60, 4)
    labels = make_labels(panel, ModelSettings(label="excess_btc", horizon_bars=5))
    np.testing.assert_allclose(labels.values[:54, 1], 0.0, atol=1e-15)
    forward = labels.forward_return
    np.testing.assert_allclose(labels.values[:54, 0], (forward[:, 0] - forward[:, 1])[:54])


def test_relative_label_without_btc_is_refused() -> None:
    panel = noise_panel(60, 4)
    gone = type(panel)(**{f: getattr(panel, f) for f in panel.__dataclass_fields__} | {"symbols": ("A", "B", "C", "D")})
    with pytest.raises(UserError, match="needs BTCUSDT"):
        make_labels(gone, ModelSettings(label="excess_btc"))


def test_trade_rule_follows_the_settings() -> None:
    asked = [
        "strategy.stop_atr=2",
        "strategy.holding_bars=7",
        "backtest.costs.taker_fee=0.001",
        "backtest.costs.half_spread_bps=3",
    ]
    rule = TradeRule.of(load_settings(None, asked, {}))
    assert (rule.stop_atr, rule.holding_bars) == (2.0, 7)
    assert rule.cost == pytest.approx(2 * (0.001 + 0.0003))
    at_a_level = TradeRule.of(load_settings(None, [*asked, "backtest.costs.fee_level=VIP1"], {}))
    assert at_a_level.cost < rule.cost, "the level's published fee counts, not taker_fee"
