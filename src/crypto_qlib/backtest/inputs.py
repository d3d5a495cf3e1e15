"""What a backtest is run on, and the checks that refuse inputs that cannot be right before the first bar is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Bars, Execution
from crypto_qlib.backtest.funding_holes import refuse_funding_holes
from crypto_qlib.backtest.ledger_arrays import FEE_CHANGE
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.portfolio.market_panel import MarketStatePanel, StateArrays, frozen, market_states
from crypto_qlib.portfolio.rules import Rules

_PARTLY_MISSING: Final = 1
_NOT_POSITIVE: Final = 2
_HIGH_BELOW_LOW: Final = 3
_OUTSIDE_RANGE: Final = 4
_FAULTS: Final = {
    _PARTLY_MISSING: "some prices are missing (NaN) while others are there",
    _NOT_POSITIVE: "a price is zero, negative or infinite",
    _HIGH_BELOW_LOW: "high is below low",
    _OUTSIDE_RANGE: "open or close lies outside low..high",
}


@dataclass(frozen=True, slots=True)
class BacktestInputs:
    """Everything one run depends on.

    Parameters
    ----------
    panel : MarketPanel
        Bars to trade on, with mark prices and funding; a bar whose prices are all NaN is missing: positions are held, nothing
        fills. A symbol without bars up to the end counts as delisted after its last bar.
    scores : ScorePanel
        Scores by the instant they are known; decisions take place at bar opens that have a score and are a multiple of
        ``rules.decide_every_bars`` frames since the epoch.
    instruments, tiers : mapping
        Contract specification and position tiers of every symbol of the panel.
    rules : Rules
        What a decision obeys, and the costs.
    initial_equity : float
        USDT.
    execution : Execution
        How orders execute.
    blacklist : tuple of str
        Symbols never entered.
    state_panel : MarketPanel | None
        Bars of ``rules.frame_ns`` behind the decisions where ``panel`` is finer; ``None`` = ``panel``.
    start_ns, end_ns : int | None
        Trade bars with ``start_ns <= ts_open < end_ns``; ``None`` = from the first usable score to the last bar. Earlier bars
        serve volatility and turnover.
    with_exposure : bool
        Keep the signed notional of every symbol at every bar, ``(n_bars, n_symbols)``.
    veto_log_rows : int
        Refusals kept one by one; all are counted.
    require_funding : bool
        Refuse a symbol that trades for more than two days on end without a settlement.
    fees : FeeHistory | None
        Rates the account pays over time; ``None`` = those of ``rules`` all the time.
    """

    panel: MarketPanel
    scores: ScorePanel
    instruments: Mapping[str, Instrument]
    tiers: Mapping[str, TierHistory]
    rules: Rules
    initial_equity: float = 100_000.0
    execution: Execution = field(default_factory=Execution)
    blacklist: tuple[str, ...] = ()
    state_panel: MarketPanel | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    with_exposure: bool = False
    veto_log_rows: int = 20_000
    require_funding: bool = True
    fees: FeeHistory | None = None


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Checked inputs as arrays for the compiled loop; see :class:`BacktestInputs` for the meaning."""

    symbols: tuple[str, ...]
    rules: Rules
    execution: Execution
    initial_equity: float
    frame_ns: int
    bars: Bars
    first_bar: int
    states: MarketStatePanel
    state: StateArrays
    state_as_of: IntArray
    day_start: IntArray
    version_start: IntArray
    fee_changes: npt.NDArray[Any]
    delisted_ns: IntArray
    ended: tuple[str, ...]
    score_as_of: IntArray
    expected_return: FloatArray
    win_probability: FloatArray
    has_mark: npt.NDArray[np.bool_]
    with_exposure: bool
    veto_log_rows: int


def prepare(inputs: BacktestInputs) -> PreparedRun:
    """Check ``inputs`` and turn them into arrays.

    Raises
    ------
    UserError
        Naming symbol and time of the first fault.
    """
    panel, rules = inputs.panel, inputs.rules
    _check_account(inputs)
    check_panel(panel)
    state_panel = panel if inputs.state_panel is None else inputs.state_panel
    _check_frames(panel, state_panel, rules)
    states = market_states(state_panel, inputs.instruments, inputs.tiers, rules, inputs.blacklist)
    _check_leverage(inputs)
    stop = panel.n_bars if inputs.end_ns is None else int(np.searchsorted(panel.ts_open, inputs.end_ns))
    score_as_of, expected, win = _scores(inputs.scores, panel, int(states.as_of_ns[0]))
    first = int(np.searchsorted(panel.ts_open, score_as_of[0] if inputs.start_ns is None else inputs.start_ns))
    if first >= stop:
        raise UserError("no bar lies in the time to be traded", "check the start and end of the backtest against the data")
    if inputs.require_funding:
        refuse_funding_holes(panel, first, stop)
    delisted, ended = _ends(panel, inputs.instruments)
    rules, fee_changes = _fees(inputs, int(panel.ts_open[first]))
    return PreparedRun(
        symbols=panel.symbols,
        rules=rules,
        execution=inputs.execution,
        initial_equity=inputs.initial_equity,
        frame_ns=panel.frame_ns,
        bars=bars_of(panel, stop),
        first_bar=first,
        states=states,
        state=states.arrays,
        state_as_of=states.as_of_ns,
        day_start=states.day_start_ns,
        version_start=states.contracts.valid_from_ns,
        fee_changes=fee_changes,
        delisted_ns=delisted,
        ended=ended,
        score_as_of=score_as_of,
        expected_return=frozen(expected),
        win_probability=_one_row(win),
        has_mark=panel.has_mark,
        with_exposure=inputs.with_exposure,
        veto_log_rows=inputs.veto_log_rows,
    )


