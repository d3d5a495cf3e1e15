"""Live against its own backtest: the same inputs re-simulated, the difference taken apart, told where it is beyond a bound.

1. The reference: the backtest on the bars as they are known now, with the scores the model gives on them.
2. The same with live's scores where live's bars deviated (``data``), then everywhere and as its modes allowed (``signal``).
3. What still separates that from the account is taken apart by executions and settlements (``analytics.gap``).

The session is simulated from its start, when it was flat; a day's gap is the difference of the paths at its two ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import orjson

from crypto_qlib.analytics.gap import CAUSES, Gap, GapPaths, gap_between
from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.clock import iso, utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BoolArray, FloatArray, IntArray, MarketPanel
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.live_trading.gap_inputs import (
    LiveSide,
    deviations,
    fee_path,
    funding_path,
    latency_path,
    mixed,
    scores_of,
)
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity

TEMPLATES: Final = Path(__file__).parent / "templates"
MEANING: Final = {
    "data": "bars that came late, were missing or other ones than known now",
    "signal": "other scores on the same bars, and modes that forbade entries",
    "fill": "prices executed at beside those met on arrival, orders not or partly filled",
    "fee": "other fee rates than those of the settings",
    "funding": "other settlements than the data's rates give",
    "latency": "prices met on arrival beside those at the bar's open, orders executed in a later bar",
}
ScoreAt = Callable[[MarketPanel], Scores]


@dataclass(frozen=True, slots=True)
class GapInputs:
    """What a gap is worked out from.

    Parameters
    ----------
    session_id : str
        Whose.
    live : LiveSide
        The session.
    panel : MarketPanel
        Bars as they are known now: the session and the weeks before it.
    score : callable
        The model: scores of the last bar of a panel.
    instruments, tiers : mapping
        Contract rules.
    rules : Rules
        What the session obeyed.
    execution : Execution
        How the backtest executes.
    blacklist : tuple of str
        Symbols never entered.
    """

    session_id: str
    live: LiveSide
    panel: MarketPanel
    score: ScoreAt
    instruments: Mapping[str, Instrument]
    tiers: Mapping[str, TierHistory]
    rules: Rules
    execution: Execution = field(default_factory=Execution)
    blacklist: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GapReport:
    """A gap with the paths behind it.

    Parameters
    ----------
    session_id : str
        Whose.
    gap : Gap
        Over the span asked for.
    paths : GapPaths
        From the start of the session.
    notes : tuple of str
        What stands out, in words.
    """

    session_id: str
    gap: Gap
    paths: GapPaths
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it in lines for a terminal."""
        g = self.gap
        head = f"session {self.session_id}, {iso(g.start_ns)} to {iso(g.end_ns)}"
        sums = f"live {g.live_pnl:+,.2f}, backtest {g.reference_pnl:+,.2f}, difference {g.total:+,.2f} USDT ({g.share:+.3%})"
        parts = [f"  {cause:<8} {round(g.parts[cause], 2) + 0.0:+12,.2f}  {MEANING[cause]}" for cause in CAUSES]
        return [head, sums, *parts, *(f"  note: {note}" for note in self.notes)]

    def event(self, bound: float) -> LiveEvent | None:
        """Return what to tell where the difference is beyond ``bound``, a fraction of equity; ``None`` where it is not."""
        g = self.gap
        if not abs(g.share) > bound:
            return None
        parts = ", ".join(f"{cause} {g.parts[cause]:+,.2f}" for cause in sorted(CAUSES, key=lambda c: -abs(g.parts[c]))[:3])
        text = f"live and its backtest differ by {g.total:+,.2f} USDT ({g.share:+.2%}) since {iso(g.start_ns)}: {parts}"
        return LiveEvent(g.end_ns, EventKind.GAP, Severity.WARNING, text, facts={**g.parts, "total": g.total})


