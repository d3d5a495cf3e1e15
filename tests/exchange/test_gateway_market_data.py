"""Cards 1-19: public data through the real ccxt client against the embedded server."""

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import DoNotRetry, SkipCycle
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_NS = START_NS + 62 * NS_PER_DAY


async def test_card_01_instruments_are_the_swaps_that_trade_now(gateway: OkxGateway, market: FakeMarket) -> None:
    found = {item.symbol: item for item in await gateway.instruments()}
    live = {symbol for symbol, item in found.items() if item.state is InstrumentState.LIVE}
    assert live == {"BTCUSDT", "DOGEUSDT"}, "LATE was delisted twelve days ago"
    true = {item.symbol: item for item in market.instruments()}
    for symbol in live:
        assert found[symbol] == true[symbol]


async def test_card_02_server_time_is_the_markets_time(gateway: OkxGateway) -> None:
    assert await gateway.server_time_ns() == NOW_NS


@pytest.mark.parametrize(
    ("start_h", "end_h", "why"),
    [
        (0, 62 * 24, "everything: more than 1440 bars, the recent endpoint's reach, so both endpoints are joined"),
        (0, 301, "one more than a page, all of it older than the recent endpoint reaches"),
        (100, 400, "exactly one page"),
        (1000, 62 * 24 + 5, "an end beyond now"),
        (7, 8, "a single bar"),
    ],
)
async def test_card_03_candle_paging_is_gap_free(
    gateway: OkxGateway, market: FakeMarket, start_h: int, end_h: int, why: str
) -> None:
    start, end = START_NS + start_h * NS_PER_HOUR, START_NS + end_h * NS_PER_HOUR
    got = await gateway.candles("BTCUSDT", "1h", start, end)
    true = market.bars("BTCUSDT", NS_PER_HOUR, start, min(end, NOW_NS))
    for name in ("ts_open", "open", "high", "low", "close", "volume", "quote_volume"):
        np.testing.assert_array_equal(getattr(got, name), getattr(true, name), err_msg=f"{name}: {why}")


async def test_card_04_an_unfinished_bar_is_never_returned(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    await exchange.step(3)  # 03:00: the bars of 2 h, 4 h and 1 d are running
    now = NOW_NS + 3 * NS_PER_HOUR
    for frame, span in (("1h", NS_PER_HOUR), ("2h", 2 * NS_PER_HOUR), ("4h", 4 * NS_PER_HOUR), ("1d", NS_PER_DAY)):
        bars = await gateway.candles("BTCUSDT", frame, START_NS, now + 10 * NS_PER_DAY)
        assert bars.ts_open[-1] == now // span * span - span


@pytest.mark.parametrize("kind", [PriceKind.MARK, PriceKind.INDEX])
async def test_card_05_mark_and_index_candles_come_back_bit_for_bit(
    gateway: OkxGateway, market: FakeMarket, kind: PriceKind
) -> None:
    got = await gateway.candles("DOGEUSDT", "1h", START_NS, NOW_NS, kind)
    read = market.mark_bars if kind is PriceKind.MARK else market.index_bars
    true = read("DOGEUSDT", NS_PER_HOUR, START_NS, NOW_NS)
    for name in ("ts_open", "open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(got, name), getattr(true, name))
    assert np.isnan(got.volume).all()


async def test_card_06_a_delisted_swap_keeps_its_history() -> None:
    exchange_time = START_NS + 45 * NS_PER_DAY
    earlier = EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=exchange_time))
    async with earlier, OkxGateway(ExchangeSettings(), None, earlier.base_url) as gateway:
        bars = await gateway.candles("LATEUSDT", "1h", START_NS, exchange_time)
        assert bars.ts_open[0] == START_NS + 20 * NS_PER_DAY
        assert len(bars) == 25 * 24
        await earlier.step(10 * 24)
        after = await gateway.candles("LATEUSDT", "1h", START_NS, START_NS + 60 * NS_PER_DAY)
        assert len(after) == 30 * 24


