"""The world outside a simulated market: what the external sources would say of it, behind the APIs of the sources themselves.

::

    /fng/                                        alternative.me    fear and greed, from BTC against its month and its volatility
    /api/v3/global                               CoinGecko         sums over the market's own coins
    /v4/timeseries/asset-metrics                 Coin Metrics      activity in step with turnover, holdings in step with supply
    /api/rest_v1/metrics/pageviews/...           Wikimedia         readers in step with how far a price moved
    /v8/finance/chart/<ticker>                   Yahoo             a stock index that follows BTC by a quarter

Everything is **invented**, from the market's own past and noise that depends on the instant alone: a value never uses what
came after it, and is the same however often it is asked for. A value is served once its source would have published it. A
replayed or live market has no such world: next to real prices it would be a lie.
Source: recorded answers of the five APIs; paths and shapes as the clients of ``data_collector/sources`` read them.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, iso, parse_utc, utc
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.router import Endpoint
from crypto_qlib.exchange.embedded.wire import Call, WireRefusal

CHART, VIEWS = "/v8/finance/chart/*", "/api/rest_v1/metrics/pageviews/per-article/en.wikipedia/all-access/user/*"
_NEW_YORK: Final = ZoneInfo("America/New_York")
_FEAR_AFTER_NS: Final = 30 * NS_PER_MINUTE
_CHAIN_AFTER_NS: Final = 90 * NS_PER_MINUTE
_VIEWS_AFTER_NS: Final = 6 * NS_PER_HOUR
_STOCK_LEVEL: Final = {"QQQ": 500.0, "^NDX": 20_000.0, "NQ=F": 20_100.0}
_BETA: Final = 0.25
_MONTH: Final = 30
_COIN_OF_ARTICLE: Final = {
    "Bitcoin": "BTC", "Ethereum": "ETH", "XRP_Ledger": "XRP", "Solana_(blockchain_platform)": "SOL", "Dogecoin": "DOGE",
    "Cardano_(blockchain_platform)": "ADA", "Binance": "BNB", "Tron_(blockchain)": "TRX", "Litecoin": "LTC",
    "Bitcoin_Cash": "BCH", "Polkadot_(blockchain_platform)": "DOT", "Avalanche_(blockchain_platform)": "AVAX",
}  # fmt: skip


class OutsideWorld:
    """Handlers of the sources' endpoints; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        The simulated market at the server's time.
    """

    def __init__(self, window: MarketWindow) -> None:
        self._window = window
        self._symbol_of = {i.base: i.symbol for i in window.source.instruments()}

    def routes(self) -> dict[tuple[str, str], Endpoint]:
        """Return the paths served here."""
        return {
            ("GET", "/fng/"): Endpoint(self.fear_greed),
            ("GET", "/api/v3/global"): Endpoint(self.whole_market),
            ("GET", "/v4/timeseries/asset-metrics"): Endpoint(self.on_chain),
            ("GET", VIEWS): Endpoint(self.page_views),
            ("GET", CHART): Endpoint(self.stock_chart),
            ("GET", "/v1/test/getcrumb"): Endpoint(lambda _call: b"crumb"),
        }

    def fear_greed(self, call: Call) -> bytes:
        """Answer ``/fng/``: newest day first."""
        day, close, _ = self._days("BTC")
        mean = _trailing(close, _MONTH)
        moved = np.abs(np.diff(np.log(close), prepend=np.log(close[:1])))
        calm = _trailing(moved, _MONTH) - _trailing(moved, 7)
        score = np.clip(np.rint(50.0 + 250.0 * np.log(close / mean) + 800.0 * calm + 4.0 * _noise("fear", day)), 0, 100)
        stamps = day + NS_PER_DAY  # the index of a day is made of the days before it
        known = stamps + _FEAR_AFTER_NS <= self._now
        rows = [
            {"value": str(int(v)), "value_classification": "", "timestamp": str(t // NS_PER_S)}
            for t, v in zip(stamps[known].tolist(), score[known].tolist(), strict=True)
        ]
        limit = call.whole("limit")
        newest = rows[::-1] if limit == 0 else rows[::-1][: limit or 1]
        return orjson.dumps({"name": "Fear and Greed Index", "data": newest, "metadata": {"error": None}})

    def whole_market(self, _call: Call) -> bytes:
        """Answer ``/global``: sums over the listed coins."""
        caps = {coin: cap for coin, cap in self._window.source.market_caps(self._now).items() if cap > 0.0}
        total = sum(caps.values())
        turnover = sum(self._window.day_stats(item.symbol).quote_volume for item in self._window.listed())
        shares = {coin.lower(): 100.0 * cap / total for coin, cap in caps.items()} if total else {}
        data = {
            "active_cryptocurrencies": len(caps), "markets": 1, "total_market_cap": {"usd": total},
            "total_volume": {"usd": turnover}, "market_cap_percentage": shares, "updated_at": self._now // NS_PER_S,
        }  # fmt: skip
        return orjson.dumps({"data": data})

    def on_chain(self, call: Call) -> bytes:
        """Answer ``/timeseries/asset-metrics``: whole days of the coins the market knows, in pages."""
        start = _date(call.required("start_time"))
        rows = [row for coin in sorted(call.required("assets").upper().split(",")) for row in self._chain_rows(coin, start)]
        size, first = call.whole("page_size") or 100, call.whole("next_page_token") or 0
        page: dict[str, Any] = {"data": rows[first : first + size]}
        if first + size < len(rows):
            page["next_page_token"] = str(first + size)
        return orjson.dumps(page)

    def _chain_rows(self, coin: str, start_ns: int) -> list[dict[str, str]]:
        if coin not in self._symbol_of:
            return []
        day, close, quote = self._days(coin)
        if not day.size:
            return []
        supply = self._window.source.market_caps(int(day[0]) + NS_PER_DAY).get(coin, 0.0) / close[0]
        transferred = 0.4 * quote * np.exp(0.2 * _noise(f"{coin} transfers", day))
        moved = np.diff(np.log(close), prepend=np.log(close[:1]))
        active = np.rint(40.0 * np.sqrt(quote) * np.exp(0.1 * _noise(f"{coin} addresses", day)))
        columns = {
            "AdrActCnt": active, "TxCnt": np.rint(0.6 * active), "TxTfrCnt": np.rint(1.7 * active),
            "TxTfrValAdjUSD": transferred, "FeeTotUSD": 2e-5 * transferred, "CapMVRVCur": close / _trailing(close, 180),
            "NVTAdj": supply * close / transferred,
            "AdrBalUSD1MCnt": np.rint(1e-6 * supply * close * np.exp(0.02 * _noise(f"{coin} whales", day))),
            "SplyAdrBalUSD1M": 0.4 * supply * np.exp(0.01 * _noise(f"{coin} hoards", day)),
            "SplyCur": np.full(day.size, supply),
            "FlowInExUSD": 0.1 * transferred * np.exp(-2.0 * moved), "FlowOutExUSD": 0.1 * transferred * np.exp(2.0 * moved),
        }  # fmt: skip
        done = day + NS_PER_DAY + _CHAIN_AFTER_NS
        return [
            {
                "asset": coin.lower(),
                "time": f"{iso(int(day[k]))[:19]}.000000000Z",
                "AssetEODCompletionTime": str(done[k] // NS_PER_S),
            }
            | {name: f"{values[k]:.10g}" for name, values in columns.items()}
            for k in np.flatnonzero((day >= start_ns) & (done <= self._now)).tolist()
        ]

    def page_views(self, call: Call) -> bytes:
        """Answer the views of one article by day."""
        article, _, first, last = (*call.required("id").split("/"), "", "", "")[:4]
        coin = _COIN_OF_ARTICLE.get(article, "")
        if coin not in self._symbol_of:
            return orjson.dumps({"items": []})
        day, close, _ = self._days(coin)
        moved = np.abs(np.diff(np.log(close), prepend=np.log(close[:1])))
        views = np.rint(3000.0 * (1.0 + 20.0 * moved) * np.exp(0.1 * _noise(f"{coin} readers", day)))
        wanted = (day >= _date(first)) & (day <= _date(last)) & (day + NS_PER_DAY + _VIEWS_AFTER_NS <= self._now)
        items = [
            {
                "project": "en.wikipedia",
                "article": article,
                "timestamp": utc(int(day[k])).strftime("%Y%m%d00"),
                "views": int(views[k]),
            }
            for k in np.flatnonzero(wanted).tolist()
        ]
        return orjson.dumps({"items": items})

    def stock_chart(self, call: Call) -> bytes:
        """Answer a chart: hours of a US session with pre- and after-market (a future: every hour), or days."""
        ticker = call.required("id")
        if ticker not in _STOCK_LEVEL:
            raise WireRefusal("51001")
        is_daily = call.query.get("interval", "1d") == "1d"
        if call.query.get("range"):  # a look at the time zone, not at bars
            opens = closes = np.empty(0, np.int64)
        else:
            start = max((call.whole("period1") or 0) * NS_PER_S, self._window.source.start_ns)
            opens, closes = _stock_bars(start, self._now, is_daily=is_daily, is_future=ticker.endswith("=F"))
        return orjson.dumps(_chart(ticker, opens, self._stock_columns(ticker, opens, closes), is_daily=is_daily))

    def _stock_columns(self, ticker: str, opens: IntArray, closes: IntArray) -> dict[str, list[float]]:
        first, last = self._stock_level(ticker, opens), self._stock_level(ticker, closes)
        spread = 0.001 * np.abs(_noise(f"{ticker} range", opens))
        named = {"open": first, "close": last, "high": np.maximum(first, last) * (1.0 + spread)}
        named |= {
            "low": np.minimum(first, last) * (1.0 - spread),
            "volume": np.rint(1e6 * np.exp(0.3 * _noise("volume", opens))),
        }
        return {name: np.round(values, 4).tolist() for name, values in named.items()}

    def _stock_level(self, ticker: str, ts: IntArray) -> FloatArray:
        """Return the index at instants ``ts``: BTC's way since the beginning by a quarter, and a walk of its own."""
        begin = self._window.source.start_ns // NS_PER_HOUR * NS_PER_HOUR
        step = max(self._window.clock.step_ns, NS_PER_HOUR)
        bars = self._window.source.bars(self._symbol_of["BTC"], step, begin, self._now)
        if not ts.size or not len(bars):
            return np.full(ts.size, _STOCK_LEVEL[ticker])
        grid = np.arange(begin, self._now + NS_PER_HOUR, NS_PER_HOUR)
        walk = np.cumsum(0.0015 * _noise("stocks", grid))
        place = np.clip((ts - begin) // NS_PER_HOUR, 0, grid.size - 1)
        at = np.clip(np.searchsorted(bars.ts_open + step, ts, side="right") - 1, 0, len(bars) - 1)
        level: FloatArray = _STOCK_LEVEL[ticker] * np.exp(_BETA * np.log(bars.close[at] / bars.open[0]) + walk[place])
        return level

    @property
    def _now(self) -> int:
        return self._window.clock.market_ns

    def _days(self, coin: str) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return (starts, closes, turnover in USDT) of the whole days of a coin up to now."""
        first = -(-self._window.source.start_ns // NS_PER_DAY) * NS_PER_DAY
        stop = self._now // NS_PER_DAY * NS_PER_DAY
        bars = self._window.source.bars(self._symbol_of[coin], NS_PER_DAY, first, stop)
        return bars.ts_open, bars.close, np.where(np.isfinite(bars.quote_volume), bars.quote_volume, bars.volume * bars.close)


def _date(text: str) -> int:
    try:
        return parse_utc(text if "-" in text else f"{text[:4]}-{text[4:6]}-{text[6:8]}")
    except ValueError as e:
        raise WireRefusal("51000", "date") from e


def _trailing(values: FloatArray, n: int) -> FloatArray:
    """Return the mean of the last ``n`` values up to and with each (fewer at the beginning)."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - n, 0)
    mean: FloatArray = (sums[end] - sums[start]) / (end - start)
    return mean


def _noise(name: str, ts: IntArray) -> FloatArray:
    """Return a value near N(0, 1) for each instant, of ``name`` and the instant alone (splitmix64, three uniforms added)."""
    seed = zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 % 2**64
    x = (ts // NS_PER_MINUTE).astype(np.uint64) + np.uint64(seed)
    total = np.zeros(ts.size)
    for _ in range(3):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        z = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
    noise: FloatArray = 2.0 * (total - 1.5)
    return noise


def _stock_bars(start_ns: int, now_ns: int, *, is_daily: bool, is_future: bool) -> tuple[IntArray, IntArray]:
    """Return (opens, closes) of the bars that ended by ``now_ns``: Monday to Friday, holidays not left out."""
    opens: list[int] = []
    closes: list[int] = []
    date = utc(start_ns).astimezone(_NEW_YORK).date()
    last = utc(now_ns).astimezone(_NEW_YORK).date()
    while date <= last:
        if date.weekday() < 5:  # noqa: PLR2004 - Saturday
            for a, b in _sessions(is_daily=is_daily, is_future=is_future):
                begin, end = (
                    datetime(date.year, date.month, date.day, tzinfo=_NEW_YORK) + timedelta(minutes=m) for m in (a, b)
                )
                opens.append(int(begin.timestamp()) * NS_PER_S)
                closes.append(int(end.timestamp()) * NS_PER_S)
        date += timedelta(days=1)
    first, done = np.array(opens, np.int64), np.array(closes, np.int64)
    kept = (first >= start_ns) & (done <= now_ns)
    return first[kept], done[kept]


def _sessions(*, is_daily: bool, is_future: bool) -> list[tuple[int, int]]:
    """Return (begin, end) of a day's bars in minutes of New York's day; hours are cut at 9:30, as Yahoo cuts them."""
    if is_daily:
        return [(570, 960)]
    if is_future:
        return [(60 * h, 60 * h + 60) for h in range(24) if h != 17]  # noqa: PLR2004 - the hour the market is closed
    early = [(60 * h, min(60 * h + 60, 570)) for h in range(4, 10)]
    regular = [(570 + 60 * h, min(630 + 60 * h, 960)) for h in range(7)]
    return [*early, *regular, *((60 * h, 60 * h + 60) for h in range(16, 20))]


def _chart(ticker: str, opens: IntArray, columns: dict[str, list[float]], *, is_daily: bool) -> dict[str, Any]:
    period = {"timezone": "EST", "start": 0, "end": 1, "gmtoffset": -18000}
    meta = {
        "symbol": ticker, "currency": "USD", "instrumentType": "INDEX", "exchangeTimezoneName": "America/New_York",
        "timezone": "EST", "gmtoffset": -18000, "regularMarketTime": int(opens[-1]) // NS_PER_S if opens.size else 0,
        "dataGranularity": "1d" if is_daily else "1h", "validRanges": ["1d", "1y"], "hasPrePostMarketData": True,
        "firstTradeDate": 0, "currentTradingPeriod": {"pre": period, "regular": period, "post": period},
    }  # fmt: skip
    indicators: dict[str, Any] = {"quote": [columns]}
    if is_daily:
        indicators["adjclose"] = [{"adjclose": columns["close"]}]
    result = {"meta": meta, "timestamp": (opens // NS_PER_S).tolist(), "indicators": indicators}
    return {"chart": {"result": [result], "error": None}}
