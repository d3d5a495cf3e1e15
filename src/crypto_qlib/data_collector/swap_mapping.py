"""Which swap is which coin's? By ticker *and price*.

Two coins may share a ticker, a ticker may be used again by another coin, and ``1000X`` swaps are quoted per thousand coins. A
coin gets a swap only if the swap's price is the coin's (times the multiple); where no price of the swap is known yet, the
largest coin of the ticker gets it, and that is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from crypto_qlib.data_collector.market_caps import Coin
from crypto_qlib.data_collector.universe_history import UniverseMember

_THOUSANDS: Final = re.compile(r"^(?:(10{3,})|(1)M)(?=\D)(.+)$")
_PRICE_TOLERANCE: Final = 0.1
"""Two prices of one coin differ by less than this (log); two coins of one ticker hardly ever do."""
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap that trades, with its recent prices; ``multiple`` coins make one base unit.

    Parameters
    ----------
    symbol, base, inst_id : str
        Its names.
    low, high : float
        Range of recent prices, quote units; equal where only the last price is known, NaN where none is.
    turnover : float
        USDT of the last day; decides between two swaps of one coin. NaN where unknown.
    multiple : int
        Coins per base unit.
    """

    symbol: str
    base: str
    inst_id: str
    low: float
    high: float
    turnover: float = math.nan
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class Mapped:
    """Coins that qualify, as members by rank, and what a person should know of those that do not.

    Parameters
    ----------
    members : tuple of UniverseMember
        By market cap.
    refused : tuple of str
        One line a coin whose swap belongs to another coin.
    unverified : tuple of str
        Symbols whose price is not known, so that the ticker alone speaks for them.
    """

    members: tuple[UniverseMember, ...]
    refused: tuple[str, ...]
    unverified: tuple[str, ...]


def split_multiple(base: str) -> tuple[int, str]:
    """Return (coins per unit, coin) of a base name: ``1000PEPE`` is (1000, PEPE), ``1MBABYDOGE`` (1000000, BABYDOGE)."""
    match = _THOUSANDS.match(base)
    if match is None:
        return 1, base
    return (int(match[1]) if match[1] else int(match[2]) * _MILLION), match[3]


def swaps_by_ticker(swaps: Iterable[Swap]) -> dict[str, list[Swap]]:
    """Return the swaps a ticker may stand for: those of that base, and those of many coins of it."""
    by_ticker: dict[str, list[Swap]] = {}
    for swap in swaps:
        by_ticker.setdefault(swap.base, []).append(replace(swap, multiple=1))
        multiple, coin = split_multiple(swap.base)
        if multiple > 1:
            by_ticker.setdefault(coin, []).append(replace(swap, multiple=multiple))
    return by_ticker


def is_same_price(coin_price: float, low: float, high: float) -> bool:
    """Return whether ``coin_price`` lies within 10 % (log) of ``low..high``; False where one is unknown or not positive."""
    if not (coin_price > 0.0 and low > 0.0 and high > 0.0):
        return False
    return math.log(low) - _PRICE_TOLERANCE < math.log(coin_price) < math.log(high) + _PRICE_TOLERANCE


def map_coins(
    coins: Sequence[Coin],
    by_ticker: Mapping[str, Sequence[Swap]],
    why_not: Callable[[Coin], str],
    first_rank: int = 1,
    taken: set[str] | None = None,
    *,
    trust_tickers: bool = False,
) -> Mapped:
    """Give each coin its swap, largest market cap first.

    Parameters
    ----------
    coins : sequence of Coin
        Any order.
    by_ticker : mapping
        From :func:`swaps_by_ticker`.
    why_not : callable
        Why a coin is left out; empty where it is not.
    first_rank : int
        Rank of the first coin that qualifies.
    taken : set of str, optional
        Symbols given away already; added to.
    trust_tickers : bool
        Where coin or swap has no known price, let the ticker decide instead of refusing the coin.
    """
    given = set() if taken is None else taken
    members: list[UniverseMember] = []
    refused: list[str] = []
    unverified: list[str] = []
    for coin in sorted(coins, key=lambda c: (-c.market_cap if c.market_cap > 0.0 else 0.0, c.coin_id)):
        found = [s for s in by_ticker.get(coin.symbol, ()) if s.symbol not in given]
        if not found or why_not(coin):
            continue
        same = [s for s in found if is_same_price(coin.price * s.multiple, s.low, s.high)]
        if not same and trust_tickers and (math.isnan(coin.price) or all(math.isnan(s.low) for s in found)):
            same = found[:1]
            unverified.append(found[0].symbol)
        if not same:
            refused.append(_other_coin(coin, found[0]))
            continue
        swap = max(same, key=lambda s: max(0.0, s.turnover))
        given.add(swap.symbol)
        members.append(UniverseMember(swap.symbol, swap.base, first_rank + len(members), coin.market_cap))
    return Mapped(tuple(members), tuple(refused), tuple(unverified))


def _other_coin(coin: Coin, swap: Swap) -> str:
    price = f"{swap.low:g}" if swap.low == swap.high else f"{swap.low:g} to {swap.high:g}"
    return (
        f"{coin.symbol} ({coin.name}) costs {coin.price:g}, {swap.inst_id} {price}: another coin of the same ticker, left out"
    )