def gap_report(inputs: GapInputs, start_ns: int | None = None, end_ns: int | None = None) -> GapReport:
    """Return the gap between two closes (those of the whole session where not given).

    Only bars from ``start_ns`` on are scored anew; before, the reference has live's scores.

    Raises
    ------
    UserError
        If the panel does not cover the session, or the span holds no two closes.
    """
    rows = inputs.live.equity
    first, last = rows[0].ts_ns, min(rows[-1].ts_ns, end_ns or rows[-1].ts_ns)
    if last <= first or (start_ns or first) >= rows[-1].ts_ns:
        lived = f"it lived from {iso(first)} to {iso(rows[-1].ts_ns)}"
        raise UserError(f"session {inputs.session_id} has no two closes in that span: {lived}", "choose another day")
    panel = _covering(inputs.panel, first, last)
    closes = np.arange(first, last, panel.frame_ns, dtype=np.int64)
    live_scores = scores_of(inputs.live, panel.symbols, closes, as_allowed=False)
    allowed = scores_of(inputs.live, panel.symbols, closes, as_allowed=True)
    reference = _reference(inputs, panel, closes, live_scores, first if start_ns is None else start_ns)
    odd = deviations(inputs.live, panel, closes)
    everywhere = np.ones_like(odd)
    runs = [reference, mixed(reference, live_scores, odd), mixed(reference, allowed, everywhere)]
    paths = _paths(inputs, panel, [_equity(inputs, panel, scores, rows[0].equity, last) for scores in runs])
    try:
        gap = gap_between(paths, first if start_ns is None else start_ns, last)
    except ValueError as e:
        raise UserError(
            f"session {inputs.session_id} has no two closes between then and {iso(last)}", "choose another day"
        ) from e
    return GapReport(inputs.session_id, gap, paths, tuple(_notes(inputs, panel, closes, odd, reference, live_scores)))


def write_gap(report: GapReport, folder: Path) -> tuple[Path, Path]:
    """Write ``gap_SESSION_DAY.html`` and ``.json`` into ``folder`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"gap_{report.session_id}_{utc(report.gap.start_ns):%Y-%m-%d}_{utc(report.gap.end_ns):%Y-%m-%d}"
    page, data = folder / f"{name}.html", folder / f"{name}.json"
    for path, content in ((data, _json(report)), (page, _page(report).encode())):
        pending = path.with_suffix(".part")
        pending.write_bytes(content)
        pending.replace(path)
    return page, data


def _covering(panel: MarketPanel, first_ns: int, last_ns: int) -> MarketPanel:
    stop = int(np.searchsorted(panel.ts_open + panel.frame_ns, last_ns, side="right"))
    known = panel.rows(0, stop)
    if stop == 0 or int(known.ts_open[0]) >= first_ns or int(known.ts_open[-1]) + panel.frame_ns < last_ns:
        raise UserError(
            f"the collected bars do not cover the session, {iso(first_ns)} to {iso(last_ns)}", "run `crypto-qlib data update`"
        )
    return known


def _reference(
    inputs: GapInputs, panel: MarketPanel, closes: IntArray, live: tuple[FloatArray, ...], from_ns: int
) -> ScorePanel:
    """Return the scores on the bars as they are known now; live's before ``from_ns``."""
    columns = [np.array(column) for column in live]
    for i, ts_ns in enumerate(closes.tolist()):
        if ts_ns < from_ns:
            continue
        scores = inputs.score(panel.known_until(ts_ns))
        for column, values in zip(columns, (scores.expected_return, scores.win_probability, scores.uncertainty), strict=True):
            column[i] = values
    return ScorePanel(closes, panel.symbols, *columns)


def _equity(inputs: GapInputs, panel: MarketPanel, scores: ScorePanel, equity: float, end_ns: int) -> dict[int, float]:
    result = run_backtest(
        BacktestInputs(
            panel,
            scores,
            inputs.instruments,
            inputs.tiers,
            inputs.rules,
            equity,
            inputs.execution,
            inputs.blacklist,
            start_ns=int(scores.as_of_ns[0]),
            end_ns=end_ns,
            require_funding=False,
        )
    )
    return dict(zip(result.ts_close.tolist(), result.equity.tolist(), strict=True))


