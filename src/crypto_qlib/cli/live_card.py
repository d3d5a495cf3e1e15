"""Which session a ``crypto-qlib live`` command means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, err
from crypto_qlib.core.errors import UserError

if TYPE_CHECKING:
    from crypto_qlib.live_trading.instance import SessionCard


def last_card(context: typer.Context) -> tuple[SessionCard, bool]:
    """Return the card of the last session of the mode asked for, else of the one that runs, and whether it runs."""
    settings = asked(context).settings()
    from crypto_qlib.live_trading.instance import session_asked_for
    from crypto_qlib.store.paths import Paths

    folder, mode = Paths(settings.store.root).live, settings.exchange.mode
    found = session_asked_for(folder, mode, is_chosen="mode" in settings.exchange.model_fields_set)
    if found is not None and found[0].mode != mode:
        err().print(
            escape(f"the session of mode {found[0].mode} is meant; none of mode {mode} {'runs' if found[1] else 'is known'}")
        )
    if found is None:
        raise UserError(
            f"no session of mode {mode} was ever started in {settings.store.root}", "start one, or set exchange.mode"
        )
    return found
