"""What the account holds while a plan grows: exposures by market, beta and cluster, and what is left once every stop is hit.

The room of a cap is what a new position may still add in its own direction, so a position that hedges always fits.

In cross margin the positions share one account, so the distance from stop to liquidation is a property of all of them
together: with every position at its stop, ``liquidation_buffer`` stop distances beyond it, equity must still cover the
requirement there (:func:`need_at_stop` of each). In isolated margin each position's leverage sees to that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.portfolio.lookup import maintenance_rate_of, today
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.plan_arrays import Held, PlanRows, Scratch
from crypto_qlib.portfolio.rules import CAP_OFF, Rules


class Book(NamedTuple):
    """What the account holds, USDT.

    Parameters
    ----------
    equity, available : float
        Equity and free margin.
    gross, net, beta : float
        Gross, net and beta-weighted net notional.
    at_stops : float
        Equity left above the requirement once every position is beyond its stop; infinite in isolated margin.
    """

    equity: float
    available: float
    gross: float
    net: float
    beta: float
    at_stops: float


@njit_leaf
def need_at_stop(
    rules: Rules, state: StateArrays, version: int, j: int, side: float, qty: float, mark: float, stop: float
) -> float:
    """Return what a cross position takes from the account on the way from ``mark`` to beyond its stop, USDT.

    The loss on the way, plus maintenance margin and closing fee there; a position without a stop (NaN) is taken to have the
    widest one, one already beyond it loses nothing more.
    """
    distance = rules.max_stop_distance if math.isnan(stop) else max(side * (mark - stop) / mark, 0.0)
    distance = min(distance * (1.0 + rules.liquidation_buffer), 1.0)
    rate = maintenance_rate_of(state, version, j, qty) + rules.taker_fee
    return qty * mark * (distance + (1.0 - side * distance) * rate)


@njit_leaf
def beta_of(state: StateArrays, day: int, j: int) -> float:
    """Return the beta of ``j`` to BTC; an unknown one counts as 1."""
    beta: float = today(state.daily, day, j).beta
    return 1.0 if math.isnan(beta) else beta


@njit_leaf
def staying_book(
    rules: Rules, state: StateArrays, day: int, version: int, equity: float, available: float, held: Held, n: int,
    scratch: Scratch,
) -> Book:  # fmt: skip
    """Return the exposure of the positions that are not leaving."""
    gross = net = beta_net = 0.0
    at_stops = equity if rules.cross else math.inf
    for k in range(n):
        if not scratch.is_leaving[k]:
            value = held.qty[k] * held.mark[k]
            gross += value
            net += held.side[k] * value
            beta_net += held.side[k] * value * beta_of(state, day, held.symbol[k])
            if rules.cross:
                at_stops -= need_at_stop(
                    rules, state, version, held.symbol[k], held.side[k], held.qty[k], held.mark[k], held.stop[k]
                )
    return Book(equity, available, gross, net, beta_net, at_stops)


@njit_lent
def without_position(rules: Rules, state: StateArrays, day: int, version: int, book: Book, held: Held, k: int) -> Book:
    """Return the book after position ``k`` has left: its margin is free again, less its unrealised loss."""
    value = held.qty[k] * held.mark[k]
    signed = held.side[k] * value
    released = held.margin[k] + min(held.upl[k], 0.0)
    at_stops = book.at_stops
    if rules.cross:
        at_stops += need_at_stop(rules, state, version, held.symbol[k], held.side[k], held.qty[k], held.mark[k], held.stop[k])
    return Book(
        book.equity, book.available + max(released, 0.0), book.gross - value, book.net - signed,
        book.beta - signed * beta_of(state, day, held.symbol[k]), at_stops,
    )  # fmt: skip


@njit_leaf
def with_position(book: Book, beta: float, side: float, value: float, leverage: float, need: float, taker_fee: float) -> Book:
    """Return the book after a position of ``value`` USDT was opened; ``need`` as :func:`need_at_stop`."""
    fee = value * taker_fee
    return Book(
        book.equity, book.available - value / leverage - fee, book.gross + value, book.net + side * value,
        book.beta + side * value * beta, book.at_stops - need - fee,
    )  # fmt: skip


@njit_lent
def cluster_exposure(
    rules: Rules,
    state: StateArrays,
    day: int,
    j: int,
    held: Held,
    n_held: int,
    scratch: Scratch,
    rows: PlanRows,
    n_entries: int,
) -> float:
    """Return the net notional of the staying and chosen positions in the cluster of ``j``, USDT; 0 where that cap is off."""
    if rules.max_cluster >= CAP_OFF:
        return 0.0
    cluster = today(state.daily, day, j).cluster
    net = 0.0
    for k in range(n_held):
        if not scratch.is_leaving[k] and today(state.daily, day, held.symbol[k]).cluster == cluster:
            net += held.side[k] * held.qty[k] * held.mark[k]
    for k in range(n_entries):
        i = rows.symbol[k]
        if today(state.daily, day, i).cluster == cluster:
            net += rows.side[k] * rows.lots[k] * state.contracts[i].base_per_lot * rows.price[k]
    return net
