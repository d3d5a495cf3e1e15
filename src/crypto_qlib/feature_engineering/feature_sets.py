"""Every feature set there is, by name: what it lists and how it is filled. A new set is one entry of :data:`FEATURE_SETS`.

The catalogue page, the command ``features list`` and the tests (future perturbed, live row = batch row, increments = batch,
symbols permuted) walk through this table, so a set that is listed is documented and tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crypto_qlib.feature_engineering import (
    alpha158,
    alpha360,
    cross_asset,
    cross_coin,
    cross_market,
    derivatives,
    market_structure,
    mood,
    multi_frame,
    sentiment,
    technical,
    volume_flow,
)
from crypto_qlib.feature_engineering.bar_series import FeatureInputs
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.rules import FeatureRule, rule_jobs
from crypto_qlib.settings.schema import FeatureSettings

Job = tuple[object, tuple[object, ...]]
"""A kernel and its arguments; jobs of one build write cells no other job touches."""

Specs = Callable[[FeatureSettings, int], tuple[FeatureSpec, ...]]
Jobs = Callable[[FeatureInputs, FeatureSettings, dict[str, int], Float32Array, int], list[Job]]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """One family of features.

    Parameters
    ----------
    name : str
        As ``features.sets`` spells it.
    says : str
        One sentence for the catalogue.
    specs : callable
        ``(settings, frame_ns)`` -> catalogue entries in column order.
    jobs : callable
        ``(inputs, settings, columns, out, n_jobs)`` -> work that writes the wanted columns (name -> column) into ``out``.
    needs_leader : bool
        Whether BTC must be in the universe.
    is_wide : bool
        Whether it reads series beyond those of the coin's own bars (:mod:`wide_series`).
    """

    name: str
    says: str
    specs: Specs
    jobs: Jobs
    needs_leader: bool = False
    is_wide: bool = False


def rule_set(
    name: str,
    says: str,
    rules: Callable[[int], tuple[FeatureRule, ...]],
    *,
    needs_leader: bool = False,
    is_wide: bool = False,
) -> FeatureSet:
    """Return a set whose features are rows of a table; ``rules`` maps the bar length in ns to that table."""

    def specs(_settings: FeatureSettings, frame_ns: int) -> tuple[FeatureSpec, ...]:
        return tuple(rule.spec(name) for rule in rules(frame_ns))

    def jobs(
        inputs: FeatureInputs, _settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
    ) -> list[Job]:
        wanted = [(columns[r.name], r) for r in rules(inputs.frame_ns) if r.name in columns]
        return rule_jobs(inputs, wanted, out, n_jobs)

    return FeatureSet(name, says, specs, jobs, needs_leader, is_wide)


def _alpha360_specs(settings: FeatureSettings, _frame_ns: int) -> tuple[FeatureSpec, ...]:
    return alpha360.alpha360_specs(settings.alpha360_window)


def _alpha360_jobs(
    inputs: FeatureInputs, settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
) -> list[Job]:
    return alpha360.alpha360_jobs(inputs, settings.alpha360_window, columns, out, n_jobs)


def _alpha158_jobs(
    inputs: FeatureInputs, _settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
) -> list[Job]:
    return alpha158.alpha158_jobs(inputs, columns, out, n_jobs)


def _multi_frame_jobs(
    inputs: FeatureInputs, _settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
) -> list[Job]:
    return multi_frame.multi_frame_jobs(inputs, columns, out, n_jobs)


def _news_jobs(
    inputs: FeatureInputs, _settings: FeatureSettings, columns: dict[str, int], out: Float32Array, _n_jobs: int
) -> list[Job]:
    return [(sentiment.fill_news, (inputs, columns, out))]


_ALL: Final = (
    FeatureSet(
        alpha360.GROUP,
        "The last 60 bars of every price field relative to the current close, and of volume; Qlib's Alpha360.",
        _alpha360_specs,
        _alpha360_jobs,
    ),
    rule_set(technical.GROUP, "Trend, momentum, bands, volatility, range position and volume of one coin.",
             lambda _frame_ns: technical.technical_rules()),
    rule_set(cross_asset.GROUP, "What BTC and the universe did, and where this coin stands among them.",
             lambda _frame_ns: cross_asset.cross_asset_rules(), needs_leader=True),
    rule_set(market_structure.GROUP, "Settled funding, basis of mark to last, turnover.",
             market_structure.market_structure_rules),
    FeatureSet(
        alpha158.GROUP,
        "Candle shape and rolling statistics over 5 to 60 bars; Qlib's Alpha158.",
        lambda _settings, _frame_ns: alpha158.alpha158_specs(),
        _alpha158_jobs,
    ),
    FeatureSet(
        multi_frame.GROUP,
        "Technical features of 4 h and daily bars, from the last one that had closed.",
        lambda _settings, frame_ns: multi_frame.multi_frame_specs(frame_ns),
        _multi_frame_jobs,
    ),
    rule_set(volume_flow.GROUP, "Signed volume, spread, impact and the volume clock; taker flow and order book where recorded.",
             volume_flow.volume_flow_rules, is_wide=True),
    rule_set(derivatives.GROUP, "Predicted and cumulated funding, open interest, index basis, crowding, forced trades.",
             derivatives.derivatives_rules, is_wide=True),
    rule_set(cross_coin.GROUP, "Correlations, peers and sectors, ETH, lead and lag, dispersion, dominance.",
             cross_coin.cross_coin_rules, needs_leader=True, is_wide=True),
    rule_set(cross_market.GROUP, "QQQ's returns, volatility, gap and correlation with BTC; New York's sessions.",
             cross_market.cross_market_rules, needs_leader=True, is_wide=True),
    rule_set(mood.SENTIMENT, "Fear & greed and public attention, at their publication.", mood.sentiment_rules, is_wide=True),
    rule_set(mood.ON_CHAIN, "Activity, valuation and whale holdings on the chain, at their publication.", mood.on_chain_rules,
             is_wide=True),
    FeatureSet(
        sentiment.GROUP,
        "News as it was read: sentiment, volume and surprise, disagreement, events, topics, by coin and for the market.",
        lambda _settings, _frame_ns: sentiment.news_specs(),
        _news_jobs,
    ),
)  # fmt: skip

FEATURE_SETS: Final[dict[str, FeatureSet]] = {s.name: s for s in _ALL}
"""Feature sets by name, in the order of the catalogue page."""
