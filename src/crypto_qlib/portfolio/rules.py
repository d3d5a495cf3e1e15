"""The numbers a decision obeys, flat, so that compiled code can read them."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from crypto_qlib.core.clock import FRAME_NS
from crypto_qlib.core.costs import BPS
from crypto_qlib.settings.schema import BacktestSettings, CostSettings, Settings, StrategySettings

EQUAL_RISK: Final = 0
FIXED_FRACTION: Final = 1
SCORE_WEIGHTED: Final = 2
KELLY: Final = 3
SIZING_CODES: Final[dict[str, int]] = {
    "equal_risk": EQUAL_RISK,
    "fixed_fraction": FIXED_FRACTION,
    "score_weighted": SCORE_WEIGHTED,
    "kelly": KELLY,
}
"""Sizing names of the settings and their codes in :class:`Rules`."""

AT_MARKET: Final = 0
BY_LIMIT: Final = 1
POST_ONLY: Final = 2
ENTRY_CODES: Final[dict[str, int]] = {"market": AT_MARKET, "limit": BY_LIMIT, "post_only": POST_ONLY}
"""Kinds of entry orders of the settings and their codes in :class:`Rules`."""

CAP_OFF: Final = 100.0
"""``max_beta`` or ``max_cluster`` from which the cap is off, so that betas or clusters need not be known."""
BETA_OFF: Final = CAP_OFF


_NUMPY_OF: Final[dict[type, type]] = {bool: np.bool_, int: np.int64, float: np.float64}


class Rules(NamedTuple):
    """Everything a decision is bound by; same meaning and unit as the settings of the same name.

    Parameters
    ----------
    frame_ns : int
        Length of the bars scores are made on, nanoseconds; the unit of ``holding_bars`` and ``cooldown_bars``.
    decide_every_bars : int
        Bars between two decisions.
    max_open : int
        Positions open at once, pending entries included.
    allow_long, allow_short : bool
        Sides that may be opened.
    min_net_return, min_win_probability, min_daily_turnover, min_listing_days, max_data_age_bars, max_correlation : float
        Filters of an entry; see :mod:`crypto_qlib.portfolio.selection`.
    entry_order : int
        ``AT_MARKET``, ``BY_LIMIT`` or ``POST_ONLY``.
    entry_offset : float
        How far a limit entry waits behind the last close, fraction.
    entry_bars : int
        Bars a limit entry may wait; at most until the next decision.
    replace_margin : float
        Least advantage of a replacement, fraction of notional after costs; infinite = never replace.
    cooldown_bars, holding_bars : int
        Bars without re-entry after a stop-out, and bars after which a position leaves.
    stop_atr, take_profit_atr : float
        Distances in ATRs, then clamped to the four bounds below.
    min_stop_distance, max_stop_distance, min_take_distance, max_take_distance : float
        Bounds as fractions of the entry price; equal bounds fix the distance and need no ATR.
    trailing_atr : float
        Distance of a trailing stop in ATRs, clamped like the stop's; 0 = none.
    stop_on_mark : bool
        Stops, trailing stops and take-profits watch the mark price instead of the last price (``strategy.trigger``).
    sizing : int
        One of the codes in this module.
    risk_per_trade, position_fraction, kelly_cap, leverage, max_position_fraction : float
        Size of one position; see :mod:`crypto_qlib.portfolio.sizing`.
    max_gross, max_net, max_beta, max_cluster : float
        Book limits, multiples of equity.
    cluster_correlation : float
        Mean correlation from which coins are one cluster; see :mod:`crypto_qlib.portfolio.clusters`.
    liquidation_buffer, max_drawdown : float
        Distance from stop to liquidation in stop distances; drawdown at which entries end.
    taker_fee, maker_fee, impact_y, half_spread_bps : float
        Costs; a negative half spread means "by turnover", a negative maker fee is a rebate.
    expect_funding : bool
        Whether expected funding over the holding time counts as a cost of an entry.
    cross : bool
        Cross margin instead of isolated.
    """

    frame_ns: int = FRAME_NS["1h"]
    decide_every_bars: int = 1
    max_open: int = 10
    allow_long: bool = True
    allow_short: bool = True
    min_net_return: float = 0.0
    min_win_probability: float = 0.5
    min_daily_turnover: float = 1e6
    min_listing_days: float = 7.0
    max_data_age_bars: int = 2
    max_correlation: float = 1.0
    entry_order: int = AT_MARKET
    entry_offset: float = 0.0005
    entry_bars: int = 1
    replace_margin: float = 0.002
    cooldown_bars: int = 12
    holding_bars: int = 24
    stop_atr: float = 3.0
    take_profit_atr: float = 6.0
    min_stop_distance: float = 0.01
    max_stop_distance: float = 0.15
    min_take_distance: float = 0.0
    max_take_distance: float = math.inf
    trailing_atr: float = 0.0
    stop_on_mark: bool = False
    sizing: int = EQUAL_RISK
    risk_per_trade: float = 0.005
    position_fraction: float = 0.1
    kelly_cap: float = 0.25
    leverage: float = 3.0
    max_position_fraction: float = 0.5
    max_gross: float = 3.0
    max_net: float = 0.3
    max_beta: float = 100.0
    max_cluster: float = 100.0
    cluster_correlation: float = 0.7
    liquidation_buffer: float = 0.5
    max_drawdown: float = 0.5
    taker_fee: float = 0.0005
    maker_fee: float = 0.0002
    impact_y: float = 0.8
    half_spread_bps: float = -1.0
    expect_funding: bool = True
    cross: bool = False

    @property
    def holding_ns(self) -> int:
        """Return the longest holding time, nanoseconds."""
        return self.holding_bars * self.frame_ns

    @property
    def cooldown_ns(self) -> int:
        """Return the pause after a stop-out, nanoseconds, counted from the close of the bar of the stop."""
        return self.cooldown_bars * self.frame_ns

    @property
    def entry_ns(self) -> int:
        """Return how long a limit entry may wait, nanoseconds: no longer than to the next decision."""
        return min(self.entry_bars, self.decide_every_bars) * self.frame_ns


RULES: Final = np.dtype([(name, _NUMPY_OF[type(value)]) for name, value in Rules._field_defaults.items()])
"""Record form of :class:`Rules`: compiled functions pass one pointer instead of a number for each field."""


def rules_record(rules: Rules) -> Any:
    """Return ``rules`` as the record compiled functions take; fields are read by the same names."""
    return np.array([tuple(rules)], RULES)[0]


def rules_from_settings(settings: Settings, at_ns: int = 0) -> Rules:
    """Return the rules that ``strategy``, ``backtest.costs``, ``backtest.margin_mode`` and ``data.frame`` describe."""
    return build_rules(settings.strategy, settings.backtest, FRAME_NS[settings.data.frame], at_ns)


def build_rules(strategy: StrategySettings, backtest: BacktestSettings, frame_ns: int, at_ns: int = 0) -> Rules:
    """Return the rules of a strategy on bars of ``frame_ns`` with the costs and margin mode of ``backtest``.

    The fees are those in force at ``at_ns``; the engine puts later ones in their place as they come.
    """
    costs: CostSettings = backtest.costs
    same = {name: getattr(strategy, name) for name in Rules._fields if name in type(strategy).model_fields}
    same["sizing"] = SIZING_CODES[strategy.sizing]
    same["entry_order"] = ENTRY_CODES[strategy.entry_order]
    fees = costs.fees().at(at_ns)
    return Rules(
        **same,
        frame_ns=frame_ns,
        entry_offset=strategy.entry_offset_bps * BPS,
        taker_fee=fees.taker,
        maker_fee=fees.maker,
        impact_y=costs.impact_y,
        half_spread_bps=costs.half_spread_bps,
        cross=backtest.margin_mode == "cross",
        stop_on_mark=strategy.trigger == "mark",
    )
