"""A backtest's ledgers as the account book that every figure is made of (:mod:`crypto_qlib.analytics.account_book`)."""

from __future__ import annotations

from typing import Final

import numpy as np

from crypto_qlib.analytics.account_book import FillBook, Flows, MarketFactor, PositionBook, book_positions
from crypto_qlib.backtest.ledger_arrays import OPENING
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.portfolio import market_columns as columns
from crypto_qlib.portfolio.market_panel import frozen
from crypto_qlib.venue.matching import DELISTED, EXIT_KIND_BY_CODE, REPLACED, SIGNAL, TIME

BTC: Final = "BTCUSDT"
_AT_THE_OPEN: Final = (OPENING, TIME, SIGNAL, REPLACED, DELISTED)
"""Kinds of fill that take place at the bar's open; the others happen somewhere inside, booked in its middle."""


def lot_sizes(result: BacktestResult) -> FloatArray:
    """Return base coins per lot of each symbol, ``(n_symbols,)``, as the positions show it; NaN for symbols never traded."""
    sizes = np.full(len(result.symbols), np.nan)
    sizes[result.trades["symbol"]] = result.trades["qty"] / np.abs(result.trades["lots"])
    sizes[result.open_symbols] = result.open_positions["qty"] / np.abs(result.open_positions["lots"])
    return sizes


def fill_book(result: BacktestResult) -> FillBook:
    """Return the run's executions."""
    f = result.fills
    labels = np.full(max(EXIT_KIND_BY_CODE) + 1, "", dtype="U24")
    for code, kind in EXIT_KIND_BY_CODE.items():
        labels[code] = kind.value
    inside = np.where(np.isin(f["kind"], _AT_THE_OPEN), 0, result.frame_ns // 2)
    return FillBook(
        ts_ns=result.ts_open[f["bar"]] + inside,
        symbol=f["symbol"].astype(np.int64),
        position=f["trade"].astype(np.int64),
        lots=f["lots"].astype(np.int64),
        lot_size=lot_sizes(result)[f["symbol"]],
        price=f["price"].astype(np.float64),
        raw_price=f["raw_price"].astype(np.float64),
        fee=f["fee"].astype(np.float64),
        exit_kind=labels[f["kind"]],
    )


def position_book(result: BacktestResult, factor: MarketFactor | None, fills: FillBook | None = None) -> PositionBook:
    """Return the run's positions, those still open valued at their last mark, with the parts of their results.

    Parameters
    ----------
    result : BacktestResult
        The run.
    factor : MarketFactor | None
        The market, see :func:`btc_factor`.
    fills : FillBook, optional
        :func:`fill_book`, where it is at hand.
    """
    t, held = result.trades, result.open_positions
    number = np.concatenate([t["trade"], held["trade"]]).astype(np.int64)
    marks = np.full(len(result.symbols), np.nan)
    marks[result.open_symbols] = held["mark"]
    liquidation = np.concatenate([t["overshoot"] - t["penalty"], held["overshoot"] - held["penalty"]])
    return book_positions(
        fill_book(result) if fills is None else fills,
        Flows(result.funding["trade"].astype(np.int64), result.funding["amount"].astype(np.float64)),
        Flows(number, liquidation),
        marks,
        int(result.ts_close[-1]),
        factor,
    )


def btc_factor(panel: MarketPanel) -> MarketFactor | None:
    """Return BTC's price over time and each symbol's trailing beta, the very one decisions know; ``None`` without BTC.

    Prices are the opens of the bars and the last close; a missing one is the last known.
    """
    if BTC not in panel.symbols:
        return None
    btc = panel.symbols.index(BTC)
    price = np.append(panel.open[:, btc], panel.close[-1, btc])
    known = np.flatnonzero(np.isfinite(price))
    if not known.size:
        return None
    ts = np.append(panel.ts_open, panel.ts_open[-1] + panel.frame_ns)
    starts, beta = _daily_betas(panel, btc)
    return MarketFactor(ts[known], price[known], starts, beta)


def _daily_betas(panel: MarketPanel, btc: int) -> tuple[IntArray, FloatArray]:
    if NS_PER_DAY % panel.frame_ns:
        return panel.ts_open[:1], np.ones((1, len(panel.symbols)))
    per_day = NS_PER_DAY // panel.frame_ns
    first_midnight = -(-int(panel.ts_open[0]) // NS_PER_DAY) * NS_PER_DAY
    first_row = (first_midnight - int(panel.ts_open[0])) // panel.frame_ns
    n_days = max((panel.n_bars - first_row) // per_day, 0)
    sums = columns.daily_sums(
        frozen(panel.close), frozen(panel.volume), frozen(panel.quote_volume), first_row, per_day, n_days, btc
    )
    starts = first_midnight + NS_PER_DAY * np.arange(n_days + 1, dtype=np.int64)
    return starts, columns.daily_figures(*sums)[2]
