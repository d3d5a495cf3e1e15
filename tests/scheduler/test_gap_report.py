"""Each cause of a gap injected alone into a session on the embedded exchange: the report names it, and sums exactly."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.analytics.gap import CAUSES, GapPaths, accumulated, gap_between
from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, ManualClock
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.core.market import BarBlock, FundingBlock, MarketPanel
from crypto_qlib.core.signal import Scores
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.gateway import Book, PriceKind
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.gap_inputs import latency_path, live_side
from crypto_qlib.live_trading.journal import rows_of
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.scheduler.gap_report import GapInputs, GapReport, gap_report, write_gap
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger import EquityRow, Ledger, SessionRow
from crypto_qlib.store.live_events import EventKind
from crypto_qlib.venue.venue_config import VenueConfig
from tests.live_trading.test_parity import RULES as PARITY_RULES
from tests.live_trading.test_parity import START_NS, WARM_UP, Tape, score

RULES = PARITY_RULES._replace(expect_funding=False)  # so that other funding changes no decision
FIRST = START_NS + WARM_UP * NS_PER_HOUR
N_BARS = 40


@dataclass(frozen=True)
class Fault:
    """What is wrong with a session; nothing by default."""

    taker_fee: float = 0.0005
    half_spread_bps: float = RULES.half_spread_bps
    funding_times: float = 1.0
    late_bars: tuple[int, ...] = ()
    delayed_bars: tuple[int, ...] = ()
    slow_minutes: int = 0
    scorer: Callable[[MarketPanel], Scores] = score


def contrary(panel: MarketPanel) -> Scores:
    """Say the opposite of the model: not the model that was tested."""
    said = score(panel)
    return Scores(said.as_of_ns, said.symbols, -said.expected_return, said.win_probability, said.uncertainty)


FAULTS: list[tuple[str, Fault]] = [
    ("", Fault()),
    ("fee", Fault(taker_fee=0.0012)),
    ("fill", Fault(half_spread_bps=12.0)),
    ("funding", Fault(funding_times=30.0)),
    ("data", Fault(late_bars=(5, 6, 7, 20))),
    ("latency", Fault(delayed_bars=(N_BARS - 2,))),
    ("signal", Fault(scorer=contrary)),
]


class OtherFunding(Tape):
    """The tape with other funding at the exchange than in the data."""

    def __init__(self, times: float) -> None:
        super().__init__(1, N_BARS)
        self.times = times

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        block = super().funding(symbol, start_ns, end_ns)
        return FundingBlock(block.ts, block.rate * self.times)


class LateGateway(OkxGateway):
    """Bars of one symbol do not come at some closes; the market may move on before a book is read."""

    late_ns: frozenset[int] = frozenset()
    before_a_book: Callable[[], Awaitable[None]] | None = None
    met: dict[str, list[tuple[float, float]]]

    async def book(self, symbol: str, depth: int = 20) -> Book:
        if self.before_a_book is not None:
            await self.before_a_book()
        found = await super().book(symbol, depth)
        self.met.setdefault(symbol, []).append((float(found.bids[0, 0]), float(found.asks[0, 0])))
        return found

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        if end_ns in self.late_ns and symbol == "AAAUSDT":
            raise RetryLater("no answer", retry_after_s=0.0)
        return await super().candles(symbol, frame, start_ns, end_ns, kind)


async def lived(fault: Fault, path: Path) -> dict[str, list[tuple[float, float]]]:
    """Live through the bars and return the best bid and ask of each book that was read, by symbol."""
    tape = OtherFunding(fault.funding_times)
    venue = VenueConfig(RULES.impact_y, fault.half_spread_bps, 0.05)
    options = EmbeddedOptions(
        start_ns=FIRST,
        fees=FeeSchedule(0.0002, fault.taker_fee),
        venue=venue,
        funding_retention_days=None,
        step_frame_ns=NS_PER_MINUTE if fault.slow_minutes else None,
    )
    async with (
        EmbeddedExchange(tape, options) as exchange,
        LateGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        gateway.late_ns = frozenset(FIRST + bar * NS_PER_HOUR for bar in fault.late_bars)

        async def later() -> None:
            for _ in range(fault.slow_minutes):
                await exchange.step()

        gateway.before_a_book, gateway.met = later, {}
        limits = RiskLimits(max_price_deviation=0.5) if fault.slow_minutes else RiskLimits()
        feed = MarketFeed(gateway, tape.panel.known_until(FIRST), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(path, SessionRow("p", FIRST, "embedded", {}))
        parts = SessionParts(
            gateway,
            SignalProcessor(feed, fault.scorer, RULES, Contracts(tape.items, tape.tables)),
            ledger,
            SessionConfig("p", RULES, limits),
            ManualClock(FIRST),
        )
        bars = DelayedBars(SteppedBars(exchange.step, FIRST), {FIRST + bar * NS_PER_HOUR for bar in fault.delayed_bars})
        await run_session(parts, bars, FIRST, N_BARS)
        ledger.close()
        return gateway.met


class DelayedBars:
    """The session gets to act on some bars only when the next one has closed too."""

    def __init__(self, bars: SteppedBars, delayed_ns: set[int]) -> None:
        self._bars = bars
        self._delayed_ns = delayed_ns

    async def wait_until(self, close_ns: int) -> None:
        await self._bars.wait_until(close_ns + (NS_PER_HOUR if close_ns in self._delayed_ns else 0))


def report_of(path: Path, start_ns: int | None = None, end_ns: int | None = None) -> GapReport:
    tape = Tape(1, N_BARS)
    ledger = Ledger.open(path, SessionRow("p", FIRST, "embedded", {}))
    live = live_side(ledger, rows_of(ledger.journal()))
    ledger.close()
    return gap_report(GapInputs("p", live, tape.panel, score, tape.items, tape.tables, RULES), start_ns, end_ns)


@pytest.mark.slow
@pytest.mark.parametrize(("cause", "fault"), FAULTS, ids=[cause or "nothing" for cause, _ in FAULTS])
async def test_the_report_names_the_cause_that_was_injected_alone(cause: str, fault: Fault, tmp_path: Path) -> None:
    await lived(fault, tmp_path / "l.sqlite")
    report = report_of(tmp_path / "l.sqlite")
    gap = report.gap
    assert sum(gap.parts.values()) == pytest.approx(gap.total, abs=1e-6)
    assert gap.total == pytest.approx(gap.live_pnl - gap.reference_pnl)
    whole = sum(report.paths.parts.values())
    assert whole == pytest.approx(report.paths.live - report.paths.reference, abs=1e-6)
    if not cause:
        assert {name: round(part, 3) for name, part in gap.parts.items()} == dict.fromkeys(CAUSES, 0.0)
        assert report.event(1e-6) is None
        return
    assert gap.main_cause == cause, gap.parts
    others = max(abs(part) for name, part in gap.parts.items() if name != cause)
    assert abs(gap.parts[cause]) > 2.0 * others, gap.parts
    told = report.event(0.5 * abs(gap.share))
    assert told is not None
    assert told.kind is EventKind.GAP
    assert cause in told.text.partition(": ")[2].split(",")[0]
    assert report.event(2.0 * abs(gap.share)) is None
    halves = [report_of(tmp_path / "l.sqlite", None, FIRST + 15 * NS_PER_HOUR)] if cause == "fee" else []
    for first_half in halves:
        rest = report_of(tmp_path / "l.sqlite", FIRST + 15 * NS_PER_HOUR).gap
        for name in CAUSES:
            both = first_half.gap.parts[name] + rest.parts[name]
            assert both == pytest.approx(gap.parts[name], abs=1e-6), "days add up to the session"
    page, data = write_gap(report, tmp_path / "reports")
    said = json.loads(data.read_text())
    assert said["main_cause"] == cause
    assert sum(said["parts"].values()) == pytest.approx(said["difference"], abs=1e-6)
    assert f"<td>{cause}</td>" in page.read_text()


@pytest.mark.slow
async def test_what_the_market_moved_before_an_order_arrived_is_latency_and_the_rest_is_fill(tmp_path: Path) -> None:
    met = await lived(Fault(slow_minutes=7), tmp_path / "l.sqlite")
    tape, ledger = Tape(1, N_BARS), Ledger.open(tmp_path / "l.sqlite", SessionRow("p", FIRST, "embedded", {}))
    live, intents = live_side(ledger, rows_of(ledger.journal())), {i.client_order_id: i for i in ledger.intents()}
    ledger.close()
    closes = np.array([row.ts_ns for row in live.equity], np.int64)
    ours = [f for f in live.fills if f.client_order_id in intents and f.ts_ns <= closes[-1]]
    entries = [f for f in ours if intents[f.client_order_id].is_entry]
    assert len(entries) > 20
    expected, late, left = 0.0, 0.0, 0.0
    for fill in entries:
        due = float(tape.panel.open[(intents[fill.client_order_id].decided_ns - START_NS) // NS_PER_HOUR,
                                    tape.panel.symbols.index(fill.symbol)])  # fmt: skip
        middle, size = live.arrivals[fill.client_order_id], 0.1 * fill.signed_lots
        assert middle in {0.5 * (bid + ask) for bid, ask in met[fill.symbol]}
        expected -= size * (middle - due)
        late += abs(size * (middle - due))
        left += abs(size * (fill.price - middle))
    assert latency_path(replace(live, fills=entries), closes, tape.panel, tape.items)[-1] == pytest.approx(expected)
    assert left < 0.25 * late, "what is left for `fill` is spread and impact"


def test_parts_add_up_at_every_close_and_over_any_span() -> None:
    rng = np.random.default_rng(5)
    ts = np.arange(8, dtype=np.int64) * 10
    paths = GapPaths(ts, *(rng.normal(100.0, 5.0, 8) for _ in range(7)))
    assert sum(paths.parts.values()) == pytest.approx(paths.live - paths.reference)
    for start, end in ((0, 70), (15, 49), (30, 35 + 10)):
        gap = gap_between(paths, start, end)
        assert sum(gap.parts.values()) == pytest.approx(gap.total)
    with pytest.raises(ValueError, match="no two closes"):
        gap_between(paths, 31, 38)
    amounts = accumulated(ts, np.array([20, 5, 5], np.int64), np.array([4.0, 1.0, 2.0]))
    assert amounts.tolist() == [0.0, 3.0, 3.0, 7.0, 7.0, 7.0, 7.0, 7.0]


def test_bars_that_do_not_cover_the_session_are_one_clear_line(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l.sqlite", SessionRow("p", FIRST, "embedded", {}))
    with pytest.raises(UserError, match="has not lived through a bar yet"):
        live_side(ledger, [])
    for k in range(3):
        ledger.record_equity(EquityRow(FIRST + k * NS_PER_HOUR, 1e5, 1e5, 0.0, 0.0, 0.0, 0))
    live, tape = live_side(ledger, []), Tape(1, N_BARS)
    inputs = GapInputs("p", live, tape.panel, score, tape.items, tape.tables, RULES)
    day = 24 * NS_PER_HOUR
    for start, end in ((FIRST - 9 * day, FIRST - 8 * day), (FIRST + 8 * day, FIRST + 9 * day)):
        with pytest.raises(UserError, match="has no two closes in that span: it lived from"):
            gap_report(inputs, start, end)
    ledger.close()
