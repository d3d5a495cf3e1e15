"""The journal as values again: what ``Dispatcher`` wrote of a session, decoded row by row and put into words.

Every row is one :data:`~crypto_qlib.live_trading.events.Event` or :data:`~crypto_qlib.live_trading.events.Instruction`, or the
:class:`Restored` with which each start of the session begins. Of a closed bar the journal keeps scores, freshness, closes and
marks; the rest of what the decision saw is worked out from bars, and what it decided is in ``SaveDecided``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import Fill
from crypto_qlib.core.signal import Scores
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.risk_control import RiskState
from crypto_qlib.live_trading.session_state import SessionConfig
from crypto_qlib.portfolio.market_state import ContractTable, MarketState
from crypto_qlib.store.plain_values import decode, plain


@dataclass(frozen=True, slots=True)
class Restored:
    """What a start of the session begins with, as the ledger had it.

    Parameters
    ----------
    config : SessionConfig
        Rules and limits in force from now on.
    risk : RiskState
        Tripped limits, peak equity.
    decided_ns : int
        Close of the last bar decided before.
    unresolved : tuple of str
        Client order ids that may exist at the exchange.
    fills : tuple of Fill
        Executions in the ledger that no row of the journal tells of: the session died between writing the two.
    wallet : dict | None
        What the balance must be (``Wallet.saved``).
    """

    config: SessionConfig
    risk: RiskState
    decided_ns: int
    unresolved: tuple[str, ...]
    fills: tuple[Fill, ...]
    wallet: dict[str, Any] | None = None


Step = ev.Event | ev.Instruction | Restored
EVENTS: Final = get_args(ev.Event)
STEPS: Final[dict[str, type]] = {kind.__name__: kind for kind in (*EVENTS, *get_args(ev.Instruction), Restored)}


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One row: its number, the instant it was written at, its kind, and what it says as plain JSON."""

    number: int
    ts_ns: int
    kind: str
    payload: Any

    @property
    def is_event(self) -> bool:
        """Return whether it is something that happened, not something the session asked for."""
        return issubclass(STEPS.get(self.kind, object), EVENTS)

    def step(self) -> Step:
        """Return the row as the value that was written.

        Raises
        ------
        UserError
            If it is of a kind this version does not know, or was written by one that kept less.
        """
        kind = STEPS.get(self.kind)
        try:
            if kind is None:
                raise KeyError(self.kind)
            decoded: Step = _bar(self.payload) if kind is ev.BarClosed else decode(kind, self.payload)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(
                f"row {self.number} of the journal ({self.kind}) is not one this version can read",
                "use the version of crypto-qlib that wrote it",
            ) from e
        return decoded


def rows_of(journal: Iterable[tuple[int, str, Any]]) -> list[JournalRow]:
    """Return ``Ledger.journal()`` as rows."""
    return [JournalRow(number, ts, kind, payload) for number, (ts, kind, payload) in enumerate(journal)]


def journal_form(step: Step) -> Any:
    """Return what the journal keeps of ``step``: all of it, but of a closed bar what a person or a re-simulation asks for."""
    if isinstance(step, ev.BarClosed):
        seen = {"close": step.market.close, "mark": step.market.mark}
        kept = {"ts_ns": step.ts_ns, "scores": step.scores, "freshness": step.freshness, "is_last": step.is_last}
        return plain(kept | seen)
    return plain(step)


def _bar(payload: Any) -> ev.BarClosed:
    scores: Scores = decode(Scores, payload["scores"])
    unknown = np.full(len(scores.symbols), np.nan)
    close = decode(np.ndarray, payload.get("close")) if "close" in payload else unknown
    mark = decode(np.ndarray, payload.get("mark")) if "mark" in payload else unknown
    market = _market_seen(scores, close, mark)
    freshness: ev.Freshness = decode(ev.Freshness, payload["freshness"])
    return ev.BarClosed(payload["ts_ns"], scores, market, freshness, payload["is_last"])


def _market_seen(scores: Scores, close: Any, mark: Any) -> MarketState:
    """Return the market with what the journal keeps of it; the rest is unknown."""
    n = len(scores.symbols)
    nothing, zeros = np.full(n, np.nan), np.zeros(n, np.int64)
    tiers = np.full((n, 0), np.nan)
    contracts = ContractTable(*(nothing,) * 6, zeros, zeros, tiers, tiers, tiers, np.zeros(n, np.bool_))
    known: dict[str, Any] = {"as_of_ns": scores.as_of_ns, "symbols": scores.symbols, "close": close, "mark": mark}
    rest: dict[str, Any] = {"cluster": zeros, "returns": np.empty((0, n)), "contracts": contracts}
    others: dict[str, Any] = {name: nothing for name in MarketState.__dataclass_fields__ if name not in known | rest}
    return MarketState(**known, **rest, **others)


def readable(row: JournalRow) -> str:
    """Return one row in one line for a person."""
    arrow = "->" if row.is_event else "  "
    return f"{row.number:>7}  {iso(row.ts_ns)}  {arrow} {row.kind:<16} {' '.join(_words(row))}".rstrip()


def _words(row: JournalRow) -> Iterator[str]:
    said = row.payload
    match row.kind:
        case "BarClosed":
            fresh = said["freshness"]
            scored = sum(value != "nan" and value is not None for value in said["scores"]["expected_return"])
            yield f"close of {iso(said['ts_ns'])}, {fresh['fresh']}/{fresh['expected']} fresh, {scored} scored"
            if fresh["missing"]:
                yield f"missing {', '.join(fresh['missing'])}"
        case "AccountRead" | "CycleDone":
            account = said["account"]
            yield f"equity {account['equity']:,.2f} USDT, {len(account['positions'])} open"
            yield f"({said['purpose']})" if row.kind == "AccountRead" else f"{said['orders_sent']} orders"
        case "FillsRead" | "Restored":
            yield from (f"{f['symbol']} {f['signed_lots']:+d} at {f['price']:g}" for f in said["fills"])
            if row.kind == "Restored":
                yield f"{len(said['unresolved'])} orders unresolved"
        case "FundingRead":
            yield f"{sum(s['amount'] for s in said['settlements']):+.4f} USDT over {len(said['settlements'])} settlements"
        case "PlaceOrder":
            intent = said["intent"]
            why = "entry" if intent["is_entry"] else intent["exit_kind"]
            yield f"{intent['symbol']} {intent['signed_lots']:+d} lots, {why}, {intent['client_order_id']}"
            if intent["stop_price"] is not None:
                yield f"stop {intent['stop_price']:g}"
        case "SaveDecided":
            plan = said.get("plan") or {"orders": [], "vetoes": []}
            yield f"{len(plan['orders'])} orders planned, {len(plan['vetoes'])} refusals"
        case "SaveRisk":
            yield ", ".join(f"{voice}: {reason}" for voice, (_, reason) in sorted(said["voices"].items())) or "no voice"
        case "Alert":
            yield f"{said['severity']}: {said['text']}"
        case _:
            yield ", ".join(f"{key} {_short(value)}" for key, value in said.items() if key != "ts_ns")


def _short(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - what fits a line
