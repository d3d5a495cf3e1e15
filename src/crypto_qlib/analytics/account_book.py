"""One account's history in plain arrays: what every figure is made of, whether a backtest, a paper or a live session made it.

Fills are folded into positions; a position's result is split into parts that add up to it:

``net = price + slippage + fees + funding + liquidation`` and ``price = signal + market``

``price`` is what the moves between the raw prices (before slippage) brought; ``market`` is the share of it that BTC's move
explains at the beta known when the position was opened; ``signal`` is the rest: what choosing *this* coin and side brought.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market_factor import MarketFactor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.str_]

STILL_OPEN = "open"
"""``exit_kind`` of a position that is still held."""
PARTS = ("signal", "market", "slippage", "fees", "funding", "liquidation")
"""Signed parts of a position's net result, USDT, that add up to it."""


@dataclass(frozen=True, slots=True)
class FillBook:
    """Executions, oldest first.

    Parameters
    ----------
    ts_ns : (n,) int64
        Instants.
    symbol : (n,) int64
        Columns.
    position : (n,) int64
        Number of the position each belongs to, from 0; see :func:`number_positions`.
    lots : (n,) int64
        Bought (+) or sold (-).
    lot_size : (n,) float64
        Base coins per lot.
    price, raw_price : (n,) float64
        Fill price, and the price before slippage; equal where slippage is not known.
    fee : (n,) float64
        Paid, USDT.
    exit_kind : (n,) str
        Why a closing fill happened; empty for opening ones.
    """

    ts_ns: IntArray
    symbol: IntArray
    position: IntArray
    lots: IntArray
    lot_size: FloatArray
    price: FloatArray
    raw_price: FloatArray
    fee: FloatArray
    exit_kind: TextArray

    @property
    def notional(self) -> float:
        """Return the value bought and sold, USDT."""
        return float(np.sum(np.abs(self.lots) * self.lot_size * self.price))


