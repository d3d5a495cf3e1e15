"""What a USDT-margined perpetual swap is: names, contract size, tick, lot, limits, life span.

Sizes are counted in *lots* (integers) inside the package and in *contracts* at the exchange;
``contracts = lots * lot_size`` and ``base coins = contracts * ct_val``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from crypto_qlib.core.jit import njit

_ROUNDING_SLACK = 1e-9
"""Fraction of one step forgiven when flooring, so that 0.3 / 0.1 counts as 3 steps and not as 2."""

MOST_LOTS = 2.0**53
"""Largest size that a float still counts lot by lot; a larger wish is held there, far inside what 64-bit integers hold."""


class InstrumentState(StrEnum):
    """Life-cycle state of an instrument (OKX ``state``). Only ``LIVE`` trades."""

    PREOPEN = "preopen"
    LIVE = "live"
    SUSPEND = "suspend"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One version of a perpetual swap's contract specification.

    Source: OKX ``GET /public/instruments`` (``ctVal ctMult lotSz minSz tickSz maxMktSz maxLmtSz lever``).

    Parameters
    ----------
    symbol : str
        Compact name used everywhere inside, e.g. ``BTCUSDT``.
    inst_id : str
        The exchange's name, e.g. ``BTC-USDT-SWAP``.
    base, settle : str
        Base coin and settlement coin, e.g. ``BTC`` and ``USDT``.
    ct_val : float
        Base coins per contract (``ctVal * ctMult``).
    tick_size : float
        Price step in quote units.
    lot_size, min_size : float
        Size step and smallest order, in contracts.
    max_market_size, max_limit_size : float
        Largest market and limit order, in contracts.
    max_leverage : float
        Highest leverage of the first tier.
    funding_interval_h : int
        Default hours between two funding settlements; the true settlements are a list, see ``funding``.
    listed_ns : int
        First trading instant, nanoseconds since the epoch.
    delisted_ns : int | None
        Last trading instant, ``None`` while the instrument trades.
    state : InstrumentState
        Whether it trades now.
    valid_from_ns : int
        Instant from which this version of the specification holds.
    """

    symbol: str
    inst_id: str
    base: str
    ct_val: float
    tick_size: float
    lot_size: float
    min_size: float
    settle: str = "USDT"
    max_market_size: float = math.inf
    max_limit_size: float = math.inf
    max_leverage: float = 50.0
    funding_interval_h: int = 8
    listed_ns: int = 0
    delisted_ns: int | None = None
    state: InstrumentState = InstrumentState.LIVE
    valid_from_ns: int = 0

    @property
    def ccxt_symbol(self) -> str:
        """Return ccxt's unified name, e.g. ``BTC/USDT:USDT``."""
        return f"{self.base}/{self.settle}:{self.settle}"

    @property
    def base_per_lot(self) -> float:
        """Return base coins per lot."""
        return self.ct_val * self.lot_size

    def contracts(self, lots: int) -> float:
        """Return the size of ``lots`` in contracts, exact in the lot's decimals."""
        return float(Decimal(lots) * Decimal(str(self.lot_size)))

    def is_listed(self, ts_ns: int) -> bool:
        """Return whether the instrument trades at ``ts_ns``."""
        return self.listed_ns <= ts_ns and (self.delisted_ns is None or ts_ns < self.delisted_ns)

    def format_size(self, lots: int) -> str:
        """Render ``lots`` as the contract string the exchange expects, without rounding error."""
        return format((Decimal(lots) * Decimal(str(self.lot_size))).normalize(), "f")

    def format_price(self, price: float) -> str:
        """Render ``price`` at the nearest tick as the decimal string the exchange expects."""
        tick = Decimal(str(self.tick_size))
        return format(round(Decimal(str(price)) / tick) * tick, "f")


def symbol_from_inst_id(inst_id: str) -> str:
    """Return ``BTCUSDT`` for ``BTC-USDT-SWAP``.

    Raises
    ------
    ValueError
        If ``inst_id`` is not the id of a linear swap.
    """
    parts = inst_id.split("-")
    if len(parts) != 3 or parts[2] != "SWAP":  # noqa: PLR2004 - base, quote, kind
        raise ValueError(f"{inst_id!r} is not a swap id like BTC-USDT-SWAP")
    return parts[0] + parts[1]


@njit
def floor_lots(base_qty: float, base_per_lot: float) -> int:
    """Return the largest whole number of lots not above ``base_qty`` base coins (``base_qty >= 0``).

    ``lots = floor(base_qty / base_per_lot + 1e-9)``: rounding never increases exposure, beyond the
    1e-9 of one lot that undoes binary noise such as 0.3 / 0.1. At most ``MOST_LOTS``.
    """
    return math.floor(min(base_qty / base_per_lot + _ROUNDING_SLACK, MOST_LOTS))


@njit
def price_at(ticks: float, tick_size: float) -> float:
    """Return the price of a whole number of ticks as the number its decimal digits name.

    ``9791 * 0.0001`` is 0.9791000000000001: a stop there would not be reached by a high of 0.9791, as at the exchange, to which
    it travels as "0.9791", it is. Where the tick divides 1, a division gives the nearest number to the decimal one.
    """
    per_unit = math.floor(1.0 / tick_size + 0.5)
    if per_unit >= 1.0 and abs(per_unit * tick_size - 1.0) < _ROUNDING_SLACK:
        return ticks / per_unit
    return ticks * tick_size


@njit
def round_price_against(price: float, tick_size: float, side: float) -> float:
    """Return ``price`` moved to the tick that is worse for the trader.

    Parameters
    ----------
    price, tick_size : float
        Quote units.
    side : float
        +1 for a buy (rounds up), -1 for a sell (rounds down).
    """
    if side > 0:
        return price_at(math.ceil(price / tick_size - _ROUNDING_SLACK), tick_size)
    return price_at(math.floor(price / tick_size + _ROUNDING_SLACK), tick_size)
