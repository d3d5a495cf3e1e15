"""Choose hyper-parameters on validation only, inside one training: nested tuning with Optuna.

1. Frame and labels are cut where the validation segment ends: there is no test bar to be read, whatever a trial does.
2. The first trial is the settings as they are; later ones are drawn by the tree-structured Parzen estimator from the ranges of
   :data:`SPACES`. The sampler of trial ``n`` is seeded with ``n``, so a search that was killed goes on as if it had not been.
3. A trial's value is the mean cross-sectional IC on validation. After every pass (ten trees, an epoch) it is reported, and a
   trial below the median of its predecessors at the same pass is pruned.
4. The best settings train the model that is kept. How many there were is written into it: comparisons are deflated by it.

Trials lie in an append-only journal beside the artefact, or in the database of ``model.tuning.storage``.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import optuna
from sqlalchemy.pool import NullPool

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.families import frame_bins, new_model
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.origin import Tuned
from crypto_qlib.modeling.qlib_task import BarReweighter, make_dataset, windowed_rows
from crypto_qlib.modeling.splits import TimeSplit
from crypto_qlib.modeling.training_checks import correlation_groups, mean_bar_correlation
from crypto_qlib.settings.model_schema import NetSettings
from crypto_qlib.settings.schema import ModelSettings
from crypto_qlib.store.tracking_database import check_server, server_address

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[float], None]
Draw = Callable[[optuna.Trial], Any]

JOURNAL_FILE: Final = "tuning.journal"
_STARTUP_TRIALS: Final = 5
"""Trials drawn at random before the estimator is asked, and left unpruned."""

_TREES: Final[dict[str, Draw]] = {
    "learning_rate": lambda t: t.suggest_float("learning_rate", 0.01, 0.3, log=True),
    "num_leaves": lambda t: t.suggest_int("num_leaves", 7, 127, log=True),
    "min_data_in_leaf": lambda t: t.suggest_int("min_data_in_leaf", 50, 5000, log=True),
    "feature_fraction": lambda t: t.suggest_float("feature_fraction", 0.1, 1.0),
    "lambda_l2": lambda t: t.suggest_float("lambda_l2", 0.1, 100.0, log=True),
}
_NET: Final[dict[str, Draw]] = {
    "net.lookback_bars": lambda t: t.suggest_categorical("net.lookback_bars", [8, 16, 32, 64]),
    "net.hidden": lambda t: t.suggest_categorical("net.hidden", [16, 32, 64]),
    "net.layers": lambda t: t.suggest_int("net.layers", 1, 3),
    "net.dropout": lambda t: t.suggest_float("net.dropout", 0.0, 0.5),
    "net.learning_rate": lambda t: t.suggest_float("net.learning_rate", 1e-4, 1e-2, log=True),
    "net.weight_decay": lambda t: t.suggest_float("net.weight_decay", 1e-4, 1e-1, log=True),
}
SPACES: Final[dict[str, dict[str, Draw]]] = {
    "lightgbm": _TREES, "lstm": _NET, "gru": _NET, "transformer": _NET, "tft": _NET,
}  # fmt: skip
"""What is drawn for each family; the linear family chooses its one penalty by itself."""


def tune(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    split: TimeSplit,
    progress: Progress | None = None,
) -> Tuned:
    """Search ``settings.tuning.trials`` settings, those already in the journal included, and return the best.

    Parameters
    ----------
    frame, labels, split
        As in :func:`~crypto_qlib.modeling.train_model.train_model`; bars from the end of validation on are cut off first.
    settings : ModelSettings
        Family, and the settings the search starts from.
    folder : Path
        Where the journal lies.
    progress : callable, optional
        Told the fraction of the search just finished.

    Raises
    ------
    UserError
        If the family has nothing to tune, no trial could be trained, or the storage cannot be used.
    """
    if settings.name not in SPACES or settings.per_symbol:
        what = "a model per coin" if settings.per_symbol else settings.name
        raise UserError(f"{what} has no hyper-parameters to tune", f"model.name = one of {', '.join(SPACES)}, or trials = 0")
    seen, known = until(frame, labels, split.valid.stop)
    study = _study(settings, folder, split, known, seen)
    bins = frame_bins(settings, seen, split.bins or (split.train.start, split.train.stop))
    dataset = make_dataset(seen, known, split, bins)
    weigher = BarReweighter(known.ts_open, known.symbols, known.weight) if settings.sample_weight == "uniqueness" else None
    problem = ""
    while (n := len(_ended(study))) < settings.tuning.trials:
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed * 10_007 + n, n_startup_trials=_STARTUP_TRIALS)
        trial = study.ask()
        chosen = (
            settings if n == 0 else with_parameters(settings, {k: draw(trial) for k, draw in SPACES[settings.name].items()})
        )
        try:
            study.tell(trial, _value(trial, chosen, dataset, weigher))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except UserError as e:
            if e.message.startswith("leak"):
                raise
            problem = e.message
            study.tell(trial, float("-inf"))
        if progress is not None:
            progress(1.0 / settings.tuning.trials)
    ended = _ended(study)
    done = [t for t in ended if t.state == optuna.trial.TrialState.COMPLETE and t.value is not None and np.isfinite(t.value)]
    if not done:
        raise UserError(f"none of {len(ended)} trials could be trained: {problem}")
    best = max(done, key=lambda t: (t.value or 0.0, -t.number))
    return Tuned(
        with_parameters(settings, best.params),
        settings,
        len(ended),
        len(ended) - len(done),
        float(best.value or 0.0),
        best.params,
    )


def until(frame: FeatureFrame, labels: Labels, stop_bar: int) -> tuple[FeatureFrame, Labels]:
    """Return features and labels of the bars before ``stop_bar``: views, with nothing later behind them."""
    rows = frame.row_span(0, stop_bar)
    cut = {n: getattr(frame, n)[rows] for n in ("values", "row_bar", "row_symbol")}
    grids = ("values", "forward_return", "realised", "trade_long", "trade_short", "weight")
    before = {n: getattr(labels, n)[:stop_bar] for n in grids}
    seen = replace(frame, ts_open=frame.ts_open[:stop_bar], **cut)
    return seen, replace(labels, ts_open=labels.ts_open[:stop_bar], **before)


def with_parameters(settings: ModelSettings, parameters: dict[str, Any]) -> ModelSettings:
    """Return ``settings`` with hyper-parameters by name, those of networks as ``net.NAME``."""
    plain = {k: v for k, v in parameters.items() if not k.startswith("net.")}
    net = {k.removeprefix("net."): v for k, v in parameters.items() if k.startswith("net.")}
    if net:
        plain["net"] = NetSettings.model_validate(settings.net.model_dump() | net)
    return settings.model_copy(update=plain)


def _value(trial: optuna.Trial, chosen: ModelSettings, dataset: Any, weigher: BarReweighter | None) -> float:
    model = new_model(chosen)

    def watch(step: int, score: float) -> None:
        trial.report(score, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    model.on_score = watch
    model.fit(dataset, weigher)
    rows = windowed_rows(dataset, "valid", learning=False)
    known = np.isfinite(rows.label)
    predicted = model.predict_batch(rows.batch(), chosen.threads)[known]
    bar = correlation_groups(rows.bar[rows.sample][known])
    return float(mean_bar_correlation(predicted, rows.label[known], bar))


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    wanted = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=wanted))


def _study(settings: ModelSettings, folder: Path, split: TimeSplit, labels: Labels, frame: FeatureFrame) -> optuna.Study:
    """Open or begin the search of exactly this training; a trial that was cut off by a kill is given up."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spans = [(s.start, s.stop) for s in (split.train, split.valid)]
    what = settings.model_dump(mode="json", exclude={"tuning": {"trials", "storage"}, "threads": True, "tracking": True})
    content = float(np.nansum(labels.values)), float(np.nansum(frame.values[:: max(1, frame.n_rows // 1000)]))
    words = json.dumps([what, spans, frame.names, int(frame.ts_open[0]), content], sort_keys=True)
    name = f"tuning-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    try:
        study = optuna.create_study(
            storage=_storage(settings.tuning.storage, folder),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=1),
            direction="maximize",
            study_name=name,
            load_if_exists=True,
        )
    except (OSError, ImportError, optuna.exceptions.StorageInternalError) as e:
        raise UserError(
            f"the tuning storage cannot be used: {e}".splitlines()[0], "set model.tuning.storage, or leave it empty"
        ) from e
    for cut_off in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(cut_off.number, state=optuna.trial.TrialState.FAIL)
    return study


def _storage(address: str, folder: Path) -> Any:
    if address:
        found = server_address(address)
        check_server(found, "model.tuning.storage")
        # A connection is given back at once: a search waits for minutes between two words to its database.
        return optuna.storages.RDBStorage(found, engine_kwargs={"poolclass": NullPool})
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL_FILE)))
