"""What live saw, did and paid, out of its ledger and journal, as arrays on the bars of the backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from crypto_qlib.analytics.gap import accumulated
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BoolArray, FloatArray, IntArray, MarketPanel
from crypto_qlib.core.order import Fill
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.journal import JournalRow
from crypto_qlib.live_trading.risk_control import STALE_DATA, Mode
from crypto_qlib.store.ledger import EquityRow, FundingRow, IntentRow, Ledger
from crypto_qlib.store.our_size import size_after

_SAME: Final = 1e-9


@dataclass(slots=True)
class LiveBar:
    """What the session knew and was allowed to do at one close.

    Parameters
    ----------
    scores : dict
        (expected return, win probability, uncertainty) by symbol, as live had them.
    close : dict
        Last close by symbol, as live had it; NaN where it had none.
    missing : tuple of str
        Symbols without a fresh bar.
    may_open : bool
        Whether the mode allowed entries.
    is_stale : bool
        Whether it did not because data were missing.
    """

    scores: dict[str, tuple[float, float, float]]
    close: dict[str, float]
    missing: tuple[str, ...]
    may_open: bool = True
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class LiveSide:
    """One session as its ledger has it.

    Parameters
    ----------
    equity : list of EquityRow
        The account at each close.
    bars : dict
        What it knew, by close; a close that is not in here was not decided.
    fills, intents, funding : list
        Executions, orders, settlements.
    arrivals : dict
        Middle of the book read just before an order was sent, by client order id; orders without such a look are not in here.
    """

    equity: list[EquityRow]
    bars: dict[int, LiveBar]
    fills: list[Fill]
    intents: dict[str, IntentRow]
    funding: list[FundingRow] = field(default_factory=list)
    arrivals: dict[str, float] = field(default_factory=dict)


def live_side(ledger: Ledger, rows: Sequence[JournalRow]) -> LiveSide:
    """Return the session of a ledger.

    Raises
    ------
    UserError
        If it has not lived through two bars.
    """
    equity = ledger.equity()
    if len(equity) < 2:  # noqa: PLR2004 - a difference needs two
        raise UserError(f"session {ledger.session_id} has not lived through a bar yet", "ask again after the next close")
    bars: dict[int, LiveBar] = {}
    stale: set[str] = set()
    middle: dict[str, float] = {}
    arrivals: dict[str, float] = {}
    for row in rows:
        step = row.step()
        match step:
            case ev.BarClosed():
                bars[step.ts_ns] = _bar(step)
                middle = {}
            case ev.BookRead() if step.quote is not None:
                middle[step.symbol] = step.quote.mid
            case ev.PlaceOrder() if step.intent.symbol in middle and step.intent.limit_price is None:
                arrivals[step.intent.client_order_id] = middle[step.intent.symbol]
            case ev.SaveRisk():
                stale = {voice for voice, (mode, _) in step.voices.items() if mode is not Mode.ACTIVE}
            case ev.CycleDone() if step.ts_ns in bars and step.mode is not Mode.ACTIVE:
                bars[step.ts_ns].may_open = False
                bars[step.ts_ns].is_stale = stale == {STALE_DATA}
            case _:
                pass
    intents = {intent.client_order_id: intent for intent in ledger.intents()}
    return LiveSide(equity, bars, ledger.fills(), intents, ledger.funding(), arrivals)


def _bar(step: ev.BarClosed) -> LiveBar:
    s = step.scores
    columns = zip(s.expected_return.tolist(), s.win_probability.tolist(), s.uncertainty.tolist(), strict=True)
    close = dict(zip(s.symbols, step.market.close.tolist(), strict=True))
    return LiveBar(dict(zip(s.symbols, columns, strict=True)), close, step.freshness.missing)


def deviations(live: LiveSide, panel: MarketPanel, closes: IntArray) -> BoolArray:
    """Return where live's bar was late, missing or another one than the panel's, ``(n_closes, n_symbols)``.

    A close at which too many bars were missing, or that was not decided at all, deviates in every symbol.
    """
    found = np.zeros((closes.size, len(panel.symbols)), np.bool_)
    row_of = {int(ts) + panel.frame_ns: k for k, ts in enumerate(panel.ts_open)}
    for i, ts_ns in enumerate(closes.tolist()):
        bar = live.bars.get(ts_ns)
        if bar is None or bar.is_stale:
            found[i] = True
            continue
        row = row_of.get(ts_ns)
        for j, symbol in enumerate(panel.symbols):
            seen, known = bar.close.get(symbol, np.nan), float(panel.close[row, j]) if row is not None else np.nan
            differs = np.isfinite(known) and not abs(seen - known) <= _SAME * abs(known)
            found[i, j] = symbol in bar.missing or differs
    return found


def scores_of(live: LiveSide, symbols: Sequence[str], closes: IntArray, *, as_allowed: bool) -> tuple[FloatArray, ...]:
    """Return live's (expected return, win probability, uncertainty), ``(n_closes, n_symbols)`` each; NaN where it had none.

    With ``as_allowed`` also where the mode forbade entries.
    """
    out = np.full((3, closes.size, len(symbols)), np.nan)
    for i, ts_ns in enumerate(closes.tolist()):
        bar = live.bars.get(ts_ns)
        if bar is None or (not bar.may_open and (as_allowed or bar.is_stale)):
            continue
        for j, symbol in enumerate(symbols):
            out[:, i, j] = bar.scores.get(symbol, (np.nan,) * 3)
    return tuple(out)


def mixed(base: ScorePanel, other: tuple[FloatArray, ...], where: BoolArray) -> ScorePanel:
    """Return ``base`` with ``other`` in its place ``where`` that is true."""
    columns = (base.expected_return, base.win_probability, base.uncertainty)
    return ScorePanel(base.as_of_ns, base.symbols, *(np.where(where, b, a) for a, b in zip(columns, other, strict=True)))


def fee_path(live: LiveSide, closes: IntArray, instruments: Mapping[str, Instrument], maker: float, taker: float) -> FloatArray:
    """Return what other fee rates than the settings' have added to live's equity by each close, USDT."""
    at, amount = [], []
    for fill in live.fills:
        notional = abs(fill.signed_lots) * instruments[fill.symbol].base_per_lot * fill.price
        at.append(fill.ts_ns)
        amount.append((maker if fill.is_maker else taker) * notional - fill.fee)
    return accumulated(closes, np.array(at, np.int64), np.array(amount))


def funding_path(live: LiveSide, closes: IntArray, panel: MarketPanel, instruments: Mapping[str, Instrument]) -> FloatArray:
    """Return what booked funding differs from the panel's rates and marks on live's positions, by each close, USDT."""
    at, amount = [], []
    booked: dict[tuple[int, str], float] = {}
    for row in live.funding:
        key = (row.ts_ns - row.ts_ns % panel.frame_ns, row.symbol)
        booked[key] = booked.get(key, 0.0) + row.amount
    expected = _expected_funding(live, panel, instruments, int(closes[-1]))
    for ts_ns, symbol in sorted(booked.keys() | expected.keys()):
        at.append(ts_ns)
        amount.append(booked.get((ts_ns, symbol), 0.0) - expected.get((ts_ns, symbol), 0.0))
    return accumulated(closes, np.array(at, np.int64), np.array(amount))


def _expected_funding(
    live: LiveSide, panel: MarketPanel, instruments: Mapping[str, Instrument], end_ns: int
) -> dict[tuple[int, str], float]:
    """Return what live's positions should have been booked; one opened at the very instant pays but does not receive."""
    out: dict[tuple[int, str], float] = {}
    start_ns = live.equity[0].ts_ns
    for j, symbol in enumerate(panel.symbols):
        fills = [f for f in live.fills if f.symbol == symbol]
        for t in np.flatnonzero(np.isfinite(panel.funding_rate[:, j])).tolist() if fills else []:
            ts_ns, mark = int(panel.ts_open[t]), float(panel.mark_open[t, j])
            if not start_ns <= ts_ns < end_ns or not np.isfinite(mark):
                continue
            before = _held(live, [fill for fill in fills if fill.ts_ns < ts_ns])
            after = _held(live, [fill for fill in fills if fill.ts_ns <= ts_ns])
            per_lot = -instruments[symbol].base_per_lot * mark * float(panel.funding_rate[t, j])
            amount = before * per_lot
            is_new = after != before and (before == 0 or (after > 0) != (before > 0))
            amount = min(after * per_lot, 0.0) + min(amount, 0.0) * (before != 0) if is_new else amount
            if amount:
                out[ts_ns, symbol] = amount
    return out


