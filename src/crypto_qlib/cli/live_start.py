"""``crypto-qlib live start``: which account, under which limits, and whether the key is fit for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, err
from crypto_qlib.cli.steps import run_step
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.load import require_okx_keys
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets

_UNTIL_STOPPED: Final = 1_000_000
"""Bars of a session nobody gave a number of bars."""
_YES_WORD: Final = "real money"


class Mode(StrEnum):
    """Where to trade."""

    EMBEDDED = "embedded"
    DEMO = "demo"
    LIVE = "live"


def start(
    context: typer.Context,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Where to trade; by default as exchange.mode says.")] = None,
    bars: Annotated[
        int | None,
        typer.Option(
            "--bars",
            min=0,
            help="Bars to live through; by default live.paper_bars on the embedded exchange, else until stopped.",
        ),
    ] = None,
) -> None:
    """Start the session with the model of model.trades, at OKX the champion; stop it with `live stop`, SIGTERM or Ctrl-C.

    Mode `live` trades real money. It needs live.confirm_live=true, keys that may trade and may not withdraw, and on a terminal
    the words typed that it asks for.
    """
    wanted = asked(context)
    overrides = [] if mode is None else [f"exchange.mode={mode.value}"]
    settings = wanted.settings(*overrides)
    if bars is None and settings.exchange.mode != "embedded":
        bars = _UNTIL_STOPPED
    screen = err()
    for line in limit_lines(settings):
        screen.print(escape(line))
    if settings.exchange.mode != "embedded":
        for line in require_fit_key(settings, wanted.secrets()):
            screen.print(escape(line))
    if settings.exchange.mode == "live":
        _confirm()
    run_step(context, lambda p: p.paper(), *overrides, *([] if bars is None else [f"live.paper_bars={bars}"]))


def require_fit_key(settings: Settings, secrets: Secrets) -> Iterator[str]:
    """Refuse keys that may do more than needed, or less; yield what a person should know of one that passes.

    Raises
    ------
    UserError
        If there is no key, it cannot trade, or it could withdraw funds.
    """
    require_okx_keys(settings, secrets)
    from crypto_qlib.exchange.credentials import ApiCredentials
    from crypto_qlib.exchange.key_rights import key_rights
    from crypto_qlib.exchange.okx_session import Connection

    credentials = ApiCredentials(secrets.okx_api_key, secrets.okx_api_secret, secrets.okx_api_passphrase)
    exchange = settings.exchange
    rights = asyncio.run(key_rights(Connection("", credentials, exchange.mode == "demo", exchange.timeout_s)))
    refuse_unfit(rights.may_trade, rights.may_withdraw)
    yield "the key may trade and may not withdraw"
    if not rights.ip_bound:
        yield "warning: the key works from any address; bind it to this machine's at OKX"


def refuse_unfit(may_trade: bool, may_withdraw: bool) -> None:
    """Refuse a key by its rights.

    Raises
    ------
    UserError
        If it cannot trade, or it could withdraw funds.
    """
    if may_withdraw:
        raise UserError("the API key may withdraw funds", "make a key at OKX with Read and Trade only")
    if not may_trade:
        raise UserError("the API key may not trade", "make a key at OKX with Read and Trade")


def _confirm() -> None:
    """Ask for the words where somebody can type them; without a terminal ``live.confirm_live`` has said it."""
    stream = typer.get_text_stream("stdin")
    if not stream.isatty():
        return
    typed = typer.prompt(f"this trades real money; type `{_YES_WORD}` to go on", default="", show_default=False)
    if typed.strip().lower() != _YES_WORD:
        raise typer.Abort


def limit_lines(settings: Settings) -> Iterator[str]:
    """Yield the limits in force, one a line."""
    strategy, live = settings.strategy, settings.live
    yield f"limits in force ({settings.exchange.mode}):"
    rows = {
        "positions at once": f"{strategy.max_open}",
        "leverage": f"{strategy.leverage:g}x, margin {settings.backtest.margin_mode}",
        "exposure": f"gross {strategy.max_gross:g}x, net {strategy.max_net:g}x of equity",
        "correlation": "not limited"
        if strategy.max_correlation >= 1.0
        else f"an entry is not sent above {strategy.max_correlation:g} with a position of its side",
        "risk of an entry": f"{strategy.risk_per_trade:.2%} of equity; never sent above {live.max_order_risk:.2%}",
        "loss of a day": f"{live.max_daily_loss:.0%}: exits only until the next UTC day",
        "drawdown": f"{strategy.max_drawdown:.0%}: no entries; {live.halt_drawdown:.0%}: nothing until a person resumes",
        "margin ratio": f"{live.min_margin_ratio:g}: exits only; {live.deleverage_ratio:g}: closed (1 liquidates)",
        "data": f"{live.min_fresh_share:.0%} of the symbols must have their bar",
        "price": f"an entry is not sent {live.max_price_deviation:.1%} away from the price it was sized with",
        "exchange": f"{live.max_api_errors} failed requests or {live.max_rejects} refused orders in a row, "
        f"{live.max_latency_s:g} s for an answer, {live.max_clock_skew_s:g} s of clock",
        "dead-man's switch": f"{live.dead_man_s} s" if live.dead_man_s else "off",
        "foreign positions": "adopted" if live.adopt else "left alone",
        "at the end": "positions are closed" if live.flatten_on_exit else "positions stay, protected by their stops",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        yield f"  {name:<{width}}  {value}"
