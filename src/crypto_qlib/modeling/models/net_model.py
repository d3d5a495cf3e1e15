"""Neural networks on Qlib's model interface: LSTM, GRU, Transformer and Temporal Fusion Transformer share this one model.

1. Columns: Alpha360's lagged columns are left out (the window holds them), then the ``max_features`` best by |IC| in training.
2. Standardisation: median and spread of the training rows, cut at five; missing is zero.
3. Training: :class:`~crypto_qlib.modeling.models.net_training.NetTrainer` on windows gathered on the fly.
4. Scoring: bar by bar on one thread, so that a bar's scores are the same bits whether it is scored alone or in a long run.
5. Artefact: ``net.safetensors`` (weights, no code) and ``net.json`` (columns, standardisation, shape).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from qlib.data.dataset import DatasetH
from qlib.model.base import Model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.models.net_training import NetTrainer, TrainingRows
from crypto_qlib.modeling.models.nets import NetShape, build_net
from crypto_qlib.modeling.qlib_task import BarReweighter, WindowedRows, prediction_series, windowed_rows
from crypto_qlib.modeling.row_batch import RowBatch, gather_windows, row_grid
from crypto_qlib.modeling.training_checks import (
    check_no_leaky_feature,
    check_trainable,
    correlation_groups,
    mean_bar_correlation,
)
from crypto_qlib.settings.model_schema import NetSettings
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

WEIGHTS_FILE: Final = "net.safetensors"
SHAPE_FILE: Final = "net.json"
Z_LIMIT: Final = 5.0
TFT_FEATURES: Final = 16
"""Most features of a Temporal Fusion Transformer: it keeps a network for each, and takes time in proportion."""
_LAGGED: Final = re.compile(r"^(OPEN|HIGH|LOW|CLOSE|VWAP|VOLUME)[1-9]\d*$")
_SPREAD_TO_SIGMA: Final = 1.349
"""Interquartile range of a normal distribution in standard deviations."""
_SAMPLE_ROWS: Final = 50_000


class NetModel(Model):  # type: ignore[misc]
    """A network for ``DatasetH``.

    Parameters
    ----------
    settings : ModelSettings or mapping, optional
        Family and hyper-parameters (a mapping when built by ``qrun``).
    progress : callable, optional
        Told the fraction of the training just finished.
    checkpoint : Path, optional
        Folder of the training's checkpoint.
    """

    FILES: Final = (WEIGHTS_FILE, SHAPE_FILE)

    def __init__(
        self,
        settings: ModelSettings | dict[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        given = settings if settings is not None else {"name": "lstm"}
        self.settings = given if isinstance(given, ModelSettings) else ModelSettings.model_validate(given)
        self.progress = progress
        self.on_score: Callable[[int, float], None] | None = None
        self.checkpoint = checkpoint
        self.net: Any = None
        self.columns: Int64Array = np.empty(0, np.int64)
        self.centre: Float32Array = np.empty(0, np.float32)
        self.scale: Float32Array = np.empty(0, np.float32)
        self.label_sd = math.nan
        self.symbols: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()
        self.trained: dict[str, float] = {}
        self._importance: FloatArray = np.empty(0)

    @property
    def context_bars(self) -> int:
        """Return the bars before the first scored one that a prediction looks at."""
        return self.settings.net.lookback_bars - 1

    # ---------------------------------------------------------------- training

    def fit(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Train on the ``train`` segment; keep the weights with the best mean cross-sectional IC on ``valid``.

        Raises
        ------
        UserError
            If there are too few rows, the labels do not vary, or the loss diverges.
        """
        train = windowed_rows(dataset, "train")
        self._standardise(train)
        low, high = self._checked(train)
        self.label_sd = float(np.clip(train.label, low, high).std())
        self.symbols = train.symbols
        torch.manual_seed(self.settings.seed)
        shape = NetShape(self.columns.size + 1, self.settings.net.lookback_bars, len(self.symbols))
        self._train(build_net(self.settings.name, shape, self.settings.net), self.settings.net, dataset, reweighter)

    def update(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Go on from the weights there are, on the ``train`` segment, for ``model.update.epochs`` passes at a lower rate.

        Columns, standardisation and known coins stay. Where no pass raises the IC on ``valid``, the weights do too.

        Raises
        ------
        UserError
            If it was not trained, there are too few rows, a feature knows the label, or the loss diverges.
        """
        if self.net is None:
            raise UserError("the model is not trained yet")
        chosen = self.settings.update
        rate = self.settings.net.learning_rate * chosen.learning_rate_share
        plan = self.settings.net.model_copy(update={"epochs": chosen.epochs, "learning_rate": rate})
        self._train(self.net.train(), plan, dataset, reweighter, from_weights=True)

    def _checked(self, train: WindowedRows) -> tuple[float, float]:
        """Return the clip bounds of the labels, having looked at rows and features."""
        rows = self.settings.net.batch_rows
        bounds = check_trainable(train.label, 2 * rows, f"two batches of {rows}", "lower model.net.batch_rows")
        check_no_leaky_feature(train.values, train.label, train.bar, train.names, self.settings.max_feature_ic, train.sample)
        return bounds

    def _train(
        self, net: Any, plan: NetSettings, dataset: DatasetH, reweighter: BarReweighter | None, *, from_weights: bool = False
    ) -> None:
        train, valid = windowed_rows(dataset, "train"), windowed_rows(dataset, "valid")
        low, high = self._checked(train)
        outcome = np.clip(train.label, low, high)
        valid_label, valid_bar = np.clip(valid.label, low, high), correlation_groups(valid.bar[valid.sample])

        def score(predicted: FloatArray) -> float:
            return mean_bar_correlation(predicted, valid_label, valid_bar)

        # Both segments read the rows up to validation's end: training rows come first, so row numbers agree.
        grid, first = row_grid(valid.bar, valid.symbol, len(valid.symbols))
        ids = self._symbol_ids(valid.symbols)

        def gather(rows: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
            bar, symbol = valid.bar[rows] - first, valid.symbol[rows]
            return self._windows(valid.values, grid, bar, symbol), torch.from_numpy(ids[symbol])

        weight = reweighter.at(train.bar[train.sample], train.symbol[train.sample]) if reweighter is not None else None
        trainer = NetTrainer(net, plan, self.settings.seed, score, self.progress, self.checkpoint)
        trainer.on_score = self.on_score
        self._use_threads(self.settings.threads)
        found = trainer.fit(
            TrainingRows(train.sample, outcome / self.label_sd, np.ones(outcome.size) if weight is None else weight),
            TrainingRows(valid.sample, valid_label / self.label_sd, np.ones(valid_label.size)),
            gather,
            from_weights=from_weights,
        )
        self.net = trainer.net.to("cpu").eval()
        self.trained = {"epochs": found.epochs, "best_epoch": found.best_epoch, "validation_ic": found.best_score}

    def _standardise(self, train: WindowedRows) -> None:
        """Choose the columns and fit their standardisation on (a spread-out sample of) the training rows."""
        self.names = train.names
        usable = np.array(
            [self.settings.net.lagged_features or _LAGGED.match(name) is None for name in train.names], dtype=np.bool_
        )
        step = max(1, train.sample.size // _SAMPLE_ROWS)
        rows = train.sample[::step]
        sample = np.asarray(train.values[rows], dtype=np.float64)
        sample[~np.isfinite(sample)] = np.nan
        usable &= np.isfinite(sample).any(axis=0)
        self._importance = np.where(usable, column_correlation(sample, train.label[::step]), 0.0)
        most = self.settings.net.max_features or usable.size
        if self.settings.name == "tft":
            most = min(most, TFT_FEATURES)
        best = np.argsort(-np.where(usable, self._importance, -1.0), kind="stable")[: min(most, int(usable.sum()))]
        self.columns = np.sort(best).astype(np.int64)
        low, centre, high = np.nanquantile(sample[:, self.columns], (0.25, 0.5, 0.75), axis=0)
        spread = (high - low) / _SPREAD_TO_SIGMA
        flat = ~(spread > 0.0)
        spread[flat] = np.nanstd(sample[:, self.columns[flat]], axis=0)
        self.centre = centre.astype(np.float32)
        self.scale = np.where(spread > 0.0, spread, 1.0).astype(np.float32)

    def _windows(self, values: Float32Array, grid: npt.NDArray[np.int32], bar: Int64Array, symbol: Int64Array) -> torch.Tensor:
        out = np.empty((bar.size, self.settings.net.lookback_bars, self.columns.size + 1), np.float32)
        gather_windows(
            values, self.columns, grid, bar, symbol, self.settings.net.lookback_bars, self.centre, self.scale, Z_LIMIT, out
        )
        return torch.from_numpy(out)

    @staticmethod
    def _use_threads(threads: int) -> None:
        if threads > 0:
            torch.set_num_threads(threads)

    # ----------------------------------------------------------------- scoring

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        """Return raw predictions of a segment as a series over ``(datetime, instrument)``."""
        rows = windowed_rows(dataset, str(segment), learning=False)
        return prediction_series(dataset, segment, self.predict_batch(rows.batch(), self.settings.threads))

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return raw predictions in label units, shape ``(batch.n_scored,)``; each bar is scored by itself.

        Parameters
        ----------
        batch : RowBatch
            With ``context_bars`` bars before the first scored one where there are so many.
        threads : int
            Not used: one thread gives the same bits everywhere.
        """
        del threads
        if self.net is None:
            raise UserError("the model is not trained yet")
        ids = self._symbol_ids(batch.symbols)
        grid, first = row_grid(batch.bar, batch.symbol, len(batch.symbols))
        edges = np.flatnonzero(np.diff(batch.bar[batch.start :])) + 1 + batch.start
        result = np.empty(batch.n_scored)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for part in np.split(np.arange(batch.start, batch.bar.size), edges - batch.start):
                    x = self._windows(batch.values, grid, batch.bar[part] - first, batch.symbol[part])
                    out = self.net(x, torch.from_numpy(ids[batch.symbol[part]]))
                    result[part - batch.start] = out[:, 0].numpy() * self.label_sd
        finally:
            torch.set_num_threads(before)
        return result

    def _symbol_ids(self, symbols: tuple[str, ...]) -> Int64Array:
        known = {name: k + 1 for k, name in enumerate(self.symbols)}
        return np.array([known.get(name, 0) for name in symbols], dtype=np.int64)

    # ---------------------------------------------------------------- artefact

    def save(self, folder: Path) -> None:
        """Write weights as safetensors and everything else as JSON."""
        if self.net is None:
            raise UserError("the model is not trained yet")
        save_file({k: v.contiguous().clone() for k, v in self.net.state_dict().items()}, folder / WEIGHTS_FILE)
        text = json.dumps(
            {
                "columns": self.columns.tolist(),
                "centre": [float(v) for v in self.centre],
                "scale": [float(v) for v in self.scale],
                "label_sd": self.label_sd,
                "symbols": self.symbols,
                "names": self.names,
                "trained": self.trained,
                "importance": self._importance.tolist(),
            }
        )
        (folder / SHAPE_FILE).write_text(text)

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> NetModel:
        """Return the model saved in ``folder``; neither file can run code.

        Raises
        ------
        UserError
            If a file is not what :meth:`save` writes.
        """
        model = cls(settings)
        try:
            raw = json.loads((folder / SHAPE_FILE).read_text())
            model.columns = np.array(raw["columns"], dtype=np.int64)
            model.centre, model.scale = (np.array(raw[k], dtype=np.float32) for k in ("centre", "scale"))
            model.label_sd, model.symbols, model.names = float(raw["label_sd"]), tuple(raw["symbols"]), tuple(raw["names"])
            model.trained, model._importance = dict(raw["trained"]), np.array(raw["importance"], dtype=np.float64)
            shape = NetShape(model.columns.size + 1, settings.net.lookback_bars, len(model.symbols))
            model.net = build_net(settings.name, shape, settings.net)
            model.net.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
            raise UserError(
                f"{folder / WEIGHTS_FILE} is not a {settings.name} network: {e}".splitlines()[0], "train again"
            ) from e
        model.net.eval()
        return model

    def diagnostics(self) -> dict[str, float]:
        """Return passes made, the pass kept, and its validation IC."""
        return self.trained

    def importance(self) -> FloatArray:
        """Return the |correlation| of each feature with the training label, shape ``(n_features,)``; 0 where not used."""
        used = np.zeros(self._importance.size, dtype=np.bool_)
        used[self.columns] = True
        return np.where(used, self._importance, 0.0)


def column_correlation(values: FloatArray, label: FloatArray) -> FloatArray:
    """Return ``|Pearson correlation|`` of each column with the label over rows where it is known, shape ``(n_features,)``.

    0 without spread or rows.
    """
    known = np.isfinite(values)
    n = np.maximum(known.sum(axis=0), 1)
    x = np.where(known, values, 0.0)
    y = np.where(known, label[:, None], 0.0)
    mean_x, mean_y = x.sum(axis=0) / n, y.sum(axis=0) / n
    x, y = np.where(known, values - mean_x, 0.0), np.where(known, label[:, None] - mean_y, 0.0)
    scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    result: FloatArray = np.abs((x * y).sum(axis=0)) / np.where(scale > 0.0, scale, np.inf)
    return result
