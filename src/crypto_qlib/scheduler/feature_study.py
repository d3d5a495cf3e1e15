"""What the features say: information coefficients, a choice of features, and drift, on the pipeline's own frame and labels.

The choice reads the training segment only; its information on validation and test is reported beside, never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_drift import MOVED, feature_drift
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import feature_catalogue
from crypto_qlib.feature_engineering.feature_reduction import fit_reduction, save_reduction
from crypto_qlib.feature_engineering.feature_selection import FeatureIc, choose, rank_ic_table, screen
from crypto_qlib.feature_engineering.selection_store import artefact_folder, save_selection
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.splits import Segment, TimeSplit
from crypto_qlib.scheduler.pipeline_results import Said

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class FeatureStudy:
    """Features, what came after, and the segments.

    Parameters
    ----------
    frame : FeatureFrame
        Every feature built.
    labels : Labels
        What came after each bar.
    split : TimeSplit
        Train, validation, test.
    stamp : str
        Identity of the features.
    selections : Path
        Folder of saved choices.
    """

    frame: FeatureFrame
    labels: Labels
    split: TimeSplit
    stamp: str
    selections: Path

    @property
    def groups(self) -> list[str]:
        """Return the set of each feature."""
        of = {s.name: s.group for s in feature_catalogue(self.frame.settings, self.frame.frame_ns)}
        return [of[name] for name in self.frame.names]

    def screened(self, segment: Segment) -> list[FeatureIc]:
        """Return what each feature's RankICs say in ``segment``; its last outcomes, not known within it, are left out."""
        span = (segment.start, max(segment.start, segment.stop - self.labels.horizon_bars - 1))
        table = rank_ic_table(self.frame, self.labels.values, span, self.labels.horizon_bars)
        return screen(self.frame, self.groups, table)

    def segment(self, name: str) -> Segment:
        """Return the segment ``train``, ``valid`` or ``test``.

        Raises
        ------
        UserError
            If there is no such segment.
        """
        found = {s.name: s for s in self.split.segments}.get(name)
        if found is None:
            raise UserError(f"there is no segment {name}", "choose train, valid or test")
        return found


def measured(study: FeatureStudy, segment: str, group: str = "") -> Said:
    """Return the strongest features of a segment and a line a set, as text."""
    part = study.segment(segment)
    found = [f for f in study.screened(part) if group in {"", f.group}]
    if not found:
        raise UserError(f"no feature of {group} was built", f"choose one of {', '.join(dict.fromkeys(study.groups))}")
    ranked = sorted((f for f in found if np.isfinite(f.t_stat)), key=lambda f: -abs(f.t_stat))
    first, last = study.frame.ts_open[part.start], study.frame.ts_open[part.stop - 1]
    lines = [
        f"RankIC in the {segment} segment, {iso(int(first))} to {iso(int(last))}, a decision every "
        f"{study.labels.horizon_bars} bars; t by Newey-West, cautiously; q corrected for {len(ranked)} features",
        f"{'feature':<24}{'set':<18}{'RankIC':>8}{'+-':>8}{'t':>7}{'q':>8}{'stable':>8}{'n':>6}",
    ]
    lines += [
        f"{f.name:<24}{f.group:<18}{f.mean:>8.4f}{f.standard_error:>8.4f}{f.t_stat:>7.2f}{f.q_value:>8.3f}{f.stability:>8.0%}{f.n:>6}"
        for f in ranked[:_SHOWN]
    ]
    lines += family_lines(found)
    return Said(tuple(lines))


def family_lines(found: Sequence[FeatureIc]) -> list[str]:
    """Return one line a set: how many features survive the correction, and how large the typical one is."""
    lines = ["", f"{'set':<18}{'features':>9}{'ordering':>9}{'q<=0.05':>9}{'median |IC|':>13}{'largest |t|':>13}"]
    for group in dict.fromkeys(f.group for f in found):
        mine = [f for f in found if f.group == group]
        known = [f for f in mine if np.isfinite(f.t_stat)]
        size = float(np.median([abs(f.mean) for f in known])) if known else float("nan")
        largest = max((abs(f.t_stat) for f in known), default=float("nan"))
        passed = sum(f.q_value <= 0.05 for f in known)  # noqa: PLR2004 - the usual rate
        lines.append(f"{group:<18}{len(mine):>9}{len(known):>9}{passed:>9}{size:>13.4f}{largest:>13.2f}")
    return lines


