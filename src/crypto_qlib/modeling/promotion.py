"""May this model become champion? Declared rules, each with its limit and what was found; nothing is promoted by a feeling.

1. Its test segment is long enough, and its RankIC is a declared number of standard errors above zero.
2. Its win probability keeps its word.
3. On the bars both scored, the present champion is not clearly better.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from crypto_qlib.modeling.compare_models import Comparison
from crypto_qlib.modeling.evaluate_model import ModelPerformance
from crypto_qlib.settings.model_schema import PromotionSettings


@dataclass(frozen=True, slots=True)
class Ruling:
    """One rule applied.

    Parameters
    ----------
    rule : str
        Its name in the settings.
    limit, actual : float
        What is asked for, and what was found; NaN where it could not be found.
    is_met : bool
        Whether the model passes.
    """

    rule: str
    limit: float
    actual: float
    is_met: bool

    def line(self) -> str:
        """Return the ruling in one line."""
        found = f"{self.actual:.3g}" if math.isfinite(self.actual) else "none"
        return f"{'passed' if self.is_met else 'failed'}: {self.rule} asks for {self.limit:g}, found {found}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rulings on one model."""

    rulings: tuple[Ruling, ...]

    @property
    def is_fit(self) -> bool:
        """Return whether every rule is met."""
        return all(r.is_met for r in self.rulings)

    def evidence(self) -> dict[str, Any]:
        """Return plain JSON values for the journal; numbers that do not exist are null."""
        rows = [asdict(r) for r in self.rulings]
        for row in rows:
            row["actual"] = row["actual"] if math.isfinite(row["actual"]) else None
        return {"is_fit": self.is_fit, "rulings": rows}


def judge(
    performance: ModelPerformance, rules: PromotionSettings, against_champion: Comparison | None = None, name: str = ""
) -> Verdict:
    """Apply the rules to a model.

    Parameters
    ----------
    performance : ModelPerformance
        Its out-of-sample figures.
    rules : PromotionSettings
        The limits.
    against_champion : Comparison, optional
        The model beside the champion on their common bars; absent where there is no champion that can score them.
    name : str
        The model's name in the comparison.
    """
    t_stat = performance.rank_ic.t_stat
    rulings = [
        _at_least("min_test_bars", rules.min_test_bars, performance.rank_ic.n_bars),
        _at_least("min_rank_ic_t", rules.min_rank_ic_t, t_stat),
        _at_most("max_calibration_error", rules.max_calibration_error, performance.calibration_error),
    ]
    if against_champion is not None:
        mine = next(m for m in against_champion.models if m.name == name)
        # The best of the two has nothing to explain; the other must not be behind by more than noise.
        p_noise = mine.p_noise if math.isfinite(mine.p_noise) else 1.0
        rulings.append(_at_least("min_p_champion_is_no_better", rules.min_p_champion_is_no_better, p_noise))
    return Verdict(tuple(rulings))


def _at_least(rule: str, limit: float, actual: float) -> Ruling:
    return Ruling(rule, float(limit), float(actual), bool(actual >= limit))


def _at_most(rule: str, limit: float, actual: float) -> Ruling:
    return Ruling(rule, float(limit), float(actual), bool(actual <= limit))
