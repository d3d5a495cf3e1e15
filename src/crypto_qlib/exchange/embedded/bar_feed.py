"""The market's bars as the simulated exchange wants them: all symbols of one step at once.

Bars are read from the source in blocks of :data:`BLOCK_STEPS` steps and kept as ``(n_steps, n_symbols)`` arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_MINUTE
from crypto_qlib.core.market import FloatArray
from crypto_qlib.exchange.embedded.liquidity import TrailingLiquidity
from crypto_qlib.exchange.embedded.market_switches import MarketSwitches
from crypto_qlib.exchange.embedded.recording import Recording
from crypto_qlib.venue.market_board import VenueBar
from crypto_qlib.venue.market_source import MarketSource

BLOCK_STEPS: Final = 128
_LAST: Final = ("open", "high", "low", "close", "volume", "quote_volume")
_PRICES: Final = ("open", "high", "low", "close")


class VenueBarFeed:
    """Serve :class:`VenueBar` one step at a time.

    Parameters
    ----------
    source : MarketSource
        Whole history.
    step_ns : int
        Bar length of one step.
    liquidity : TrailingLiquidity
        Turnover and volatility for slippage.
    switches : MarketSwitches
        Faults of the market: suspended symbols do not trade.
    recording : Recording, optional
        Order books as they were, where there are some.
    """

    def __init__(
        self,
        source: MarketSource,
        step_ns: int,
        liquidity: TrailingLiquidity,
        switches: MarketSwitches,
        recording: Recording | None = None,
    ) -> None:
        self._recording = recording
        self._source = source
        self._step_ns = step_ns
        self._liquidity = liquidity
        self._symbols = tuple(item.symbol for item in source.instruments())
        self._switches = switches
        self._revision = switches.revision
        self._block_start = -1
        self._block: dict[str, FloatArray] = {}

    def bar(self, ts_open: int) -> VenueBar:
        """Return the bar that opens at ``ts_open``; symbols that do not trade in it are NaN.

        A settlement after one open and not later than the next is booked at the next, as in the backtest's panel; a minute
        past an open still counts as at the open.
        """
        step = ts_open // self._step_ns
        start = step - step % BLOCK_STEPS
        if (start, self._switches.revision) != (self._block_start, self._revision):
            self._block, self._block_start = self._read(start * self._step_ns), start
            self._revision = self._switches.revision
        row = {name: column[step - start] for name, column in self._block.items()}
        known = self._liquidity.at(ts_open)
        depth = self._recording.depths(ts_open) if self._recording else {}
        return VenueBar(
            ts_open, self._step_ns, self._symbols, adv=known.adv, sigma_day_bps=known.sigma_day_bps, depth=depth, **row
        )  # fmt: skip

    def _read(self, start_ns: int) -> dict[str, FloatArray]:
        end_ns = start_ns + BLOCK_STEPS * self._step_ns
        shape = (BLOCK_STEPS, len(self._symbols))
        names = (*_LAST, *(f"mark_{name}" for name in _PRICES), "funding_rate")
        block = {name: np.full(shape, np.nan) for name in names}
        halted = self._switches.suspended
        for k, symbol in enumerate(self._symbols):
            if symbol in halted:
                continue
            bars = self._source.bars(symbol, self._step_ns, start_ns, end_ns)
            rows = (bars.ts_open - start_ns) // self._step_ns
            for name in _LAST:
                block[name][rows, k] = getattr(bars, name)
            marks = self._source.mark_bars(symbol, self._step_ns, start_ns, end_ns)
            rows = (marks.ts_open - start_ns) // self._step_ns
            for name in _PRICES:
                block[f"mark_{name}"][rows, k] = getattr(marks, name)
            funding = self._source.funding(symbol, start_ns - self._step_ns, end_ns)
            slack = min(NS_PER_MINUTE, self._step_ns // 2)
            rows = -((start_ns + slack - funding.ts) // self._step_ns)
            inside = (rows >= 0) & (rows < BLOCK_STEPS)
            block["funding_rate"][rows[inside], k] = 0.0
            np.add.at(block["funding_rate"][:, k], rows[inside], funding.rate[inside])
        return block
