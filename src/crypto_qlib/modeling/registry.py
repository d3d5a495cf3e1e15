"""Which trained models there are, which one trades, and why: versions, champion and challenger, promotions and rollback.

An artefact's folder below ``models/`` is a version; its run id is its name. Two small files written in one step each say which
version is champion and which is challenger, so a session that trades can read them without a database, and a change of
champion never leaves it with half a model. Every change is a line of ``promotions.jsonl`` with the evidence it was made on;
rollback goes back along those lines. :mod:`crypto_qlib.modeling.mlflow_registry` shows the same versions and aliases in MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.artefact import META_FILE, SUMS_FILE, TrainedModel, load_model

CHAMPION_FILE: Final = "champion"
CHALLENGER_FILE: Final = "challenger"
JOURNAL_FILE: Final = "promotions.jsonl"
DAMAGED: Final = "damaged"
"""Family shown for a version whose description cannot be read; nothing loads or promotes it."""
_RESERVED: Final = {".", "..", CHAMPION_FILE, CHALLENGER_FILE, JOURNAL_FILE}


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One artefact of the registry.

    Parameters
    ----------
    run_id : str
        Folder name.
    name : str
        Model family.
    label : str
        What it predicts.
    sha256 : str
        Digest of the model's files.
    is_champion, is_challenger : bool
        Whether a pointer names it.
    rank_ic, rank_ic_t : float or None
        Out-of-sample RankIC and its t value; ``None`` before it was evaluated.
    """

    run_id: str
    name: str
    label: str
    sha256: str
    is_champion: bool
    is_challenger: bool
    rank_ic: float | None
    rank_ic_t: float | None


@dataclass(frozen=True, slots=True)
class Promotion:
    """One change of champion.

    Parameters
    ----------
    at_ns : int
        When.
    run_id, previous : str
        New and old champion; the old one is empty at the first.
    kind : str
        ``promote`` or ``rollback``.
    evidence : dict
        What it was decided on.
    """

    at_ns: int
    run_id: str
    previous: str
    kind: str
    evidence: dict[str, Any]


def model_folder(models: Path, run_id: str) -> Path:
    """Return the artefact folder of ``run_id`` below ``Paths.models``.

    Raises
    ------
    UserError
        If ``run_id`` is no plain folder name.
    """
    if not run_id or run_id != Path(run_id).name or run_id in _RESERVED:
        raise UserError(f"{run_id!r} is not a model run id")
    return models / run_id


def find_version(models: Path, given: str) -> str:
    """Return the run id that ``given`` names: itself, an unambiguous beginning of it, ``champion`` or ``challenger``.

    Raises
    ------
    UserError
        If it names none, or several.
    """
    if given in (CHAMPION_FILE, CHALLENGER_FILE):
        found = _pointed(models, given)
        if found is None:
            raise UserError(f"there is no {given} yet", "see `crypto-qlib models list`")
        return found
    known = [v.run_id for v in list_models(models)]
    begun = [run_id for run_id in known if given and run_id.startswith(given)]
    matches = [given] if given in known else begun
    if len(matches) == 1:
        return matches[0]
    what = f"{given} begins {len(matches)} model versions" if matches else f"there is no model version {given!r}"
    raise UserError(what, "see `crypto-qlib models list`")


def list_models(models: Path) -> tuple[ModelVersion, ...]:
    """Return all complete artefacts, by run id."""
    champion, challenger = champion_id(models), _pointed(models, CHALLENGER_FILE)
    found = []
    for sums in sorted(models.glob(f"*/{SUMS_FILE}")):
        run_id = sums.parent.name
        roles = run_id == champion, run_id == challenger
        try:
            meta = json.loads((sums.parent / META_FILE).read_text())
            words = meta["settings"]["name"], meta["settings"]["label"], meta["sha256"]
        except (OSError, ValueError, KeyError):
            words = DAMAGED, "", ""
        found.append(ModelVersion(run_id, *words, *roles, *_measured(sums.parent)))
    return tuple(found)


def _measured(folder: Path) -> tuple[float | None, float | None]:
    report = folder / "model_performance_report.json"
    if not report.is_file():
        return None, None
    rank = json.loads(report.read_text())["rank_ic"]
    return rank["mean"], rank["t_stat"]


