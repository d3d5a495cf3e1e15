"""The registry's versions and aliases in MLflow's model registry, for its web page and for other tools.

The folders and pointers of :mod:`crypto_qlib.modeling.registry` are what is trusted; :func:`mirror` brings MLflow to the same
state and may be repeated, so a lost or new tracking database is filled again. Each version carries as tags: run id, family,
label, data, settings and code identity, digest, feature count, segments, metrics of the test, and the environment.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.artefact import META_FILE
from crypto_qlib.modeling.registry import CHALLENGER_FILE, CHAMPION_FILE, DAMAGED, list_models, model_folder
from crypto_qlib.store.tracking_database import check_server, prepare_tracking, server_address

NAME: Final = "crypto-qlib"
EXPERIMENT: Final = "crypto_qlib"
"""Experiment the trainings are recorded in; Qlib's ``R.list_recorders(experiment_name="crypto_qlib")`` shows them."""
_RUN_TAG: Final = "run_id"
_LONGEST: Final = 500
"""Characters MLflow keeps of a parameter."""


def tracking_uri(given: str, database: Path) -> str:
    """Return ``model.tracking``, or the workspace's SQLite database where it is empty."""
    return server_address(given) or f"sqlite:///{database.resolve()}"


def mirror(models: Path, uri: str) -> int:
    """Bring MLflow's registry at ``uri`` to the state of ``models`` and return how many versions were added.

    Parameters
    ----------
    models : Path
        ``Paths.models``.
    uri : str
        SQLite, PostgreSQL or HTTP address of the tracking store.

    Raises
    ------
    UserError
        If the store cannot be reached, or its SQLite file cannot be made.
    """
    prepare_tracking(uri)
    check_server(uri, "model.tracking")
    try:
        return _mirror(models, MlflowClient(tracking_uri=uri, registry_uri=uri))
    except MlflowException as e:
        what = f"MLflow at {without_password(uri)} refused: {e.message}".splitlines()[0]
        raise UserError(what, "check model.tracking, or set it to off") from e


def without_password(uri: str) -> str:
    """Return ``uri`` with the password of ``user:password@host`` left out."""
    head, at, host = uri.rpartition("@")
    if not at:
        return uri
    scheme, slashes, login = head.partition("://")
    return f"{scheme}{slashes}{login.partition(':')[0]}:***@{host}"


def _mirror(models: Path, client: MlflowClient) -> int:
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME, description="Models of this workspace; the folders are what is trusted.")
    known = {v.tags.get(_RUN_TAG, ""): v for v in client.search_model_versions(f"name = '{NAME}'")}
    added = 0
    wanted: dict[str, str | None] = {CHAMPION_FILE: None, CHALLENGER_FILE: None}
    for version in list_models(models):
        if version.name == DAMAGED:
            continue
        folder = model_folder(models, version.run_id)
        found = known.get(version.run_id)
        tags = version_tags(folder)
        if found is None:
            run = _recorded(client, version.run_id, folder)
            tagged = {_RUN_TAG: version.run_id, **tags}
            found = client.create_model_version(NAME, str(folder.resolve()), run_id=run, tags=tagged)
            added += 1
        else:
            _brought_up_to_date(client, found, folder, tags)
        if version.is_champion:
            wanted[CHAMPION_FILE] = found.version
        if version.is_challenger:
            wanted[CHALLENGER_FILE] = found.version
    aliases = client.get_registered_model(NAME).aliases
    for alias, number in wanted.items():
        if number is not None:
            client.set_registered_model_alias(NAME, alias, number)
        elif alias in aliases:
            client.delete_registered_model_alias(NAME, alias)
    return added


def _brought_up_to_date(client: MlflowClient, known: ModelVersion, folder: Path, tags: dict[str, str]) -> None:
    """Tell MLflow what has become known of a version since it was recorded."""
    if known.run_id and "rank_ic" in tags and "rank_ic" not in known.tags:
        client.log_batch(known.run_id, metrics=_metrics(folder))
    for key, value in tags.items():
        if known.tags.get(key) != value:
            client.set_model_version_tag(NAME, known.version, key, value)


def _recorded(client: MlflowClient, run_id: str, folder: Path) -> str:
    """Record the training of a version as a run of its own, as Qlib's ``R`` lists them, and return MLflow's id of it."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    at = experiment.experiment_id if experiment is not None else client.create_experiment(EXPERIMENT)
    run = client.create_run(at, run_name=run_id, tags={_RUN_TAG: run_id}).info.run_id
    meta = json.loads((folder / META_FILE).read_text())
    now = int(Path(folder / META_FILE).stat().st_mtime * 1e3)
    params = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(meta["settings"]).items()]
    client.log_batch(run, metrics=_metrics(folder), params=params)
    client.set_terminated(run, "FINISHED", now)
    return str(run)


def _metrics(folder: Path) -> list[Metric]:
    """Return the figures of the fit, and of the test where it was evaluated."""
    meta = json.loads((folder / META_FILE).read_text())
    now = int((folder / META_FILE).stat().st_mtime * 1e3)
    metrics = [Metric(key, float(value), now, 0) for key, value in meta["diagnostics"].items() if math.isfinite(value)]
    report_file = folder / "model_performance_report.json"
    report: dict[str, Any] = json.loads(report_file.read_text()) if report_file.is_file() else {}
    for name in ("ic", "rank_ic", "quantile_spread"):
        found = {part: report.get(name, {}).get(part) for part in ("mean", "t_stat")}
        metrics += [Metric(f"{name}.{part}", float(value), now, 0) for part, value in found.items() if value is not None]
    return metrics


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def version_tags(folder: Path) -> dict[str, str]:
    """Return what MLflow should know of the artefact in ``folder``, as text."""
    meta = json.loads((folder / META_FILE).read_text())
    report_file = folder / "model_performance_report.json"
    report: dict[str, Any] = json.loads(report_file.read_text()) if report_file.is_file() else {}
    tags = {
        "family": meta["settings"]["name"],
        "label": meta["settings"]["label"],
        "horizon_bars": meta["settings"]["horizon_bars"],
        "sha256": meta["sha256"],
        "features": len(meta["feature_names"]),
        "feature_sets": ",".join(meta["feature_settings"].get("sets", [])),
        "segments": json.dumps(meta["segment_ts"]),
        "environment": json.dumps(meta["environment"]),
        "data": report.get("run", {}).get("data", ""),
        "settings": report.get("run", {}).get("settings", ""),
        "code": report.get("run", {}).get("code", ""),
    }
    for name in ("rank_ic", "ic"):
        if name in report:
            tags[name], tags[f"{name}_t"] = report[name]["mean"], report[name]["t_stat"]
    return {key: str(value) for key, value in tags.items() if value not in ("", None)}
