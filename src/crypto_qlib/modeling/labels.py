"""What the model is asked to predict, from *our* fill, and when each label becomes known.

Row ``t`` is decided at the close of bar ``t``; the entry fills at the next bar's open and leaves at most ``N`` bars later::

    forward_return  r[t] = open[t + 1 + N] / open[t + 1] - 1
    excess_return   r[t] - mean over the universe's members at t of r[t]
    excess_btc      r[t] - r[t] of BTC
    net_return      x = r[t] - funding paid by a long;  sign(x) * max(|x| - round-trip cost, 0)
    direction       sign(r[t])
    vol_scaled      r[t] / (volatility of the last bars * sqrt(N))
    rank            rank of r[t] among the members at t, from -1 to 1
    triple_barrier  (net outcome of a long - that of a short) / 2, both with the strategy's stop, take-profit and time exit

The label span of row ``t`` is ``[ts_open[t + 1], ts_open[t + 1 + N]]``, ``N`` being the horizon, or for ``triple_barrier`` the
strategy's holding time; purge and embargo follow from it (``modeling.splits``). (Qlib's default
``Ref($close, -2) / Ref($close, -1) - 1`` is the T+1 rule of another market.)

The *meta-label* of a row is whether the trade in the model's direction would have won, costs paid: ``trade_long > 0`` or
``trade_short > 0``. With ``model.win_label = trade`` the win probability is calibrated on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import average_ranks
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.modeling.label_kernels import (
    barrier_outcomes,
    excess_over_mean,
    forward_returns,
    funding_over,
    net_of_cost,
    trailing_volatility,
    uniqueness,
)
from crypto_qlib.portfolio.market_columns import atr_fraction
from crypto_qlib.settings.schema import ModelSettings, Settings

FloatArray = npt.NDArray[np.float64]

BTC: Final = "BTCUSDT"
VOLATILITY_BARS: Final = 168
"""Bars of the trailing volatility that ``vol_scaled`` divides by."""
HALF_SPREAD_BPS: Final = 1.0
"""Half spread of a label's costs where the settings leave it to turnover."""
RELATIVE_KINDS: Final = ("excess_return", "excess_btc", "rank")
"""Labels that compare coins; their scores say nothing of the market's own move."""


@dataclass(frozen=True, slots=True)
class TradeRule:
    """How the strategy would trade a score; what barrier and net labels are made of.

    Parameters
    ----------
    stop_atr, take_profit_atr : float
        Distances of stop and take-profit in ATRs known at the decision.
    min_stop, max_stop, min_take, max_take : float
        Bounds of the distances, fractions of the entry price.
    holding_bars : int
        Time exit.
    cost : float
        Fees and half spreads of entry and exit together, a fraction of the notional.
    """

    stop_atr: float = 3.0
    take_profit_atr: float = 6.0
    min_stop: float = 0.01
    max_stop: float = 0.15
    min_take: float = 0.0
    max_take: float = math.inf
    holding_bars: int = 24
    cost: float = 0.0012

    @staticmethod
    def of(settings: Settings) -> TradeRule:
        """Return the rule the strategy and cost settings describe; its fee is the first in force, as of entries by market."""
        s, c = settings.strategy, settings.backtest.costs
        half_spread = c.half_spread_bps if c.half_spread_bps >= 0.0 else HALF_SPREAD_BPS
        return TradeRule(
            s.stop_atr,
            s.take_profit_atr,
            s.min_stop_distance,
            s.max_stop_distance,
            holding_bars=s.holding_bars,
            cost=2.0 * (c.fees().at(0).taker + half_spread * 1e-4),
        )


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of every bar and symbol of a panel.

    Parameters
    ----------
    kind : str
        As in ``model.label``.
    horizon_bars : int
        Bars from entry to the end of the longest label span.
    ts_open : (n_bars,) int64
        Grid of the panel.
    frame_ns : int
        Bar length.
    symbols : tuple of str
        Panel order.
    values : (n_bars, n_symbols) float64
        What the model learns; NaN in the last ``N + 1`` bars, where entry or exit has no price (delisting), and where the
        symbol was no member of the universe.
    forward_return : (n_bars, n_symbols) float64
        What a long position earns before costs over the horizon, member or not; NaN in the last bars and without a price.
    realised : (n_bars, n_symbols) float64
        The return that an expected return stands for: ``values`` where they are returns, else the forward return, or its
        excess over the market for labels that compare coins.
    trade_long, trade_short : (n_bars, n_symbols) float64
        Net outcome of the trade the strategy would make on either side, member or not; NaN where no ATR is known.
    weight : (n_bars, n_symbols) float64
        Average uniqueness of the label among the overlapping ones of its symbol, mean 1 over all; NaN without label.
    """

    kind: str
    horizon_bars: int
    ts_open: npt.NDArray[np.int64]
    frame_ns: int
    symbols: tuple[str, ...]
    values: FloatArray
    forward_return: FloatArray
    realised: FloatArray
    trade_long: FloatArray
    trade_short: FloatArray
    weight: FloatArray

    @property
    def known_at_ns(self) -> npt.NDArray[np.int64]:
        """Return the instant from which each row's label is known for sure, ``ts_open[t] + (N + 1) * frame``, ``(n_bars,)``.

        A barrier label may be known earlier, when its trade has left.
        """
        return self.ts_open + (self.horizon_bars + 1) * self.frame_ns

    def of_symbol(self, column: int) -> Labels:
        """Return the labels of one symbol."""
        cut = {
            name: getattr(self, name)[:, [column]]
            for name in ("values", "forward_return", "realised", "trade_long", "trade_short", "weight")
        }
        return replace(self, symbols=(self.symbols[column],), **cut)


def span_bars(settings: ModelSettings, rule: TradeRule) -> int:
    """Return the bars from entry to the end of the longest label span."""
    longest = max((settings.horizon_bars, *settings.extra_horizons))
    if settings.label == "triple_barrier" or settings.win_label == "trade":
        return max(longest, rule.holding_bars)
    return longest


def uses_trades(settings: ModelSettings) -> bool:
    """Return whether the strategy's trades enter the label or the win probability, and costs or stops thereby the model."""
    return settings.label in ("triple_barrier", "net_return") or settings.win_label == "trade"


