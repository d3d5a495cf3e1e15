"""How good was a paper or live session? Its ledger through the functions that give a backtest its figures.

The ledger holds what was decided, every fill and the account at each close. Two things it does not hold are worked out from
the market's bars: settlements (rate and mark at each, times what was held), and the price each order was decided at, the last
close, against which slippage is measured. What the books then leave open (deposits, settlements nobody knows of) is
``unexplained``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from crypto_qlib.analytics.account_book import FillBook, Flows, book_positions, number_positions
from crypto_qlib.analytics.account_figures import AccountHistory, account_figures
from crypto_qlib.analytics.trading import AccountSeries
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.core.order import Fill
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.portfolio.btc_factor import btc_factor
from crypto_qlib.portfolio.market_panel import BTC
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.store.ledger import EquityRow, IntentRow, Ledger

SESSION_FIGURES: Final = "paper_performance.json"


def session_figures(ledger: Ledger, panel: MarketPanel, instruments: Mapping[str, Instrument], rules: Rules) -> dict[str, Any]:
    """Return every figure of a session, as :func:`~crypto_qlib.analytics.account_figures.account_figures` gives them.

    Parameters
    ----------
    ledger : Ledger
        The session's.
    panel : MarketPanel
        Bars of the session: for benchmarks, settlements, decision prices and the marks of what is still held.
    instruments : mapping
        Contract specification of every symbol that was traded.
    rules : Rules
        What the session obeyed.

    Raises
    ------
    UserError
        If the ledger has no account snapshot, or a symbol that was traded is not in ``panel`` or ``instruments``.
    """
    rows = ledger.equity()
    if not rows:
        raise UserError(f"session {ledger.session_id} has no snapshot of its account yet", "let it live through a bar")
    end_ns = rows[-1].ts_ns
    done = [fill for fill in ledger.fills() if fill.ts_ns < end_ns]
    unknown = sorted({fill.symbol for fill in done} - (set(panel.symbols) & set(instruments)))
    if unknown:
        raise UserError(f"no bars or contract of {', '.join(unknown)}, which the session traded", "collect their data")
    intents = ledger.intents()
    fills = ledger_fills(done, intents, panel, instruments, rules)
    funding = settlements(fills, panel, end_ns)
    positions = book_positions(fills, funding, Flows.none(), _last_known(panel, end_ns), end_ns, btc_factor(panel))
    history = account_history(rows, panel, rules)
    return {
        "session": ledger.session_id,
        **account_figures(history, fills, positions, funding.amount, _benchmarks(history, panel)),
    }


def write_session_figures(figures: dict[str, Any], folder: Path, identity: dict[str, Any]) -> Path:
    """Write ``paper_performance.json`` into ``folder`` (null where there is no figure) and return its path."""
    path = folder / SESSION_FIGURES
    pending = path.with_suffix(".part")
    stamped = {"run": json.loads(json.dumps(identity, default=str)), **figures}
    pending.write_bytes(orjson.dumps(stamped, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    return pending.replace(path)


def account_history(rows: Sequence[EquityRow], panel: MarketPanel, rules: Rules) -> AccountHistory:
    """Return the account's snapshots as a history; the margin in use is equity that is not available (with unrealised PnL)."""
    table = np.array([(r.equity, r.gross, r.net, r.equity - r.available, r.open_count) for r in rows], dtype=np.float64)
    series = AccountSeries(*(np.ascontiguousarray(column) for column in table[1:].T))
    ts = np.array([r.ts_ns for r in rows], dtype=np.int64)
    return AccountHistory(ts, table[:, 0].copy(), series, rules.frame_ns, panel.symbols, float(rules.holding_bars))