def _paths(inputs: GapInputs, panel: MarketPanel, runs: list[dict[int, float]]) -> GapPaths:
    rows = inputs.live.equity
    start = rows[0]
    kept = [row for row in rows if row.ts_ns == start.ts_ns or all(row.ts_ns in run for run in runs)]
    ts = np.array([row.ts_ns for row in kept], np.int64)
    reference, with_data, with_signal = (np.array([run.get(row.ts_ns, start.equity) for row in kept]) for run in runs)
    live = np.array([row.equity for row in kept])
    rules, items = inputs.rules, inputs.instruments
    return GapPaths(
        ts,
        live,
        reference,
        with_data,
        with_signal,
        fee_path(inputs.live, ts, items, rules.maker_fee, rules.taker_fee),
        funding_path(inputs.live, ts, panel, items),
        latency_path(inputs.live, ts, panel, items),
    )


def _notes(
    inputs: GapInputs,
    panel: MarketPanel,
    closes: IntArray,
    odd: BoolArray,
    reference: ScorePanel,
    live: tuple[FloatArray, ...],
) -> list[str]:
    notes = []
    for i in np.flatnonzero(odd.any(axis=1))[:5].tolist():
        names = [panel.symbols[j] for j in np.flatnonzero(odd[i]).tolist()]
        what = "every symbol" if len(names) == len(panel.symbols) else ", ".join(names[:4])
        notes.append(f"bar of {iso(int(closes[i]))}: late, missing or another one: {what}")
    differs = np.isfinite(live[0]) & np.isfinite(reference.expected_return) & ~odd
    differs &= np.abs(live[0] - reference.expected_return) > 1e-6 * np.maximum(np.abs(reference.expected_return), 1e-6)
    if differs.any():
        bars = int(differs.any(axis=1).sum())
        notes.append(f"other scores on the same bars at {bars} closes, first at {iso(int(closes[differs.any(axis=1)][0]))}")
    shut = [ts for ts, bar in inputs.live.bars.items() if not bar.may_open and not bar.is_stale]
    if shut:
        notes.append(f"the mode forbade entries at {len(shut)} closes, first at {iso(min(shut))}")
    return notes


def _json(report: GapReport) -> bytes:
    g, p = report.gap, report.paths
    value: dict[str, Any] = {
        "session": report.session_id,
        "start": iso(g.start_ns),
        "end": iso(g.end_ns),
        "live_pnl": g.live_pnl,
        "backtest_pnl": g.reference_pnl,
        "difference": g.total,
        "share_of_equity": g.share,
        "parts": g.parts,
        "main_cause": g.main_cause,
        "notes": list(report.notes),
        "paths": {"ts": [iso(t) for t in p.ts_ns.tolist()], "live": p.live, "backtest": p.reference, **p.parts},
    }
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def _page(report: GapReport) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    g, p = report.gap, report.paths
    largest = max([1e-9, *(abs(v) for v in g.parts.values())])
    bars = [(c, round(g.parts[c], 2) + 0.0, MEANING[c], 50.0 * abs(g.parts[c]) / largest) for c in CAUSES]
    return environment.get_template("gap.html.j2").render(
        session=report.session_id,
        start=iso(g.start_ns),
        end=iso(g.end_ns),
        gap=g,
        bars=bars,
        notes=report.notes,
        equity=_lines({"live": p.live, "backtest": p.reference}),
        parts=_lines({cause: path for cause, path in p.parts.items() if np.abs(path).max() > 0.0}),
    )


def _lines(paths: Mapping[str, FloatArray], width: float = 900.0, height: float = 260.0) -> dict[str, Any]:
    """Return polylines for an SVG of that size, the range they span, and where zero is (``None`` if outside)."""
    if not paths:
        return {"lines": [], "low": 0.0, "high": 0.0, "zero": None}
    low, high = min(float(np.nanmin(v)) for v in paths.values()), max(float(np.nanmax(v)) for v in paths.values())
    span = (high - low) or 1.0
    lines = []
    for name, values in paths.items():
        x = np.linspace(0.0, width, values.size)
        y = height - (values - low) / span * height
        lines.append((name, " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))))
    zero = height + low / span * height
    return {"lines": lines, "low": low, "high": high, "zero": zero if 0.0 <= zero <= height else None}
