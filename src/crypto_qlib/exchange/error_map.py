"""What should the caller do about this error? ccxt's exceptions and OKX's codes to the classes of ``core.errors``.

OKX's code decides where the answer carries one (ccxt leaves more than half of the documented codes unmapped); otherwise
the ccxt class does. One rule stands above both: a request that *sends an order* and ends without a clear refusal is
``OutcomeUnknown`` and is never sent again before a look-up by its client order id.
Source: OKX API v5, "Error codes"; ccxt 4.5 ``base/errors.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

import ccxt

from crypto_qlib.core.errors import (
    CryptoQlibError,
    DoNotRetry,
    HaltTrading,
    OutcomeUnknown,
    RetryLater,
    SkipCycle,
    UserError,
)


class Recovery(Enum):
    """What to do next."""

    STOP = "stop for a human"
    SKIP = "skip this cycle"
    RETRY = "retry later"
    REFUSED = "do not retry"
    UNKNOWN = "reconcile"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Request:
    """What was being done when it failed.

    Parameters
    ----------
    what : str
        In words, for the message: "place buy BTCUSDT".
    sends_order : bool
        Whether the request may have created an order or changed one.
    client_order_id : str
        The order's id, to reconcile by.
    """

    what: str
    sends_order: bool = False
    client_order_id: str = ""


_R = Recovery
BY_CLASS: Final[dict[type[Exception], Recovery]] = {
    ccxt.BaseError: _R.REFUSED,
    ccxt.ExchangeError: _R.REFUSED,
    ccxt.AuthenticationError: _R.STOP,
    ccxt.PermissionDenied: _R.STOP,
    ccxt.AccountNotEnabled: _R.STOP,
    ccxt.AccountSuspended: _R.HALT,
    ccxt.ArgumentsRequired: _R.REFUSED,
    ccxt.BadRequest: _R.REFUSED,
    ccxt.BadSymbol: _R.REFUSED,
    ccxt.OperationRejected: _R.REFUSED,
    ccxt.NoChange: _R.REFUSED,
    ccxt.MarginModeAlreadySet: _R.REFUSED,
    ccxt.MarketClosed: _R.SKIP,
    ccxt.ManualInteractionNeeded: _R.HALT,
    ccxt.RestrictedLocation: _R.HALT,
    ccxt.InsufficientFunds: _R.REFUSED,
    ccxt.InvalidAddress: _R.REFUSED,
    ccxt.AddressPending: _R.REFUSED,
    ccxt.InvalidOrder: _R.REFUSED,
    ccxt.OrderNotFound: _R.REFUSED,
    ccxt.OrderNotCached: _R.REFUSED,
    ccxt.OrderImmediatelyFillable: _R.REFUSED,
    ccxt.OrderNotFillable: _R.REFUSED,
    ccxt.DuplicateOrderId: _R.REFUSED,
    ccxt.ContractUnavailable: _R.SKIP,
    ccxt.NotSupported: _R.REFUSED,
    ccxt.InvalidProxySettings: _R.STOP,
    ccxt.ExchangeClosedByUser: _R.REFUSED,
    ccxt.OperationFailed: _R.UNKNOWN,
    ccxt.NetworkError: _R.UNKNOWN,
    ccxt.DDoSProtection: _R.UNKNOWN,
    ccxt.RateLimitExceeded: _R.RETRY,
    ccxt.ExchangeNotAvailable: _R.UNKNOWN,
    ccxt.OnMaintenance: _R.RETRY,
    ccxt.InvalidNonce: _R.RETRY,
    ccxt.ChecksumError: _R.RETRY,
    ccxt.RequestTimeout: _R.UNKNOWN,
    ccxt.BadResponse: _R.UNKNOWN,
    ccxt.NullResponse: _R.UNKNOWN,
    ccxt.CancelPending: _R.UNKNOWN,
    ccxt.UnsubscribeError: _R.REFUSED,
}
"""Every exception class of ccxt; ``UNKNOWN`` becomes ``RetryLater`` where the request sent no order."""

BY_CODE: Final[dict[str, Recovery]] = {
    **dict.fromkeys(("50004", "51054", "51149"), _R.UNKNOWN),
    **dict.fromkeys(("50001", "50011", "50013", "50023", "50040", "50041", "50061", "50102", "51030", "51513"), _R.RETRY),
    **dict.fromkeys(("50036", "50037"), _R.RETRY),  # delivered after its own deadline: nothing was done
    # Server errors: on an order they say nothing about what was done before the failure.
    **dict.fromkeys(("50005", "50026", "51410"), _R.UNKNOWN),
    # The instrument cannot be traded now: not listed, suspended, blocked, expired, settling, in call auction.
    **dict.fromkeys(
        ("50029", "50033", "51021", "51022", "51027", "51028", "51029", "51110", "51124", "51155", "51404"), _R.SKIP
    ),
    **dict.fromkeys(("50007", "50009", "50012", "50017", "50018", "50019", "50020", "50021", "50022"), _R.HALT),
    # 51037, 51038: the account's risk allows nothing but orders that reduce it.
    **dict.fromkeys(("50027", "50028", "51009", "51024", "51037", "51038"), _R.HALT),
    **dict.fromkeys(("50030", "50034", "50035"), _R.STOP),
    **dict.fromkeys(("50008", "50100", "50101", "50103", "50104", "50105", "50106", "50107", "50110"), _R.STOP),
    **dict.fromkeys(("50111", "50112", "50113", "50114", "50119", "50120", "51010"), _R.STOP),
}
"""Codes with a meaning of their own; every other code follows its ccxt class, and unmapped ones are refusals."""

HINTS: Final[dict[str, str]] = {
    "50101": "the key is for demo trading and the mode is live, or the other way round: check exchange.mode",
    "50102": "the clock of this machine is off by more than 30 s: synchronise it",
    "50037": "the order was on its way for longer than a request may take; see the connection, and the clock of this machine",
    "50110": "this address is not on the key's IP list",
    "51010": "switch the OKX account to futures mode",
    "51004": "lower the leverage or the size: the tier allows less",
    "51008": "not enough free margin",
    "59000": "close positions and cancel orders before changing modes",
    "59102": "lower the leverage: the instrument allows less",
}
_AUTHENTICATION_HINT: Final = "check OKX_API_KEY, OKX_API_SECRET and OKX_API_PASSPHRASE, and that they fit exchange.mode"
_UNREACHABLE_HINT: Final = "is the exchange up and reachable? see `crypto-qlib doctor`"
_RATE_LIMIT_PAUSE_S: Final = 2.0
_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class OkxAnswer:
    """OKX's own code and message inside a ccxt exception; empty where it carried no JSON."""

    code: str = ""
    message: str = ""


