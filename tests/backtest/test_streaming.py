"""Bars in stretches give the run of all bars at once, bit for bit, from memory, from mapped files and from the lake."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.streaming import BarStream, lake_stream, panel_stream, run_streamed
from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, FundingBlock
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.portfolio.rules import BY_LIMIT
from crypto_qlib.store.lake import Kind, Lake
from tests.backtest.backtest_tapes import LOOSE, Tape, inputs, quarters_under_hours

TABLES = (
    "series",
    "fills",
    "trades",
    "funding",
    "liquidations",
    "ambiguous",
    "open_positions",
    "open_symbols",
    "exposure",
    "ts_open",
)


def assert_identical(a: BacktestResult, b: BacktestResult) -> None:
    for name in TABLES:
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert (a.ended, a.veto_counts) == (b.ended, b.veto_counts)
    assert (a.entries_rejected, a.entries_expired) == (b.entries_rejected, b.entries_expired)


def coarse(run: BacktestInputs) -> BacktestInputs:
    assert run.state_panel is not None
    return dataclasses.replace(run, panel=run.state_panel, state_panel=None)


@pytest.mark.parametrize(
    "stretch_ns", [1, 7 * NS_PER_HOUR, 10_000 * NS_PER_HOUR], ids=["bar by bar", "seven hours", "all at once"]
)
@pytest.mark.parametrize(
    ("tape", "changes"),
    [
        (Tape(4, n_bars=240, crash_at=100, basis=0.005), {}),
        (Tape(7, n_bars=240, delist=True, missing=0.05), {"trailing_atr": 1.5}),
        (Tape(9, n_bars=240, crash_at=90, volatility=0.03), {"cross": True, "stop_on_mark": True}),
        (Tape(10, n_bars=240, thin=True), {"entry_order": BY_LIMIT, "entry_offset": 0.005}),
    ],
    ids=["isolated", "a symbol ends, trailing", "cross", "entries that rest"],
)
def test_stretches_give_the_run_of_all_bars(tape: Tape, changes: dict[str, float], stretch_ns: int) -> None:
    run = dataclasses.replace(quarters_under_hours(tape, LOOSE._replace(**changes)), with_exposure=True)
    whole = run_backtest(run)
    done: list[tuple[int, int]] = []
    parts = run_streamed(coarse(run), panel_stream(run.panel), stretch_ns=stretch_ns, progress=lambda *n: done.append(n))
    assert_identical(whole, parts)
    assert whole.fills.size > 10
    assert done[-1] == (whole.ts_open.size, whole.ts_open.size)


def test_a_panel_in_mapped_files_is_read_stretch_by_stretch(tmp_path: Path) -> None:
    run = quarters_under_hours(Tape(4, n_bars=240))
    for name in PANEL_FIELDS:
        np.save(tmp_path / f"{name}.npy", getattr(run.panel, name))
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in PANEL_FIELDS}
    stream = panel_stream(dataclasses.replace(run.panel, **mapped))
    assert_identical(run_backtest(run), run_streamed(coarse(run), stream, stretch_ns=5 * NS_PER_HOUR))


def test_minutes_in_the_lake_give_the_run_of_the_loaded_panel(tmp_path: Path) -> None:
    run = quarters_under_hours(Tape(4, n_bars=240, n_symbols=2))
    lake, p = Lake(tmp_path), run.panel
    for j, symbol in enumerate(p.symbols):
        fields = ("open", "high", "low", "close", "volume", "quote_volume")
        lake.write_bars(
            Kind.CANDLES, "15m", symbol, BarBlock(p.ts_open, *(np.ascontiguousarray(getattr(p, k)[:, j]) for k in fields))
        )
        paid = ~np.isnan(p.funding_rate[:, j])
        lake.write_funding(symbol, FundingBlock(p.ts_open[paid], p.funding_rate[paid, j]))
    whole = run_backtest(dataclasses.replace(run, panel=load_panel(lake, p.symbols, "15m", kind=Kind.CANDLES)))
    assert_identical(
        whole, run_streamed(coarse(run), lake_stream(lake, p.symbols, "15m", Kind.CANDLES), stretch_ns=11 * NS_PER_HOUR)
    )
    with pytest.raises(UserError, match="ELSEUSDT: the lake has no"):
        lake_stream(lake, ("ELSEUSDT",), "15m")


def _broken(stream: BarStream) -> BarStream:
    def load(start_ns: int, end_ns: int):  # type: ignore[no-untyped-def]
        panel = stream.load(start_ns, end_ns)
        high = panel.high.copy()
        high[:, 1] = 0.5 * panel.low[:, 1]
        return dataclasses.replace(panel, high=high)

    return dataclasses.replace(stream, load=load)


def test_what_does_not_fit_is_refused() -> None:
    run = quarters_under_hours(Tape(4, n_bars=240))
    stream = panel_stream(run.panel)
    with pytest.raises(UserError, match=r"S0USDT at .*high is below low"):
        run_streamed(coarse(run), _broken(stream))
    with pytest.raises(UserError, match="do not fit"):
        run_streamed(coarse(run), dataclasses.replace(stream, symbols=("BTCUSDT",)))
    with pytest.raises(UserError, match="do not divide"):
        run_streamed(coarse(run), dataclasses.replace(stream, frame_ns=7 * NS_PER_MINUTE))
    with pytest.raises(UserError, match="no bar to trade"):
        run_streamed(coarse(run), dataclasses.replace(stream, end_ns=stream.start_ns))
    assert inputs(Tape(1)).state_panel is None
