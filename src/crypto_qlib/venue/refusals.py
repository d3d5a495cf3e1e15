"""Why the exchange says no: every refusal is a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class RefusalCode(StrEnum):
    """Why a request was not carried out."""

    UNKNOWN_INSTRUMENT = "unknown_instrument"
    NOT_LISTED = "not_listed"
    SUSPENDED = "suspended"
    NO_PRICE = "no_price"
    BAD_CLIENT_ORDER_ID = "bad_client_order_id"
    DUPLICATE_CLIENT_ORDER_ID = "duplicate_client_order_id"
    BELOW_MIN_SIZE = "below_min_size"
    ABOVE_MAX_MARKET_SIZE = "above_max_market_size"
    ABOVE_MAX_LIMIT_SIZE = "above_max_limit_size"
    ABOVE_LAST_TIER = "above_last_tier"
    LEVERAGE_ABOVE_CAP = "leverage_above_cap"
    BAD_LEVERAGE = "bad_leverage"
    BAD_PRICE = "bad_price"
    PRICE_OUTSIDE_BAND = "price_outside_band"
    INSUFFICIENT_MARGIN = "insufficient_margin"
    REDUCE_ONLY_WITHOUT_POSITION = "reduce_only_without_position"
    POST_ONLY_WOULD_TAKE = "post_only_would_take"
    NOT_FILLABLE = "not_fillable"
    UNKNOWN_ORDER = "unknown_order"
    AMEND_BELOW_FILLED = "amend_below_filled"
    NO_POSITION = "no_position"
    BAD_PROTECTION = "bad_protection"
    BAD_POSITION_SIDE = "bad_position_side"
    ABOVE_POSITION = "above_position"
    MODE_IN_USE = "mode_in_use"
    STOP_PASSED = "stop_passed"
    TAKE_PROFIT_PASSED = "take_profit_passed"
    TOO_MANY_TRIGGERS = "too_many_triggers"
    CANCELED_BY_CLIENT = "canceled_by_client"
    DEAD_MAN = "dead_man"
    POSITION_CLOSED = "position_closed"
    LIQUIDATED = "liquidated"
    DELISTED = "delisted"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An expected "no": what rule, what it allows and what was asked.

    Parameters
    ----------
    code : RefusalCode
        The rule.
    text : str
        One sentence for a person.
    limit, actual : float
        What the rule allows and what was asked, in the rule's own unit; NaN where it has no numbers.
    """

    code: RefusalCode
    text: str
    limit: float = math.nan
    actual: float = math.nan
