"""What executions and settlements mean to a person: opened, closed, stopped out, paid; one line for what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import iso
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.store.ledger import FundingRow
from crypto_qlib.store.live_events import EventKind, Severity

_KINDS: Final[dict[ExitKind, EventKind]] = {
    ExitKind.STOP: EventKind.STOP_HIT,
    ExitKind.TRAILING: EventKind.STOP_HIT,
    ExitKind.TAKE_PROFIT: EventKind.TAKE_PROFIT_HIT,
    **dict.fromkeys(
        (ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION, ExitKind.ADL, ExitKind.DELISTED), EventKind.LIQUIDATION
    ),
}
_WORDS: Final = {EventKind.TRADE: "opened", EventKind.EXIT: "closed"}


@dataclass(slots=True)
class _Deal:
    """Executions of one order, summed."""

    lots: int = 0
    value: float = 0.0
    fee: float = 0.0
    exit_kind: ExitKind | None = None


def note_fills(tracker: PositionTracker, fills: Sequence[Fill]) -> list[ev.Instruction]:
    """Let ``tracker`` know ``fills`` and return what to tell of those that moved a position of ours."""
    deals: dict[tuple[str, str, EventKind], _Deal] = {}
    for fill in fills:
        before = tracker.lots(fill.symbol)
        exit_kind = tracker.note_fill(fill)
        if tracker.lots(fill.symbol) == before:
            continue  # somebody else's
        kind = EventKind.TRADE if exit_kind is None else _KINDS.get(exit_kind, EventKind.EXIT)
        deal = deals.setdefault((fill.symbol, fill.client_order_id, kind), _Deal(exit_kind=exit_kind))
        deal.lots += fill.signed_lots
        deal.value += fill.signed_lots * fill.price
        deal.fee += fill.fee
    return [_line(symbol, kind, deal, tracker.lots(symbol)) for (symbol, _, kind), deal in deals.items()]


def _line(symbol: str, kind: EventKind, deal: _Deal, left: int) -> ev.Alert:
    price = deal.value / deal.lots
    what = _WORDS.get(kind, kind.value.replace("_", " "))
    side = "long" if (deal.lots > 0) is (kind is EventKind.TRADE) else "short"
    why = f" ({deal.exit_kind.value})" if kind is EventKind.EXIT and deal.exit_kind else ""
    text = f"{symbol} {side}: {what}{why}, {abs(deal.lots)} lots at {price:g}, fee {deal.fee:.4g} USDT"
    facts: dict[str, object] = {"lots": deal.lots, "price": price, "fee": deal.fee, "lots_left": left}
    severity = Severity.WARNING if kind is EventKind.LIQUIDATION else Severity.INFO
    return ev.Alert(severity, text, kind, symbol, facts)


def funding_news(settlements: Sequence[FundingRow]) -> list[ev.Instruction]:
    """Return what to tell of the settlements the exchange booked: one line for all of an instant."""
    at: dict[int, list[FundingRow]] = {}
    for row in settlements:
        at.setdefault(row.ts_ns, []).append(row)
    out: list[ev.Instruction] = []
    for ts_ns, rows in at.items():
        total = sum(row.amount for row in rows)
        largest = max(rows, key=lambda row: abs(row.amount))
        most = f"most {largest.symbol} {largest.amount:+.4g}"
        text = f"funding of {iso(ts_ns)}: {total:+.4g} USDT over {len(rows)} symbols, {most}"
        facts: dict[str, object] = {"amount": total, "positions": len(rows)}
        out.append(ev.Alert(Severity.INFO, text, EventKind.FUNDING, facts=facts))
    return out
