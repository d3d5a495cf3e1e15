"""``crypto-qlib run`` and the steps it is made of: universe, train, evaluate, backtest, paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crypto_qlib.cli.steps import run_step

_Bars = Annotated[int | None, typer.Option("--bars", min=0, help="Bars the session lives through (live.paper_bars).")]
ReplayFile = Annotated[
    Path | None, typer.Option("--replay", metavar="PATH", help="Real candles (parquet or CSV) instead of the simulated market.")
]
FundingFile = Annotated[Path | None, typer.Option("--replay-funding", metavar="PATH", help="Realised funding of the replay.")]
CapsFile = Annotated[Path | None, typer.Option("--replay-caps", metavar="PATH", help="Market caps of the replay.")]
MarkFile = Annotated[Path | None, typer.Option("--replay-mark", metavar="PATH", help="Mark-price candles of the replay.")]

Vary = Annotated[
    list[str],
    typer.Option("--vary", metavar="SECTION.KEY=VALUE,...", help="A setting and its values; may be given many times."),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0 = one a core.")]
Runs = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", help="Run ids of the workspace, or report folders; without any, every report there is."),
]
DaskAddress = Annotated[
    str, typer.Option("--dask", metavar="ADDRESS", help="Run on the cluster of this Dask scheduler, e.g. tcp://10.0.0.5:8786.")
]

RankFile = Annotated[
    Path | None,
    typer.Option("--import", metavar="FILE", help="Take in a table of past market caps (symbol, ts, market_cap, price)."),
]
ShowHistory = Annotated[bool, typer.Option("--history", help="Show who joined and who left, and when.")]


def register(root: typer.Typer) -> None:
    """Add these commands to ``root``."""
    for command in (run, universe, train, evaluate, paper):
        root.command()(command)
    group = typer.Typer(help="Trade the model's scores with leverage, costs, funding and liquidation; write the report.")
    group.callback(invoke_without_command=True)(backtest)
    group.command()(grid)
    group.command()(compare)
    root.add_typer(group, name="backtest")


def replay_overrides(candles: Path | None, funding: Path | None, caps: Path | None, mark: Path | None) -> list[str]:
    """Return the settings that the ``--replay`` flags stand for.

    Raises
    ------
    typer.BadParameter
        If only side data is given.
    """
    named = {"replay_path": candles, "replay_funding": funding, "replay_market_caps": caps, "replay_mark": mark}
    given = [f"exchange.{key}={path.absolute()}" for key, path in named.items() if path is not None]
    if given and candles is None:
        raise typer.BadParameter("--replay-funding, --replay-caps and --replay-mark need --replay")
    return [*given, "exchange.market=replay"] if given else []


def run(
    context: typer.Context,
    replay: ReplayFile = None,
    replay_funding: FundingFile = None,
    replay_caps: CapsFile = None,
    replay_mark: MarkFile = None,
) -> None:
    """Do everything: universe, data, features, model, backtest, report, and a paper session."""
    run_step(context, lambda p: p.run(), *replay_overrides(replay, replay_funding, replay_caps, replay_mark))


def universe(context: typer.Context, ranks: RankFile = None, history: ShowHistory = False) -> None:
    """Choose the coins: the top N by market cap with a tradable USDT swap, now and as known at every day of the past."""
    if ranks is not None:
        run_step(context, lambda p: p.data.universe_import(ranks))
    elif history:
        run_step(context, lambda p: p.data.universe_history())
    else:
        run_step(context, lambda p: p.data.universe())


def train(context: typer.Context) -> None:
    """Train the model on the oldest part of the history."""
    run_step(context, lambda p: p.train())


def evaluate(context: typer.Context) -> None:
    """Measure the model out of sample: IC and RankIC, per symbol and overall."""
    run_step(context, lambda p: p.evaluate())


def backtest(context: typer.Context) -> None:
    """Trade the model's scores with leverage, costs, funding and liquidation; write the report."""
    if context.invoked_subcommand is None:
        run_step(context, lambda p: p.backtest())


def grid(context: typer.Context, vary: Vary, workers: Workers = 0, dask: DaskAddress = "") -> None:
    """Trade the same scores under every combination of settings, many at once; table, heat maps, verdict on the best.

    Finished runs are journalled: killed or extended by values, the grid goes on where it stopped.
    """
    run_step(context, lambda p: p.grid(vary, workers, dask))


def compare(context: typer.Context, runs: Runs = None) -> None:
    """Put finished backtests next to each other: figures, the settings that differ, and what the best of them is worth."""
    run_step(context, lambda p: p.compare(runs or ()))


def paper(context: typer.Context, bars: _Bars = None) -> None:
    """Run the live session on the embedded exchange (or OKX demo) for a number of bars."""
    run_step(context, lambda p: p.paper(), *([] if bars is None else [f"live.paper_bars={bars}"]))
