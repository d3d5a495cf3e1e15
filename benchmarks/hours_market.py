"""Markets known hour by hour, simulated or as OKX recorded them, that the backtest reads and the embedded exchange serves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, FundingBlock, MarketPanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.venue.bar_aggregation import aggregate_bars
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec
from crypto_qlib.venue.market_source import MarketSource

WARM_UP, AFTER = history_bars(NS_PER_HOUR) + 24, 2
"""Hours before the first decision and after the last, in which what was sent last is carried out."""
OKX_COINS = ("BTC", "ETH", "SOL", "XRP", "DOGE", "ADA", "LINK", "LTC")


class Hours:
    """A market known hour by hour: the panel the backtest reads is, bar for bar, what the exchange serves.

    Parameters
    ----------
    panel : MarketPanel
        Every hour of every symbol.
    items, tables : dict
        Contract and tiers by symbol.
    is_simulated : bool
        Whether its prices are invented.
    """

    base_frame_ns = NS_PER_HOUR

    def __init__(
        self, panel: MarketPanel, items: dict[str, Instrument], tables: dict[str, TierHistory], *, is_simulated: bool
    ) -> None:
        self.panel, self.items, self.tables, self.is_simulated = panel, items, tables, is_simulated
        self.start_ns = int(panel.ts_open[0])
        self.end_ns = int(panel.ts_open[-1]) + NS_PER_HOUR
        self.first_close_ns = self.start_ns + WARM_UP * NS_PER_HOUR
        self.n_hours = panel.n_bars - WARM_UP - AFTER
        self.last_close_ns = self.first_close_ns + self.n_hours * NS_PER_HOUR

    def part(self, first: int, n_hours: int) -> Hours:
        """Return ``n_hours`` of these hours from the ``first`` decided one on, with the warm-up before them."""
        panel = self.panel.rows(first, first + WARM_UP + n_hours + AFTER)
        return Hours(panel, self.items, self.tables, is_simulated=self.is_simulated)

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every contract."""
        return tuple(self.items.values())

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers of ``symbol``."""
        return self.tables[symbol]

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return hours, or days made of them."""
        hours = self._block(("open", "high", "low", "close", "volume", "quote_volume"), symbol, start_ns, end_ns)
        return hours if frame_ns == NS_PER_HOUR else aggregate_bars(hours, frame_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return hours of the mark price, or days made of them."""
        hours = self._block(("mark_open", "mark_high", "mark_low", "mark_close"), symbol, start_ns, end_ns)
        return hours if frame_ns == NS_PER_HOUR else aggregate_bars(hours, frame_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return nothing: no index is known."""
        del symbol, frame_ns, start_ns, end_ns
        return BarBlock.empty()

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the settlements of the panel."""
        first, last = self._rows(start_ns, end_ns)
        rate = self.panel.funding_rate[first:last, self.panel.symbols.index(symbol)]
        known = np.isfinite(rate)
        return FundingBlock(self.panel.ts_open[first:last][known], rate[known])

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return NaN: it is not known."""
        del symbol, ts_ns
        return math.nan

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return nothing: they are not known."""
        del ts_ns
        return {}

    def _rows(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        first, last = np.searchsorted(self.panel.ts_open, [start_ns, end_ns])
        return int(first), int(last)

    def _block(self, names: tuple[str, ...], symbol: str, start_ns: int, end_ns: int) -> BarBlock:
        first, last = self._rows(start_ns, end_ns)
        column = self.panel.symbols.index(symbol)
        columns = [getattr(self.panel, name)[first:last, column] for name in names]
        unknown = np.full(last - first, np.nan)
        return BarBlock(self.panel.ts_open[first:last], *columns, *([unknown] * (6 - len(names))))


def simulated_hours(n_hours: int, n_symbols: int, seed: int = 20260101) -> Hours:
    """Return ``n_hours`` hours (after a warm-up) of the simulated market's first ``n_symbols`` coins that live all the time."""
    end_ns = parse_utc("2026-01-01")
    start_ns = end_ns - (n_hours + WARM_UP + AFTER) * NS_PER_HOUR
    market = SimulatedMarket(SimulationSpec(4 * n_symbols, start_ns, end_ns, seed, 1.0))
    return _hours_of(market, n_symbols, start_ns, end_ns)


def okx_hours(folder: Path, n_hours: int, n_symbols: int) -> Hours:
    """Return the last ``n_hours`` hours of 2025 (after a warm-up) of OKX's swaps as recorded, marks and funding with them."""
    end_ns = parse_utc("2026-01-01")
    market = ReplayMarket(folder / "okx_perp_1h.parquet", folder / "okx_funding.parquet", folder / "okx_mark_1h.parquet")
    wanted = tuple(f"{coin}USDT" for coin in OKX_COINS[:n_symbols])
    return _hours_of(market, n_symbols, end_ns - (n_hours + WARM_UP + AFTER) * NS_PER_HOUR, end_ns, wanted)


def _hours_of(market: MarketSource, n_symbols: int, start_ns: int, end_ns: int, wanted: tuple[str, ...] = ()) -> Hours:
    ts = np.arange(start_ns, end_ns, NS_PER_HOUR, dtype=np.int64)
    by_name = {item.symbol: item for item in market.instruments()}
    blocks: dict[str, tuple[BarBlock, BarBlock]] = {}
    for symbol in wanted or tuple(by_name):
        last = market.bars(symbol, NS_PER_HOUR, start_ns, end_ns)
        mark = market.mark_bars(symbol, NS_PER_HOUR, start_ns, end_ns)
        if np.array_equal(last.ts_open, ts) and np.array_equal(mark.ts_open, ts) and len(blocks) < n_symbols:
            blocks[symbol] = last, mark
    symbols = tuple(blocks)
    fields = {n: np.column_stack([getattr(blocks[s][0], n) for s in symbols]) for n in PANEL_FIELDS[:6]}
    fields |= {f"mark_{n}": np.column_stack([getattr(blocks[s][1], n) for s in symbols]) for n in PANEL_FIELDS[:4]}
    settled = (market.funding(s, start_ns, end_ns) for s in symbols)
    rates = np.column_stack([funding_on_grid(b.ts, b.rate, ts, NS_PER_HOUR) for b in settled])
    # Holes of the record (OKX gives three months) would be refused: what nobody recorded counts as settled at rate zero.
    fields["funding_rate"] = np.where(np.isnan(rates) & (ts % (8 * NS_PER_HOUR) == 0)[:, None], 0.0, rates)
    panel = MarketPanel(symbols, NS_PER_HOUR, ts, **fields, has_mark=np.ones(len(symbols), np.bool_))
    items = {s: replace(by_name[s], delisted_ns=None) for s in symbols}
    return Hours(panel, items, {s: market.tiers(s) for s in symbols}, is_simulated=market.is_simulated)
