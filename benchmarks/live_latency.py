"""How long from a bar's close to its orders sent? ``python -m benchmarks live``: fifty symbols, two cores, step by step.

The embedded exchange is a process of its own on one core, the session with its real client, features and model on the other.
Each bar the market is stepped on, and the clock runs from the moment it stands at the close until the last order of the cycle
was answered. The model is a small LightGBM on the default feature sets; every bar closes and opens positions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.live_exchange import NOW_NS, SYMBOLS, market
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MS, ManualClock
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.source_panel import panel_of_source
from crypto_qlib.exchange.credentials import load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_live_stream import OkxLiveStream
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.live_trading.bar_waiters import SteppedBars
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.session_parts import PaperResult, SessionParts
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor, window_bars
from crypto_qlib.live_trading.step_timer import StepTimer
from crypto_qlib.modeling.artefact import TrainedModel
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.train_model import train_model
from crypto_qlib.portfolio.rules import build_rules
from crypto_qlib.scheduler.paper_session import model_scorer
from crypto_qlib.settings.schema import (
    BacktestSettings,
    ExchangeSettings,
    FeatureSettings,
    LiveSettings,
    ModelSettings,
    StrategySettings,
)
from crypto_qlib.store.ledger import Ledger, LedgerPlace, SessionRow

BARS = 24
TRAINED_DAYS = 90


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve the market from another process; yield its URL."""
    command = [sys.executable, "-m", "benchmarks.live_exchange", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def champion(folder: Path, panel: MarketPanel) -> TrainedModel:
    """Train a small model on what the session will know."""
    settings = ModelSettings.model_validate({"num_boost_round": 100, "num_leaves": 31, "threads": 1})
    frame = build_features(panel, FeatureSettings())
    return train_model(frame, make_labels(panel, settings), settings, folder)


def main(argv: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__)
    parser.add_argument("--bars", type=int, default=BARS)
    options = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as url:
        found = {
            "bars by websocket": summary(run_fast(measure(url, Path(name), options.bars, pushed=True))),
            "bars by REST": summary(run_fast(measure(url, Path(name), options.bars, pushed=False))),
        }
    print(json.dumps(found, indent=2))


async def measure(url: str, folder: Path, n_bars: int, *, pushed: bool) -> PaperResult:
    """Run the session for ``n_bars`` bars, on bars that are pushed or on bars that are asked for."""
    tape = market()
    since = NOW_NS - TRAINED_DAYS * NS_PER_DAY
    whole = [i.symbol for i in tape.instruments() if i.listed_ns <= since and i.is_listed(NOW_NS + 2 * n_bars * NS_PER_HOUR)]
    credentials = load_or_create_credentials(folder)
    async with OkxGateway(ExchangeSettings(), credentials, url) as gateway, aiohttp.ClientSession() as admin:
        now_ns = await gateway.server_time_ns()
        panel = panel_of_source(tape, "1h", whole[:SYMBOLS], since, now_ns)
        model = champion(folder / "model", panel)
        rules = build_rules(StrategySettings(max_open=10), BacktestSettings(), NS_PER_HOUR)._replace(holding_bars=3)

        async def step() -> int:
            async with admin.post(f"{url}/admin/step", json={"bars": 1}) as answer:
                return int((await answer.json())["now_ms"]) * NS_PER_MS

        items = {i.symbol: i for i in tape.instruments() if i.symbol in panel.symbols}
        heard = None
        if pushed:
            heard = LiveFeed(OkxLiveStream(Connection(url, credentials), list(items.values()), "1h", None), NS_PER_HOUR)
        config = FeedConfig("1h", window_bars(model.feature_settings, NS_PER_HOUR))
        feed = MarketFeed(gateway, panel, config, {}, None, heard)
        timer, name = StepTimer(), "pushed" if pushed else "asked"
        ledger = Ledger.open(LedgerPlace.of(folder / f"{name}.sqlite"), SessionRow(name, now_ns, "embedded", {}))
        contracts = Contracts(items, {s: tape.tiers(s) for s in panel.symbols})
        signals = SignalProcessor(feed, model_scorer(model, timer=timer), rules, contracts, timer)
        limits = RiskLimits.of(LiveSettings(), rules, is_stepped=True)
        parts = SessionParts(gateway, signals, ledger, SessionConfig(name, rules, limits), ManualClock(now_ns), heard=heard)
        try:
            return await run_session(parts, SteppedBars(step, now_ns), now_ns, n_bars)
        finally:
            ledger.close()


def summary(result: PaperResult) -> dict[str, Any]:
    """Return medians over the bars that sent orders, milliseconds."""
    cycles = [c for c in result.cycles[1:] if c.orders]
    steps = dict.fromkeys(name for c in cycles for name in c.steps)
    return {
        "bars": len(result.cycles),
        "orders_a_bar": round(statistics.mean(c.orders for c in cycles), 1),
        "close_to_last_order_ms": {
            "median": round(1e3 * statistics.median(c.sent_s for c in cycles)),
            "worst": round(1e3 * max(c.sent_s for c in cycles)),
        },
        "median_ms_by_step": {
            name: round(1e3 * statistics.median(c.steps.get(name, 0.0) for c in cycles), 1) for name in steps
        },
    }


if __name__ == "__main__":
    main(sys.argv[1:])
