"""Models of a workspace: what is there, how they compare, which one trades. One use case a method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crypto_qlib.core.clock import Clock, SystemClock, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import TrainedModel, load_model, verified_meta
from crypto_qlib.modeling.compare_models import Comparison, compare_models
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.model_report import report_model
from crypto_qlib.modeling.promotion import Verdict, judge
from crypto_qlib.modeling.purged_paths import purged_paths, spread
from crypto_qlib.modeling.registry import (
    Promotion,
    champion_id,
    count_trials,
    export_model,
    find_version,
    list_models,
    load_champion,
    model_folder,
    promote,
    promotions,
    rollback,
    set_challenger,
)
from crypto_qlib.modeling.rolling import model_key, out_of_sample_scores
from crypto_qlib.modeling.train_model import predict_scores
from crypto_qlib.modeling.updating import update_model
from crypto_qlib.scheduler.pipeline_results import Said
from crypto_qlib.scheduler.steps import key_of
from crypto_qlib.settings.model_schema import ModelSettings
from crypto_qlib.store.parquet_file import write_atomic
from crypto_qlib.store.paths import Paths

NO_TRACKING = "off"
PATHS_FILE = "purged_paths.json"


@dataclass(frozen=True, slots=True)
class Market:
    """The features, labels and prices models are judged on.

    Parameters
    ----------
    frame : FeatureFrame
        Features of the whole history.
    labels : callable
        Labels for a model's settings.
    panel : MarketPanel
        The prices.
    name : str
        What market it is, in words.
    """

    frame: FeatureFrame
    labels: Callable[[ModelSettings], Labels]
    panel: MarketPanel
    name: str = ""


class ModelShelf:
    """The registry as the command line and the pipeline use it.

    Parameters
    ----------
    paths : Paths
        Of the workspace.
    settings : ModelSettings
        ``promotion`` and ``tracking`` are read.
    clock : Clock, optional
        Stamps promotions.
    """

    def __init__(self, paths: Paths, settings: ModelSettings, clock: Clock | None = None) -> None:
        self._models = paths.models
        self._database = paths.mlflow
        self._settings = settings
        self._clock = clock or SystemClock()

    def trading(self, trained: Callable[[], TrainedModel], *, is_embedded: bool) -> TrainedModel:
        """Return the model a session trades, as ``model.trades`` says; it keeps it until its next start.

        Raises
        ------
        UserError
            If the champion is wanted and there is none, or its files were changed.
        """
        wanted = self._settings.trades
        is_champion = wanted == "champion" or (wanted == "auto" and not is_embedded)
        return load_champion(self._models) if is_champion else trained()

    # ------------------------------------------------------------------- looks

    def listed(self) -> Said:
        """Return a line a version, best RankIC first."""
        found = sorted(list_models(self._models), key=lambda v: (-(v.rank_ic_t or -1e9), v.run_id))
        if not found:
            raise UserError(f"no model in {self._models} yet", "run `crypto-qlib train`")
        lines = []
        for v in found:
            role = "champion" if v.is_champion else "challenger" if v.is_challenger else ""
            measured = "not evaluated" if v.rank_ic is None else f"RankIC {v.rank_ic:+.4f}, t {v.rank_ic_t or 0.0:+.1f}"
            lines.append(f"{v.run_id}  {v.name:<11}  {v.label:<14}  {measured:<26}  {role}".rstrip())
        return Said(tuple(lines))

    def shown(self, given: str) -> Said:
        """Return what one version is made of."""
        run_id = find_version(self._models, given)
        folder = model_folder(self._models, run_id)
        meta = verified_meta(folder)
        spans = (f"  {name}: {iso(a)} to {iso(b)}" for name, (a, b) in meta["segment_ts"].items())
        top, chosen = list(meta["importance"])[:10], meta["settings"]
        lines = [
            f"{run_id}: {chosen['name']} on {chosen['label']}, horizon {chosen['horizon_bars']} bars",
            f"folder: {folder}",
            f"files verified: {', '.join(meta['files'])}; digest {meta['sha256'][:16]}",
            f"features: {len(meta['feature_names'])} from {', '.join(meta['feature_settings']['sets'])}",
            *spans,
            "  ".join(f"{key} {value:g}" for key, value in meta["diagnostics"].items()),
            f"looks at: {', '.join(top)}",
            *_origin_lines(meta),
            f"environment: {', '.join(f'{k} {v}' for k, v in meta['environment'].items())}",
        ]
        lines += [_change_line(c) for c in promotions(self._models) if run_id in (c.run_id, c.previous)]
        return Said(tuple(line for line in lines if line))

    def compared(self, given: tuple[str, ...], market: Market) -> Said:
        """Return a table of versions (all of them if none is named) on the bars all of them scored out of sample."""
        run_ids = [find_version(self._models, g) for g in given] or [v.run_id for v in list_models(self._models)]
        if len(set(run_ids)) < 2:  # noqa: PLR2004 - a comparison takes two
            raise UserError("there are no two models to compare", "train another, or name two")
        first = load_model(model_folder(self._models, run_ids[0]))
        scores = {run_id: self._scores(run_id, market.frame) for run_id in dict.fromkeys(run_ids)}
        found = compare_models(scores, market.labels(first.settings), count_trials(self._models))
        return Said(comparison_lines(found))

    def paths(self, market: Market, n_blocks: int, n_test: int, cost: float, progress: Callable[[float], None]) -> Said:
        """Return how the figures of these settings are spread over combinatorial purged test paths; kept beside the models."""
        labels = market.labels(self._settings)
        found = purged_paths(
            market.frame, labels, self._settings, n_blocks=n_blocks, n_test=n_test, cost=cost, progress=progress
        )
        target = self._models / PATHS_FILE
        until = iso(int(market.frame.known_at_ns[-1]))
        about = {"family": self._settings.name, "settings": key_of(model_key(self._settings)), "until": until}
        write_atomic(target, json.dumps(found.to_json() | about, indent=1).encode())
        lines = [f"{found.n_models} models, {len(found.rank_ic)} paths of {n_blocks} blocks, {n_test} tested at a time"]
        for name, values in (("RankIC", found.rank_ic), ("Sharpe, best less worst fifth, net", found.sharpe)):
            lines.append(f"{name}: " + ", ".join(f"{k} {v:+.3f}" for k, v in spread(values).items() if v is not None))
        return Said((*lines, f"written: {target}"))

    def kept_paths(self) -> dict[str, Any] | None:
        """Return what :meth:`paths` found last, if it was about these settings."""
        file = self._models / PATHS_FILE
        if not file.is_file():
            return None
        kept: dict[str, Any] = json.loads(file.read_text())
        return kept if kept.get("settings") == key_of(model_key(self._settings)) else None

    def _scores(self, run_id: str, frame: FeatureFrame) -> ScorePanel:
        folder = model_folder(self._models, run_id)
        return out_of_sample_scores(load_model(folder), folder, frame)

    # ----------------------------------------------------------------- changes

    def consider(self, run_id: str, performance: ModelPerformance, market: Market) -> Said:
        """Put a newly evaluated model up as challenger, and make it champion if it passes the declared rules."""
        if champion_id(self._models) == run_id:
            self._tell_mlflow()
            return Said((f"model {run_id} is the champion",))
        set_challenger(self._models, run_id)
        verdict, uncompared = self._verdict(run_id, performance, market)
        if verdict.is_fit:
            promote(self._models, run_id, at_ns=self._clock.now_ns(), evidence=verdict.evidence() | uncompared)
        self._tell_mlflow()
        word = "is the new champion" if verdict.is_fit else "stays challenger"
        unmet = tuple(f"  {r.line()}" for r in verdict.rulings if not r.is_met)
        notes = tuple(f"  not compared with the champion: {why}" for why in uncompared.values())
        return Said((f"model {run_id} {word}", *unmet, *notes))

    def promoted(self, given: str, market: Market, reason: str = "") -> Said:
        """Make a version champion: by the rules, or against them with a reason that is kept.

        Raises
        ------
        UserError
            If a rule is not met and no reason is given.
        """
        run_id = find_version(self._models, given)
        model = load_model(model_folder(self._models, run_id))
        performance = evaluate_model(self._scores(run_id, market.frame), market.labels(model.settings))
        verdict, uncompared = self._verdict(run_id, performance, market)
        lines = tuple(r.line() for r in verdict.rulings)
        if not verdict.is_fit and not reason:
            failed = "; ".join(r.line() for r in verdict.rulings if not r.is_met)
            raise UserError(
                f"model {run_id} is not fit to be champion: {failed}", "promote it all the same with --force REASON"
            )
        evidence = verdict.evidence() | uncompared | ({"forced": reason} if reason else {})
        promote(self._models, run_id, at_ns=self._clock.now_ns(), evidence=evidence)
        self._tell_mlflow()
        return Said((*lines, f"model {run_id} is the champion now"))

    def _verdict(self, run_id: str, performance: ModelPerformance, market: Market) -> tuple[Verdict, dict[str, str]]:
        """Return the verdict, and under ``not_compared`` why the champion had no say in it, where it could not score."""
        uncompared: dict[str, str] = {}
        comparison: Comparison | None = None
        champion = champion_id(self._models)
        if champion is not None and champion != run_id:
            labels = market.labels(load_model(model_folder(self._models, run_id)).settings)
            mine = self._scores(run_id, market.frame)
            try:
                comparison = compare_models({run_id: mine, champion: self._scores(champion, market.frame)}, labels)
            except UserError as e:
                uncompared["not_compared"] = e.message
        return judge(performance, self._settings.promotion, comparison, run_id), uncompared

    def rolled_back(self, reason: str = "") -> Said:
        """Make the champion before this one champion again."""
        run_id = rollback(self._models, at_ns=self._clock.now_ns(), reason=reason)
        self._tell_mlflow()
        return Said((f"model {run_id} is the champion again", "a running session takes it at its next start"))

    def updated(self, given: str, market: Market) -> Said:
        """Let a version go on learning from newer bars, measure what comes of it, and put it up as challenger.

        Raises
        ------
        UserError
            As :func:`~crypto_qlib.modeling.updating.update_model`.
        """
        run_id = find_version(self._models, given)
        parent = model_folder(self._models, run_id)
        how, last_ns = self._settings.update, int(market.frame.known_at_ns[-1])
        new_id = key_of(verified_meta(parent)["sha256"], how, last_ns)
        folder = model_folder(self._models, new_id)
        labels = market.labels(load_model(parent).settings)
        model = update_model(parent, market.frame, labels, how, folder, identity=new_id)
        scores = predict_scores(model, market.frame, segment="test")
        generation = model.parent.generation if model.parent else 0
        words = {"title": f"Update {generation} of model {run_id}: {model.settings.name} on {model.settings.label}"}
        stamp = {"run_id": new_id, "parent": run_id}
        performance, page = report_model(model, scores, market.panel, labels, folder, stamp, words | {"market": market.name})
        learned = " to ".join(iso(t) for t in model.segment_ts["train"])
        rank = performance.rank_ic
        return Said((
            f"model {new_id}: update {generation} of {run_id}, learned {learned}",
            f"out of sample: RankIC {rank.mean:+.4f} ± {rank.standard_error:.4f}, t {rank.t_stat:+.1f}",
            f"model report: {page}",
            *self.consider(new_id, performance, market).lines,
        ))  # fmt: skip

    def exported(self, given: str, target: Path) -> Said:
        """Pack a version's artefact into a zip file."""
        return Said((f"written: {export_model(self._models, find_version(self._models, given), target)}",))

    def recorded(self) -> None:
        """Record trainings that MLflow does not know yet; Qlib's ``R`` lists them."""
        self._tell_mlflow()

    def _tell_mlflow(self) -> None:
        if self._settings.tracking == NO_TRACKING:
            return
        from crypto_qlib.modeling.mlflow_registry import mirror, tracking_uri  # noqa: PLC0415 - MLflow takes seconds to import

        mirror(self._models, tracking_uri(self._settings.tracking, self._database))


