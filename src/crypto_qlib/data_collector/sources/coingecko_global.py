"""Total market cap and dominance from CoinGecko's ``/global``, through the official client.

The free API has no history of these: each answer is one snapshot, so they are recorded from the first day on and known from
the moment they were seen.
Source: CoinGecko API v3 ``/global``; ``market_cap_percentage`` is in per cent, ``updated_at`` in seconds.
"""

from __future__ import annotations

import math
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from coingecko_sdk import Coingecko, CoingeckoError, DefaultHttpxClient, Omit

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.core.errors import RetryLater, SkipCycle
from crypto_qlib.data_collector.external_catalogue import COINGECKO
from crypto_qlib.data_collector.market_caps import COINGECKO_URL
from crypto_qlib.data_collector.sources.source import Answer, Answers, Ask
from crypto_qlib.store.series_store import MARKET

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_PER_CENT: Final = 0.01


class GlobalMarket:
    """CoinGecko's view of the whole market.

    Parameters
    ----------
    base_url : str
        API root; empty = CoinGecko itself.
    api_key : str
        Demo key, or pro key where ``base_url`` is the pro host; empty = none.
    timeout_s : float
        Time limit of one request, seconds.
    """

    name: Final = COINGECKO
    terms: Final = "CoinGecko; free for personal use with attribution"

    def __init__(self, base_url: str = "", api_key: str = "", timeout_s: float = 20.0) -> None:
        self._url = base_url or COINGECKO_URL
        self._host = urlsplit(self._url).hostname or self._url
        self._api_key = api_key
        self._timeout_s = timeout_s

    def fetch(self, ask: Ask) -> Answers:
        """Return one snapshot."""
        data = self._data()
        caps, shares, volumes = (_mapping(data, name) for name in ("total_market_cap", "market_cap_percentage", "total_volume"))
        updated = getattr(data, "updated_at", None)
        event_ns = min(int(updated) * NS_PER_S, ask.now_ns) if isinstance(updated, int | float) else ask.now_ns
        values = {
            "total_market_cap": _number(caps.get("usd")),
            "total_volume_24h": _number(volumes.get("usd")),
            "btc_dominance": _number(shares.get("btc")) * _PER_CENT,
            "eth_dominance": _number(shares.get("eth")) * _PER_CENT,
        }
        known = {name: value for name, value in values.items() if math.isfinite(value) and value > 0.0}
        if not known:
            raise SkipCycle(f"{self._host} has changed its answer: /global names no market cap and no dominance")
        event, now = np.array([event_ns], np.int64), np.array([ask.now_ns], np.int64)
        notes = tuple(f"{self._host}: /global has no {name}" for name in values if name not in known)
        return Answers(tuple(Answer(n, MARKET, event, np.array([v]), now) for n, v in known.items()), notes)

    def _data(self) -> Any:
        is_pro = self._host.startswith("pro-")
        # Empty strings keep the client from reading keys out of the environment behind our back.
        pro, demo = (self._api_key, "") if is_pro else ("", self._api_key)
        headers = {name: Omit() for name, key in (("x-cg-pro-api-key", pro), ("x-cg-demo-api-key", demo)) if not key}
        web = DefaultHttpxClient(trust_env=self._host not in _LOOPBACK)
        with Coingecko(
            base_url=self._url, pro_api_key=pro, demo_api_key=demo, timeout=self._timeout_s, http_client=web
        ) as client:
            try:
                answer: Any = client.global_.get(extra_headers=headers)
            except CoingeckoError as e:
                reason = str(e.__cause__ or e).splitlines()[0] if str(e.__cause__ or e) else type(e).__name__
                raise RetryLater(f"{self._host} does not answer: {reason}", retry_after_s=60.0) from e
            except ValueError as e:
                raise SkipCycle(f"{self._host} answered with something else than JSON") from e
        data = getattr(answer, "data", None)
        if data is None:
            raise SkipCycle(f"{self._host} has changed its answer: /global has no data")
        return data


def _mapping(data: Any, name: str) -> dict[str, Any]:
    found = getattr(data, name, None)
    if isinstance(found, dict):
        return found
    dumped: Any = getattr(found, "model_dump", dict)()
    return dumped if isinstance(dumped, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
