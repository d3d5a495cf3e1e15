"""Which order or protection level executes in a bar, and at what price: small compiled functions on scalars.

The venue and the compiled backtest loop call these very functions, so both apply the same rules:

1. :func:`gap_exit` at the open: liquidation on a mark gap first, then a stop or take-profit already passed at the open.
2. :func:`intrabar_exit` inside the bar: adverse extreme before favourable extreme; on the adverse side the nearer level
   wins (stop on its own stream, liquidation on mark; liquidation where the two streams cannot be told apart); both beat
   the take-profit; no take-profit in the entry bar.
3. :func:`optimistic_exit` gives the kindest outcome of the same bar, for best-case/worst-case bounds.
4. :func:`taker_fill_price`, :func:`limit_fill_price`, :func:`fillable_lots` say at what price and how much.

``side`` is the *position's* sign (+1 long, -1 short) in exit functions and the *order's* sign in fill functions. A level of
NaN is absent. Prices returned by exit functions are before slippage. A liquidation is booked at the mark that triggered it.
Source: OKX liquidation and trigger-order rules; ordering inside a bar is this project's conservative choice.
"""

from __future__ import annotations

import math
from typing import Final

from crypto_qlib.core.costs import slippage_bps, slipped_price
from crypto_qlib.core.instrument import round_price_against
from crypto_qlib.core.jit import njit
from crypto_qlib.core.order import ExitKind

NO_EXIT: Final = 0
STOP: Final = 1
TAKE_PROFIT: Final = 2
LIQUIDATION: Final = 3
TRAILING: Final = 4
TIME: Final = 5
SIGNAL: Final = 6
REPLACED: Final = 7
PARTIAL_LIQUIDATION: Final = 8
DELISTED: Final = 9
RISK: Final = 10
MANUAL: Final = 11
ADL: Final = 12

EXIT_KIND_BY_CODE: Final[dict[int, ExitKind]] = {
    STOP: ExitKind.STOP,
    TAKE_PROFIT: ExitKind.TAKE_PROFIT,
    LIQUIDATION: ExitKind.LIQUIDATION,
    TRAILING: ExitKind.TRAILING,
    TIME: ExitKind.TIME,
    SIGNAL: ExitKind.SIGNAL,
    REPLACED: ExitKind.REPLACED,
    PARTIAL_LIQUIDATION: ExitKind.PARTIAL_LIQUIDATION,
    DELISTED: ExitKind.DELISTED,
    RISK: ExitKind.RISK,
    MANUAL: ExitKind.MANUAL,
    ADL: ExitKind.ADL,
}
"""The exit kind each compiled exit code stands for; ``NO_EXIT`` stands for none."""

MAX_SLIPPAGE_BPS: Final = 5_000.0
"""No modelled slippage goes beyond half the price, however thin the market."""

_TICK_SLACK: Final = 1e-9
_PARKINSON: Final = 0.6005612043932249
"""``1 / (2 sqrt(ln 2))``: turns ``ln(high / low)`` into a standard deviation."""
_BPS_PER_ONE: Final = 1e4


@njit
def is_passed(side: float, price: float, level: float) -> bool:
    """Return whether ``price`` is at or beyond a level on the *adverse* side of a position (False for a NaN level)."""
    return side * (price - level) <= 0.0


@njit
def is_reached(side: float, price: float, level: float) -> bool:
    """Return whether ``price`` is at or beyond a level on the *favourable* side of a position (False for a NaN level)."""
    return side * (price - level) >= 0.0


@njit
def gap_exit(
    side: float, last_open: float, mark_open: float, stop: float, take_profit: float, liq_mark: float, stop_on_mark: bool
) -> tuple[int, float]:
    """Return (exit code, raw price) of what the open itself sets off, for a position carried into the bar.

    Liquidation is tested first, on ``mark_open``, and is booked there; then a stop or take-profit whose trigger is already
    passed, which fills at ``last_open``. ``(NO_EXIT, nan)`` where nothing happens.

    Parameters
    ----------
    side : float
        +1 long, -1 short.
    last_open, mark_open : float
        Opens of the two streams, quote units.
    stop, take_profit, liq_mark : float
        Trigger levels and the mark that liquidates; NaN for none.
    stop_on_mark : bool
        Whether stop and take-profit are triggered by the mark rather than by the last price.
    """
    if is_passed(side, mark_open, liq_mark):
        return LIQUIDATION, mark_open
    trigger = mark_open if stop_on_mark else last_open
    if is_passed(side, trigger, stop):
        return STOP, last_open
    if is_reached(side, trigger, take_profit):
        return TAKE_PROFIT, last_open
    return NO_EXIT, math.nan


