"""OKX's wire format: envelopes, string numbers, refusals.

Every answer is ``{"code": "0", "msg": "", "data": [...]}``; numbers travel as strings, an empty string is "absent".
Source: OKX API v5, "Overview" and "Error codes".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.errors import CryptoQlibError

Row = dict[str, Any]

MESSAGES: Final[dict[str, tuple[int, str]]] = {
    "1": (200, "All operations failed"),
    "2": (200, "Bulk operation partially succeeded."),
    "50000": (400, "Body for POST request cannot be empty."),
    "50001": (503, "Service temporarily unavailable: the data of this market have ended."),
    "50002": (400, "JSON syntax error"),
    "50004": (400, "API endpoint request timeout (does not mean that the request was successful or failed, please check)."),
    "50006": (400, "Invalid Content-Type. Please use application/JSON."),
    "50011": (429, "Too Many Requests"),
    "50014": (400, "Parameter {0} cannot be empty."),
    "50016": (400, "Parameter {0} and {1} does not match"),
    "50036": (400, "The expTime can't be earlier than the current system time. Please adjust the expTime and try again."),
    "50037": (400, "Order expired."),
    "50061": (200, "Sub-account rate limit exceeded: too many new and amended orders."),
    "50101": (401, "APIKey does not match current environment."),
    "50102": (401, "Timestamp request expired"),
    "50103": (401, "Request header OK-ACCESS-KEY cannot be empty."),
    "50104": (401, "Request header OK-ACCESS-PASSPHRASE cannot be empty."),
    "50105": (401, "Request header OK-ACCESS-PASSPHRASE incorrect."),
    "50106": (401, "Request header OK-ACCESS-SIGN cannot be empty."),
    "50107": (401, "Request header OK-ACCESS-TIMESTAMP cannot be empty."),
    "50111": (401, "Invalid OK-ACCESS-KEY"),
    "50112": (401, "Invalid OK-ACCESS-TIMESTAMP"),
    "50113": (401, "Invalid Sign"),
    "50120": (401, "This API key doesn't have permission to use this function"),
    "51000": (400, "Parameter {0} error"),
    "51001": (200, "Instrument ID, Instrument ID code, or Spread ID doesn't exist."),
    "51004": (200, "Order failed. The order amount exceeds the limit of the current tier at this leverage."),
    "51006": (200, "Order price is not within the price limit."),
    "51008": (200, "Order failed. Insufficient USDT margin in account"),
    "51010": (200, "You can't complete this request under your current account mode."),
    "51016": (200, "Client order ID already exists."),
    "51020": (200, "Your order should meet or exceed the minimum order amount."),
    "51021": (200, "The pair or contract is not yet listed"),
    "51022": (200, "Contract suspended."),
    "51023": (200, "Position does not exist."),
    "51046": (200, "The take profit trigger price must be higher than the order price"),
    "51047": (200, "The stop loss trigger price must be lower than the order price"),
    "51100": (200, "Unable to place order. Take profit/Stop loss conditions cannot be added to reduce-only orders."),
    "51101": (200, "Entered amount exceeds the max pending order amount (Cont) per transaction."),
    "51112": (200, "Close order size exceeds your available amount."),
    "51121": (200, "Order quantity must be a multiple of the lot size."),
    "51169": (200, "Order failed because you don't have any positions in this direction for this contract to reduce or close."),
    "51170": (200, "Failed to place reduce-only order. It can't have the same trading direction as your existing position."),
    "51202": (200, "Market order amount exceeds the maximum amount."),
    "51277": (200, "TP trigger price can not be higher than the last price"),
    "51278": (200, "SL trigger price can not be lower than the last price"),
    "51279": (200, "TP trigger price can not be lower than the last price"),
    "51280": (200, "SL trigger price can not be higher than the last price"),
    "51261": (200, "Each user can hold up to {0} pending stop orders at the same time."),
    "51400": (200, "Order cancellation failed as the order has been filled, canceled or does not exist."),
    "51503": (200, "Order modification failed as the order has been filled, canceled or does not exist."),
    "51603": (200, "Order does not exist"),
    "59000": (200, "Setting failed. Cancel any open orders, close positions, and stop trading bots first."),
    "59102": (200, "Leverage exceeds the maximum limit. Please lower the leverage."),
    "59105": (200, "Leverage can't be less than the minimum value."),
}
"""Codes this server answers with: (HTTP status, message)."""


class WireRefusal(CryptoQlibError):
    """A request refused with one of OKX's codes.

    Parameters
    ----------
    code : str
        A key of :data:`MESSAGES`.
    *names : str
        Fill the placeholders of the message.
    """

    def __init__(self, code: str, *names: str) -> None:
        status, text = MESSAGES[code]
        super().__init__(text.format(*names))
        self.code = code
        self.http_status = status


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it: empty strings and nulls already count as "not sent".

    Parameters
    ----------
    query : dict
        Query parameters.
    body : list of dict
        Posted objects; a posted single object is a list of one.
    account_id : str
        Account the key belongs to; empty on public paths.
    """

    query: dict[str, str] = field(default_factory=dict)
    body: list[Row] = field(default_factory=list)
    account_id: str = ""

    def required(self, name: str) -> str:
        """Return query parameter ``name``; code 50014 if it is absent."""
        value = self.query.get(name, "")
        if not value:
            raise WireRefusal("50014", name)
        return value

    def whole(self, name: str) -> int | None:
        """Return query parameter ``name`` as an integer, ``None`` if absent; code 51000 if it is no integer."""
        text = self.query.get(name, "")
        if not text:
            return None
        if not (text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()):
            raise WireRefusal("51000", name)
        return int(text)

    def limit(self, default: int, most: int) -> int:
        """Return the page size asked for; more than ``most`` is cut silently, as OKX does."""
        asked = self.whole("limit")
        return default if asked is None or asked <= 0 else min(asked, most)


