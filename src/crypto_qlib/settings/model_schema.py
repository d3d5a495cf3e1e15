"""Settings of the model: what is predicted, by which family, on which split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from crypto_qlib.settings.section import Fraction, Section


class NetSettings(Section):
    """Neural networks: architecture and training (families lstm, gru, transformer, tft)."""

    lookback_bars: int = Field(32, ge=2, le=512, description="Bars of features a network sees, the current one included.")
    hidden: int = Field(32, ge=4, le=512, description="Width of the network.")
    layers: int = Field(1, ge=1, le=8, description="Recurrent or attention layers.")
    heads: int = Field(4, ge=1, le=16, description="Attention heads; must divide the width.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout while training.")
    multi_task: bool = Field(True, description="Also learn direction and volatility, with heads on one trunk.")
    symbol_embedding: bool = Field(False, description="Let one network for all coins know which coin it looks at.")
    max_features: int = Field(48, ge=0, description="Features fed: the best by |IC| in training; 0 = all.")
    lagged_features: bool = Field(False, description="Also feed Alpha360's lagged columns, which the window holds anyway.")
    epochs: int = Field(12, ge=1, description="Largest number of passes.")
    patience: int = Field(3, ge=1, description="Passes without a better validation IC before stopping.")
    epoch_rows: int = Field(65_536, ge=256, description="Rows drawn per pass (without replacement); fewer if there are fewer.")
    batch_rows: int = Field(512, ge=16, description="Rows per step.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train; auto = CUDA where there is one.")
    bf16: bool = Field(False, description="Train in bfloat16 autocast.")
    compile: bool = Field(False, description="Compile the network with torch.compile (needs a C++ compiler on a CPU).")

    @model_validator(mode="after")
    def _divide(self) -> NetSettings:
        if self.hidden % self.heads:
            raise ValueError(f"heads = {self.heads} must divide hidden = {self.hidden}")
        return self


class EnsembleSettings(Section):
    """Several families together (model.name = ensemble)."""

    members: tuple[Literal["lightgbm", "linear", "lstm", "gru", "transformer", "tft"], ...] = Field(
        ("lightgbm", "linear"), min_length=1, description="Families that are trained and combined."
    )
    method: Literal["average", "stack", "regime"] = Field(
        "average",
        description="average = mean of standardised predictions; stack = non-negative weights fitted on the first half of "
        "validation; regime = such weights for calm and for wild markets.",
    )


class RollingSettings(Section):
    """Retraining while time goes on: one model per step, each scored on the bars after it only."""

    step_bars: int = Field(0, ge=0, description="Bars each model is used for before the next is trained; 0 = one model.")
    window: Literal["expanding", "sliding"] = Field(
        "expanding", description="Training from the oldest bar on, or over a span of constant length."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that train steps at once on this machine.")
    dask: str = Field("", description="Address of a Dask scheduler whose workers train the steps instead; empty = none.")


class UpdateSettings(Section):
    """How `crypto-qlib models update` lets a fitted model go on learning."""

    method: Literal["continue", "refit"] = Field(
        "continue", description="LightGBM: continue = more trees, refit = the same trees with their leaves moved."
    )
    rounds: int = Field(30, ge=1, description="Trees an update adds at most (continue).")
    decay: Fraction = Field(0.9, description="Share of a leaf's old value that is kept (refit).")
    epochs: int = Field(3, ge=1, description="Passes of a network over the new rows at most.")
    learning_rate_share: float = Field(0.3, gt=0, le=1, description="A network's learning rate in an update, share of its own.")


class TuningSettings(Section):
    """Search of hyper-parameters on validation, inside every training."""

    trials: int = Field(0, ge=0, description="Settings tried in each training, these ones included; 0 = no search.")
    storage: str = Field(
        "", description="Optuna database of the trials, e.g. postgresql://user@host/optuna (needs crypto-qlib[postgres]; the "
        "password comes from PGPASSWORD); empty = a journal beside the model."
    )  # fmt: skip


class PromotionSettings(Section):
    """What a model must show out of sample before it becomes champion."""

    min_test_bars: int = Field(100, ge=1, description="Bars of the test that count.")
    min_rank_ic_t: float = Field(2.0, description="RankIC in standard errors above zero.")
    max_calibration_error: Fraction = Field(0.1, description="Calibration error of the win probability.")
    min_p_champion_is_no_better: Fraction = Field(
        0.1, description="Probability that the champion's lead on common bars is noise; below it the champion stays."
    )


class ModelSettings(Section):
    """What is predicted, by what, on which split."""

    name: Literal["lightgbm", "linear", "lstm", "gru", "transformer", "tft", "ensemble"] = Field(
        "lightgbm", description="Model family."
    )
    objective: Literal["regression", "classification", "ranking"] = Field(
        "regression",
        description="What LightGBM minimises: squared error, log loss of the label's sign, or LambdaRank within each bar.",
    )
    per_symbol: bool = Field(False, description="Train one model per coin instead of one for all.")
    horizon_bars: int = Field(24, ge=1, description="Forward horizon of the label, bars; entry at the next bar's open.")
    label: Literal[
        "excess_return", "forward_return", "excess_btc", "net_return", "direction", "vol_scaled", "rank", "triple_barrier"
    ] = Field("excess_return", description="Label; the formulas stand in modeling/labels.py.")
    extra_horizons: tuple[int, ...] = Field((), description="Further horizons the evaluation looks at, bars.")
    win_label: Literal["horizon", "trade"] = Field(
        "horizon",
        description="What the win probability is about: the return over the horizon, or the outcome of the strategy's trade "
        "(stop, take-profit, time exit, costs): the meta-label.",
    )
    sample_weight: Literal["none", "uniqueness"] = Field(
        "none", description="Weight of a training row: 1, or the uniqueness of its label among the overlapping ones."
    )
    train_fraction: Fraction = Field(0.6, description="Share of the history used for training (oldest part).")
    valid_fraction: Fraction = Field(0.2, description="Share used for validation and calibration; the rest is the test.")
    embargo_bars: int = Field(24, ge=0, description="Bars left out after each segment, besides the purge of the horizon.")
    max_feature_ic: float = Field(
        0.5,
        gt=0,
        le=1,
        description="|IC| of one feature with the label in training from which it is taken for a leak and refused; 1 = off.",
    )
    num_boost_round: int = Field(120, ge=1, description="Largest number of boosting rounds.")
    early_stopping_rounds: int = Field(20, ge=1, description="Rounds without a better validation score before stopping.")
    learning_rate: float = Field(0.05, gt=0, le=1, description="LightGBM learning rate.")
    num_leaves: int = Field(63, ge=2, description="LightGBM leaves per tree.")
    min_data_in_leaf: int = Field(500, ge=1, description="LightGBM rows per leaf at least.")
    feature_fraction: float = Field(0.5, gt=0, le=1, description="Share of features tried per tree.")
    lambda_l2: float = Field(10.0, ge=0, description="LightGBM L2 regularisation.")
    max_bin: int = Field(63, ge=7, le=255, description="LightGBM histogram bins per feature.")
    net: NetSettings = Field(NetSettings(), description="Neural networks.")
    ensemble: EnsembleSettings = Field(EnsembleSettings(), description="Ensembles.")
    rolling: RollingSettings = Field(RollingSettings(), description="Rolling retraining.")
    update: UpdateSettings = Field(UpdateSettings(), description="Updates of a fitted model.")
    tuning: TuningSettings = Field(TuningSettings(), description="Search of hyper-parameters on validation.")
    promotion: PromotionSettings = Field(PromotionSettings(), description="Gate of the champion.")
    trades: Literal["auto", "trained", "champion"] = Field(
        "auto",
        description="Which model a session trades: the one these settings train, or the champion; auto = the champion where "
        "the exchange is OKX, the trained one at the embedded exchange.",
    )
    tracking: str = Field(
        "",
        description="MLflow address, e.g. postgresql://user@host/mlflow (needs crypto-qlib[postgres]; the password comes "
        "from PGPASSWORD); empty = SQLite in the workspace, off = none.",
    )
    dask: str = Field(
        "",
        description="Address of a Dask scheduler over whose workers LightGBM spreads the rows of one training; empty = none.",
    )
    threads: int = Field(0, ge=0, description="Training threads; 0 = all cores.")
    seed: int = Field(7, ge=0, description="Seed of everything random in training.")

    @model_validator(mode="after")
    def _leave_a_test(self) -> ModelSettings:
        if self.train_fraction + self.valid_fraction >= 1.0:
            raise ValueError("train_fraction + valid_fraction must leave room for a test segment (sum below 1)")
        if self.objective != "regression" and self.name != "lightgbm":
            raise ValueError(f"objective = {self.objective} is for lightgbm; {self.name} learns by regression")
        if self.per_symbol and (self.name in ("linear", "ensemble") or self.objective == "ranking"):
            raise ValueError("per_symbol needs a family that learns from one coin alone: lightgbm (not ranking) or a network")
        if self.tuning.trials and (self.name in ("linear", "ensemble") or self.per_symbol):
            raise ValueError("tuning.trials is for lightgbm and networks, one model for all coins")
        if self.dask and (self.per_symbol or "lightgbm" not in (self.name, *self.ensemble.members * (self.name == "ensemble"))):
            raise ValueError("dask spreads the rows of one LightGBM for all coins; model.rolling.dask spreads steps")
        if self.dask and (self.rolling.dask or self.rolling.workers > 1):
            raise ValueError("dask spreads each training over the workers, rolling.dask and rolling.workers give each a step")
        if any(h < 1 for h in self.extra_horizons):
            raise ValueError("extra_horizons must be whole numbers of bars, 1 or more")
        return self
