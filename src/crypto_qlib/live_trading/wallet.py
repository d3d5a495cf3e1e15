"""What must the balance be? The balance once seen, moved by every execution and settlement the ledger knows since.

``balance = equity - sum(unrealised PnL)``: it moves with realised PnL, fees, funding and transfers alone, not with prices. The
average entries needed for realised PnL are folded from the same executions (:func:`crypto_qlib.core.position.apply_fill`), for
all positions of the account, foreign ones included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crypto_qlib.core import margin as m
from crypto_qlib.core.account import AccountState
from crypto_qlib.core.order import ExitKind, Fill, MarginMode
from crypto_qlib.core.position import Position, apply_fill
from crypto_qlib.exchange.gateway import Transfer
from crypto_qlib.store.ledger import FundingRow

_BY_THE_EXCHANGE = frozenset({ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION, ExitKind.ADL, ExitKind.DELISTED})
"""Closings with penalties, at prices executions do not show: the balance is taken as seen after them."""


def balance_of(account: AccountState) -> float:
    """Return the account's balance without unrealised PnL, USDT."""
    return account.equity - sum(m.unrealised_pnl(p.side, p.qty, p.avg_entry, p.mark) for p in account.positions)


class Wallet:
    """Follow the balance.

    Parameters
    ----------
    saved : mapping, optional
        What :meth:`saved` gave before a restart.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self.balance: float | None = None
        self._positions: dict[str, Position] = {}
        self._transfers: set[str] = set()
        self.since_ns = 0
        if saved is not None:
            self.balance = float(saved["balance"])
            self.since_ns = int(saved["since_ns"])
            self._transfers = set(saved["transfers"])
            for symbol, (lots, per_lot, entry) in saved["positions"].items():
                self._positions[symbol] = Position(symbol, per_lot, MarginMode.CROSS, lots=int(lots), avg_entry=entry)

    def saved(self) -> dict[str, object]:
        """Return what a restart needs, JSON-able."""
        held = {s: (p.lots, p.base_per_lot, p.avg_entry) for s, p in self._positions.items() if p.lots}
        return {
            "balance": self.balance,
            "since_ns": self.since_ns,
            "positions": held,
            "transfers": sorted(self._transfers),
        }

    def anchor(self, account: AccountState) -> None:
        """Take the account as seen for right, from now on."""
        self.balance = balance_of(account)
        self.since_ns = account.as_of_ns
        self._transfers = set()
        self._positions = {
            p.symbol: Position(p.symbol, p.qty / abs(p.lots), MarginMode.CROSS, lots=p.lots, avg_entry=p.avg_entry)
            for p in account.positions
        }

    def note_fills(self, fills: Iterable[Fill], base_per_lot: Mapping[str, float]) -> None:
        """Move the balance by executions; one the balance cannot be worked out for makes it unknown until the next look."""
        for fill in fills:
            if self.balance is None or fill.ts_ns < self.since_ns:
                continue
            before = self._positions.get(fill.symbol)
            if before is None and fill.symbol in base_per_lot:
                before = Position(fill.symbol, base_per_lot[fill.symbol], MarginMode.CROSS)
            if before is None or fill.exit_kind in _BY_THE_EXCHANGE:
                self.balance = None
                return
            after = apply_fill(before, fill)
            self.balance += after.net_realised - before.net_realised
            self._positions[fill.symbol] = after

    def note_funding(self, rows: Iterable[FundingRow]) -> None:
        """Move the balance by settlements."""
        if self.balance is not None:
            self.balance += sum(row.amount for row in rows if row.ts_ns >= self.since_ns)

    def note_transfers(self, rows: Iterable[Transfer]) -> float:
        """Move the balance by transfers not seen before and return their sum, USDT."""
        fresh = [row for row in rows if row.bill_id not in self._transfers and row.ts_ns >= self.since_ns]
        self._transfers |= {row.bill_id for row in fresh}
        moved = sum(row.amount for row in fresh)
        if self.balance is not None:
            self.balance += moved
        return moved

    def difference(self, account: AccountState) -> float:
        """Return what the account holds beyond what it should, USDT; an unknown balance is taken as seen."""
        if self.balance is None:
            self.anchor(account)
            return 0.0
        return balance_of(account) - self.balance
