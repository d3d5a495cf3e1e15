"""The day in a few lines, as a person reads them on a phone: equity, result, positions, what is near, what went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY, utc
from crypto_qlib.live_trading.risk_control import RiskState, risk_from_json
from crypto_qlib.store.ledger import EquityRow, Ledger, PositionRow
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity, Tell
from crypto_qlib.store.notice_box import Notice, NoticeBox

SUMMARY_DAY: Final = "summary_day"
_SHOWN: Final = 10
_TROUBLE: Final = (Severity.WARNING, Severity.CRITICAL)


def daily_summary(ledger: Ledger, box: NoticeBox, day: int) -> LiveEvent | None:
    """Return the summary of a UTC day (days since the epoch), ``None`` where the ledger has no account of it."""
    start_ns, end_ns = day * NS_PER_DAY, (day + 1) * NS_PER_DAY
    rows = ledger.equity()
    today = [row for row in rows if start_ns <= row.ts_ns <= end_ns]
    if not today:
        return None
    before = [row for row in rows if row.ts_ns <= start_ns]
    opening, closing = (before[-1] if before else today[0]), today[-1]
    risk = risk_from_json(ledger.state("risk")) or RiskState()
    lines = [
        _account_line(opening, closing),
        _deal_line(ledger, start_ns, end_ns),
        *_position_lines(ledger.positions(closing.ts_ns)),
        _mode_line(risk),
        *_trouble_lines([n for n in box.notices() if start_ns <= n.ts_ns < end_ns]),
    ]
    facts: dict[str, object] = {"equity": closing.equity, "pnl": closing.equity - opening.equity, "mode": risk.mode.name}
    title = f"{utc(start_ns):%a %d %b}"
    return LiveEvent(end_ns, EventKind.SUMMARY, Severity.INFO, "\n".join([title, *lines]), facts=facts)


def _account_line(opening: EquityRow, closing: EquityRow) -> str:
    gain = closing.equity - opening.equity
    share = gain / opening.equity if opening.equity else math.nan
    return f"Equity {closing.equity:,.2f} USDT ({gain:+,.2f}, {share:+.2%})"


def _deal_line(ledger: Ledger, start_ns: int, end_ns: int) -> str:
    fills = [fill for fill in ledger.fills() if start_ns <= fill.ts_ns < end_ns]
    funding = sum(row.amount for row in ledger.funding() if start_ns <= row.ts_ns < end_ns)
    fees = -sum(fill.fee for fill in fills)
    return f"{len(fills)} executions, fees {fees:+,.2f}, funding {funding:+,.2f}"


def _position_lines(positions: Sequence[PositionRow]) -> list[str]:
    if not positions:
        return ["No open position"]
    near = [p for p in positions if math.isfinite(p.liquidation_distance)]
    lines = [f"{len(positions)} open, {sum(p.unrealised_pnl for p in positions):+,.2f} unrealised"]
    for p in sorted(positions, key=lambda p: p.unrealised_pnl)[:_SHOWN]:
        lines.append(f"  {p.symbol} {'long' if p.lots > 0 else 'short'} {p.leverage:g}x {p.unrealised_pnl:+,.2f}")  # noqa: PERF401
    if len(positions) > _SHOWN:
        lines.append(f"  and {len(positions) - _SHOWN} more")
    if near:
        nearest = min(near, key=lambda p: p.liquidation_distance)
        lines.append(f"Nearest liquidation {nearest.symbol}, {nearest.liquidation_distance:.1%} away")
    bare = [p.symbol for p in positions if p.stop_price is None]
    return [*lines, *([f"WITHOUT A STOP: {', '.join(bare)}"] if bare else [])]


def _mode_line(risk: RiskState) -> str:
    why = ", ".join(sorted(risk.voices))
    return f"Mode {risk.mode.name}{f' ({why})' if why else ''}"


def _trouble_lines(notices: Sequence[Notice]) -> list[str]:
    trouble = [n for n in notices if n.severity in _TROUBLE]
    if not trouble:
        return ["No warnings"]
    worst = [n for n in trouble if n.severity is Severity.CRITICAL]
    last = (worst or trouble)[-1]
    return [f"{len(trouble)} warnings, {len(worst)} critical; last: {last.text[:120]}"]


class DailySummary:
    """A chore of the courier: once a UTC day, some time after midnight, the summary of the day before.

    Parameters
    ----------
    ledger : Ledger
        On a connection of its own; which day was told last is kept in it.
    box : NoticeBox
        What was told.
    tell : callable
        Where the summary goes.
    after_ns : int
        Time after midnight.
    """

    def __init__(self, ledger: Ledger, box: NoticeBox, tell: Tell, after_ns: int) -> None:
        self._ledger = ledger
        self._box = box
        self._tell = tell
        self._after_ns = after_ns
        self._told_day = -1

    def __call__(self, now_ns: int) -> None:
        """Tell the day before, if that is due and was not done."""
        day = (now_ns - self._after_ns) // NS_PER_DAY - 1
        if day <= self._told_day:
            return
        if day <= int(self._ledger.state(SUMMARY_DAY) or -1):
            self._told_day = day
            return
        summary = daily_summary(self._ledger, self._box, day)
        if summary is not None:
            self._tell(summary)
        self._ledger.put_state(SUMMARY_DAY, day)
        self._told_day = day
