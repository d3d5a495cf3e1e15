"""OKX's live market behind the embedded exchange: its contracts, its clock, and what is known of it right now.

Nothing is simulated here but the fills: prices, marks, index, books and funding are those OKX publishes. History is not kept;
clients that ask for it get OKX's own answers (``relay``).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MINUTE, NS_PER_MS, Clock
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.exchange.embedded.liquidity import Liquidity, TrailingLiquidity
from crypto_qlib.exchange.embedded.live_symbol import LiveSymbol
from crypto_qlib.exchange.embedded.market_window import DayStats, MarketWindow
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.public_facts import PublicFacts
from crypto_qlib.exchange.embedded.recording import BookView
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.exchange.okx_parsing import instrument_from, tiers_from

_FOR_EVER_NS: Final = 2**62


class LiveSource:
    """The contracts of OKX's market and its newest prices, as a :class:`~crypto_qlib.venue.market_source.MarketSource`.

    Parameters
    ----------
    facts : PublicFacts
        Which swaps there are.
    offset_ns : int
        How far OKX's clock is ahead of this machine's.
    url : str
        Where the public data come from; empty = OKX.
    stale_s : float
        From which age of the last price on orders are refused.
    """

    is_simulated = False
    base_frame_ns = NS_PER_MINUTE
    start_ns = 0
    end_ns = _FOR_EVER_NS

    def __init__(self, facts: PublicFacts, offset_ns: int, url: str = "", stale_s: float = 10.0) -> None:
        self.facts = facts
        self.offset_ns = offset_ns
        self.url = url
        self.stale_s = stale_s
        items = [_contract(row, facts.funding_hours.get(str(row["instId"]), 8)) for row in facts.instruments]
        self.symbols = {item.symbol: LiveSymbol(item) for item in items}
        self.by_inst_id = {item.inst_id: self.symbols[item.symbol] for item in items}
        self._tiers = {item.symbol: TierHistory([tiers_from(facts.tiers[item.inst_id])]) for item in items}

    def instruments(self) -> tuple[Instrument, ...]:
        """Return the swaps served, the most traded first."""
        return tuple(live.item for live in self.symbols.values())

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers as they were when the exchange began."""
        return self._tiers[symbol]

    def figures(self, symbol: str) -> tuple[float, float]:
        """Return (median daily turnover in USDT, daily volatility in basis points)."""
        adv, sigma = self.facts.figures.get(self.symbols[symbol].item.inst_id, (0.0, 0.0))
        return adv, sigma

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:  # noqa: ARG002 - the protocol's
        """Return an empty block: history is OKX's to tell."""
        return BarBlock.empty()

    mark_bars = index_bars = bars

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:  # noqa: ARG002 - the protocol's
        """Return an empty block: settlements come with the observations."""
        return FundingBlock(np.empty(0, np.int64), np.empty(0))

    def open_interest(self, symbol: str, ts_ns: int) -> float:  # noqa: ARG002 - the protocol's
        """Return NaN: asked of OKX itself."""
        return math.nan

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:  # noqa: ARG002
        """Return an empty block: asked of OKX itself."""
        return LongShortBlock(np.empty(0, np.int64), np.empty(0))

    def market_caps(self, ts_ns: int) -> dict[str, float]:  # noqa: ARG002 - the protocol's
        """Return nothing: OKX does not tell market caps."""
        return {}


class LiveClock(ServerClock):
    """OKX's time; the market's own stands at the last observation.

    Parameters
    ----------
    wall_clock : Clock
        This machine's time.
    offset_ns : int
        How far OKX's is ahead of it.
    """

    def __init__(self, wall_clock: Clock, offset_ns: int) -> None:
        now_ns = wall_clock.now_ns() + offset_ns
        super().__init__(now_ns - now_ns % NS_PER_MS, _FOR_EVER_NS, NS_PER_MS, wall_clock, 1.0)
        self._offset_ns = offset_ns
        self._newest_ns = 0

    def now_ns(self) -> int:
        """Return OKX's time; never before what it has stamped a message with."""
        return max(self._wall.now_ns() + self._offset_ns, self._newest_ns, self.market_ns)

    def heard(self, ts_ns: int) -> None:
        """Take note of the stamp of a message."""
        self._newest_ns = max(self._newest_ns, ts_ns)

    @property
    def has_next(self) -> bool:
        """Return False: nothing is known ahead of time."""
        return False

    def advance(self) -> None:
        """Refuse: a live market moves by itself."""
        raise UserError("a live market moves by itself and cannot be stepped", "use exchange.market=simulated or replay")


