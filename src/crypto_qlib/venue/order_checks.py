"""Why the exchange would refuse an order: every check is a value, none is an exception.

Order of checks: instrument, client id, size limits, price, protection, position (reduce-only), tier and leverage, margin.
Source: OKX error codes 51000-51999 (size, leverage, balance, reduce-only, duplicate client id).
"""

from __future__ import annotations

import math

from crypto_qlib.core import margin as m
from crypto_qlib.core.instrument import Instrument, InstrumentState
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, PositionKey, PositionSide, Protection
from crypto_qlib.core.tiers import NO_TIER
from crypto_qlib.venue.account import VenueAccount
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.records import Refusal, RefusalCode
from crypto_qlib.venue.valuation import free_margin, frozen_margin

MAX_CLIENT_ID = 32
_SLACK = 1e-9


def check_instrument(execution: Execution, symbol: str) -> Refusal | None:
    """Refuse an instrument that is unknown, not (or no longer) listed, suspended, or without any price yet."""
    if symbol not in execution.listing:
        return Refusal(RefusalCode.UNKNOWN_INSTRUMENT, f"instrument {symbol} does not exist")
    instrument = execution.listing.instrument(symbol)
    if not instrument.is_listed(execution.clock.now_ns()):
        return Refusal(RefusalCode.NOT_LISTED, f"instrument {symbol} is not listed at this time")
    # An instrument that expired later still traded before its delisting instant.
    is_past = instrument.state is InstrumentState.EXPIRED and instrument.delisted_ns is not None
    if instrument.state is not InstrumentState.LIVE and not is_past:
        return Refusal(RefusalCode.SUSPENDED, f"instrument {symbol} does not trade: {instrument.state.value}")
    has_price = execution.board.row(symbol) is not None if execution.board.bar else execution.board.last(symbol) > 0.0
    return None if has_price else Refusal(RefusalCode.NO_PRICE, f"instrument {symbol} has no price now")


def check_client_id(account: VenueAccount, client_order_id: str) -> Refusal | None:
    """Refuse an id that is too long, has other characters than letters and digits, or is carried by a pending order."""
    if len(client_order_id) > MAX_CLIENT_ID or (client_order_id and not client_order_id.isalnum()):
        return Refusal(
            RefusalCode.BAD_CLIENT_ORDER_ID,
            f"client order id {client_order_id!r} must be up to {MAX_CLIENT_ID} letters or digits",
        )
    if client_order_id and any(order.client_order_id == client_order_id for order in account.pending.values()):
        return Refusal(
            RefusalCode.DUPLICATE_CLIENT_ORDER_ID, f"client order id {client_order_id} is carried by a pending order"
        )
    return None


def check_position_side(account: VenueAccount, side: PositionSide) -> Refusal | None:
    """Refuse long or short in net mode, and net in long/short mode."""
    if (side is not PositionSide.NET) is account.is_hedged:
        return None
    mode = "long/short" if account.is_hedged else "net"
    return Refusal(RefusalCode.BAD_POSITION_SIDE, f"position side {side.value} does not exist in {mode} mode")


def check_size(instrument: Instrument, kind: OrderKind, lots: int) -> Refusal | None:
    """Refuse a size below the minimum or above the maximum of the order's kind; figures in contracts."""
    contracts = instrument.contracts(lots)
    if contracts < instrument.min_size:
        return Refusal(RefusalCode.BELOW_MIN_SIZE, "order is below the minimum size", instrument.min_size, contracts)
    if kind is OrderKind.MARKET and contracts > instrument.max_market_size:
        return Refusal(
            RefusalCode.ABOVE_MAX_MARKET_SIZE, "order is above the maximum market size", instrument.max_market_size, contracts
        )
    if kind is not OrderKind.MARKET and contracts > instrument.max_limit_size:
        return Refusal(
            RefusalCode.ABOVE_MAX_LIMIT_SIZE, "order is above the maximum limit size", instrument.max_limit_size, contracts
        )
    return None


def check_price(execution: Execution, request: OrderRequest) -> Refusal | None:
    """Refuse a limit price that is no positive multiple of the tick or lies outside the band around the mark."""
    price = request.price
    if price is None:
        return None
    tick = execution.listing.instrument(request.symbol).tick_size
    if not (math.isfinite(price) and price > 0.0) or abs(price / tick - round(price / tick)) > _SLACK * max(price / tick, 1e3):
        return Refusal(RefusalCode.BAD_PRICE, f"price must be a positive multiple of the tick {tick}", tick, price)
    mark = execution.board.mark(request.symbol)
    edge = mark * (1.0 + request.side.sign * execution.config.price_band)
    if request.side.sign * (price - edge) > 0.0:
        return Refusal(RefusalCode.PRICE_OUTSIDE_BAND, "price is beyond the band around the mark", edge, price)
    return None


