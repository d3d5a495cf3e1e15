"""One model per coin behind one face: each row is scored by its own coin's model; an unknown coin gets no opinion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.families import ScoringModel, load_family
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]

ROUTES_FILE: Final = "symbols.json"


class PerSymbolModel:
    """Members by symbol.

    Parameters
    ----------
    members : dict
        Symbol -> fitted model.
    left_out : dict
        Symbol -> why it has no model; such a coin is never traded.
    """

    def __init__(self, members: dict[str, ScoringModel], left_out: dict[str, str] | None = None) -> None:
        self.left_out = dict(sorted((left_out or {}).items()))
        if not members:
            symbol, why = next(iter(self.left_out.items()), ("there is none", "no symbol"))
            raise UserError(
                f"no coin has enough data for a model of its own ({symbol}: {why})",
                "raise data.history_days, or set model.per_symbol=false",
            )
        self.members = dict(sorted(members.items()))

    @property
    def FILES(self) -> tuple[str, ...]:  # noqa: N802 - as the other families
        """Return the files of all members and the list of symbols."""
        return (ROUTES_FILE, *(f"{s}/{name}" for s, m in self.members.items() for name in m.FILES))

    @property
    def context_bars(self) -> int:
        """Return the longest look-back of the members."""
        return max(m.context_bars for m in self.members.values())

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return raw predictions, shape ``(batch.n_scored,)``; NaN for a coin without a model."""
        result = np.full(batch.n_scored, np.nan)
        scored = batch.symbol[batch.start :]
        for k in np.unique(scored):
            member = self.members.get(batch.symbols[k])
            if member is not None:
                result[scored == k] = member.predict_batch(batch.of_symbol(int(k)), threads)
        return result

    def save(self, folder: Path) -> None:
        """Write each member into a subfolder named by its symbol."""
        for symbol, member in self.members.items():
            (folder / symbol).mkdir(parents=True, exist_ok=True)
            member.save(folder / symbol)
        (folder / ROUTES_FILE).write_text(json.dumps({"members": list(self.members), "left_out": self.left_out}, indent=1))

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> PerSymbolModel:
        """Return the models saved in ``folder``.

        Raises
        ------
        UserError
            If the list of symbols or a member is not what :meth:`save` writes.
        """
        try:
            raw = json.loads((folder / ROUTES_FILE).read_text())
            symbols = [str(s) for s in raw["members"]]
            left_out = {str(s): str(why) for s, why in raw["left_out"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{folder / ROUTES_FILE} does not list symbols: {e}", "train again") from e
        if any(s != Path(s).name for s in symbols):
            raise UserError(f"{folder / ROUTES_FILE} names folders outside the artefact", "never load a model you do not trust")
        return cls({s: load_family(folder / s, settings) for s in symbols}, left_out)

    def diagnostics(self) -> dict[str, float]:
        """Return the number of models and the mean of each of their numbers."""
        found: dict[str, list[float]] = {}
        for member in self.members.values():
            for key, value in member.diagnostics().items():
                found.setdefault(key, []).append(value)
        counts = {"models": float(len(self.members)), "left_out": float(len(self.left_out))}
        return counts | {key: float(np.mean(values)) for key, values in found.items()}

    def importance(self) -> FloatArray:
        """Return the mean of the members' importances, shape ``(n_features,)``."""
        mean: FloatArray = np.mean([m.importance() for m in self.members.values()], axis=0)
        return mean
