"""Series are served by name, by the catalogue's own rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.external_catalogue import CATALOGUE, series_on_bars
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.series_store import MARKET, SeriesStore

DAY = parse_utc("2025-01-31")
H = NS_PER_HOUR


def test_a_value_is_served_from_when_it_is_known_until_it_is_too_old(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    known = DAY + 45 * H // 60
    rows = Observations(np.array([DAY]), np.array([known]), np.array([21.0]))
    store.append("fear_greed", MARKET, rows, DAY + H)
    closes = np.array([DAY, known - 1, known, known + 26 * H, known + 26 * H + 1])
    got = series_on_bars(store, "fear_greed", closes, coins=("BTC",))
    np.testing.assert_array_equal(got.value[:, 0], [np.nan, np.nan, 21.0, 21.0, np.nan])


def test_series_by_coin_have_a_column_a_coin(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    store.append("pageviews", "BTC", Observations(np.array([DAY]), np.array([DAY]), np.array([9.0])), DAY)
    np.testing.assert_array_equal(series_on_bars(store, "pageviews", np.array([DAY]), ("ETH", "BTC")).value, [[np.nan, 9.0]])


def test_an_unknown_series_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no external series 'fear'.*fear_greed"):
        series_on_bars(SeriesStore(tmp_path), "fear", np.array([DAY]))


def test_every_name_can_be_a_folder(tmp_path: Path) -> None:
    assert all(SeriesStore(tmp_path).read(name).value.size == 0 for name in CATALOGUE)
