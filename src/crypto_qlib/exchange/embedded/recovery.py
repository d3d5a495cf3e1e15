"""Bring an exchange back as it was, keep it on disk while it runs, and leave it whole at the stop.

At the start: 1. the snapshot, if this very code wrote it, else a fresh desk; 2. the journal's operations after it are carried
out again; 3. on the way the books must come out as they were kept. Other code that simulates the same way passes; code that
gives other results is refused, so that no account ever changes behind its owner's back.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import CryptoQlibError, RetryLater, UserError
from crypto_qlib.exchange.embedded.house import OPEN
from crypto_qlib.exchange.embedded.operations import Change, Journal, NoJournal, Operations
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk, Surroundings
from crypto_qlib.exchange.embedded.state_file import RESET_HINT, StateFile
from crypto_qlib.exchange.embedded.state_tables import TableFollower, books_of
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.settings.identity import code_identity

SNAPSHOT_AFTER: Final = 20_000
"""Operations since the last snapshot from which another one is due; more on a longer journal, so that the cost stays small."""

KEPT_NS: Final = 93 * NS_PER_DAY
"""How long orders, fills, bills and closed positions stay in memory; the longest list of OKX reaches three months back."""
UNFILLED_KEPT_NS: Final = 7 * NS_PER_DAY
"""How long orders stay that ended without a fill; OKX lists them for two hours."""

_LOG: Final = logging.getLogger(__name__)
ChangesOf = Callable[[PaperDesk], Mapping[str, Change]]


class Keeper:
    """The exchange's desk and operations, kept in a state file or in memory only.

    Parameters
    ----------
    file : StateFile | None
        Where the state is kept; ``None`` = nowhere.
    around : Surroundings
        The market, standing at its start.
    fresh : callable
        Makes a desk without accounts.
    changes_of : callable
        A desk's handlers by operation name.

    Raises
    ------
    UserError
        If the file's state cannot be brought back by this version.
    """

    def __init__(
        self, file: StateFile | None, around: Surroundings, fresh: Callable[[], PaperDesk], changes_of: ChangesOf
    ) -> None:
        self._file = file
        self._around = around
        self._snapshot_number = 0
        desk = self._loaded() if file else None
        self.desk = desk or fresh()
        journal: Journal = file or NoJournal()
        self.operations = Operations(changes_of(self.desk), journal, self.desk.book.sync)
        self._follower = TableFollower(self.desk.venue.exchange)
        if file:
            self.desk.book.tell(self._follower.notice)
            self._repeat(file)
        self._shown_number = -1
        self._tidied_day = -1

    @property
    def where(self) -> str:
        """Return the file the state is kept in; empty = in memory."""
        return str(self._file.path) if self._file else ""

    def open_account(self, account_id: str, terms: Row) -> None:
        """Open the account on these terms unless it was opened before."""
        if account_id not in self.desk.venue.exchange.account_ids():
            self.operations.perform(OPEN, account_id, [terms])

    def keep_up(self) -> None:
        """Bring the tables up to the journal, and take a snapshot where one is due; cheap where nothing happened."""
        file = self._file
        if file is None:
            self._forget()
        if file is None or file.last_number == self._shown_number:
            return
        try:
            file.show(books_of(self.desk.venue.exchange), self._follower.changed_rows(), {"positions": "true"})
            self._follower.shown()
            self._shown_number = file.last_number
            self._forget()
            if file.last_number - self._snapshot_number >= max(SNAPSHOT_AFTER, self._snapshot_number):
                self._take_snapshot(file)
        except RetryLater as e:
            # The journal has everything; the tables and the snapshot follow once the disk takes them.
            _LOG.warning("%s", e)

    def _forget(self) -> None:
        """Once a day of the market, let go of what no answer reaches any more; the state file's tables keep it.

        Not an operation: nothing that happens later depends on it.
        """
        venue = self.desk.venue.exchange
        day = venue.now_ns // NS_PER_DAY
        if day != self._tidied_day:
            self._tidied_day = day
            venue.forget(venue.now_ns - KEPT_NS, venue.now_ns - UNFILLED_KEPT_NS)
            self.desk.book.forget(venue.now_ns - KEPT_NS)

    def close(self) -> None:
        """Bring the file fully up to date and let go of it."""
        if self._file is None:
            return
        self.keep_up()
        try:
            if self._file.last_number != self._snapshot_number:
                self._take_snapshot(self._file)
        except RetryLater as e:
            _LOG.warning("%s; the next start carries the journal out again", e)
        finally:
            self._file.close()
            self._file = None

    def _loaded(self) -> PaperDesk | None:
        kept = self._file.snapshot() if self._file else None
        if kept is None or kept.code != code_identity():
            return None
        try:
            desk = PaperDesk.load(kept.state, self._around)
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError, EOFError, KeyError, IndexError) as e:
            _LOG.warning(
                "the snapshot after operation %d cannot be read (%s); the journal is carried out again", kept.number, e
            )
            return None
        self._snapshot_number = kept.number
        return desk

    def _repeat(self, file: StateFile) -> None:
        must_be_at, must_be = file.books()
        wanted = file.operations(after=self._snapshot_number)
        try:
            for operation in chain([None], wanted):
                done = operation.number if operation else self._snapshot_number
                if operation:
                    self.operations.repeat([operation])
                if done == must_be_at and must_be and books_of(self.desk.venue.exchange) != must_be:
                    raise UserError(
                        f"this version of the exchange does not arrive at the books kept in {file.path} "
                        f"(operation {done}, written by code {file.fact('code')})",
                        f"go on with the version that wrote it, or {RESET_HINT}",
                    )
        except UserError:
            raise
        except CryptoQlibError as e:
            raise UserError(f"{file.path} was written by another version: {e.message}", RESET_HINT) from e
        # Whoever repeats the journal without a difference speaks for it from now on.
        file.set_fact("code", code_identity())

    def _take_snapshot(self, file: StateFile) -> None:
        file.keep_snapshot(code_identity(), self.desk.dump(self._around))
        self._snapshot_number = file.last_number
