"""Step 4: from the lake to Qlib, so that ``D.features(["BTCUSDT"], ["Mean($close, 24)"], freq="60min")`` works on 24/7 data.

Traps of Qlib 0.9.7 worked round here: its regions know only stock markets (limits, lots, session hours), so a region
``crypto`` is registered; ``1h`` does not parse, so frames are renamed; caches never see new bars, so they are cleared; worker
pools are slower than one process at this size; MLflow's file store is in maintenance mode, so runs go to SQLite, with their
files beside it (MLflow would drop them into the current folder) and without a copy of whatever git repository that folder is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import qlib
from mlflow.exceptions import MlflowException
from qlib.config import _default_region_config
from qlib.data import D
from qlib.data.cache import H
from qlib.utils.exceptions import ExpAlreadyExistError
from qlib.workflow.exp import MLflowExperiment
from qlib.workflow.expm import MLflowExpManager
from qlib.workflow.recorder import MLflowRecorder

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_external import write_external_fields
from crypto_qlib.data_collector.qlib_store import QLIB_FREQ, StoreReport, bins_that_differ, write_qlib_store, write_universe
from crypto_qlib.data_collector.universe_history import membership_of_lake
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore
from crypto_qlib.store.tracking_database import check_server, prepare_tracking, server_address

REGION: Final = "crypto"
EXPERIMENT: Final = "crypto_qlib"
_HOT: Final = "crypto_qlib.data_collector.qlib_hot"
PROVIDERS: Final[dict[str, Any]] = {
    "calendar_provider": {"class": "HotCalendarProvider", "module_path": _HOT},
    "instrument_provider": {"class": "HotInstrumentProvider", "module_path": _HOT},
    "feature_provider": {
        "class": "LocalFeatureProvider",
        "module_path": "qlib.data.data",
        "kwargs": {"backend": {"class": "HotFeatureStorage", "module_path": _HOT}},
    },
    "dataset_provider": {
        "class": "PanelDatasetProvider",
        "module_path": "crypto_qlib.data_collector.qlib_expressions",
    },
}
"""What ``qlib.init`` (and ``qlib_init`` of a ``qrun`` file) is given: bars up to the newest, expressions on arrays."""


def update_qlib_store(lake: Lake, paths: Paths, symbols: Sequence[str], frame: str) -> StoreReport:
    """Write all cleaned history of ``symbols`` into the Qlib store (appending where only new bars came).

    Raises
    ------
    UserError
        If there are no cleaned bars, the lake is damaged, or the store cannot be written.
    """
    panel = load_panel(lake, symbols, frame)
    members = membership_of_lake(lake)
    return update_from_panel(paths, panel if members is None else panel.with_members(members))


def update_from_panel(paths: Paths, panel: MarketPanel) -> StoreReport:
    """Write ``panel`` and the external series into the Qlib store, prove that the bins equal them, and clear Qlib's caches.

    Who belonged to the universe when becomes the market ``universe``, from the panel's mask.

    Raises
    ------
    UserError
        If the store cannot be written, or does not hold what was written to it.
    """
    report = write_qlib_store(paths.qlib, panel)
    bad = [*bins_that_differ(paths.qlib, panel), *write_external_fields(paths.qlib, panel, SeriesStore(paths.series))]
    if bad:
        raise UserError(
            f"{bad[0]} does not hold what was written to it", f"delete {paths.qlib} and run `crypto-qlib data check`"
        )
    write_universe(paths.qlib, panel)
    forget_cached_bars()
    return report


def forget_cached_bars() -> None:
    """Make Qlib in this process see bars written since it last looked."""
    H.clear()


def init_qlib(paths: Paths, tracking: str = "") -> None:
    """Point Qlib in this process at the store; call it before any use of ``D`` or ``R``.

    Parameters
    ----------
    paths : Paths
        Of the workspace.
    tracking : str
        ``model.tracking``, where runs are not recorded in the workspace.

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
        **PROVIDERS,
        expression_cache=None,
        dataset_cache=None,
        logging_level=logging.WARNING,
        exp_manager=recorder_config(paths.mlflow, tracking=tracking),
    )
    forget_cached_bars()


