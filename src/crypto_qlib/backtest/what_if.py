"""Beyond the one run: what would more capital earn, what would more leverage risk, how near was liquidation?

Capacity and ruin run the *engine* again, at other capitals and at other leverages, on the arrays prepared once; nothing
is scaled on paper, so size limits, impact, tiers, stops and liquidations count as they would have. Ruin then resamples
days of each of those runs in blocks (:mod:`crypto_qlib.analytics.ruin`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from crypto_qlib.analytics.performance import annual_return, max_drawdown, periods_per_year, returns_from_equity, sharpe
from crypto_qlib.analytics.ruin import RuinOdds, day_rows, ruin_odds
from crypto_qlib.analytics.trading import over_equity
from crypto_qlib.backtest.engine import run_prepared
from crypto_qlib.backtest.inputs import BacktestInputs, PreparedRun, prepare
from crypto_qlib.backtest.liquidation_distance import liquidation_distance
from crypto_qlib.backtest.result import BacktestResult, at_closes_of
from crypto_qlib.backtest.result_book import fill_book, lot_sizes
from crypto_qlib.core.clock import NS_PER_DAY, frame_name
from crypto_qlib.core.market import FloatArray
from crypto_qlib.portfolio.rules import CAP_OFF, Rules
from crypto_qlib.venue.matching import LIQUIDATION, PARTIAL_LIQUIDATION

CAPITALS: Final = (0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 10_000.0)
"""Multiples of the starting equity at which capacity is measured."""
LEVERAGES: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Multiples of the strategy's exposure at which ruin is measured."""
DEPTHS: Final = (0.2, 0.5, 0.8)
"""Drawdowns whose chance is given."""
HORIZON_DAYS: Final = 365
_LEAST_SHARE: Final = 0.5
"""Capacity is the capital at which this share of the small account's return is left."""


@dataclass(frozen=True, slots=True)
class CapacityPoint:
    """One capital.

    Parameters
    ----------
    capital : float
        Starting equity, USDT.
    annual_return, sharpe : float
        Of the run at that capital.
    annual_profit : float
        ``annual_return * capital``, USDT.
    slippage_bps : float
        Slippage over notional traded, basis points; NaN without a trade.
    mean_leverage : float
        Mean gross notional over equity.
    entries_cut : int
        Entries cut to a share of their bar's volume.
    """

    capital: float
    annual_return: float
    sharpe: float
    annual_profit: float
    slippage_bps: float
    mean_leverage: float
    entries_cut: int


@dataclass(frozen=True, slots=True)
class RuinPoint:
    """One multiple of the strategy's exposure.

    Parameters
    ----------
    multiple : float
        Of every position, cap and risk budget of the settings.
    leverage : float
        Leverage asked for per position; lowered where the contracts allow no more.
    mean_leverage, max_leverage : float
        Gross notional over equity in the run, at closes.
    annual_return, max_drawdown : float
        Of the run itself, without the drawdown brake.
    liquidations : int
        Positions and parts liquidated in the run.
    odds : RuinOdds
        Chances over the horizon.
    """

    multiple: float
    leverage: float
    mean_leverage: float
    max_leverage: float
    annual_return: float
    max_drawdown: float
    liquidations: int
    odds: RuinOdds


