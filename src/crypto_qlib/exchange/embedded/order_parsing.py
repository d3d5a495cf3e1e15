"""A posted order, as OKX words it, to an :class:`~crypto_qlib.core.order.OrderRequest`.

What is malformed is refused here with OKX's parameter codes; whether a well-formed order is *allowed* is the venue's affair.
``posSide`` is absent or ``net`` in net mode, and needed in long/short mode, where ``reduceOnly`` means nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, TypeVar

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, PositionSide, Protection, Side, TriggerSource
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal

_T = TypeVar("_T")

ORDER_KINDS: Final[dict[str, OrderKind]] = {kind.value: kind for kind in OrderKind} | {"optimal_limit_ioc": OrderKind.MARKET}
ANONYMOUS: Final = "0server"
"""Prefix of the client ids the server makes for orders that came without one; never shown to clients."""
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_MAX_TAG: Final = 16
_MARKET_ONCE_TRIGGERED: Final = "-1"
_LOT_SLACK: Final = Decimal("1e-9")


@dataclass(frozen=True, slots=True)
class PostedOrder:
    """A well-formed order: the request, and the client's own ids that travel with it."""

    request: OrderRequest
    instrument: Instrument
    tag: str
    algo_client_id: str


def posted_order(row: Row, window: MarketWindow, anonymous_id: str, *, hedged: bool) -> PostedOrder:
    """Return the order in ``row``.

    Parameters
    ----------
    row : dict
        One posted object, "not sent" values already dropped.
    window : MarketWindow
        Knows the instruments.
    anonymous_id : str
        Client order id to use where none was sent.
    hedged : bool
        Whether the account is in long/short mode.

    Raises
    ------
    WireRefusal
        51000 for a malformed parameter, 51001 unknown instrument, 51020/51121 size, 51100 protection on a reduce-only order.
    """
    instrument = window.orderable(required(row, "instId"))
    side = position_side(row, hedged=hedged)
    kind = _choice(ORDER_KINDS, row, "ordType")
    price = None if kind is OrderKind.MARKET else number(row, "px")
    reduce_only = not hedged and str(row.get("reduceOnly", "false")).lower() == "true"
    protection, algo_client_id = attached(row, reduce_only=reduce_only)
    tag = str(row.get("tag", ""))
    if len(tag) > _MAX_TAG:
        raise WireRefusal("51000", "tag")
    request = OrderRequest(
        client_order_id=client_id(row, "clOrdId") or anonymous_id,
        symbol=instrument.symbol,
        side=_choice({"buy": Side.BUY, "sell": Side.SELL}, row, "side"),
        lots=lots(row, "sz", instrument),
        kind=kind,
        price=price,
        margin_mode=margin_mode(row, "tdMode"),
        reduce_only=reduce_only,
        protection=protection,
        position_side=side,
    )
    return PostedOrder(request, instrument, tag, algo_client_id)


def required(row: Row, name: str) -> str:
    """Return a posted value as text; 50014 where it was not sent."""
    if name not in row:
        raise WireRefusal("50014", name)
    return str(row[name])


def number(row: Row, name: str) -> float:
    """Return a posted positive number; OKX documents strings, numbers are accepted too."""
    value = float(_decimal(row, name))
    if not (math.isfinite(value) and value > 0.0):
        raise WireRefusal("51000", name)
    return value


def lots(row: Row, name: str, instrument: Instrument) -> int:
    """Return a posted size in lots; 51020 below the minimum, 51121 off the lot grid."""
    contracts = _decimal(row, name)
    if not contracts.is_finite() or contracts <= 0:
        raise WireRefusal("51000", name)
    if contracts < Decimal(str(instrument.min_size)) - _LOT_SLACK:
        raise WireRefusal("51020")
    count = contracts / Decimal(str(instrument.lot_size))
    if abs(count - round(count)) > _LOT_SLACK:
        raise WireRefusal("51121")
    return round(count)


def margin_mode(row: Row, name: str) -> MarginMode:
    """Return cross or isolated."""
    return _choice({mode.value: mode for mode in MarginMode}, row, name)


def client_id(row: Row, name: str) -> str:
    """Return a posted client id, empty where none was sent; 51000 unless 1-32 letters and digits."""
    text = str(row.get(name, ""))
    if text and not _CLIENT_ID.fullmatch(text):
        raise WireRefusal("51000", name)
    return text


def position_side(row: Row, *, hedged: bool) -> PositionSide:
    """Return the position side of a row; 51000 where it does not fit the account's position mode."""
    found = {side.value: side for side in PositionSide}.get(str(row.get("posSide", "net")))
    if found is None or (found is PositionSide.NET) is hedged:
        raise WireRefusal("51000", "posSide")
    return found


def protection_in(row: Row) -> Protection | None:
    """Return the stop-loss and take-profit levels in ``row``; ``None`` where there are none. Both fire market orders."""
    levels: dict[str, float | None] = {}
    sources: set[TriggerSource] = set()
    for prefix in ("sl", "tp"):
        levels[prefix] = number(row, f"{prefix}TriggerPx") if f"{prefix}TriggerPx" in row else None
        if levels[prefix] is None:
            continue
        if str(row.get(f"{prefix}OrdPx", _MARKET_ONCE_TRIGGERED)) != _MARKET_ONCE_TRIGGERED:
            raise WireRefusal("51000", f"{prefix}OrdPx")
        kinds = {source.value: source for source in TriggerSource}
        name = f"{prefix}TriggerPxType"
        sources.add(_choice(kinds, row, name) if name in row else TriggerSource.LAST)
    if not sources:
        return None
    if len(sources) > 1:
        raise WireRefusal("51000", "tpTriggerPxType")
    return Protection(levels["sl"], levels["tp"], sources.pop())


def attached(row: Row, *, reduce_only: bool) -> tuple[Protection | None, str]:
    """Return the protection attached to an order and its client id; 51100 on a reduce-only order."""
    listed = row.get("attachAlgoOrds", [])
    if not isinstance(listed, list) or len(listed) > 1 or not all(isinstance(item, dict) for item in listed):
        raise WireRefusal("51000", "attachAlgoOrds")
    if not listed:
        return None, ""
    if reduce_only:
        raise WireRefusal("51100")
    kept = {key: value for key, value in listed[0].items() if value not in ("", None)}
    return protection_in(kept), client_id(kept, "attachAlgoClOrdId")


def _decimal(row: Row, name: str) -> Decimal:
    try:
        return Decimal(required(row, name))
    except InvalidOperation as e:
        raise WireRefusal("51000", name) from e


def _choice(values: dict[str, _T], row: Row, name: str) -> _T:
    found = values.get(required(row, name))
    if found is None:
        raise WireRefusal("51000", name)
    return found