def _origin_lines(meta: dict[str, Any]) -> Iterator[str]:
    tuning, parent = meta["tuning"], meta["parent"]
    if tuning:
        best = ", ".join(f"{k} {v:.4g}" for k, v in tuning["parameters"].items()) or "the settings as they were"
        yield (
            f"tuned: best of {tuning['n_trials']} trials on validation ({tuning['n_pruned']} ended early), IC "
            f"{tuning['validation_ic']:+.4f}: {best}"
        )
    if parent:
        until = iso(parent["trained_until_ns"])
        yield f"update {parent['generation']} of {parent['identity']}, which had learned until {until}"


def _change_line(change: Promotion) -> str:
    kept = {k: v for k, v in change.evidence.items() if k in ("forced", "reason", "is_fit")}
    line = (
        f"{iso(change.at_ns)} {change.kind}: {change.previous or 'none'} -> {change.run_id} {json.dumps(kept) if kept else ''}"
    )
    return line.rstrip()


def comparison_lines(found: Comparison) -> tuple[str, ...]:
    """Return the comparison as a table in text."""
    lines = [f"{found.n_bars:,} bars scored by all; best of {found.n_trials} tried"]
    for m in found.models:
        rank = f"RankIC {m.rank_ic.mean:+.4f} ± {m.rank_ic.standard_error:.4f}, t {m.rank_ic.t_stat:+.1f}"
        is_best = math.isnan(m.p_noise)
        lines.append(
            f"{m.name}  {rank}" + ("" if is_best else f"  behind by {m.behind_best.mean:.4f}, p of noise {m.p_noise:.2f}")
        )
    lines.append(f"probability that the best of {found.n_trials} useless models shows as much: {found.p_luck:.3f}")
    return tuple(lines)
