"""Which trained models there are, and which one trades: one folder per run id and one atomic pointer, ``champion``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.artefact import META_FILE, SUMS_FILE, TrainedModel, load_model

CHAMPION_FILE: Final = "champion"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One artefact of the registry.

    Parameters
    ----------
    run_id : str
        Folder name.
    name : str
        Model family.
    sha256 : str
        Digest of the model file.
    is_champion : bool
        Whether the pointer names it.
    """

    run_id: str
    name: str
    sha256: str
    is_champion: bool


def model_folder(models: Path, run_id: str) -> Path:
    """Return the artefact folder of ``run_id`` below ``Paths.models``.

    Raises
    ------
    UserError
        If ``run_id`` is no plain folder name.
    """
    if not run_id or run_id != Path(run_id).name or run_id in {".", "..", CHAMPION_FILE}:
        raise UserError(f"{run_id!r} is not a model run id")
    return models / run_id


def list_models(models: Path) -> tuple[ModelVersion, ...]:
    """Return all complete artefacts, by run id."""
    champion = champion_id(models)
    found = []
    for sums in sorted(models.glob(f"*/{SUMS_FILE}")):
        meta = json.loads((sums.parent / META_FILE).read_text())
        run_id = sums.parent.name
        found.append(ModelVersion(run_id, meta["settings"]["name"], meta["sha256"], run_id == champion))
    return tuple(found)


def champion_id(models: Path) -> str | None:
    """Return the run id of the champion, or ``None`` if none was promoted."""
    pointer = models / CHAMPION_FILE
    return pointer.read_text().strip() or None if pointer.is_file() else None


def promote(models: Path, run_id: str) -> None:
    """Make ``run_id`` the champion, atomically, after verifying its artefact.

    Raises
    ------
    UserError
        If the artefact is absent or damaged.
    """
    load_model(model_folder(models, run_id))
    pending = models / f".{CHAMPION_FILE}.{os.getpid()}.part"
    pending.write_text(run_id)
    pending.replace(models / CHAMPION_FILE)


def load_champion(models: Path) -> TrainedModel:
    """Return the champion.

    Raises
    ------
    UserError
        If none was promoted, or its artefact is absent or damaged.
    """
    run_id = champion_id(models)
    if run_id is None:
        raise UserError(f"no champion model in {models}", "run `crypto-qlib train`")
    return load_model(model_folder(models, run_id))
