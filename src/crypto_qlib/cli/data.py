"""``crypto-qlib data``: collect, check and repair market history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


_Bars = Literal["candles", "mark"]
_Exported = Literal["candles", "mark", "clean", "funding", "series"]
_Format = Literal["parquet", "csv", "feather"]
_Layout = Literal["table", "freqtrade"]


def _overrides(since: str, frames: str) -> list[str]:
    return [*([f"data.since={since}"] if since else []), *([f"data.frames=[{frames}]"] if frames else [])]


def _names(symbols: str) -> tuple[str, ...]:
    """Return compact symbols of a comma list of coins or symbols."""
    coins = [c.strip().upper() for c in symbols.split(",") if c.strip()]
    return tuple(c if c.endswith("USDT") else f"{c}USDT" for c in coins)


@_app.command()
def update(context: typer.Context, since: _Since = "", frames: _Frames = "", symbols: _Symbols = "") -> None:
    """Fetch what is new: candles, mark candles, funding, open interest, tiers and contract rules of the whole universe."""
    run_step(context, lambda p: p.data.update(_names(symbols)), *_overrides(since, frames))


@_app.command()
def watch(
    context: typer.Context,
    frames: _Frames = "",
    symbols: _Symbols = "",
    rounds: _Rounds = 0,
    stream: _Stream = True,
) -> None:
    """Collect at every bar close, and order flow from the websockets, until stopped."""
    run_step(context, lambda p: p.data.watch(_names(symbols), rounds or None, stream=stream), *_overrides("", frames))


@_app.command(name="import")
def import_(
    context: typer.Context,
    place: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", exists=True, help="Parquet, CSV or feather; ours or freqtrade's.")
    ],
    frame: Annotated[str, typer.Option("--frame", help="Bar length, where the file does not tell.")] = "",
    kind: Annotated[_Bars | None, typer.Option("--kind", help="What the bars are, where the file does not tell.")] = None,
) -> None:
    """Bring in candles, mark candles, funding and external series you have."""
    run_step(context, lambda p: p.data.files.bring_in(place, frame, kind or ""))


@_app.command()
def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="Where to write.")],
    kind: Annotated[_Exported, typer.Option("--kind", help="What to export; series = all external series.")] = "candles",
    frame: Annotated[str, typer.Option("--frame", help="Bar length; empty = data.frame.")] = "",
    file_format: Annotated[_Format, typer.Option("--format", help="File format.")] = "parquet",
    symbols: _Symbols = "",
    layout: Annotated[_Layout, typer.Option("--layout", help="One table, or freqtrade's file a symbol.")] = "table",
) -> None:
    """Take history or external series out into files."""
    run_step(context, lambda p: p.data.files.take_out(folder, kind, frame, file_format, _names(symbols), layout))


@_app.command()
def verify(context: typer.Context) -> None:
    """Read every file of the lake; damaged or silently changed ones are an error."""
    run_step(context, lambda p: p.data.files.verify())


@_app.command()
def compact(context: typer.Context) -> None:
    """Merge appended rows into the month files; write files of older schema versions anew."""
    run_step(context, lambda p: p.data.files.compact())


@_app.command()
def external(context: typer.Context) -> None:
    """Ask the external sources: stock index, fear & greed, market caps, on-chain, page views."""
    run_step(context, lambda p: p.data.external())


@_app.command()
def check(context: typer.Context) -> None:
    """Report gaps, outliers and impossible bars of the data on disk."""
    run_step(context, lambda p: p.data.check())


@_app.command()
def status(context: typer.Context, symbols: _Symbols = "") -> None:
    """Show what is on disk: first and last row of every series, gaps, staleness, source."""
    run_step(context, lambda p: p.data.status(_names(symbols)))


@_app.command()
def repair(context: typer.Context, again: _Again = False) -> None:
    """Remove files that cannot be read and fetch again what is missing."""
    run_step(context, lambda p: p.data.repair(again=again))
