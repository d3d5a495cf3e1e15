"""Does the exchange hold what the ledger says? Positions, resting orders and the balance, at every look at the account.

A difference is believed on the second look only: an execution may fall between reading executions and reading the account.
What somebody else opened is told once and left alone, or adopted where that is wished; any other difference forbids new risk
until both agree again, or, for the balance, until a person has seen it.
"""

from __future__ import annotations

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.order import Fill
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.position_tracker import Mismatch
from crypto_qlib.live_trading.risk_control import BALANCE, DRIFT, Mode
from crypto_qlib.live_trading.session_state import Cycle, Instructions, SessionState, or_none
from crypto_qlib.portfolio.plan import client_order_id
from crypto_qlib.store.ledger import IntentRow
from crypto_qlib.store.live_events import EventKind, Severity

_ADOPTED = "adopt"


def second_look(state: SessionState, account: AccountState, purpose: ev.Purpose) -> Instructions:
    """Return the instructions to look again where something differs for the first time in this cycle; else nothing."""
    cycle = state.cycle
    if cycle is None or cycle.looked_again:
        return []
    drifting = any(not m.is_foreign and m not in state.told for m in _mismatches(state, account))
    if not drifting and not (_differs(state, account) and BALANCE not in state.risk.voices):
        return []
    cycle.looked_again = True
    out: Instructions = [ev.ReadFills(state.tracker.last_fill_ns), ev.ReadFunding()]
    if state.watches_balance:
        out.append(ev.ReadTransfers(state.wallet.since_ns))
    return [*out, ev.ReadAccount(purpose)]


def reconcile(state: SessionState, account: AccountState) -> Instructions:
    """Compare the account with the ledger; tell what is new, and trade accordingly."""
    return [*_positions(state, account), *_balance(state, account)]


def adopt(state: SessionState, position: OpenPosition, cycle: Cycle) -> ev.AdoptPosition:
    """Return the instruction that makes a foreign position ours: an intent and an execution in the ledger, nothing sent.

    A position without a stop gets the widest one the rules allow; the stop guard then places it.
    """
    rules, side = state.config.rules, position.side
    stop = position.stop_price
    if or_none(stop) is None:
        stop = position.mark * (1.0 - side * rules.max_stop_distance)
    coid = client_order_id(state.config.session_id, cycle.ts_ns, position.symbol, _ADOPTED)
    intent = IntentRow(
        coid, cycle.ts_ns, position.symbol, position.lots, is_entry=True, leverage=position.leverage,
        stop_price=stop, take_profit_price=or_none(position.take_profit_price),
    )  # fmt: skip
    state.tracker.note_intent(intent)
    return ev.AdoptPosition(
        intent, Fill(cycle.ts_ns, position.symbol, position.lots, position.avg_entry, 0.0, client_order_id=coid)
    )


def _mismatches(state: SessionState, account: AccountState) -> list[Mismatch]:
    waiting = set(state.pending)
    return [m for m in state.tracker.mismatches(account) if m.symbol not in waiting]


def _positions(state: SessionState, account: AccountState) -> Instructions:
    found = _mismatches(state, account)
    strangers = sorted(set(account.pending_symbols) - set(state.pending))
    out: Instructions = []
    wanted = {m.symbol for m in found if m.is_foreign and state.adopts(m.symbol)}
    for mismatch in found:
        if mismatch.symbol in wanted or mismatch in state.told:
            continue
        what = "not ours, left alone" if mismatch.is_foreign else "differs from the ledger"
        severity = Severity.WARNING if mismatch.is_foreign else Severity.CRITICAL
        kind = EventKind.FOREIGN if mismatch.is_foreign else EventKind.DRIFT
        out.append(ev.Alert(severity, f"position {what}: {mismatch}", kind, mismatch.symbol))
    for symbol in strangers:
        if symbol not in state.told:
            text = f"an order of {symbol} rests that is not ours, left alone"
            out.append(ev.Alert(Severity.WARNING, text, EventKind.FOREIGN, symbol))
    for position in account.positions:
        if position.symbol in wanted and state.cycle is not None:
            text = f"{position.symbol}: adopted a position of {position.lots:+d} lots that was not ours"
            out += [ev.Alert(Severity.WARNING, text, EventKind.FOREIGN, position.symbol), adopt(state, position, state.cycle)]
    state.told = frozenset([*(m for m in found if m.symbol not in wanted), *strangers])
    drift = "; ".join(str(mismatch) for mismatch in found if not mismatch.is_foreign)
    if bool(drift) is not (DRIFT in state.risk.voices):
        state.risk = state.risk.with_voice(DRIFT, Mode.REDUCE_ONLY if drift else Mode.ACTIVE, drift)
        text = f"the mode is {state.risk.mode.name}: positions {'differ from' if drift else 'agree again with'} the ledger"
        out += [ev.Alert(Severity.CRITICAL if drift else Severity.INFO, text, EventKind.DRIFT), state.save_risk()]
    return out


def _differs(state: SessionState, account: AccountState) -> bool:
    if not state.watches_balance or not state.funding_is_known:
        return False
    return abs(state.wallet.difference(account)) > state.config.limits.balance_tolerance * abs(account.equity)


def _balance(state: SessionState, account: AccountState) -> Instructions:
    if not _differs(state, account) or BALANCE in state.risk.voices:
        return []
    off = state.wallet.difference(account)
    reason = f"the balance is {off:+,.2f} USDT off what fills, funding and transfers explain"
    state.risk = state.risk.with_voice(BALANCE, Mode.REDUCE_ONLY, reason)
    facts: dict[str, object] = {"difference": off, "equity": account.equity}
    return [ev.Alert(Severity.CRITICAL, reason, EventKind.DRIFT, facts=facts), state.save_risk()]
