"""Rendered candles read back as the very same floats, in OKX's way of writing numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.candle_pages import CandlePages, PageRequest, render_bars, tick_decimals
from crypto_qlib.exchange.gateway import PriceKind
from tests.exchange.fake_market import START_NS, FakeMarket

BTC = FakeMarket().instruments()[0]
numbers = st.one_of(
    st.floats(1e-9, 1e9, allow_nan=False), st.integers(0, 10**7).map(float), st.just(math.nan), st.sampled_from([1e-7, 2.5e16])
)


@given(st.lists(st.tuples(*[numbers] * 6), max_size=5), st.booleans())
def test_what_is_rendered_reads_back_bit_for_bit(rows: list[tuple[float, ...]], is_closed: bool) -> None:
    columns = [np.array([row[k] for row in rows], dtype=np.float64) for k in range(6)]
    bars = BarBlock(np.arange(len(rows), dtype=np.int64) * NS_PER_HOUR, *columns)
    for kind, width in ((PriceKind.LAST, 9), (PriceKind.MARK, 6)):
        rendered = render_bars(bars, BTC, kind, is_closed=is_closed)
        assert len(rendered) == len(rows)
        for k, text in enumerate(rendered):
            fields = json.loads(text)
            assert len(fields) == width
            assert (fields[0], fields[-1]) == (str(k * 3_600_000), "1" if is_closed else "0")
            given_values = rows[k][:4] if kind is PriceKind.MARK else (*rows[k][:4], math.nan, *rows[k][4:])
            for value, field in zip(given_values, fields[1:-1], strict=True):
                assert "e" not in field.lower()
                assert not field.endswith(".0")
                if not math.isnan(value):
                    assert float(field) == value
        if kind is PriceKind.LAST:
            assert all((json.loads(t)[7] == "") == math.isnan(r[5]) for t, r in zip(rendered, rows, strict=True))


@pytest.mark.parametrize(("tick", "decimals"), [(0.1, 1), (1.0, 0), (5.0, 0), (0.00001, 5), (1e-7, 7), (0.25, 2), (10.0, 0)])
def test_decimals_of_a_tick(tick: float, decimals: int) -> None:
    assert tick_decimals(tick) == decimals


@given(st.integers(0, 1700), st.integers(0, 1700), st.integers(1, 300), st.integers(0, 1680))
def test_a_page_is_the_newest_closed_bars_between_its_bounds(before_h: int, after_h: int, limit: int, now_h: int) -> None:
    market = FakeMarket()
    hour_ms = 3_600_000
    start_ms = START_NS // 10**6
    request = PageRequest(start_ms + before_h * hour_ms, start_ms + after_h * hour_ms, limit)
    now = START_NS + now_h * NS_PER_HOUR
    got = CandlePages(market).page(PriceKind.LAST, BTC, NS_PER_HOUR, now, request)
    # The oracle: hours counted one by one, from the definition.
    hours = [h for h in range(24 * 70) if before_h < h < after_h and h + 1 <= now_h]
    assert [int(json.loads(row)[0]) for row in got] == [start_ms + h * hour_ms for h in reversed(hours)][:limit]
