"""Which channels are there, on which socket path, and what a new subscriber is shown at once.

Source: OKX API v5, channel pages; candles, ``trades-all`` and ``orders-algo`` live on the business path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, Protocol

from crypto_qlib.exchange.embedded.account_feed import ACCOUNT_CHANNELS
from crypto_qlib.exchange.embedded.market_feed import CANDLE_PREFIXES, candle_of
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.push_hub import Topic
from crypto_qlib.exchange.embedded.socket_errors import SocketRefusal
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal


class Path(Enum):
    """The three socket paths."""

    PUBLIC = "/ws/v5/public"
    BUSINESS = "/ws/v5/business"
    PRIVATE = "/ws/v5/private"


_BY_INSTRUMENT: Final = frozenset(
    ("tickers", "trades", "books", "books5", "bbo-tbt", "mark-price", "funding-rate", "price-limit", "open-interest")
)
_BY_INDEX: Final = frozenset(("index-tickers",))
_BY_TYPE: Final = frozenset(("instruments", "liquidation-orders"))
_VIP: Final = {"books-l2-tbt": "60029", "books50-l2-tbt": "60030"}
_PRIVATE: Final = ACCOUNT_CHANNELS - {"orders-algo"}
_TYPES: Final = ("SWAP", "ANY")

Snapshot = tuple[list[Row], Mapping[str, object] | None]


class TopicFeed(Protocol):
    """Whoever has something to show to subscribers."""

    def snapshots(self, topic: Topic) -> Iterable[Snapshot]:
        """Return what a new subscriber of ``topic`` is shown at once."""
        ...


class SocketChannels:
    """Turn a subscription's ``arg`` into a topic.

    Parameters
    ----------
    window : MarketWindow
        Knows the instruments.
    market, account : TopicFeed
        What there is to show.
    relays : bool
        Whether the market is OKX's, which knows more candles than are made here.
    """

    def __init__(self, window: MarketWindow, market: TopicFeed, account: TopicFeed, *, relays: bool = False) -> None:
        self._relays = relays
        self._window = window
        self._market = market
        self._account = account

    def topic(self, path: Path, arg: Mapping[str, str], account_id: str) -> Topic:
        """Return what ``arg`` asks for; 60018 where there is no such channel on ``path``, 60011 before the login."""
        channel = arg.get("channel", "")
        if channel in _VIP and path is Path.PUBLIC:
            raise SocketRefusal(_VIP[channel])
        if (channel in _PRIVATE and path is Path.PRIVATE) or (channel == "orders-algo" and path is Path.BUSINESS):
            if not account_id:
                raise SocketRefusal("60011")
            return self._private(channel, arg, account_id)
        if path is Path.PUBLIC and channel in _BY_TYPE and arg.get("instType") == "SWAP":
            return Topic(channel, "SWAP")
        if path is Path.PUBLIC and channel in _BY_INSTRUMENT:
            return Topic(channel, self._known(arg, suffix=""))
        if path is Path.PUBLIC and channel in _BY_INDEX:
            return Topic(channel, self._known(arg, suffix="-SWAP"))
        if path is Path.BUSINESS and channel == "trades-all":
            return Topic(channel, self._known(arg, suffix=""))
        if path is Path.BUSINESS and channel.startswith(CANDLE_PREFIXES):
            if not self._relays and candle_of(channel, self._window.source.base_frame_ns) is None:
                raise _unknown(arg)
            return Topic(channel, self._known(arg, suffix="-SWAP" if channel.startswith("index-") else ""))
        raise _unknown(arg)

    def snapshots(self, topic: Topic) -> Iterable[Snapshot]:
        """Return what a new subscriber of ``topic`` is shown at once."""
        if topic.channel in ACCOUNT_CHANNELS:
            return self._account.snapshots(topic)
        return self._market.snapshots(topic)

    def _known(self, arg: Mapping[str, str], suffix: str) -> str:
        name = arg.get("instId", "")
        try:
            self._window.tradable(f"{name}{suffix}")
        except WireRefusal:
            raise _unknown(arg) from None
        return name

    def _private(self, channel: str, arg: Mapping[str, str], account_id: str) -> Topic:
        needs_type = channel in ("orders", "positions", "orders-algo", "liquidation-warning")
        if needs_type and arg.get("instType") not in (*_TYPES, "SPOT", "MARGIN", "FUTURES", "OPTION"):
            raise _unknown(arg)
        return Topic(channel, account_id)


def _unknown(arg: Mapping[str, str]) -> SocketRefusal:
    return SocketRefusal("60018", ",".join(f"{name}:{value}" for name, value in arg.items()))
