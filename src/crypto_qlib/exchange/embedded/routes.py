"""The table of paths: OKX's endpoint names to handlers."""

from __future__ import annotations

from crypto_qlib.exchange.embedded.account_api import AccountApi
from crypto_qlib.exchange.embedded.algo_api import AlgoApi
from crypto_qlib.exchange.embedded.coingecko_api import CoinGeckoApi
from crypto_qlib.exchange.embedded.live_bars import OBSERVE
from crypto_qlib.exchange.embedded.market_api import MarketApi
from crypto_qlib.exchange.embedded.market_switches import SWITCH
from crypto_qlib.exchange.embedded.operations import Change
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.router import Endpoint, Handler
from crypto_qlib.exchange.embedded.rubik_api import RubikApi
from crypto_qlib.exchange.embedded.trade_api import TradeApi

Routes = dict[tuple[str, str], Endpoint]


def market_routes(market: MarketApi, public: PublicApi, coingecko: CoinGeckoApi, rubik: RubikApi) -> Routes:
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
        ("GET", "rubik/stat/contracts/open-interest-history"): Endpoint(rubik.open_interest_history),
        ("GET", "rubik/stat/taker-volume-contract"): Endpoint(rubik.taker_volume),
        ("GET", "rubik/stat/contracts/long-short-account-ratio-contract"): Endpoint(rubik.long_short_ratio),
        ("GET", "/api/v3/ping"): Endpoint(coingecko.ping),
        ("GET", "/api/v3/coins/list"): Endpoint(coingecko.coins_list),
        ("GET", "/api/v3/coins/markets"): Endpoint(coingecko.coins_markets),
        ("GET", "/api/v3/coins/*/market_chart/range"): Endpoint(coingecko.market_chart),
    }


def account_routes(account: AccountApi, trade: TradeApi, algo: AlgoApi) -> Routes:
    """Return everything that needs a key."""
    table: dict[tuple[str, str], Handler] = {
        ("GET", "account/config"): account.config,
        ("GET", "account/balance"): account.balance,
        ("GET", "asset/balances"): account.funding_balances,
        ("GET", "account/positions"): account.positions,
        ("GET", "account/positions-history"): account.positions_history,
        ("POST", "account/set-position-mode"): account.set_position_mode,
        ("POST", "account/set-leverage"): account.set_leverage,
        ("GET", "account/leverage-info"): account.leverage_info,
        ("GET", "account/trade-fee"): account.trade_fee,
        ("GET", "account/bills"): account.bills,
        ("GET", "account/bills-archive"): account.bills_archive,
        ("POST", "account/position/margin-balance"): account.adjust_margin,
        ("POST", "trade/order"): trade.place,
        ("GET", "trade/order"): trade.order,
        ("POST", "trade/batch-orders"): trade.place_batch,
        ("POST", "trade/cancel-order"): trade.cancel,
        ("POST", "trade/cancel-batch-orders"): trade.cancel_batch,
        ("POST", "trade/amend-order"): trade.amend,
        ("POST", "trade/amend-batch-orders"): trade.amend_batch,
        ("POST", "trade/close-position"): trade.close_position,
        ("GET", "trade/orders-pending"): trade.pending,
        ("GET", "trade/orders-history"): trade.history,
        ("GET", "trade/orders-history-archive"): trade.history_archive,
        ("GET", "trade/fills"): trade.fills,
        ("GET", "trade/fills-history"): trade.fills_history,
        ("POST", "trade/order-algo"): algo.place,
        ("GET", "trade/order-algo"): algo.order,
        ("POST", "trade/cancel-algos"): algo.cancel,
        ("POST", "trade/amend-algos"): algo.amend,
        ("GET", "trade/orders-algo-pending"): algo.pending,
        ("GET", "trade/orders-algo-history"): algo.history,
    }
    return {path: Endpoint(handler, is_private=True) for path, handler in table.items()}


def changes_of(desk: PaperDesk) -> dict[str, Change]:
    """Return name -> handler of every operation: what clients may post, and what the house does."""
    routes = account_routes(desk.account, desk.trade, desk.algo)
    posts = {name: endpoint.handler for (method, name), endpoint in routes.items() if method == "POST"}
    return posts | desk.house.changes() | {SWITCH: desk.market_faults.switch, OBSERVE: desk.live.observe}
