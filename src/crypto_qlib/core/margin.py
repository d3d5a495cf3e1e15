"""Margin, PnL and liquidation of USDT-margined swaps, as small compiled functions.

Symbols: ``side`` +1 long / -1 short; ``qty`` base coins (> 0); ``avg_entry``, ``mark``, ``last`` prices in USDT per coin;
``margin`` isolated margin in USDT; ``mmr`` maintenance rate of the tier; ``taker_fee`` the account's *current*
taker rate (> 0), whatever the opening fill paid. All money is in USDT. NaN in gives NaN out.
Each function works on scalars and on equally shaped arrays.

Source: OKX API v5 ``/account/positions``, help pages on isolated and cross margin; every formula is checked against
real payloads in the golden tests.
"""

from __future__ import annotations

from crypto_qlib.core.jit import njit


@njit
def notional(qty: float, price: float) -> float:
    """Return the position value ``qty * price`` in USDT."""
    return qty * price


@njit
def unrealised_pnl(side: float, qty: float, avg_entry: float, mark: float) -> float:
    """Return ``upl = side * qty * (mark - avg_entry)`` in USDT."""
    return side * qty * (mark - avg_entry)


@njit
def realised_pnl(side: float, qty_closed: float, avg_entry: float, fill_price: float) -> float:
    """Return the price PnL of closing ``qty_closed``; reducing never moves ``avg_entry``."""
    return side * qty_closed * (fill_price - avg_entry)


@njit
def average_entry(qty: float, avg_entry: float, qty_added: float, fill_price: float) -> float:
    """Return the quantity-weighted mean entry after adding ``qty_added`` at ``fill_price``."""
    return (qty * avg_entry + qty_added * fill_price) / (qty + qty_added)


@njit
def initial_margin_isolated(qty: float, avg_entry: float, leverage: float) -> float:
    """Return ``qty * avg_entry / leverage``: fixed at the fill, then frozen."""
    return qty * avg_entry / leverage


@njit
def initial_margin_cross(qty: float, mark: float, leverage: float) -> float:
    """Return ``qty * mark / leverage``: floats with the mark."""
    return qty * mark / leverage


@njit
def maintenance_margin(qty: float, mark: float, mmr: float) -> float:
    """Return ``qty * mark * mmr`` (the ``mmr`` amount of a position row), both margin modes."""
    return qty * mark * mmr


@njit
def upl_ratio(side: float, qty: float, avg_entry: float, mark: float, leverage: float) -> float:
    """Return ``upl / (qty * avg_entry / leverage)``: entry-price margin in both modes."""
    return side * qty * (mark - avg_entry) / (qty * avg_entry / leverage)


@njit
def margin_ratio_isolated(
    side: float, qty: float, avg_entry: float, margin: float, mark: float, mmr: float, taker_fee: float
) -> float:
    """Return ``(margin + upl) / (qty * mark * (mmr + taker_fee))``; at or below 1.0 the position is liquidated."""
    return (margin + side * qty * (mark - avg_entry)) / (qty * mark * (mmr + taker_fee))


@njit
def margin_ratio_cross(equity: float, requirement: float) -> float:
    """Return ``equity / requirement`` with ``requirement = sum(qty * mark * (mmr + taker_fee))``; 1.0 is liquidation."""
    return equity / requirement


@njit
def requirement(qty: float, mark: float, mmr: float, taker_fee: float) -> float:
    """Return what equity must exceed: maintenance margin plus the closing fee, ``qty * mark * (mmr + taker_fee)``."""
    return qty * mark * (mmr + taker_fee)


@njit
def liquidation_price_isolated(side: float, qty: float, avg_entry: float, margin: float, mmr: float, taker_fee: float) -> float:
    """Return the mark at which ``margin_ratio_isolated`` is exactly 1.

    ``(qty * avg_entry - side * margin) / (qty * (1 - side * (mmr + taker_fee)))``. A negative result means no
    positive mark liquidates the position. OKX *reports* one tick earlier, see :func:`reported_liquidation_price`.
    """
    return (qty * avg_entry - side * margin) / (qty * (1.0 - side * (mmr + taker_fee)))


@njit
def reported_liquidation_price(side: float, analytic: float, tick_size: float) -> float:
    """Return ``liqPx`` as OKX shows it for isolated positions: one tick towards the entry, not rounded."""
    return analytic + side * tick_size