def check_protection(side: float, protection: Protection | None) -> Refusal | None:
    """Refuse levels that are not positive, a stop on the wrong side of its take-profit, or a ratio outside (0, 1).

    A level that the market has passed already is allowed: it triggers at the next test.
    """
    if protection is None:
        return None
    stop, target, ratio = protection.stop_price, protection.take_profit_price, protection.trailing_ratio
    if any(level is not None and not level > 0.0 for level in (stop, target)):
        return Refusal(RefusalCode.BAD_PROTECTION, "stop and take-profit prices must be positive")
    if stop is not None and target is not None and side * (target - stop) <= 0.0:
        return Refusal(RefusalCode.BAD_PROTECTION, "the stop lies beyond the take-profit", target, stop)
    if ratio is not None and not 0.0 < ratio < 1.0:
        return Refusal(RefusalCode.BAD_PROTECTION, "a trailing ratio must lie between 0 and 1", 1.0, ratio)
    return None


def resulting_lots(account: VenueAccount, key: PositionKey, signed_lots: int, exclude_order: int = 0) -> int:
    """Return the largest absolute size the position could reach: held, plus pending and new orders on the order's side."""
    held = account.positions.get(key)
    total = (held.position.lots if held else 0) + signed_lots
    for order in account.pending.values():
        request = order.request
        if order.order_id == exclude_order or request.closes_only or request.key != key:
            continue
        if request.side.value * signed_lots > 0:
            total += request.side.value * order.remaining_lots
    return abs(total) if total * signed_lots > 0 else 0


def check_leverage(
    execution: Execution, account: VenueAccount, key: PositionKey, signed_lots: int, leverage: float, exclude_order: int = 0
) -> Refusal | None:
    """Refuse a size above the last tier, or a leverage above the cap of the tier of the resulting size."""
    table = execution.listing.tiers(key[0], execution.clock.now_ns())
    contracts = resulting_lots(account, key, signed_lots, exclude_order) * execution.listing.instrument(key[0]).lot_size
    if table.row(contracts) == NO_TIER:
        return Refusal(
            RefusalCode.ABOVE_LAST_TIER, "position would exceed the last tier", float(table.max_contracts[-1]), contracts
        )
    cap = table.leverage_cap(contracts)
    if leverage > cap * (1.0 + _SLACK):
        return Refusal(
            RefusalCode.LEVERAGE_ABOVE_CAP, f"leverage of {key[0]} is above the cap of the resulting size's tier", cap, leverage
        )
    return None


def check_margin(
    execution: Execution, account: VenueAccount, request: OrderRequest, lots: int, price: float, *, exclude_order: int = 0
) -> Refusal | None:
    """Refuse an order whose opening part needs more initial margin and fee than is free, with what its closing part frees."""
    key = request.key
    held = account.positions.get(key)
    opposite = held is not None and held.position.side * request.side.sign < 0
    closing = min(abs(held.position.lots), lots) if held is not None and opposite else 0
    if request.closes_only or lots == closing:
        return None
    base_per_lot = execution.listing.instrument(request.symbol).base_per_lot
    value = (lots - closing) * base_per_lot * price
    need = value / execution.leverage(account, key) + value * account.fees.taker
    others = {k: order for k, order in account.pending.items() if k != exclude_order}
    frozen = frozen_margin(account, others, execution.listing, execution.board, execution.leverage)
    free = free_margin(account, execution.board, frozen, request.margin_mode)
    if held is not None and closing:
        free += _released(account, key, closing, price, execution)
    if need > free + _SLACK * max(need, 1.0):
        return Refusal(RefusalCode.INSUFFICIENT_MARGIN, "initial margin and fee exceed what is available", max(free, 0.0), need)
    return None


def _released(account: VenueAccount, key: PositionKey, closing_lots: int, price: float, execution: Execution) -> float:
    p = account.positions[key].position
    share = closing_lots / abs(p.lots)
    fee = p.qty * share * price * account.fees.taker
    if key[1] is MarginMode.CROSS:
        return m.initial_margin_cross(p.qty, execution.board.mark(key[0]), p.leverage) * share - fee
    return max((p.isolated_margin + m.realised_pnl(p.side, p.qty, p.avg_entry, price)) * share - fee, 0.0)
