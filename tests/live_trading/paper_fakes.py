"""A small made-up exchange and market for tests of the live session."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, RetryLater
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, FundingBlock, MarketPanel
from crypto_qlib.core.order import Fill, MarginMode, OrderRequest, OrderStatus, Protection
from crypto_qlib.core.signal import Scores
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.exchange.gateway import Book, OrderReport, PriceKind, Transfer
from crypto_qlib.live_trading.signal_processor import Contracts
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.store.ledger import FundingRow

SYMBOLS = ("AAAUSDT", "BBBUSDT", "BTCUSDT", "CCCUSDT")
START_NS = 1_700_006_400_000_000_000 - 1_700_006_400_000_000_000 % (24 * NS_PER_HOUR)
RULES = Rules(
    max_open=2,
    min_daily_turnover=0.0,
    min_listing_days=0.0,
    min_stop_distance=0.05,
    max_stop_distance=0.05,
    min_take_distance=0.1,
    max_take_distance=0.1,
    half_spread_bps=0.0,
    impact_y=0.0,
    expect_funding=False,
    replace_margin=0.002,
    cooldown_bars=3,
    holding_bars=4,
    risk_per_trade=0.005,
)


def contracts(symbols: tuple[str, ...] = SYMBOLS) -> Contracts:
    tiers = TierTable(np.array([1e6, 1e9]), np.array([0.005, 0.01]), np.array([0.01, 0.02]), np.array([50.0, 20.0]))
    items = {
        s: Instrument(s, f"{s[:-4]}-USDT-SWAP", s[:-4], ct_val=0.01, tick_size=0.01, lot_size=1.0, min_size=1.0)
        for s in symbols
    }
    return Contracts(items, {s: TierHistory([tiers]) for s in symbols})


def panel(n_bars: int, seed: int = 1, symbols: tuple[str, ...] = SYMBOLS) -> MarketPanel:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, (n_bars, len(symbols))), axis=0))
    open_ = np.vstack([np.full((1, len(symbols)), 100.0), close[:-1]])
    wick = np.abs(rng.normal(0.0, 0.004, close.shape))
    high, low = np.maximum(open_, close) * (1.0 + wick), np.minimum(open_, close) * (1.0 - wick)
    volume = np.full(close.shape, 1e5)
    fields = {"open": open_, "high": high, "low": low, "close": close, "volume": volume, "quote_volume": volume * close}
    fields |= {f"mark_{n}": fields[n] for n in ("open", "high", "low", "close")}
    fields["funding_rate"] = np.full(close.shape, np.nan)
    ts = START_NS + NS_PER_HOUR * np.arange(n_bars, dtype=np.int64)
    return MarketPanel(symbols, NS_PER_HOUR, ts, has_mark=np.ones(len(symbols), np.bool_), **fields)


def scores(as_of_ns: int, *expected: float, symbols: tuple[str, ...] = SYMBOLS) -> Scores:
    r = np.array(expected)
    return Scores(as_of_ns, symbols, r, np.where(np.isnan(r), np.nan, 0.6), np.full(r.shape, 0.01))


@dataclass
class FakeExchange:
    """Market orders fill at once at the open of the running bar; no stops, no fees, no funding. Faults come from a script."""

    tape: MarketPanel
    now_ns: int
    cash: float = 10_000.0
    faults: list[str] = field(default_factory=list)
    fault_rng: np.random.Generator | None = None
    leverage: dict[str, float] = field(default_factory=dict)
    positions: dict[str, OpenPosition] = field(default_factory=dict)
    orders: dict[str, OrderReport] = field(default_factory=dict)
    executed: list[Fill] = field(default_factory=list)
    sent: list[OrderRequest] = field(default_factory=list)
    hide_stops: bool = False
    contracts: Contracts = field(default_factory=contracts)
    loses_stops: int = 0
    stops_placed: list[str] = field(default_factory=list)
    countdowns: list[int] = field(default_factory=list)

    async def protect(self, symbol: str, lots: int, protection: Protection, margin_mode: MarginMode, client_id: str) -> None:
        assert client_id not in self.stops_placed, "the same stop placed twice"
        self.stops_placed.append(client_id)
        if self.loses_stops:
            self.loses_stops -= 1
            raise OutcomeUnknown("no answer", client_order_id=client_id)
        assert protection.stop_price is not None
        self.positions[symbol] = replace(self.positions[symbol], stop_price=protection.stop_price)

    async def transfers(self, since_ns: int) -> list[Transfer]:
        return []

    async def book(self, symbol: str, depth: int = 20) -> Book:
        price = self.price(symbol)
        return Book(self.now_ns, np.array([[price, 1e9]]), np.array([[price, 1e9]]))

    async def amend(self, symbol: str, client_order_id: str, price: float) -> None:
        raise DoNotRetry("nothing rests here", code="51503")

    async def account_id(self) -> str:
        return "1"

    async def cancel_all_after(self, seconds: int) -> None:
        self.countdowns.append(seconds)

    def _column(self, symbol: str) -> int:
        return self.tape.symbols.index(symbol)

    def price(self, symbol: str) -> float:
        bar = int(np.searchsorted(self.tape.ts_open, self.now_ns, side="right")) - 1
        if self.tape.ts_open[bar] == self.now_ns:
            return float(self.tape.open[bar, self._column(symbol)])
        return float(self.tape.close[min(bar, self.tape.n_bars - 1), self._column(symbol)])

    async def step(self) -> int:
        self.now_ns += self.tape.frame_ns
        return self.now_ns

    def _fault(self) -> str:
        if self.faults:
            return self.faults.pop(0)
        if self.fault_rng is None:
            return ""
        kinds = ["", "", "", "", "lost", "vanished", "refused", "later"]
        return str(self.fault_rng.choice(kinds))

    async def account(self) -> AccountState:
        held = []
        equity = self.cash
        for symbol, p in self.positions.items():
            marked = replace(p, mark=self.price(symbol), stop_price=math.nan if self.hide_stops else p.stop_price)
            equity += p.side * p.qty * (marked.mark - p.avg_entry)
            held.append(marked)
        margin = sum(p.margin for p in held)
        return AccountState(self.now_ns, equity, equity - margin, tuple(held), peak_equity=equity, margin_ratio=10.0)

    async def set_leverage(self, symbol: str, leverage: float, margin_mode: MarginMode) -> None:
        self.leverage[symbol] = leverage

    async def place(self, request: OrderRequest) -> OrderReport:
        self.sent.append(request)
        fault = self._fault()
        if fault == "later":
            raise RetryLater("busy", retry_after_s=0.0)
        if fault == "refused":
            raise DoNotRetry("no", code="51008")
        if fault == "vanished":
            raise OutcomeUnknown("no answer", client_order_id=request.client_order_id)
        report = self._execute(request)
        if fault == "lost":
            raise OutcomeUnknown("no answer", client_order_id=request.client_order_id)
        return report

    def _execute(self, request: OrderRequest) -> OrderReport:
        assert request.client_order_id not in self.orders, "the same order executed twice"
        price, signed = self.price(request.symbol), request.lots * request.side.value
        held = self.positions.get(request.symbol)
        if request.reduce_only:
            assert held is not None
            assert held.lots == -signed
            self.cash += held.side * held.qty * (price - held.avg_entry)
            del self.positions[request.symbol]
        else:
            assert held is None, "a second position in the same symbol"
            qty = request.lots * self.contracts.instruments[request.symbol].base_per_lot
            leverage = self.leverage[request.symbol]
            stop = request.protection.stop_price if request.protection else None
            self.positions[request.symbol] = OpenPosition(
                request.symbol, signed, qty, price, price, leverage, qty * price / leverage, self.now_ns,
                stop_price=math.nan if stop is None else stop,
            )  # fmt: skip
        report = OrderReport(request.client_order_id, "x", request.symbol, OrderStatus.FILLED, request.lots, price, 0.0)
        self.orders[request.client_order_id] = report
        self.executed.append(Fill(self.now_ns, request.symbol, signed, price, 0.0, client_order_id=request.client_order_id))
        return report

    async def order(self, symbol: str, client_order_id: str) -> OrderReport | None:
        if self._fault() == "later":
            raise RetryLater("busy", retry_after_s=0.0)
        return self.orders.get(client_order_id)

    async def fills(self, since_ns: int) -> list[Fill]:
        return [f for f in self.executed if f.ts_ns >= since_ns]

    async def funding_paid(self, since_ns: int) -> list[FundingRow]:
        return []

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        ts = self.tape.ts_open
        rows = (ts >= start_ns) & (ts < end_ns) & (ts + self.tape.frame_ns <= self.now_ns)
        names = PANEL_FIELDS[:6] if kind is PriceKind.LAST else [f"mark_{n}" for n in PANEL_FIELDS[:4]]
        values = [getattr(self.tape, n)[rows, self._column(symbol)] for n in names]
        rest = [] if kind is PriceKind.LAST else [np.full(int(rows.sum()), np.nan)] * 2
        return BarBlock(ts[rows], *values, *rest)

    async def funding_history(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        settled = self.tape.funding_rate[:, self._column(symbol)]
        ts = self.tape.ts_open
        rows = np.isfinite(settled) & (ts >= start_ns) & (ts < end_ns) & (ts <= self.now_ns)
        return FundingBlock(ts[rows], settled[rows])
