"""MLflow's database is there whole or not at all, whatever was killed while it was made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crypto_qlib.core.errors import UserError
from crypto_qlib.store.tracking_database import prepare_tracking


def _client(database: Path) -> MlflowClient:
    uri = f"sqlite:///{database}"
    prepare_tracking(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_a_database_left_among_the_migrations_is_made_anew(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.sqlite"
    with closing(sqlite3.connect(database)) as db:  # what a kill left: some tables, none of them in use
        db.execute("CREATE TABLE registered_models (name VARCHAR(256) NOT NULL PRIMARY KEY)")
        db.execute("CREATE TABLE review_queues (queue_id VARCHAR(36) NOT NULL)")
        db.commit()
    (tmp_path / ".mlflow.sqlite.new").write_bytes(b"what another kill left")
    client = _client(database)
    client.create_registered_model("kept")
    assert [m.name for m in _client(database).search_registered_models()] == ["kept"]
    client.create_experiment("an experiment")


def test_a_database_made_by_mlflow_itself_is_kept(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.sqlite"
    uri = f"sqlite:///{database}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).create_registered_model("theirs")
    assert [m.name for m in _client(database).search_registered_models()] == ["theirs"]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.sqlite").write_text("<html>not a database, and long enough to be looked at</html>" * 20)
    with pytest.raises(UserError, match="no readable SQLite database"):
        prepare_tracking(f"sqlite:///{tmp_path / 'mlflow.sqlite'}")


def test_a_server_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_tracking("postgresql://nobody@nowhere.invalid/mlflow")
    assert list(tmp_path.iterdir()) == []