def _held(live: LiveSide, fills: Sequence[Fill]) -> int:
    lots = 0
    for fill in fills:
        lots = size_after(lots, fill.signed_lots, is_ours=fill.client_order_id in live.intents)
    return lots


def latency_path(live: LiveSide, closes: IntArray, panel: MarketPanel, instruments: Mapping[str, Instrument]) -> FloatArray:
    """Return what being late has added by each close, USDT: the price the order met on arrival less the one it was due at.

    Due is the open of the bar after the decision, at which the backtest trades. The price on arrival is the middle of the book
    read just before the order was sent; of an order without such a look, the open of the bar it was executed in. By what the
    execution differs from the price on arrival is no latency: spread and impact, ``fill``.
    """
    at, amount = [], []
    row_of = {int(ts): k for k, ts in enumerate(panel.ts_open)}
    for fill in live.fills:
        intent = live.intents.get(fill.client_order_id)
        due = None if intent is None else row_of.get(intent.decided_ns)
        if due is None or fill.symbol not in panel.symbols:
            continue
        j = panel.symbols.index(fill.symbol)
        done = row_of.get(fill.ts_ns - fill.ts_ns % panel.frame_ns)
        opened = float(panel.open[done, j]) if done is not None else np.nan
        moved = live.arrivals.get(fill.client_order_id, opened) - float(panel.open[due, j])
        if np.isfinite(moved):
            at.append(fill.ts_ns)
            amount.append(-fill.signed_lots * instruments[fill.symbol].base_per_lot * moved)
    return accumulated(closes, np.array(at, np.int64), np.array(amount))
