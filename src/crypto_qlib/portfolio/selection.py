"""Which symbols deserve a position, and in which order.

A symbol is a candidate when the model has an opinion (a finite, non-zero expected return ``r``) and it is neither held nor
pending. Its direction is the sign of ``r``. With ``p`` the win probability (1/2 where unknown: neutral)::

    cost = 2 * (taker_fee + slippage) + side * funding_rate * settlements within the holding time
    net  = |r| - cost
    rank = net * 2 p

A post-only entry pays the maker fee and no slippage on its way in; the gain of its better price is not counted, for it is
filled where the market moves against it.

So without probabilities, funding forecasts and per-symbol costs the order is that of ``|r|``. Ties go to the lower column.
Refused, in this order: switched-off side, blacklist, delisted, stale data, listing age, thin turnover, cool-down, low win
probability, low net return; later, per pick, correlation with a chosen name of the same side, and every limit of
:mod:`crypto_qlib.portfolio.sizing`.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.portfolio.lookup import row_in
from crypto_qlib.portfolio.market_columns import CORRELATION_BARS
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import POST_ONLY, Rules
from crypto_qlib.portfolio.sizing import expected_slippage
from crypto_qlib.portfolio.veto import VetoRule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

OUT: Final = -math.inf
"""Rank of a symbol that is no candidate."""
MIN_COMMON_RETURNS: Final = 24
"""Fewest common returns for a correlation; below that it is unknown and refuses nothing."""

_SIDE_OFF: Final = int(VetoRule.SIDE_OFF)
_BLACKLIST: Final = int(VetoRule.BLACKLIST)
_DELISTING: Final = int(VetoRule.DELISTING)
_STALE: Final = int(VetoRule.STALE_DATA)
_LISTING_AGE: Final = int(VetoRule.LISTING_AGE)
_LIQUIDITY: Final = int(VetoRule.LIQUIDITY)
_COOLDOWN: Final = int(VetoRule.COOLDOWN)
_MIN_WIN: Final = int(VetoRule.MIN_WIN_PROBABILITY)
_MIN_NET: Final = int(VetoRule.MIN_NET_RETURN)


class VetoLog(NamedTuple):
    """Where refusals go.

    Parameters
    ----------
    counts : (n_rules,) int64
        Refusals by rule.
    used : (1,) int64
        Rows of the log in use; counting goes on when the log is full.
    where : (n_rows, 3) int64
        Instant, rule and column (-1: the account) of each refusal; no rows: only counts are kept.
    values : (n_rows, 2) float64
        Limit and actual value.
    """

    counts: IntArray
    used: IntArray
    where: IntArray
    values: FloatArray


@njit_leaf
def note_veto(log: VetoLog, as_of_ns: int, rule: int, j: int, limit: float, actual: float) -> None:
    """Count a refusal and, where there is room, log it."""
    log.counts[rule] += 1
    k = log.used[0]
    if k < log.where.shape[0]:
        log.where[k, 0] = as_of_ns
        log.where[k, 1] = rule
        log.where[k, 2] = j
        log.values[k, 0] = limit
        log.values[k, 1] = actual
        log.used[0] = k + 1


@njit_lent
def static_refusal(  # noqa: PLR0911 - one return for each rule that refuses
    rules: Rules, contract: Any, as_of_ns: int, is_side_on: bool, age: float, close: float, listed_before_ns: float, adv: float,
    cooldown_until_ns: int,
) -> tuple[int, float, float]:  # fmt: skip
    """Return (rule, limit, actual) of the first rule that keeps a symbol out whatever its score; the last is cool-down."""
    if not is_side_on:
        return _SIDE_OFF, math.nan, math.nan
    if contract.blacklisted:
        return _BLACKLIST, math.nan, math.nan
    if as_of_ns >= contract.delisted_ns:
        return _DELISTING, math.nan, math.nan
    if age >= rules.max_data_age_bars or not close > 0.0:
        return _STALE, float(rules.max_data_age_bars), age
    if contract.listed_ns > listed_before_ns:
        return _LISTING_AGE, rules.min_listing_days, (as_of_ns - contract.listed_ns) / NS_PER_DAY
    if rules.min_daily_turnover > 0.0 and not adv >= rules.min_daily_turnover:
        return _LIQUIDITY, rules.min_daily_turnover, adv
    return _COOLDOWN, 0.0, (cooldown_until_ns - as_of_ns) / rules.frame_ns


@njit_leaf
def note_refusal(
    rules: Rules, contract: Any, as_of_ns: int, is_side_on: bool, age: float, close: float, listed_before_ns: float, adv: float,
    cooldown_until_ns: int, fits: bool, win: float, value: float, j: int, log: VetoLog,
) -> None:  # fmt: skip
    """Note the first rule that keeps symbol ``j`` out: a static one unless it ``fits``, low win probability, low net return."""
    if not fits:
        rule, limit, actual = static_refusal(
            rules, contract, as_of_ns, is_side_on, age, close, listed_before_ns, adv, cooldown_until_ns
        )
        note_veto(log, as_of_ns, rule, j, limit, actual)
    elif win < rules.min_win_probability:
        note_veto(log, as_of_ns, _MIN_WIN, j, rules.min_win_probability, win)
    else:
        note_veto(log, as_of_ns, _MIN_NET, j, rules.min_net_return, value)


@njit_leaf
def expected_funding_cost(side: float, rate: float, settlements: float) -> float:
    """Return what funding is expected to take from a position over the holding time, a fraction of notional (< 0: income)."""
    return side * rate * settlements


@njit_leaf
def reference_notional(rules: Rules, equity: float) -> float:
    """Return the order size slippage is forecast for while ranking: an even share of the gross cap, within the position cap."""
    return equity * min(rules.max_position_fraction, rules.max_gross / rules.max_open)


@njit_leaf
def rank_candidates(
    rules: Rules,
    state: StateArrays,
    row: int,
    day: int,
    as_of_ns: int,
    equity: float,
    expected_return: FloatArray,
    win_probability: FloatArray,
    is_taken: BoolArray,
    cooldown_until_ns: IntArray,
    rank: FloatArray,
    net: FloatArray,
    log: VetoLog,
) -> None:
    """Write rank and net expected return of every symbol; ``OUT`` where it is no candidate, with its refusal noted.

    Parameters
    ----------
    expected_return, win_probability : (n_symbols,) float64
        The model's opinion; NaN for none.
    is_taken : (n_symbols,) bool
        Held or pending.
    cooldown_until_ns : (n_symbols,) int64
        Instant before which a symbol stays out.
    rank, net : (n_symbols,) float64
        Results.
    """
    notional = reference_notional(rules, equity)
    listed_before_ns = as_of_ns - rules.min_listing_days * NS_PER_DAY
    ages, closes = state.age[row_in(state.age, row)], state.close[row_in(state.close, row)]
    daily = state.daily[row_in(state.daily, day)]
    funding_rates = state.funding_rate[row_in(state.funding_rate, row)]
    settlements = state.funding_settlements[row_in(state.funding_settlements, row)]
    # In locals: compiled code must read a record again after every write to an array.
    allow_long, allow_short, max_age, min_turnover = (
        rules.allow_long, rules.allow_short, rules.max_data_age_bars, rules.min_daily_turnover,
    )  # fmt: skip
    taker_fee, impact_y, min_win, min_net = (
        rules.taker_fee, rules.impact_y, rules.min_win_probability, rules.min_net_return,
    )  # fmt: skip
    for j in range(expected_return.size):
        # No branch where nothing is refused: which symbols are taken, and which side each is on, no processor could foresee.
        r = expected_return[j]
        is_open = (not is_taken[j]) & (abs(r) > 0.0)
        side = 1.0 if r > 0.0 else -1.0
        is_side_on = allow_long if r > 0.0 else allow_short
        adv = daily[j].adv
        contract = state.contracts[j]
        fits = (
            is_side_on
            & (not contract.blacklisted)
            & (as_of_ns < contract.delisted_ns)
            & (not ages[j] >= max_age)
            & (closes[j] > 0.0)
            & (contract.listed_ns <= listed_before_ns)
            & ((min_turnover <= 0.0) | (adv >= min_turnover))
            & (cooldown_until_ns[j] <= as_of_ns)
        )
        p = win_probability[j]
        cost = taker_fee + expected_slippage(daily[j].half_spread, adv, daily[j].sigma, impact_y, notional)
        cost = cost + rules.maker_fee if rules.entry_order == POST_ONLY else 2.0 * cost
        value = abs(r) - cost - expected_funding_cost(side, funding_rates[j], settlements[j])
        is_good = (not p < min_win) & (not value < min_net)
        net[j] = value
        rank[j] = value * (1.0 if math.isnan(p) else 2.0 * p) if is_open & fits & is_good else OUT
        if is_open & (not (fits & is_good)):
            note_refusal(
                rules, contract, as_of_ns, is_side_on, ages[j], closes[j], listed_before_ns, adv, cooldown_until_ns[j], fits, p,
                value, j, log,
            )  # fmt: skip


@njit_leaf
def best_candidate(rank: FloatArray) -> int:
    """Return the column of the highest rank, the lowest one on a tie, or -1 where none is left."""
    best = -1
    value = OUT
    for j in range(rank.size):
        if rank[j] > value:
            value = rank[j]
            best = j
    return best


@njit_lent
def correlation(returns: FloatArray, end: int, i: int, j: int) -> float:
    """Return the correlation of two symbols' latest returns before row ``end``; NaN below ``MIN_COMMON_RETURNS`` in common."""
    n = 0
    si = sj = sii = sjj = sij = 0.0
    for t in range(max(end - CORRELATION_BARS, 0), end):
        a = returns[t, i]
        b = returns[t, j]
        if math.isnan(a) or math.isnan(b):
            continue
        n += 1
        si += a
        sj += b
        sii += a * a
        sjj += b * b
        sij += a * b
    if n < MIN_COMMON_RETURNS:
        return math.nan
    vi = sii - si * si / n
    vj = sjj - sj * sj / n
    if vi <= 0.0 or vj <= 0.0:
        return math.nan
    return (sij - si * sj / n) / math.sqrt(vi * vj)