def qlib_symbols(frame: str) -> list[str]:
    """Return the instruments Qlib lists at ``frame``; :func:`init_qlib` must have run."""
    return sorted(D.list_instruments(D.instruments(), freq=QLIB_FREQ[frame], as_list=True))


def recorder_config(database: Path, experiment: str = EXPERIMENT, tracking: str = "") -> dict[str, Any]:
    """Return Qlib's ``exp_manager`` entry for runs recorded in a database, their files in the workspace.

    Parameters
    ----------
    database : Path
        ``Paths.mlflow``: an SQLite file; files go to ``<database without suffix>_files/``.
    experiment : str
        Experiment of runs that name none.
    tracking : str
        ``model.tracking``: the server runs are recorded at instead, e.g. ``postgresql://user@host/mlflow``.
    """
    files = database.with_name(f"{database.stem}_files").resolve()
    return {
        "class": DatabaseExpManager.__name__,
        "module_path": __name__,
        "kwargs": {"uri": tracking or f"sqlite:///{database.resolve()}", "default_exp_name": experiment, "files": str(files)},
    }


class _Recorder(MLflowRecorder):  # type: ignore[misc]
    def _log_uncommitted_code(self) -> None:
        """Record no diff of the current folder's repository: it is the user's, and our own code is named by the run id."""


class _Experiment(MLflowExperiment):  # type: ignore[misc]
    def create_recorder(self, recorder_name: str | None = None) -> _Recorder:
        """Return a recorder that keeps the run's own files only."""
        return _Recorder(self.id, self._uri, recorder_name or self._default_rec_name)


class DatabaseExpManager(MLflowExpManager):  # type: ignore[misc]
    """Qlib's experiment manager on a database of MLflow: SQLite, or PostgreSQL by its address.

    Parameters
    ----------
    uri : str
        ``sqlite:///FILE``, or ``postgresql://user@host/database`` with the password in ``PGPASSWORD``.
    default_exp_name : str, optional
        Experiment of runs that name none.
    files : str
        Folder of the runs' files; beside an SQLite file, or in the current folder, if empty.
    """

    def __init__(self, uri: str, default_exp_name: str | None = EXPERIMENT, files: str = "") -> None:
        super().__init__(server_address(uri), default_exp_name)
        self._files = files

    @property
    def client(self) -> Any:
        """MLflow's client of the database, whose tables are made first where there are none."""
        prepare_tracking(self.uri)
        check_server(self.uri, "Qlib's recorder")
        return super().client

    def create_exp(self, experiment_name: str | None = None) -> _Experiment:
        """Create the experiment ``experiment_name``, its files below the folder of files."""
        if self._files:
            files = Path(self._files)
        else:
            named = self.uri.removeprefix("sqlite:///") if self.uri.startswith("sqlite:///") else "qlib_runs"
            files = Path(named).with_name(f"{Path(named).stem}_files")
        place = files.resolve() / str(experiment_name)
        try:
            created = self.client.create_experiment(experiment_name, artifact_location=place.as_uri())
        except MlflowException as e:
            if e.error_code == "RESOURCE_ALREADY_EXISTS":
                raise ExpAlreadyExistError from e
            raise
        return _Experiment(created, experiment_name, self.uri)

    def _get_exp(self, experiment_id: str | None = None, experiment_name: str | None = None) -> _Experiment:
        found = super()._get_exp(experiment_id=experiment_id, experiment_name=experiment_name)
        return _Experiment(found.id, found.name, self.uri)

    def search_records(self, experiment_ids: Any = None, **kwargs: Any) -> Any:
        """Search runs; at most 50,000, because MLflow refuses Qlib's own default of 100,000."""
        return super().search_records(experiment_ids, **{"max_results": 50_000, **kwargs})
