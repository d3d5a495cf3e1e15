"""A golden tape of the venue as a backtest: the scores and rules that make ``decide()`` send the tape's own orders.

The tape's bars follow ``WARM_UP`` bars at 100 with an average true range of 1 %, so stops and targets are set in ATRs. A tape
that needs more than entries at bar 0 with stop, target or trailing stop, and exits after some bars, cannot be expressed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, TriggerSource
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.portfolio.rules import FIXED_FRACTION, Rules
from tests.venue.venue_tape import FEES, B, Send, Tape, listed

WARM_UP = 20
CALM = B(100, 100.5, 99.5, 100)
ATR = 0.01
FAR = 0.9999
"""Distance of a stop that is as good as none."""

OPEN = Rules(
    min_net_return=-1.0, min_win_probability=0.0, min_daily_turnover=0.0, min_listing_days=0.0, max_open=5, cooldown_bars=0,
    holding_bars=1_000, min_stop_distance=1e-4, max_stop_distance=FAR, min_take_distance=1e-4, risk_per_trade=1e3,
    max_position_fraction=1e3, max_gross=1e3, max_net=1e3, max_drawdown=1.0, liquidation_buffer=-1.0, sizing=FIXED_FRACTION,
    replace_margin=math.inf, taker_fee=FEES.taker, impact_y=0.0, half_spread_bps=0.0, leverage=10.0, expect_funding=False,
)  # fmt: skip
"""Rules that refuse nothing."""


def panel_of(bars: list[Mapping[str, B]]) -> MarketPanel:
    """Return the warm-up and ``bars`` as a panel; bar 0 opens at instant 0, a symbol without a row has no bar."""
    symbols = tuple(sorted({s for row in bars for s in row}))
    none = B(math.nan, math.nan, math.nan, math.nan)
    rows = [dict.fromkeys(symbols, CALM)] * WARM_UP + [{s: row.get(s, none) for s in symbols} for row in bars]
    ts = (np.arange(len(rows), dtype=np.int64) - WARM_UP) * NS_PER_HOUR

    def column(name: str) -> np.ndarray:
        return np.array([[getattr(row[s], name) for s in symbols] for row in rows], float)

    last = {k: column(k) for k in ("open", "high", "low", "close")}
    marks = np.array([[row[s].mark or (row[s].open, row[s].high, row[s].low, row[s].close) for s in symbols] for row in rows])
    mark = {f"mark_{k}": marks[:, :, i].astype(float) for i, k in enumerate(last)}
    volume = column("volume")
    return MarketPanel(
        symbols, NS_PER_HOUR, ts, *last.values(), volume, volume * last["open"], *mark.values(), column("funding"),
        np.ones(len(symbols), bool),
    )  # fmt: skip


def inputs_of(tape: Tape) -> BacktestInputs | None:
    """Return the backtest that plays ``tape``, or ``None`` where decisions cannot express it."""
    bars = [{"AUSDT": row} if isinstance(row, B) else dict(row) for row in tape.bars]
    actions = [(k, a) for k, sent in tape.actions.items() for a in sent]
    if tape.after or not all(isinstance(a, Send) for _, a in actions) or math.isfinite(tape.config.adl_stress_move):
        return None
    requests = [(k, a.request) for k, a in actions if isinstance(a, Send)]
    entries = [r for k, r in requests if k == 0]
    exits = [k for k, r in requests if k > 0 and r.reduce_only]
    one = entries[0] if entries else None
    # A cross book leaves room for every stop, so decisions never send a cross order without one.
    if one is None or len(exits) != len(requests) - len(entries) or len(exits) > 1 or not all(_alike(one, r) for r in entries):
        return None
    if tape.config.impact_y or (one.margin_mode is MarginMode.CROSS and (one.protection is None or len(entries) > 1)):
        return None
    rules = rules_of(tape, one, exits[0] if exits else 1_000)
    panel = panel_of(bars)
    expected = np.full((1, len(panel.symbols)), np.nan)
    for request in entries:
        expected[0, panel.symbols.index(request.symbol)] = 0.5 * request.side.sign
    scores = ScorePanel(np.zeros(1, np.int64), panel.symbols, expected, np.full_like(expected, 0.6), expected * np.nan)
    listing = {v.instrument.symbol: v for v in tape.instruments}
    return BacktestInputs(
        panel, scores, {s: listing[s].instrument for s in panel.symbols}, {s: listing[s].tiers for s in panel.symbols}, rules,
        tape.start, Execution(tape.config.max_bar_volume_share, tape.config.partial_liquidation), start_ns=0,
        require_funding=False,
    )  # fmt: skip


def rules_of(tape: Tape, order: OrderRequest, holding_bars: int) -> Rules:
    """Return the rules under which ``decide()`` sends ``order`` at bar 0 and closes it ``holding_bars`` later."""
    guard = order.protection
    side, leverage = order.side.sign, tape.config.default_leverage
    price = 100.0 * (1.0 + side * tape.config.half_spread_bps * 1e-4)
    stop = FAR if guard is None or guard.stop_price is None else side * (price - guard.stop_price) / price
    target = 10.0 if guard is None or guard.take_profit_price is None else side * (guard.take_profit_price - price) / price
    trail = 0.0 if guard is None or guard.trailing_ratio is None else guard.trailing_ratio
    return OPEN._replace(
        leverage=leverage, position_fraction=(order.lots + 0.5) * price / tape.start / leverage, holding_bars=holding_bars,
        stop_atr=stop / ATR, take_profit_atr=target / ATR, trailing_atr=trail / ATR,
        stop_on_mark=guard is not None and guard.trigger is TriggerSource.MARK,
        half_spread_bps=tape.config.half_spread_bps, cross=order.margin_mode is MarginMode.CROSS,
    )  # fmt: skip


def _alike(a: OrderRequest, b: OrderRequest) -> bool:
    """Return whether one set of rules can send both: market entries of one size, mode and protection, from levels near 100."""
    guard = b.protection
    passed = guard is not None and guard.stop_price is not None and b.side.sign * (100.0 - guard.stop_price) <= 0.0
    same = (a.lots, a.margin_mode, a.protection) == (b.lots, b.margin_mode, b.protection)
    return same and b.kind is OrderKind.MARKET and not b.reduce_only and not passed


def play(
    bars: Sequence[B | Mapping[str, B]], scores: Mapping[int, Mapping[str, float]], start: float, **rules: Any
) -> BacktestInputs:
    """Return the backtest of ``bars`` with expected returns by bar and symbol, known at that bar's open: ten lots an entry."""
    panel = panel_of([{"AUSDT": row} if isinstance(row, B) else dict(row) for row in bars])
    known = sorted(scores)
    expected = np.array([[scores[k].get(s, math.nan) for s in panel.symbols] for k in known])
    table = ScorePanel(np.array(known, np.int64) * NS_PER_HOUR, panel.symbols, expected, expected * 0 + 0.6, expected * np.nan)
    ten_lots = {"position_fraction": 1_050.0 / start / OPEN.leverage, "stop_atr": FAR / ATR, "take_profit_atr": 1e3}
    listing = {s: listed(s) for s in panel.symbols}
    return BacktestInputs(
        panel, table, {s: v.instrument for s, v in listing.items()}, {s: v.tiers for s, v in listing.items()},
        OPEN._replace(**{**ten_lots, **rules}), start, start_ns=0, require_funding=False,
    )  # fmt: skip
