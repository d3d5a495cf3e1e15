"""Live a session again from its journal alone: the same machine, fed the same events, must ask for the same things.

1. Each :class:`~crypto_qlib.live_trading.journal.Restored` makes the machine anew, as each start of the session did.
2. Each event is handled; what the machine then asks for must be the instructions the journal has next, one by one. What a
   decision planned is taken from the journal (``SaveDecided``): the market it saw is not kept there. A session that died, or
   gave a cycle up, left the rest of its instructions undone; a voice heard between two orders is handled in between.
3. On the way intents, orders, executions and equity are folded up; :func:`differences` compares them with the ledger's tables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import orjson

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import Fill, OrderStatus
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.journal import JournalRow, Restored, journal_form
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session import Session
from crypto_qlib.live_trading.wallet import Wallet
from crypto_qlib.portfolio.plan import Plan
from crypto_qlib.store.ledger import FundingRow, IntentRow, Ledger
from crypto_qlib.store.our_size import size_after

_BEGINNINGS: Final = (ev.Started, ev.BarClosed, ev.CloseAsked, ev.CheckDue, ev.AdoptAsked, ev.ContractsSeen)
_VOICES: Final = (ev.ModeVoiced, ev.Resumed)
"""Heard at any time, also between two instructions; every other event answers the last instruction but what is queued."""


@dataclass(slots=True)
class Replay:
    """What a journal adds up to.

    Parameters
    ----------
    intents : dict
        Every order that was decided, by client order id.
    orders : dict
        Last known (status, lots filled) of each; ``None`` where no answer is in the journal.
    fills : list of Fill
        Executions, in the order they became known.
    funding : list of FundingRow
        Settlements.
    equity : dict
        Equity at each bar close, USDT.
    mode : Mode
        Mode in force at the end.
    steps : int
        Rows read.
    starts : int
        Starts of the session.
    divergence : str
        The first row at which the machine asked for something else than the journal has; empty where there is none.
    """

    intents: dict[str, IntentRow] = field(default_factory=dict)
    orders: dict[str, tuple[OrderStatus, int] | None] = field(default_factory=dict)
    fills: list[Fill] = field(default_factory=list)
    funding: list[FundingRow] = field(default_factory=list)
    equity: dict[int, float] = field(default_factory=dict)
    mode: Mode = Mode.ACTIVE
    steps: int = 0
    starts: int = 0
    divergence: str = ""

    @property
    def positions(self) -> dict[str, int]:
        """Return our signed lots by symbol, those that are not flat."""
        return held(self.intents, self.fills)


def held(intents: dict[str, IntentRow], fills: Sequence[Fill]) -> dict[str, int]:
    """Return our signed lots by symbol after ``fills``, those that are not flat."""
    lots: dict[str, int] = {}
    for fill in fills:
        is_ours = fill.client_order_id in intents
        lots[fill.symbol] = size_after(lots.get(fill.symbol, 0), fill.signed_lots, is_ours=is_ours)
    return {symbol: n for symbol, n in lots.items() if n}


class _Replayed(Session):
    """The machine, told what each decision planned."""

    planned: Plan | None = None

    def plan(self, bar: ev.BarClosed, account: AccountState) -> Plan:  # noqa: ARG002 - the journal knows
        return self.planned if self.planned is not None else Plan(bar.ts_ns)


class _Player:
    def __init__(self, rows: Sequence[JournalRow]) -> None:
        self._rows = rows
        self._session: _Replayed | None = None
        self._expected: list[deque[Any]] = []
        self._bar_ns: int | None = None
        self.result = Replay()

    def play(self) -> Replay:
        for place, row in enumerate(self._rows):
            step = row.step()
            self.result.steps += 1
            if isinstance(step, Restored):
                self._restore(step)
            elif row.is_event:
                self._handle(place, cast("ev.Event", step))
            else:
                self._check(row)
            self._fold(step)
        return self.result

    def _restore(self, start: Restored) -> None:
        result = self.result
        result.starts += 1
        known = [result.intents[coid] for coid in start.unresolved if coid in result.intents]
        fills = sorted([*result.fills, *start.fills], key=lambda fill: fill.ts_ns)
        rules = start.config.rules
        tracker = PositionTracker.rebuild(rules.frame_ns, rules.cooldown_ns, result.intents.values(), fills)
        self._session = _Replayed(start.config, tracker, start.risk, tuple(known), start.decided_ns, Wallet(start.wallet))
        self._expected = []
        if len(known) < len(start.unresolved):
            self._diverged(f"start {result.starts}: an order under way was never decided in this journal")

    def _handle(self, place: int, event: ev.Event) -> None:
        if self._session is None or self.result.divergence:
            return
        self._session.planned = self._planned_after(place)
        asked = self._session.handle(event)
        self.result.mode = self._session.risk.mode
        self._expected = [frame for frame in self._expected if frame]
        if isinstance(event, _BEGINNINGS):
            self._expected = []  # what was under way was given up
        elif self._expected and not isinstance(event, _VOICES):
            kind, payload = self._expected[-1][0]
            self._diverged(f"before row {self._rows[place].number}: nothing, where the machine asks for {kind} {payload}")
        self._expected.append(deque(_as_json(instruction) for instruction in asked))

    def _check(self, row: JournalRow) -> None:
        if self._session is None or self.result.divergence:
            return
        while self._expected and not self._expected[-1]:
            self._expected.pop()
        if not self._expected:
            self._diverged(f"row {row.number}: {row.kind}, where the machine asks for nothing")
            return
        kind, payload = self._expected[-1].popleft()
        if kind != row.kind or payload != row.payload:
            self._diverged(f"row {row.number}: {row.kind} {row.payload}, where the machine asks for {kind} {payload}")

    def _diverged(self, text: str) -> None:
        self.result.divergence = self.result.divergence or text

    def _planned_after(self, place: int) -> Plan | None:
        """Return the plan of the cycle that the event in this place belongs to."""
        for later in range(place + 1, len(self._rows)):  # no slice: each would copy the rest of a long journal
            row = self._rows[later]
            if row.kind in ("BarClosed", "Restored"):
                return None
            if row.kind == "SaveDecided":
                decided = row.step()
                assert isinstance(decided, ev.SaveDecided)
                return decided.plan
        return None

    def _fold(self, step: object) -> None:
        result = self.result
        match step:
            case Restored():
                result.fills += step.fills
            case ev.BarClosed():
                self._bar_ns = step.ts_ns
            case ev.AccountRead(purpose=ev.Purpose.DECIDE) if self._bar_ns is not None:
                result.equity.setdefault(self._bar_ns, step.account.equity)
            case ev.FillsRead():
                result.fills += step.fills
            case ev.FundingRead():
                result.funding += step.settlements
            case ev.PlaceOrder():
                result.intents.setdefault(step.intent.client_order_id, step.intent)
                result.orders.setdefault(step.intent.client_order_id, None)
            case ev.AdoptPosition():
                result.intents.setdefault(step.intent.client_order_id, step.intent)
                result.orders[step.intent.client_order_id] = (OrderStatus.FILLED, abs(step.intent.signed_lots))
            case ev.PositionAdopted():
                result.fills.append(step.fill)
            case ev.OrderReported():
                self._order(step.client_order_id, step.status, step.filled_lots)
            case ev.OrderUnknown():
                self._order(step.client_order_id, OrderStatus.SENT, 0)
            case ev.GiveUpOrder():
                self._order(step.client_order_id, OrderStatus.REJECTED, 0)
            case _:
                pass

    def _order(self, coid: str, status: OrderStatus, filled_lots: int) -> None:
        known = self.result.orders.get(coid)
        if known is None or not known[0].is_final:
            is_older = status is OrderStatus.SENT and known is not None
            self.result.orders[coid] = known if is_older else (status, filled_lots)


def replay(rows: Sequence[JournalRow]) -> Replay:
    """Return what the journal adds up to, the machine lived again on the way.

    Raises
    ------
    UserError
        If there is no row, or one is not readable.
    """
    if not rows:
        raise UserError("the journal is empty", "let the session live through a bar")
    return _Player(rows).play()


def differences(lived: Replay, ledger: Ledger) -> Iterator[str]:
    """Yield in words what the journal adds up to and the ledger's tables do not, line by line."""
    if lived.divergence:
        yield f"the machine lived again does otherwise: {lived.divergence}"
    intents = {intent.client_order_id: intent for intent in ledger.intents()}
    here, there = lived.positions, held(intents, ledger.fills())
    for symbol in sorted(here.keys() | there.keys()):
        if here.get(symbol, 0) != there.get(symbol, 0):
            yield f"{symbol}: {here.get(symbol, 0)} lots by the journal, {there.get(symbol, 0)} by the ledger"
    if sorted(lived.fills, key=_fill_key) != sorted(ledger.fills(), key=_fill_key):
        yield f"{len(lived.fills)} executions by the journal, {len(ledger.fills())} by the ledger, or others"
    for coid in sorted(intents.keys() | lived.intents.keys()):
        yield from _order_differences(coid, lived, intents, ledger)
    booked = {row.ts_ns: row.equity for row in ledger.equity()}
    for ts_ns in sorted(booked.keys() | lived.equity.keys()):
        if booked.get(ts_ns) != lived.equity.get(ts_ns):
            yield f"equity at {ts_ns}: {lived.equity.get(ts_ns)} by the journal, {booked.get(ts_ns)} by the ledger"


def _order_differences(coid: str, lived: Replay, intents: dict[str, IntentRow], ledger: Ledger) -> Iterator[str]:
    mine, known = lived.intents.get(coid), intents.get(coid)
    answered = lived.orders.get(coid)
    if known is None and answered is None:
        return  # the session died after the journal and before the ledger: it was never sent
    if mine != known:
        yield f"order {coid}: {mine} by the journal, {known} by the ledger"
        return
    order = ledger.order(coid)
    if answered is not None and (order is None or (order.status, order.filled_lots) != answered):
        yield f"order {coid}: {answered} by the journal, {order} by the ledger"


def _fill_key(fill: Fill) -> tuple[object, ...]:
    return fill.ts_ns, fill.symbol, fill.client_order_id, fill.signed_lots, fill.price


def _as_json(instruction: ev.Instruction) -> tuple[str, Any]:
    return type(instruction).__name__, orjson.loads(orjson.dumps(journal_form(instruction), option=orjson.OPT_NON_STR_KEYS))
