"""Fixtures shared by all rooms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres_server import Postgres, postgres_server

# The first call of a compiled function takes seconds when its cache is cold: time says nothing about a property.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared reference material and real data, or skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared reference and data folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a running PostgreSQL server of the tests' own, or skip where none is installed."""
    with postgres_server() as server:
        yield server
