"""``crypto-qlib live gap``: live against its own backtest on the same inputs, the difference taken apart."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.live_card import last_card
from crypto_qlib.cli.steps import StepResult, run_step
from crypto_qlib.core.clock import NS_PER_DAY, SystemClock, parse_utc
from crypto_qlib.core.errors import UserError


def register(live: typer.Typer) -> None:
    """Add the command to the group ``live``."""
    live.command(name="gap")(gap)


def gap(
    context: typer.Context,
    day: Annotated[
        str, typer.Option("--day", help="UTC day, such as 2026-01-31, or `yesterday`; without it the whole session.")
    ] = "",
    tell: Annotated[bool, typer.Option("--tell", help="Put it among the alerts where it is beyond alerts.gap_bound.")] = False,
) -> None:
    """Re-simulate the last session of this mode by the backtest and say what made the difference.

    It is split into data, signal, fill, fee, funding and latency. The bars of the session must have been collected
    (`crypto-qlib data update`).
    """
    from crypto_qlib.live_trading.gap_inputs import live_side
    from crypto_qlib.live_trading.journal import rows_of
    from crypto_qlib.live_trading.session_status import ledger_of
    from crypto_qlib.store.ledger import Ledger, SessionRow

    span = _span(day)
    card, _ = last_card(context)
    of_its_mode = f"exchange.mode={card.mode}"
    settings = asked(context).settings(of_its_mode)
    place = ledger_of(card, asked(context).secrets().ledger_password)
    ledger = Ledger.open(place, SessionRow(card.session_id, card.started_ns, card.mode, {}))
    try:
        live = live_side(ledger, rows_of(ledger.journal()))

        def step(pipeline: Pipeline) -> StepResult:
            said, report = pipeline.session_gap(card.session_id, live, span)
            event = report.event(settings.alerts.gap_bound)
            if tell and event is not None:
                NoticeBox(ledger.engine, card.session_id).add(event, f"gap|{event.ts_ns}")
            return said

        from crypto_qlib.scheduler.pipeline_scheduler import Pipeline
        from crypto_qlib.store.notice_box import NoticeBox

        run_step(context, step, of_its_mode)
    finally:
        ledger.close()
    if tell:
        out().print(escape(f"told where beyond {settings.alerts.gap_bound:.2%} of equity"))


def _span(day: str) -> tuple[int | None, int | None]:
    if not day:
        return None, None
    now = SystemClock().now_ns()
    try:
        start = now - now % NS_PER_DAY - NS_PER_DAY if day == "yesterday" else parse_utc(day)
    except ValueError as e:
        raise UserError(f"--day {day} is no day", "such as 2026-01-31, or yesterday") from e
    return start, start + NS_PER_DAY