def make_labels(panel: MarketPanel, settings: ModelSettings, rule: TradeRule | None = None) -> Labels:
    """Return the labels ``settings`` asks for.

    Parameters
    ----------
    panel : MarketPanel
        Bars, including those after the last decision: labels look forward by design.
    settings : ModelSettings
        Kind and horizon.
    rule : TradeRule, optional
        How the strategy trades; the defaults of the settings if absent.

    Raises
    ------
    UserError
        If the label is relative to BTC and the panel has no BTC.
    """
    rule = rule or TradeRule()
    n = settings.horizon_bars
    forward = forward_returns(panel.open, n)
    trade_long, trade_short, ends = _trades(panel, rule)
    of_members = np.where(panel.is_member, forward, np.nan)
    built = _BUILDERS[settings.label](_Source(panel, n, rule, of_members, trade_long, trade_short))
    values = np.where(panel.is_member, built, np.nan)
    if settings.label in RELATIVE_KINDS:
        realised = excess_over_mean(of_members)
    else:
        realised = values if settings.label == "triple_barrier" else forward
    if settings.label != "triple_barrier":
        last = np.arange(panel.n_bars, dtype=np.int32)[:, None] + np.int32(1 + n)
        ends = np.where(np.isfinite(values), last, np.int32(-1)).astype(np.int32)
    weight = uniqueness(ends)
    mean = float(np.nanmean(weight)) if np.isfinite(weight).any() else 1.0
    return Labels(
        settings.label, span_bars(settings, rule), panel.ts_open, panel.frame_ns, panel.symbols, values, forward, realised,
        trade_long, trade_short, weight / mean,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Source:
    """What the builder of a label may read."""

    panel: MarketPanel
    horizon_bars: int
    rule: TradeRule
    forward: FloatArray
    trade_long: FloatArray
    trade_short: FloatArray


def _excess_btc(s: _Source) -> FloatArray:
    if BTC not in s.panel.symbols:
        raise UserError("label excess_btc needs BTCUSDT in the universe", "add universe.include=[BTC]")
    btc = forward_returns(s.panel.open, s.horizon_bars)[:, [s.panel.symbols.index(BTC)]]
    excess: FloatArray = s.forward - btc
    return excess


def _vol_scaled(s: _Source) -> FloatArray:
    volatility = trailing_volatility(s.panel.close, VOLATILITY_BARS)
    scaled: FloatArray = s.forward / (volatility * math.sqrt(s.horizon_bars))
    return scaled


_BUILDERS: Final[dict[str, Callable[[_Source], FloatArray]]] = {
    "forward_return": lambda s: s.forward,
    "excess_return": lambda s: excess_over_mean(s.forward),
    "excess_btc": _excess_btc,
    "net_return": lambda s: net_of_cost(s.forward - funding_over(s.panel.funding_rate, s.horizon_bars), s.rule.cost),
    "direction": lambda s: np.sign(s.forward),
    "vol_scaled": _vol_scaled,
    "rank": lambda s: centred_ranks(s.forward),
    "triple_barrier": lambda s: (s.trade_long - s.trade_short) / 2.0,
}
"""Builder of each label by its settings name."""


def centred_ranks(values: FloatArray) -> FloatArray:
    """Return each row's ranks scaled to [-1, 1], ties sharing a rank; NaN stays NaN, a row with one value gives 0."""
    ranks = np.array([average_ranks(row) for row in values]) if values.size else values.copy()
    counts = np.isfinite(values).sum(axis=1, keepdims=True)
    scaled: FloatArray = np.where(counts > 1, 2.0 * (ranks - 1.0) / np.maximum(counts - 1, 1) - 1.0, ranks * 0.0)
    return scaled


def _trades(panel: MarketPanel, rule: TradeRule) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int32]]:
    """Return the net outcomes of long and short trades, and the later of their exit bars (-1 where either is unknown)."""
    atr = atr_fraction(panel.high, panel.low, panel.close, panel.close)
    stop = np.clip(rule.stop_atr * atr, rule.min_stop, rule.max_stop)
    take = np.clip(rule.take_profit_atr * atr, rule.min_take, rule.max_take)
    long_, long_end = barrier_outcomes(panel.open, panel.high, panel.low, stop, take, rule.holding_bars, 1)
    short, short_end = barrier_outcomes(panel.open, panel.high, panel.low, stop, take, rule.holding_bars, -1)
    known = np.isfinite(long_) & np.isfinite(short)
    return long_ - rule.cost, short - rule.cost, np.where(known, np.maximum(long_end, short_end), -1).astype(np.int32)
