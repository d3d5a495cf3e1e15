"""What a backtest found: the account over time, every fill, trade, settlement, liquidation and refusal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Desk
from crypto_qlib.backtest.inputs import PreparedRun
from crypto_qlib.backtest.ledger_arrays import OPENING, POSITION, joined
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.core.order import ExitKind
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.selection import VetoLog
from crypto_qlib.portfolio.veto import VetoRule
from crypto_qlib.venue.matching import EXIT_KIND_BY_CODE

if TYPE_CHECKING:
    import pandas as pd

RecordArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """Everything one run produced; arrays are structured, ``bar`` is a row of ``ts_open``, ``symbol`` a place in ``symbols``.

    Parameters
    ----------
    symbols : tuple of str
        Columns.
    frame_ns : int
        Length of the bars traded.
    ts_open : (n_bars,) int64
        Open times of the bars traded; the account's figures hold at the *close* of each.
    initial_equity : float
        USDT.
    rules : Rules
        What the decisions obeyed.
    series : (n_bars,) SERIES
        Equity, cash, used margin, maintenance margin, gross, net, open positions at each close.
    fills, trades, funding, liquidations, ambiguous : structured
        Ledgers, see :mod:`crypto_qlib.backtest.ledger_arrays`. ``trades`` are closed positions, in order of their exit.
    open_positions : structured
        Positions still open at the end (dtype ``POSITION``), marked, not closed.
    open_symbols : (n_open,) int64
        Their columns.
    veto_counts : dict
        Refusals by rule.
    vetoes : (n, 3) int64
        Instant, rule and column (-1: the account) of the refusals kept one by one.
    veto_values : (n, 2) float64
        Limit and actual value of each.
    exposure : (n_bars, n_symbols) float64
        Signed notional at each close; no rows unless asked for.
    entries_rejected, entries_cut, entries_expired : int
        Planned entries the venue did not take (no price, margin, tier), those cut to a share of the bar's volume, and those
        that waited at their limit in vain.
    ended : tuple of str
        Symbols that stopped trading before the end.
    unmarked : tuple of str
        Symbols without a mark of their own: last prices stood in for it.
    """

    symbols: tuple[str, ...]
    frame_ns: int
    ts_open: IntArray
    initial_equity: float
    rules: Rules
    series: RecordArray
    fills: RecordArray
    trades: RecordArray
    funding: RecordArray
    liquidations: RecordArray
    ambiguous: RecordArray
    open_positions: RecordArray
    open_symbols: IntArray
    veto_counts: dict[VetoRule, int]
    vetoes: IntArray
    veto_values: FloatArray
    exposure: FloatArray
    entries_rejected: int
    entries_cut: int
    ended: tuple[str, ...]
    unmarked: tuple[str, ...]
    entries_expired: int = 0

    @property
    def equity(self) -> FloatArray:
        """Return the equity at each close, ``(n_bars,)``, USDT."""
        result: FloatArray = self.series["equity"]
        return result

    @property
    def ts_close(self) -> IntArray:
        """Return the close instants, at which the series' figures hold."""
        return self.ts_open + self.frame_ns

    @property
    def final_equity(self) -> float:
        """Return the equity at the end, open positions marked."""
        return float(self.series["equity"][-1])

    @property
    def n_ambiguous_bars(self) -> int:
        """Return how many (bar, position) pairs had an unknown order of events."""
        return int(self.ambiguous.size)

    @property
    def best_case_gain(self) -> float:
        """Return what the kindest order of events in all ambiguous bars would have added at most, USDT; booked is the worst."""
        return float(self.ambiguous["gain"].sum())

    def account_frame(self) -> pd.DataFrame:
        """Return :attr:`series` as a frame indexed by close time, UTC."""
        import pandas as pd  # noqa: PLC0415 - heavy, and only tables need it

        index = pd.DatetimeIndex(pd.to_datetime(self.ts_close, utc=True), name="ts_close")
        return pd.DataFrame({name: self.series[name] for name in self.series.dtype.names or ()}, index=index)

    def fills_frame(self) -> pd.DataFrame:
        """Return the fills with time, symbol and reason (``entry`` or the exit kind)."""
        return self._frame(self.fills, {"kind": "reason"})

    def trades_frame(self) -> pd.DataFrame:
        """Return the closed trades with times, symbol, side, exit kind and net result ``net_pnl``, in order of exit."""
        frame = self._frame(self.trades, {"exit_kind": "exit_kind"}, bars=("entry_bar", "exit_bar"))
        frame["side"] = np.where(self.trades["lots"] > 0, "long", "short")
        t = self.trades
        frame["net_pnl"] = t["pnl"] - t["fee"] + t["funding"] - t["penalty"] + t["overshoot"]
        return frame

    def funding_frame(self) -> pd.DataFrame:
        """Return the settlements with time and symbol."""
        return self._frame(self.funding, {})

    def liquidations_frame(self) -> pd.DataFrame:
        """Return the liquidations with time and symbol."""
        return self._frame(self.liquidations, {})

    def ambiguous_frame(self) -> pd.DataFrame:
        """Return the ambiguous bars with time, symbol, booked and kindest outcome."""
        return self._frame(self.ambiguous, {"booked_kind": "booked", "kindest_kind": "kindest"})

    def vetoes_frame(self) -> pd.DataFrame:
        """Return the refusals kept one by one with time, rule, symbol, limit and actual value."""
        import pandas as pd  # noqa: PLC0415 - heavy, and only tables need it

        names = np.array([*self.symbols, ""], dtype=object)
        rules = np.array([rule.label for rule in VetoRule], dtype=object)
        return pd.DataFrame(
            {
                "ts": pd.to_datetime(self.vetoes[:, 0], utc=True),
                "rule": rules[self.vetoes[:, 1]],
                "symbol": names[self.vetoes[:, 2]],
                "limit": self.veto_values[:, 0],
                "actual": self.veto_values[:, 1],
            }
        )

    def _frame(self, rows: RecordArray, kinds: dict[str, str], bars: tuple[str, ...] = ("bar",)) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415 - heavy, and only tables need it

        data: dict[str, Any] = {}
        for name in bars:
            when = "ts" if name == "bar" else name.replace("_bar", "_ts")
            data[when] = pd.to_datetime(self.ts_open[rows[name]], utc=True)
        data["symbol"] = np.array(self.symbols, dtype=object)[rows["symbol"]]
        labels = _kind_labels()
        for column, name in kinds.items():
            data[name] = labels[rows[column]]
        skipped = {*bars, "symbol", *kinds}
        data.update({name: rows[name] for name in rows.dtype.names or () if name not in skipped})
        return pd.DataFrame(data)


