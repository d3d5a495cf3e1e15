"""On-chain activity and whale holdings from Coin Metrics' community API.

A value covers the UTC day it is stamped with and is known only after that day: from ``AssetEODCompletionTime`` where the answer
has it, else from eight hours after midnight. Numbers come as text. Metrics and coins the community tier does not serve are left
out by the API when told to. Their official client pins a pandas that Qlib cannot live with, so the API is asked directly.
Terms: CC BY-NC 4.0, no commercial use. Limit: 10 requests in 6 seconds an address.
Source: https://docs.coinmetrics.io/api/v4 ``/timeseries/asset-metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_S, iso, parse_utc
from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.data_collector.external_catalogue import COINMETRICS
from crypto_qlib.data_collector.sources.source import Answer, Answers, Ask
from crypto_qlib.data_collector.sources.web import WebApi

URL: Final = "https://community-api.coinmetrics.io/v4"
METRICS: Final = {
    "AdrActCnt": "active_addresses",
    "TxCnt": "tx_count",
    "TxTfrCnt": "transfer_count",
    "TxTfrValAdjUSD": "transfer_value_usd",
    "FeeTotUSD": "fees_usd",
    "CapMVRVCur": "mvrv",
    "NVTAdj": "nvt",
    "AdrBalUSD1MCnt": "whale_addresses",
    "SplyAdrBalUSD1M": "whale_supply",
    "SplyCur": "supply",
    "FlowInExUSD": "exchange_inflow_usd",
    "FlowOutExUSD": "exchange_outflow_usd",
}
"""Our series by Coin Metrics' metric."""
COMPLETE_AFTER_NS: Final = 8 * NS_PER_HOUR
_COMPLETED: Final = "AssetEODCompletionTime"
_PAUSE_S: Final = 0.6
_ROWS_PER_PAGE: Final = 10_000
_MAX_PAGES: Final = 1000


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")
    asset: str
    time: str


class _Page(BaseModel):
    data: list[_Row]
    next_page_token: str | None = None
    next_page_url: str | None = None


class OnChain:
    """Coin Metrics' community API; ``base_url`` and ``timeout_s`` as in ``WebApi``."""

    name: Final = COINMETRICS
    terms: Final = "Coin Metrics community data, CC BY-NC 4.0: not for commercial use"

    def __init__(self, base_url: str = "", timeout_s: float = 30.0, pause_s: float = _PAUSE_S) -> None:
        self._url = base_url or URL
        self._timeout_s = timeout_s
        self._pause_s = pause_s

    def fetch(self, ask: Ask) -> Answers:
        """Return whole days of every coin the community tier knows."""
        since = min((ask.since_ns("active_addresses", coin) for coin in ask.coins), default=ask.now_ns)
        with WebApi(self._url, self._timeout_s, self._pause_s) as api:
            rows = [row for row in self._rows(api, ask.coins, since) if day_of(row) + NS_PER_DAY <= ask.now_ns]
        if not rows:
            raise SkipCycle(f"{api.host} gave no on-chain data of {', '.join(ask.coins[:5]) or 'no coin'}")
        answers = tuple(a for coin in ask.coins for a in answers_of(coin, [r for r in rows if r.asset.upper() == coin]))
        absent = [c for c in ask.coins if c not in {a.symbol for a in answers}]
        notes = (f"{api.host} has no on-chain data of {', '.join(absent)}",) if absent else ()
        return Answers(answers, notes)

    def _rows(self, api: WebApi, coins: Sequence[str], since_ns: int) -> Iterator[_Row]:
        params: dict[str, Any] = {
            "assets": ",".join(c.lower() for c in coins),
            "metrics": ",".join((*METRICS, _COMPLETED)),
            "frequency": "1d",
            "start_time": iso(since_ns)[:10],
            "page_size": _ROWS_PER_PAGE,
            "paging_from": "start",
            "ignore_forbidden_errors": "true",
            "ignore_unsupported_errors": "true",
        }
        for _ in range(_MAX_PAGES):
            page = api.get("/timeseries/asset-metrics", params, _Page)
            yield from page.data
            token = page.next_page_token or _token_of(page.next_page_url)
            if not token or params.get("next_page_token") == token:
                return
            params = {**params, "next_page_token": token}


def _token_of(url: str | None) -> str:
    return parse_qs(urlsplit(url).query).get("next_page_token", [""])[0] if url else ""


def day_of(row: _Row) -> int:
    """Return the start of the day ``row`` covers, ns.

    Raises
    ------
    SkipCycle
        If the time is none.
    """
    try:
        return parse_utc(row.time[:19])
    except ValueError as e:
        raise SkipCycle(f"Coin Metrics has changed its answer: time: {row.time!r}") from e


def answers_of(coin: str, rows: Sequence[_Row]) -> Iterator[Answer]:
    """Yield one answer for each metric ``rows`` of ``coin`` have numbers of."""
    by_day = {day_of(row): row.model_extra or {} for row in rows}
    for metric, series in METRICS.items():
        values = {day: _number(found.get(metric)) for day, found in by_day.items()}
        days = sorted(day for day, value in values.items() if np.isfinite(value))
        if days:
            event = np.array(days, np.int64)
            known = np.array([_completed_ns(day, by_day[day]) for day in days], np.int64)
            yield Answer(series, coin, event, np.array([values[day] for day in days]), known)


def _completed_ns(day_ns: int, found: dict[str, Any]) -> int:
    completed = _number(found.get(_COMPLETED))
    end = day_ns + NS_PER_DAY
    # A time before the day's end cannot be the completion of that day.
    return max(int(completed) * NS_PER_S, end) if np.isfinite(completed) else end + COMPLETE_AFTER_NS


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, str | int | float) else float("nan")
    except ValueError:
        return float("nan")