@dataclass(frozen=True, slots=True)
class WhatIf:
    """All answers.

    Parameters
    ----------
    capacity : tuple of CapacityPoint
        By capital, smallest first.
    capital_limit : float
        Capital at which half of the smallest account's annual return is left, between points on a log scale; NaN where the
        return never falls that far or was never positive.
    ruin : tuple of RuinPoint
        By multiple, smallest first.
    distance : (n_bars,) float64
        Distance to liquidation at each close, see :func:`~crypto_qlib.backtest.liquidation_distance.liquidation_distance`.
    frame, traded_frame : str
        Bars on which capacity and ruin were run, and those on which the run itself traded, which may be finer.
    """

    capacity: tuple[CapacityPoint, ...]
    capital_limit: float
    ruin: tuple[RuinPoint, ...]
    distance: FloatArray
    frame: str
    traded_frame: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the distance at each bar."""
        ruin = [asdict(p) for p in self.ruin]
        for row in ruin:
            row["odds"]["drawdown"] = {f"{depth:g}": chance for depth, chance in row["odds"]["drawdown"].items()}
        known = self.distance[np.isfinite(self.distance)]
        return {
            "capacity": {"points": [asdict(p) for p in self.capacity], "capital_limit": self.capital_limit},
            "ruin": ruin,
            "nearest_liquidation": float(known.min()) if known.size else float("nan"),
            "frame": self.frame,
            "traded_frame": self.traded_frame,
        }


def what_if(
    inputs: BacktestInputs,
    result: BacktestResult,
    capitals: Sequence[float] = CAPITALS,
    multiples: Sequence[float] = LEVERAGES,
) -> WhatIf:
    """Run the backtest again at other capitals and leverages.

    Parameters
    ----------
    inputs, result : BacktestInputs, BacktestResult
        The run that was made; where it traded on finer bars than ``inputs.panel``, the runs here trade on those of the panel.
    capitals, multiples : sequence of float
        Multiples of its capital, and of its exposure.

    Raises
    ------
    UserError
        If the inputs cannot be right.
    """
    run = replace(prepare(inputs), with_exposure=False, veto_log_rows=0)
    highest = max(inputs.instruments[s].max_leverage for s in run.symbols)
    points = tuple(capacity_point(replace(run, initial_equity=run.initial_equity * k)) for k in sorted(capitals))
    ruin = tuple(ruin_point(run, k, highest) for k in sorted(multiples))
    distance = liquidation_distance(run, at_closes_of(result, run.frame_ns))
    return WhatIf(
        points, capital_limit(points), ruin, distance, frame_name(run.frame_ns), frame_name(result.frame_ns)
    )  # fmt: skip


def capacity_point(run: PreparedRun) -> CapacityPoint:
    """Return what ``run`` earns with its own capital."""
    result = run_prepared(run)
    periods = periods_per_year(run.frame_ns)
    equity = np.concatenate([[run.initial_equity], result.equity])
    returns = returns_from_equity(equity)
    growth = annual_return(returns, periods)
    traded = fill_book(result).notional
    f = result.fills
    slippage = float(np.nansum(f["lots"] * lot_sizes(result)[f["symbol"]] * (f["price"] - f["raw_price"])))
    return CapacityPoint(
        capital=run.initial_equity,
        annual_return=growth,
        sharpe=sharpe(returns, periods),
        annual_profit=growth * run.initial_equity,
        slippage_bps=slippage / traded * 1e4 if traded > 0.0 else float("nan"),
        mean_leverage=float(np.nanmean(over_equity(result.series["gross"], result.equity))),
        entries_cut=result.entries_cut,
    )


def capital_limit(points: Sequence[CapacityPoint]) -> float:
    """Return the capital at which half of the first point's annual return is left; NaN where there is none."""
    least = _LEAST_SHARE * points[0].annual_return
    if not least > 0.0:
        return float("nan")
    for before, after in pairwise(points):
        if after.annual_return < least:
            share = (before.annual_return - least) / (before.annual_return - after.annual_return)
            return float(before.capital * (after.capital / before.capital) ** share)
    return float("nan")


def scaled_rules(rules: Rules, multiple: float, highest_leverage: float) -> Rules:
    """Return rules that take ``multiple`` times the exposure: leverage, risk budgets and caps alike; no drawdown brake.

    Leverage stays between 1 and ``highest_leverage``.
    """
    leverage = min(max(rules.leverage * multiple, 1.0), highest_leverage)
    by_margin = multiple / (leverage / rules.leverage)  # what leverage cannot give, the margin of a position does
    return rules._replace(
        leverage=leverage,
        position_fraction=rules.position_fraction * by_margin,
        risk_per_trade=rules.risk_per_trade * multiple,
        kelly_cap=rules.kelly_cap * multiple,
        max_position_fraction=rules.max_position_fraction * multiple,
        max_gross=rules.max_gross * multiple,
        max_net=rules.max_net * multiple,
        max_beta=_scaled_cap(rules.max_beta, multiple),
        max_cluster=_scaled_cap(rules.max_cluster, multiple),
        max_drawdown=1.0,
    )


def _scaled_cap(cap: float, multiple: float) -> float:
    """Return a cap of the book times ``multiple``; one that is off stays off."""
    return cap if cap >= CAP_OFF else cap * multiple


def ruin_point(run: PreparedRun, multiple: float, highest_leverage: float) -> RuinPoint:
    """Return what ``multiple`` times the exposure of ``run`` risks."""
    rules = scaled_rules(run.rules, multiple, highest_leverage)
    result = run_prepared(replace(run, rules=rules))
    equity = np.concatenate([[run.initial_equity], result.equity])
    hit = np.zeros(result.ts_open.size, np.bool_)
    hit[result.fills["bar"][np.isin(result.fills["kind"], (LIQUIDATION, PARTIAL_LIQUIDATION))]] = True
    days = day_rows(np.concatenate([result.ts_open[:1], result.ts_close]), equity, hit)
    block = max(5.0, float(rules.holding_ns) / NS_PER_DAY)
    leverage = over_equity(result.series["gross"], result.equity)
    return RuinPoint(
        multiple=multiple,
        leverage=rules.leverage,
        mean_leverage=float(np.nanmean(leverage)),
        max_leverage=float(np.nanmax(leverage)),
        annual_return=annual_return(returns_from_equity(equity), periods_per_year(run.frame_ns)),
        max_drawdown=max_drawdown(equity),
        liquidations=int(result.liquidations.size),
        odds=ruin_odds(days, DEPTHS, HORIZON_DAYS, block),
    )
