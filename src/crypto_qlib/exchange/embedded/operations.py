"""The one door through which the exchange's state changes: write the operation down, carry it out, take in what followed.

Everything that changes an account, the market's clock or the exchange's rules is an *operation*: a name and posted rows
(``trade/order`` with an order, ``admin/step`` with a number of bars). The venue is deterministic, so the operations in their
order *are* the state: carried out again on a fresh exchange they give the same orders, fills, bills and ids, bit for bit.

1. the operation is appended to the journal and made durable; 2. its handler runs; 3. the book takes in the venue's events;
4. the answer goes out. A process killed before 1 never had the operation; killed after it, it has the operation whole at the
next start, whether or not the client heard the answer. An operation that is refused is carried out (and refused) again too:
refused orders use up order numbers.

Handlers of operations must not look at real time or at chance: what they need of either must be among their posted rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.embedded.wire import Call, Reply, Row

Outcome = bytes | Reply
Change = Callable[[Call], Outcome]
"""A handler that may change the exchange's state."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the journal.

    Parameters
    ----------
    number : int
        Running number, from 1.
    name : str
        Endpoint, e.g. ``trade/order`` or ``admin/step``.
    account_id : str
        Whose; empty for operations of the exchange itself.
    rows : list of dict
        What was posted.
    """

    number: int
    name: str
    account_id: str
    rows: list[Row]


class Journal(Protocol):
    """Where operations are written down before they are carried out."""

    def append(self, name: str, account_id: str, rows: list[Row]) -> None:
        """Write one operation down; return once it would outlive this process."""
        ...


class NoJournal:
    """Keep nothing: an exchange that forgets its accounts when it stops."""

    def append(self, name: str, account_id: str, rows: list[Row]) -> None:
        """Forget the operation."""


class Operations:
    """Carry out operations, each written down first.

    Parameters
    ----------
    changes : mapping
        Name -> handler.
    journal : Journal
        Where they are written down.
    after_each : callable
        Runs after every operation, refused or not: takes in the venue's events, so that ids are given in the same order
        when the operations are carried out again.

    Attributes
    ----------
    before : callable | None
        Is told name and rows of what is about to be performed (not of what is repeated); may refuse it, and may perform
        operations that belong before it.
    """

    def __init__(self, changes: Mapping[str, Change], journal: Journal, after_each: Callable[[], None]) -> None:
        self.before: Callable[[str, list[Row]], None] | None = None
        self._changes = changes
        self._journal = journal
        self._after_each = after_each

    def __contains__(self, name: str) -> bool:
        return name in self._changes

    def perform(self, name: str, account_id: str, rows: list[Row]) -> Outcome:
        """Write the operation down and carry it out; return the handler's answer, or raise its refusal."""
        if self.before is not None:
            self.before(name, rows)
        self._journal.append(name, account_id, rows)
        return self._carry_out(name, account_id, rows)

    def repeat(self, operations: Iterable[Operation]) -> int:
        """Carry out operations that were written down before, answers unheard; return how many.

        Raises
        ------
        CryptoQlibError
            If one of them is not known to this version.
        """
        done = 0
        for operation in operations:
            if operation.name not in self._changes:
                raise CryptoQlibError(f"operation {operation.number}, {operation.name}, is unknown to this version")
            with suppress(CryptoQlibError):
                self._carry_out(operation.name, operation.account_id, operation.rows)
            done += 1
        return done

    def _carry_out(self, name: str, account_id: str, rows: list[Row]) -> Outcome:
        try:
            return self._changes[name](Call({}, rows, account_id))
        finally:
            self._after_each()
