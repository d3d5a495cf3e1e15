"""Everything that holds the exchange's state, in one object: venue, book and the handlers that work on them.

A desk is picklable as it stands: what belongs to the running server and not to the state (market, clock, bars in memory) is
replaced by its name on the way out and by the server's own on the way in, so that a snapshot holds accounts and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, replace
from typing import Any

from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.exchange.embedded.account_api import AccountApi
from crypto_qlib.exchange.embedded.algo_api import AlgoApi
from crypto_qlib.exchange.embedded.bar_feed import VenueBarFeed
from crypto_qlib.exchange.embedded.house import House
from crypto_qlib.exchange.embedded.live_bars import LiveBars
from crypto_qlib.exchange.embedded.market_switches import MarketFaults
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.paper_book import PaperBook
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.trade_api import TradeApi
from crypto_qlib.venue.venue_config import VenueConfig


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a desk stands in and does not own.

    Parameters
    ----------
    window : MarketWindow
        Market and clock.
    feed : VenueBarFeed
        The market's bars as the venue wants them.
    """

    window: MarketWindow
    feed: VenueBarFeed

    @staticmethod
    def of(window: MarketWindow) -> Surroundings:
        """Return the surroundings of a desk on this market."""
        feed = VenueBarFeed(window.source, window.clock.step_ns, window.trailing_liquidity, window.switches, window.recording)
        return Surroundings(window, feed)

    def named(self) -> dict[str, Any]:
        """Return name -> object."""
        window = self.window
        return {
            "window": window, "feed": self.feed, "source": window.source, "clock": window.clock,
            "liquidity": window.trailing_liquidity, "switches": window.switches,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class PaperDesk:
    """The venue, its book, and the handlers of everything a client may do."""

    venue: PaperVenue
    book: PaperBook
    account: AccountApi
    trade: TradeApi
    algo: AlgoApi
    house: House
    market_faults: MarketFaults
    live: LiveBars

    @staticmethod
    def fresh(around: Surroundings, config: VenueConfig, fees: FeeSchedule) -> PaperDesk:
        """Return a desk without any account."""
        window = around.window
        venue = PaperVenue(window, config, around.feed)
        book = PaperBook(venue.exchange)
        return PaperDesk(
            venue,
            book,
            AccountApi(window, venue, book, fees),
            TradeApi(window, venue, book),
            AlgoApi(window, venue, book),
            House(venue),
            MarketFaults(
                window.switches,
                venue.exchange,
                {item.inst_id: item.symbol for item in window.source.instruments()},
                window.clock,
            ),
            LiveBars(window, venue),
        )

    def dump(self, around: Surroundings) -> bytes:
        """Return the desk, the market time it stands at and the market's switches as bytes for :meth:`load`."""
        target, window = io.BytesIO(), around.window
        _Pickler(target, around).dump((window.clock.market_ns, replace(window.switches), self))
        return target.getvalue()

    @staticmethod
    def load(state: bytes, around: Surroundings) -> PaperDesk:
        """Return the desk of :meth:`dump`, clock and switches set as they were; only for bytes this program wrote."""
        market_ns, switches, desk = _Unpickler(io.BytesIO(state), around).load()
        around.window.clock.resume_at(market_ns)
        around.window.switches.become(switches)
        if not isinstance(desk, PaperDesk):
            raise TypeError("the bytes hold no desk")
        return desk


class _Pickler(pickle.Pickler):
    def __init__(self, target: io.BytesIO, around: Surroundings) -> None:
        super().__init__(target, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = {id(thing): name for name, thing in around.named().items()}

    def persistent_id(self, thing: Any) -> str | None:
        return self._names.get(id(thing))


class _Unpickler(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, around: Surroundings) -> None:
        super().__init__(source)
        self._named = around.named()

    def persistent_load(self, name: Any) -> Any:
        return self._named[name]
