"""What each step of the pipeline tells a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crypto_qlib.backtest.analysis_report import PERFORMANCE_FILE
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.clean_data import QualityReport
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport
from crypto_qlib.data_collector.universe_history import UniverseSnapshot, describe
from crypto_qlib.live_trading.runner import PaperResult
from crypto_qlib.modeling.evaluate_model import ModelPerformance


@dataclass(frozen=True, slots=True)
class Said:
    """A step's result as plain lines.

    Parameters
    ----------
    lines : tuple of str
        What a person should know.
    """

    lines: tuple[str, ...]

    def summary_lines(self) -> list[str]:
        """Return the lines."""
        return list(self.lines)


def universe_lines(snapshot: UniverseSnapshot, shown: int = 12) -> tuple[str, ...]:
    """Return who is in the universe, the first few by rank."""
    first = ", ".join(m.base for m in snapshot.members[:shown])
    more = f" and {len(snapshot.members) - shown} more" if len(snapshot.members) > shown else ""
    return (f"universe: {describe(snapshot)}: {first}{more}", *(f"  {note}" for note in snapshot.notes))


def update_lines(report: UpdateReport) -> tuple[str, ...]:
    """Return what an update fetched."""
    lines = [
        f"data: {len(report.symbols)} symbols from {iso(report.span[0])} to {iso(report.span[1])}; "
        f"{report.added:,} new rows, {report.corrected:,} corrected"
    ]
    lines += [f"  left out {symbol}: {reason}" for symbol, reason in report.excluded.items()]
    return tuple(lines)


def quality_lines(report: QualityReport, where: str) -> tuple[str, ...]:
    """Return the totals of a quality report."""
    totals = report.totals()
    flagged = ", ".join(f"{n:,} {name}" for name, n in totals.items() if n and name not in ("bars", "missing"))
    return (f"quality: {totals['bars']:,} bars, {totals['missing']:,} missing{', ' + flagged if flagged else ''}; {where}",)


def require_settlements(report: QualityReport) -> None:
    """Stop for a human if a symbol has no funding settlement at all: its funding would silently cost nothing.

    Raises
    ------
    UserError
        Naming every such symbol.
    """
    without = [s.symbol for s in report.symbols if not s.n_settlements]
    if without:
        coins = ",".join(symbol.removesuffix("USDT") for symbol in without)
        raise UserError(
            f"no funding settlement is known of {', '.join(without)}",
            f"leave them out with --set universe.exclude=[{coins}], or all funding with --set data.funding=false",
        )


def portfolio_of(report: Path) -> dict[str, Any] | None:
    """Return what a model's scores earned in the backtest whose report lies in ``report``; ``None`` where there is none.

    Returns
    -------
    dict
        ``run_id``, ``total_return``, ``sharpe``, ``mean_return_per_bar`` (with its interval), ``max_drawdown``, ``trades``,
        ``turnover_per_year``, ``fees``, ``liquidations``, ``probability_sharpe_above_zero``; net of costs.
    """
    file = report / PERFORMANCE_FILE
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    returns = {
        k: found["returns"][k]
        for k in ("total_return", "sharpe", "max_drawdown", "mean_return_per_bar", "probability_sharpe_above_zero")
    }
    return {
        "run_id": found["run"]["run_id"], "trades": found["trades"]["count"], "fees": found["costs"]["fees"],
        "turnover_per_year": found["turnover_per_year"], "liquidations": found["liquidations"]["count"], **returns,
    }  # fmt: skip


def performance_lines(performance: ModelPerformance) -> tuple[str, ...]:
    """Return a model's out-of-sample figures."""
    rank, spread = performance.rank_ic, performance.quantile_spread
    best = sorted((s for s in performance.symbols if s.rank_ic == s.rank_ic), key=lambda s: -s.rank_ic)
    lines = [
        f"out of sample {performance.first_bar_known} to {performance.last_bar_known}: RankIC {rank.mean:+.4f} "
        f"(standard error {rank.standard_error:.4f}, t {rank.t_stat:+.1f}), IC {performance.ic.mean:+.4f}",
        f"  best fifth minus worst fifth over {performance.horizon_bars} bars: {spread.mean:+.4%} before costs; "
        f"hit ratio {performance.hit_ratio:.1%}",
    ]
    if best:
        lines.append(
            f"  by symbol: best {best[0].symbol} {best[0].rank_ic:+.3f}, worst {best[-1].symbol} {best[-1].rank_ic:+.3f}"
        )
    return tuple(lines)


def paper_lines(result: PaperResult, label: str) -> tuple[str, ...]:
    """Return what a session did."""
    change = result.final_equity / result.start_equity - 1.0
    slowest = max(result.decision_seconds, default=0.0)
    lines = [
        f"paper session on {label}: {iso(result.start_ns)} to {iso(result.end_ns)}, {result.orders_sent} orders, "
        f"{len(result.fills)} fills, fees {result.fees:,.2f} USDT",
        f"  equity {result.start_equity:,.2f} -> {result.final_equity:,.2f} USDT ({change:+.2%}), at most {result.max_open} "
        f"open, mode {result.mode.name}; slowest cycle {slowest:.2f} s",
    ]
    if result.stopped_by:
        lines.append(f"  ended before its last bar: stopped by {result.stopped_by}")
    lines += [f"  {alert}" for alert in result.alerts]
    return tuple(lines)


def joined(parts: Sequence[Said]) -> Said:
    """Return all lines of ``parts``."""
    return Said(tuple(line for part in parts for line in part.lines))
