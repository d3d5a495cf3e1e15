"""The report of a small run worked by hand: figures add up, files are complete, the page stands alone."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs

from crypto_qlib.analytics.inference import MeanEstimate
from crypto_qlib.backtest.analysis_report import ReportFiles, market_kind, summary_lines, write_report
from crypto_qlib.backtest.ledger_arrays import AMBIGUOUS, FILL, FUNDING, LIQUIDATION, POSITION, SERIES, TRADE
from crypto_qlib.backtest.performance_report import ATTRIBUTION_PARTS, curves, performance
from crypto_qlib.backtest.report_tables import ambiguous_rows, monthly_returns, trade_rows, veto_rows
from crypto_qlib.backtest.report_words import chance, money, percent, sentences
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.veto import VetoRule
from crypto_qlib.settings.schema import Settings
from crypto_qlib.venue.matching import DELISTED, TIME
from crypto_qlib.venue.matching import LIQUIDATION as LIQUIDATED

SYMBOLS = ("BTCUSDT", "ETHUSDT")
START = parse_utc("2025-01-31T20:00:00")
CLOSE = np.array([[100.0, 10.0], [101.0, 11.0], [103.0, 12.0], [102.0, np.nan], [104.0, np.nan], [110.0, np.nan]])
IDENTITY = {"run_id": "feedfacefeedface", "seed": 7}


def rows(dtype: np.dtype, *values: dict[str, float]) -> np.ndarray:  # type: ignore[type-arg]
    out = np.zeros(len(values), dtype)
    for row, given in zip(out, values, strict=True):
        for name, value in given.items():
            row[name] = value
    return out


def panel() -> MarketPanel:
    open_ = np.vstack([[[100.0, 10.0]], CLOSE[:-1]])
    open_[np.isnan(CLOSE)] = np.nan
    ts = START + NS_PER_HOUR * np.arange(6, dtype=np.int64)
    prices = (open_, np.fmax(open_, CLOSE), np.fmin(open_, CLOSE), CLOSE)
    volume = np.where(np.isnan(CLOSE), np.nan, 1e6)
    return MarketPanel(
        SYMBOLS, NS_PER_HOUR, ts, *prices, volume, volume, *prices, np.full(CLOSE.shape, np.nan), np.ones(2, bool)
    )


def result() -> BacktestResult:
    """Make a run by hand.

    A long of 5 BTC bought at 100.1 (raw 100), sold by time at 102.9 (raw 103): pnl 14, slippage 1, fees 1, funding -2.
    A short of 20 ETH from 11 (no slippage) liquidated at 13: pnl -40, fee 0.5, penalty 3, the fund bore 1.5. Still open: a
    long of 1 BTC from 103, marked at 110: 7 unrealised, fee 0.3. Total: 14 - 1 - 2 - 40 - 0.5 - 3 + 1.5 + 7 - 0.3 = -24.3.
    """
    trades = rows(
        TRADE,
        {"trade": 0, "symbol": 0, "lots": 50, "entry_bar": 0, "exit_bar": 2, "exit_kind": TIME, "qty": 5.0,
         "entry_price": 100.1, "exit_price": 102.9, "leverage": 3.0, "pnl": 14.0, "fee": 1.0, "funding": -2.0, "slippage": 1.0},
        {"trade": 1, "symbol": 1, "lots": -200, "entry_bar": 1, "exit_bar": 2, "exit_kind": LIQUIDATED, "rank": 3, "qty": 20.0,
         "entry_price": 11.0, "exit_price": 13.0, "leverage": 5.0, "pnl": -40.0, "fee": 0.5, "penalty": 3.0, "overshoot": 1.5},
    )  # fmt: skip
    fills = rows(
        FILL,
        {"bar": 0, "symbol": 0, "kind": 0, "trade": 0, "lots": 50, "price": 100.1, "raw_price": 100.0, "fee": 0.5},
        {"bar": 1, "symbol": 1, "kind": 0, "trade": 1, "lots": -200, "price": 11.0, "raw_price": 11.0, "fee": 0.25},
        {"bar": 2, "symbol": 0, "kind": TIME, "trade": 0, "lots": -50, "price": 102.9, "raw_price": 103.0, "fee": 0.5},
        {"bar": 2, "symbol": 1, "kind": LIQUIDATED, "trade": 1, "lots": 200, "price": 13.0, "raw_price": 13.0, "fee": 0.25},
        {"bar": 3, "symbol": 0, "kind": 0, "trade": 2, "lots": 10, "price": 103.0, "raw_price": 103.0, "fee": 0.3},
    )  # fmt: skip
    held = {"lots": 10, "side": 1.0, "qty": 1.0, "entry": 103.0, "mark": 110.0, "fee": 0.3, "trade": 2, "leverage": 3.0}
    equity = [1_000.0, 995.0, 968.7, 967.4, 969.0, 975.7]
    series = np.zeros(6, SERIES)
    series["equity"] = equity
    series["gross"] = [500.0, 720.0, 0.0, 103.0, 104.0, 110.0]
    series["net"] = [500.0, 280.0, 0.0, 103.0, 104.0, 110.0]
    series["used_margin"] = series["gross"] / 3.0
    series["n_open"] = [1, 2, 0, 1, 1, 1]
    liquidation = {"bar": 2, "symbol": 1, "trade": 1, "lots": 200, "mark": 13.0, "pnl": -40.0, "fee": 0.25, "penalty": 3.0,
                   "overshoot": 1.5}  # fmt: skip
    exposure = np.array([[500.0, 0], [500.0, -220.0], [0, 0], [103.0, 0], [104.0, 0], [110.0, 0]])
    return BacktestResult(
        symbols=SYMBOLS,
        frame_ns=NS_PER_HOUR,
        ts_open=panel().ts_open,
        initial_equity=1_000.0,
        rules=Rules(holding_bars=2),
        series=series,
        fills=fills,
        trades=trades,
        funding=rows(FUNDING, {"bar": 1, "symbol": 0, "amount": -2.5}, {"bar": 2, "symbol": 0, "amount": 0.5}),
        liquidations=rows(LIQUIDATION, liquidation),
        ambiguous=rows(AMBIGUOUS, {"bar": 2, "symbol": 1, "gain": 4.0}),
        open_positions=rows(POSITION, held),
        open_symbols=np.array([0]),
        veto_counts={VetoRule.LIQUIDITY: 12, VetoRule.SLOTS: 0},
        vetoes=np.array([[START, int(VetoRule.LIQUIDITY), 1], [START + NS_PER_HOUR, int(VetoRule.DRAWDOWN), -1]]),
        veto_values=np.array([[1e6, 25_000.0], [0.5, 0.512]]),
        exposure=exposure,
        entries_rejected=1,
        entries_cut=2,
        ended=("ETHUSDT",),
        unmarked=(),
    )


def empty() -> BacktestResult:
    """Return a run that never traded."""
    full = result()
    none = {name: getattr(full, name)[:0] for name in ("fills", "trades", "funding", "liquidations", "ambiguous")}
    series = np.zeros(6, SERIES)
    series["equity"] = 1_000.0
    return replace(
        full, **none, series=series, open_positions=full.open_positions[:0], open_symbols=full.open_symbols[:0],
        exposure=np.zeros((6, 2)), veto_counts={}, vetoes=full.vetoes[:0], veto_values=full.veto_values[:0], ended=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    model = {"rank_ic": {"mean": 0.0312, "standard_error": 0.0041, "n_bars": 1234}}
    series = ([f"2025-02-01 0{h}:00" for h in range(6)], [0.1, -0.2, float("nan"), 0.3, 0.0, 0.1])
    return write_report(result(), panel(), Settings(), IDENTITY, model, tmp_path_factory.mktemp("report"), series)


def test_the_attribution_adds_up_to_the_change_of_equity() -> None:
    a = performance(result(), panel(), "simulated", None)["attribution"]
    assert {k: pytest.approx(a[k]) for k in ATTRIBUTION_PARTS} == {
        # BTC rose 3 % while 5 BTC of 100.1 were held and 6.8 % while one of 103 is; the short began at its open of 100 and
        # ended in the middle of the third bar, at (101 + 103) / 2 - 1 % above the second one's open
        "market": 5 * 100.1 * (101.0 / 100.0 - 1.0) - 220.0 * (102.0 / 100.0 - 1.0) + 103.0 * (110.0 / 103.0 - 1.0),
        "signal": 15.0 + 7.0 - 40.0 - (5 * 100.1 * 0.01 - 220.0 * 0.02 + 7.0),  # the rest of the price results, before slippage
        "slippage": -1.0,
        "fees": -1.8,
        "funding": -2.0,
        "liquidation": -1.5,
    }
    assert a["total"] == pytest.approx(-24.3)
    assert sum(a[k] for k in ATTRIBUTION_PARTS) == pytest.approx(a["total"])
    for key in ("by_side", "by_exit_kind", "by_symbol"):
        assert sum(row["net"] for row in a[key].values()) == pytest.approx(a["total"]), key
    assert a["by_exit_kind"]["open"]["net"] == pytest.approx(6.7)
    assert list(a["by_symbol"]) == ["BTCUSDT", "ETHUSDT"]  # best first


def test_costs_turnover_and_counts_by_hand() -> None:
    p = performance(result(), panel(), "simulated", None)
    traded = 5 * 100.1 + 20 * 11.0 + 5 * 102.9 + 20 * 13.0 + 103.0
    assert p["costs"]["traded_notional"] == pytest.approx(traded)
    assert p["costs"]["fees"] == pytest.approx(1.8)
    assert (p["costs"]["funding_paid"], p["costs"]["funding_received"]) == (2.5, 0.5)
    assert p["costs"]["slippage_bps"] == pytest.approx(1.0 / traded * 1e4)
    assert p["liquidations"] == {"count": 1, "partial": 0, "penalties": 3.0, "borne_by_insurance": 1.5}
    assert p["trades"]["count"] == 2
    assert p["trades"]["win_rate"] == 0.5
    assert p["trades"]["open_at_end"] == 1
    assert p["vetoes"] == {"liquidity": 12}
    assert p["exposure"]["max_open"] == 2.0
    assert p["exposure"]["max_leverage"] == pytest.approx(720.0 / 995.0)
    assert p["turnover_per_year"] == pytest.approx(traded / np.mean(result().equity) * 8760 / 6)


def test_benchmarks_start_at_the_first_open_and_a_delisted_symbol_stays_at_its_last_close() -> None:
    c = curves(result(), panel())
    assert c.equity[0] == 1_000.0
    assert c.btc[-1] == pytest.approx(1_100.0)
    assert c.equal_weight[-1] == pytest.approx(1_000.0 * (1.1 + 1.2) / 2)
    assert c.ts_ns[0] == START
    assert len(c.ts_ns) == 7


def test_a_month_ends_at_its_last_close_even_when_that_is_midnight() -> None:
    (year, months, total), *rest = monthly_returns(curves(result(), panel()))
    assert (year, rest) == (2025, [])
    assert months[0] == pytest.approx(967.4 / 1_000.0 - 1.0)  # the close of the 23:00 bar is February 1st 00:00
    assert months[1] == pytest.approx(975.7 / 967.4 - 1.0)
    assert total == pytest.approx(-0.0243)


def test_every_file_is_there_and_carries_the_run(files: ReportFiles) -> None:
    names = {p.name for p in files.page.parent.iterdir()}
    assert names == {
        "multi_asset_pnl_curve.png", "multi_asset_performance.json", "symbol_exposure_history.png",
        "liquidation_events.log", "trades.parquet", "fills.parquet", "funding.parquet", "vetoes.parquet", "equity.parquet",
        "report.html",
    }  # fmt: skip
    plain = json.loads(files.performance.read_text())
    assert plain["run"] == IDENTITY
    assert plain["benchmarks"]["btc"]["total_return"] == pytest.approx(0.1)
    rows = {files.trades: 2, files.fills: 5, files.funding: 2, files.vetoes: 2, files.equity: 6}
    for parquet, count in rows.items():
        assert json.loads(pq.read_schema(parquet).metadata[b"run"]) == IDENTITY
        assert pq.read_table(parquet).num_rows == count
    trades = pq.read_table(files.trades).to_pydict()
    assert (trades["rank"], trades["exit_kind"]) == ([0, 3], ["time", "liquidation"])
    log = files.liquidation_log.read_text()
    assert "run=feedfacefeedface" in log
    assert "2025-01-31T22:00:00Z ETHUSDT liquidation of 200 lots short: mark=13" in log
    for picture in (files.pnl_picture, files.exposure_picture):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 20_000


def test_the_page_stands_alone_and_says_what_is_simulated(files: ReportFiles) -> None:
    html = files.page.read_text()
    assert len(html.encode()) < 3_000_000
    packed = re.search(r'<script id="plotly-packed" type="text/plain">([^<]*)</script>', html)
    assert packed is not None
    assert zlib.decompress(base64.b64decode(packed.group(1))).decode() == get_plotlyjs()
    html = html.replace(packed.group(1), "")
    assert "Simulated prices." in html
    assert "feedfacefeedface" in html
    assert 'src="http' not in html
    assert "<link" not in html
    for chart in ("equity", "exposure", "attribution", "symbols", "rank_ic", "candles_0"):
        assert f'id="chart-{chart}"' in html, chart
        assert f'"{chart}": {{' in html, chart
    assert "Stopped trading before the end, with no position held in them: ETHUSDT" in html
    assert "lost 2.4 %" in html


def test_the_summary_names_what_the_user_asked_for(files: ReportFiles) -> None:
    text = "\n".join(summary_lines(files))
    facts = (
        "RankIC            0.0312 ± 0.0041",
        "Return            \u22122.4 %",
        "Sharpe",
        "max drawdown",
        "Turnover",
        "fees 1.80 USDT",
        "funding \u22122.00 USDT",
        "Attribution       signal",
        "Liquidations      1",
        "Open positions    1.0 on average, 2 at most",
        "report.html",
    )
    for fact in facts:
        assert fact in text, fact


def test_a_run_without_trades_still_gives_a_whole_report(tmp_path: Path) -> None:
    files = write_report(empty(), panel(), Settings(), {}, None, tmp_path)
    plain = json.loads(files.performance.read_text())
    assert plain["trades"]["win_rate"] is None
    assert plain["attribution"]["total"] == 0.0
    assert "No trade was closed in this run." in files.page.read_text()
    assert "no position was liquidated" in files.liquidation_log.read_text()
    assert any("RankIC            n/a" in line for line in summary_lines(files))


def test_refusals_are_shown_with_their_limit_and_what_broke_it() -> None:
    assert veto_rows(result()) == [
        {"ts": "2025-01-31 21:00", "symbol": "account", "rule": "drawdown", "limit": "0.5", "actual": "0.512"},
        {"ts": "2025-01-31 20:00", "symbol": "ETH", "rule": "liquidity", "limit": "1,000,000", "actual": "25,000"},
    ]


def test_trades_are_shown_newest_first_with_entry_rank_and_way_out() -> None:
    rows = [(row["symbol"], row["rank"], row["exit_kind"], row["slippage"]) for row in trade_rows(result())]
    assert rows == [("ETH", 4, "liquidation", "0.00"), ("BTC", 1, "time", "1.00")]


def test_ambiguous_bars_bound_the_final_equity() -> None:
    run = result()
    run.ambiguous["booked_kind"], run.ambiguous["kindest_kind"] = LIQUIDATED, TIME
    run.ambiguous["booked_price"], run.ambiguous["kindest_price"] = 13.0, 12.0
    (row,) = ambiguous_rows(run)
    assert (row["booked"], row["kindest"], row["gain"]) == ("liquidation at 13", "time at 12", "4.00")
    bounds = performance(run, panel(), "simulated", None)["ambiguous_bars"]
    assert bounds == {"count": 1, "best_case_gain": 4.0, "worst_case_equity": 975.7, "best_case_equity": 979.7}


def test_positions_closed_by_a_delisting_are_named() -> None:
    run = result()
    run.trades["exit_kind"][1] = DELISTED
    p = performance(run, panel(), "simulated", None)
    (closed,) = p["positions_closed_by_delisting"]
    assert (closed["symbol"], closed["side"], closed["price"]) == ("ETHUSDT", "short", 13.0)
    p["what_if"] = None
    assert any("ETHUSDT short (\u221242.00 USDT)" in line for line in sentences(p))


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(empty(), panel(), Settings(), {}, None, blocked / "report")


def test_names_from_outside_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = {"run_id": "</script><script>alert(1)</script>"}
    html = write_report(empty(), panel(), Settings(), evil, None, tmp_path).page.read_text()
    assert "<script>alert(1)" not in html


@pytest.mark.parametrize(
    ("mode", "market", "kind"),
    [("embedded", "simulated", "simulated"), ("embedded", "replay", "replay"), ("demo", "simulated", "exchange")],
)
def test_where_the_prices_come_from(mode: str, market: str, kind: str) -> None:
    exchange = Settings().exchange.model_copy(update={"mode": mode, "market": market})
    assert market_kind(Settings().model_copy(update={"exchange": exchange})) == kind


def test_words_of_figures() -> None:
    assert percent(-0.1234, sign=True) == "\u221212.3 %"
    assert percent(float("nan")) == "n/a"
    assert money(1234.5) == "1,234 USDT"
    assert (chance(0.0), chance(0.25), chance(None)) == ("under 0.1 %", "25.0 %", "n/a")
    assert money(-0.5) == "\u22120.50 USDT"
    assert MeanEstimate(1.0, 0.5, 0.0, 2.0).z == 2.0
