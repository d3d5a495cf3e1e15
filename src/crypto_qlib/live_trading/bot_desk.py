"""What a listed person may ask of a session in a chat, and what the chat answers; knows no chat service.

``/status /profit /positions /balance`` read the ledger. ``/halt`` and ``/reduce`` are obeyed at once: the kill switch must not
ask back. ``/resume``, ``/close SYMBOL``, ``/closeall`` and ``/stop`` ask back and are obeyed once the same person says yes
within a minute. All of them go through the control book, as the command line's do. Anybody else gets no answer, and is logged
once.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_S, iso
from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.live_trading.controls import Verb
from crypto_qlib.live_trading.instance import SessionCard
from crypto_qlib.live_trading.session_status import ledger_of, session_status
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import EquityRow, Ledger, SessionRow
from crypto_qlib.store.notice_box import NoticeBox

LOG: Final = logging.getLogger(__name__)
CONFIRM_WITHIN_NS: Final = 60 * NS_PER_S
TOO_OLD_NS: Final = 120 * NS_PER_S
"""Age from which a command is a wish of the past; a halt is obeyed at any age."""
_SYMBOL: Final = re.compile(r"[A-Z0-9]{2,30}")
_AT_ONCE: Final = frozenset({Verb.HALT, Verb.REDUCE})
_WORDS: Final = {
    "halt": (Verb.HALT, "send nothing any more"),
    "reduce": (Verb.REDUCE, "only exits"),
    "resume": (Verb.RESUME, "trade again"),
    "close": (Verb.CLOSE, "close {} at market"),
    "closeall": (Verb.CLOSE, "close EVERY position at market"),
    "stop": (Verb.STOP, "end the session, positions as set"),
}
HELP: Final = (
    "/status /profit /positions /balance\n/halt send nothing any more\n/reduce only exits\n/resume\n/close SYMBOL\n/closeall\n"
    "/stop end the session\n/ack N (or /ack) seen an alert"
)

FindSession = Callable[[], tuple[SessionCard, bool] | None]


@dataclass(frozen=True, slots=True)
class Said:
    """What the chat says.

    Parameters
    ----------
    text : str
        The answer.
    confirm : str
        Token of the question that waits for yes or no; empty where nothing is asked.
    asked : int
        Row of the control book whose answer is still to come; 0 for none.
    """

    text: str
    confirm: str = ""
    asked: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    user: int
    until_ns: int
    verb: Verb
    argument: str


@dataclass(slots=True)
class BotDesk:
    """Answer the listed users.

    Parameters
    ----------
    users : frozenset of int
        Who may ask.
    find : callable
        Returns the card of the last session and whether it runs; ``None`` where there never was one.
    password : str
        Opens a ledger on PostgreSQL.
    """

    users: frozenset[int]
    find: FindSession
    password: str = field(default="", repr=False)
    _questions: dict[str, _Question] = field(default_factory=dict, repr=False)
    _strangers: set[int] = field(default_factory=set, repr=False)

    def is_listed(self, user: int, service: str = "Telegram") -> bool:
        """Return whether the user may ask; logs each stranger once."""
        if user in self.users:
            return True
        if user not in self._strangers and len(self._strangers) < 1000:  # noqa: PLR2004 - a crowd is not worth memory
            self._strangers.add(user)
            LOG.warning("%s user %d is not in alerts.telegram_users: not answered", service, user)
        return False

    def answer(self, user: int, text: str, now_ns: int, sent_ns: int) -> Said | None:
        """Return the answer to a message, ``None`` for a stranger.

        Parameters
        ----------
        user : int
            Who sent it.
        text : str
            ``/command argument``.
        now_ns, sent_ns : int
            Now, and when it was sent.
        """
        if not self.is_listed(user):
            return None
        word, _, argument = text.strip().removeprefix("/").partition(" ")
        word, argument = word.partition("@")[0].lower(), argument.strip().upper()
        try:
            if word in _WORDS:
                return self._command(user, word, argument, now_ns, sent_ns)
            reading = {"status": _status, "profit": _profit, "positions": _positions, "balance": _balance}.get(word)
            if reading is not None:
                with self._ledger() as (card, is_running, ledger):
                    return Said(reading(card, is_running, ledger, now_ns, self.password))
            if word == "ack":
                return self._acknowledge(user, argument, now_ns)
        except CryptoQlibError as e:
            return Said(f"Not done: {e}")
        return Said(HELP)

    def confirm(self, user: int, token: str, *, yes: bool, now_ns: int) -> Said | None:
        """Return what comes of a yes or no; only the one who was asked can give it, once, within a minute."""
        if not self.is_listed(user):
            return None
        question = self._questions.get(token)
        if question is None or question.user != user:
            return Said("Nothing waits for that.")
        del self._questions[token]
        if not yes:
            return Said("Left as it is.")
        if now_ns > question.until_ns:
            return Said("Too late: ask again.")
        try:
            return self._ask(user, question.verb, question.argument, now_ns)
        except CryptoQlibError as e:
            return Said(f"Not done: {e}")

    def row_answer(self, seq: int) -> str | None:
        """Return the session's answer to a row of the control book, ``None`` while there is none."""
        card, _ = self._card()
        book = ControlBook(ledger_of(card, self.password), card.session_id)
        try:
            row = book.row(seq)
            return row.answer if row is not None and row.answered_ns is not None else None
        finally:
            book.close()

    def _command(self, user: int, word: str, argument: str, now_ns: int, sent_ns: int) -> Said:
        verb, what = _WORDS[word]
        if word == "close" and not _SYMBOL.fullmatch(argument):
            return Said("Which one? For example /close BTCUSDT")
        if verb not in _AT_ONCE and now_ns - sent_ns > TOO_OLD_NS:
            return Said(f"/{word} of {iso(sent_ns)} is too old: ask again.")
        given = argument if word == "close" else "drawdown" if word == "resume" and argument == "DRAWDOWN" else ""
        if verb in _AT_ONCE:
            return self._ask(user, verb, given, now_ns)
        self._questions = {token: q for token, q in self._questions.items() if q.until_ns >= now_ns}
        token = secrets.token_hex(8)
        self._questions[token] = _Question(user, now_ns + CONFIRM_WITHIN_NS, verb, given)
        card, is_running = self._card()
        state = "" if is_running else " (it does not run)"
        return Said(f"{what.format(given)}? Session {card.session_id}, {card.mode.upper()}{state}", confirm=token)

    def _ask(self, user: int, verb: Verb, argument: str, now_ns: int) -> Said:
        card, is_running = self._card()
        if not is_running and verb in (Verb.CLOSE, Verb.STOP):
            return Said(f"Session {card.session_id} does not run: close on the exchange itself.")
        book = ControlBook(ledger_of(card, self.password), card.session_id)
        try:
            seq = book.ask(now_ns, verb.value, argument, f"telegram:{user}")
        finally:
            book.close()
        if not is_running:
            return Said(f"Session {card.session_id} does not run: it will obey when it starts.")
        return Said(f"Asked to {verb.value} {argument}".rstrip() + ".", asked=seq)

    def _acknowledge(self, user: int, argument: str, now_ns: int) -> Said:
        if argument and not argument.isdigit():
            return Said("Which one? For example /ack 12")
        with self._ledger() as (card, _, ledger):
            box = NoticeBox(ledger.engine, card.session_id)
            ended = box.acknowledge(now_ns, f"telegram:{user}", int(argument) if argument else None)
        return Said(f"{ended} acknowledged")

    def _card(self) -> tuple[SessionCard, bool]:
        found = self.find()
        if found is None:
            raise CryptoQlibError("no session was ever started here")
        return found

    @contextmanager
    def _ledger(self) -> Iterator[tuple[SessionCard, bool, Ledger]]:
        card, is_running = self._card()
        place = ledger_of(card, self.password)
        ledger = Ledger.open(place, SessionRow(card.session_id, card.started_ns, card.mode, {}))
        try:
            yield card, is_running, ledger
        finally:
            ledger.close()


