"""From a closed bar to what the session needs to decide: fresh bars, scores, market state.

Scores and market state come from the same functions as in research and backtest, on a window long enough to give the same
numbers bit for bit. A stale or partial view is not an error: the session then only reduces risk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import Scores
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.feature_engineering.feature_generator import lookback_bars
from crypto_qlib.live_trading.events import BarClosed, Freshness
from crypto_qlib.live_trading.market_feed import MarketFeed
from crypto_qlib.live_trading.step_timer import StepTimer
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.portfolio.market_panel import market_states
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.settings.schema import FeatureSettings


class Scorer(Protocol):
    """Score the last bar of a panel."""

    def __call__(self, panel: MarketPanel) -> Scores:
        """Return the scores known at the close of the panel's last bar; raises ``SkipCycle`` where there can be none."""
        ...


@dataclass(frozen=True, slots=True)
class Contracts:
    """Contract rules of the traded symbols.

    Parameters
    ----------
    instruments, tiers : mapping
        Specification and tiers by symbol.
    blacklist : tuple of str
        Symbols never entered.
    """

    instruments: Mapping[str, Instrument]
    tiers: Mapping[str, TierHistory]
    blacklist: tuple[str, ...] = ()


def window_bars(features: FeatureSettings, frame_ns: int, context_bars: int = 0) -> int:
    """Return the bars the live window must hold so that scores and decisions equal those on the whole history.

    ``context_bars`` is what the model looks back over rows of features (``TrainedModel.context_bars``).
    """
    return max(lookback_bars(features, frame_ns) + context_bars, history_bars(frame_ns)) + 1


def no_scores(as_of_ns: int, symbols: tuple[str, ...]) -> Scores:
    """Return scores without an opinion: a decision on them only closes what is due."""
    nothing = np.full(len(symbols), np.nan)
    return Scores(as_of_ns, symbols, nothing, nothing, nothing)


class SignalProcessor:
    """Turn closed bars into :class:`BarClosed` events.

    Parameters
    ----------
    feed : MarketFeed
        The rolling window.
    scorer : Scorer
        The champion.
    rules : Rules
        What market states are worked out for.
    contracts : Contracts
        Contract rules.
    timer : StepTimer, optional
        Books where the time of a cycle goes.
    """

    def __init__(
        self, feed: MarketFeed, scorer: Scorer, rules: Rules, contracts: Contracts, timer: StepTimer | None = None
    ) -> None:
        self.timer = timer or StepTimer()
        self._feed = feed
        self._scorer = scorer
        self._rules = rules
        self._contracts = contracts

    @property
    def contracts(self) -> Contracts:
        """Return the contract rules in force."""
        return self._contracts

    def take_up(self, contracts: Contracts) -> None:
        """Go on with other contract rules, those of every symbol of the feed."""
        self._contracts = contracts

    async def on_close(self, as_of_ns: int, *, is_last: bool = False) -> BarClosed:
        """Fetch the bar that closed at ``as_of_ns`` and return the view of it.

        Scores are withheld (all NaN) where the champion has no opinion on this bar.
        """
        panel, fresh = await self._feed.update(as_of_ns)
        self.timer.lap("bars")
        return self.view(panel, fresh, as_of_ns, is_last=is_last)

    def view(self, panel: MarketPanel, fresh: Freshness, as_of_ns: int, *, is_last: bool = False) -> BarClosed:
        """Return the event for a panel whose last bar closed at ``as_of_ns``."""
        c = self._contracts
        market = market_states(panel, c.instruments, c.tiers, self._rules, c.blacklist).at(as_of_ns)
        self.timer.lap("market")
        try:
            scores = self._scorer(panel) if fresh.fresh else no_scores(as_of_ns, panel.symbols)
        except SkipCycle:
            scores = no_scores(as_of_ns, panel.symbols)
        self.timer.lap("model")
        if scores.as_of_ns != as_of_ns:
            scores = no_scores(as_of_ns, panel.symbols)
        return BarClosed(as_of_ns, scores, market, fresh, is_last)
