"""Put the live session together for a number of bars: the champion model, the lake's history, the gateway.

The same session trades paper and live; here it runs on the embedded exchange (stepped bar by bar) or on an exchange whose
bars close by themselves (OKX demo).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crypto_qlib.core.clock import FRAME_NS, ManualClock, SystemClock, floor_ts
from crypto_qlib.core.errors import SkipCycle, UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.membership import Membership
from crypto_qlib.core.order import MarginMode, TriggerSource
from crypto_qlib.core.signal import Scores
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.exchange.okx_live_stream import OkxLiveStream
from crypto_qlib.feature_engineering.online_features import OnlineFeatures
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.live_trading.controls import Controls
from crypto_qlib.live_trading.instance import KILL_FILE, SessionCard, one_instance, one_session_of
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import BarWaiter, PaperResult, RealBars, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.session_report import session_figures, write_session_figures
from crypto_qlib.live_trading.signal_processor import Contracts, Scorer, SignalProcessor, no_scores, window_bars
from crypto_qlib.live_trading.step_timer import StepTimer
from crypto_qlib.live_trading.system_watch import SystemLimits
from crypto_qlib.live_trading.universe_watch import Keeper, UniverseWatch
from crypto_qlib.modeling.artefact import TrainedModel
from crypto_qlib.modeling.train_model import predict_row
from crypto_qlib.portfolio.rules import rules_from_settings
from crypto_qlib.scheduler.alerting import alerting
from crypto_qlib.settings.schema import LiveSettings, Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.event_log import EventLog
from crypto_qlib.store.ledger import Ledger, LedgerPlace, SessionRow
from crypto_qlib.store.live_events import LiveEvent, Tell
from crypto_qlib.store.paths import Paths

_LOG = logging.getLogger(__name__)
EVENTS = "events.jsonl"
"""What happened in the sessions of a workspace, beside their card."""
Show = Callable[[PaperView], None]
Step = Callable[[], int]
Stream = Callable[[Sequence[Instrument]], OkxLiveStream]
Side = Callable[[Sequence[str]], SideData]


def nothing_beside(_symbols: Sequence[str]) -> SideData:
    """Return that nothing is known beside the bars."""
    return SideData()


@dataclass(frozen=True, slots=True)
class SessionInputs:
    """What a session starts from.

    Parameters
    ----------
    model : TrainedModel
        The champion.
    history : MarketPanel
        Bars up to now, at least :func:`window_bars` of them where there are so many.
    instruments, tiers : dict
        Specification and tiers by symbol.
    ledger : LedgerPlace
        Where the session writes; a session on an embedded market that is stepped begins its SQLite file anew.
    session_id : str
        Names one account at one exchange.
    identity : dict
        The run's identity (``settings.identity.Identity.stamp``).
    members : Membership, optional
        The universe over time: who is no member at a bar's close gets no score, so nothing is opened in it.
    side : callable
        Gives what is known beside the bars of the symbols asked for by now; asked again at every bar.
    live : Path, optional
        Folder of the session's card, kill file and figures; beside the ledger where not given.
    secrets : Secrets
        Addresses alerts are sent to.
    keeper : callable, optional
        Gives what keeps the universe current; without it the session trades the coins of ``history``.
    """

    model: TrainedModel
    history: MarketPanel
    instruments: dict[str, Instrument]
    tiers: dict[str, TierHistory]
    ledger: LedgerPlace
    session_id: str
    identity: dict[str, Any]
    members: Membership | None = None
    side: Side = nothing_beside
    live: Path | None = None
    secrets: Secrets = field(default_factory=Secrets)
    keeper: Callable[[Gateway], Keeper] | None = None


def session_ledger(settings: Settings, secrets: Secrets, run_folder: Path) -> LedgerPlace:
    """Return where the session writes: one ledger for the account, but of the embedded exchange one for each run."""
    if settings.exchange.mode == "embedded":
        return LedgerPlace.of(run_folder / "paper_ledger.sqlite")
    return LedgerPlace(settings.store.ledger or str(Paths(settings.store.root).ledger), secrets.ledger_password)


def model_scorer(model: TrainedModel, side: Side = nothing_beside, timer: StepTimer | None = None) -> Scorer:
    """Return the function that scores the last bar of a panel with ``model``; ``side`` gives what is known beside the bars.

    Features go on from bar to bar: asked for one bar after the other, each costs one bar's work.
    """
    laps = timer or StepTimer()
    features = OnlineFeatures(model.feature_settings, model.context_bars + 1)

    def score(panel: MarketPanel) -> Scores:
        try:
            rows = features.latest(panel, side(panel.symbols))
            laps.lap("features")
            return predict_row(model, rows)
        except UserError as e:
            raise SkipCycle(e.message, e.hint) from e

    return score


def opinion(model: TrainedModel, side: Side) -> Scorer:
    """Return the function that scores the last bar of a panel; without an opinion where there can be none."""
    score = model_scorer(model, side)

    def scored(panel: MarketPanel) -> Scores:
        try:
            return score(panel)
        except SkipCycle:
            return no_scores(int(panel.ts_open[-1]) + panel.frame_ns, panel.symbols)

    return scored


async def trade_bars(
    gateway: Gateway,
    settings: Settings,
    inputs: SessionInputs,
    step: Step | None,
    show: Show | None = None,
    stream: Stream | None = None,
) -> PaperResult:
    """Run the session for ``live.paper_bars`` bars.

    Parameters
    ----------
    gateway : Gateway
        The account.
    settings : Settings
        Sections ``strategy``, ``backtest`` (costs, margin mode), ``data`` and ``live`` are read.
    inputs : SessionInputs
        Where it starts.
    step : callable | None
        Moves an embedded market one bar on and returns its time; ``None`` waits for real bars.
    show : callable, optional
        Called with what a person sees after each bar.
    stream : callable, optional
        Gives the websockets of the account and of swaps; used where real bars are waited for.
    """
    frame_ns = FRAME_NS[settings.data.frame]
    now_ns = await gateway.server_time_ns()
    first_close_ns = floor_ts(now_ns, frame_ns)
    rules = rules_from_settings(settings, now_ns)
    contracts = Contracts(inputs.instruments, inputs.tiers, settings.strategy.blacklist)
    heard = None
    if stream is not None and step is None and settings.live.websockets:
        heard = LiveFeed(stream(list(inputs.instruments.values())), frame_ns)
    feed = MarketFeed(
        gateway,
        inputs.history,
        FeedConfig(
            settings.data.frame,
            window_bars(inputs.model.feature_settings, frame_ns, inputs.model.context_bars),
            mark=settings.data.mark_candles,
            funding=settings.data.funding,
            concurrency=settings.data.concurrency,
        ),
        {s: i.funding_interval_h for s, i in inputs.instruments.items()},
        inputs.members,
        heard,
    )
    timer = StepTimer()
    mode, file = settings.exchange.mode, inputs.ledger.path
    folder = inputs.live or (file.parent if file is not None else Path())
    card = SessionCard(inputs.session_id, mode, inputs.ledger.absolute(), os.getpid(), SystemClock().now_ns())
    account = await gateway.account_id() if step is None else ""
    with ExitStack() as stack:
        stack.enter_context(one_instance(folder, card))
        if account:
            stack.enter_context(one_session_of(mode, account))
        if step is not None and file is not None:  # the embedded account is born anew with the exchange, and so is its ledger
            for leftover in file.parent.glob(f"{file.name}*"):
                leftover.unlink()
        session = SessionRow(inputs.session_id, first_close_ns, mode, inputs.identity)
        ledger = Ledger.open(inputs.ledger, session)
        stack.callback(ledger.close)
        book = ControlBook(inputs.ledger, inputs.session_id)
        stack.callback(book.close)
        signals = SignalProcessor(feed, model_scorer(inputs.model, inputs.side, timer), rules, contracts, timer)
        parts = SessionParts(
            gateway=gateway,
            signals=signals,
            ledger=ledger,
            config=SessionConfig(
                inputs.session_id,
                rules,
                RiskLimits.of(settings.live, rules, is_stepped=step is not None),
                MarginMode(settings.backtest.margin_mode),
                TriggerSource(settings.strategy.trigger),
                flatten=settings.live.flatten_on_exit,
                adopt=settings.live.adopt,
            ),
            system=_system_limits(settings.live) if step is None else SystemLimits(),
            check_every_s=settings.live.check_every_s if step is None else 0.0,
            heard=heard,
            universe=None if inputs.keeper is None else UniverseWatch(inputs.keeper(gateway), feed, signals, heard),
            clock=SystemClock() if step is None else ManualClock(first_close_ns),
            dead_man_s=settings.live.dead_man_s if step is None else 0,
            controls=Controls(book, folder / KILL_FILE, card.started_ns),
            tell=_told(
                EventLog(folder / EVENTS), stack.enter_context(alerting(settings, inputs.secrets, inputs.ledger, session))
            ),
        )
        result = await run_session(
            parts, _bar_waiter(step, now_ns, heard, feed), first_close_ns, settings.live.paper_bars, show
        )
        figures = session_figures(ledger, feed.panel, dict(inputs.instruments) | dict(signals.contracts.instruments), rules)
        write_session_figures(figures, file.parent if file is not None else folder, inputs.identity)
        return result


def _told(log: EventLog, listener: Tell) -> Tell:
    """Return a listener that writes every event down, one JSON object a line, and hands it on; a full disk loses lines only."""

    def tell(event: LiveEvent) -> None:
        try:
            log.write(
                event.kind.value, session_ns=event.ts_ns, severity=event.severity.value, symbol=event.symbol, text=event.text,
                **event.facts,
            )  # fmt: skip
        except UserError as e:
            _LOG.warning("%s", e)
        listener(event)

    return tell


def _system_limits(live: LiveSettings) -> SystemLimits:
    return SystemLimits(live.max_api_errors, live.max_rejects, live.max_latency_s, live.max_clock_skew_s)


def _bar_waiter(step: Step | None, now_ns: int, heard: LiveFeed | None, feed: MarketFeed) -> BarWaiter:
    if step is None:
        return RealBars(SystemClock(), arrived=None if heard is None else partial(_all_heard, heard, feed))
    return SteppedBars(_awaitable(step), now_ns)


async def _all_heard(heard: LiveFeed, feed: MarketFeed, close_ns: int, patience_s: float) -> bool:
    """Wait for the bar of every symbol the feed has by then."""
    return await heard.wait_for_bar(feed.panel.symbols, close_ns, patience_s)


def _awaitable(step: Step) -> Callable[[], Awaitable[int]]:
    async def _step() -> int:
        return step()

    return _step
