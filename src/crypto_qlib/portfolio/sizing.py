"""How large one position becomes: a method's wish, then every cap, each of which may only make it smaller.

1. Reference price ``P``: last close moved by the expected slippage of the order.
2. Stop distance ``d = clamp(stop_atr * atr, min, max)``; take-profit distance likewise; levels on the tick nearer to ``P``.
3. Wish (notional in USDT), with equity ``E``, leverage ``L``, net expected return ``mu`` and cost of a round trip ``c``:

   - equal risk: ``E * risk_per_trade / (d + c)``
   - fixed fraction: ``E * position_fraction * L``
   - score weighted: fixed fraction times ``score / best score of the decision``
   - Kelly: ``E * kelly_cap * mu / sigma_h^2`` with ``sigma_h = sigma_day * sqrt(holding days)``

4. Caps: risk per trade (``E * risk_per_trade / (d + c)``), position, gross, net, beta and cluster room, largest order; in cross
   margin what the account can bear with every position beyond its stop (:mod:`crypto_qlib.portfolio.book`).
5. Leverage: the wanted one, at most the instrument's, the tier's of the resulting size, and the one that keeps the liquidation
   price ``liquidation_buffer`` stop distances beyond the stop; rounded down to 0.01. Fixed fractions shrink with it.
6. Available margin: ``notional * (1 / L + taker fee) <= available * (1 - MARGIN_SLACK)``.
7. Whole lots, rounded down; below the smallest order there is no position.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.costs import BPS, slippage_bps, slipped_price
from crypto_qlib.core.instrument import floor_lots, round_price_against
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import max_leverage_for_stop
from crypto_qlib.core.tiers import NO_TIER, tier_index
from crypto_qlib.portfolio.book import Book, beta_of, need_at_stop
from crypto_qlib.portfolio.lookup import column, tier_count, today
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import AT_MARKET, CAP_OFF, EQUAL_RISK, KELLY, SCORE_WEIGHTED, Rules
from crypto_qlib.portfolio.veto import VetoRule

MARGIN_SLACK: Final = 0.01
"""Share of the available margin left alone: the next open may lie beyond the close the plan was made on."""
LEVERAGE_STEP: Final = 100.0
"""Leverage is a multiple of 1/100, so that what is planned is what the exchange is told."""
TRAILING_STEP: Final = 1e-3
"""Smallest trailing distance and its step. Source: OKX API v5, algo order, ``callbackRatio`` (0.1 % at least)."""
MAX_BPS: Final = 5_000.0
_TIER_PASSES: Final = 8
_SLACK: Final = 1e-9

ACCEPTED: Final = -1
"""Code of a size that no rule refused."""
_UNKNOWN_VOLATILITY: Final = int(VetoRule.UNKNOWN_VOLATILITY)
_POSITION_CAP: Final = int(VetoRule.POSITION_CAP)
_GROSS: Final = int(VetoRule.GROSS)
_NET: Final = int(VetoRule.NET)
_BETA: Final = int(VetoRule.BETA)
_CLUSTER: Final = int(VetoRule.CLUSTER)
_STOPS: Final = int(VetoRule.STOPS)
_LEVERAGE: Final = int(VetoRule.LEVERAGE)
_TIER: Final = int(VetoRule.TIER)
_MARGIN: Final = int(VetoRule.AVAILABLE_MARGIN)
_MIN_SIZE: Final = int(VetoRule.MIN_SIZE)


class Sized(NamedTuple):
    """One position as sized, or the refusal: ``code`` is ``ACCEPTED`` or a veto rule with its limit and actual value.

    ``need`` is what a cross position takes from the account on the way to beyond its stop (``book.need_at_stop``), else 0.
    """

    code: int
    limit: float
    actual: float
    lots: int
    leverage: float
    price: float
    stop: float
    take: float
    need: float
    trail: float


@njit_leaf
def expected_slippage(half: float, adv: float, sigma: float, impact_y: float, order_notional: float) -> float:
    """Return the slippage a taker order is expected to pay, a fraction of its notional; unknown volatility: half spread.

    Parameters
    ----------
    half : float
        Half spread, basis points.
    adv, sigma : float
        Daily turnover (USDT) and volatility (fraction); NaN for unknown.
    """
    if impact_y == 0.0:
        return half * BPS
    turnover = 0.0 if math.isnan(adv) else adv
    sigma_bps = 0.0 if math.isnan(sigma) else sigma / BPS
    return min(slippage_bps(order_notional, turnover, sigma_bps, half, impact_y), MAX_BPS) * BPS


@njit_leaf
def clamped_distance(atrs: float, atr: float, low: float, high: float) -> float:
    """Return ``atrs * atr`` inside ``[low, high]``; equal bounds need no ATR, NaN where the ATR is needed and unknown."""
    if low == high:
        return low
    return min(max(atrs * atr, low), high) if not math.isnan(atr) else math.nan


@njit_leaf
def entry_limit(close: float, side: float, offset: float, tick_size: float) -> float:
    """Return the limit of an entry that waits ``offset`` (a fraction) behind ``close``, on the tick away from the market."""
    return max(round_price_against(close * (1.0 - side * offset), tick_size, -side), tick_size)


@njit_leaf
def trailing_ratio(rules: Rules, atr: float) -> float:
    """Return how far a trailing stop follows the best price, a multiple of ``TRAILING_STEP``; NaN where there is none."""
    if rules.trailing_atr <= 0.0:
        return math.nan
    distance = clamped_distance(rules.trailing_atr, atr, rules.min_stop_distance, rules.max_stop_distance)
    return max(math.floor(distance / TRAILING_STEP + _SLACK), 1.0) * TRAILING_STEP


@njit_leaf
def wanted_notional(
    rules: Rules, equity: float, leverage: float, loss: float, weight: float, net: float, sigma: float
) -> float:
    """Return the notional the sizing method asks for, USDT (step 3 of the module); NaN where it needs an unknown volatility."""
    if rules.sizing == EQUAL_RISK:
        return equity * rules.risk_per_trade / loss
    if rules.sizing == KELLY:
        days = rules.holding_bars * rules.frame_ns / NS_PER_DAY
        return equity * rules.kelly_cap * max(net, 0.0) / (sigma * sigma * days) if sigma > 0.0 else math.nan
    fixed = equity * rules.position_fraction * leverage
    return fixed * weight if rules.sizing == SCORE_WEIGHTED else fixed


@njit_leaf
def tightest_room(
    rules: Rules, book: Book, side: float, beta: float, in_cluster: float, largest: float
) -> tuple[float, int, float, float]:
    """Return (room in USDT, rule, limit, actual) of the book cap that leaves a new position the least room."""
    room, code, limit, actual = rules.max_position_fraction * book.equity, _POSITION_CAP, rules.max_position_fraction, 0.0
    if largest < room:
        room, code, limit, actual = largest, _POSITION_CAP, largest, 0.0
    free = rules.max_gross * book.equity - book.gross
    if free < room:
        room, code, limit, actual = free, _GROSS, rules.max_gross, book.gross / book.equity
    free = rules.max_net * book.equity - side * book.net
    if free < room:
        room, code, limit, actual = free, _NET, rules.max_net, side * book.net / book.equity
    push = side * beta
    if push != 0.0:
        free = (rules.max_beta * book.equity - (1.0 if push > 0.0 else -1.0) * book.beta) / abs(push)
        if free < room:
            room, code, limit, actual = free, _BETA, rules.max_beta, abs(book.beta) / book.equity
    if rules.max_cluster < CAP_OFF:
        free = rules.max_cluster * book.equity - side * in_cluster
        if free < room:
            room, code, limit, actual = free, _CLUSTER, rules.max_cluster, side * in_cluster / book.equity
    return room, code, limit, actual


class Contract(NamedTuple):
    """The contract rules of one symbol: its tiers as views, the rest as numbers."""

    tier_max: npt.NDArray[np.float64]
    tier_mmr: npt.NDArray[np.float64]
    tier_leverage: npt.NDArray[np.float64]
    contracts_per_lot: float
    max_leverage: float


@njit_leaf
def fitted_leverage(
    wanted: float, contract: Contract, lots: int, distance: float, buffer: float, taker_fee: float
) -> tuple[float, int]:
    """Return (leverage, tier row) allowed for ``lots``: wanted, instrument, tier and stop-to-liquidation caps, step 0.01.

    The tier row is ``NO_TIER`` above the last tier; the leverage may come out below 1, which no position can have.
    """
    row = tier_index(lots * contract.contracts_per_lot, contract.tier_max)
    if row == NO_TIER:
        return 0.0, row
    cap = min(wanted, contract.max_leverage)
    cap = min(cap, contract.tier_leverage[row])
    cap = min(cap, max_leverage_for_stop(distance, buffer, contract.tier_mmr[row], taker_fee))
    return math.floor(cap * LEVERAGE_STEP + _SLACK) / LEVERAGE_STEP, row


@njit_leaf
def fitted_lots(
    rules: Rules, state: StateArrays, version: int, j: int, side: float, at_stops: float, contract: Contract, price: float,
    distance: float, notional: float, per_leverage: float,
) -> tuple[int, float, int]:  # fmt: skip
    """Return (lots, leverage, tier row) of at most ``notional`` USDT: size and leverage fit each other's tier.

    A leverage below 1 or a row of ``NO_TIER`` says that nothing fits. ``per_leverage`` is the wish at leverage 1, infinite for
    methods whose wish does not grow with leverage.
    """
    per_lot = state.contracts[j].base_per_lot
    lots = floor_lots(notional / price, per_lot)
    leverage, tier = 0.0, NO_TIER
    for _ in range(_TIER_PASSES):
        leverage, tier = fitted_leverage(rules.leverage, contract, lots, distance, rules.liquidation_buffer, rules.taker_fee)
        if tier == NO_TIER:
            lots = _largest_lots(contract)
            continue
        if leverage < 1.0:
            break
        cap = min(notional, per_leverage * leverage)
        if rules.cross and lots > 0:
            value = lots * per_lot * price
            need = need_at_stop(rules, state, version, j, side, lots * per_lot, price, price * (1.0 - side * distance))
            cap = min(cap, max(at_stops, 0.0) * value / (need + value * rules.taker_fee))
        fitting = min(lots, floor_lots(cap / price, per_lot))
        if fitting == lots:
            break
        lots = fitting
    return lots, leverage, tier


@njit_leaf
def refused(code: int, limit: float, actual: float) -> Sized:
    """Return the refusal ``code`` as a size."""
    return Sized(code, limit, actual, 0, 0.0, math.nan, math.nan, math.nan, 0.0, math.nan)


@njit_leaf
def size_position(  # noqa: PLR0911 - one return for each rule that refuses
    rules: Rules,
    state: StateArrays,
    row: int,
    day: int,
    version: int,
    j: int,
    side: float,
    book: Book,
    in_cluster: float,
    net: float,
    weight: float,
) -> Sized:
    """Return the size, leverage and protection of a new position in symbol ``j``, or the rule that refuses it.

    Parameters
    ----------
    row, day, version : int
        Rows of the bar columns, the daily columns and the tiers.
    side : float
        +1 long, -1 short.
    in_cluster : float
        Net notional already in the symbol's cluster, USDT; read where that cap is on.
    net : float
        Expected return after costs, fraction.
    weight : float
        Share of a full position in (0, 1], for score weighting.
    """
    atr = column(state.atr, row, j)
    distance = clamped_distance(rules.stop_atr, atr, rules.min_stop_distance, rules.max_stop_distance)
    take = clamped_distance(rules.take_profit_atr, atr, rules.min_take_distance, rules.max_take_distance)
    if math.isnan(distance) or math.isnan(take):
        return refused(_UNKNOWN_VOLATILITY, math.nan, math.nan)
    lots_cap = state.contracts[j].max_lots
    close = column(state.close, row, j)
    per_lot = state.contracts[j].base_per_lot
    sigma = today(state.daily, day, j).sigma
    room, code, limit, actual = tightest_room(rules, book, side, beta_of(state, day, j), in_cluster, lots_cap * per_lot * close)
    smallest = max(state.contracts[j].min_lots, 1.0)
    if room < smallest * per_lot * close:
        return refused(code, limit, actual)
    contract = Contract(
        state.tier_max[version, j], state.tier_mmr[version, j], state.tier_leverage[version, j],
        state.contracts[j].contracts_per_lot, state.contracts[j].max_leverage,
    )  # fmt: skip
    half = today(state.daily, day, j).half_spread
    adv = today(state.daily, day, j).adv
    leverage, tier = fitted_leverage(rules.leverage, contract, 1, distance, rules.liquidation_buffer, rules.taker_fee)
    slip = expected_slippage(half, adv, sigma, rules.impact_y, room)
    loss = distance + 2.0 * (rules.taker_fee + slip)
    wish = wanted_notional(rules, book.equity, leverage, loss, weight, net, sigma)
    if math.isnan(wish):
        return refused(_UNKNOWN_VOLATILITY, math.nan, math.nan)
    risk_cap = book.equity * rules.risk_per_trade / loss
    notional = min(wish, risk_cap, room)
    tick = state.contracts[j].tick_size
    if rules.entry_order == AT_MARKET:
        # The slippage of the final size is not above that of the room it was first worked out for.
        price = slipped_price(close, side, expected_slippage(half, adv, sigma, rules.impact_y, notional) / BPS)
    else:
        price = entry_limit(close, side, rules.entry_offset, tick)
    per_leverage = math.inf
    if rules.sizing not in (EQUAL_RISK, KELLY):
        per_leverage = wanted_notional(rules, book.equity, 1.0, loss, weight, net, sigma)
    lots, leverage, tier = fitted_lots(
        rules, state, version, j, side, book.at_stops, contract, price, distance, notional, per_leverage
    )
    if tier != NO_TIER and leverage < 1.0:
        return refused(_LEVERAGE, 1.0, leverage)
    if tier == NO_TIER:
        return refused(_TIER, math.nan, lots * contract.contracts_per_lot)
    free = book.available * (1.0 - MARGIN_SLACK) / (1.0 / leverage + rules.taker_fee)
    if free < lots * per_lot * price:
        lots = floor_lots(max(free, 0.0) / price, per_lot)
        if lots < smallest:
            return refused(_MARGIN, smallest * per_lot * price / leverage, book.available)
    if rules.cross and lots < smallest and book.at_stops < notional:
        return refused(_STOPS, 0.0, book.at_stops / book.equity)
    if lots < smallest:
        return refused(_MIN_SIZE, smallest, notional / price / per_lot)
    stop = round_price_against(price * (1.0 - side * distance), tick, side)
    target = price * (1.0 + side * take)
    target = round_price_against(target, tick, -side) if tick < target < math.inf else math.nan
    need = need_at_stop(rules, state, version, j, side, lots * per_lot, price, stop) if rules.cross else 0.0
    return Sized(ACCEPTED, 0.0, 0.0, lots, leverage, price, stop, target, need, trailing_ratio(rules, atr))


@njit_lent
def _largest_lots(contract: Contract) -> int:
    """Return the largest position the last tier allows, in lots."""
    return floor_lots(contract.tier_max[tier_count(contract.tier_max) - 1], contract.contracts_per_lot)


__all__ = [
    "ACCEPTED", "Book", "Sized", "column", "expected_slippage", "size_position", "tier_count", "today", "wanted_notional",
]  # fmt: skip
