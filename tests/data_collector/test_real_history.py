"""Real OKX and Binance hours through collector, lake, cleaning, panel and Qlib bins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.data_collector.bar_rules import Flag
from crypto_qlib.data_collector.clean_data import QualityReport, clean
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_store import bins_that_differ, write_qlib_store
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from tests.data_collector.fake_exchange import FakeExchange

pytestmark = pytest.mark.real_data


def blocks(path: Path, coins: tuple[str, ...], start: str, end: str) -> dict[str, BarBlock]:
    """Return the file's bars by compact symbol; quote volume is not known there."""
    names = {f"{c}/USDT:USDT": f"{c}USDT" for c in coins}
    rows = pd.read_parquet(path, filters=[("symbol", "in", list(names))])
    rows = rows[(rows.ts >= pd.Timestamp(start, tz="UTC")) & (rows.ts < pd.Timestamp(end, tz="UTC"))]
    found: dict[str, BarBlock] = {}
    for name, part in rows.groupby("symbol"):
        ts = part.ts.dt.as_unit("ns").astype("int64").to_numpy()
        unknown = np.full(ts.size, np.nan)
        prices = [part[c].to_numpy() for c in ("open", "high", "low", "close")]
        found[names[str(name)]] = BarBlock(ts, *prices, part.volume.to_numpy() if "volume" in part else unknown, unknown)
    return found


def check(tmp_path: Path, last: dict[str, BarBlock], mark: dict[str, BarBlock] | None = None) -> tuple[Lake, QualityReport]:
    lake = Lake(tmp_path)
    for kind, source in ((Kind.CANDLES, last), (Kind.MARK, mark or {})):
        for symbol, block in source.items():
            lake.write_bars(kind, "1h", symbol, block)
    return lake, clean(lake, list(last), DataSettings())


async def test_okx_hours_pass_through_collector_lake_panel_and_bins_exactly(shared: Path, tmp_path: Path) -> None:
    coins = ("BTC", "ETH", "SOL", "DOGE")
    last = blocks(shared / "data/okx_perp_1h.parquet", coins, "2025-09-01", "2026-01-01")
    mark = blocks(shared / "data/okx_mark_1h.parquet", coins, "2025-09-01", "2026-01-01")
    rates = pd.read_parquet(shared / "data/okx_funding.parquet", filters=[("symbol", "==", "BTC/USDT:USDT")])
    rates = rates[rates.ts >= pd.Timestamp("2025-09-01", tz="UTC")]
    funding = FundingBlock(rates.ts.dt.as_unit("ns").astype("int64").to_numpy(), rates.funding_rate.to_numpy())
    now = parse_utc("2026-01-01")
    fake, lake = FakeExchange(last, now, mark, {"BTCUSDT": funding}), Lake(tmp_path / "lake")
    wanted = DataSettings(since="2025-09-01")
    await update_data(fake, lake, list(last), wanted, now)  # type: ignore[arg-type]
    report = clean(lake, list(last), wanted)
    panel = load_panel(lake, list(last), "1h")
    for j, block in enumerate(last.values()):
        np.testing.assert_array_equal(panel.ts_open, block.ts_open)
        np.testing.assert_array_equal(panel.close[:, j], block.close)
        np.testing.assert_array_equal(panel.low[:, j], block.low)
        np.testing.assert_array_equal(panel.mark_high[:, j], list(mark.values())[j].high)
    settled = np.isfinite(panel.funding_rate[:, 0])
    np.testing.assert_array_equal(panel.ts_open[settled], funding.ts)
    np.testing.assert_array_equal(panel.funding_rate[settled, 0], funding.rate)
    assert report.failures == ()
    assert report.totals() == {"bars": 4 * 2928, "missing": 0}
    write_qlib_store(tmp_path / "qlib", panel)
    assert bins_that_differ(tmp_path / "qlib", panel) == []


def test_real_crashes_are_not_cleaned_with_or_without_marks(shared: Path, tmp_path: Path) -> None:
    """10 October 2025: alts lost half within an hour and took most of it back; nothing of it may be touched."""
    coins = ("BTC", "ETH", "SOL", "DOGE", "XRP", "ADA", "AVAX", "LINK", "LTC", "DOT", "BNB")
    last = blocks(shared / "data/okx_perp_1h.parquet", coins, "2025-09-01", "2025-11-01")
    mark = blocks(shared / "data/okx_mark_1h.parquet", coins, "2025-09-01", "2025-11-01")
    for name, marks in (("without", {}), ("with", mark)):
        lake, report = check(tmp_path / name, last, marks)
        for symbol, block in last.items():
            stored = lake.read_bars(Kind.CLEAN, "1h", symbol)
            for field in BarBlock.__slots__:
                np.testing.assert_array_equal(getattr(stored, field), getattr(block, field))
        assert set(report.totals()) <= {"bars", "missing", "suspect"}


def test_the_collapse_of_ftx_stays_and_the_dead_bars_after_it_go(shared: Path, tmp_path: Path) -> None:
    """FTT fell 90 % in a week of November 2022 and was delisted; its last days are flat bars without volume."""
    coins = ("FTT", "BTC", "ETH", "SOL", "DOGE", "BNB")
    last = blocks(shared / "data/binance_um_perp_1h.parquet", coins, "2022-09-01", "2022-12-15")
    lake, report = check(tmp_path, last)
    rows = lake.read(Series(Kind.CLEAN, "1h", "FTTUSDT"))
    stale = (rows["flag"] & Flag.STALE) != 0
    raw = last["FTTUSDT"]
    last_trade = np.flatnonzero(raw.volume > 0)[-1]
    assert stale.any()
    assert np.flatnonzero(stale)[0] - last_trade == 24
    np.testing.assert_array_equal(rows["close"][~stale], raw.close[~stale])
    assert np.isnan(rows["close"][stale]).all()
    assert report.failures == ()


def test_the_known_gap_of_trx_fails_the_check_by_name_and_time(shared: Path, tmp_path: Path) -> None:
    last = blocks(shared / "data/binance_um_perp_1h.parquet", ("TRX", "BTC"), "2025-04-01", "2025-06-01")
    _, report = check(tmp_path, last)
    assert report.failures == (
        "TRXUSDT: 399 bars are missing from 2025-04-14T09:00:00Z to 2025-05-01T00:00:00Z (not collected), "
        "more than data.max_gap_bars = 6",
    )
    gap = report.symbols[0].gaps[0] if report.symbols[0].gaps else report.symbols[1].gaps[0]
    assert (gap.end_ns - gap.start_ns) // NS_PER_HOUR == 399
