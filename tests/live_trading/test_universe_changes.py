"""A running session follows its universe: newcomers with their past, leavers to the end of their positions, no restart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, ManualClock
from crypto_qlib.core.errors import RetryLater, SkipCycle, UserError
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, MarketPanel
from crypto_qlib.core.membership import membership_of
from crypto_qlib.core.signal import Scores
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.data_collector.asset_selector import select_universe
from crypto_qlib.data_collector.market_caps import Coin
from crypto_qlib.data_collector.universe_history import universe_snapshots
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.events import PlaceOrder, SetLeverage
from crypto_qlib.live_trading.journal import rows_of
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.replay import differences, replay
from crypto_qlib.live_trading.runner import PaperResult, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.live_trading.universe_watch import UniverseNow, UniverseWatch
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.scheduler.universe_access import universe_over_time
from crypto_qlib.scheduler.universe_keeper import UniverseKeeper
from crypto_qlib.settings.schema import ExchangeSettings, UniverseSettings
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.ledger import Ledger, SessionRow
from tests.live_trading.paper_fakes import START_NS as START
from tests.live_trading.paper_fakes import FakeExchange, contracts, panel
from tests.live_trading.test_parity import RULES, START_NS, WARM_UP, Tape

FIRST = START_NS + WARM_UP * NS_PER_HOUR
BARS = 60
TAPE = Tape(4)
BY_TURNOVER = UniverseSettings(size=3, hysteresis=0, refresh_hours=5.0, market_cap_source="volume")


class NoRanking:
    """A source that is never asked."""

    source, name = "nobody", "nobody"

    async def page(self, number: int) -> Sequence[Coin]:
        raise AssertionError("turnover was asked for")


def columns(panel: MarketPanel, names: Sequence[str]) -> MarketPanel:
    at = [panel.symbols.index(s) for s in names]
    fields = {n: getattr(panel, n)[:, at] for n in PANEL_FIELDS}
    return MarketPanel(tuple(names), panel.frame_ns, panel.ts_open, has_mark=panel.has_mark[at], **fields)


def momentum(view: MarketPanel) -> Scores:
    """Score members by their last return, as a model scores the rows there are."""
    last = np.where(view.is_member[-1], 40.0 * (view.close[-1] / view.close[-2] - 1.0), np.nan)
    sure = np.where(np.isnan(last), np.nan, 0.9)
    return Scores(
        int(view.ts_open[-1]) + view.frame_ns, view.symbols, np.clip(last, -0.2, 0.2), sure, np.full(last.shape, 0.01)
    )


@dataclass(frozen=True)
class Lived:
    """What a session left."""

    result: PaperResult
    feed: MarketFeed
    seen: list[MarketPanel]
    ledger: Ledger
    started_with: tuple[str, ...]


class SlowToAnswer(OkxGateway):
    """The first three questions for the past of a newcomer get no answer."""

    refused = 0

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        if end_ns - start_ns > 100 * NS_PER_HOUR and self.refused < 3:
            self.refused += 1
            raise RetryLater("busy", retry_after_s=0.0)
        return await super().candles(symbol, frame, start_ns, end_ns, kind)


async def live(folder: Path, client: type[OkxGateway] = OkxGateway) -> Lived:
    options = EmbeddedOptions(start_ns=FIRST, funding_retention_days=None)
    lake, seen = Lake(folder / "lake"), list[MarketPanel]()

    def scored(view: MarketPanel) -> Scores:
        seen.append(view)
        return momentum(view)

    async with (
        EmbeddedExchange(TAPE, options) as exchange,
        client(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        first = await select_universe(gateway, NoRanking(), lake, BY_TURNOVER, FIRST)
        members = universe_over_time(lake, first, BY_TURNOVER)
        rules = {s: TAPE.items[s] for s in first.symbols}
        history = columns(TAPE.panel.known_until(FIRST), first.symbols).with_members(members)
        feed = MarketFeed(gateway, history, FeedConfig("1h", history_bars(NS_PER_HOUR)), {}, members)
        contracts = Contracts(rules, {s: TAPE.tiers(s) for s in first.symbols})
        signals = SignalProcessor(feed, scored, RULES, contracts)
        keeper = UniverseKeeper(gateway, NoRanking(), lake, BY_TURNOVER, members, first, keeps=False)
        ledger = Ledger.open(folder / "l.sqlite", SessionRow("s", FIRST, "embedded", {}))
        config = SessionConfig("s", RULES)
        parts = SessionParts(
            gateway, signals, ledger, config, ManualClock(FIRST), universe=UniverseWatch(keeper, feed, signals)
        )
        result = await run_session(parts, SteppedBars(exchange.step, FIRST), FIRST, BARS)
        assert len(universe_snapshots(lake)) == 1, "a market whose time begins anew leaves nothing for the next run"
        return Lived(result, feed, seen, ledger, first.symbols)


@pytest.mark.slow
async def test_a_session_takes_newcomers_up_and_lets_leavers_go(tmp_path: Path) -> None:
    lived = await live(tmp_path)
    assert_sound(lived)
    # While a position was open its coin left: nothing more was opened in it, and the position ended.
    held_leavers = [line for line in lived.result.alerts if "universe of" in line and "held: managed to its end" in line]
    assert held_leavers
    lived.ledger.close()


@pytest.mark.slow
async def test_a_newcomer_whose_past_does_not_come_waits_outside(tmp_path: Path) -> None:
    lived = await live(tmp_path, SlowToAnswer)
    assert any("not yet to the session: busy" in line for line in lived.result.alerts)
    assert_sound(lived)
    lived.ledger.close()


def assert_sound(lived: Lived) -> None:
    """Check what holds whatever the universe did."""
    newcomers = set().union(*(view.symbols for view in lived.seen)) - set(lived.started_with)
    assert newcomers
    steps = [row.step() for row in rows_of(lived.ledger.journal())]
    placed = {s.intent.symbol: k for k, s in reversed(list(enumerate(steps))) if isinstance(s, PlaceOrder)}
    assert newcomers & set(placed), "none of the newcomers was traded"
    for symbol in newcomers & set(placed):
        # Leverage and margin mode are set, and verified, before the first order.
        assert any(isinstance(s, SetLeverage) and s.symbol == symbol for s in steps[: placed[symbol]]), symbol
    belongs = {
        int(v.ts_open[-1]) + NS_PER_HOUR: dict(zip(v.symbols, v.is_member[-1].tolist(), strict=True)) for v in lived.seen
    }
    for intent in lived.ledger.intents():
        if intent.is_entry:
            assert belongs[intent.decided_ns][intent.symbol], intent
    for view in lived.seen:  # every bar of a newcomer was there before it was scored, those before it joined too
        known = TAPE.panel.known_until(int(view.ts_open[-1]) + NS_PER_HOUR)
        tape = columns(known.rows(known.n_bars - view.n_bars, known.n_bars), view.symbols)
        for name in (*PANEL_FIELDS[:6], "mark_close"):
            assert np.array_equal(getattr(view, name), getattr(tape, name), equal_nan=True), name
        joined = [k for k, s in enumerate(view.symbols) if s not in lived.started_with]
        assert not view.is_member[0, joined].any()  # as known then: a coin did not belong before it was chosen
    assert list(differences(replay(rows_of(lived.ledger.journal())), lived.ledger)) == []
    assert lived.result.mode.name == "ACTIVE"


class Ranking:
    """Market caps that can be lost."""

    source, name = "caps", "caps"

    def __init__(self) -> None:
        self.is_lost, self.asked = False, 0

    async def page(self, number: int) -> Sequence[Coin]:
        self.asked += 1
        if self.is_lost:
            raise UserError("no market caps today")
        prices = {s: float(TAPE.panel.close[WARM_UP - 1, k]) for k, s in enumerate(TAPE.panel.symbols)}
        caps = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0] if self.asked == 1 else [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
        return [
            Coin(s[:-4].lower(), s[:-4], s[:-4], prices[s], cap * 1e9)
            for s, cap in sorted(zip(TAPE.panel.symbols, caps, strict=True), key=lambda x: -x[1])
        ]


async def test_the_universe_stays_while_market_caps_cannot_be_had_and_follows_when_they_can(tmp_path: Path) -> None:
    settings = UniverseSettings(size=3, hysteresis=0, refresh_hours=2.0)  # may fall back to turnover at a first choice
    options, lake, ranking = EmbeddedOptions(start_ns=FIRST), Lake(tmp_path / "lake"), Ranking()
    async with (
        EmbeddedExchange(TAPE, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        first = await select_universe(gateway, ranking, lake, settings, FIRST)
        keeper = UniverseKeeper(gateway, ranking, lake, settings, universe_over_time(lake, first, settings), first)
        assert await keeper() is None  # still fresh
        for _ in range(3):
            now = await exchange.step()
        ranking.is_lost, asked = True, ranking.asked
        with pytest.raises(RetryLater, match="no market caps today"):
            await keeper()
        assert await keeper() is None, "asked again at once"
        assert ranking.asked == asked + 1
        ranking.is_lost = False
        now = await exchange.step()
        assert now - FIRST > 15 * NS_PER_MINUTE
        found = await keeper()
        assert found is not None
        assert set(found.current) != set(first.symbols)
        assert set(found.contracts.tiers) == set(found.current) == set(found.contracts.instruments)
        assert [s.as_of_ns for s in universe_snapshots(lake)] == [FIRST, now]
        at = found.members.at(found.current, np.array([now - 1, now]))
        assert at[1].all()
        assert not at[0].all()
        # What another job chose is taken up without asking for market caps again.
        other = UniverseKeeper(gateway, NoRanking(), lake, settings, universe_over_time(lake, first, settings), first)
        same = await other()
        assert same is not None
        assert same.current == found.current


async def test_one_contract_without_tiers_keeps_no_other_out(tmp_path: Path) -> None:
    class OneIsBad(OkxGateway):
        async def tiers(self, symbol: str) -> TierTable:
            if symbol == bad:
                raise SkipCycle(f"OKX lists no position tiers of {symbol}")
            return await super().tiers(symbol)

    options, lake = EmbeddedOptions(start_ns=FIRST), Lake(tmp_path / "lake")
    async with (
        EmbeddedExchange(TAPE, options) as exchange,
        OneIsBad(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        first = await select_universe(gateway, NoRanking(), lake, BY_TURNOVER, FIRST)
        bad = first.symbols[1]
        keeper = UniverseKeeper(gateway, NoRanking(), lake, BY_TURNOVER, universe_over_time(lake, first, BY_TURNOVER), first)
        for _ in range(6):
            await exchange.step()
        found = await keeper()
        assert found is not None
        assert set(found.contracts.instruments) == set(found.contracts.tiers) == set(found.current) - {bad}


async def test_trading_does_not_wait_for_a_look_that_takes_its_time() -> None:
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    watch = UniverseWatch(never, None, None)  # type: ignore[arg-type]
    watch.begin()
    await asked.wait()
    watch.begin()  # one look at a time
    assert watch.seen() is None
    watch.cancel()


async def test_a_column_goes_once_nobody_needs_it() -> None:
    # Every coin's features read BTC; AAA is a member; CCC left before the window began; BBB never belonged, but is held.
    exchange = FakeExchange(panel(60), START + 59 * NS_PER_HOUR)
    members = membership_of([(0, ("AAAUSDT", "CCCUSDT")), (START + 5 * NS_PER_HOUR, ("AAAUSDT",))])
    history = panel(60).rows(0, 59).with_members(members)
    feed = MarketFeed(exchange, history, FeedConfig("1h", 40), {}, members)  # type: ignore[arg-type]
    signals = SignalProcessor(feed, momentum, RULES, contracts())

    async def unchanged() -> UniverseNow:
        return UniverseNow(exchange.now_ns, ("AAAUSDT",), members, Contracts({}, {}))

    watch = UniverseWatch(unchanged, feed, signals)
    prepared = await watch.look()
    assert prepared is not None
    assert watch.take_up(prepared, held=("BBBUSDT",)) == ()
    assert feed.panel.symbols == ("AAAUSDT", "BBBUSDT", "BTCUSDT")
    assert tuple(signals.contracts.instruments) == feed.panel.symbols
    exchange.now_ns += NS_PER_HOUR
    after, fresh = await feed.update(START + 60 * NS_PER_HOUR)
    assert fresh.share == 1.0
    assert np.array_equal(after.close, columns(panel(60), after.symbols).close[-40:])
    watch.take_up(prepared, held=())
    assert feed.panel.symbols == ("AAAUSDT", "BTCUSDT")
