"""CoinGecko's coin list and market caps, from the market behind the embedded exchange.

Real clients of CoinGecko can be pointed here, so that the universe is chosen by the same code path offline. Only coins the
market knows are listed; fields it does not know are null, as CoinGecko itself may answer.
Source: CoinGecko API v3, ``/coins/list``, ``/coins/markets`` and ``/coins/{id}/market_chart/range``.
"""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MS, NS_PER_S, iso
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.wire import Call, Row
from crypto_qlib.exchange.gateway import PriceKind

_MAX_PER_PAGE: Final = 250
_DEFAULT_PER_PAGE: Final = 100
_UNKNOWN: Final[dict[str, Any]] = dict.fromkeys(
    (
        "fully_diluted_valuation", "price_change_24h", "price_change_percentage_24h", "market_cap_change_24h",
        "market_cap_change_percentage_24h", "total_supply", "max_supply", "ath", "ath_change_percentage", "ath_date", "atl",
        "atl_change_percentage", "atl_date", "roi",
    )
)  # fmt: skip
_NAMES: Final = {"BTC": "bitcoin", "ETH": "ethereum", "SOL": "solana", "BNB": "binancecoin", "XRP": "ripple",
                 "DOGE": "dogecoin", "ADA": "cardano", "TRX": "tron", "LTC": "litecoin"}  # fmt: skip
"""CoinGecko ids of coins that are not simply their ticker."""


class CoinGeckoApi:
    """Handlers of the CoinGecko endpoints; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        The market at the server's time.
    """

    def __init__(self, window: MarketWindow) -> None:
        self._window = window
        self._caps_by_day: dict[int, dict[str, float]] = {}

    def ping(self, _call: Call) -> bytes:
        """Answer ``/ping``."""
        return orjson.dumps({"gecko_says": "(V3) To the Moon!"})

    def coins_list(self, _call: Call) -> bytes:
        """Answer ``/coins/list``."""
        coins = sorted(item.base for item in (*self._window.listed(), *self._window.delisted()))
        return orjson.dumps([{"id": coin_id(coin), "symbol": coin.lower(), "name": coin} for coin in coins])

    def coins_markets(self, call: Call) -> bytes:
        """Answer ``/coins/markets``: by market cap, largest first (ties by name), paged."""
        if call.query.get("category"):  # the market behind the server knows of no categories
            return orjson.dumps([])
        caps = self._window.source.market_caps(self._window.clock.market_ns)
        ranked = sorted(((coin, cap) for coin, cap in caps.items() if cap > 0.0), key=lambda pair: (-pair[1], pair[0]))
        rows = [self._row(coin, cap, rank) for rank, (coin, cap) in enumerate(ranked, start=1)]
        for key, field in (("ids", "id"), ("symbols", "symbol")):
            if call.query.get(key):
                wanted = set(call.query[key].lower().split(","))
                rows = [row for row in rows if row[field] in wanted]
        per_page = min(call.whole("per_page") or _DEFAULT_PER_PAGE, _MAX_PER_PAGE)
        first = ((call.whole("page") or 1) - 1) * per_page
        return orjson.dumps(rows[first : first + per_page])

    def market_chart(self, call: Call) -> bytes:
        """Answer ``/coins/{id}/market_chart/range``: one point a UTC day, as known at its midnight."""
        wanted = call.query.get("id", "")
        first = -(-(call.whole("from") or 0) * NS_PER_S // NS_PER_DAY) * NS_PER_DAY
        stop = min((call.whole("to") or 0) * NS_PER_S, self._window.clock.market_ns)
        item = next((i for i in (*self._window.listed(), *self._window.delisted()) if coin_id(i.base) == wanted), None)
        if item is None:
            return orjson.dumps({"error": "coin not found"})
        answer: dict[str, list[list[float]]] = {"prices": [], "market_caps": [], "total_volumes": []}
        first = max(first, self._window.source.start_ns // NS_PER_DAY * NS_PER_DAY)
        step_ns = self._window.clock.step_ns
        bars = self._window.source.bars(item.symbol, step_ns, first - step_ns, stop)
        price_at = dict(zip((bars.ts_open + step_ns).tolist(), bars.close.tolist(), strict=True))
        for day in range(first, stop + 1, NS_PER_DAY):
            cap = self._caps_at(day).get(item.base)
            if cap is not None and day in price_at:
                answer["prices"].append([day // NS_PER_MS, price_at[day]])
                answer["market_caps"].append([day // NS_PER_MS, cap])
        return orjson.dumps(answer)

    def _caps_at(self, day: int) -> dict[str, float]:
        if day not in self._caps_by_day:
            self._caps_by_day[day] = self._window.source.market_caps(day)
        return self._caps_by_day[day]

    def _row(self, coin: str, cap: float, rank: int) -> Row:
        row: Row = {"id": coin_id(coin), "symbol": coin.lower(), "name": coin, "image": "", "market_cap": cap}
        row |= {"market_cap_rank": rank, "current_price": None, "total_volume": None, "high_24h": None, "low_24h": None}
        row |= {"circulating_supply": None, "last_updated": iso(self._window.clock.now_ns())}
        swap = next((item for item in self._window.listed() if item.base == coin), None)
        if swap is not None:
            day = self._window.day_stats(swap.symbol)
            price = self._window.price(PriceKind.LAST, swap.symbol)
            if not math.isnan(price):
                row |= {"current_price": price, "total_volume": day.quote_volume, "high_24h": day.high, "low_24h": day.low}
                row["circulating_supply"] = cap / price
        return row | _UNKNOWN


def coin_id(coin: str) -> str:
    """Return the CoinGecko id of a base coin."""
    return _NAMES.get(coin, coin.lower())
