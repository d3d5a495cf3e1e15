"""The book shows the depth the venue charges: walking it costs what the impact model says."""

from __future__ import annotations

import pytest

from crypto_qlib.core.costs import slippage_bps
from crypto_qlib.exchange.embedded.order_book import BookModel
from tests.exchange.fake_market import FakeMarket

ADV, SIGMA_BPS, LAST = 5e8, 400.0, 100_000.0


@pytest.mark.parametrize("notional", [2e5, 1e6, 3e6])
@pytest.mark.parametrize("side", ["asks", "bids"])
def test_the_last_level_an_order_needs_lies_where_the_venue_would_fill_it(side: str, notional: float) -> None:
    item = FakeMarket().instruments()[0]
    model = BookModel(impact_y=0.8, half_spread_bps=1.0)
    bids, asks = model.levels(item, (ADV, SIGMA_BPS), LAST, 400)
    taken, reached = 0.0, 0.0
    for price, size, *_ in asks if side == "asks" else bids:
        taken += float(size) * item.ct_val * LAST
        reached = abs(float(price) / LAST - 1.0) * 1e4
        if taken >= notional:
            break
    assert taken >= notional, "the book is deep enough"
    expected = slippage_bps(notional, ADV, SIGMA_BPS, 1.0, 0.8)
    assert reached == pytest.approx(expected, abs=3.0), "within a level's width of the model"
