from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.data_collector.contract_archive import (
    archive_instruments,
    archive_tiers,
    instrument_versions,
    load_instruments,
    load_tiers,
)
from crypto_qlib.store.lake import Lake
from tests.data_collector.fake_exchange import T0, instrument

DAY = 86_400 * 10**9


def tiers(mmr: float) -> TierTable:
    return TierTable(np.array([100.0, 200.0]), np.array([mmr, 0.05]), np.array([0.02, 0.1]), np.array([50.0, 10.0]))


def test_every_field_comes_back_and_an_unchanged_contract_makes_no_new_version(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    made = instrument("BTCUSDT", listed_ns=T0 - 400 * DAY, max_leverage=125.0, funding_interval_h=4, max_market_size=12_000.0)
    for k in range(3):
        archive_instruments(lake, [made], T0 + k * DAY)
    assert instrument_versions(lake) == {"BTCUSDT": (made,)}


def test_a_changed_contract_holds_from_the_moment_it_was_seen(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    old = instrument("BTCUSDT")
    new = replace(old, tick_size=0.1)
    archive_instruments(lake, [old], T0)
    archive_instruments(lake, [new], T0 + DAY)
    assert load_instruments(lake, ["BTCUSDT"], T0 + DAY - 1)["BTCUSDT"].tick_size == 0.01
    assert load_instruments(lake, ["BTCUSDT"], T0 + DAY)["BTCUSDT"].tick_size == 0.1
    assert load_instruments(lake, ["BTCUSDT"], T0 - 900 * DAY)["BTCUSDT"].tick_size == 0.01  # nothing older is known
    assert load_instruments(lake, ["BTCUSDT"])["BTCUSDT"] == replace(new, valid_from_ns=T0 + DAY)


def test_a_symbol_that_vanishes_is_expired_and_may_come_back(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    made, other = instrument("FTTUSDT"), instrument("BTCUSDT")
    archive_instruments(lake, [made, other], T0)
    archive_instruments(lake, [other], T0 + DAY)
    archive_instruments(lake, [other], T0 + 2 * DAY)
    gone = load_instruments(lake, ["FTTUSDT"])["FTTUSDT"]
    assert (gone.state, gone.delisted_ns) == (InstrumentState.EXPIRED, T0 + DAY)
    assert load_instruments(lake, ["FTTUSDT"], T0)["FTTUSDT"].state is InstrumentState.LIVE
    archive_instruments(lake, [made, other], T0 + 3 * DAY)
    assert load_instruments(lake, ["FTTUSDT"])["FTTUSDT"].state is InstrumentState.LIVE
    assert len(instrument_versions(lake)["FTTUSDT"]) == 3


def test_tiers_keep_every_version_with_its_time(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert archive_tiers(lake, "BTCUSDT", tiers(0.004), T0)
    assert not archive_tiers(lake, "BTCUSDT", tiers(0.004), T0 + DAY)
    assert archive_tiers(lake, "BTCUSDT", tiers(0.01), T0 + 2 * DAY)
    history = load_tiers(lake, ["BTCUSDT"])["BTCUSDT"]
    assert history.at(T0 - DAY).mmr.tolist() == [0.004, 0.05]
    assert history.at(T0 + 2 * DAY - 1).mmr.tolist() == [0.004, 0.05]
    assert history.at(T0 + 2 * DAY).mmr.tolist() == [0.01, 0.05]


def test_unknown_symbols_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no contract specification of AUSDT, BUSDT"):
        load_instruments(Lake(tmp_path), ["AUSDT", "BUSDT"])
    with pytest.raises(UserError, match="no position tiers of AUSDT"):
        load_tiers(Lake(tmp_path), ["AUSDT"])
