"""Accounts, orders, positions, bills and fills as rows, for people and other programs to read.

The journal is the truth (``state_file``); these tables are brought up to it about once a second and at the stop. Money is
USDT, sizes are lots, times are nanoseconds since the epoch; an absent number is null.
"""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from crypto_qlib.core.order import Fill
from crypto_qlib.venue.records import Bill, OrderUpdated, VenueEvent, VenueOrder
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.snapshot import AccountSnapshot, PositionSnapshot

_ID: Final = "account_id text not null"
TABLES: Final[dict[str, tuple[str, ...]]] = {
    "accounts": ("account_id text primary key", "as_of_ns int", "cash real", "equity real", "available real", "upl real",
                 "imr real", "mmr real"),
    "orders": ("order_id integer primary key", _ID, "client_order_id text", "symbol text", "side text", "kind text",
               "margin_mode text", "position_side text", "lots int", "price real",
               "reduce_only int", "status text", "filled_lots int",
               "average_price real", "fee real", "pnl real", "created_ns int", "updated_ns int", "refusal text"),
    "positions": (_ID, "symbol text", "margin_mode text", "position_side text", "lots int",
                  "average_entry real", "leverage real", "margin real",
                  "mark real", "upl real", "margin_ratio real", "liquidation_price real", "opened_ns int"),
    "bills": ("key text primary key", _ID, "bill_id int", "ts_ns int", "kind text", "symbol text", "cash_change real",
              "margin_change real", "cash_balance real", "pnl real", "fee real", "funding real", "penalty real",
              "overshoot real", "signed_lots int", "price real", "client_order_id text"),
    "fills": ("key text primary key", _ID, "number int", "ts_ns int", "symbol text", "signed_lots int", "price real",
              "fee real", "is_maker int", "client_order_id text", "exit_kind text"),
}  # fmt: skip
"""Table -> column definitions, in the order of the rows below."""

Rows = dict[str, list[tuple[Any, ...]]]


class TableFollower:
    """Collect what changed in an exchange since the last time.

    Parameters
    ----------
    exchange : SimulatedExchange
        The venue.
    """

    def __init__(self, exchange: SimulatedExchange) -> None:
        self._exchange = exchange
        self._changed: dict[int, VenueOrder] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def notice(self, event: VenueEvent) -> None:
        """Take note of an event."""
        if isinstance(event, OrderUpdated):
            self._changed[event.order.order_id] = event.order

    def changed_rows(self) -> Rows:
        """Return the rows to add or replace since :meth:`shown`; positions are always all of them."""
        rows: Rows = {table: [] for table in TABLES}
        rows["orders"] = [_order_row(order) for order in self._changed.values()]
        for account_id in self._exchange.account_ids():
            state = self._exchange.snapshot(account_id)
            rows["accounts"].append(_account_row(account_id, state))
            rows["positions"] += [_position_row(account_id, held) for held in state.positions]
            n_fills, n_bills = self._seen.get(account_id, (0, 0))
            bills, fills = self._exchange.bills(account_id, n_bills), self._exchange.fills(account_id, n_fills)
            rows["bills"] += [_bill_row(account_id, bill) for bill in bills]
            rows["fills"] += [_fill_row(account_id, n, fill) for n, fill in enumerate(fills, start=n_fills + 1)]
        return rows

    def shown(self) -> None:
        """Take note that the rows of :meth:`changed_rows` were written."""
        self._changed.clear()
        for account_id in self._exchange.account_ids():
            _, n_fills, n_bills = self._exchange.counts(account_id)
            self._seen[account_id] = (n_fills, n_bills)


def books_of(exchange: SimulatedExchange) -> str:
    """Return cash, equity and record counts of every account as one line that two equal exchanges share."""
    return orjson.dumps(
        {
            account_id: {
                "cash": repr(state.cash),
                "equity": repr(state.equity),
                "positions": [[p.position.symbol, p.position.lots] for p in state.positions],
                "orders, fills, bills": exchange.counts(account_id),
            }
            for account_id in exchange.account_ids()
            for state in [exchange.snapshot(account_id)]
        }
    ).decode()


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _account_row(account_id: str, s: AccountSnapshot) -> tuple[Any, ...]:
    return account_id, s.as_of_ns, s.cash, s.equity, s.available, s.upl, s.imr, s.mmr


def _order_row(o: VenueOrder) -> tuple[Any, ...]:
    return (
        o.order_id, o.account_id, o.client_order_id, o.symbol, o.side.name.lower(), o.kind.value, o.margin_mode.value,
        o.request.position_side.value, o.lots,
        _number(o.request.price), int(o.request.reduce_only), o.status.value, o.filled_lots, _number(o.average_price), o.fee,
        o.pnl, o.created_ns, o.updated_ns, o.refusal.text if o.refusal else None,
    )  # fmt: skip


def _position_row(account_id: str, s: PositionSnapshot) -> tuple[Any, ...]:
    p = s.position
    return (
        account_id, p.symbol, p.margin_mode.value, p.position_side.value, p.lots,
        p.avg_entry, p.leverage, p.isolated_margin, s.mark, s.upl,
        _number(s.margin_ratio), _number(s.liquidation_price), p.opened_ns,
    )  # fmt: skip


def _bill_row(account_id: str, b: Bill) -> tuple[Any, ...]:
    return (
        f"{account_id}/{b.bill_id}", account_id, b.bill_id, b.ts_ns, b.kind.value, b.symbol, b.cash_change, b.margin_change,
        b.cash_balance, b.pnl, b.fee, b.funding, b.penalty, b.overshoot, b.signed_lots, _number(b.price), b.client_order_id,
    )  # fmt: skip


def _fill_row(account_id: str, number: int, f: Fill) -> tuple[Any, ...]:
    return (
        f"{account_id}/{number}", account_id, number, f.ts_ns, f.symbol, f.signed_lots, f.price, f.fee, int(f.is_maker),
        f.client_order_id, f.exit_kind.value if f.exit_kind else None,
    )  # fmt: skip
