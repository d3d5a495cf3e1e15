"""Coins by market cap, now and in the past, from CoinGecko through its official client.

Source: CoinGecko API v3 ``/coins/markets`` (at most 250 coins a page; any numeric field may be null),
``/coins/{id}/market_chart/range`` (the last 365 days for free) and ``/coins/list``. The free API needs no
key; a demo key goes to the same host, a pro key to ``pro-api.coingecko.com``. 429 and ``Retry-After``
are honoured by the client.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import numpy as np
from coingecko_sdk import APIConnectionError, AsyncCoingecko, CoingeckoError, DefaultAsyncHttpxClient, Omit

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FloatArray, IntArray

COINS_PER_PAGE: Final = 250
COINGECKO_URL: Final = "https://api.coingecko.com/api/v3"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Coin:
    """One coin as a ranking knows it.

    Parameters
    ----------
    coin_id, symbol, name : str
        Unique id (``bitcoin``), ticker in capitals (``BTC``; several coins may share it), full name.
    price, market_cap : float
        USD; NaN where unknown.
    high_24h, low_24h : float
        Price range of the last day, USD; NaN where unknown.
    category : str
        Why the source itself counts it as no bet of its own (``stablecoin`` ...); empty where it does not.
    """

    coin_id: str
    symbol: str
    name: str
    price: float
    market_cap: float
    high_24h: float = math.nan
    low_24h: float = math.nan
    category: str = ""


class CoinRanking(Protocol):
    """Serve coins by market cap, largest first."""

    @property
    def source(self) -> str:
        """Name the source, for reports."""
        ...

    @property
    def name(self) -> str:
        """Name the document its rankings are kept in."""
        ...

    async def page(self, number: int) -> Sequence[Coin]:
        """Return page ``number`` (from 1) of at most 250 coins; a shorter page is the last one.

        Raises
        ------
        UserError
            If the source cannot be reached or answers with something else.
        """
        ...


@dataclass(frozen=True, slots=True)
class CapChart:
    """Price and market cap of one coin over time, oldest first.

    Parameters
    ----------
    ts : (n,) int64
        Stamps, nanoseconds since the epoch, increasing.
    price, market_cap : (n,) float64
        USD; NaN where unknown.
    """

    ts: IntArray
    price: FloatArray
    market_cap: FloatArray


class CoinGeckoRanking:
    """CoinGecko, or a server that speaks its protocol.

    Parameters
    ----------
    base_url : str
        API root, e.g. ``http://127.0.0.1:8080/api/v3`` for the embedded exchange; empty = CoinGecko itself.
    api_key : str
        Demo or pro key (pro where ``base_url`` is the pro host); empty = none.
    timeout_s : float
        Time limit of one request, seconds.
    """

    name: Final = "coingecko"

    def __init__(self, base_url: str = "", api_key: str = "", timeout_s: float = 20.0) -> None:
        self._url = base_url or COINGECKO_URL
        self._host = urlsplit(self._url).hostname or self._url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._categories: dict[str, str] | None = None

    @property
    def source(self) -> str:
        """Name the host asked."""
        return "the embedded exchange's market caps" if self._host in _LOOPBACK else f"CoinGecko ({self._host})"

    async def page(self, number: int) -> Sequence[Coin]:
        """Return page ``number`` of the ranking, see :class:`CoinRanking`; the first page also asks for the categories."""
        if self._categories is None:
            self._categories = await self._read_categories()
        rows = await self._markets(page=number)
        return [_coin(row, self._categories.get(str(row.id), "")) for row in rows]

    async def chart(self, coin_id: str, start_ns: int, end_ns: int) -> CapChart:
        """Return price and market cap of ``coin_id`` between two instants: daily beyond 90 days, hourly below.

        Raises
        ------
        UserError
            If the coin is unknown or the source cannot be read (the free API serves the last 365 days only).
        """
        first, last = str(start_ns // NS_PER_S), str(end_ns // NS_PER_S)
        answer = await self._call(
            lambda client, headers: client.coins.market_chart.get_range(
                coin_id, vs_currency="usd", from_=first, to=last, extra_headers=headers
            )
        )
        prices = {int(t): _number(v) for t, v in (answer.prices or [])}
        caps = {int(t): _number(v) for t, v in (answer.market_caps or [])}
        stamps = sorted(prices.keys() | caps.keys())
        return CapChart(
            np.array(stamps, dtype=np.int64) * NS_PER_MS,
            np.array([prices.get(t, math.nan) for t in stamps], dtype=np.float64),
            np.array([caps.get(t, math.nan) for t in stamps], dtype=np.float64),
        )

    async def ids(self) -> dict[str, list[str]]:
        """Return every coin's id by ticker in capitals; several coins may share one."""
        rows = await self._call(lambda client, headers: client.coins.list.get(extra_headers=headers))
        by_ticker: dict[str, list[str]] = {}
        for row in rows if isinstance(rows, list) else ():
            by_ticker.setdefault(str(row.symbol).upper(), []).append(str(row.id))
        return by_ticker

    async def _read_categories(self) -> dict[str, str]:
        """Return the reason against each coin of a category; a category that is not served is known by its coins' names."""
        reasons: dict[str, str] = {}
        for category, reason in _CATEGORIES.items():
            try:
                rows = await self._markets(category=category)
            except _UnreachableError:
                raise
            except UserError:
                continue
            reasons |= {str(row.id): reason for row in rows if str(row.id) not in reasons}
        return reasons

    async def _markets(self, **query: Any) -> list[Any]:
        rows = await self._call(
            lambda client, headers: client.coins.markets.get(
                vs_currency="usd", order="market_cap_desc", per_page=COINS_PER_PAGE, extra_headers=headers, **query
            )
        )
        if not isinstance(rows, list):
            raise UserError(f"cannot read market caps from {self._host}: the answer is no list of coins", _HINT)
        return rows

    async def _call(self, ask: Callable[[AsyncCoingecko, dict[str, Any]], Awaitable[Any]]) -> Any:
        """Return the answer to one question; the client itself waits out 429 by its ``Retry-After``."""
        is_pro = self._host.startswith("pro-")
        # Empty strings keep the client from reading keys out of the environment behind our back.
        pro, demo = (self._api_key, "") if is_pro else ("", self._api_key)
        headers = {name: Omit() for name, key in (("x-cg-pro-api-key", pro), ("x-cg-demo-api-key", demo)) if not key}
        web = DefaultAsyncHttpxClient(trust_env=self._host not in _LOOPBACK)
        async with AsyncCoingecko(
            base_url=self._url,
            pro_api_key=pro,
            demo_api_key=demo,
            timeout=self._timeout_s,
            http_client=web,
            max_retries=_RETRIES,
        ) as client:
            try:
                return await ask(client, headers)
            except CoingeckoError as e:
                reason = str(e.__cause__ or e).splitlines()[0]
                error = _UnreachableError if isinstance(e, APIConnectionError) else UserError
                raise error(f"cannot read market caps from {self._host}: {reason}", _HINT) from e


class _UnreachableError(UserError):
    """No answer at all, after every try: further questions would wait as long for nothing."""


_RETRIES: Final = 5
_CATEGORIES: Final = {
    "stablecoins": "stablecoin",
    "wrapped-tokens": "wrapped, staked or bridged duplicate",
    "liquid-staking-tokens": "wrapped, staked or bridged duplicate",
    "bridged-tokens": "wrapped, staked or bridged duplicate",
    "tokenized-gold": "gold token",
}
"""CoinGecko's categories of coins that are no bet of their own. Source: ``/coins/categories/list``."""
_HINT: Final = "check the network, or rank by turnover with --set universe.market_cap_source=volume"


def _coin(row: Any, category: str = "") -> Coin:
    return Coin(
        coin_id=str(row.id),
        symbol=str(row.symbol).upper(),
        name=str(row.name),
        price=_number(row.current_price),
        market_cap=_number(row.market_cap),
        high_24h=_number(row.high_24h),
        low_24h=_number(row.low_24h),
        category=category,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
