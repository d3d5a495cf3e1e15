"""A backtest's ledgers as the account book that every figure is made of (:mod:`crypto_qlib.analytics.account_book`)."""

from __future__ import annotations

from typing import Final

import numpy as np

from crypto_qlib.analytics.account_book import FillBook, Flows, PositionBook, book_positions
from crypto_qlib.backtest.ledger_arrays import OPENING
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.market import FloatArray
from crypto_qlib.core.market_factor import MarketFactor
from crypto_qlib.venue.matching import DELISTED, EXIT_KIND_BY_CODE, REPLACED, SIGNAL, TIME

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
        The market, see :func:`crypto_qlib.portfolio.btc_factor.btc_factor`.
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
