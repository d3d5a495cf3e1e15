"""Step: would it have worked? Run the leveraged backtest on a panel and its scores as the settings say."""

from __future__ import annotations

import math
from collections.abc import Mapping

from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.portfolio.rules import rules_from_settings
from crypto_qlib.settings.schema import BacktestSettings, Settings


def run_backtest_leveraged(
    panel: MarketPanel,
    scores: ScorePanel,
    instruments: Mapping[str, Instrument],
    tiers: Mapping[str, TierHistory],
    settings: Settings,
    *,
    require_funding: bool = True,
) -> BacktestResult:
    """Return the backtest of ``scores`` on ``panel``, traded from the first usable score to the panel's last bar.

    Parameters
    ----------
    panel : MarketPanel
        Bars of ``data.frame``; include the month before the first score, which volatility and turnover are taken from.
    scores : ScorePanel
        Scores of the segment to be traded.
    instruments, tiers : mapping
        Contract specification and tiers of every symbol of the panel.
    settings : Settings
        ``strategy``, ``backtest`` and ``data.frame``.
    require_funding : bool
        Refuse symbols without a single settlement; False where the market's funding is not known at all.

    Raises
    ------
    UserError
        If the inputs cannot be right; it names symbol and time.
    """
    refuse_finer_bars(settings)
    return run_backtest(leveraged_inputs(panel, scores, instruments, tiers, settings, require_funding=require_funding))


def leveraged_inputs(
    panel: MarketPanel,
    scores: ScorePanel,
    instruments: Mapping[str, Instrument],
    tiers: Mapping[str, TierHistory],
    settings: Settings,
    *,
    require_funding: bool = True,
) -> BacktestInputs:
    """Return what :func:`run_backtest_leveraged` runs: the settings as an engine's inputs; parameters as there."""
    return BacktestInputs(
        panel=panel,
        scores=scores,
        instruments=instruments,
        tiers=tiers,
        rules=rules_from_settings(settings),
        initial_equity=settings.backtest.initial_equity,
        execution=execution_of(settings.backtest),
        fees=settings.backtest.costs.fees(),
        blacklist=settings.strategy.blacklist,
        with_exposure=True,
        veto_log_rows=200_000,
        require_funding=require_funding,
    )


def refuse_finer_bars(settings: Settings) -> None:
    """Refuse ``backtest.execution_frame`` where there is no lake to stream finer bars from.

    Raises
    ------
    UserError
        If the setting asks for finer bars.
    """
    if settings.backtest.execution_frame not in ("", settings.data.frame):
        raise UserError(
            f"backtest.execution_frame = {settings.backtest.execution_frame}: finer bars are streamed from a workspace's lake",
            "use `crypto-qlib backtest`, or run_streamed with the bars at hand",
        )


def execution_of(backtest: BacktestSettings) -> Execution:
    """Return how orders execute under the settings."""
    return Execution(
        max_bar_volume_share=backtest.max_bar_volume_share,
        adl_stress_move=backtest.adl_stress_move or math.inf,
    )