@njit
def liquidation_price_cross(
    side: float, qty: float, mark: float, equity: float, other_requirement: float, mmr: float, taker_fee: float
) -> float:
    """Return the mark of this instrument at which the account ratio is 1, all other marks held fixed.

    ``(side * qty * mark - (equity - other_requirement)) / (qty * (side - (mmr + taker_fee)))`` where ``equity``
    includes unrealised PnL at current marks. A display figure: the account ratio is what liquidates.
    """
    return (side * qty * mark - (equity - other_requirement)) / (qty * (side - (mmr + taker_fee)))


@njit
def bankruptcy_price(side: float, qty: float, avg_entry: float, margin: float, taker_fee: float) -> float:
    """Return the price at which equity after the closing fee is zero: ``(qty*avg - side*margin)/(qty*(1 - side*fee))``."""
    return (qty * avg_entry - side * margin) / (qty * (1.0 - side * taker_fee))


@njit
def liquidation_price_cross_legs(
    signed_qty: float, mark: float, equity: float, other_requirement: float, required_qty: float
) -> float:
    """Return the mark at which the account ratio is 1 where several cross positions stand in one instrument (hedged legs).

    ``(signed_qty * mark - (equity - other_requirement)) / (signed_qty - required_qty)``: all legs move with the same mark.
    With one leg this is :func:`liquidation_price_cross`. A fully hedged pair (``signed_qty`` 0) can only die of its growing
    requirement, at a mark above. A display figure: the account ratio is what liquidates.

    Parameters
    ----------
    signed_qty : float
        Sum of ``side * qty`` over the legs, base coins.
    equity : float
        Of the account, unrealised PnL at current marks included, USDT.
    other_requirement : float
        Requirement of the positions in *other* instruments, USDT.
    required_qty : float
        Sum of ``qty * (mmr + taker_fee)`` over the legs, base coins.
    """
    return (signed_qty * mark - (equity - other_requirement)) / (signed_qty - required_qty)


@njit
def bankruptcy_price_cross(
    side: float, qty: float, mark: float, equity: float, other_closing_fees: float, taker_fee: float
) -> float:
    """Return the mark of this instrument at which the account is worth its closing fees alone, all other marks held fixed.

    ``(side * qty * mark - (equity - other_closing_fees)) / (qty * (side - taker_fee))``: the cross liquidation price with a
    maintenance rate of zero.

    Parameters
    ----------
    equity : float
        Of the account, unrealised PnL at current marks included, USDT.
    other_closing_fees : float
        Taker fees of closing the other cross positions at their marks, USDT.
    """
    return (side * qty * mark - (equity - other_closing_fees)) / (qty * (side - taker_fee))


@njit
def break_even_price(side: float, qty: float, avg_entry: float, realised_so_far: float, taker_fee: float) -> float:
    """Return ``bePx = (side*qty*avg - realised_so_far) / (qty*(side - taker_fee))``; closing fee at the taker rate."""
    return (side * qty * avg_entry - realised_so_far) / (qty * (side - taker_fee))


@njit
def liquidation_penalty(qty: float, trigger_mark: float, mmr: float) -> float:
    """Return ``mmr * qty * trigger_mark`` (>= 0): the maintenance margin, which is not given back.

    Source: ``liqPenalty`` of real positions-history rows of type 3.
    """
    return mmr * qty * trigger_mark


@njit
def max_leverage_for_stop(stop_distance: float, buffer: float, mmr: float, taker_fee: float) -> float:
    """Return the highest leverage that keeps an isolated liquidation beyond ``stop_distance * (1 + buffer)``.

    From the long's closed form ``1 - liq/entry = (1/leverage - k) / (1 - k)`` with ``k = mmr + taker_fee``:
    ``leverage = 1 / (d * (1 - k) + k)`` where ``d = stop_distance * (1 + buffer)``. For shorts the same bound with
    ``1 + k`` is looser by ``2 d k``; the stricter one of the two is returned for both, ``1 / (d * (1 + k) + k)``.

    Parameters
    ----------
    stop_distance : float
        Fraction of the entry price between entry and stop, > 0.
    buffer : float
        Extra distance wanted, as a fraction of ``stop_distance``.
    """
    k = mmr + taker_fee
    return 1.0 / (stop_distance * (1.0 + buffer) * (1.0 + k) + k)


@njit
def closed_pnl_ratio(net_realised: float, qty: float, open_average: float, leverage: float) -> float:
    """Return ``pnlRatio`` of a closed position: net realised PnL over its entry margin ``qty * open_average / leverage``."""
    return net_realised / (qty * open_average / leverage)
