"""Which OKX code each refusal of the venue carries."""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.order import Side
from crypto_qlib.exchange.embedded.wire import WireRefusal
from crypto_qlib.venue.records import Refusal, RefusalCode

_C = RefusalCode
CODES: Final[dict[RefusalCode, tuple[str, ...]]] = {
    _C.UNKNOWN_INSTRUMENT: ("51001",),
    _C.NOT_LISTED: ("51021",),
    _C.SUSPENDED: ("51022",),
    _C.NO_PRICE: ("51022",),
    _C.BAD_CLIENT_ORDER_ID: ("51000", "clOrdId"),
    _C.DUPLICATE_CLIENT_ORDER_ID: ("51016",),
    _C.BELOW_MIN_SIZE: ("51020",),
    _C.ABOVE_MAX_MARKET_SIZE: ("51202",),
    _C.ABOVE_MAX_LIMIT_SIZE: ("51101",),
    _C.ABOVE_LAST_TIER: ("51004",),
    _C.LEVERAGE_ABOVE_CAP: ("51004",),
    _C.BAD_LEVERAGE: ("59105",),
    _C.BAD_PRICE: ("51000", "px"),
    _C.PRICE_OUTSIDE_BAND: ("51006",),
    _C.INSUFFICIENT_MARGIN: ("51008",),
    _C.REDUCE_ONLY_WITHOUT_POSITION: ("51169",),
    _C.POST_ONLY_WOULD_TAKE: ("51000", "px"),
    _C.NOT_FILLABLE: ("51000", "sz"),
    _C.UNKNOWN_ORDER: ("51603",),
    _C.AMEND_BELOW_FILLED: ("51000", "newSz"),
    _C.NO_POSITION: ("51023",),
    _C.BAD_PROTECTION: ("51000", "slTriggerPx"),
    _C.BAD_POSITION_SIDE: ("51000", "posSide"),
    _C.ABOVE_POSITION: ("51112",),
    _C.MODE_IN_USE: ("59000",),
    _C.STOP_PASSED: ("51280",),
    _C.TAKE_PROFIT_PASSED: ("51279",),
    _C.TOO_MANY_TRIGGERS: ("51261", "500"),
    _C.CANCELED_BY_CLIENT: ("51400",),
    _C.DEAD_MAN: ("51400",),
    _C.POSITION_CLOSED: ("51023",),
    _C.LIQUIDATED: ("51023",),
    _C.DELISTED: ("51021",),
}
"""Code and placeholder names by the venue's rule; the last four never refuse a request, they end orders."""


def wire_refusal(refusal: Refusal, **instead: tuple[str, ...]) -> WireRefusal:
    """Return the refusal as clients see it.

    Parameters
    ----------
    refusal : Refusal
        The venue's answer.
    **instead : tuple of str
        Codes of one endpoint that differ from the table, by rule name.
    """
    return WireRefusal(*instead.get(refusal.code.value, CODES[refusal.code]))


def trigger_refusal(refusal: Refusal, side: Side) -> WireRefusal:
    """Return the refusal of an algo order: which code a passed level carries depends on the side."""
    if side is Side.BUY:
        return wire_refusal(refusal, stop_passed=("51278",), take_profit_passed=("51277",))
    return wire_refusal(refusal)
