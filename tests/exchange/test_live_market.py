"""OKX's live market behind the embedded exchange, over real connections: another embedded server stands in for OKX.

It serves minutes that are written down and moves when the test steps it, so that "live" prices are known beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ccxt
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, SystemClock
from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.live_market import LiveSource
from crypto_qlib.exchange.embedded.public_facts import PublicFacts, PublicRest, clock_offset_ns, read_facts
from crypto_qlib.exchange.embedded.push_hub import Topic
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.raw_socket import dialled
from tests.exchange.scripted_market import Bar, ScriptedMarket

NAME, SWAP = "BTC/USDT:USDT", "BTC-USDT-SWAP"
KEY = ApiCredentials.generate()
FIRST = 8 * 60 - 4
"""Minute the market begins at: four before the settlement at 08:00."""


def minutes() -> list[Bar]:
    """Quiet at 50,000; minute 3 falls to 48,000 and back, minute 6 rises to 51,000 and stays."""
    bars = [Bar.flat(50_000.0) for _ in range(FIRST + 3)]
    bars += [Bar((50_000.0, 50_000.0, 48_000.0, 49_900.0), (50_000.0, 50_000.0, 48_500.0, 49_900.0))]
    rise = (49_900.0, 51_000.0, 49_900.0, 51_000.0)
    bars += [Bar.flat(49_900.0), Bar.flat(49_900.0), Bar(rise, rise)]
    return bars + [Bar.flat(51_000.0) for _ in range(120)]


def okx(port: int = 0, at_minute: int = FIRST) -> EmbeddedExchange:
    market = ScriptedMarket(FakeMarket().instruments()[0], minutes(), 0.004, 100.0, {8 * 60: 0.001}, NS_PER_MINUTE)
    return EmbeddedExchange(market, EmbeddedOptions(start_ns=START_NS + at_minute * NS_PER_MINUTE, port=port))


async def live_source(url: str, stale_s: float = 600.0, facts: PublicFacts | None = None) -> LiveSource:
    async with PublicRest(url, 60.0) as rest:
        known = facts or await read_facts(rest, 10)
        return LiveSource(known, await clock_offset_ns(rest, SystemClock()), url, stale_s)


async def until(happened: Callable[[], object], within_s: float = 60.0) -> None:
    for _ in range(int(within_s / 0.02)):
        if happened():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


@dataclass
class Both:
    """OKX as it is played here, the exchange on its market, and a client of the latter."""

    okx: EmbeddedExchange
    paper: EmbeddedExchange
    client: Any

    async def minute(self, n: int = 1) -> None:
        """Let the market live through ``n`` minutes and wait until the last price of each was heard and observed."""
        for _ in range(n):
            now_ms = await self.okx.step() // 10**6
            assert self.paper.live is not None
            source = self.paper.source
            assert isinstance(source, LiveSource)
            await until(lambda: int(source.symbols["BTCUSDT"].ticker.get("ts", 0)) >= now_ms)  # noqa: B023 - awaited here
            before = self.paper.clock.market_ns
            if self.paper.venue.symbols_at_stake():
                await until(lambda: self.paper.clock.market_ns > before)  # noqa: B023 - awaited here


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    async with okx() as played, EmbeddedExchange(await live_source(played.base_url), credentials=KEY) as paper:
        client = okx_client(paper.base_url, KEY)
        try:
            yield Both(played, paper, client)
        finally:
            await client.close()


async def test_public_answers_and_contracts_are_okx_own(both: Both) -> None:
    theirs = okx_client(both.okx.base_url, both.okx.credentials)
    try:
        for ask in ("load_markets", "fetch_tickers", "fetch_funding_rates"):
            assert await getattr(both.client, ask)() == await getattr(theirs, ask)()
        for ask in ("fetch_order_book", "fetch_trades", "fetch_funding_rate_history", "fetch_ticker", "fetch_funding_rate"):
            assert await getattr(both.client, ask)(NAME) == await getattr(theirs, ask)(NAME)
        for kind in ({}, {"price": "mark"}):
            assert await both.client.fetch_ohlcv(NAME, "1m", params=kind) == await theirs.fetch_ohlcv(NAME, "1m", params=kind)
        assert (await both.client.fetch_market_leverage_tiers(NAME)) == (await theirs.fetch_market_leverage_tiers(NAME))
    finally:
        await theirs.close()


async def test_an_order_walks_the_live_book_and_a_stop_fires_on_the_live_price(both: Both) -> None:
    await both.client.load_markets()
    best = (await both.client.fetch_order_book(NAME))["asks"][0][0]
    made = await both.client.create_order(NAME, "market", "buy", 1, params={"stopLoss": {"triggerPrice": 49_000}})
    order = await both.client.fetch_order(made["id"], NAME)
    assert (order["status"], order["average"]) == ("closed", best)
    held = (await both.client.fetch_positions())[0]
    assert (held["contracts"], held["markPrice"]) == (1.0, 50_000.0)
    await both.minute(3)
    assert len(await both.client.fetch_positions()) == 1
    await both.minute()
    # Minute 3 traded down to 48,000 and closed at 49,900: only the trades told it.
    assert await both.client.fetch_positions() == []
    sold = (await both.client.fetch_my_trades(NAME))[-1]
    assert sold["side"] == "sell"
    assert 48_000 <= sold["price"] <= 49_000


@pytest.mark.slow
async def test_funding_is_booked_when_okx_settles_it(both: Both) -> None:
    await both.client.create_order(NAME, "market", "buy", 1)
    await both.minute(5)
    rows = await both.client.fetch_funding_history(NAME)
    assert len(rows) == 1
    # OKX shows 0 for the first settlement of this market, and settles 0.001 of 0.01 BTC at its mark of 49,900.
    assert rows[0]["amount"] == pytest.approx(-0.01 * 49_900.0 * 0.001, rel=1e-6)


@pytest.mark.slow
async def test_pushes_are_okx_own_and_a_book_that_is_listened_to_late_fits(both: Both) -> None:
    async with dialled(both.okx.base_url, "public") as theirs, dialled(both.paper.base_url, "public") as ours:
        for socket in (theirs, ours):
            await socket.subscribe(channel="tickers", instId=SWAP)
            await socket.read()
        await both.okx.step()
        assert await ours.read() == await theirs.read()
    async with dialled(both.paper.base_url, "public") as late:
        await late.subscribe(channel="books", instId=SWAP)
        first = await late.read()
        assert first["action"] == "snapshot"
        await both.okx.step()
        update = await late.read()
        assert update["data"][0]["prevSeqId"] == first["data"][0]["seqId"]
    async with dialled(both.paper.base_url, "business") as bars:
        await bars.subscribe(channel="candle1m", instId=SWAP)
        await bars.read()
        await both.okx.step()
        while (row := (await bars.read())["data"][0])[8] != "1":
            pass
        assert row[4] == "50000"


async def test_orders_are_refused_while_prices_are_stale_and_cancels_are_not() -> None:
    async with okx() as played, EmbeddedExchange(await live_source(played.base_url), credentials=KEY) as paper:
        client = okx_client(paper.base_url, KEY)
        try:
            await client.load_markets()
            resting = await client.create_order(NAME, "limit", "buy", 1, 49_000)
            source = paper.source
            assert isinstance(source, LiveSource)
            # As if the last message of the swap were older than is allowed.
            source.symbols["BTCUSDT"].seen_s -= source.stale_s + 1.0
            with pytest.raises(ccxt.OnMaintenance, match="50001"):
                await client.create_order(NAME, "market", "buy", 1)
            await client.cancel_order(resting["id"], NAME)
            assert await client.fetch_open_orders(NAME) == []
            await played.step()
            await until(lambda: paper.live is not None and paper.live.is_fresh(source.symbols["BTCUSDT"]))
            assert (await client.create_order(NAME, "market", "buy", 1))["id"]
        finally:
            await client.close()


async def test_what_happened_while_okx_was_away_is_caught_up_with() -> None:
    played = okx()
    await played.start()
    port = int(played.base_url.rsplit(":", 1)[1])
    async with EmbeddedExchange(await live_source(played.base_url), credentials=KEY) as paper:
        client = okx_client(paper.base_url, KEY)
        try:
            await client.create_order(NAME, "market", "buy", 3)
            stop = {"stopLossPrice": 48_200, "reduceOnly": True}
            await client.create_order(NAME, "market", "sell", 1, params=stop)
            await played.stop()
            live, source = paper.live, paper.source
            assert live is not None
            assert isinstance(source, LiveSource)
            await until(lambda: not live.status()["connected"])
            for refused in (client.create_order(NAME, "market", "buy", 1), client.fetch_ticker(NAME)):
                with pytest.raises(ccxt.OnMaintenance, match="50001"):
                    await refused
            # Seven minutes later it is back: in between lay the fall to 48,000 and a settlement.
            async with okx(port, FIRST + 7):
                await until(lambda: paper.venue.exchange.counts(KEY.key)[1] == 2)
                assert (await client.fetch_positions())[0]["contracts"] == 2.0
                # Two contracts were left when funding was settled; the mark is the one found on coming back.
                paid = await client.fetch_funding_history(NAME)
                assert [row["amount"] for row in paid] == [pytest.approx(-2 * 0.01 * 51_000.0 * 0.001)]
                await until(lambda: live.is_fresh(source.symbols["BTCUSDT"]))
                made = await client.create_order(NAME, "market", "buy", 1)
                assert (await client.fetch_order(made["id"], NAME))["average"] >= 51_000.0
        finally:
            await client.close()


async def test_a_suspended_swap_takes_no_orders_and_trades_again_when_okx_lets_it(both: Both) -> None:
    await both.client.load_markets()
    for is_on in (True, False):
        both.okx.switchboard.switch({"fault": "suspend", "symbol": "BTCUSDT", "on": is_on})
        await both.okx.step()
        switches = both.paper._window.switches
        await until(lambda: ("BTCUSDT" in switches.suspended) is is_on)  # noqa: B023 - awaited here
        if is_on:
            with pytest.raises(ccxt.ContractUnavailable, match="51022"):
                await both.client.create_order(NAME, "market", "buy", 1)
    assert (await both.client.create_order(NAME, "market", "buy", 1))["id"]


async def test_accounts_on_a_live_market_come_back_as_they_were(tmp_path: Path) -> None:
    async with okx() as played:
        facts = (await live_source(played.base_url)).facts
        shown: list[Any] = []
        for _ in range(2):
            source = await live_source(played.base_url, facts=facts)
            async with EmbeddedExchange(source, credentials=KEY, state=StateFile(tmp_path, {})) as paper:
                client = okx_client(paper.base_url, KEY)
                try:
                    if not shown:
                        await client.create_order(NAME, "market", "buy", 3, params={"takeProfit": {"triggerPrice": 51_500}})
                        await client.create_order(NAME, "limit", "buy", 1, 49_000)
                    rows = [await ask(NAME) for ask in (client.fetch_open_orders, client.fetch_my_trades)]
                    rows.append(await client.fetch_positions())
                    shown.append([[row["info"]["instId"], row["id"]] for part in rows for row in part])
                finally:
                    await client.close()
        assert shown[0] == shown[1]
        assert len(shown[0]) == 3


async def test_a_message_in_an_unknown_form_does_not_end_the_stream(both: Both) -> None:
    live, source = both.paper.live, both.paper.source
    assert live is not None
    assert isinstance(source, LiveSource)
    for data in ([{"last": "no number"}], [{}], "text", [None]):
        both.okx.hub.publish(Topic("tickers", SWAP), data)  # type: ignore[arg-type]
    await both.minute()
    assert live.is_fresh(source.symbols["BTCUSDT"])


async def test_an_okx_that_cannot_be_reached_is_said_at_the_start() -> None:
    with pytest.raises(CryptoQlibError, match=r"cannot be reached at http://127\.0\.0\.1:9") as caught:
        await live_source("http://127.0.0.1:9")
    assert "exchange.okx_url" in str(caught.value.hint)


def test_hours_between_settlements_and_a_contract_are_taken_from_okx_rows() -> None:
    row = {
        "instId": SWAP, "instType": "SWAP", "settleCcy": "USDT", "ctType": "linear", "ctVal": "0.01", "ctMult": "1",
        "ctValCcy": "BTC", "tickSz": "0.1", "lotSz": "0.01", "minSz": "0.01", "lever": "100", "state": "live",
        "listTime": "1", "expTime": "1999999999999", "instIdCode": 10459,
    }  # fmt: skip
    tier = {"maxSz": "500", "mmr": "0.004", "imr": "0.01", "maxLever": "100", "instFamily": "BTC-USDT"}
    source = LiveSource(PublicFacts([row], {SWAP: [tier]}, {SWAP: (1e9, 300.0)}, {SWAP: 4}), 0)
    item = source.instruments()[0]
    # When a live contract will end is not looked at: the market says it when it is there.
    assert (item.funding_interval_h, item.lot_size, item.delisted_ns) == (4, 0.01, None)
    assert source.tiers("BTCUSDT").at(NS_PER_HOUR).max_contracts.tolist() == [500.0]