def _status(card: SessionCard, is_running: bool, _ledger: Ledger, _now_ns: int, password: str) -> str:
    lines = [line.strip() for line in session_status(card, is_running, password).lines()]
    return "\n".join(line for line in lines if not line.startswith("ledger"))


def _balance(_card: SessionCard, _running: bool, ledger: Ledger, _now_ns: int, _password: str) -> str:
    rows = ledger.equity()
    if not rows:
        return "No account yet."
    last = rows[-1]
    ratio = "-" if last.margin_ratio is None else f"{last.margin_ratio:,.1f}"
    used = "-" if last.used_margin is None else f"{last.used_margin:,.2f}"
    return (
        f"Equity {last.equity:,.2f} USDT\nAvailable {last.available:,.2f}\nMargin in use {used}\nMargin ratio {ratio}\n"
        f"Gross {last.gross:,.0f}, net {last.net:+,.0f}\nas of {iso(last.ts_ns)}"
    )


def _profit(_card: SessionCard, _running: bool, ledger: Ledger, now_ns: int, _password: str) -> str:
    rows = ledger.equity()
    if not rows:
        return "No account yet."
    last = rows[-1]
    today = now_ns - now_ns % NS_PER_DAY
    spans = (("Today", today), ("7 days", today - 6 * NS_PER_DAY), ("Since start", 0))
    lines = [f"{name} {_gain(rows, since)}" for name, since in spans]
    fees, funding = sum(f.fee for f in ledger.fills()), sum(f.amount for f in ledger.funding())
    return "\n".join([*lines, f"Fees {-fees:+,.2f}, funding {funding:+,.2f}", f"Equity {last.equity:,.2f} USDT"])


def _gain(rows: list[EquityRow], since_ns: int) -> str:
    start = next((row for row in reversed(rows) if row.ts_ns <= since_ns), rows[0])
    gain = rows[-1].equity - start.equity
    share = gain / start.equity if start.equity else math.nan
    return f"{gain:+,.2f} ({share:+.2%})"


def _positions(_card: SessionCard, _running: bool, ledger: Ledger, _now_ns: int, _password: str) -> str:
    rows = ledger.equity()
    held = ledger.positions(rows[-1].ts_ns) if rows else []
    if not held:
        return "No open position."
    lines = []
    for p in held:
        stop = "NO STOP" if p.stop_price is None else f"stop {p.stop_price:g}"
        away = "" if math.isnan(p.liquidation_distance) else f", liquidation {p.liquidation_distance:.1%} away"
        side = "long" if p.lots > 0 else "short"
        lines.append(f"{p.symbol} {side} {p.leverage:g}x {p.unrealised_pnl:+,.2f}\n  {p.entry:g} -> {p.mark:g}, {stop}{away}")
    return "\n".join([*lines, f"as of {iso(rows[-1].ts_ns)}"])
