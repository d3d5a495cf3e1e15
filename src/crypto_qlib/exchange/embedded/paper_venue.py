"""The simulated exchange behind the API, kept in step with the server's clock.

At market time T the bar that ended at T has been lived through (``end_bar``) and the next one has not begun: what clients
read is the account at the close. The first order at T begins the next bar, so that it fills at that bar's open; a step
begins it if no order did, ends it and moves the clock. This is the agreed order of events of backtest and paper alike.
"""

from __future__ import annotations

from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.exchange.embedded.bar_feed import VenueBarFeed
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.wire import WireRefusal
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.venue_config import VenueConfig, VenueInstrument


class PaperVenue:
    """One simulated exchange driven by the server's clock.

    Parameters
    ----------
    window : MarketWindow
        Market and clock.
    config : VenueConfig
        How the exchange executes.
    feed : VenueBarFeed
        The market's bars.
    """

    def __init__(self, window: MarketWindow, config: VenueConfig, feed: VenueBarFeed) -> None:
        source, self._clock = window.source, window.clock
        listed = [VenueInstrument(item, source.tiers(item.symbol)) for item in source.instruments()]
        self._feed = feed
        self.exchange = SimulatedExchange(listed, config, self._clock.market_ns)

    def open_account(self, account_id: str, cash: float, fees: FeeSchedule) -> None:
        """Open a paper account with ``cash`` USDT."""
        self.exchange.open_account(account_id, cash, fees)

    def begin_bar(self) -> None:
        """Begin the bar at the market's time unless it has begun; refuse with 50001 where the data have ended."""
        if self.exchange.is_in_bar:
            return
        if not self._clock.has_next:
            raise WireRefusal("50001")
        self.exchange.begin_bar(self._feed.bar(self._clock.market_ns))

    def symbols_at_stake(self) -> set[str]:
        """Return the symbols in which an account has a position, a pending order or a waiting trigger order."""
        return self.exchange.symbols_at_stake()

    def step(self) -> None:
        """Live through one bar and move the clock to its close.

        Raises
        ------
        UserError
            If the market's data end here.
        """
        if self._clock.has_next:
            self.begin_bar()
            self.exchange.end_bar()
        self._clock.advance()
