"""Step: what came of it? Write the pictures, figures, logs and the page of a backtest into one folder.

=================================  ==================================================================
file                               what it holds
=================================  ==================================================================
``multi_asset_pnl_curve.png``      equity against its benchmarks, drawdown, open positions
``multi_asset_performance.json``   every figure, as plain JSON (null where there is none)
``symbol_exposure_history.png``    long, short and net exposure, and each symbol's over time
``liquidation_events.log``         one line a liquidation
``trades.parquet``                 closed trades with entry rank, exit kind and costs
``fills.parquet``                  every execution, before and after slippage
``funding.parquet``                every settlement
``vetoes.parquet``                 refusals one by one: rule, limit, actual
``equity.parquet``                 the account at every bar close
``report.html``                    all of it on one self-contained page
=================================  ==================================================================

Every file carries the run's identity. Reports beside each other on the same data are trials of one search and are judged as
such (:mod:`crypto_qlib.backtest.trials`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crypto_qlib.backtest.performance_report import curves, performance
from crypto_qlib.backtest.report_page import build_page, write_page
from crypto_qlib.backtest.report_pictures import draw_exposure_history, draw_pnl_curve
from crypto_qlib.backtest.report_words import BANNERS, summary
from crypto_qlib.backtest.result import BacktestResult, at_closes_of
from crypto_qlib.backtest.trials import comparable, read_curve, trial_figures
from crypto_qlib.backtest.what_if import WhatIf
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.settings.schema import Settings

PNL_PICTURE: Final = "multi_asset_pnl_curve.png"
PERFORMANCE_FILE: Final = "multi_asset_performance.json"
EXPOSURE_PICTURE: Final = "symbol_exposure_history.png"
LIQUIDATION_LOG: Final = "liquidation_events.log"
PAGE: Final = "report.html"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where everything lies, and the figures themselves.

    Parameters
    ----------
    pnl_picture, exposure_picture, performance, liquidation_log, trades, fills, funding, vetoes, equity, page : Path
        The files.
    figures : dict
        What ``performance`` holds, with NaN where the file has null.
    """

    pnl_picture: Path
    exposure_picture: Path
    performance: Path
    liquidation_log: Path
    trades: Path
    fills: Path
    funding: Path
    vetoes: Path
    equity: Path
    page: Path
    figures: dict[str, Any]


def market_kind(settings: Settings) -> str:
    """Return where the prices come from: ``simulated``, ``replay`` (of recorded history) or ``exchange``."""
    if settings.exchange.mode != "embedded" or settings.exchange.market == "okx_public":
        return "exchange"
    return "simulated" if settings.exchange.market == "simulated" else "replay"


def write_report(
    result: BacktestResult,
    panel: MarketPanel,
    settings: Settings,
    identity: dict[str, Any],
    model_performance: dict[str, Any] | None,
    out_dir: Path,
    rank_ic: tuple[list[str], list[float]] | None = None,
    study: WhatIf | None = None,
) -> ReportFiles:
    """Write all files of the report into ``out_dir`` and return where they are.

    Parameters
    ----------
    result : BacktestResult
        The run; with its exposure kept.
    panel : MarketPanel
        The bars it decided on. Where it traded on finer ones, figures and charts show the closes of these, the parquet files
        every bar traded.
    settings : Settings
        In force; shown on the page, and they say whether prices are simulated.
    identity : dict
        Run identity (``Identity.stamp()``), stamped into every file.
    model_performance : dict | None
        The model's own figures (``ModelPerformance.to_json()``).
    out_dir : Path
        Created if absent; existing files are replaced.
    rank_ic : (times, values), optional
        RankIC of the model at each bar, for the rolling chart.
    study : WhatIf, optional
        Capacity, ruin and distance to liquidation, where they are wanted.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """
    kind = market_kind(settings)
    figures = {"run": identity, **performance(result, panel, kind, model_performance)}
    figures["what_if"] = None if study is None else study.to_json()
    figures["settings"] = settings.model_dump(mode="json")
    shown = at_closes_of(result, panel.frame_ns)
    c = curves(shown, panel)
    label = f"{BANNERS[kind][0]}  ·  {figures['period']['start'][:10]} to {figures['period']['end'][:10]}"
    footer = "run " + str(identity.get("run_id", "without identity"))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        files = _paths(out_dir, figures)
        draw_pnl_curve(c, shown, f"Profit and loss  ·  {label}", footer, files.pnl_picture)
        draw_exposure_history(shown, f"Exposure  ·  {label}", footer, files.exposure_picture)
        files.liquidation_log.write_text(liquidation_log(result, identity, label))
        _write_parquet(result.trades_frame(), files.trades, identity)
        _write_parquet(result.fills_frame(), files.fills, identity)
        _write_parquet(result.funding_frame(), files.funding, identity)
        _write_parquet(result.vetoes_frame(), files.vetoes, identity)
        _write_parquet(result.account_frame().reset_index(), files.equity, identity)
        figures["trials"] = trial_figures(comparable(read_curve(out_dir), out_dir.parent))
        files.performance.write_bytes(orjson.dumps(figures, default=str, option=_JSON))
        html = build_page(shown, panel, c, figures, figures["settings"], rank_ic, study)
        write_page(html, files.page)
    except OSError as e:
        raise UserError(f"cannot write the report to {out_dir}: {e.strerror or e}", "choose another store.root") from e
    return files


_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def _paths(folder: Path, figures: dict[str, Any]) -> ReportFiles:
    return ReportFiles(
        pnl_picture=folder / PNL_PICTURE,
        exposure_picture=folder / EXPOSURE_PICTURE,
        performance=folder / PERFORMANCE_FILE,
        liquidation_log=folder / LIQUIDATION_LOG,
        trades=folder / "trades.parquet",
        fills=folder / "fills.parquet",
        funding=folder / "funding.parquet",
        vetoes=folder / "vetoes.parquet",
        equity=folder / "equity.parquet",
        page=folder / PAGE,
        figures=figures,
    )


def _write_parquet(frame: pd.DataFrame, path: Path, identity: dict[str, Any]) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    stamped = {**(table.schema.metadata or {}), b"run": json.dumps(identity, default=str).encode()}
    pq.write_table(table.replace_schema_metadata(stamped), path)


def liquidation_log(result: BacktestResult, identity: dict[str, Any], label: str) -> str:
    """Return the log's text: a head that says what it is, then one line a liquidation (times UTC, money USDT)."""
    lines = [f"# liquidation events  run={identity.get('run_id', '')}  {label}"]
    for row in result.liquidations_frame().to_dict("records"):
        what = "partial liquidation" if row["partial"] else "liquidation"
        side = "long" if row["lots"] < 0 else "short"  # the fill sells a long
        lines.append(
            f"{row['ts']:%Y-%m-%dT%H:%M:%SZ} {row['symbol']} {what} of {abs(row['lots'])} lots {side}: "
            f"mark={row['mark']:.8g} pnl={row['pnl']:.2f} fee={row['fee']:.2f} penalty={row['penalty']:.2f} "
            f"insurance={row['overshoot']:.2f} trade={row['trade']}"
        )
    if result.liquidations.size == 0:
        lines.append("# no position was liquidated")
    return "\n".join(lines) + "\n"


def summary_lines(files: ReportFiles) -> list[str]:
    """Return the summary a person reads at the end of a run, one line a fact."""
    return summary(files.figures, str(files.page))