def at_closes_of(result: BacktestResult, frame_ns: int) -> BacktestResult:
    """Return the run as seen at the closes of bars of ``frame_ns``, for figures and charts; ledgers count those bars.

    A run on finer bars is thinned: the account's row, and the exposure, of the last fine bar in each. A run on bars of that
    length is returned as it is. The first bar traded must open one of ``frame_ns``.

    Raises
    ------
    ValueError
        If the bars traded do not divide ``frame_ns``.
    """
    if result.frame_ns == frame_ns:
        return result
    if frame_ns % result.frame_ns:
        raise ValueError(f"bars of {result.frame_ns} ns do not divide bars of {frame_ns} ns")
    _, first = np.unique(result.ts_open // frame_ns, return_index=True)
    last = np.append(first[1:], result.ts_open.size) - 1
    bar_of = np.repeat(np.arange(first.size), np.diff(np.append(first, result.ts_open.size)))
    ledgers = {}
    for name, columns in _BAR_COLUMNS.items():
        ledgers[name] = getattr(result, name).copy()
        for column in columns:
            ledgers[name][column] = bar_of[ledgers[name][column]]
    return replace(
        result,
        frame_ns=frame_ns,
        ts_open=result.ts_open[first] // frame_ns * frame_ns,
        series=result.series[last],
        exposure=result.exposure[last] if result.exposure.shape[0] else result.exposure,
        **ledgers,
    )


_BAR_COLUMNS: Final = {
    "fills": ("bar",),
    "trades": ("entry_bar", "exit_bar"),
    "funding": ("bar",),
    "liquidations": ("bar",),
    "ambiguous": ("bar",),
    "open_positions": ("opened_bar", "touched_bar"),
}
"""Columns of the ledgers that are rows of ``ts_open``."""


def _kind_labels() -> npt.NDArray[Any]:
    """Return the reason of a fill by its code: ``entry`` for 0, else the exit kind's value."""
    labels = np.full(max(EXIT_KIND_BY_CODE) + 1, "", dtype=object)
    labels[OPENING] = "entry"
    for code, kind in EXIT_KIND_BY_CODE.items():
        labels[code] = ExitKind(kind).value
    return labels


class RunPath(NamedTuple):
    """What a run wrote stretch by stretch: open times, account rows, exposures, and the ledgers' parts."""

    ts_open: list[IntArray]
    series: list[RecordArray]
    exposure: list[FloatArray]
    ledgers: list[tuple[RecordArray, ...]]


def gather(run: PreparedRun, path: RunPath, desk: Desk, log: VetoLog, origin: int) -> BacktestResult:
    """Put the pieces of a finished run together; ``origin`` is the bar from which open positions count theirs."""
    ledgers = [joined([p[k] for p in path.ledgers]) for k in range(5)]
    totals = desk.totals[0]
    columns = desk.open_columns[: totals["n_open"]].copy()
    positions = desk.book[columns].astype(POSITION, copy=True)
    positions["opened_bar"] += origin
    positions["touched_bar"] += origin
    used = int(log.used[0])
    return BacktestResult(
        symbols=run.symbols,
        frame_ns=run.frame_ns,
        ts_open=path.ts_open[0] if len(path.ts_open) == 1 else np.concatenate(path.ts_open),
        initial_equity=run.initial_equity,
        rules=run.rules,
        series=joined(path.series),
        fills=ledgers[0],
        trades=ledgers[1],
        funding=ledgers[2],
        liquidations=ledgers[3],
        ambiguous=ledgers[4],
        open_positions=positions,
        open_symbols=columns,
        veto_counts={rule: int(log.counts[rule]) for rule in VetoRule},
        vetoes=log.where[:used],
        veto_values=log.values[:used],
        exposure=path.exposure[0] if len(path.exposure) == 1 else np.concatenate(path.exposure),
        entries_rejected=int(totals["n_rejected"]),
        entries_cut=int(totals["n_cut"]),
        entries_expired=int(totals["n_expired"]),
        ended=run.ended,
        unmarked=tuple(s for s, known in zip(run.symbols, run.has_mark, strict=True) if not known),
    )