def ledger_fills(
    done: Sequence[Fill],
    intents: Sequence[IntentRow],
    panel: MarketPanel,
    instruments: Mapping[str, Instrument],
    rules: Rules,
) -> FillBook:
    """Return the ledger's executions with the reason of each and the price it was decided at.

    The raw price of an order is the last close known when it was decided; of a fill that no order of ours explains (a stop at
    the exchange, a liquidation) it is the fill price, so no slippage is claimed for it.
    """
    tracker = PositionTracker.rebuild(rules.frame_ns, rules.cooldown_ns, intents, ())
    kinds = [tracker.note_fill(fill) for fill in done]
    decided = {i.client_order_id: i.decided_ns for i in intents}
    symbol = np.array([panel.symbols.index(f.symbol) for f in done], dtype=np.int64)
    lots = np.array([f.signed_lots for f in done], dtype=np.int64)
    raw = [_close_at(panel, decided.get(f.client_order_id), j, f.price) for f, j in zip(done, symbol.tolist(), strict=True)]
    return FillBook(
        ts_ns=np.array([f.ts_ns for f in done], dtype=np.int64),
        symbol=symbol,
        position=number_positions(symbol, lots),
        lots=lots,
        lot_size=np.array([instruments[f.symbol].base_per_lot for f in done], dtype=np.float64),
        price=np.array([f.price for f in done], dtype=np.float64),
        raw_price=np.array(raw, dtype=np.float64),
        fee=np.array([f.fee for f in done], dtype=np.float64),
        exit_kind=np.array([kind.value if kind else "" for kind in kinds], dtype="U24"),
    )


def settlements(fills: FillBook, panel: MarketPanel, end_ns: int) -> Flows:
    """Return what each settlement paid to the positions held at its instant, ``-lots * lot size * mark * rate``.

    A position opened at the very instant pays but does not receive, as at the embedded exchange. Settlements from ``end_ns``
    on are not looked at.
    """
    positions: list[int] = []
    amounts: list[float] = []
    for j in np.unique(fills.symbol).tolist():
        mine = np.flatnonzero(fills.symbol == j)
        held = np.cumsum(fills.lots[mine])
        ts = fills.ts_ns[mine]
        for t in np.flatnonzero(np.isfinite(panel.funding_rate[:, j])).tolist():
            instant, mark = int(panel.ts_open[t]), float(panel.mark_open[t, j])
            if instant >= end_ns or not math.isfinite(mark):
                continue
            before = int(np.searchsorted(ts, instant)) - 1
            at = int(np.searchsorted(ts, instant, side="right")) - 1
            carried = before >= 0 and held[before] != 0
            is_new = at > before and not (carried and fills.position[mine[at]] == fills.position[mine[before]])
            for k, is_entry in ([(before, False)] if carried else []) + ([(at, True)] if is_new else []):
                amount = -float(held[k] * fills.lot_size[mine[k]]) * mark * float(panel.funding_rate[t, j])
                if amount < 0.0 or (amount > 0.0 and not is_entry):
                    positions.append(int(fills.position[mine[k]]))
                    amounts.append(amount)
    return Flows(np.array(positions, dtype=np.int64), np.array(amounts, dtype=np.float64))


def _close_at(panel: MarketPanel, decided_ns: int | None, column: int, otherwise: float) -> float:
    """Return the close of the bar that had just closed at ``decided_ns``; ``otherwise`` where none is known."""
    if decided_ns is None:
        return otherwise
    row = int(np.searchsorted(panel.ts_open, decided_ns - panel.frame_ns, side="right")) - 1
    close = float(panel.close[row, column]) if row >= 0 else math.nan
    return close if math.isfinite(close) else otherwise


def _last_known(panel: MarketPanel, end_ns: int) -> FloatArray:
    """Return each symbol's last mark that closed by ``end_ns``, NaN where there is none."""
    marks = panel.mark_close[panel.ts_open + panel.frame_ns <= end_ns]
    result = np.full(len(panel.symbols), np.nan)
    for j in range(result.size):
        known = marks[np.isfinite(marks[:, j]), j]
        if known.size:
            result[j] = known[-1]
    return result


def _benchmarks(history: AccountHistory, panel: MarketPanel) -> dict[str, FloatArray]:
    """Return BTC and the equal-weight universe, bought at the first snapshot; NaN at instants the panel does not cover."""
    growth = _closes_at(panel, history.ts_ns) / _closes_at(panel, history.ts_ns[:1])
    known = np.isfinite(growth)
    counts = np.maximum(known.sum(axis=1), 1)
    basket = np.where(known.any(axis=1), np.where(known, growth, 0.0).sum(axis=1) / counts, np.nan)
    btc = growth[:, panel.symbols.index(BTC)] if BTC in panel.symbols else np.full(growth.shape[0], np.nan)
    return {"btc": history.equity[0] * btc, "equal_weight": history.equity[0] * basket}


def _closes_at(panel: MarketPanel, ts_ns: IntArray) -> FloatArray:
    closes = panel.ts_open + panel.frame_ns
    rows = np.minimum(np.searchsorted(closes, ts_ns), closes.size - 1)
    return np.where((closes[rows] == ts_ns)[:, None], panel.close[rows], np.nan)
