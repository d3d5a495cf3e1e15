"""What a session scores with, bar after bar, is what a rebuild of its window and what the batch give, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.errors import RetryLater
from crypto_qlib.core.market import BarBlock, MarketPanel
from crypto_qlib.core.signal import Scores
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features
from crypto_qlib.feature_engineering.online_features import OnlineFeatures
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.runner import SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor, window_bars
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.train_model import predict_row, predict_scores, train_model
from crypto_qlib.scheduler import paper_session
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from crypto_qlib.store.ledger import Ledger, LedgerPlace, SessionRow
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.noise_market import noise_panel, same_bits

SETS = FeatureSettings(sets=("technical", "btc_relative", "funding"))
TAPE = noise_panel(1020, 6, seed=11)
FIRST, BARS, LATE = 990, 20, 1000
SILENT = TAPE.symbols[3]


class LateExchange(FakeExchange):
    """One symbol's bars do not come at one close; they come with the next."""

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        if symbol == SILENT and self.now_ns == int(TAPE.ts_open[LATE]) + TAPE.frame_ns:
            raise RetryLater("busy", retry_after_s=0.0)
        return await super().candles(symbol, frame, start_ns, end_ns, kind)


async def test_a_session_goes_on_from_bar_to_bar_with_the_scores_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[OnlineFeatures] = []

    def recorded(settings: FeatureSettings, bars: int) -> OnlineFeatures:
        made.append(OnlineFeatures(settings, bars))
        return made[-1]

    monkeypatch.setattr(paper_session, "OnlineFeatures", recorded)
    training = TAPE.rows(0, FIRST)
    wanted = ModelSettings.model_validate({"num_boost_round": 10, "num_leaves": 7, "threads": 1})
    model = train_model(build_features(training, SETS), make_labels(training, wanted), wanted, tmp_path / "model")
    score, lived = paper_session.model_scorer(model), list[tuple[MarketPanel, Scores]]()

    def scored(panel: MarketPanel) -> Scores:
        lived.append((panel, score(panel)))
        return lived[-1][1]

    rules = contracts(TAPE.symbols)
    now = int(TAPE.ts_open[FIRST]) + NS_PER_HOUR
    exchange = LateExchange(TAPE, now, contracts=rules)
    feed = MarketFeed(exchange, TAPE.rows(0, FIRST + 1), FeedConfig("1h", window_bars(SETS, NS_PER_HOUR)), {})
    ledger = Ledger.open(LedgerPlace.of(tmp_path / "l.sqlite"), SessionRow("s", now, "embedded", {}))
    try:
        signals = SignalProcessor(feed, scored, RULES._replace(max_open=3), rules)
        parts = SessionParts(exchange, signals, ledger, SessionConfig("s", RULES), ManualClock(now))
        await run_session(parts, SteppedBars(exchange.step, now), now, BARS)
    finally:
        ledger.close()

    whole = predict_scores(model, build_features(TAPE, SETS))
    assert len(lived) == BARS + 1
    for bar, (panel, seen) in enumerate(lived, FIRST):
        rebuilt = predict_row(model, latest_features(panel, SETS, model.context_bars + 1))
        assert same_bits(seen.expected_return, rebuilt.expected_return), bar
        if bar != LATE:  # there the market of the session lacked a bar the batch has
            assert same_bits(seen.expected_return, whole.expected_return[bar]), bar
    at_late = lived[LATE - FIRST][1]
    assert np.isnan(at_late.expected_return[TAPE.symbols.index(SILENT)])
    # The window is built at the start, and anew when the late bar is there; every other bar was one bar's work.
    assert [(o.rebuilt, o.advanced) for o in made] == [(2, BARS - 1)]
