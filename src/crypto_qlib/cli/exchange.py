"""``crypto-qlib exchange``: serve the embedded exchange to any client, and ask a served one how it is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, err, out
from crypto_qlib.cli.logs import log_to_terminal
from crypto_qlib.cli.pipeline import CapsFile, FundingFile, MarkFile, ReplayFile, replay_overrides

_app = typer.Typer(help="The embedded OKX-compatible exchange: serve it, or see how it is.", no_args_is_help=True)

_Speed = Annotated[
    float | None, typer.Option("--speed", min=0, help="Market seconds per real second; 0 = moves only when a client steps it.")
]
_Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 = any free one.")]
_Start = Annotated[
    str, typer.Option("--start", metavar="TIME", help="Market time at start: ISO, or `first` for the oldest bar.")
]
_Url = Annotated[str, typer.Option("--url", help="Address of the exchange.", show_default="the one served for this workspace")]


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="exchange")


@_app.command()
def serve(
    context: typer.Context,
    replay: ReplayFile = None,
    replay_funding: FundingFile = None,
    replay_caps: CapsFile = None,
    replay_mark: MarkFile = None,
    speed: _Speed = None,
    port: _Port = None,
    start: _Start = "",
) -> None:
    """Serve OKX's v5 API on loopback until interrupted: a simulated market, or real history replayed."""
    overrides = replay_overrides(replay, replay_funding, replay_caps, replay_mark)
    overrides += [f"exchange.{key}={value}" for key, value in (("speed", speed), ("port", port)) if value is not None]
    settings = asked(context).settings("exchange.mode=embedded", *overrides)
    log_to_terminal(settings.monitoring.log_level)
    from crypto_qlib.scheduler.exchange_service import serve as serve_until_stopped
    from crypto_qlib.scheduler.exchange_service import served_exchange
    from crypto_qlib.store.paths import Paths

    paths = Paths(settings.store.root)
    exchange = served_exchange(settings, start)

    def announce(url: str) -> None:
        console = out()
        console.print(f"embedded exchange at {url}")
        for line in _described(exchange.status()):
            console.print(escape(line))
        console.print(f"  API key   {escape(str(paths.exchange))} (paper account, simulated money)")
        console.print(f"  step it   curl -X POST {url}/admin/step -d '{{\"bars\": 1}}'")
        console.print("stop with Ctrl-C")

    serve_until_stopped(exchange, paths, announce)
    err().print("stopped")


@_app.command()
def status(context: typer.Context, url: _Url = "") -> None:
    """Show what a served exchange is: market, time, speed, symbols."""
    settings = asked(context).settings()
    from crypto_qlib.scheduler.exchange_service import read_status, served_url

    address = url or served_url(settings)
    found = read_status(address, settings.exchange.timeout_s)
    console = out()
    console.print(f"embedded exchange at {escape(address)}")
    for line in _described(found):
        console.print(escape(line))


def _described(status: dict[str, object]) -> list[str]:
    symbols = status.get("symbols")
    count = len(symbols) if isinstance(symbols, list) else 0
    prices = "simulated: prices are invented" if status.get("is_simulated") else "replay of recorded prices"
    speed = status.get("speed")
    pace = f"{speed:g} market seconds per second" if isinstance(speed, int | float) and speed else "moves when stepped"
    return [
        f"  market    {prices}; {count} symbols listed now",
        f"  now       {status.get('now')}  (data {status.get('start')} to {status.get('end')})",
        f"  speed     {pace}",
    ]
