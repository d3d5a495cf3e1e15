"""Tiny price tables and the exchange they run on: the harness of the venue's golden tapes.

The market of a tape is one (or two) symbols of one coin per lot, tick 0.01, taker fee 0.1 %, maker fee 0.02 %, no spread and
no impact, so that every expected number can be worked with pencil and paper. Tiers: up to 100 lots 1 % and 50x, up to 200
2 % and 25x, up to 300 3 % and 16x, up to 400 4 % and 10x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, OrderRequest, Protection, Side, TriggerSource
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.venue.market_board import VenueBar
from crypto_qlib.venue.records import VenueOrder
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.venue_config import VenueConfig, VenueInstrument

NAN = math.nan
ME = "me"
PLAIN = VenueConfig(impact_y=0.0, half_spread_bps=0.0, max_bar_volume_share=0.05, default_leverage=10.0)
FEES = FeeSchedule(maker=0.0002, taker=0.001)


def tier_table(scale: float = 1.0, valid_from_ns: int = 0) -> TierTable:
    return TierTable(
        np.array([100.0, 200.0, 300.0, 400.0]),
        np.array([0.01, 0.02, 0.03, 0.04]) * scale,
        np.array([0.02, 0.04, 0.0625, 0.1]),
        np.array([50.0, 25.0, 16.0, 10.0]),
        valid_from_ns,
    )


def instrument(symbol: str = "AUSDT", **changes: object) -> Instrument:
    base = symbol.removesuffix("USDT")
    plain = Instrument(symbol, f"{base}-USDT-SWAP", base, ct_val=1.0, tick_size=0.01, lot_size=1.0, min_size=1.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def listed(symbol: str = "AUSDT", history: TierHistory | None = None, **changes: object) -> VenueInstrument:
    return VenueInstrument(instrument(symbol, **changes), history or TierHistory([tier_table()]))


@dataclass(frozen=True)
class B:
    """One bar of one symbol: last open, high, low, close; mark the same unless told."""

    open: float
    high: float
    low: float
    close: float
    mark: tuple[float, float, float, float] | None = None
    funding: float = NAN
    volume: float = NAN
    adv: float = NAN
    sigma: float = NAN


FLAT = B(100, 100, 100, 100)


def venue_bar(index: int, rows: Mapping[str, B]) -> VenueBar:
    def column(read: Callable[[B], float]) -> np.ndarray:
        return np.array([read(row) for row in rows.values()], dtype=float)

    def mark(k: int) -> np.ndarray:
        return column(lambda row: (row.mark or (row.open, row.high, row.low, row.close))[k])

    return VenueBar(
        ts_open=index * NS_PER_HOUR,
        frame_ns=NS_PER_HOUR,
        symbols=tuple(rows),
        open=column(lambda r: r.open),
        high=column(lambda r: r.high),
        low=column(lambda r: r.low),
        close=column(lambda r: r.close),
        mark_open=mark(0),
        mark_high=mark(1),
        mark_low=mark(2),
        mark_close=mark(3),
        volume=column(lambda r: r.volume),
        quote_volume=column(lambda r: r.volume * r.open),
        funding_rate=column(lambda r: r.funding),
        adv=column(lambda r: r.adv),
        sigma_day_bps=column(lambda r: r.sigma),
    )


Action = Callable[[SimulatedExchange], object]


@dataclass(frozen=True)
class Send:
    """The action that sends one order."""

    request: OrderRequest

    def __call__(self, exchange: SimulatedExchange) -> VenueOrder:
        return exchange.submit(ME, self.request)


def order(
    signed_lots: int,
    *,
    symbol: str = "AUSDT",
    stop: float | None = None,
    target: float | None = None,
    trailing: float | None = None,
    on: TriggerSource = TriggerSource.LAST,
    kind: OrderKind = OrderKind.MARKET,
    price: float | None = None,
    mode: MarginMode = MarginMode.ISOLATED,
    reduce_only: bool = False,
    client_id: str = "",
) -> Send:
    """Return an action that sends one order."""
    guard = Protection(stop, target, on, trailing) if (stop, target, trailing) != (None, None, None) else None
    return Send(OrderRequest(client_id, symbol, Side.of(signed_lots), abs(signed_lots), kind, price, mode, reduce_only, guard))


@dataclass(frozen=True)
class Tape:
    """What happens, and what must come of it.

    ``actions`` by bar are sent just after that bar's open was shown, ``after`` just after its close. ``fills`` are
    (bar, signed lots, price, exit kind); ``cash`` and ``equity`` are after the last bar; NaN is not checked.
    """

    name: str
    reason: str
    bars: Sequence[B | Mapping[str, B]]
    actions: Mapping[int, Sequence[Action]]
    fills: Sequence[tuple[int, int, float, ExitKind | None]]
    cash: float = NAN
    equity: float = NAN
    start: float = 1000.0
    config: VenueConfig = PLAIN
    instruments: Sequence[VenueInstrument] = field(default_factory=lambda: (listed("AUSDT"), listed("BUSDT")))
    ambiguous: int = 0
    after: Mapping[int, Sequence[Action]] = field(default_factory=dict)


def run(tape: Tape) -> SimulatedExchange:
    exchange = SimulatedExchange(tape.instruments, tape.config, 0)
    exchange.open_account(ME, tape.start, FEES)
    for k, row in enumerate(tape.bars):
        exchange.begin_bar(venue_bar(k, {"AUSDT": row} if isinstance(row, B) else row))
        for action in tape.actions.get(k, ()):
            action(exchange)
        exchange.end_bar()
        for action in tape.after.get(k, ()):
            action(exchange)
    return exchange
