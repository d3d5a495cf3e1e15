"""Where the acceptance cards are played: the embedded exchange by default, OKX demo or a live account when a person asks.

``CRYPTO_QLIB_ACCEPTANCE`` is ``demo`` or ``live`` (keys in ``OKX_API_KEY``, ``OKX_API_SECRET``, ``OKX_API_PASSPHRASE``). On a
live account no card places an order unless ``CRYPTO_QLIB_ACCEPTANCE_ORDERS`` says exactly :data:`LIVE_CONSENT`.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, Protection, Side
from crypto_qlib.exchange.credentials import ApiCredentials, credentials_from
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.settings.secrets import Secrets
from tests.exchange.fake_market import START_NS, FakeMarket

TARGET_NAME: Final = "CRYPTO_QLIB_ACCEPTANCE"
ORDERS_NAME: Final = "CRYPTO_QLIB_ACCEPTANCE_ORDERS"
LIVE_CONSENT: Final = "real-money-orders"
SYMBOL: Final = "BTCUSDT"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Target:
    """Where the cards are played.

    Parameters
    ----------
    mode : str
        ``embedded``, ``demo`` or ``live``.
    may_order : bool
        Whether cards may place orders there.
    """

    mode: str
    may_order: bool

    @staticmethod
    def of(environment: Mapping[str, str]) -> Target:
        """Return the target the environment asks for; anything but the three modes is refused."""
        mode = environment.get(TARGET_NAME, "") or "embedded"
        if mode not in ("embedded", "demo", "live"):
            raise ValueError(f"{TARGET_NAME} must be demo or live, not {mode!r}")
        return Target(mode, mode != "live" or environment.get(ORDERS_NAME) == LIVE_CONSENT)


class Desk:
    """One account, one event loop, and names of orders that no other run used."""

    def __init__(self, target: Target, gateway: OkxGateway, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self.target, self.gateway, self.connection = target, gateway, connection
        self._loop = loop
        self._names = 0
        self._run_id = f"acc{time.time_ns() // 1_000_000:x}"
        self.item: Instrument = next(i for i in self.run(gateway.instruments()) if i.symbol == SYMBOL)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do one thing and return what came of it."""
        return self._loop.run_until_complete(work)

    @property
    def least_lots(self) -> int:
        """Return the smallest order, lots."""
        return max(math.ceil(self.item.min_size / self.item.lot_size - 1e-9), 1)

    def name(self) -> str:
        """Return a fresh client order id."""
        self._names += 1
        return f"{self._run_id}n{self._names}"

    def best(self) -> tuple[float, float]:
        """Return (best bid, best ask)."""
        book = self.run(self.gateway.book(SYMBOL))
        return float(book.bids[0][0]), float(book.asks[0][0])

    def on_tick(self, price: float) -> float:
        """Return ``price`` on the instrument's grid."""
        return float(self.item.format_price(price))

    def entry(self, *, protected: bool) -> OrderRequest:
        """Return a long market order of the smallest size."""
        bid, _ = self.best()
        levels = Protection(self.on_tick(0.9 * bid), self.on_tick(1.1 * bid)) if protected else None
        return OrderRequest(self.name(), SYMBOL, Side.BUY, self.least_lots, margin_mode=MarginMode.ISOLATED, protection=levels)

    def resting(self, name: str = "") -> OrderRequest:
        """Return a post-only buy far below the market."""
        bid, _ = self.best()
        price = self.on_tick(0.9 * bid)
        return OrderRequest(
            name or self.name(), SYMBOL, Side.BUY, self.least_lots, kind=OrderKind.POST_ONLY, price=price,
            margin_mode=MarginMode.ISOLATED,
        )  # fmt: skip

    def held_lots(self) -> int:
        """Return our signed position, lots."""
        return next((p.lots for p in self.run(self.gateway.account()).positions if p.symbol == SYMBOL), 0)

    def flat(self) -> None:
        """Close what a card left open."""
        lots = self.held_lots()
        if lots:
            side = Side.of(lots).opposite
            self.run(
                self.gateway.place(
                    OrderRequest(self.name(), SYMBOL, side, abs(lots), margin_mode=MarginMode.ISOLATED, reduce_only=True)
                )
            )


@contextmanager
def open_desk(target: Target) -> Iterator[Desk]:
    """Serve or reach the account, and leave it as it was."""
    loop = asyncio.new_event_loop()
    server: EmbeddedExchangeThread | None = None
    if target.mode == "embedded":
        options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY)
        server = EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), options))
        server.start()
        key: ApiCredentials | None = server.exchange.credentials
    else:
        key = credentials_from(Secrets.from_environ(os.environ))
        if key is None:
            pytest.fail("the cards need OKX_API_KEY, OKX_API_SECRET and OKX_API_PASSPHRASE", pytrace=False)
    base_url = server.base_url if server is not None else ""
    gateway = OkxGateway(ExchangeSettings(mode=target.mode), key, base_url)  # type: ignore[arg-type]
    try:
        yield Desk(target, gateway, Connection(base_url, key, target.mode == "demo"), loop)
    finally:
        loop.run_until_complete(gateway.close())
        loop.close()
        if server is not None:
            server.stop()


def environment() -> Mapping[str, str]:
    """Return the process's environment."""
    return os.environ
