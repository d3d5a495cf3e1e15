"""Bars expanded to paths keep what was recorded, are the same however they are read, and can be traded on."""

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.path_market import PathMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.test_recorded_samples import posted

MARKET = FakeMarket(24 * 30)
END = START_NS + 4 * NS_PER_DAY
PATHS = PathMarket(MARKET, NS_PER_MINUTE)


@pytest.mark.parametrize("kind", ["bars", "mark_bars"])
@pytest.mark.parametrize("symbol", ["BTCUSDT", "DOGEUSDT"])
def test_each_bar_keeps_its_open_high_low_close_and_volume(kind: str, symbol: str) -> None:
    true = getattr(MARKET, kind)(symbol, NS_PER_HOUR, START_NS, END)
    steps = getattr(PATHS, kind)(symbol, NS_PER_MINUTE, START_NS, END)
    o, h, low, c, v = (getattr(steps, name).reshape(-1, 60) for name in ("open", "high", "low", "close", "volume"))
    assert np.array_equal(o[:, 0], true.open)
    assert np.array_equal(c[:, -1], true.close)
    assert np.array_equal(h.max(axis=1), true.high)
    assert np.array_equal(low.min(axis=1), true.low)
    np.testing.assert_allclose(v.sum(axis=1), true.volume, rtol=1e-12)
    assert np.array_equal(
        steps.open[1:][steps.ts_open[1:] % NS_PER_HOUR != 0], steps.close[:-1][steps.ts_open[1:] % NS_PER_HOUR != 0]
    )


def test_a_path_is_the_same_however_it_is_read_and_another_with_another_seed() -> None:
    whole = PATHS.bars("BTCUSDT", NS_PER_MINUTE, START_NS, START_NS + 6 * NS_PER_HOUR)
    part = PATHS.bars("BTCUSDT", NS_PER_MINUTE, START_NS + 95 * NS_PER_MINUTE, START_NS + 130 * NS_PER_MINUTE)
    assert np.array_equal(part.close, whole.close[95:130])
    other = PathMarket(MARKET, NS_PER_MINUTE, seed=1).bars("BTCUSDT", NS_PER_MINUTE, START_NS, START_NS + 6 * NS_PER_HOUR)
    assert not np.array_equal(other.close, whole.close)
    five = PATHS.bars("BTCUSDT", 5 * NS_PER_MINUTE, START_NS, START_NS + NS_PER_HOUR)
    assert np.array_equal(five.high, whole.high[:60].reshape(-1, 5).max(axis=1))


def test_bars_of_the_market_s_own_frame_are_untouched() -> None:
    ours = PATHS.bars("BTCUSDT", 4 * NS_PER_HOUR, START_NS, START_NS + NS_PER_DAY)
    true = MARKET.bars("BTCUSDT", 4 * NS_PER_HOUR, START_NS, START_NS + NS_PER_DAY)
    assert np.array_equal(ours.close, true.close)


def test_a_step_that_does_not_divide_the_bars_is_refused() -> None:
    with pytest.raises(UserError, match="divide"):
        PathMarket(MARKET, 7 * NS_PER_MINUTE)


async def test_a_server_asked_for_finer_steps_than_its_bars_walks_the_path() -> None:
    options = EmbeddedOptions(start_ns=START_NS + NS_PER_DAY, step_frame_ns=NS_PER_MINUTE)
    exchange = EmbeddedExchange(MARKET, options)
    seen = []
    for _ in range(60):
        await exchange.step()
        seen.append(float(posted(exchange, "GET", "/api/v5/market/ticker?instId=BTC-USDT-SWAP")["data"][0]["last"]))
    bar = MARKET.bars("BTCUSDT", NS_PER_HOUR, START_NS + NS_PER_DAY, START_NS + NS_PER_DAY + NS_PER_HOUR)
    assert len(set(seen)) > 20
    assert bar.low[0] <= min(seen) < max(seen) <= bar.high[0]
    (row,) = posted(exchange, "GET", "/api/v5/market/history-candles?instId=BTC-USDT-SWAP&bar=1H&limit=1")["data"]
    assert [float(x) for x in row[1:5]] == [bar.open[0], bar.high[0], bar.low[0], bar.close[0]]
