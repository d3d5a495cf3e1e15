"""Train the autoencoder of :mod:`.feature_reduction` with torch (extra ``torch``); what comes out are plain arrays.

The last fifth of the training rows, in time, is held out: training stops once it has not been told better for a few passes, and
the best weights are kept. One thread and one seed: the same rows give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError

Float32Array = npt.NDArray[np.float32]

PASSES: Final = 60
PATIENCE: Final = 5
BATCH: Final = 1024
RATE: Final = 2e-3
_HELD_OUT: Final = 0.2
_WIDTH: Final = 2.0
"""Hidden width over that of the code, at most the number of features."""


def fit_layers(x: Float32Array, n_components: int, seed: int) -> list[Float32Array]:
    """Return weights and bias of the four layers, in order.

    Parameters
    ----------
    x : (n_rows, n_features) float32
        Scaled training rows, oldest first.
    n_components : int
        Width of the code.
    seed : int
        Of weights and batches.

    Raises
    ------
    UserError
        If torch is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - heavy, and an extra
    except ModuleNotFoundError as e:
        raise UserError("the autoencoder needs torch", "pip install 'crypto-qlib[torch]', or take the reduction pca") from e
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = _network(torch, x.shape[1], n_components)
            _train(torch, network, torch.from_numpy(x), seed)
    finally:
        torch.set_num_threads(threads)
    return [p.detach().numpy().copy() for p in network.parameters()]


def _network(torch: Any, n_features: int, n_components: int) -> Any:
    hidden = max(n_components, min(n_features, round(_WIDTH * n_components)))
    widths: Sequence[int] = (n_features, hidden, n_components, hidden, n_features)
    layers: list[Any] = []
    for k in range(4):
        layers.append(torch.nn.Linear(widths[k], widths[k + 1]))
        if k in (0, 2):
            layers.append(torch.nn.Tanh())
    return torch.nn.Sequential(*layers)


def _train(torch: Any, network: Any, x: Any, seed: int) -> None:
    cut = max(1, round((1.0 - _HELD_OUT) * x.shape[0]))
    learn, held = x[:cut], x[cut:] if cut < x.shape[0] else x
    order = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    best, waited = float("inf"), 0
    kept = {name: p.clone() for name, p in network.state_dict().items()}
    for _ in range(PASSES):
        for rows in np.array_split(order.permutation(cut), -(-cut // BATCH)):
            batch = learn[torch.from_numpy(rows)]
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(network(batch), batch).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(torch.nn.functional.mse_loss(network(held), held))
        if loss < best * (1.0 - 1e-4):
            best, waited = loss, 0
            kept = {name: p.clone() for name, p in network.state_dict().items()}
        else:
            waited += 1
            if waited >= PATIENCE:
                break
    network.load_state_dict(kept)