def count_trials(models: Path) -> int:
    """Return how many models were tried in all: each version, and of a searched one every trial of its search."""
    total = 0
    for version in list_models(models):
        try:
            tuning = json.loads((models / version.run_id / META_FILE).read_text()).get("tuning")
        except (OSError, ValueError):
            tuning = None
        total += int(tuning["n_trials"]) if tuning else 1
    return total


def champion_id(models: Path) -> str | None:
    """Return the run id of the champion, or ``None`` if none was promoted."""
    return _pointed(models, CHAMPION_FILE)


def _pointed(models: Path, name: str) -> str | None:
    pointer = models / name
    return pointer.read_text().strip() or None if pointer.is_file() else None


def _point(models: Path, name: str, run_id: str) -> None:
    models.mkdir(parents=True, exist_ok=True)
    pending = models / f".{name}.{os.getpid()}.part"
    pending.write_text(run_id)
    pending.replace(models / name)


def set_challenger(models: Path, run_id: str) -> None:
    """Make ``run_id`` the challenger, atomically."""
    _point(models, CHALLENGER_FILE, run_id)


def promote(models: Path, run_id: str, *, at_ns: int = 0, evidence: dict[str, Any] | None = None) -> None:
    """Make ``run_id`` the champion, atomically, after verifying its artefact; the change is journalled first.

    A session that trades goes on with the champion it has loaded and takes the new one at its next start, or when told to.

    Raises
    ------
    UserError
        If the artefact is absent or damaged.
    """
    _change(models, run_id, "promote", at_ns, evidence or {})


def rollback(models: Path, *, at_ns: int = 0, reason: str = "") -> str:
    """Make the champion before the present one champion again and return its run id.

    Two rollbacks in a row go back two promotions, not to and fro.

    Raises
    ------
    UserError
        If there is none to go back to, or its artefact is absent or damaged.
    """
    line: list[str] = []
    for change in promotions(models):
        if change.kind == "rollback" and line:
            line.pop()
        elif change.kind == "promote":
            line.append(change.run_id)
    if len(line) < 2:  # noqa: PLR2004 - the present one and one before it
        raise UserError("there is no earlier champion to go back to", "see `crypto-qlib models list`")
    _change(models, line[-2], "rollback", at_ns, {"reason": reason} if reason else {})
    return line[-2]


def _change(models: Path, run_id: str, kind: str, at_ns: int, evidence: dict[str, Any]) -> None:
    load_model(model_folder(models, run_id))
    line = {"at_ns": at_ns, "run_id": run_id, "previous": champion_id(models) or "", "kind": kind, "evidence": evidence}
    with (models / JOURNAL_FILE).open("a") as journal:
        journal.write(json.dumps(line) + "\n")
        journal.flush()
        os.fsync(journal.fileno())
    _point(models, CHAMPION_FILE, run_id)
    if _pointed(models, CHALLENGER_FILE) == run_id:
        (models / CHALLENGER_FILE).unlink()


def promotions(models: Path) -> tuple[Promotion, ...]:
    """Return every change of champion, oldest first; a torn last line (a kill in mid-write) is passed over.

    Raises
    ------
    UserError
        If a line in the middle cannot be read.
    """
    path = models / JOURNAL_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for k, text in enumerate(lines):
        try:
            raw = json.loads(text)
            found.append(Promotion(int(raw["at_ns"]), raw["run_id"], raw["previous"], raw["kind"], raw["evidence"]))
        except (ValueError, KeyError) as e:
            if k == len(lines) - 1:
                break
            raise UserError(f"line {k + 1} of {path} cannot be read", "restore the file; nothing is promoted until then") from e
    return tuple(found)


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


def export_model(models: Path, run_id: str, target: Path) -> Path:
    """Pack the artefact of ``run_id`` into ``target`` (a ``.zip`` file) after verifying it, and return its path.

    Raises
    ------
    UserError
        If the artefact is damaged, or the file exists already or cannot be written.
    """
    folder = model_folder(models, run_id)
    load_model(folder)
    if target.suffix != ".zip":
        raise UserError(f"{target} should end in .zip")
    if target.exists():
        raise UserError(f"{target} exists already", "name another file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pending = shutil.make_archive(str(target.with_suffix(".part")), "zip", folder)
        Path(pending).replace(target)
    except OSError as e:
        raise UserError(f"{target} cannot be written: {e.strerror}") from e
    return target
