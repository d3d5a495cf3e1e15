"""Orders against a recorded book: asks 3 @ 100.01, 4 @ 100.02, 5 @ 100.05; bids 2 @ 99.99, 6 @ 99.90. Worked by hand.

The bar's own volume would allow a single lot: where the book is known, the book decides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crypto_qlib.core.order import OrderKind, OrderStatus
from crypto_qlib.venue.depth import Depth
from crypto_qlib.venue.market_board import VenueBar
from crypto_qlib.venue.records import RefusalCode
from crypto_qlib.venue.simulator import SimulatedExchange
from tests.venue.venue_tape import FEES, FLAT, ME, PLAIN, B, Send, listed, order, venue_bar

BOOK = Depth(np.array([[99.99, 2.0], [99.90, 6.0]]), np.array([[100.01, 3.0], [100.02, 4.0], [100.05, 5.0]]))


def bar(index: int, row: B = FLAT) -> VenueBar:
    return replace(venue_bar(index, {"AUSDT": replace(row, volume=20.0)}), depth={"AUSDT": BOOK})


def started() -> SimulatedExchange:
    exchange = SimulatedExchange([listed()], PLAIN, 0)
    exchange.open_account(ME, 100_000.0, FEES)
    exchange.begin_bar(bar(0))
    return exchange


KINDS = OrderKind
CASES = [
    # Two of the three lots of the best level.
    ("inside the best level", [order(2)], (2, 100.01, OrderStatus.FILLED)),
    # (3 x 100.01 + 4 x 100.02) / 7 = 100.0157..: the worse tick.
    ("across two levels", [order(7)], (7, 100.02, OrderStatus.FILLED)),
    # Twelve lots rest in all: (300.03 + 400.08 + 500.25) / 12 = 100.03; a market order's rest is canceled.
    ("more than there is", [order(13)], (12, 100.03, OrderStatus.CANCELED)),
    # Up to 100.02 there are seven; a limit order's rest stays.
    ("limit", [order(9, kind=KINDS.LIMIT, price=100.02)], (7, 100.02, OrderStatus.PARTIALLY_FILLED)),
    ("limit below the book", [order(9, kind=KINDS.LIMIT, price=100.0)], (0, None, OrderStatus.LIVE)),
    ("ioc", [order(9, kind=KINDS.IOC, price=100.02)], (7, 100.02, OrderStatus.CANCELED)),
    ("fok of too much", [order(9, kind=KINDS.FOK, price=100.02)], (0, None, OrderStatus.CANCELED)),
    ("fok", [order(7, kind=KINDS.FOK, price=100.02)], (7, 100.02, OrderStatus.FILLED)),
    # The last price is 100, but 100.005 would not take: the best ask is 100.01.
    ("post-only inside the spread", [order(1, kind=KINDS.POST_ONLY, price=100.0)], (0, None, OrderStatus.LIVE)),
    ("post-only at the ask", [order(1, kind=KINDS.POST_ONLY, price=100.01)], (0, None, OrderStatus.CANCELED)),
    # The first order takes the best level, the second meets what is left: (3 x 100.02 ...).
    ("one after the other", [order(3), order(4)], (4, 100.02, OrderStatus.FILLED)),
    # Bids hold eight: a market order that closes ten closes whole, the last two at the last level.
    # (2 x 99.99 + 6 x 99.90 + 2 x 99.90) / 10 = 99.918, down to the tick.
    ("closing whole", [order(10), order(-10)], (10, 99.91, OrderStatus.FILLED)),
]  # fmt: skip


@pytest.mark.parametrize(("requests", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_order_takes_what_the_book_holds(requests: list[Send], expected: tuple[int, float | None, OrderStatus]) -> None:
    exchange = started()
    last = [exchange.submit(ME, replace(r.request, client_order_id=f"c{k}")) for k, r in enumerate(requests)][-1]
    lots, price, status = expected
    assert (last.filled_lots, last.status) == (lots, status)
    assert price is None or last.average_price == pytest.approx(price, abs=1e-9)


def test_the_book_is_whole_again_in_the_next_bar() -> None:
    exchange = started()
    exchange.submit(ME, replace(order(12).request, client_order_id="a"))
    refused = exchange.submit(ME, replace(order(1).request, client_order_id="b"))
    assert refused.status is OrderStatus.CANCELED
    assert refused.refusal is not None
    assert refused.refusal.code is RefusalCode.NOT_FILLABLE
    exchange.end_bar()
    exchange.begin_bar(bar(1))
    assert exchange.submit(ME, replace(order(1).request, client_order_id="c")).average_price == 100.01


def test_a_bar_completed_later_is_lived_through_as_if_known_at_once() -> None:
    whole = B(100, 103, 97, 101)
    known, told = started(), started()
    for exchange in (known, told):
        exchange.end_bar()
    known.begin_bar(bar(1, whole))
    told.begin_bar(bar(1))
    for exchange in (known, told):
        exchange.submit(ME, replace(order(2, stop=98.0).request, client_order_id="a"))
        exchange.submit(ME, replace(order(1, kind=KINDS.LIMIT, price=97.5).request, client_order_id="b"))
    open_bar = told._board.bar
    assert open_bar is not None
    told.complete_bar(replace(bar(1, whole), symbols=open_bar.symbols))
    for exchange in (known, told):
        exchange.end_bar()
    assert told.fills(ME) == known.fills(ME)
    assert len(told.fills(ME)) == 3
    assert told.snapshot(ME) == known.snapshot(ME)
