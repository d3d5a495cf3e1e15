"""One tape through the backtest and through the live session, over HTTP and ccxt, on the embedded exchange: the same trades."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.performance_report import performance
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, ManualClock
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock, MarketPanel
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import PaperResult, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.session_report import session_figures
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.portfolio.rules import build_rules
from crypto_qlib.settings.schema import BacktestSettings, ExchangeSettings, StrategySettings
from crypto_qlib.store.ledger import Ledger, SessionRow
from crypto_qlib.venue.venue_config import VenueConfig

SYMBOLS = ("AAAUSDT", "BBBUSDT", "BTCUSDT", "CCCUSDT", "DDDUSDT", "EEEUSDT")
START_NS = 20_000 * NS_PER_DAY
WARM_UP, N_BARS = 24 * 40, 150
TICK = 0.001
STRATEGY = StrategySettings(
    max_open=3, min_daily_turnover=1e4, stop_atr=1.5, take_profit_atr=2.5, min_stop_distance=0.005, cooldown_bars=4,
    holding_bars=9, replace_margin=0.004, risk_per_trade=0.01, leverage=5.0, min_win_probability=0.5,
)  # fmt: skip
RULES = build_rules(STRATEGY, BacktestSettings(), NS_PER_HOUR)


class Tape:
    """A seeded hourly market with mark prices of its own and funding every eight hours."""

    is_simulated = True
    base_frame_ns = NS_PER_HOUR

    def __init__(self, seed: int, n_bars: int = N_BARS) -> None:
        rng = np.random.default_rng(seed)
        shape = (WARM_UP + n_bars + 2, len(SYMBOLS))
        close = np.round(50.0 * np.exp(np.cumsum(0.012 * rng.standard_t(4, shape), axis=0)), 3)
        open_ = np.vstack([close[:1], np.round(close[:-1] * (1.0 + rng.normal(0.0, 0.001, close[1:].shape)), 3)])
        high = np.round(np.maximum(open_, close) * (1.0 + np.abs(rng.normal(0.0, 0.006, shape))), 3)
        low = np.round(np.minimum(open_, close) * (1.0 - np.abs(rng.normal(0.0, 0.006, shape))), 3)
        volume = np.round(rng.uniform(2e4, 8e4, shape), 0)
        basis = 1.0 + rng.normal(0.0, 2e-4, len(SYMBOLS))
        mark = [np.round(x * basis, 4) for x in (open_, high, low, close)]
        ts = START_NS + NS_PER_HOUR * np.arange(shape[0], dtype=np.int64)
        funding = np.full(shape, np.nan)
        funding[::8] = np.round(rng.normal(1e-4, 2e-4, funding[::8].shape), 8)
        self.panel = MarketPanel(
            SYMBOLS,
            NS_PER_HOUR,
            ts,
            open_,
            high,
            low,
            close,
            volume,
            volume * close,
            *mark,
            funding,
            np.ones(len(SYMBOLS), bool),
        )
        self.start_ns, self.end_ns = START_NS, int(ts[-1]) + NS_PER_HOUR
        tiers = TierTable(
            np.array([5e3, 2e4, 1e9]), np.array([0.01, 0.02, 0.05]), np.array([0.02, 0.04, 0.1]), np.array([50.0, 25.0, 10.0])
        )
        self.items = {s: Instrument(s, f"{s[:-4]}-USDT-SWAP", s[:-4], 1.0, TICK, 0.1, 0.1, max_leverage=50.0) for s in SYMBOLS}
        self.tables = {s: TierHistory([tiers]) for s in SYMBOLS}

    def instruments(self) -> tuple[Instrument, ...]:
        return tuple(self.items.values())

    def tiers(self, symbol: str) -> TierHistory:
        return self.tables[symbol]

    def _block(self, names: tuple[str, ...], symbol: str, start_ns: int, end_ns: int) -> BarBlock:
        p, j = self.panel, SYMBOLS.index(symbol)
        rows = (p.ts_open >= start_ns) & (p.ts_open < end_ns)
        columns = [getattr(p, n)[rows, j] for n in names]
        return BarBlock(p.ts_open[rows], *columns, *([np.full(int(rows.sum()), np.nan)] * (6 - len(names))))

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        assert frame_ns in (NS_PER_HOUR, NS_PER_DAY)
        return self._block(("open", "high", "low", "close", "volume", "quote_volume"), symbol, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._block(("mark_open", "mark_high", "mark_low", "mark_close"), symbol, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return BarBlock.empty()

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        p, rate = self.panel, self.panel.funding_rate[:, SYMBOLS.index(symbol)]
        rows = np.isfinite(rate) & (p.ts_open >= start_ns) & (p.ts_open < end_ns)
        return FundingBlock(p.ts_open[rows], rate[rows])

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        return math.nan

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        return LongShortBlock(np.empty(0, np.int64), np.empty(0))

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        return {}


def score(panel: MarketPanel) -> Scores:
    """Score by reversal of the last three bars: changes every bar, reads nothing but closes."""
    move = panel.close[-1] / panel.close[-4] - 1.0
    nothing = np.full(len(panel.symbols), 0.01)
    return Scores(
        int(panel.ts_open[-1]) + panel.frame_ns, panel.symbols, -0.5 * move, np.full(len(panel.symbols), 0.6), nothing
    )


def backtest(tape: Tape):  # type: ignore[no-untyped-def]
    first = WARM_UP
    rows = [score(tape.panel.rows(0, t)) for t in range(first, first + N_BARS)]
    scores = ScorePanel(
        np.array([s.as_of_ns for s in rows], np.int64), SYMBOLS, *(np.array([getattr(s, n) for s in rows]) for n in (
            "expected_return", "win_probability", "uncertainty"))
    )  # fmt: skip
    traded = tape.panel.rows(0, first + N_BARS)
    return run_backtest(
        BacktestInputs(traded, scores, tape.items, tape.tables, RULES, 100_000.0, Execution(max_bar_volume_share=0.05))
    )


async def live(tape: Tape, path: Path) -> PaperResult:
    first_close = START_NS + WARM_UP * NS_PER_HOUR
    options = EmbeddedOptions(
        start_ns=first_close, fees=FeeSchedule(0.0002, 0.0005), venue=VenueConfig(RULES.impact_y, RULES.half_spread_bps, 0.05),
        funding_retention_days=None,
    )  # fmt: skip
    async with (
        EmbeddedExchange(tape, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        feed = MarketFeed(gateway, tape.panel.known_until(first_close), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(path, SessionRow("p", first_close, "embedded", {}))
        parts = SessionParts(
            gateway,
            SignalProcessor(feed, score, RULES, Contracts(tape.items, tape.tables)),
            ledger,
            SessionConfig("p", RULES, RiskLimits()),
            ManualClock(first_close),
        )
        result = await run_session(parts, SteppedBars(exchange.step, first_close), first_close, N_BARS)
        ledger.close()
        return result


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
async def test_backtest_and_live_session_trade_the_same(seed: int, tmp_path: Path) -> None:
    tape = Tape(seed)
    tested, lived = backtest(tape), await live(tape, tmp_path / "ledger.sqlite")
    frame = tested.fills_frame()
    want = [
        (int(ts.value), symbol, int(lots), reason)
        for ts, symbol, lots, reason in zip(frame["ts"], frame["symbol"], frame["lots"], frame["reason"], strict=True)
    ]
    got = [
        (f.ts_ns - f.ts_ns % NS_PER_HOUR, f.symbol, f.signed_lots, f.exit_kind.value if f.exit_kind else "entry")
        for f in lived.fills
    ]
    end_ns = START_NS + (WARM_UP + N_BARS) * NS_PER_HOUR
    got_rows = sorted((row for row in zip(got, lived.fills, strict=True) if row[0][0] < end_ns), key=lambda r: r[0][:3])
    want_rows = sorted(zip(want, tested.fills, strict=True), key=lambda r: r[0][:3])
    assert len(want_rows) > 100
    assert {"stop", "take_profit", "time", "replaced", "entry"} <= {row[0][3] for row in want_rows}
    assert [row[0][:3] for row in got_rows] == [row[0][:3] for row in want_rows]
    for (_, mine), (_, theirs) in zip(got_rows, want_rows, strict=True):
        assert mine.price == pytest.approx(float(theirs["price"]), rel=1e-9)
        assert mine.fee == pytest.approx(float(theirs["fee"]), rel=1e-6, abs=1e-9)
    equity = np.array([row.equity for row in lived.equity[1:]])
    assert equity == pytest.approx(tested.equity, rel=1e-9)
    assert lived.alerts == ()
    assert_the_same_figures(tape, tested, Ledger.open(tmp_path / "ledger.sqlite", SessionRow("p", 0, "embedded", {})))


def assert_the_same_figures(tape: Tape, tested: BacktestResult, ledger: Ledger) -> None:
    """The ledger of the session through the report's own function: the figures of the backtest."""
    mine = session_figures(ledger, tape.panel, tape.items, RULES)
    booked = ledger.funding()
    assert len(booked) > 20
    assert sum(row.amount for row in booked) == pytest.approx(mine["attribution"]["funding"], rel=1e-6)
    for row in ledger.equity():
        held = ledger.positions(row.ts_ns)
        assert len(held) == row.open_count
        assert sum(p.margin for p in held) == pytest.approx(row.used_margin)
        assert all(p.liquidation_price is not None and p.stop_price is not None for p in held)
    theirs = performance(tested, tape.panel, "simulated", None)
    ledger.close()
    for section in ("returns", "trades", "exposure"):
        for name, value in theirs[section].items():
            if isinstance(value, float | int):
                # the ledger knows what is available, not the margin alone: unrealised profit and loss are in it
                rel = 0.1 if name.endswith("margin_use") else 1e-6
                assert mine[section][name] == pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True), (section, name)
    a, b = mine["attribution"], theirs["attribution"]
    assert abs(a["unexplained"]) < 1e-6 * abs(a["total"]) + 1e-3
    for part in ("fees", "funding", "liquidation", "total"):
        assert a[part] == pytest.approx(b[part], rel=1e-6, abs=1e-6), part
    # slippage is measured against the close an order was decided at, in the backtest against the next open
    assert a["signal"] + a["market"] + a["slippage"] == pytest.approx(b["signal"] + b["market"] + b["slippage"], rel=1e-6)
    assert {k: v["count"] for k, v in a["by_exit_kind"].items()} == {k: v["count"] for k, v in b["by_exit_kind"].items()}
    assert mine["turnover_per_year"] == pytest.approx(theirs["turnover_per_year"], rel=1e-6)
    assert a["funding"] != 0.0
