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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.hours_market import WARM_UP, Hours, okx_hours, simulated_hours
from benchmarks.live_again import relive, restart
from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock, floor_ts, iso
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.order import Fill
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
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
from crypto_qlib.venue.records import Bill, BillKind
from crypto_qlib.venue.venue_config import VenueConfig

STRATEGY = StrategySettings(
    max_open=2, min_daily_turnover=1e4, min_listing_days=0.0, stop_atr=1.5, take_profit_atr=2.5, min_stop_distance=0.005,
    cooldown_bars=4, holding_bars=9, replace_margin=0.004, risk_per_trade=0.01, leverage=5.0, min_win_probability=0.5,
    max_drawdown=0.95,
)  # fmt: skip
"""It loses by its fees; the brake is far off, so that it trades all year long."""
RULES: Rules = build_rules(STRATEGY, BacktestSettings(), NS_PER_HOUR)
FEES = FeeSchedule(0.0002, 0.0005)
VOLUME_SHARE, CASH = 0.05, 100_000.0
SESSION = "year"
_SAMPLES = 8


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
    """What came of the live session: its own result, the exchange's fills and bills, and samples on the way."""

    result: PaperResult
    fills: tuple[Fill, ...]
    bills: tuple[Bill, ...]
    samples: tuple[Sample, ...]
    seconds: float


def exchange_of(market: Hours, key: ApiCredentials, folder: Path) -> EmbeddedExchange:
    """Return the exchange that starts at the first decision, or goes on from its state in ``folder``."""
    options = EmbeddedOptions(
        start_ns=market.first_close_ns, fees=FEES, venue=VenueConfig(RULES.impact_y, RULES.half_spread_bps, VOLUME_SHARE),
        paper_equity=CASH, funding_retention_days=None,
    )  # fmt: skip
    return EmbeddedExchange(market, options, key, state=StateFile(folder, {}))


async def live(
    market: Hours, path: Path, tell: Callable[[PaperView], None] = lambda _view: None, key: ApiCredentials | None = None
) -> Lived:
    """Run the live session over the hours after the warm-up, in virtual time, on the embedded exchange.

    ``path`` is the ledger; the exchange keeps its state in the folder ``exchange`` beside it.
    """
    first = market.first_close_ns
    samples: list[Sample] = []
    fills: list[Fill] = []
    bills: list[Bill] = []
    began = time.process_time()
    async with (
        exchange_of(market, key or ApiCredentials.generate(), path.parent / "exchange") as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        feed = MarketFeed(gateway, market.panel.known_until(first), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(path, SessionRow(SESSION, first, "embedded", {}))
        signals = SignalProcessor(feed, score, RULES, Contracts(market.items, market.tables))
        parts = SessionParts(gateway, signals, ledger, SessionConfig(SESSION, RULES, RiskLimits()), ManualClock(first))

        def take_new() -> None:
            """Keep what the exchange itself forgets after three months."""
            (account_id,) = exchange.venue.exchange.account_ids()
            fills.extend(exchange.venue.exchange.fills(account_id, len(fills)))
            bills.extend(exchange.venue.exchange.bills(account_id, len(bills)))

        def shown(view: PaperView) -> None:
            take_new()
            tell(view)
            if view.bar % max(market.n_hours // _SAMPLES, 1) == 0:
                samples.append(_sample(view.bar, path))

        result = await run_session(parts, SteppedBars(exchange.step, first), first, market.n_hours, shown)
        ledger.close()
        take_new()
    return Lived(result, tuple(fills), tuple(bills), tuple(samples), time.process_time() - began)


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
    funding, paid = float(tested.funding["amount"].sum()), _funding(market, lived)
    if not math.isclose(funding, paid, rel_tol=1e-6, abs_tol=1e-6):
        found.append(Difference("funding", market.last_close_ns, "", funding, paid))
    theirs, ours = (
        [(f.ts_ns, f.symbol, f.signed_lots, f.price, f.fee) for f in book] for book in (lived.fills, lived.result.fills)
    )
    if sorted(theirs) != sorted(ours):
        found.append(Difference("book", market.last_close_ns, "", len(theirs), len(ours)))
    return sorted(found, key=lambda d: d.ts_ns)


def _funding(market: Hours, lived: Lived) -> float:
    paid = [b for b in lived.bills if b.kind is BillKind.FUNDING and b.ts_ns < market.last_close_ns]
    return sum(b.cash_change + b.margin_change for b in paid)


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
        path, key = Path(folder) / "ledger.sqlite", ApiCredentials.generate()
        lived = asyncio.run(live(market, path, tell, key))
        print(file=sys.stderr)
        _print(market, tested, lived)
        relived, state = relive(path, SESSION), path.parent / "exchange"
        restarted = asyncio.run(restart(lambda: exchange_of(market, key, state), state))
    seconds = relived.reading_s + relived.living_s
    print(
        f"replay     {relived.rows:,} journal rows, {len(relived.differences)} differences; read in {relived.reading_s:.1f} s, "
        f"lived again in {relived.living_s:.1f} s of CPU, {1e6 * seconds / relived.rows:.0f} us a row"
    )
    for line in relived.differences[:10]:
        print(f"  {line}")
    print(
        f"exchange   {restarted.operations:,} operations; back from its snapshot in {restarted.snapshot_s:.1f} s of CPU, "
        f"from its journal alone in {restarted.journal_s:.1f} s, the same books"
    )


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
        f"funding {_funding(market, lived):,.2f}, equity {lived.result.final_equity:,.6f}, {len(lived.result.alerts)} alerts"
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
