"""Errors, branched by what the caller should do next.

Every error this package raises on purpose derives from :class:`CryptoQlibError`; its class says what to
do, its ``hint`` says how to mend it. Expected refusals inside a decision are values (``Veto``), never errors.

======================  ==========================================================
class                   what the caller does
======================  ==========================================================
``UserError``           stop for a human: one clear line, non-zero exit
``SkipCycle``           skip this cycle (stale or partial data); try the next one
``RetryLater``          retry the same request after ``retry_after_s``
``DoNotRetry``          the request was refused for good; never send it again as is
``OutcomeUnknown``      the request may or may not have been carried out: reconcile by client order id
``HaltTrading``         stop opening positions; a human must look
======================  ==========================================================
"""

from __future__ import annotations


class CryptoQlibError(Exception):
    """Carry one clear sentence and, where there is one, the way to mend it.

    Parameters
    ----------
    message : str
        What was wrong, naming the file, setting, symbol or time.
    hint : str
        How to mend it; empty where the message already says so.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(CryptoQlibError):
    """Bad configuration, file, flag or input: stop for a human."""

    exit_code = 2


class SkipCycle(CryptoQlibError):
    """Data is stale or partial: skip this cycle and try the next one."""


class RetryLater(CryptoQlibError):
    """The request was not carried out and may be sent again.

    Parameters
    ----------
    retry_after_s : float
        Seconds to wait before the next try.
    """

    def __init__(self, message: str, hint: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class BadAnswer(RetryLater):
    """The exchange answered, but without what was asked for: ask again, and open nothing on what is not known."""


class DoNotRetry(CryptoQlibError):
    """The exchange refused the request for good.

    Parameters
    ----------
    code : str
        The exchange's own error code, empty where there is none.
    """

    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class OutcomeUnknown(CryptoQlibError):
    """No answer, or an answer that does not say whether the order exists.

    Parameters
    ----------
    client_order_id : str
        The id to reconcile by.
    """

    def __init__(self, message: str, hint: str = "", *, client_order_id: str = "") -> None:
        super().__init__(message, hint)
        self.client_order_id = client_order_id


class HaltTrading(CryptoQlibError):
    """A limit that protects the account was hit, or the account is not what it should be."""

    exit_code = 3