class LiveLiquidity(TrailingLiquidity):
    """Turnover and volatility of the last month, as read when the exchange began."""

    def __init__(self, source: LiveSource) -> None:
        super().__init__(source, NS_PER_DAY)
        pairs = [source.figures(item.symbol) for item in source.instruments()]
        self._figures = Liquidity(*(np.array([pair[k] or math.nan for pair in pairs]) for k in (0, 1)))

    def at(self, ts_ns: int) -> Liquidity:  # noqa: ARG002 - the parent's
        """Return the figures."""
        return self._figures


class LiveWindow(MarketWindow):
    """Answer questions about the market with the newest message of each channel.

    Parameters
    ----------
    source : LiveSource
        The market.
    clock : LiveClock
        Its time.
    """

    def __init__(self, source: LiveSource, clock: LiveClock) -> None:
        super().__init__(source, clock)
        self._live = source
        self.trailing_liquidity = LiveLiquidity(source)
        self._rows: dict[str, Row] = {str(row["instId"]): row for row in source.facts.instruments}
        numbers = ((str(row["instId"]), row.get("instIdCode")) for row in source.facts.instruments)
        self._codes |= {inst_id: str(code) for inst_id, code in numbers if code not in (None, "")}

    def described(self, item: Instrument) -> Row:
        """Return OKX's row of an instrument."""
        return self._rows[item.inst_id]

    def price(self, kind: PriceKind, symbol: str) -> float:
        """Return the latest price; NaN before the first."""
        live = self._live.symbols[symbol]
        return {PriceKind.LAST: live.last.now, PriceKind.MARK: live.mark.now, PriceKind.INDEX: live.index}[kind]

    def price_limits(self, item: Instrument) -> tuple[float, float]:
        """Return OKX's own limits (highest buy, lowest sell)."""
        live = self._live.symbols[item.symbol]
        return live.buy_limit, live.sell_limit

    def recorded_book(self, symbol: str) -> BookView | None:
        """Return the live book."""
        live = self._live.symbols[symbol]
        depth = live.depth()
        return None if depth is None else BookView(depth, live.seq)

    def opened_at(self, symbol: str, ts_ns: int) -> float:
        """Return OKX's own price the day began with (in UTC where ``ts_ns`` is a midnight, else in UTC+8)."""
        name = "sodUtc8" if ts_ns % NS_PER_DAY else "sodUtc0"
        return float(self._live.symbols[symbol].ticker.get(name) or "nan")

    def day_stats(self, symbol: str) -> DayStats:
        """Return the last 24 hours of OKX's ticker."""
        live = self._live.symbols[symbol]
        row = live.ticker
        first, high, low, coins = (float(row.get(name) or "nan") for name in ("open24h", "high24h", "low24h", "volCcy24h"))
        return DayStats(first, high, low, live.last.now, coins, coins * live.last.now)


class LivePublicApi(PublicApi):
    """The contracts as OKX describes them, word for word."""

    def instrument_row(self, item: Instrument) -> Row:
        """Return OKX's own row, with the state it is in now."""
        assert isinstance(self._window, LiveWindow)
        row = self._window.described(item)
        return row | {"state": "suspend"} if item.symbol in self._window.switches.suspended else row


def _contract(row: dict[str, str], funding_hours: int) -> Instrument:
    """Return the instrument; when it will end is not told by a live market."""
    item = instrument_from(row, funding_hours)
    fields = {name: getattr(item, name) for name in Instrument.__slots__} | {"delisted_ns": None, "listed_ns": 0}
    return Instrument(**fields)