async def test_card_07_funding_history_pages_past_the_first_hundred(gateway: OkxGateway, market: FakeMarket) -> None:
    got = await gateway.funding_history("BTCUSDT", START_NS, NOW_NS)
    true = market.funding("BTCUSDT", START_NS, NOW_NS)
    np.testing.assert_array_equal(got.ts, true.ts)
    np.testing.assert_array_equal(got.rate, true.rate)
    assert len(got) > 100


async def test_card_08_funding_is_kept_only_so_long_unless_asked_otherwise() -> None:
    for days, oldest in ((10.0, NOW_NS - 10 * NS_PER_DAY), (None, START_NS)):
        options = EmbeddedOptions(start_ns=NOW_NS, funding_retention_days=days)
        exchange = EmbeddedExchange(FakeMarket(), options)
        async with exchange, OkxGateway(ExchangeSettings(), None, exchange.base_url) as gateway:
            assert (await gateway.funding_history("BTCUSDT", START_NS, NOW_NS)).ts[0] == oldest


async def test_card_09_a_settlement_is_shown_only_after_its_instant(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    assert (await gateway.funding_history("BTCUSDT", START_NS, NOW_NS + NS_PER_DAY)).ts[-1] == NOW_NS - 8 * NS_PER_HOUR
    await exchange.step()
    assert (await gateway.funding_history("BTCUSDT", START_NS, NOW_NS + NS_PER_DAY)).ts[-1] == NOW_NS


async def test_card_10_tiers_are_in_contracts_and_equal_the_markets(gateway: OkxGateway, market: FakeMarket) -> None:
    got, true = await gateway.tiers("DOGEUSDT"), market.tiers("DOGEUSDT").at(NOW_NS)
    for name in ("max_contracts", "mmr", "imr", "max_leverage"):
        np.testing.assert_array_equal(getattr(got, name), getattr(true, name))


async def test_card_11_the_book_is_sorted_positive_and_on_the_tick_grid(gateway: OkxGateway) -> None:
    book = await gateway.book("BTCUSDT", 20)
    assert book.bids.shape == book.asks.shape == (20, 2)
    assert np.all(np.diff(book.bids[:, 0]) < 0)
    assert np.all(np.diff(book.asks[:, 0]) > 0)
    assert book.bids[0, 0] < book.asks[0, 0]
    assert np.all(book.bids[:, 1] > 0)
    ticks = book.asks[:, 0] / 0.1
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-6)


async def test_card_12_tickers_show_the_last_price_and_a_days_turnover(gateway: OkxGateway, market: FakeMarket) -> None:
    tickers = {item.symbol: item for item in await gateway.tickers()}
    day = market.bars("BTCUSDT", NS_PER_HOUR, NOW_NS - NS_PER_DAY, NOW_NS)
    opening = market.bars("BTCUSDT", NS_PER_HOUR, NOW_NS, NOW_NS + NS_PER_HOUR).open[0]
    btc = tickers["BTCUSDT"]
    assert btc.last == opening
    assert btc.bid < btc.last < btc.ask
    assert btc.quote_volume_24h == pytest.approx(day.volume.sum() * opening)


async def test_card_13_open_interest_is_in_base_coins(gateway: OkxGateway) -> None:
    assert await gateway.open_interest("BTCUSDT") == (NOW_NS, 1234.5)


async def test_card_14_unknown_open_interest_skips_the_cycle() -> None:
    options = EmbeddedOptions(start_ns=START_NS + 30 * NS_PER_DAY)
    exchange = EmbeddedExchange(FakeMarket(), options)
    async with exchange, OkxGateway(ExchangeSettings(), None, exchange.base_url) as gateway:
        with pytest.raises(SkipCycle):
            await gateway.open_interest("LATEUSDT")


async def test_card_15_an_unknown_symbol_is_refused_by_name(gateway: OkxGateway) -> None:
    with pytest.raises(DoNotRetry, match="NOPEUSDT"):
        await gateway.candles("NOPEUSDT", "1h", START_NS, NOW_NS)
