"""Where a model came from: the version it continues, and the search that chose its hyper-parameters. Kept in its artefact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from crypto_qlib.settings.schema import ModelSettings


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found.

    Parameters
    ----------
    settings : ModelSettings
        As asked for, with the best hyper-parameters.
    asked : ModelSettings
        As asked for.
    n_trials, n_pruned : int
        Trials made, and those of them that were ended early.
    validation_ic : float
        Mean cross-sectional IC of the best on validation.
    parameters : dict
        The best hyper-parameters by settings name.
    """

    settings: ModelSettings
    asked: ModelSettings
    n_trials: int
    n_pruned: int
    validation_ic: float
    parameters: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the settings the model itself holds."""
        return {
            "asked": self.asked.model_dump(mode="json"),
            "n_trials": self.n_trials,
            "n_pruned": self.n_pruned,
            "validation_ic": self.validation_ic,
            "parameters": self.parameters,
        }


@dataclass(frozen=True, slots=True)
class Parent:
    """The version a model was updated from.

    Parameters
    ----------
    identity, sha256 : str
        Run id and digest of its files.
    trained_until_ns : int
        Open time of the last bar it had learned from; the update learned from the bars after it only.
    generation : int
        Updates since a training from nothing, this one included.
    """

    identity: str
    sha256: str
    trained_until_ns: int
    generation: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Parent:
        """Return what :meth:`to_json` gave."""
        return Parent(str(raw["identity"]), str(raw["sha256"]), int(raw["trained_until_ns"]), int(raw["generation"]))