@njit
def stop_fill(
    side: float, level: float, last_open: float, last_adverse: float, mark_adverse: float, stop_on_mark: bool
) -> float:
    """Return the raw price of a stop set off inside the bar: the worse of trigger and open.

    A mark-triggered stop trades at last, whose distance from the mark is only known at the extremes: where last stood
    worse than mark there, the fill is moved by that difference.
    """
    price = level
    if stop_on_mark:
        price += side * min(side * (last_adverse - mark_adverse), 0.0)
    return side * min(side * price, side * last_open)


@njit
def target_fill(
    side: float, level: float, last_adverse: float, last_favourable: float, mark_favourable: float, stop_on_mark: bool
) -> float:
    """Return the raw price of a take-profit set off inside the bar: its level.

    A mark-triggered one trades at last: where last stood worse than mark at the favourable extremes, the fill is moved by that
    difference, though never beyond the bar's adverse extreme.
    """
    if not stop_on_mark:
        return level
    price = level + side * min(side * (last_favourable - mark_favourable), 0.0)
    return side * max(side * price, side * last_adverse)


@njit
def intrabar_exit(  # noqa: PLR0911 - one return per outcome of the rule table
    side: float,
    last_open: float,
    last_high: float,
    last_low: float,
    mark_open: float,
    mark_high: float,
    mark_low: float,
    stop: float,
    take_profit: float,
    liq_mark: float,
    stop_on_mark: bool,
    entered_this_bar: bool,
) -> tuple[int, float, bool]:
    """Return (exit code, raw price, is_ambiguous) of the inside of one bar under the conservative order of events.

    Parameters
    ----------
    side : float
        +1 long, -1 short.
    last_open, last_high, last_low, mark_open, mark_high, mark_low : float
        The bar in both streams, quote units.
    stop, take_profit, liq_mark : float
        Trigger levels and the mark that liquidates; NaN for none.
    stop_on_mark : bool
        Whether stop and take-profit are triggered by the mark rather than by the last price.
    entered_this_bar : bool
        The position was opened in this bar: levels already passed at the open count, and no take-profit is allowed.

    Returns
    -------
    code : int
        ``NO_EXIT``, ``STOP``, ``TAKE_PROFIT`` or ``LIQUIDATION``.
    raw_price : float
        Fill before slippage (mark for a liquidation); NaN without an exit.
    is_ambiguous : bool
        Whether another order of events inside the bar would have given another outcome.
    """
    last_adverse, mark_adverse = (last_low, mark_low) if side > 0.0 else (last_high, mark_high)
    last_favourable, mark_favourable = (last_high, mark_high) if side > 0.0 else (last_low, mark_low)
    trigger_favourable = mark_favourable if stop_on_mark else last_favourable
    liq_hit = is_passed(side, mark_adverse, liq_mark)
    stop_hit = is_passed(side, mark_adverse if stop_on_mark else last_adverse, stop)
    tp_hit = is_reached(side, trigger_favourable, take_profit)
    if entered_this_bar and liq_hit and is_passed(side, mark_open, liq_mark):
        return LIQUIDATION, mark_open, False
    if liq_hit and stop_hit:
        basis = 0.0 if stop_on_mark else max(abs(last_open - mark_open), abs(last_adverse - mark_adverse))
        lead = side * (stop - liq_mark)
        if lead <= basis:
            return LIQUIDATION, liq_mark, tp_hit or (not stop_on_mark and lead > -basis)
        liq_hit = False
    if liq_hit:
        return LIQUIDATION, liq_mark, tp_hit
    if stop_hit:
        return STOP, stop_fill(side, stop, last_open, last_adverse, mark_adverse, stop_on_mark), tp_hit
    if tp_hit:
        if entered_this_bar:
            return NO_EXIT, math.nan, True
        fill = target_fill(side, take_profit, last_adverse, last_favourable, mark_favourable, stop_on_mark)
        return TAKE_PROFIT, fill, False
    return NO_EXIT, math.nan, False


@njit
def optimistic_exit(
    side: float,
    last_high: float,
    last_low: float,
    mark_high: float,
    mark_low: float,
    take_profit: float,
    stop: float,
    code: int,
    raw_price: float,
    stop_on_mark: bool,
) -> tuple[int, float]:
    """Return (exit code, raw price) of the kindest order of events, given an *ambiguous* conservative outcome.

    The favourable extreme came first where it reaches the take-profit; else a stop that was hit saved the position from
    the liquidation it could not be told from.
    """
    last_favourable = last_high if side > 0.0 else last_low
    favourable = (mark_high if side > 0.0 else mark_low) if stop_on_mark else last_favourable
    if is_reached(side, favourable, take_profit):
        return TAKE_PROFIT, last_favourable if stop_on_mark else take_profit
    adverse = (mark_low if side > 0.0 else mark_high) if stop_on_mark else (last_low if side > 0.0 else last_high)
    if code == LIQUIDATION and is_passed(side, adverse, stop):
        return STOP, stop
    return code, raw_price


