"""``crypto-qlib data``: collect, check and repair market history."""

from __future__ import annotations

from typing import Annotated

import typer

from crypto_qlib.cli.steps import run_step

_app = typer.Typer(help="Collect, check and repair market history.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="data")


_Since = Annotated[str, typer.Option("--since", metavar="DATE", help="History from this ISO date on (data.since).")]
_Frames = Annotated[str, typer.Option("--frames", metavar="LIST", help="Further bar lengths, e.g. 1m,5m (data.frames).")]
_Symbols = Annotated[str, typer.Option("--symbols", metavar="LIST", help="Only these coins, e.g. BTC,ETH; else the universe.")]
_Rounds = Annotated[int, typer.Option("--rounds", min=0, help="Stop after so many bar closes; 0 = until stopped (Ctrl-C).")]
_Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Also gather order flow from the websockets.")]
_Again = Annotated[bool, typer.Option("--again", help="Ask again wherever the exchange once had nothing.")]


def _overrides(since: str, frames: str) -> list[str]:
    return [*([f"data.since={since}"] if since else []), *([f"data.frames=[{frames}]"] if frames else [])]


def _names(symbols: str) -> tuple[str, ...]:
    """Return compact symbols of a comma list of coins or symbols."""
    coins = [c.strip().upper() for c in symbols.split(",") if c.strip()]
    return tuple(c if c.endswith("USDT") else f"{c}USDT" for c in coins)


@_app.command()
def update(context: typer.Context, since: _Since = "", frames: _Frames = "", symbols: _Symbols = "") -> None:
    """Fetch what is new: candles, mark candles, funding, open interest, tiers and contract rules of the whole universe."""
    run_step(context, lambda p: p.data_update(_names(symbols)), *_overrides(since, frames))


@_app.command()
def watch(
    context: typer.Context,
    frames: _Frames = "",
    symbols: _Symbols = "",
    rounds: _Rounds = 0,
    stream: _Stream = True,
) -> None:
    """Collect at every bar close, and order flow from the websockets, until stopped."""
    run_step(context, lambda p: p.data_watch(_names(symbols), rounds or None, stream=stream), *_overrides("", frames))


@_app.command()
def verify(context: typer.Context) -> None:
    """Read every file of the lake; damaged or silently changed ones are an error."""
    run_step(context, lambda p: p.data_verify())


@_app.command()
def compact(context: typer.Context) -> None:
    """Merge appended rows into the month files; write files of older schema versions anew."""
    run_step(context, lambda p: p.data_compact())


@_app.command()
def external(context: typer.Context) -> None:
    """Ask the external sources: stock index, fear & greed, market caps, on-chain, page views."""
    run_step(context, lambda p: p.data_external())


@_app.command()
def check(context: typer.Context) -> None:
    """Report gaps, outliers and impossible bars of the data on disk."""
    run_step(context, lambda p: p.data_check())


@_app.command()
def status(context: typer.Context, symbols: _Symbols = "") -> None:
    """Show what is on disk: first and last row of every series, gaps, staleness, source."""
    run_step(context, lambda p: p.data_status(_names(symbols)))


@_app.command()
def repair(context: typer.Context, again: _Again = False) -> None:
    """Remove files that cannot be read and fetch again what is missing."""
    run_step(context, lambda p: p.data_repair(again=again))
