"""Every feature set there is, by name: what it lists and how it is filled. A new set is one entry of :data:`FEATURE_SETS`.

The catalogue page, the command ``features list`` and the tests (future perturbed, live row = batch row, increments = batch,
symbols permuted) walk through this table, so a set that is listed is documented and tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crypto_qlib.feature_engineering import alpha360, cross_asset, market_structure, technical
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
    """

    name: str
    says: str
    specs: Specs
    jobs: Jobs
    needs_leader: bool = False


def rule_set(
    name: str, says: str, rules: Callable[[int], tuple[FeatureRule, ...]], *, needs_leader: bool = False
) -> FeatureSet:
    """Return a set whose features are rows of a table; ``rules`` maps the bar length in ns to that table."""

    def specs(_settings: FeatureSettings, frame_ns: int) -> tuple[FeatureSpec, ...]:
        return tuple(rule.spec(name) for rule in rules(frame_ns))

    def jobs(
        inputs: FeatureInputs, _settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
    ) -> list[Job]:
        wanted = [(columns[r.name], r) for r in rules(inputs.frame_ns) if r.name in columns]
        return rule_jobs(inputs, wanted, out, n_jobs)

    return FeatureSet(name, says, specs, jobs, needs_leader)


def _alpha360_specs(settings: FeatureSettings, _frame_ns: int) -> tuple[FeatureSpec, ...]:
    return alpha360.alpha360_specs(settings.alpha360_window)


def _alpha360_jobs(
    inputs: FeatureInputs, settings: FeatureSettings, columns: dict[str, int], out: Float32Array, n_jobs: int
) -> list[Job]:
    return alpha360.alpha360_jobs(inputs, settings.alpha360_window, columns, out, n_jobs)


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
)  # fmt: skip

FEATURE_SETS: Final[dict[str, FeatureSet]] = {s.name: s for s in _ALL}
"""Feature sets by name, in the order of the catalogue page."""
