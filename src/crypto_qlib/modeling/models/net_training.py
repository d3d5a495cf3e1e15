"""Train one network: drawn windows, AdamW, early stopping on validation IC, a checkpoint after every pass.

1. Each pass draws ``epoch_rows`` training rows without replacement (seeded by the pass, so a resumed run draws the same).
2. Loss: Huber on the standardised label; with ``multi_task`` also the log loss of its sign and the Gaussian likelihood of its
   size. One task weighs as much as another.
3. After the pass the mean cross-sectional IC on validation decides: the best weights are kept, ``patience`` passes without
   a better one end the training.
4. The checkpoint holds weights, optimiser and schedule; it is read with ``weights_only``: no code in it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.model_schema import NetSettings

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Gather = Callable[[Int64Array], tuple[Tensor, Tensor]]
"""Give row numbers, get (windows, symbol ids)."""

CHECKPOINT_FILE: Final = "training.pt"
SCORING_ROWS: Final = 2_048
_WARM_UP: Final = 0.1
_CLIP_NORM: Final = 1.0
_TASK_WEIGHT: Final = 0.5


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Labelled rows of one segment.

    Parameters
    ----------
    rows : (n,) int64
        Row numbers that ``gather`` understands.
    label : (n,) float64
        Standardised labels.
    weight : (n,) float64
        Weight of each row, mean about 1.
    """

    rows: Int64Array
    label: FloatArray
    weight: FloatArray


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training.

    Parameters
    ----------
    epochs : int
        Passes made.
    best_epoch : int
        Pass whose weights were kept, from 1.
    best_score : float
        Its validation IC.
    history : tuple of float
        Validation IC after each pass.
    """

    epochs: int
    best_epoch: int
    best_score: float
    history: tuple[float, ...]


def pick_device(wanted: str) -> torch.device:
    """Return the device training runs on.

    Raises
    ------
    UserError
        If CUDA is asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("model.net.device = cuda, but no CUDA device was found", "set model.net.device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def net_loss(out: Tensor, label: Tensor, weight: Tensor, *, multi_task: bool) -> Tensor:
    """Return the weighted loss of outputs ``(n, 3)`` against standardised labels ``(n,)``."""
    loss = nn.functional.huber_loss(out[:, 0], label, reduction="none")
    if multi_task:
        direction = nn.functional.binary_cross_entropy_with_logits(out[:, 1], (label > 0).to(out.dtype), reduction="none")
        log_sd = out[:, 2].clamp(-6.0, 6.0)
        # The size is judged around the prediction, which this task must not pull at.
        size = log_sd + 0.5 * ((label - out[:, 0].detach()) * torch.exp(-log_sd)) ** 2
        loss = loss + _TASK_WEIGHT * direction + _TASK_WEIGHT * size
    return (loss * weight).mean()


class NetTrainer:
    """Fit ``net`` in place.

    Parameters
    ----------
    net : torch module
        As :mod:`crypto_qlib.modeling.models.nets` describes.
    settings : NetSettings
        How to train.
    seed : int
        Of drawing, dropout.
    score : callable
        Validation IC of predictions ``(n_valid,)``.
    progress : callable, optional
        Told the fraction of the work just finished.
    checkpoint : Path, optional
        Folder where ``training.pt`` is kept, so that a killed training goes on; removed at the end.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: NetSettings,
        seed: int,
        score: Callable[[FloatArray], float],
        progress: Callable[[float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.device = pick_device(settings.device)
        self.net = net.to(self.device)
        self._settings = settings
        self._seed = seed
        self._score = score
        self._progress = progress
        self._file = checkpoint / CHECKPOINT_FILE if checkpoint is not None else None
        self.on_score: Callable[[int, float], None] | None = None

    def fit(self, train: TrainingRows, valid: TrainingRows, gather: Gather, *, from_weights: bool = False) -> Trained:
        """Train until the validation IC no longer rises; the network ends with its best weights.

        ``from_weights`` counts the weights it begins with among them, as pass 0.

        Raises
        ------
        UserError
            If the loss is no longer a number.
        """
        s = self._settings
        steps = max(1, math.ceil(min(s.epoch_rows, train.rows.size) / s.batch_rows))
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, s.learning_rate, total_steps=steps * s.epochs, pct_start=_WARM_UP
        )
        forward: Any = torch.compile(self.net) if s.compile else self.net
        best, best_weights, history = -math.inf, self._weights(), []
        if from_weights:
            best = self._score(self.predict(valid.rows, gather))
        state = self._resumed(optimiser, schedule)
        if state is not None:
            history, best, best_weights = state["history"], state["best"], state["best_weights"]
        best_epoch = 1 + int(np.argmax(history)) if history and max(history) >= best else 0
        for epoch in range(len(history), s.epochs):
            if epoch - best_epoch >= s.patience:
                break
            self._one_pass(epoch, train, gather, forward, optimiser, schedule)
            found = self._score(self.predict(valid.rows, gather))
            history.append(found)
            if found > best:
                best, best_epoch, best_weights = found, epoch + 1, self._weights()
            self._keep(optimiser, schedule, history, best, best_weights)
            if self.on_score is not None:
                self.on_score(epoch + 1, best)
        self.net.load_state_dict(best_weights)
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        return Trained(len(history), best_epoch, best, tuple(history))

    def _one_pass(self, epoch: int, train: TrainingRows, gather: Gather, forward: Any, optimiser: Any, schedule: Any) -> None:
        s = self._settings
        rng = np.random.default_rng((self._seed, epoch))
        torch.manual_seed(self._seed * 10_007 + epoch)
        drawn = rng.permutation(train.rows.size)[: s.epoch_rows]
        self.net.train()
        for start in range(0, drawn.size, s.batch_rows):
            pick = drawn[start : start + s.batch_rows]
            x, symbol = gather(train.rows[pick])
            label = torch.from_numpy(train.label[pick].astype(np.float32)).to(self.device)
            weight = torch.from_numpy(train.weight[pick].astype(np.float32)).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=s.bf16):
                out = forward(x.to(self.device), symbol.to(self.device))
            loss = net_loss(out.float(), label, weight, multi_task=s.multi_task)
            if not torch.isfinite(loss):
                raise UserError("the network's loss is no longer a number", "lower model.net.learning_rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), _CLIP_NORM)
            optimiser.step()
            schedule.step()
            if self._progress is not None:
                self._progress(pick.size / drawn.size / s.epochs)

    def predict(self, rows: Int64Array, gather: Gather) -> FloatArray:
        """Return the first output of each row, shape ``(n,)``."""
        self.net.eval()
        result = np.empty(rows.size)
        with torch.inference_mode():
            for start in range(0, rows.size, SCORING_ROWS):
                x, symbol = gather(rows[start : start + SCORING_ROWS])
                result[start : start + SCORING_ROWS] = self.net(x.to(self.device), symbol.to(self.device))[:, 0].cpu().numpy()
        return result

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.net.state_dict().items()}

    def _keep(self, optimiser: Any, schedule: Any, history: list[float], best: float, best_weights: Any) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        pending = self._file.with_suffix(".part")
        torch.save(
            {
                "net": self._weights(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "history": history,
                "best": best,
                "best_weights": best_weights,
            },
            pending,
        )
        pending.replace(self._file)

    def _resumed(self, optimiser: Any, schedule: Any) -> dict[str, Any] | None:
        """Load the checkpoint if there is a fitting one; return it, or None."""
        if self._file is None or not self._file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
            self.net.load_state_dict(state["net"])
            optimiser.load_state_dict(state["optimiser"])
            schedule.load_state_dict(state["schedule"])
        except (RuntimeError, ValueError, KeyError, EOFError, OSError) as e:
            raise UserError(
                f"{self._file} does not fit this training: {e}".splitlines()[0], f"remove {self._file} and train anew"
            ) from e
        return state
