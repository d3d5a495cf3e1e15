"""Coins by market cap from CoinMarketCap: the second source.

Source: CoinMarketCap API v1, ``GET /cryptocurrency/listings/latest`` (newest) and ``/cryptocurrency/listings/historical``
(whole past rankings, dead coins included; paid plans). A key is needed (``COINMARKETCAP_API_KEY``), sent as header
``X-CMC_PRO_API_KEY``. Errors come with ``status.error_code`` and HTTP 4xx; 1008 and HTTP 429 are the per-minute limit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from crypto_qlib.core.clock import NS_PER_DAY, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.market_caps import COINS_PER_PAGE, Coin

COINMARKETCAP_URL: Final = "https://pro-api.coinmarketcap.com/v1"
_HINT: Final = "check COINMARKETCAP_API_KEY and the network, or choose another universe.market_cap_source"
_TRIES: Final = 4
_TOO_MANY: Final = 429
_PAUSE_S: Final = 2.0
_TAGS: Final = {
    "stablecoin": "stablecoin",
    "wrapped-tokens": "wrapped, staked or bridged duplicate",
    "liquid-staking-derivatives": "wrapped, staked or bridged duplicate",
    "tokenized-gold": "gold token",
    "tokenized-silver": "gold token",
}
"""CoinMarketCap's tags of coins that are no bet of their own."""


class CoinMarketCapRanking:
    """CoinMarketCap, or a server that speaks its protocol.

    Parameters
    ----------
    api_key : str
        Key; required by CoinMarketCap.
    base_url : str
        API root; empty = CoinMarketCap itself.
    timeout_s : float
        Time limit of one request, seconds.
    pause_s : float
        First pause after a refusal for too many requests; it doubles each time.
    """

    name: Final = "coinmarketcap"

    def __init__(self, api_key: str, base_url: str = "", timeout_s: float = 20.0, pause_s: float = _PAUSE_S) -> None:
        self._url = base_url or COINMARKETCAP_URL
        self._host = urlsplit(self._url).hostname or self._url
        self._headers = {"X-CMC_PRO_API_KEY": api_key, "Accept": "application/json"}
        self._timeout_s = timeout_s
        self._pause_s = pause_s

    @property
    def source(self) -> str:
        """Name the host asked."""
        return f"CoinMarketCap ({self._host})"

    async def page(self, number: int) -> Sequence[Coin]:
        """Return page ``number`` of the newest ranking, see :class:`~crypto_qlib.data_collector.market_caps.CoinRanking`."""
        query = {"start": str((number - 1) * COINS_PER_PAGE + 1), "limit": str(COINS_PER_PAGE), "convert": "USD"}
        return [_coin(row) for row in await self._rows("listings/latest", query)]

    async def ranking_at(self, day_ns: int) -> tuple[int, Sequence[Coin]]:
        """Return (instant from which it was known, coins) of the ranking at the end of the UTC day of ``day_ns``."""
        day = day_ns - day_ns % NS_PER_DAY
        query = {"date": iso(day)[:10], "limit": str(COINS_PER_PAGE), "convert": "USD"}
        return day + NS_PER_DAY, [_coin(row) for row in await self._rows("listings/historical", query)]

    async def _rows(self, path: str, query: Mapping[str, str]) -> list[Any]:
        async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s) as client:
            for attempt in range(_TRIES):
                try:
                    answer = await client.get(f"{self._url}/cryptocurrency/{path}", params=dict(query))
                except httpx.HTTPError as e:
                    raise UserError(f"cannot read market caps from {self._host}: {type(e).__name__}", _HINT) from e
                if answer.status_code != _TOO_MANY or attempt == _TRIES - 1:
                    break
                await asyncio.sleep(self._pause_s * 2**attempt)
        return self._parsed(answer)

    def _parsed(self, answer: httpx.Response) -> list[Any]:
        try:
            body = answer.json()
            status, data = body.get("status", {}), body.get("data")
        except (ValueError, AttributeError) as e:
            raise UserError(f"cannot read market caps from {self._host}: the answer is no JSON object", _HINT) from e
        if answer.is_error or status.get("error_code"):
            reason = status.get("error_message") or f"HTTP {answer.status_code}"
            raise UserError(f"cannot read market caps from {self._host}: {reason}", _HINT)
        if not isinstance(data, list):
            raise UserError(f"cannot read market caps from {self._host}: the answer is no list of coins", _HINT)
        return data


def _coin(row: Mapping[str, Any]) -> Coin:
    usd = row.get("quote", {}).get("USD", {})
    tags = (tag if isinstance(tag, str) else str(tag.get("slug", "")) for tag in row.get("tags") or ())
    category = next((_TAGS[t] for t in tags if t in _TAGS), "")
    return Coin(
        coin_id=str(row.get("slug") or row["id"]),
        symbol=str(row["symbol"]).upper(),
        name=str(row["name"]),
        price=_number(usd.get("price")),
        market_cap=_number(usd.get("market_cap")),
        category=category,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