@dataclass(frozen=True, slots=True)
class Reply:
    """Rows of an order endpoint with the envelope's own code and the server's timestamps.

    Parameters
    ----------
    rows : list of dict
        One per posted operation.
    code : str
        ``"0"`` all done, ``"1"`` all failed, ``"2"`` some failed.
    """

    rows: list[Row]
    code: str = "0"


def sent(row: object) -> Row:
    """Return ``row`` without empty strings and nulls, which OKX reads as "not sent"; code 51000 if it is no object."""
    if not isinstance(row, dict):
        raise WireRefusal("51000", "body")
    return {key: value for key, value in row.items() if value is not None and value != ""}


def envelope(rows: list[Row] | list[list[str]], code: str = "0", msg: str = "") -> bytes:
    """Render an answer."""
    return orjson.dumps({"code": code, "msg": msg, "data": rows})


def order_envelope(reply: Reply, now_us: int) -> bytes:
    """Render an order endpoint's answer; ``inTime`` and ``outTime`` are microseconds."""
    msg = MESSAGES[reply.code][1] if reply.code in MESSAGES else ""
    return orjson.dumps({"code": reply.code, "msg": msg, "data": reply.rows, "inTime": str(now_us), "outTime": str(now_us)})


def num(value: float) -> str:
    """Render a number the way OKX does: shortest exact decimal, no exponent; NaN and infinity are ``""``."""
    if not math.isfinite(value):
        return ""
    # Zero has no sign on the wire.
    text = repr(float(value) + 0.0)
    if "e" in text:
        text = np.format_float_positional(value, trim="-")
    return text.removesuffix(".0")


def plain(text: str) -> str:
    """Return a decimal without trailing zeros: ``51000.0`` is shown as ``51000``."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def ms(ts_ns: int) -> str:
    """Render an instant in milliseconds, as a string."""
    return str(ts_ns // NS_PER_MS)
