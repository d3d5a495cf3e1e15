"""The one door to an exchange: a dozen verbs, in the package's own words.

Whatever trades or collects goes through a :class:`Gateway`. Symbols are compact names (``BTCUSDT``), sizes are lots,
times are nanoseconds since the epoch. Every method raises the classes of ``core.errors``, already sorted by what
the caller should do; no exception of the client library crosses this border.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.order import Fill, MarginMode, OrderRequest, OrderStatus, Protection
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.store.ledger_rows import FundingRow


class PriceKind(StrEnum):
    """Which price a candle is made of."""

    LAST = "last"
    MARK = "mark"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Book:
    """Order book: rows are (price, base coins), best first.

    Parameters
    ----------
    ts_ns : int
        Exchange time of the snapshot.
    bids, asks : (n_levels, 2) float64
        Price in quote units, size in base coins.
    """

    ts_ns: int
    bids: npt.NDArray[np.float64]
    asks: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ticker:
    """Last trade, best quotes and 24 h turnover of one symbol (prices in quote units, turnover in USDT)."""

    symbol: str
    ts_ns: int
    last: float
    bid: float
    ask: float
    quote_volume_24h: float


@dataclass(frozen=True, slots=True)
class OrderReport:
    """What the exchange knows of one order.

    Parameters
    ----------
    client_order_id, exchange_order_id : str
        Both ids; the exchange's is empty while unknown.
    status : OrderStatus
        Current state; ``SENT`` when the outcome is not known.
    filled_lots : int
        Lots filled so far.
    average_price : float
        Mean fill price; NaN before the first fill.
    fee : float
        Fee paid so far, USDT.
    """

    client_order_id: str
    exchange_order_id: str
    symbol: str
    status: OrderStatus
    filled_lots: int
    average_price: float
    fee: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money paid into the account (+) or out of it (-), USDT, under the exchange's own number."""

    bill_id: str
    ts_ns: int
    amount: float


@dataclass(frozen=True, slots=True)
class FundingQuote:
    """The rate expected now for the next settlement (fraction of mark notional; > 0: longs pay), and when that is."""

    symbol: str
    ts_ns: int
    rate: float
    settles_ns: int


@dataclass(frozen=True, slots=True)
class InterestBlock:
    """Open interest of one symbol over time, oldest first: instants (ns), base coins, USD; ``(n,)`` each."""

    ts: npt.NDArray[np.int64]
    coins: npt.NDArray[np.float64]
    usd: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TakerBlock:
    """Base coins that takers bought and sold, by period's open time (ns), oldest first; ``(n,)`` each."""

    ts: npt.NDArray[np.int64]
    buy: npt.NDArray[np.float64]
    sell: npt.NDArray[np.float64]


class Gateway(Protocol):
    """Talk to one exchange account."""

    async def server_time_ns(self) -> int:
        """Return the exchange's clock."""
        ...

    async def instruments(self) -> list[Instrument]:
        """Return all USDT-margined swaps, any state."""
        ...

    async def tiers(self, symbol: str) -> TierTable:
        """Return the position tiers of ``symbol`` in force now."""
        ...

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        """Return all *closed* bars with ``start_ns <= ts_open < end_ns``, oldest first, every page fetched."""
        ...

    async def funding_history(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return realised funding with ``start_ns <= ts < end_ns`` as far back as the exchange keeps it."""
        ...

    async def open_interest(self, symbol: str) -> tuple[int, float]:
        """Return (instant, open interest in base coins)."""
        ...

    async def open_interest_history(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> InterestBlock:
        """Return open interest at the instants ``start_ns <= ts < end_ns`` as far back as the exchange keeps it."""
        ...

    async def taker_volume(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> TakerBlock:
        """Return what takers bought and sold per period that opens in ``[start_ns, end_ns)``, as far back as kept."""
        ...

    async def long_short_ratio(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return accounts long per account short at the instants ``start_ns <= ts < end_ns``, as far back as kept."""
        ...

    async def funding_now(self) -> list[FundingQuote]:
        """Return the rate expected at the next settlement, of every swap."""
        ...

    async def book(self, symbol: str, depth: int = 20) -> Book:
        """Return the order book."""
        ...

    async def tickers(self) -> list[Ticker]:
        """Return the tickers of all live swaps."""
        ...

    async def account(self) -> AccountState:
        """Return balance and open positions."""
        ...

    async def set_leverage(self, symbol: str, leverage: float, margin_mode: MarginMode) -> None:
        """Set the leverage of ``symbol`` and verify it."""
        ...

    async def place(self, request: OrderRequest) -> OrderReport:
        """Send one order; raises ``OutcomeUnknown`` where the answer does not say whether it exists."""
        ...

    async def cancel(self, symbol: str, client_order_id: str) -> None:
        """Ask for cancellation; an order that is already gone is no error."""
        ...

    async def amend(self, symbol: str, client_order_id: str, price: float) -> None:
        """Ask for another limit of a resting order; one that is gone meanwhile is no error.

        Raises ``OutcomeUnknown`` where no answer says which limit stands.
        """
        ...

    async def order(self, symbol: str, client_order_id: str) -> OrderReport | None:
        """Return the order, or ``None`` if the exchange does not know the id."""
        ...

    async def account_id(self) -> str:
        """Return the exchange's id of the account, the same for all of its keys."""
        ...

    async def cancel_all_after(self, seconds: int) -> None:
        """Let the exchange cancel all pending orders in ``seconds`` unless this is said again; 0 ends it, stops stay."""
        ...

    async def protect(self, symbol: str, lots: int, protection: Protection, margin_mode: MarginMode, client_id: str) -> None:
        """Put a stop (and take-profit), or a trailing stop, that stands alone over the whole position of ``lots`` (signed).

        Raises ``OutcomeUnknown`` where no answer says whether it stands, ``DoNotRetry`` where it was refused.
        """
        ...

    async def cancel_trailing(self, symbol: str) -> None:
        """Cancel the trailing stops of ``symbol``; one that is gone is no error."""
        ...

    async def fills(self, since_ns: int) -> list[Fill]:
        """Return the account's fills since ``since_ns``, oldest first."""
        ...

    async def funding_paid(self, since_ns: int) -> list[FundingRow]:
        """Return what each settlement booked to the account since ``since_ns``, oldest first."""
        ...

    async def transfers(self, since_ns: int) -> list[Transfer]:
        """Return money paid into the account or out of it since ``since_ns``, oldest first."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