@njit
def nearer_stop(side: float, stop: float, trailing_stop: float) -> tuple[float, int]:
    """Return (level, code) of the protective level nearer to the market; a NaN level is absent, NaN for none."""
    if math.isnan(trailing_stop):
        return stop, STOP
    if math.isnan(stop) or side * (trailing_stop - stop) > 0.0:
        return trailing_stop, TRAILING
    return stop, STOP


@njit
def trailing_level(side: float, best: float, callback_ratio: float) -> float:
    """Return the trailing stop ``best * (1 - side * callback_ratio)``; NaN where no best price or no ratio is set."""
    return best * (1.0 - side * callback_ratio)


@njit
def trailing_best(side: float, best: float, last_high: float, last_low: float) -> float:
    """Return the best price since activation after this bar; call it only *after* the adverse extreme was tested."""
    return max(best, last_high) if side > 0.0 else min(best, last_low)


@njit
def limit_fill_price(side: float, limit: float, last_high: float, last_low: float, tick_size: float) -> float:
    """Return ``limit`` where the bar trades through it by at least one tick, else NaN: a touch is not a fill.

    Parameters
    ----------
    side : float
        Sign of the resting order: +1 a buy (needs a lower low), -1 a sell (needs a higher high).
    """
    beyond = limit - last_low if side > 0.0 else last_high - limit
    return limit if beyond >= tick_size * (1.0 - _TICK_SLACK) else math.nan


@njit
def fillable_lots(lots: int, bar_volume: float, base_per_lot: float, max_share: float) -> int:
    """Return how many of ``lots`` a bar can fill: at most ``max_share`` of its volume, rounded down.

    Parameters
    ----------
    lots : int
        Lots wanted, >= 0.
    bar_volume : float
        Base coins traded in the bar; NaN (unknown) sets no limit.
    max_share : float
        Fraction in [0, 1]; 1 or more still limits to the whole volume.
    """
    if math.isnan(bar_volume):
        return lots
    return math.floor(min(float(lots), bar_volume * max_share / base_per_lot + _TICK_SLACK))


@njit
def taker_fill_price(
    side: float,
    raw_price: float,
    order_notional: float,
    adv: float,
    sigma_day_bps: float,
    half_spread_bps: float,
    impact_y: float,
    tick_size: float,
    last_high: float,
    last_low: float,
    bar_quote_volume: float,
) -> float:
    """Return the fill of a taker order: ``raw_price`` slipped against the order, then moved to the worse tick.

    Half spread plus the worse of two impacts: ``Y * sigma_day * sqrt(Q / ADV)``, and the bar's own
    ``Y * sigma_bar * sqrt(Q / V_bar)`` with the Parkinson ``sigma_bar = ln(high/low) / (2 sqrt(ln 2))`` and ``Q / V_bar`` held
    at 1. So a thin or wild bar is dearer than the last month says, never cheaper.

    Parameters
    ----------
    side : float
        Sign of the *order*: +1 buy, -1 sell.
    raw_price : float
        Open, trigger or level, quote units.
    order_notional, adv : float
        USDT; ``adv`` is the daily turnover, <= 0 or NaN where unknown (then the order counts as a whole day's turnover).
    sigma_day_bps, half_spread_bps : float
        Basis points; a NaN volatility charges the half spread alone.
    last_high, last_low, bar_quote_volume : float
        Range and turnover (USDT) of the bar of the fill; a NaN turnover or range leaves the bar's own impact out.
    """
    bps = half_spread_bps
    if impact_y > 0.0:
        turnover = 0.0 if math.isnan(adv) else adv
        sigma = 0.0 if math.isnan(sigma_day_bps) else sigma_day_bps
        bps = slippage_bps(order_notional, turnover, sigma, half_spread_bps, impact_y)
        if not math.isnan(bar_quote_volume) and last_low > 0.0:
            share = min(order_notional / bar_quote_volume, 1.0) if bar_quote_volume > 0.0 else 1.0
            sigma_bar = math.log(last_high / last_low) * _PARKINSON * _BPS_PER_ONE
            bps = max(bps, half_spread_bps + impact_y * sigma_bar * math.sqrt(share))
    return round_price_against(slipped_price(raw_price, side, min(bps, MAX_SLIPPAGE_BPS)), tick_size, side)


@njit
def stop_fill_price(
    side: float,
    raw_price: float,
    order_notional: float,
    adv: float,
    sigma_day_bps: float,
    half_spread_bps: float,
    impact_y: float,
    tick_size: float,
    last_high: float,
    last_low: float,
    bar_quote_volume: float,
) -> float:
    """Return the fill of a stop-market order: as :func:`taker_fill_price`, with twice the half spread."""
    return taker_fill_price(
        side, raw_price, order_notional, adv, sigma_day_bps, 2.0 * half_spread_bps, impact_y, tick_size,
        last_high, last_low, bar_quote_volume,
    )  # fmt: skip
