"""Crypto Fear & Greed index of alternative.me: one value a UTC day, 0 (fear) to 100 (greed).

Values come as strings, newest first, stamped 00:00 UTC of their day. The value stamped D 00:00 was not there at 23:11 of the
day before, was there at 00:43, and did not change within the day.
Source: https://alternative.me/crypto/fear-and-greed-index/#api, and the times of recorded answers.
"""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, Field

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MINUTE, NS_PER_S
from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.data_collector.external_catalogue import ALTERNATIVE_ME
from crypto_qlib.data_collector.sources.source import Answer, Answers, Ask
from crypto_qlib.data_collector.sources.web import WebApi
from crypto_qlib.store.series_store import MARKET

URL: Final = "https://api.alternative.me"
PUBLISHED_AFTER_NS: Final = 45 * NS_PER_MINUTE
SERIES: Final = "fear_greed"


class _Item(BaseModel):
    value: Annotated[float, Field(ge=0, le=100)]
    timestamp: int


class _Metadata(BaseModel):
    error: str | None = None


class _Page(BaseModel):
    data: list[_Item]
    metadata: _Metadata = _Metadata()


class FearGreed:
    """The index; ``base_url`` and ``timeout_s`` as in :class:`~crypto_qlib.data_collector.sources.web.WebApi`."""

    name: Final = ALTERNATIVE_ME
    terms: Final = "Fear & Greed index of alternative.me; any use with attribution"

    def __init__(self, base_url: str = "", timeout_s: float = 20.0) -> None:
        self._url = base_url or URL
        self._timeout_s = timeout_s

    def fetch(self, ask: Ask) -> Answers:
        """Return the days from ``since_ns`` on."""
        days = (ask.now_ns - ask.since_ns(SERIES, MARKET)) // NS_PER_DAY + 2
        with WebApi(self._url, self._timeout_s) as api:
            page = api.get("/fng/", {"limit": max(days, 1)}, _Page)
        if page.metadata.error:
            raise SkipCycle(f"{api.host}: {page.metadata.error}")
        items = {item.timestamp * NS_PER_S: item.value for item in page.data if item.timestamp * NS_PER_S <= ask.now_ns}
        if not items:
            raise SkipCycle(f"{api.host} gave no value of the Fear & Greed index")
        event = np.array(sorted(items), np.int64)
        value = np.array([items[int(e)] for e in event])
        return Answers((Answer(SERIES, MARKET, event, value, event + PUBLISHED_AFTER_NS),))
