"""How does the last session stand, by its ledger alone? For people and machines that ask from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.live_trading.instance import SessionCard
from crypto_qlib.live_trading.risk_control import RiskState, risk_from_json
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import EquityRow, IntentRow, Ledger, LedgerPlace, SessionRow
from crypto_qlib.store.our_size import size_after


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """What the ledger says.

    Parameters
    ----------
    card : SessionCard
        Which session.
    is_running : bool
        Whether its process holds the lock now.
    risk : RiskState
        Mode, and who asked for it.
    account : EquityRow | None
        The account at the last decision; ``None`` before the first.
    lots : dict
        Signed lots of our positions by symbol, by the fills in the ledger.
    under_way : tuple of IntentRow
        Orders that may exist at the exchange.
    unanswered : tuple of str
        Commands the session has not read yet.
    """

    card: SessionCard
    is_running: bool
    risk: RiskState
    account: EquityRow | None
    lots: dict[str, int]
    under_way: tuple[IntentRow, ...]
    unanswered: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield what a person should know, line by line."""
        card, account = self.card, self.account
        yield f"session {card.session_id} ({card.mode}): {f'runs, process {card.pid}' if self.is_running else 'does not run'}"
        yield f"  started    {iso(card.started_ns)}"
        yield f"  mode       {self.risk.mode.name}"
        for voice, (mode, reason) in sorted(self.risk.voices.items()):
            yield f"             {voice} asks for {mode.name}: {reason}"
        if account is not None:
            ratio = "-" if account.margin_ratio is None else f"{account.margin_ratio:,.1f}"
            yield f"  account    {account.equity:,.2f} USDT, margin ratio {ratio}, as of {iso(account.ts_ns)}"
        held = ", ".join(f"{symbol} {lots:+d} lots" for symbol, lots in sorted(self.lots.items()))
        yield f"  positions  {held or 'none'}"
        for intent in self.under_way:
            what = f"{intent.client_order_id} {intent.symbol} {intent.signed_lots:+d} lots"
            yield f"  under way  {what}, of {iso(intent.decided_ns)}"
        for command in self.unanswered:
            yield f"  unanswered {command}"
        yield f"  ledger     {card.ledger}"


def ledger_of(card: SessionCard, password: str = "") -> LedgerPlace:
    """Return the place of the session's ledger.

    Raises
    ------
    UserError
        If its file is gone.
    """
    place = LedgerPlace(card.ledger, password)
    if not place.exists():
        raise UserError(f"the ledger {card.ledger} is gone", "start the session anew")
    return place


def session_status(card: SessionCard, is_running: bool, password: str = "") -> SessionStatus:
    """Return how the session of ``card`` stands; ``password`` opens a ledger on PostgreSQL.

    Raises
    ------
    UserError
        If its ledger is gone or cannot be read.
    """
    place = ledger_of(card, password)
    ledger, book = (
        Ledger.open(place, SessionRow(card.session_id, card.started_ns, card.mode, {})),
        ControlBook(place, card.session_id),
    )
    try:
        equity = ledger.equity()
        lots: dict[str, int] = {}
        ids = {intent.client_order_id for intent in ledger.intents()}
        for fill in ledger.fills():
            lots[fill.symbol] = size_after(lots.get(fill.symbol, 0), fill.signed_lots, is_ours=fill.client_order_id in ids)
        return SessionStatus(
            card,
            is_running,
            risk_from_json(ledger.state("risk")) or RiskState(),
            equity[-1] if equity else None,
            {symbol: n for symbol, n in lots.items() if n},
            tuple(ledger.unresolved()),
            tuple(f"{row.verb} {row.argument}".strip() for row in book.waiting()),
        )
    finally:
        ledger.close()
        book.close()
