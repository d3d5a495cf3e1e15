"""A stretch of hours (a year by default) through the backtest and through the live session, and every difference between them.

``python -m benchmarks live_parity [--hours 8760] [--market simulated | --market okx --data FOLDER] [--symbols 4]``: the session
decides on the same hours, in virtual time, and trades on the embedded exchange through the real ccxt client over loopback. What
differs from the backtest by more than rounding is listed one by one. Memory, journal and drift of the session are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import resource
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock, floor_ts, iso, parse_utc
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, FundingBlock, MarketPanel
from crypto_qlib.core.order import Fill
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import PaperResult, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.portfolio.rules import Rules, build_rules
from crypto_qlib.settings.schema import BacktestSettings, ExchangeSettings, StrategySettings
from crypto_qlib.store.ledger import Ledger, SessionRow
from crypto_qlib.venue.bar_aggregation import aggregate_bars
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec
from crypto_qlib.venue.market_source import MarketSource
from crypto_qlib.venue.records import BillKind
from crypto_qlib.venue.venue_config import VenueConfig

WARM_UP, AFTER = history_bars(NS_PER_HOUR) + 24, 2
"""Hours before the first decision and after the last, in which what was sent last is carried out."""
STRATEGY = StrategySettings(
    max_open=2, min_daily_turnover=1e4, min_listing_days=0.0, stop_atr=1.5, take_profit_atr=2.5, min_stop_distance=0.005,
    cooldown_bars=4, holding_bars=9, replace_margin=0.004, risk_per_trade=0.01, leverage=5.0, min_win_probability=0.5,
    max_drawdown=0.95,
)  # fmt: skip
"""It loses by its fees; the brake is far off, so that it trades all year long."""
RULES: Rules = build_rules(STRATEGY, BacktestSettings(), NS_PER_HOUR)
FEES = FeeSchedule(0.0002, 0.0005)
VOLUME_SHARE, CASH = 0.05, 100_000.0
OKX_COINS = ("BTC", "ETH", "SOL", "XRP", "DOGE", "ADA", "LINK", "LTC")
_SAMPLES = 8


class Hours:
    """A market known hour by hour: the panel the backtest reads is, bar for bar, what the exchange serves.

    Parameters
    ----------
    panel : MarketPanel
        Every hour of every symbol.
    items, tables : dict
        Contract and tiers by symbol.
    is_simulated : bool
        Whether its prices are invented.
    """

    base_frame_ns = NS_PER_HOUR

    def __init__(
        self, panel: MarketPanel, items: dict[str, Instrument], tables: dict[str, TierHistory], *, is_simulated: bool
    ) -> None:
        self.panel, self.items, self.tables, self.is_simulated = panel, items, tables, is_simulated
        self.start_ns = int(panel.ts_open[0])
        self.end_ns = int(panel.ts_open[-1]) + NS_PER_HOUR
        self.first_close_ns = self.start_ns + WARM_UP * NS_PER_HOUR
        self.n_hours = panel.n_bars - WARM_UP - AFTER
        self.last_close_ns = self.first_close_ns + self.n_hours * NS_PER_HOUR

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every contract."""
        return tuple(self.items.values())

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers of ``symbol``."""
        return self.tables[symbol]

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return hours, or days made of them."""
        hours = self._block(("open", "high", "low", "close", "volume", "quote_volume"), symbol, start_ns, end_ns)
        return hours if frame_ns == NS_PER_HOUR else aggregate_bars(hours, frame_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return hours of the mark price, or days made of them."""
        hours = self._block(("mark_open", "mark_high", "mark_low", "mark_close"), symbol, start_ns, end_ns)
        return hours if frame_ns == NS_PER_HOUR else aggregate_bars(hours, frame_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return nothing: no index is known."""
        del symbol, frame_ns, start_ns, end_ns
        return BarBlock.empty()

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the settlements of the panel."""
        first, last = self._rows(start_ns, end_ns)
        rate = self.panel.funding_rate[first:last, self.panel.symbols.index(symbol)]
        known = np.isfinite(rate)
        return FundingBlock(self.panel.ts_open[first:last][known], rate[known])

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return NaN: it is not known."""
        del symbol, ts_ns
        return math.nan

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return nothing: they are not known."""
        del ts_ns
        return {}

    def _rows(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        first, last = np.searchsorted(self.panel.ts_open, [start_ns, end_ns])
        return int(first), int(last)

    def _block(self, names: tuple[str, ...], symbol: str, start_ns: int, end_ns: int) -> BarBlock:
        first, last = self._rows(start_ns, end_ns)
        column = self.panel.symbols.index(symbol)
        columns = [getattr(self.panel, name)[first:last, column] for name in names]
        unknown = np.full(last - first, np.nan)
        return BarBlock(self.panel.ts_open[first:last], *columns, *([unknown] * (6 - len(names))))


def simulated_hours(n_hours: int, n_symbols: int, seed: int = 20260101) -> Hours:
    """Return ``n_hours`` hours (after a warm-up) of the simulated market's first ``n_symbols`` coins that live all the time."""
    end_ns = parse_utc("2026-01-01")
    start_ns = end_ns - (n_hours + WARM_UP + AFTER) * NS_PER_HOUR
    market = SimulatedMarket(SimulationSpec(4 * n_symbols, start_ns, end_ns, seed, 1.0))
    return _hours_of(market, n_symbols, start_ns, end_ns)


def okx_hours(folder: Path, n_hours: int, n_symbols: int) -> Hours:
    """Return the last ``n_hours`` hours of 2025 (after a warm-up) of OKX's swaps as recorded, marks and funding with them."""
    end_ns = parse_utc("2026-01-01")
    market = ReplayMarket(folder / "okx_perp_1h.parquet", folder / "okx_funding.parquet", folder / "okx_mark_1h.parquet")
    wanted = tuple(f"{coin}USDT" for coin in OKX_COINS[:n_symbols])
    return _hours_of(market, n_symbols, end_ns - (n_hours + WARM_UP + AFTER) * NS_PER_HOUR, end_ns, wanted)


def _hours_of(market: MarketSource, n_symbols: int, start_ns: int, end_ns: int, wanted: tuple[str, ...] = ()) -> Hours:
    ts = np.arange(start_ns, end_ns, NS_PER_HOUR, dtype=np.int64)
    by_name = {item.symbol: item for item in market.instruments()}
    blocks: dict[str, tuple[BarBlock, BarBlock]] = {}
    for symbol in wanted or tuple(by_name):
        last = market.bars(symbol, NS_PER_HOUR, start_ns, end_ns)
        mark = market.mark_bars(symbol, NS_PER_HOUR, start_ns, end_ns)
        if np.array_equal(last.ts_open, ts) and np.array_equal(mark.ts_open, ts) and len(blocks) < n_symbols:
            blocks[symbol] = last, mark
    symbols = tuple(blocks)
    fields = {n: np.column_stack([getattr(blocks[s][0], n) for s in symbols]) for n in PANEL_FIELDS[:6]}
    fields |= {f"mark_{n}": np.column_stack([getattr(blocks[s][1], n) for s in symbols]) for n in PANEL_FIELDS[:4]}
    settled = (market.funding(s, start_ns, end_ns) for s in symbols)
    rates = np.column_stack([funding_on_grid(b.ts, b.rate, ts, NS_PER_HOUR) for b in settled])
    # Holes of the record (OKX gives three months) would be refused: what nobody recorded counts as settled at rate zero.
    fields["funding_rate"] = np.where(np.isnan(rates) & (ts % (8 * NS_PER_HOUR) == 0)[:, None], 0.0, rates)
    panel = MarketPanel(symbols, NS_PER_HOUR, ts, **fields, has_mark=np.ones(len(symbols), np.bool_))
    items = {s: replace(by_name[s], delisted_ns=None) for s in symbols}
    return Hours(panel, items, {s: market.tiers(s) for s in symbols}, is_simulated=market.is_simulated)


def score(panel: MarketPanel) -> Scores:
    """Score by reversal of the last three bars: changes every bar, reads nothing but closes."""
    n = len(panel.symbols)
    move = panel.close[-1] / panel.close[-4] - 1.0
    as_of_ns = int(panel.ts_open[-1]) + panel.frame_ns
    return Scores(as_of_ns, panel.symbols, -0.5 * move, np.full(n, 0.6), np.full(n, 0.01))


def backtest(market: Hours) -> BacktestResult:
    """Return the backtest over the hours after the warm-up."""
    rows = [score(market.panel.rows(t - 4, t)) for t in range(WARM_UP, WARM_UP + market.n_hours)]
    columns = [np.array([getattr(s, n) for s in rows]) for n in ("expected_return", "win_probability", "uncertainty")]
    scores = ScorePanel(np.array([s.as_of_ns for s in rows], np.int64), market.panel.symbols, *columns)
    execution = Execution(max_bar_volume_share=VOLUME_SHARE)
    return run_backtest(
        BacktestInputs(
            market.panel.rows(0, WARM_UP + market.n_hours), scores, market.items, market.tables, RULES, CASH, execution
        )
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """The session's process after so many bars: resident memory and ledger file, bytes; journal rows."""

    bar: int
    resident: int
    ledger: int
    journal: int


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of the live session: its own result, what the exchange says was paid as funding, and samples on the way."""

    result: PaperResult
    fills: tuple[Fill, ...]
    funding: float
    samples: tuple[Sample, ...]
    seconds: float


async def live(market: Hours, path: Path, tell: Callable[[PaperView], None] = lambda _view: None) -> Lived:
    """Run the live session over the hours after the warm-up, in virtual time, on the embedded exchange."""
    first = market.first_close_ns
    options = EmbeddedOptions(
        start_ns=first, fees=FEES, venue=VenueConfig(RULES.impact_y, RULES.half_spread_bps, VOLUME_SHARE), paper_equity=CASH,
        funding_retention_days=None,
    )  # fmt: skip
    samples: list[Sample] = []
    began = time.process_time()
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        feed = MarketFeed(gateway, market.panel.known_until(first), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(path, SessionRow("year", first, "embedded", {}))
        signals = SignalProcessor(feed, score, RULES, Contracts(market.items, market.tables))
        parts = SessionParts(gateway, signals, ledger, SessionConfig("year", RULES, RiskLimits()), ManualClock(first))

        def shown(view: PaperView) -> None:
            tell(view)
            if view.bar % max(market.n_hours // _SAMPLES, 1) == 0:
                samples.append(_sample(view.bar, path))

        result = await run_session(parts, SteppedBars(exchange.step, first), first, market.n_hours, shown)
        ledger.close()
        (account_id,) = exchange.venue.exchange.account_ids()
        fills = tuple(exchange.venue.exchange.fills(account_id))
        bills = exchange.venue.exchange.bills(account_id)
        paid = [b.cash_change + b.margin_change for b in bills if b.kind is BillKind.FUNDING and b.ts_ns < market.last_close_ns]
    return Lived(result, fills, sum(paid), tuple(samples), time.process_time() - began)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same in both.

    Parameters
    ----------
    kind : str
        ``fill missing live``, ``fill only live``, ``price``, ``fee``, ``equity``, ``funding`` or ``book``.
    ts_ns : int
        When; the bar's open for fills.
    symbol : str
        Of which; empty for the account.
    tested, lived : float
        Both figures; lots where a fill is missing.
    """

    kind: str
    ts_ns: int
    symbol: str
    tested: float
    lived: float

    def __str__(self) -> str:
        return f"{iso(self.ts_ns)}  {self.kind:18s} {self.symbol:9s} backtest {self.tested:.10g}  live {self.lived:.10g}"


def differences(market: Hours, tested: BacktestResult, lived: Lived) -> list[Difference]:
    """Return every difference beyond rounding (1e-9 of prices and equity, 1e-6 of fees and funding), oldest first."""
    found = [*_fill_differences(market, tested, lived.fills)]
    rows = lived.result.equity[1:]
    for ts, one, row in zip(tested.ts_close.tolist(), tested.equity.tolist(), rows, strict=True):
        if not math.isclose(one, row.equity, rel_tol=1e-9):
            found.append(Difference("equity", ts, "", one, row.equity))
    funding = float(tested.funding["amount"].sum())
    if not math.isclose(funding, lived.funding, rel_tol=1e-6, abs_tol=1e-6):
        found.append(Difference("funding", market.last_close_ns, "", funding, lived.funding))
    theirs, ours = (
        [(f.ts_ns, f.symbol, f.signed_lots, f.price, f.fee) for f in book] for book in (lived.fills, lived.result.fills)
    )
    if sorted(theirs) != sorted(ours):
        found.append(Difference("book", market.last_close_ns, "", len(theirs), len(ours)))
    return sorted(found, key=lambda d: d.ts_ns)


def _fill_differences(market: Hours, tested: BacktestResult, fills: tuple[Fill, ...]) -> list[Difference]:
    """Compare fills by (bar, symbol, lots); the n-th of each with the n-th of the other."""
    mine: dict[tuple[int, str, int], deque[Fill]] = defaultdict(deque)
    for fill in fills:
        if fill.ts_ns < market.last_close_ns:
            mine[floor_ts(fill.ts_ns, NS_PER_HOUR), fill.symbol, fill.signed_lots].append(fill)
    found = []
    for row in tested.fills:
        key = int(tested.ts_open[row["bar"]]), tested.symbols[row["symbol"]], int(row["lots"])
        if not mine[key]:
            found.append(Difference("fill missing live", key[0], key[1], key[2], 0.0))
            continue
        fill = mine[key].popleft()
        if not math.isclose(fill.price, float(row["price"]), rel_tol=1e-9):
            found.append(Difference("price", key[0], key[1], float(row["price"]), fill.price))
        if not math.isclose(fill.fee, float(row["fee"]), rel_tol=1e-6, abs_tol=1e-9):
            found.append(Difference("fee", key[0], key[1], float(row["fee"]), fill.fee))
    left = [(key, fill) for key, several in mine.items() for fill in several]
    return found + [Difference("fill only live", key[0], key[1], 0.0, fill.signed_lots) for key, fill in left]


def _sample(bar: int, path: Path) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*"))
    with closing(sqlite3.connect(path)) as db:
        (rows,) = db.execute("SELECT count(*) FROM journal").fetchone()
    return Sample(bar, pages * resource.getpagesize(), files, rows)


def main(argv: list[str]) -> None:
    """Run both, and tell what differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks live_parity", description=__doc__)
    parser.add_argument("--hours", type=int, default=8760)
    parser.add_argument("--symbols", type=int, default=4)
    parser.add_argument("--market", choices=("simulated", "okx"), default="simulated")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    asked = parser.parse_args(argv)
    if asked.market == "okx":
        market = okx_hours(asked.data, asked.hours, asked.symbols)
    else:
        market = simulated_hours(asked.hours, asked.symbols)

    tested = backtest(market)
    apart: list[int] = []

    def tell(view: PaperView) -> None:
        if view.bar and not apart and not math.isclose(view.equity, tested.equity[view.bar - 1], rel_tol=1e-9):
            apart.append(view.bar)
        if view.bar % 50 == 0:
            so_far = f"equity apart since hour {apart[0]:,}" if apart else "equal so far"
            print(f"\r{view.bar:,} of {market.n_hours:,} hours, {so_far}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        lived = asyncio.run(live(market, Path(folder) / "ledger.sqlite", tell))
    print(file=sys.stderr)
    _print(market, tested, lived)


def _print(market: Hours, tested: BacktestResult, lived: Lived) -> None:
    kind = "simulated" if market.is_simulated else "OKX, recorded"
    print(f"market     {kind}: {', '.join(market.panel.symbols)}")
    print(
        f"span       {iso(market.first_close_ns)} .. {iso(market.last_close_ns)}, {market.n_hours:,} hours decided one by one"
    )
    fees = float(tested.fills["fee"].sum())
    print(
        f"backtest   {tested.fills.size:,} fills, {tested.trades.size:,} closed positions, fees {fees:,.2f}, "
        f"funding {float(tested.funding['amount'].sum()):,.2f}, equity {tested.final_equity:,.6f}"
    )
    print(
        f"live       {len(lived.fills):,} fills, fees {sum(f.fee for f in lived.fills):,.2f}, "
        f"funding {lived.funding:,.2f}, equity {lived.result.final_equity:,.6f}, {len(lived.result.alerts)} alerts"
    )
    found = differences(market, tested, lived)
    print(f"differences {len(found)}")
    for difference in found[:40]:
        print(f"  {difference}")
    for alert in lived.result.alerts[:10]:
        print(f"  alert: {alert}")
    print(
        f"cpu        {lived.seconds:.0f} s, {1e3 * lived.seconds / market.n_hours:.0f} ms an hour decided (exchange included)"
    )
    for s in lived.samples:
        print(
            f"  after {s.bar:6,} hours: resident {s.resident / 2**20:6.0f} MiB, ledger {s.ledger / 2**20:7.1f} MiB, "
            f"{s.journal:9,} journal rows"
        )
