"""Step 4: from the lake to Qlib, so that ``D.features(["BTCUSDT"], ["Mean($close, 24)"], freq="60min")`` works on 24/7 data.

Traps of Qlib 0.9.7 worked round here: its regions know only stock markets (limits, lots, session hours), so a region
``crypto`` is registered; ``1h`` does not parse, so frames are renamed; caches never see new bars, so they are cleared; worker
pools are slower than one process at this size; MLflow's file store is in maintenance mode, so runs go to SQLite.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import qlib
from qlib.config import _default_region_config
from qlib.data import D
from qlib.data.cache import H

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_store import QLIB_FREQ, StoreReport, bins_that_differ, write_qlib_store
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths

REGION: Final = "crypto"
EXPERIMENT: Final = "crypto_qlib"


def update_qlib_store(lake: Lake, paths: Paths, symbols: Sequence[str], frame: str) -> StoreReport:
    """Write all cleaned history of ``symbols`` into the Qlib store (appending where only new bars came).

    Raises
    ------
    UserError
        If there are no cleaned bars, the lake is damaged, or the store cannot be written.
    """
    return update_from_panel(paths, load_panel(lake, symbols, frame))


def update_from_panel(paths: Paths, panel: MarketPanel) -> StoreReport:
    """Write ``panel`` into the Qlib store, prove that the bins equal it, and clear Qlib's caches.

    Raises
    ------
    UserError
        If the store cannot be written, or does not hold what was written to it.
    """
    report = write_qlib_store(paths.qlib, panel)
    bad = bins_that_differ(paths.qlib, panel)
    if bad:
        raise UserError(
            f"{bad[0]} does not hold what was written to it", f"delete {paths.qlib} and run `crypto-qlib data check`"
        )
    forget_cached_bars()
    return report


def forget_cached_bars() -> None:
    """Make Qlib in this process see bars written since it last looked."""
    H.clear()


def init_qlib(paths: Paths) -> None:
    """Point Qlib in this process at the store; call it before any use of ``D`` or ``R``.

    Raises
    ------
    UserError
        If the store does not exist yet.
    """
    if not (paths.qlib / "instruments").is_dir():
        raise UserError(f"there is no Qlib store in {paths.qlib}", "run `crypto-qlib data check` first")
    _default_region_config[REGION] = {"trade_unit": None, "limit_threshold": None, "deal_price": "close"}
    qlib.init(
        provider_uri=str(paths.qlib),
        region=REGION,
        kernels=1,
        expression_cache=None,
        dataset_cache=None,
        logging_level=logging.WARNING,
        exp_manager={
            "class": "MLflowExpManager",
            "module_path": "qlib.workflow.expm",
            "kwargs": {"uri": f"sqlite:///{paths.mlflow.resolve()}", "default_exp_name": EXPERIMENT},
        },
    )
    forget_cached_bars()


def qlib_symbols(frame: str) -> list[str]:
    """Return the instruments Qlib lists at ``frame``; :func:`init_qlib` must have run."""
    return sorted(D.list_instruments(D.instruments(), freq=QLIB_FREQ[frame], as_list=True))