@dataclass(frozen=True, slots=True)
class Flows:
    """Movements of money that belong to positions.

    Parameters
    ----------
    position : (n,) int64
        Numbers of the positions.
    amount : (n,) float64
        To the position (+) or from it (-), USDT.
    """

    position: IntArray
    amount: FloatArray

    @staticmethod
    def none() -> Flows:
        """Return no movement at all."""
        return Flows(np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class PositionBook:
    """Positions, closed or still held, in the order of their numbers; all arrays ``(n,)``.

    Parameters
    ----------
    symbol : int64
        Columns.
    side : float64
        +1 long, -1 short.
    exit_kind : str
        Why the last part was closed; ``open`` where some of it is still held.
    opened_ns, closed_ns : int64
        First and last fill; still held: the end of the book.
    notional : float64
        Value of the opening fills, USDT.
    price, market, slippage, fees, funding, liquidation : float64
        Signed parts of the result, USDT; ``market`` is a share of ``price``; costs are negative.
    """

    symbol: IntArray
    side: FloatArray
    exit_kind: TextArray
    opened_ns: IntArray
    closed_ns: IntArray
    notional: FloatArray
    price: FloatArray
    market: FloatArray
    slippage: FloatArray
    fees: FloatArray
    funding: FloatArray
    liquidation: FloatArray

    @property
    def signal(self) -> FloatArray:
        """Return what is left of the price result without the market's share."""
        return self.price - self.market

    @property
    def net(self) -> FloatArray:
        """Return the result after everything, USDT."""
        return self.price + self.slippage + self.fees + self.funding + self.liquidation

    @property
    def is_closed(self) -> npt.NDArray[np.bool_]:
        """Return which positions are closed entirely."""
        return np.asarray(self.exit_kind != STILL_OPEN, dtype=np.bool_)

    def closed_in_order(self) -> FloatArray:
        """Return net results of closed positions in the order they closed."""
        closed = np.flatnonzero(self.is_closed)
        return self.net[closed[np.argsort(self.closed_ns[closed], kind="stable")]]


def number_positions(symbol: IntArray, lots: IntArray) -> IntArray:
    """Return the number of the position each fill belongs to: one begins where a symbol's size leaves zero.

    Parameters
    ----------
    symbol, lots : (n,) int64
        Column and signed lots of fills, oldest first. A fill that turns a position round counts to the old one.
    """
    held: dict[int, int] = {}
    number: dict[int, int] = {}
    result = np.empty(symbol.size, np.int64)
    count = 0
    for k, (j, n) in enumerate(zip(symbol.tolist(), lots.tolist(), strict=True)):
        if held.get(j, 0) == 0:
            number[j] = count
            count += 1
        result[k] = number[j]
        held[j] = held.get(j, 0) + n
    return result


def book_positions(
    fills: FillBook, funding: Flows, liquidation: Flows, marks: FloatArray, end_ns: int, factor: MarketFactor | None
) -> PositionBook:
    """Fold fills and flows into positions.

    Parameters
    ----------
    fills : FillBook
        Every execution.
    funding, liquidation : Flows
        Settlements; penalties of liquidations and what the insurance fund bore.
    marks : (n_symbols,) float64
        Prices that value what is still held at ``end_ns``; not read for symbols without a position.
    end_ns : int
        End of the book.
    factor : MarketFactor | None
        The market; ``None`` leaves its share at zero.
    """
    n = int(fills.position.max(initial=-1)) + 1
    signed = fills.lots * fills.lot_size
    first = np.full(n, fills.position.size, np.int64)
    np.minimum.at(first, fills.position, np.arange(fills.position.size))
    side = np.sign(fills.lots[first]).astype(np.float64)
    symbol = fills.symbol[first]
    opens = np.sign(fills.lots) == side[fills.position]

    def total(amount: FloatArray, where: IntArray = fills.position) -> FloatArray:
        return np.bincount(where, weights=amount, minlength=n).astype(np.float64)

    left = total(fills.lots.astype(np.float64)) * fills.lot_size[first]
    is_held = np.rint(total(fills.lots.astype(np.float64))) != 0.0
    worth = np.where(is_held, left * np.where(is_held, marks[symbol], 0.0), 0.0)
    notional = total(np.where(opens, np.abs(signed) * fills.price, 0.0))
    entry = notional / total(np.where(opens, np.abs(signed), 0.0))
    last = np.zeros(n, np.int64)
    np.maximum.at(last, fills.position, np.arange(fills.position.size))
    book = PositionBook(
        symbol=symbol,
        side=side,
        exit_kind=np.where(is_held, STILL_OPEN, fills.exit_kind[last]),
        opened_ns=fills.ts_ns[first],
        closed_ns=np.where(is_held, end_ns, fills.ts_ns[last]),
        notional=notional,
        price=worth - total(signed * fills.raw_price),
        market=np.zeros(n),
        slippage=-total(signed * (fills.price - fills.raw_price)),
        fees=-total(fills.fee),
        funding=total(funding.amount, funding.position),
        liquidation=total(liquidation.amount, liquidation.position),
    )
    if factor is None or n == 0:
        return book
    beta = factor.beta_at(book.opened_ns, symbol)
    moved = np.where(opens, 0.0, -signed) * factor.growth(book.opened_ns[fills.position], fills.ts_ns)
    still = np.where(is_held, left, 0.0) * factor.growth(book.opened_ns, np.full(n, end_ns, np.int64))
    book.market[:] = entry * beta * (total(moved) + still)
    return book


def attribution(book: PositionBook) -> dict[str, float]:
    """Return the signed parts of all results together, USDT, in the order of :data:`PARTS`."""
    return {part: float(np.sum(getattr(book, part))) for part in PARTS}


def grouped(book: PositionBook, labels: npt.NDArray[np.str_] | npt.NDArray[np.object_]) -> dict[str, dict[str, float]]:
    """Return count, share won, parts and net result by label, largest net result first.

    Parameters
    ----------
    book : PositionBook
        Positions.
    labels : (n,) str
        Label of each.
    """
    names, where = np.unique(labels.astype(str), return_inverse=True)

    def total(amount: FloatArray) -> FloatArray:
        return np.bincount(where, weights=amount, minlength=names.size).astype(np.float64)

    count = total(np.ones(where.size))
    columns = {"win_rate": total((book.net > 0.0).astype(np.float64)) / count}
    columns |= {part: total(getattr(book, part)) for part in (*PARTS, "price", "net")}
    order = np.argsort(-columns["net"], kind="stable")
    return {
        str(names[k]): {"count": int(count[k]), **{name: float(values[k]) for name, values in columns.items()}} for k in order
    }
