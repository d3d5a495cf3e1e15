"""Chosen feature sets as named, versioned artefacts: ``selections/NAME/vN.json`` and its picture beside it.

A version is never overwritten; the same choice saved again keeps its version. ``features.selection = NAME`` uses the newest,
``NAME@N`` a certain one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_generator import feature_catalogue
from crypto_qlib.feature_engineering.feature_selection import Chosen, FeatureIc
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.parquet_file import write_atomic

_TOP = 25


def save_selection(root: Path, name: str, chosen: Chosen, facts: Mapping[str, Any]) -> Path:
    """Write ``chosen`` as the next version of ``name`` and return its file.

    Parameters
    ----------
    root : Path
        Folder of selections.
    name : str
        Letters, digits, dashes.
    chosen : Chosen
        The choice.
    facts : mapping
        What it was made from: span, horizon, limits, run id.

    Raises
    ------
    UserError
        If the name cannot be a folder.
    """
    folder = artefact_folder(root, name)
    document = {"names": chosen.names, "importance": chosen.importance, "shap": chosen.shap, "periods": chosen.periods,
                "cluster": chosen.cluster, "facts": dict(facts), "screened": [asdict(f) for f in chosen.screened]}  # fmt: skip
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=True)
    versions = _versions(folder)
    if versions and versions[-1][1].read_text() == text:
        return versions[-1][1]
    number = versions[-1][0] + 1 if versions else 1
    path = folder / f"v{number}.json"
    write_atomic(path, text.encode())
    draw_selection(chosen, path.with_suffix(".png"))
    return path


def load_selection(root: Path, wanted: str) -> tuple[str, ...]:
    """Return the features of ``NAME`` (newest version) or ``NAME@N``.

    Raises
    ------
    UserError
        If there is none.
    """
    name, _, number = wanted.partition("@")
    versions = dict(_versions(artefact_folder(root, name)))
    at = int(number) if number.isdigit() else max(versions, default=0)
    if at not in versions or (number and not number.isdigit()):
        raise UserError(f"there is no selection {wanted}", f"run `crypto-qlib features select --name {name}`")
    return tuple(json.loads(versions[at].read_text())["names"])


def only(settings: FeatureSettings, names: tuple[str, ...], frame_ns: int) -> FeatureSettings:
    """Return ``settings`` restricted to ``names``; the columns keep the order of the catalogue.

    Raises
    ------
    UserError
        If a chosen feature belongs to no chosen set.
    """
    known = [s.name for s in feature_catalogue(settings, frame_ns)]
    missing = sorted(set(names) - set(known))
    if missing:
        raise UserError(
            f"the selection names {missing[0]}, which is in none of features.sets", "choose the sets it was made from"
        )
    rest = tuple(n for n in known if n not in set(names))
    return settings.model_copy(update={"exclude": (*settings.exclude, *rest)})


def artefact_folder(root: Path, name: str) -> Path:
    """Return the folder of ``name``.

    Raises
    ------
    UserError
        If the name cannot be a folder.
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{name!r} cannot name a selection", "use letters, digits, dashes")
    return root / name


def _versions(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(p.stem[1:]), p) for p in folder.glob("v*.json") if p.stem[1:].isdigit()]
    return sorted(found)


def draw_selection(chosen: Chosen, path: Path) -> None:
    """Draw t statistics of all features by set; RankIC of the chosen, also by sub-period, and their worth to a model."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only where a picture is wanted

    shown = list(chosen.names[:_TOP])[::-1]
    height = max(6.0, 2.0 + 0.28 * len(shown))
    figure, axes = plt.subplots(1, 5, figsize=(22, height), constrained_layout=True, width_ratios=(1.1, 1.1, 1, 0.8, 0.8))
    _by_family(axes[0], chosen.screened)
    by_name = {f.name: f for f in chosen.screened}
    at = np.arange(len(shown))
    axes[1].barh(at, [by_name[n].mean for n in shown], xerr=[1.96 * by_name[n].standard_error for n in shown], color="#4477aa")
    axes[1].set_yticks(at, shown, fontsize=8)
    axes[1].set_ylim(-0.5, len(shown) - 0.5)
    axes[1].axvline(0.0, color="black", linewidth=0.8)
    axes[1].set_title("mean RankIC of the chosen,\n95 % interval (in sample)")
    _by_period(axes[2], figure, chosen, shown)
    _worth(axes[3:], chosen, shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _by_period(axis: Any, figure: Any, chosen: Chosen, shown: list[str]) -> None:
    """Draw mean RankIC by sub-period: a feature that lasts keeps its colour from left to right."""
    table = np.array([chosen.periods.get(n, ()) or (np.nan,) for n in shown], dtype=np.float64).reshape(len(shown), -1)
    largest = float(np.nanmax(np.abs(table), initial=1e-9)) if np.isfinite(table).any() else 1.0
    image = axis.imshow(table, aspect="auto", origin="lower", cmap="RdBu", vmin=-largest, vmax=largest)
    axis.set_yticks([])
    axis.set_xticks(range(table.shape[1]), [str(k + 1) for k in range(table.shape[1])])
    axis.set_xlabel("sub-period, oldest first")
    axis.set_title("mean RankIC by sub-period")
    figure.colorbar(image, ax=axis, shrink=0.6)


def _worth(axes: Any, chosen: Chosen, shown: list[str]) -> None:
    """Draw what shuffling a feature costs a model, and its share of what the model says, both on purged folds."""
    at = np.arange(len(shown))
    axes[0].barh(at, [chosen.importance.get(n, 0.0) for n in shown], color="#cc6677")
    axes[0].set_title("RankIC lost when shuffled\n(purged folds)")
    pairs = [chosen.shap.get(n, (0.0, 0.0)) for n in shown]
    axes[1].barh(at, [100.0 * a for a, _ in pairs], xerr=[100.0 * b for _, b in pairs], color="#88ccee")
    axes[1].set_title("share of |SHAP|, %\n(spread over purged folds)")
    for axis in axes:
        axis.set_yticks([])
        axis.set_ylim(-0.5, len(shown) - 0.5)
        axis.axvline(0.0, color="black", linewidth=0.8)


def _by_family(axis: Any, screened: tuple[FeatureIc, ...]) -> None:
    groups = list(dict.fromkeys(f.group for f in screened))
    for k, group in enumerate(groups):
        t: npt.NDArray[np.float64] = np.array([f.t_stat for f in screened if f.group == group and np.isfinite(f.t_stat)])
        axis.scatter(np.abs(t), np.full(t.size, k), s=14, alpha=0.5)
    axis.set_yticks(range(len(groups)), groups)
    axis.axvline(1.96, color="black", linestyle=":", linewidth=0.8)
    axis.set_title("|t| of mean RankIC, every feature, by set")
