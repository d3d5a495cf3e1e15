"""Does the exchange hold what the ledger says? Differences are told once; one that nobody else explains forbids new risk."""

from __future__ import annotations

from crypto_qlib.core.account import AccountState
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.risk_control import DRIFT, Mode
from crypto_qlib.live_trading.session_state import Instructions, SessionState
from crypto_qlib.store.live_events import EventKind, Severity


def reconcile(state: SessionState, account: AccountState) -> Instructions:
    """Compare positions and resting orders with the ledger; tell what is new, and trade accordingly."""
    waiting = set(state.pending)
    found = [m for m in state.tracker.mismatches(account) if m.symbol not in waiting]
    strangers = sorted(set(account.pending_symbols) - waiting)
    out: Instructions = []
    for mismatch in found:
        if mismatch not in state.told:
            what = "not ours, left alone" if mismatch.is_foreign else "differs from the ledger"
            severity = Severity.WARNING if mismatch.is_foreign else Severity.CRITICAL
            kind = EventKind.FOREIGN if mismatch.is_foreign else EventKind.DRIFT
            out.append(ev.Alert(severity, f"position {what}: {mismatch}", kind, mismatch.symbol))
    for symbol in strangers:
        if symbol not in state.told:
            text = f"an order of {symbol} rests that is not ours, left alone"
            out.append(ev.Alert(Severity.WARNING, text, EventKind.FOREIGN, symbol))
    state.told = frozenset([*found, *strangers])
    drift = "; ".join(str(mismatch) for mismatch in found if not mismatch.is_foreign)
    if bool(drift) is not (DRIFT in state.risk.voices):
        state.risk = state.risk.with_voice(DRIFT, Mode.REDUCE_ONLY if drift else Mode.ACTIVE, drift)
        text = f"the mode is {state.risk.mode.name}: positions {'differ from' if drift else 'agree again with'} the ledger"
        out += [ev.Alert(Severity.CRITICAL if drift else Severity.INFO, text, EventKind.DRIFT), state.save_risk()]
    return out