@njit
def first_fault(open_: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray) -> tuple[int, int, int]:
    """Return (row, column, fault) of the first bar that cannot be right, or (-1, -1, 0); an all-NaN bar is missing."""
    for t in range(open_.shape[0]):
        is_fine = True
        for j in range(open_.shape[1]):
            lowest = low[t, j]
            highest = high[t, j]
            inside = (lowest <= open_[t, j]) & (open_[t, j] <= highest) & (lowest <= close[t, j]) & (close[t, j] <= highest)
            is_fine &= inside & (lowest > 0.0) & (highest < np.inf)
        if is_fine:
            continue
        for j in range(open_.shape[1]):
            o, h, lo, c = open_[t, j], high[t, j], low[t, j], close[t, j]
            missing = int(math.isnan(o)) + int(math.isnan(h)) + int(math.isnan(lo)) + int(math.isnan(c))
            if missing == 4:  # noqa: PLR2004 - open, high, low and close: the bar is absent
                continue
            if missing > 0:
                return t, j, _PARTLY_MISSING
            if not (min(o, lo, c) > 0.0 and max(o, h, c) < np.inf):
                return t, j, _NOT_POSITIVE
            if h < lo:
                return t, j, _HIGH_BELOW_LOW
            if o < lo or o > h or c < lo or c > h:
                return t, j, _OUTSIDE_RANGE
    return -1, -1, 0


def _check_account(inputs: BacktestInputs) -> None:
    rules = inputs.rules
    if not (math.isfinite(inputs.initial_equity) and inputs.initial_equity > 0.0):
        raise UserError(f"initial equity must be positive, got {inputs.initial_equity}", "set backtest.initial_equity")
    if rules.max_open < 1:
        raise UserError(f"max_open must be at least 1, got {rules.max_open}", "set strategy.max_open")
    if rules.leverage < 1.0:
        raise UserError(f"leverage must be at least 1, got {rules.leverage}", "set strategy.leverage")


def check_panel(panel: MarketPanel) -> None:
    """Refuse prices that cannot be right.

    Raises
    ------
    UserError
        Naming symbol and time of the first one.
    """
    if panel.n_bars == 0 or not panel.symbols:
        raise UserError("the market panel has no bars or no symbols", "collect data first")
    doubled = {s for s in panel.symbols if panel.symbols.count(s) > 1}
    if doubled:
        raise UserError(f"{min(doubled)} appears twice in the market panel", "give every symbol one column")
    streams = [("last", panel.open, panel.high, panel.low, panel.close)]
    if panel.mark_close is not panel.close:
        streams.append(("mark", panel.mark_open, panel.mark_high, panel.mark_low, panel.mark_close))
    for stream, *prices in streams:
        row, column, fault = first_fault(*(frozen(p) for p in prices))
        if fault:
            raise UserError(
                f"{panel.symbols[column]} at {iso(int(panel.ts_open[row]))}: {stream} {_FAULTS[fault]}", "clean the data"
            )


def _fees(inputs: BacktestInputs, start_ns: int) -> tuple[Rules, npt.NDArray[Any]]:
    """Return the rules with the rates in force at ``start_ns``, and the later changes, ``(n_changes,)`` FEE_CHANGE."""
    if inputs.fees is None:
        return inputs.rules, np.zeros(0, FEE_CHANGE)
    first = inputs.fees.at(start_ns)
    later = [(s.valid_from_ns, s.maker, s.taker) for s in inputs.fees.after(start_ns)]
    return inputs.rules._replace(maker_fee=first.maker, taker_fee=first.taker), np.array(later, FEE_CHANGE)


def _check_frames(panel: MarketPanel, state_panel: MarketPanel, rules: Rules) -> None:
    if rules.frame_ns % panel.frame_ns:
        raise UserError(
            "the bars traded do not divide the bars of the scores", "trade on bars as long as data.frame or shorter"
        )
    if state_panel.frame_ns % panel.frame_ns or state_panel.symbols != panel.symbols:
        raise UserError("the bars behind decisions and the bars traded do not fit", "build both from the same symbols")


