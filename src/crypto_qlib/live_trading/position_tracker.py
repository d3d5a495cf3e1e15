"""Whose is each position, and what do we know of it that the exchange does not?

The exchange shows size, entry, margin and protection. The tracker adds what only the ledger knows: the score a position was
opened with, which symbols cool down after a stop-out, and whether a position is ours at all. It is a fold over intents and
fills and can be rebuilt from the ledger at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import floor_ts
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.store.ledger import IntentRow

COOLING_EXITS = frozenset({ExitKind.STOP, ExitKind.TRAILING, ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION})
"""Exits after which a symbol is not entered again for a while."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A position at the exchange that the ledger does not explain.

    Parameters
    ----------
    symbol : str
        Compact name.
    exchange_lots, ledger_lots : int
        Signed sizes in lots.
    """

    symbol: str
    exchange_lots: int
    ledger_lots: int

    @property
    def is_foreign(self) -> bool:
        """Return whether the ledger knows nothing of the position at all."""
        return self.ledger_lots == 0

    def __str__(self) -> str:
        return f"{self.symbol}: exchange holds {self.exchange_lots} lots, ledger {self.ledger_lots}"


class PositionTracker:
    """Follow our positions from intents and fills.

    Parameters
    ----------
    frame_ns, cooldown_ns : int
        Bar length, and the pause after a stop-out counted from the close of its bar.
    """

    def __init__(self, frame_ns: int, cooldown_ns: int) -> None:
        self._frame_ns = frame_ns
        self._cooldown_ns = cooldown_ns
        self._intents: dict[str, IntentRow] = {}
        self._entry: dict[str, IntentRow] = {}
        self._lots: dict[str, int] = {}
        self._cooldown_until_ns: dict[str, int] = {}
        self.last_fill_ns = 0

    @staticmethod
    def rebuild(frame_ns: int, cooldown_ns: int, intents: Iterable[IntentRow], fills: Iterable[Fill]) -> PositionTracker:
        """Return the tracker after everything the ledger holds."""
        tracker = PositionTracker(frame_ns, cooldown_ns)
        for intent in intents:
            tracker.note_intent(intent)
        for fill in fills:
            tracker.note_fill(fill)
        return tracker

    def note_intent(self, intent: IntentRow) -> None:
        """Remember a decided order."""
        self._intents[intent.client_order_id] = intent

    def note_fill(self, fill: Fill) -> ExitKind | None:
        """Move our size by one execution and return why it closed something, ``None`` where it opened."""
        before = self._lots.get(fill.symbol, 0)
        self.last_fill_ns = max(self.last_fill_ns, fill.ts_ns)
        intent = self._intents.get(fill.client_order_id)
        after = before + fill.signed_lots
        if intent is None:
            if before * fill.signed_lots >= 0:
                return None  # somebody else opened or added: not ours to know, and not ours to close
            if before * after < 0:
                after = 0  # somebody else turned the position round: what lies beyond flat is theirs
        self._lots[fill.symbol] = after
        if intent is not None and intent.is_entry:
            self._entry[fill.symbol] = intent
            return None
        if before == 0 or (before > 0) == (fill.signed_lots > 0):
            return None
        kind = self._exit_kind(fill, intent, before)
        if kind in COOLING_EXITS:
            closes = floor_ts(fill.ts_ns, self._frame_ns) + self._frame_ns
            self._cooldown_until_ns[fill.symbol] = closes + self._cooldown_ns
        if after == 0:
            self._entry.pop(fill.symbol, None)
        return kind

    def _exit_kind(self, fill: Fill, intent: IntentRow | None, before: int) -> ExitKind:
        """Return what the exchange says, else what we ordered, else the protection level the fill lies at or beyond."""
        if fill.exit_kind is not None:
            return fill.exit_kind
        if intent is not None and intent.exit_kind is not None:
            return intent.exit_kind
        entry = self._entry.get(fill.symbol)
        side = 1.0 if before > 0 else -1.0
        if entry is None:
            return ExitKind.MANUAL
        stop, take = _or_nan(entry.stop_price), _or_nan(entry.take_profit_price)
        to_stop, to_take = abs(fill.price - stop), abs(fill.price - take)
        if side * (stop - fill.price) >= 0.0 or to_stop <= to_take:
            return ExitKind.STOP
        return ExitKind.TAKE_PROFIT if math.isfinite(to_take) else ExitKind.MANUAL

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the symbols of our open positions."""
        return tuple(symbol for symbol, lots in self._lots.items() if lots)

    def lots(self, symbol: str) -> int:
        """Return our signed size by the fills seen so far."""
        return self._lots.get(symbol, 0)

    def mismatches(self, account: AccountState) -> tuple[Mismatch, ...]:
        """Return every symbol whose size at the exchange is not the one our fills give, by name."""
        held = {p.symbol: p.lots for p in account.positions}
        symbols = sorted(held.keys() | {s for s, n in self._lots.items() if n})
        pairs = ((s, held.get(s, 0), self.lots(s)) for s in symbols)
        return tuple(Mismatch(s, there, here) for s, there, here in pairs if there != here)

    def enrich(self, account: AccountState, pending: Iterable[str], peak_equity: float) -> AccountState:
        """Return the account as a decision must see it.

        Our positions get their entry score and, where the exchange shows none, the protection they were opened with;
        positions that are not ours are taken out, so nothing ever closes them, and their symbols count as pending, so they hold
        a slot and are never entered.
        """
        ours, foreign = [], []
        for position in account.positions:
            if self.lots(position.symbol) == 0:
                foreign.append(position.symbol)
            else:
                ours.append(self._with_terms(position))
        return replace(
            account,
            positions=tuple(ours),
            pending_symbols=tuple(sorted({*account.pending_symbols, *pending, *foreign})),
            peak_equity=max(peak_equity, account.equity),
            cooldown_until_ns={**account.cooldown_until_ns, **self._cooldown_until_ns},
        )

    def _with_terms(self, position: OpenPosition) -> OpenPosition:
        entry = self._entry.get(position.symbol)
        if entry is None:
            return position
        return replace(position, entry_score=_or_nan(entry.entry_score))

    def expected_trailing(self, symbol: str) -> float | None:
        """Return the trailing stop the open position was entered with, a fraction of the best price; ``None`` without."""
        entry = self._entry.get(symbol)
        return entry.trailing_ratio if entry else None

    def expected_protection(self, symbol: str) -> tuple[float, float]:
        """Return (stop, take-profit) the open position was entered with; NaN where none."""
        entry = self._entry.get(symbol)
        return (_or_nan(entry.stop_price), _or_nan(entry.take_profit_price)) if entry else (math.nan, math.nan)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
