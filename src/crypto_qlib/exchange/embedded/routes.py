"""The table of paths: OKX's endpoint names to handlers."""

from __future__ import annotations

from crypto_qlib.exchange.embedded.coingecko_api import CoinGeckoApi
from crypto_qlib.exchange.embedded.market_api import MarketApi
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.router import Endpoint

Routes = dict[tuple[str, str], Endpoint]


def market_routes(market: MarketApi, public: PublicApi, coingecko: CoinGeckoApi) -> Routes:
    """Return everything that needs no account."""
    return {
        ("GET", "public/time"): Endpoint(public.time),
        ("GET", "system/status"): Endpoint(public.status),
        ("GET", "asset/currencies"): Endpoint(public.currencies, is_private=True),
        ("GET", "public/instruments"): Endpoint(public.instruments),
        ("GET", "public/funding-rate"): Endpoint(public.funding_rate),
        ("GET", "public/funding-rate-history"): Endpoint(public.funding_history),
        ("GET", "public/mark-price"): Endpoint(public.mark_price),
        ("GET", "public/open-interest"): Endpoint(public.open_interest),
        ("GET", "public/position-tiers"): Endpoint(public.position_tiers),
        ("GET", "public/price-limit"): Endpoint(public.price_limit),
        ("GET", "market/candles"): Endpoint(market.candles),
        ("GET", "market/history-candles"): Endpoint(market.history_candles),
        ("GET", "market/mark-price-candles"): Endpoint(market.mark_candles),
        ("GET", "market/history-mark-price-candles"): Endpoint(market.history_mark_candles),
        ("GET", "market/index-candles"): Endpoint(market.index_candles),
        ("GET", "market/history-index-candles"): Endpoint(market.history_index_candles),
        ("GET", "market/ticker"): Endpoint(market.ticker),
        ("GET", "market/tickers"): Endpoint(market.tickers),
        ("GET", "market/index-tickers"): Endpoint(market.index_tickers),
        ("GET", "market/books"): Endpoint(market.book),
        ("GET", "market/trades"): Endpoint(market.trades),
        ("GET", "/api/v3/ping"): Endpoint(coingecko.ping),
        ("GET", "/api/v3/coins/list"): Endpoint(coingecko.coins_list),
        ("GET", "/api/v3/coins/markets"): Endpoint(coingecko.coins_markets),
    }