def _check_leverage(inputs: BacktestInputs) -> None:
    cap, symbol = max((inputs.instruments[s].max_leverage, s) for s in inputs.panel.symbols)
    if inputs.rules.leverage > cap:
        raise UserError(
            f"leverage {inputs.rules.leverage:g} is above the cap of every instrument (the highest: {cap:g} of {symbol})",
            "lower strategy.leverage",
        )


def _scores(scores: ScorePanel, panel: MarketPanel, first_known_ns: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return (instants, expected return, win probability) in the panel's columns, once there is a market state."""
    column_of = {s: j for j, s in enumerate(panel.symbols)}
    for k, symbol in enumerate(scores.symbols):
        if symbol not in column_of and not np.isnan(scores.expected_return[:, k]).all():
            at = int(scores.as_of_ns[int(np.argmax(~np.isnan(scores.expected_return[:, k])))])
            raise UserError(f"{symbol}: scores from {iso(at)} on, but no bars", "score the symbols of the panel only")
    first = int(np.searchsorted(scores.as_of_ns, first_known_ns))
    usable = scores.as_of_ns[first:]
    if usable.size == 0 or usable[0] > panel.ts_open[-1]:
        raise UserError("no score lies in the time of the market panel", "check that scores and bars cover the same time")
    if scores.symbols == panel.symbols:
        return usable, scores.expected_return[first:], scores.win_probability[first:]
    expected = np.full((usable.size, len(panel.symbols)), np.nan)
    win = expected.copy()
    known = [k for k, s in enumerate(scores.symbols) if s in column_of]
    columns = [column_of[scores.symbols[k]] for k in known]
    expected[:, columns] = scores.expected_return[first:, known]
    win[:, columns] = scores.win_probability[first:, known]
    return usable, expected, win


def _ends(panel: MarketPanel, instruments: Mapping[str, Instrument]) -> tuple[IntArray, tuple[str, ...]]:
    """Return (instant each symbol stops trading, symbols that stop before the panel's end)."""
    result = np.full(len(panel.symbols), NEVER_NS, np.int64)
    ended: list[str] = []
    end_ns = int(panel.ts_open[-1]) + panel.frame_ns
    for j, symbol in enumerate(panel.symbols):
        delisted = instruments[symbol].delisted_ns
        if delisted is not None:
            result[j] = delisted
        if np.isnan(panel.close[-1, j]):
            there = np.flatnonzero(~np.isnan(panel.close[:, j]))
            if there.size:
                result[j] = min(result[j], int(panel.ts_open[there[-1]]) + panel.frame_ns)
        if result[j] < end_ns:
            ended.append(symbol)
    return result, tuple(ended)


def bars_of(panel: MarketPanel, stop: int) -> Bars:
    """Return the first ``stop`` bars of a checked panel as compiled code reads them.

    Where a mark is missing the last price stands in; where the bar itself is missing there is no mark either.
    """
    marks = (panel.mark_open, panel.mark_high, panel.mark_low, panel.mark_close)
    last = (panel.open, panel.high, panel.low, panel.close)
    has_own_mark = panel.mark_close is not panel.close
    if has_own_mark and _has_nan(panel.mark_close, panel.close):
        unknown = np.isnan(panel.mark_close) | np.isnan(panel.close)
        marks = tuple(np.where(unknown, a, b) for a, b in zip(last, marks, strict=True))  # type: ignore[assignment]
    volumes = (_one_row(a[:stop]) for a in (panel.volume, panel.quote_volume))
    funding = frozen(panel.funding_rate[:stop])
    columns = [*(frozen(a[:stop]) for a in last), *volumes, *(frozen(a[:stop]) for a in marks), funding]
    return Bars._make([panel.ts_open[:stop], *columns, settling_bars(funding), has_own_mark])


def _has_nan(*tables: FloatArray) -> bool:
    return any(bool(np.isnan(np.dot(table.ravel(), np.zeros(table.size)))) for table in tables)


def _one_row(values: FloatArray) -> FloatArray:
    """Return ``values``, or its only row where all rows are one (``np.broadcast_to``): what is not known at all."""
    return frozen(values[:1] if values.shape[0] > 1 and values.strides[0] == 0 else values)


@njit
def settling_bars(funding_rate: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which bars have a settlement of any symbol, ``(n_bars,)``."""
    settles = np.zeros(funding_rate.shape[0], np.bool_)
    for t in range(funding_rate.shape[0]):
        for j in range(funding_rate.shape[1]):
            if not math.isnan(funding_rate[t, j]):
                settles[t] = True
                break
    return settles
