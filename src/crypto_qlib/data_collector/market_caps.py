"""Coins by market cap, from CoinGecko through its official client.

Source: CoinGecko API v3 ``/coins/markets`` (at most 250 coins a page; any numeric field may be null). The free API needs no
key; a demo key goes to the same host, a pro key to ``pro-api.coingecko.com``. 429 and ``Retry-After``
are honoured by the client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from coingecko_sdk import AsyncCoingecko, CoingeckoError, DefaultAsyncHttpxClient, Omit

from crypto_qlib.core.errors import UserError

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
    """

    coin_id: str
    symbol: str
    name: str
    price: float
    market_cap: float
    high_24h: float = math.nan
    low_24h: float = math.nan


class CoinRanking(Protocol):
    """Serve coins by market cap, largest first."""

    @property
    def source(self) -> str:
        """Name the source, for reports."""
        ...

    async def page(self, number: int) -> Sequence[Coin]:
        """Return page ``number`` (from 1) of at most 250 coins; a shorter page is the last one.

        Raises
        ------
        UserError
            If the source cannot be reached or answers with something else.
        """
        ...


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

    def __init__(self, base_url: str = "", api_key: str = "", timeout_s: float = 20.0) -> None:
        self._url = base_url or COINGECKO_URL
        self._host = urlsplit(self._url).hostname or self._url
        self._api_key = api_key
        self._timeout_s = timeout_s

    @property
    def source(self) -> str:
        """Name the host asked."""
        return "the embedded exchange's market caps" if self._host in _LOOPBACK else f"CoinGecko ({self._host})"

    async def page(self, number: int) -> Sequence[Coin]:
        """Return page ``number`` of the ranking, see :class:`CoinRanking`."""
        is_pro = self._host.startswith("pro-")
        # Empty strings keep the client from reading keys out of the environment behind our back.
        pro, demo = (self._api_key, "") if is_pro else ("", self._api_key)
        headers = {name: Omit() for name, key in (("x-cg-pro-api-key", pro), ("x-cg-demo-api-key", demo)) if not key}
        web = DefaultAsyncHttpxClient(trust_env=self._host not in _LOOPBACK)
        async with AsyncCoingecko(
            base_url=self._url, pro_api_key=pro, demo_api_key=demo, timeout=self._timeout_s, http_client=web
        ) as client:
            try:
                rows: Any = await client.coins.markets.get(
                    vs_currency="usd", order="market_cap_desc", per_page=COINS_PER_PAGE, page=number, extra_headers=headers
                )
            except CoingeckoError as e:
                reason = str(e.__cause__ or e).splitlines()[0]
                raise UserError(f"cannot read market caps from {self._host}: {reason}", _HINT) from e
        if not isinstance(rows, list):
            raise UserError(f"cannot read market caps from {self._host}: the answer is no list of coins", _HINT)
        return [_coin(row) for row in rows]


_HINT: Final = "check the network, or rank by turnover with --set universe.market_cap_source=volume"


def _coin(row: Any) -> Coin:
    return Coin(
        coin_id=str(row.id),
        symbol=str(row.symbol).upper(),
        name=str(row.name),
        price=_number(row.current_price),
        market_cap=_number(row.market_cap),
        high_24h=_number(row.high_24h),
        low_24h=_number(row.low_24h),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
