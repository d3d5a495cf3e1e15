"""``crypto-qlib exchange``: serve the embedded exchange to any client, look at it, fund it, break it, start it afresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, err, out
from crypto_qlib.cli.logs import log_to_terminal
from crypto_qlib.cli.pipeline import CapsFile, FundingFile, MarkFile, ReplayFile, replay_overrides
from crypto_qlib.core.errors import UserError

_app = typer.Typer(help="The embedded OKX-compatible exchange: serve it, look at it, break it.", no_args_is_help=True)

_Speed = Annotated[
    float | None, typer.Option("--speed", min=0, help="Market seconds per real second; 0 = moves only when a client steps it.")
]
_Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 = any free one.")]
_Host = Annotated[str | None, typer.Option("--host", help="Address to bind to; a public one needs --public and TLS.")]
_Tls = Annotated[bool, typer.Option("--tls", help="Serve https and wss, with a certificate of our own unless one is set.")]
_Public = Annotated[bool, typer.Option("--public", help="Allow an address that other machines can reach.")]
_Start = Annotated[
    str, typer.Option("--start", metavar="TIME", help="Market time at the first start: ISO, or `first` for the oldest bar.")
]
_Step = Annotated[
    float | None, typer.Option("--step", min=0, help="Seconds the market moves in one step; below its bars, a path is drawn.")
]
_MARKETS = {
    "simulated": "simulated: prices are invented",
    "replay": "replay of recorded prices",
    "okx_public": "OKX's live public data: real prices, simulated fills",
}
_Market = Annotated[
    str | None, typer.Option("--market", help="simulated, replay (with --replay), or okx_public: OKX's live public data.")
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
    market: _Market = None,
    speed: _Speed = None,
    step: _Step = None,
    port: _Port = None,
    host: _Host = None,
    tls: _Tls = False,
    public: _Public = False,
    start: _Start = "",
) -> None:
    """Serve OKX's v5 API until interrupted: a simulated market, real history, or OKX's live one. Accounts are kept on disk."""
    overrides = replay_overrides(replay, replay_funding, replay_caps, replay_mark)
    given = {
        "market": market,
        "speed": speed,
        "step_s": step,
        "port": port,
        "host": host,
        "tls": tls or None,
        "allow_public": public or None,
    }
    overrides += [f"exchange.{key}={value}" for key, value in given.items() if value is not None]
    settings = asked(context).settings("exchange.mode=embedded", *overrides)
    log_to_terminal(settings.monitoring.log_level)
    from crypto_qlib.exchange.credentials import key_file
    from crypto_qlib.scheduler.exchange_service import serve as serve_until_stopped
    from crypto_qlib.scheduler.exchange_service import served_exchange
    from crypto_qlib.store.paths import Paths

    paths = Paths(settings.store.root)
    is_first = not key_file(paths.exchange).exists()
    exchange = served_exchange(settings, start)

    def announce(url: str) -> None:
        console = out()
        console.print(f"embedded exchange at {url}")
        for line in _described(exchange.status()):
            console.print(escape(line))
        if is_first:
            key = exchange.credentials
            console.print("  a key was made for this workspace; it is shown this once (paper account, simulated money):")
            console.print(escape(f"    apiKey {key.key}\n    secret {key.secret}\n    passphrase {key.passphrase}"))
        console.print(f"  API key   {escape(str(key_file(paths.exchange)))}")
        console.print(f"  console   {url}/console")
        if exchange.options.tls is not None:
            console.print(f"  CA        {escape(str(exchange.options.tls.certificate))}  (clients: SSL_CERT_FILE, or cafile)")
        if exchange.live is None:
            console.print(f"  step it   curl -X POST {url}/admin/step -d '{{\"bars\": 1}}'")
        console.print("stop with Ctrl-C")

    serve_until_stopped(exchange, paths, announce)
    err().print("stopped")


@_app.command("import")
def import_book(
    books: Annotated[
        Path, typer.Argument(metavar="BOOKS", help="Snapshot and differences: a table, or OKX's messages (.jsonl).")
    ],
    trades: Annotated[Path, typer.Argument(metavar="TRADES", help="Trades of the same time: a table, or OKX's messages.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the recording goes, beside other symbols' ones.")],
    symbol: Annotated[str, typer.Option("--symbol", help="Whose book it is, e.g. BTCUSDT.")],
    contract: Annotated[
        float, typer.Option("--contract", min=0, help="Coins per contract, where sizes are in contracts (OKX's messages).")
    ] = 1.0,
) -> None:
    """Take in a recorded order book, for `exchange serve --replay FOLDER`: its books are served and its depth is traded."""
    from crypto_qlib.exchange.embedded.recording_import import described, import_recording

    out().print(escape(described(import_recording(books, trades, symbol, target, contract))))


@_app.command()
def status(context: typer.Context, url: _Url = "") -> None:
    """Show what a served exchange is: market, time, speed, symbols, accounts, faults."""
    found = _admin(context, url).get("status")
    console = out()
    console.print(f"embedded exchange at {escape(str(found.get('url', '')))}")
    for line in _described(found):
        console.print(escape(line))


@_app.command()
def fund(
    context: typer.Context,
    amount: Annotated[float, typer.Argument(help="USDT to put into the paper account; negative takes out.")],
    url: _Url = "",
) -> None:
    """Put USDT into the paper account of a served exchange, or take some out (`fund -- -100`)."""
    done = _admin(context, url).post("fund", {"amount": amount})
    out().print(f"cash {done['cash']:,.2f} USDT, equity {done['equity']:,.2f} USDT")


@_app.command()
def fault(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Fault, e.g. timeout, drop, suspend; `off` for all; empty = list them.")] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="e.g. rate=0.1 times=3 where=trade/ symbol=BTCUSDT ms=200."),
    ] = None,
    url: _Url = "",
) -> None:
    """Switch a fault on or off at a served exchange, or show which are on."""
    admin = _admin(context, url)
    shown = admin.post("fault", {"fault": name, **_parameters(parameters or [])}) if name else admin.get("faults")
    console = out()
    if not shown["on"]:
        console.print("no fault is on")
    for fault_name, how in shown["on"].items():
        console.print(escape(f"{fault_name}  {_in_words(how)}"))
    for fault_name, count in shown["fired"].items():
        console.print(escape(f"{fault_name} fired {count} times"))
    if not name:
        console.print(escape(f"there are: {', '.join(shown['known'])}"))


@_app.command()
def reset(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Make a new API key too.")] = False,
) -> None:
    """Forget the accounts and the market's time kept for this workspace; the next start begins afresh."""
    settings = asked(context).settings()
    from crypto_qlib.scheduler.exchange_service import reset as reset_state
    from crypto_qlib.store.paths import Paths

    folder = Paths(settings.store.root).exchange
    if not yes and not typer.confirm(f"forget the paper accounts kept in {folder}?"):
        raise typer.Abort
    gone = reset_state(folder, with_keys=keys)
    out().print(escape(f"removed {', '.join(path.name for path in gone)}" if gone else "there was nothing to forget"))


