"""The networks: one trunk each over windows of features, and a shared head. Plain torch modules, no training here.

Every network takes ``x`` of shape ``(n_batch, lookback, n_inputs)``, standardised, the last input saying whether the bar was
there, and ``symbol`` of shape ``(n_batch,)``, 0 for an unknown coin. It returns ``(n_batch, 3)``: predicted label in units of
the training label's standard deviation, logit of a positive label, log of the label's standard deviation given the window.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from crypto_qlib.settings.model_schema import NetSettings

N_HEADS: Final = 3
"""Outputs of every network: label, direction, volatility."""


@dataclass(frozen=True, slots=True)
class NetShape:
    """What a network is built for.

    Parameters
    ----------
    n_inputs : int
        Features and the presence flag.
    lookback : int
        Bars in a window.
    n_symbols : int
        Known coins; embeddings hold one more for unknown ones.
    """

    n_inputs: int
    lookback: int
    n_symbols: int


class SymbolEmbedding(nn.Module):
    """A small vector per coin added to the trunk's input; absent where it is switched off."""

    def __init__(self, shape: NetShape, settings: NetSettings) -> None:
        super().__init__()
        self.table = nn.Embedding(shape.n_symbols + 1, settings.hidden) if settings.symbol_embedding else None

    def forward(self, hidden: Tensor, symbol: Tensor) -> Tensor:
        """Return ``hidden`` ``(n_batch, lookback, width)`` plus the coin's vector."""
        return hidden if self.table is None else hidden + self.table(symbol)[:, None, :]


class RecurrentNet(nn.Module):
    """LSTM or GRU over the window; the last state feeds the head."""

    def __init__(self, shape: NetShape, settings: NetSettings, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        width = settings.hidden
        self.project = nn.Sequential(nn.Linear(shape.n_inputs, width), nn.GELU())
        self.symbols = SymbolEmbedding(shape, settings)
        self.trunk = cell(
            width, width, settings.layers, batch_first=True, dropout=settings.dropout if settings.layers > 1 else 0.0
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(settings.dropout), nn.Linear(width, N_HEADS))

    def forward(self, x: Tensor, symbol: Tensor) -> Tensor:
        """Return the three outputs of each window."""
        states, _ = self.trunk(self.symbols(self.project(x), symbol))
        out: Tensor = self.head(states[:, -1])
        return out


class TransformerNet(nn.Module):
    """Pre-norm encoder with causal attention over the window; the last position feeds the head."""

    def __init__(self, shape: NetShape, settings: NetSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.project = nn.Linear(shape.n_inputs, width)
        self.symbols = SymbolEmbedding(shape, settings)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, 2 * width, settings.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.register_buffer("positions", sine_positions(shape.lookback, width), persistent=False)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(shape.lookback), persistent=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(settings.dropout), nn.Linear(width, N_HEADS))

    def forward(self, x: Tensor, symbol: Tensor) -> Tensor:
        """Return the three outputs of each window."""
        hidden = self.symbols(self.project(x) + self.positions, symbol)
        out: Tensor = self.head(self.trunk(hidden, mask=self.causal, is_causal=True)[:, -1])
        return out


def sine_positions(n: int, width: int) -> Tensor:
    """Return the sine and cosine position code, shape ``(n, width)``.

    Source: Vaswani et al., Attention Is All You Need (2017), section 3.5.
    """
    at = torch.arange(n, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    code = torch.zeros(n, width)
    code[:, 0::2] = torch.sin(at * rate)
    code[:, 1::2] = torch.cos(at * rate)[:, : width // 2]
    return code


def _unscaled(out: dict[str, Tensor]) -> Tensor:
    """Return a network's prediction as it is: labels are standardised outside."""
    return out["prediction"]


class FusionNet(nn.Module):
    """pytorch-forecasting's Temporal Fusion Transformer on our windows: the bars before the newest are its encoder's, the
    newest is its decoder's one step; the coin is a static category where the embedding is on.
    """  # noqa: D205 - one sentence

    def __init__(self, shape: NetShape, settings: NetSettings) -> None:
        super().__init__()
        from pytorch_forecasting.metrics import RMSE  # noqa: PLC0415 - heavy, and needed by this family only
        from pytorch_forecasting.models.temporal_fusion_transformer import TemporalFusionTransformer  # noqa: PLC0415

        reals = [f"x{k}" for k in range(shape.n_inputs)]
        static = ["symbol"] if settings.symbol_embedding else []
        self.has_symbol = bool(static)
        with warnings.catch_warnings():
            # It asks not to save modules as hyper-parameters; ours are stateless.
            warnings.filterwarnings("ignore", "Attribute '(loss|logging_metrics)' is an instance of", UserWarning)
            self.trunk = TemporalFusionTransformer(
                hidden_size=settings.hidden,
                lstm_layers=settings.layers,
                dropout=settings.dropout,
                output_size=N_HEADS,
                loss=RMSE(),
                attention_head_size=settings.heads,
                max_encoder_length=shape.lookback - 1,
                static_categoricals=static,
                static_reals=[],
                time_varying_categoricals_encoder=[],
                time_varying_categoricals_decoder=[],
                categorical_groups={},
                time_varying_reals_encoder=reals,
                time_varying_reals_decoder=reals,
                x_reals=reals,
                x_categoricals=static,
                hidden_continuous_size=max(4, settings.hidden // 4),
                embedding_sizes={"symbol": (shape.n_symbols + 1, min(16, settings.hidden))} if static else {},
                embedding_paddings=[],
                embedding_labels={},
                share_single_variable_networks=True,
                logging_metrics=nn.ModuleList(),
                output_transformer=_unscaled,
            )

    def forward(self, x: Tensor, symbol: Tensor) -> Tensor:
        """Return the three outputs of each window."""
        n, lookback = x.shape[0], x.shape[1]
        category = symbol[:, None, None] if self.has_symbol else torch.zeros(n, 1, 0, dtype=torch.long, device=x.device)
        ones = torch.ones(n, dtype=torch.long, device=x.device)
        out = self.trunk(
            {
                "encoder_cont": x[:, :-1],
                "decoder_cont": x[:, -1:],
                "encoder_cat": category.expand(n, lookback - 1, category.shape[2]),
                "decoder_cat": category,
                "encoder_lengths": ones * (lookback - 1),
                "decoder_lengths": ones,
                "target_scale": torch.zeros(n, 2, device=x.device),
            }
        )
        prediction: Tensor = out["prediction"][:, 0]
        return prediction


_NETS: Final[dict[str, Callable[[NetShape, NetSettings], nn.Module]]] = {
    "lstm": lambda shape, settings: RecurrentNet(shape, settings, nn.LSTM),
    "gru": lambda shape, settings: RecurrentNet(shape, settings, nn.GRU),
    "transformer": TransformerNet,
    "tft": FusionNet,
}
"""Builder of each network by its settings name."""


def build_net(name: str, shape: NetShape, settings: NetSettings) -> Any:
    """Return a new network of family ``name`` (``lstm``, ``gru``, ``transformer``, ``tft``) with random weights."""
    return _NETS[name](shape, settings)
