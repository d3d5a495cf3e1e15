"""Social heat: how often people read a coin's article on the English Wikipedia, by day.

Chosen because it needs no key, its data are in the public domain (CC0), its terms allow automated reading by a client that says
who it is, its history goes back to July 2015, and views of robots are left out by Wikimedia itself. Posts of X, Reddit and
Telegram are barred to free automated reading by their terms.
A day's views are published within the next day; they count here from the end of that day.
Source: https://doc.wikimedia.org/generated-data-platform/aqs/analytics-api/ (page views, access policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, Field

from crypto_qlib.core.clock import NS_PER_DAY, iso, parse_utc
from crypto_qlib.core.errors import DoNotRetry, SkipCycle
from crypto_qlib.data_collector.external_catalogue import WIKIMEDIA
from crypto_qlib.data_collector.sources.source import Answer, Answers, Ask
from crypto_qlib.data_collector.sources.web import WebApi

URL: Final = "https://wikimedia.org/api/rest_v1"
ARTICLES: Final = {
    "BTC": "Bitcoin",
    "ETH": "Ethereum",
    "XRP": "XRP_Ledger",
    "SOL": "Solana_(blockchain_platform)",
    "DOGE": "Dogecoin",
    "ADA": "Cardano_(blockchain_platform)",
    "BNB": "Binance",
    "TRX": "Tron_(blockchain)",
    "LTC": "Litecoin",
    "BCH": "Bitcoin_Cash",
    "ETC": "Ethereum_Classic",
    "DOT": "Polkadot_(blockchain_platform)",
    "AVAX": "Avalanche_(blockchain_platform)",
    "SHIB": "Shiba_Inu_(cryptocurrency)",
    "XLM": "Stellar_(payment_network)",
    "XTZ": "Tezos",
    "ZEC": "Zcash",
    "DASH": "Dash_(cryptocurrency)",
    "UNI": "Uniswap",
}
"""Article by coin; a coin without an article of its own has no page views."""
PUBLISHED_AFTER_NS: Final = 2 * NS_PER_DAY
FIRST_DAY_NS: Final = parse_utc("2015-07-01")
SERIES: Final = "pageviews"
_NOT_FOUND: Final = "404"


def _notes(without: Sequence[str], missing: Sequence[str]) -> tuple[str, ...]:
    """Return what a reader should know: coins of which nothing is read, shortly, and articles that failed, each."""
    shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")  # noqa: PLR2004 - as many as fit beside the rest
    listed = (f"no Wikipedia article is read of {shown} ({len(without)})",) if without else ()
    return (*listed, f"no page views of {', '.join(missing)}") if missing else listed


class _Item(BaseModel):
    timestamp: str = Field(pattern=r"^\d{10}$")
    views: int = Field(ge=0)


class _Page(BaseModel):
    items: list[_Item]


class PageViews:
    """Wikimedia's page views; ``base_url`` and ``timeout_s`` as in ``WebApi``."""

    name: Final = WIKIMEDIA
    terms: Final = "Wikimedia page views, CC0"

    def __init__(self, base_url: str = "", timeout_s: float = 20.0) -> None:
        self._url = base_url or URL
        self._timeout_s = timeout_s

    def fetch(self, ask: Ask) -> Answers:
        """Return whole days of every coin that has an article; one request a coin, one after the other."""
        answers: list[Answer] = []
        without = [coin for coin in ask.coins if coin not in ARTICLES]
        missing: list[str] = []
        with WebApi(self._url, self._timeout_s) as api:
            for coin in ask.coins:
                if coin in ARTICLES:
                    answer = self._of_coin(api, coin, ask)
                    answers += [answer] if answer is not None else []
                    missing += [coin] if answer is None else []
        if not answers:
            raise SkipCycle(f"{api.host} gave no page views of {', '.join(ask.coins[:5]) or 'no coin'}")
        return Answers(tuple(answers), _notes(without, missing))

    def _of_coin(self, api: WebApi, coin: str, ask: Ask) -> Answer | None:
        since = max(ask.since_ns(SERIES, coin), FIRST_DAY_NS)
        first, last = (iso(t)[:10].replace("-", "") + "00" for t in (since, max(ask.now_ns - NS_PER_DAY, since)))
        where = "/metrics/pageviews/per-article/en.wikipedia/all-access/user"
        try:
            page = api.get(f"{where}/{quote(ARTICLES[coin], safe='')}/daily/{first}/{last}", {}, _Page)
        except DoNotRetry as e:
            if e.code == _NOT_FOUND:  # the answer for an article, or a span, nobody has read
                return None
            raise
        stamps = ((parse_utc(f"{i.timestamp[:4]}-{i.timestamp[4:6]}-{i.timestamp[6:8]}"), i.views) for i in page.items)
        days = {day: views for day, views in stamps if day + NS_PER_DAY <= ask.now_ns}
        if not days:
            return None
        event = np.array(sorted(days), np.int64)
        return Answer(SERIES, coin, event, np.array([float(days[int(d)]) for d in event]), event + PUBLISHED_AFTER_NS)
