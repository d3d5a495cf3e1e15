"""What stands behind the venue: a source of true market history, simulated or replayed."""

from __future__ import annotations

from typing import Protocol

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory


class MarketSource(Protocol):
    """Serve a market's whole history; the *server* decides how much of it is already visible.

    All times are nanoseconds since the epoch, UTC. Bars are named by their open time.
    """

    @property
    def is_simulated(self) -> bool:
        """Return whether prices are invented (must be said wherever they are shown)."""
        ...

    @property
    def base_frame_ns(self) -> int:
        """Return the finest bar length there is; coarser bars are exact aggregates of it."""
        ...

    @property
    def start_ns(self) -> int:
        """Return the open time of the first bar of any symbol."""
        ...

    @property
    def end_ns(self) -> int:
        """Return the close time of the last bar of any symbol."""
        ...

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every instrument that lives at some time, with its listing span."""
        ...

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers of ``symbol`` over time."""
        ...

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return complete bars with ``start_ns <= ts_open < end_ns``; ``frame_ns`` is a multiple of the base frame."""
        ...

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return mark-price bars (volumes NaN), as :meth:`bars`; an empty block where no mark is known."""
        ...

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return index-price bars (volumes NaN), as :meth:`bars`; an empty block where no index is known."""
        ...

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the settlements with ``start_ns <= ts < end_ns``."""
        ...

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return open interest in base coins at ``ts_ns``; NaN where unknown."""
        ...

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return the split of accounts at the multiples of ``frame_ns`` in ``[start_ns, end_ns)``; only where known.

        A row says how it stood at some time from its instant on: it is known when its frame is over.
        """
        ...

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return market cap in USD by base coin as known at ``ts_ns``; empty where the source has none."""
        ...
