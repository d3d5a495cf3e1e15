"""crypto_qlib: leveraged long/short trading of crypto perpetual swaps, built on Qlib.

``import crypto_qlib as cq`` gives the functions of :mod:`crypto_qlib.api`; they are loaded at first use, so that importing
a room such as ``crypto_qlib.core`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crypto_qlib.api import (
        MarketData,
        Picture,
        build_features,
        configure,
        evaluate,
        load_data,
        plot,
        predict,
        run_backtest,
        save_report,
        simulate,
        train,
        with_universe,
    )

__all__ = [
    "MarketData",
    "Picture",
    "build_features",
    "configure",
    "evaluate",
    "load_data",
    "plot",
    "predict",
    "run_backtest",
    "save_report",
    "simulate",
    "train",
    "with_universe",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("crypto_qlib.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
