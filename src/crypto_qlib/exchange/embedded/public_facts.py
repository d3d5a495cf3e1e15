"""What has to be known of OKX's market before it can be served: its swaps, their tiers, how liquid they are, its clock.

Read once, over REST; kept with the exchange's state, so that accounts are simulated by the same contracts after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
import numpy as np
import orjson

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MS, Clock
from crypto_qlib.core.errors import CryptoQlibError, RetryLater
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.exchange.okx_parsing import is_usdt_swap

OKX_REST: Final = "https://www.okx.com"
OKX_SOCKETS: Final = "wss://ws.okx.com:8443/ws/v5"
"""Source: OKX API v5, "Production trading services"."""
_FAMILIES_A_CALL: Final = 5
_DAYS: Final = 31
_BPS: Final = 1e4
_PAUSE_S: Final = 0.11
"""Between two questions of one kind: OKX answers twenty in two seconds."""


@dataclass(frozen=True, slots=True)
class PublicFacts:
    """The swaps served, as OKX describes them.

    Parameters
    ----------
    instruments : list of dict
        Rows of ``public/instruments``, the most traded first.
    tiers : dict
        Instrument id -> rows of ``public/position-tiers``.
    figures : dict
        Instrument id -> (median daily turnover in USDT, daily volatility in basis points) of the last month.
    funding_hours : dict
        Instrument id -> hours between two settlements.
    """

    instruments: list[Row]
    tiers: dict[str, list[Row]]
    figures: dict[str, tuple[float, float]]
    funding_hours: dict[str, int]

    def dump(self) -> str:
        """Return the facts as text for :meth:`load`."""
        return orjson.dumps(asdict(self)).decode()

    @staticmethod
    def load(text: str) -> PublicFacts:
        """Return the facts of :meth:`dump`."""
        return PublicFacts(**orjson.loads(text))


class PublicRest:
    """Ask OKX's public REST endpoints; opened and closed with ``async with``.

    Parameters
    ----------
    url : str
        ``http(s)://host:port``; empty = OKX.
    timeout_s : float
        Time limit of one request.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url or OKX_REST
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def raw(self, target: str) -> tuple[int, bytes]:
        """Return (status, body) of GET ``target``, a path with its query.

        Raises
        ------
        RetryLater
            If no answer came.
        """
        assert self._http is not None
        try:
            async with self._http.get(f"{self.url}{target}") as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as e:
            reason = str(e) or type(e).__name__
            raise RetryLater(
                f"OKX's public data cannot be reached at {self.url}: {reason}",
                "check the network and exchange.okx_url, or choose exchange.market=simulated",
            ) from e

    async def rows(self, path: str, **query: str) -> list[Any]:
        """Return the rows of GET ``/api/v5/PATH``.

        Raises
        ------
        RetryLater
            If no answer came, or one that is no data.
        """
        status, body = await self.raw(f"/api/v5/{path}?{urlencode(query)}")
        try:
            answer = orjson.loads(body)
            if str(answer["code"]) == "0":
                return list(answer["data"])
            why = f"{answer['code']} {answer.get('msg', '')}".strip()
        except (orjson.JSONDecodeError, KeyError, TypeError):
            why = f"HTTP {status}, no JSON"
        raise RetryLater(f"{self.url} does not answer {path} as OKX does: {why}", "is exchange.okx_url right?")


async def read_facts(rest: PublicRest, most: int) -> PublicFacts:
    """Return the facts of the ``most`` most traded USDT swaps.

    Raises
    ------
    CryptoQlibError
        If OKX cannot be reached or lists no USDT swap.
    """
    listed = {str(row["instId"]): row for row in await rest.rows("public/instruments", instType="SWAP") if is_usdt_swap(row)}
    live = {name for name, row in listed.items() if row.get("state") == "live"}
    ranked = sorted(await rest.rows("market/tickers", instType="SWAP"), key=_turnover, reverse=True)
    names = [str(row["instId"]) for row in ranked if row["instId"] in live][:most]
    if not names:
        raise CryptoQlibError(f"{rest.url} lists no USDT swap that trades")
    tiers: dict[str, list[Row]] = {}
    for k in range(0, len(names), _FAMILIES_A_CALL):
        families = ",".join(name.removesuffix("-SWAP") for name in names[k : k + _FAMILIES_A_CALL])
        for row in await rest.rows("public/position-tiers", instType="SWAP", tdMode="cross", instFamily=families):
            tiers.setdefault(f"{row['instFamily']}-SWAP", []).append(row)
        await asyncio.sleep(2 * _PAUSE_S)
    figures = {}
    for name in names:
        figures[name] = _figures(await rest.rows("market/candles", instId=name, bar="1Dutc", limit=str(_DAYS)))
        await asyncio.sleep(_PAUSE_S / 2)
    spans = {str(row["instId"]): _hours(row) for row in await rest.rows("public/funding-rate", instId="ANY")}
    names = [name for name in names if name in tiers]
    return PublicFacts([listed[name] for name in names], tiers, figures, {name: spans.get(name, 8) for name in names})


async def clock_offset_ns(rest: PublicRest, wall: Clock) -> int:
    """Return how far OKX's clock is ahead of this machine's, nanoseconds."""
    before = wall.now_ns()
    theirs = int((await rest.rows("public/time"))[0]["ts"]) * NS_PER_MS
    return theirs - (before + wall.now_ns()) // 2


def _turnover(row: Mapping[str, str]) -> float:
    return float(row.get("volCcy24h") or 0.0) * float(row.get("last") or 0.0)


def _figures(rows: list[list[str]]) -> tuple[float, float]:
    """Return (median turnover, volatility in basis points) of the closed days in ``rows``; 0.0 where unknown."""
    closed = [row for row in rows if row[-1] == "1"]
    if not closed:
        return 0.0, 0.0
    closes = np.array([float(row[4]) for row in closed][::-1])
    moves = np.diff(np.log(closes))
    sigma = float(np.sqrt(np.mean(moves**2))) * _BPS if moves.size else 0.0
    return float(np.median([float(row[7] or 0.0) for row in closed])), sigma


def _hours(row: Mapping[str, str]) -> int:
    span_ms = int(row.get("nextFundingTime") or 0) - int(row.get("fundingTime") or 0)
    return max(span_ms // (NS_PER_HOUR // NS_PER_MS), 1) if span_ms > 0 else 8