def _admin(context: typer.Context, url: str) -> Any:
    settings = asked(context).settings()
    from crypto_qlib.scheduler.exchange_service import Admin, served_url
    from crypto_qlib.store.paths import Paths

    return Admin(url or served_url(settings), settings.exchange.timeout_s, Paths(settings.store.root).exchange)


def _parameters(given: list[str]) -> dict[str, Any]:
    posted: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"{text} is no KEY=VALUE", "for example rate=0.1 where=trade/")
        try:
            posted[key] = json.loads(value)
        except ValueError:
            posted[key] = value
    return posted


def _in_words(how: object) -> str:
    if isinstance(how, dict):
        return ", ".join(f"{key} {value}" for key, value in how.items() if value not in (None, ""))
    return ", ".join(map(str, how)) if isinstance(how, list) else str(how)


def _described(status: dict[str, Any]) -> list[str]:
    symbols = status.get("symbols")
    count = len(symbols) if isinstance(symbols, list) else 0
    prices = _MARKETS.get(str(status.get("market")), "?")
    speed = status.get("speed")
    pace = f"{speed:g} market seconds per second" if isinstance(speed, int | float) and speed else "moves when stepped"
    live, span = status.get("live"), f"  (data {status.get('start')} to {status.get('end')})"
    lines = [
        f"  market    {prices}; {count} symbols listed now",
        f"  now       {status.get('now')}{'' if live else span}",
        f"  speed     {'real time' if live else pace}",
    ]
    if live:
        how = "connected" if live["connected"] else "NOT CONNECTED: orders are refused"
        lines.append(f"  live      {live['from']}, {how}; {live['fresh']} of {live['symbols']} symbols fresh")
    lines += [
        f"  account   {account['account']}: equity {account['equity']:,.2f} USDT, {account['positions']} positions, "
        f"{account['open_orders']} open orders, {account['orders']} orders in all"
        for account in status.get("accounts", [])
    ]
    kept = status.get("state")
    lines.append(f"  state     {f'kept in {kept}' if kept else 'in memory: forgotten when it stops'}")
    if status.get("faults"):
        lines.append(f"  faults    {', '.join(status['faults'])}")
    return lines
