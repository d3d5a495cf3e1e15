"""Every exception of ccxt and every code we answer with has a recovery; an order's unknown outcome is never a retry."""

from __future__ import annotations

import inspect
import json

import ccxt
import pytest
from ccxt.base import errors

from crypto_qlib.core.errors import (
    CryptoQlibError,
    DoNotRetry,
    HaltTrading,
    OutcomeUnknown,
    RetryLater,
    SkipCycle,
    UserError,
)
from crypto_qlib.exchange.embedded.wire import MESSAGES
from crypto_qlib.exchange.error_map import BY_CLASS, Recovery, Request, okx_answer, okx_errors, recovery_of, translate

READ = Request("read something")
ORDER = Request("buy something", sends_order=True, client_order_id="abc1")


def wire(code: str, s_code: str = "", message: str = "no") -> str:
    rows = [{"sCode": "0"}, {"sCode": s_code, "sMsg": message}] if s_code else []
    return "okx " + json.dumps({"code": code, "msg": message, "data": rows})


def ccxt_classes() -> set[type[Exception]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {cls for _, cls in members if issubclass(cls, ccxt.BaseError)}


def test_every_ccxt_exception_class_is_mapped() -> None:
    assert ccxt_classes() - set(BY_CLASS) == set(), "ccxt added exceptions: decide what the caller should do about them"
    assert set(BY_CLASS) - ccxt_classes() == set(), "ccxt removed exceptions"


@pytest.mark.parametrize("cls", sorted(ccxt_classes(), key=lambda c: c.__name__))
def test_every_class_leaves_as_one_of_ours(cls: type[Exception]) -> None:
    for request in (READ, ORDER):
        with pytest.raises(CryptoQlibError), okx_errors(request):
            raise cls("okx said something without JSON")


@pytest.mark.parametrize("cls", [ccxt.NetworkError, ccxt.RequestTimeout, ccxt.ExchangeNotAvailable, ccxt.BadResponse])
def test_a_dropped_connection_is_unknown_for_an_order_and_a_retry_for_a_read(cls: type[ccxt.BaseError]) -> None:
    assert isinstance(translate(cls("okx POST https://..."), READ), RetryLater)
    lost = translate(cls("okx POST https://..."), ORDER)
    assert isinstance(lost, OutcomeUnknown)
    assert lost.client_order_id == "abc1"


@pytest.mark.parametrize("code", ["50004", "51054", "51149", "50026", "50005"])
def test_codes_that_leave_the_outcome_open_are_never_a_retry_of_an_order(code: str) -> None:
    # ccxt leaves 51054 and 51149 unmapped: they arrive as a bare ExchangeError, as if the order were refused.
    for error in (ccxt.ExchangeError(wire(code)), ccxt.ExchangeError(wire("1", code))):
        assert isinstance(translate(error, ORDER), OutcomeUnknown)
        assert isinstance(translate(error, READ), RetryLater)


@pytest.mark.parametrize(
    ("error", "expected", "why"),
    [
        (ccxt.InsufficientFunds(wire("1", "51008")), DoNotRetry, "no margin: the same order will not fit a second later"),
        (ccxt.ExchangeError(wire("1", "51169")), DoNotRetry, "unmapped in ccxt: nothing to reduce"),
        (ccxt.RateLimitExceeded(wire("50011")), RetryLater, "refused before it was looked at"),
        (ccxt.ExchangeError(wire("50061")), RetryLater, "order rate of the sub-account; a bare ExchangeError in ccxt"),
        (ccxt.InvalidNonce(wire("50102")), RetryLater, "clock skew: refused before it was looked at"),
        (ccxt.AuthenticationError(wire("50111")), UserError, "a human must mend the key"),
        (ccxt.AccountNotEnabled(wire("51010")), UserError, "a human must switch the account's mode"),
        (ccxt.ContractUnavailable(wire("1", "51022")), SkipCycle, "suspended now, maybe not later"),
        (ccxt.ContractUnavailable(wire("1", "51030")), RetryLater, "funding is being settled: a matter of seconds"),
        (ccxt.AccountSuspended(wire("50009")), HaltTrading, "being liquidated"),
        (ccxt.ExchangeError(wire("59000")), DoNotRetry, "mode change with open positions: never in a loop"),
        (ccxt.ExchangeError("okx <html>502 Bad Gateway</html>"), DoNotRetry, "no code: the class decides"),
        (ccxt.OnMaintenance(wire("50001")), RetryLater, "closed for maintenance: the order did not arrive"),
    ],
)
def test_an_order_refused_with(error: ccxt.BaseError, expected: type[CryptoQlibError], why: str) -> None:
    assert type(translate(error, ORDER)) is expected, why


def test_the_failed_rows_code_is_read_past_rows_that_worked() -> None:
    answer = okx_answer(ccxt.ExchangeError(wire("2", "51008", "Insufficient margin")))
    assert (answer.code, answer.message) == ("51008", "Insufficient margin")


@pytest.mark.parametrize("text", ["", "okx", "okx {", "okx []", "okx {}", 'okx {"code": 5}', 'okx {"data": [1]}', "okx {]"])
def test_an_unreadable_body_is_no_crash(text: str) -> None:
    assert isinstance(translate(ccxt.ExchangeError(text), ORDER), CryptoQlibError)


@pytest.mark.parametrize("code", sorted(set(MESSAGES) - {"1", "2"}))
def test_every_code_the_embedded_server_answers_with_has_a_recovery(code: str) -> None:
    recovery = recovery_of(ccxt.ExchangeError(wire(code)), sends_order=True)
    assert isinstance(recovery, Recovery)
    if code.startswith("501"):
        assert recovery in (Recovery.STOP, Recovery.RETRY)


EVERY_CODE = [str(code) for code in range(50_000, 52_000)]
"""All of 50xxx and 51xxx: what OKX documents for trading (444 codes in 2025) and what it may add."""


RAISED: dict[str, type[ccxt.BaseError]] = ccxt.okx().exceptions["exact"]


def recovery_as_it_arrives(code: str) -> Recovery:
    """Return what is done about ``code`` on an order, raised by the class ccxt would raise."""
    cls = RAISED.get(code, ccxt.ExchangeError)
    return recovery_of(cls(wire("1", code)), sends_order=True)


# Every code that is more than a plain refusal of this request, and what the caller does about it.
MORE_THAN_A_REFUSAL = {
    Recovery.UNKNOWN: "50004 50005 50026 51054 51149 51410",
    Recovery.RETRY: "50001 50011 50013 50023 50036 50037 50040 50041 50061 50102 51030 51113 51513 51767 51774",
    Recovery.SKIP: "50029 50033 51021 51022 51027 51028 51029 51110 51124 51155 51404",
    Recovery.HALT: "50007 50009 50012 50017 50018 50019 50020 50021 50022 50027 50028 51009 51024 51037 51038",
    Recovery.STOP: "50008 50030 50034 50035 50100 50101 50103 50104 50105 50106 50107 50110 50111 50112 50113 50114 50119 "
    "50120 51010 51732 51733 51734 51763 51773",
}


def test_every_code_has_the_recovery_it_should_have() -> None:
    expected = {code: recovery for recovery, codes in MORE_THAN_A_REFUSAL.items() for code in codes.split()}
    found = {code: recovery_as_it_arrives(code) for code in EVERY_CODE}
    assert {code: recovery for code, recovery in found.items() if recovery is not Recovery.REFUSED} == expected


def test_no_code_that_leaves_an_order_s_outcome_open_is_ever_retried() -> None:
    timeouts_and_crashes = [code for code in EVERY_CODE if RAISED.get(code) is ccxt.RequestTimeout]
    for code in (*timeouts_and_crashes, *MORE_THAN_A_REFUSAL[Recovery.UNKNOWN].split()):
        assert recovery_as_it_arrives(code) is Recovery.UNKNOWN
    for status in ("500", "502", "503", "504"):
        error = ccxt.ExchangeNotAvailable(f"okx POST https://... {status} <html>Bad Gateway</html>")
        assert recovery_of(error, sends_order=True) is Recovery.UNKNOWN


def test_a_class_ccxt_adds_later_follows_its_parent() -> None:
    class FreshlyAdded(ccxt.InsufficientFunds):  # type: ignore[misc]
        pass

    assert isinstance(translate(FreshlyAdded("okx"), ORDER), DoNotRetry)


def test_the_message_names_what_was_tried_and_what_okx_said() -> None:
    error = translate(ccxt.ExchangeError(wire("1", "51004", "Order amount exceeds the tier")), ORDER)
    assert str(error).startswith("could not buy something: OKX answered 51004: Order amount exceeds the tier")
    assert "lower the leverage" in str(error)