def selected(study: FeatureStudy, name: str, *, most: int, rate: float, alike: float) -> Said:
    """Choose on the training segment, save the choice as a version, and return what a person should know.

    Parameters
    ----------
    study : FeatureStudy
        Features and labels.
    name : str
        Name of the selection.
    most : int
        Features at most.
    rate : float
        False discovery rate.
    alike : float
        |Spearman| above which features count as one.
    """
    train, horizon = study.split.train, study.labels.horizon_bars
    span = (train.start, train.stop - horizon - 1)
    chosen = choose(
        study.frame, study.groups, study.labels.values, span, horizon, most=most, false_discoveries=rate, alike=alike
    )
    facts = {
        "from": iso(int(study.frame.ts_open[span[0]])), "to": iso(int(study.frame.ts_open[span[1]])), "horizon_bars": horizon,
        "label": study.labels.kind, "false_discoveries": rate, "alike": alike, "features": study.stamp,
    }  # fmt: skip
    path = save_selection(study.selections, name, chosen, facts)
    passed = len(chosen.cluster)
    lines = [
        f"{len(chosen.screened)} features screened on {facts['from']} to {facts['to']}; {passed} survive the correction, in "
        f"{len(set(chosen.cluster.values()))} clusters; {len(chosen.names)} chosen",
        f"saved as {path.parent.name}@{path.stem[1:]}: {path} (picture beside it)",
        f"use it with --set features.selection={path.parent.name}@{path.stem[1:]}",
        "",
        f"{'feature':<24}{'train':>9}{'valid':>9}{'test':>9}{'shuffled':>12}{'SHAP':>12}",
    ]
    tables = [{f.name: f for f in study.screened(s)} for s in study.split.segments]
    for feature in chosen.names[:_SHOWN]:
        ics = "".join(f"{table[feature].mean:>9.4f}" for table in tables)
        share, spread = chosen.shap[feature]
        lines.append(f"{feature:<24}{ics}{chosen.importance[feature]:>12.5f}{share:>7.1%} ±{spread:>4.0%}")
    kept = [np.sign(tables[0][f].mean) == np.sign(tables[2][f].mean) for f in chosen.names]
    lines.append(f"{np.mean(kept):.0%} of the chosen keep the sign of their RankIC in the test segment")
    return Said(tuple(lines))


def reduced(study: FeatureStudy, kind: str, n_components: int, name: str) -> Said:
    """Fit a reduction on the training segment, save it as a version, and return how much it holds and says, as text.

    Parameters
    ----------
    study : FeatureStudy
        Features and labels.
    kind : str
        ``pca`` or ``autoencoder``.
    n_components : int
        How many numbers take the features' place.
    name : str
        Name of the reduction.
    """
    frame, train = study.frame, study.split.train
    fitted = fit_reduction(kind, frame, frame.row_span(train.start, train.stop), n_components)
    folder = artefact_folder(study.selections.with_name("reductions"), name)
    taken = [int(p.stem[1:]) for p in folder.glob("v*.npz") if p.stem[1:].isdigit()]
    path = folder / f"v{max(taken, default=0) + 1}.npz"
    save_reduction(path, fitted)
    names = tuple(f"C{k}" for k in range(n_components))
    small = replace(frame, values=fitted.apply(frame.values), names=names)
    lines = [
        f"{kind}: {len(frame.names)} features as {n_components} numbers, fitted on the training segment; saved as {path}",
        "in a qrun file: crypto_qlib.feature_engineering.qlib_processors.ReduceFeatures",
        "",
        f"{'segment':<10}{'told from them':>16}{'median |RankIC|':>17}{'largest |t|':>13}",
    ]
    for part in study.split.segments:
        values = frame.values[frame.row_span(part.start, part.stop)]
        held = fitted.explained(values[:: max(1, values.shape[0] // 100_000)])
        span = (part.start, max(part.start, part.stop - study.labels.horizon_bars - 1))
        table = rank_ic_table(small, study.labels.values, span, study.labels.horizon_bars)
        found = [f for f in screen(small, ["reduction"] * n_components, table) if np.isfinite(f.t_stat)]
        size = float(np.median([abs(f.mean) for f in found])) if found else float("nan")
        largest = max((abs(f.t_stat) for f in found), default=float("nan"))
        lines.append(f"{part.name:<10}{held:>16.1%}{size:>17.4f}{largest:>13.2f}")
    return Said(tuple(lines))


def drifted(study: FeatureStudy, days: float) -> Said:
    """Return the features that moved most between training and the last ``days`` days, as text."""
    frame, train = study.frame, study.split.train
    bars = max(1, round(days * 86_400e9 / frame.frame_ns))
    found = feature_drift(frame, frame.row_span(train.start, train.stop), frame.row_span(frame.n_bars - bars, frame.n_bars))
    moved = sum(d.index > MOVED for d in found)
    lines = [f"stability index of the last {days:g} days against training: {moved} of {len(found)} features above {MOVED}"]
    lines += [
        f"{d.name:<24}{d.index:>8.3f}  missing {d.missing_then:.0%} -> {d.missing_now:.0%}"
        for d in found[:_SHOWN]
        if np.isfinite(d.index)
    ]
    return Said(tuple(lines))