def okx_answer(error: Exception) -> OkxAnswer:
    """Return the code that tells most: the first failed row's ``sCode``, else the envelope's ``code``."""
    text = str(error)
    start = text.find("{")
    if start < 0:
        return OkxAnswer()
    try:
        body = json.loads(text[start:])
    except ValueError:
        return OkxAnswer()
    if not isinstance(body, dict):
        return OkxAnswer()
    rows = body.get("data")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("sCode", "0") not in ("0", ""):
            return OkxAnswer(str(row["sCode"]), str(row.get("sMsg", "")))
    return OkxAnswer(str(body.get("code", "")), str(body.get("msg", "")))


def recovery_of(error: ccxt.BaseError, *, sends_order: bool) -> Recovery:
    """Return what to do about ``error``; a class ccxt added later follows its nearest known parent."""
    recovery = BY_CODE.get(okx_answer(error).code)
    if recovery is None:
        recovery = next(BY_CLASS[parent] for parent in type(error).__mro__ if parent in BY_CLASS)
    if recovery is Recovery.UNKNOWN and not sends_order:
        return Recovery.RETRY
    return recovery


def translate(error: ccxt.BaseError, request: Request) -> CryptoQlibError:
    """Return the error of ``core.errors`` that says what to do about ``error``."""
    answer = okx_answer(error)
    recovery = recovery_of(error, sends_order=request.sends_order)
    reason = f"OKX answered {answer.code}: {answer.message.strip()}" if answer.code else _first_line(error)
    message = f"could not {request.what}: {reason}"
    hint = HINTS.get(answer.code, "")
    match recovery:
        case Recovery.STOP:
            return UserError(message, hint or _AUTHENTICATION_HINT)
        case Recovery.SKIP:
            return SkipCycle(message, hint)
        case Recovery.RETRY:
            pause = _RATE_LIMIT_PAUSE_S if isinstance(error, ccxt.RateLimitExceeded) else _PAUSE_S
            return RetryLater(message, hint or ("" if answer.code else _UNREACHABLE_HINT), retry_after_s=pause)
        case Recovery.UNKNOWN:
            note = hint or f"look order {request.client_order_id} up before sending anything again"
            return OutcomeUnknown(message, note, client_order_id=request.client_order_id)
        case Recovery.HALT:
            return HaltTrading(message, hint or "look at the account on OKX")
        case Recovery.REFUSED:
            return DoNotRetry(message, hint, code=answer.code)


@contextmanager
def okx_errors(request: Request) -> Iterator[None]:
    """Let no ccxt exception out: each leaves as the class of ``core.errors`` that says what to do next."""
    try:
        yield
    except ccxt.BaseError as e:
        raise translate(e, request) from e


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} ({str(error).splitlines()[0][:200] if str(error) else 'no details'})"
