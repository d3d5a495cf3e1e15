"""Sources of market caps over real connections: CoinGecko's own client, and CoinMarketCap, against servers that speak them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.asset_selector import rule_of, select_universe
from crypto_qlib.data_collector.cap_backfill import backfill_days, backfill_rankings
from crypto_qlib.data_collector.cap_rankings import keep_rankings, read_rankings
from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.coinmarketcap import CoinMarketCapRanking
from crypto_qlib.data_collector.contract_archive import archive_instruments, instrument_versions
from crypto_qlib.data_collector.market_caps import CoinGeckoRanking
from crypto_qlib.data_collector.universe_history import load_membership
from crypto_qlib.data_collector.universe_rebuild import rebuild_history
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings, UniverseSettings
from crypto_qlib.store.lake import Lake
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec


def listing(slug: str, symbol: str, price: float, cap: float | None, *tags: str) -> dict[str, Any]:
    """Return one row as CoinMarketCap documents it."""
    usd = {"price": price, "volume_24h": 1e9, "market_cap": cap, "last_updated": "2025-06-01T00:00:00.000Z"}
    return {"id": len(slug), "name": slug.title(), "symbol": symbol, "slug": slug, "tags": list(tags), "quote": {"USD": usd}}


ROWS = [
    listing("bitcoin", "BTC", 1e5, 2e12, "mineable", "pow"),
    listing("tether", "USDT", 1.0, 1.5e11, "stablecoin"),
    listing("odd-claim", "ODD", 3e3, 1e10, "liquid-staking-derivatives"),
    listing("no-cap", "NOC", 1.0, None),
]


@asynccontextmanager
async def coinmarketcap(answers: list[web.Response | None]) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """Serve the listings; each element of ``answers`` is given before the true answer (``None``: the true one)."""
    asked: list[web.Request] = []

    async def latest(request: web.Request) -> web.Response:
        asked.append(request)
        made = answers.pop(0) if answers else None
        status = {"error_code": 0, "error_message": None, "credit_count": 1}
        return made if made is not None else web.json_response({"status": status, "data": ROWS})

    app = web.Application()
    for path in ("latest", "historical"):
        app.router.add_get(f"/v1/cryptocurrency/listings/{path}", latest)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    finally:
        await runner.cleanup()


def too_many() -> web.Response:
    status = {"error_code": 1008, "error_message": "You've exceeded your API Key's HTTP request rate limit."}
    return web.json_response({"status": status}, status=429)


async def test_coinmarketcap_is_read_with_its_key_after_a_refusal_for_too_many_requests() -> None:
    async with coinmarketcap([too_many(), too_many(), None]) as (url, asked):
        coins = await CoinMarketCapRanking("KEY", url, pause_s=0.01).page(2)
    assert len(asked) == 3
    assert dict(asked[0].query) == {"start": "251", "limit": "250", "convert": "USD"}
    assert asked[0].headers["X-CMC_PRO_API_KEY"] == "KEY"
    assert (coins[0].coin_id, coins[0].symbol, coins[0].price, coins[0].market_cap) == ("bitcoin", "BTC", 1e5, 2e12)
    assert np.isnan(coins[3].market_cap)
    assert [bool(why_excluded(c)) for c in coins] == [False, True, True, False]
    assert coins[2].category == "wrapped, staked or bridged duplicate"


async def test_a_past_ranking_is_known_when_its_day_is_over() -> None:
    async with coinmarketcap([]) as (url, asked):
        known_ns, coins = await CoinMarketCapRanking("KEY", url).ranking_at(parse_utc("2022-05-07T13:00:00"))
    assert known_ns == parse_utc("2022-05-08")
    assert asked[0].query["date"] == "2022-05-07"
    assert len(coins) == 4


async def test_past_rankings_are_filled_week_by_week_until_the_plan_refuses(tmp_path: Path) -> None:
    lake, now = Lake(tmp_path), parse_utc("2025-06-01T12:00:00")
    start = now - 40 * NS_PER_DAY
    refusal = web.json_response({"status": {"error_code": 1006, "error_message": "Your plan does not support it."}}, status=403)
    async with coinmarketcap([None, None, None, refusal]) as (url, asked):
        source = CoinMarketCapRanking("KEY", url)
        keep_rankings(lake, source.name, [(now, await source.page(1))])
        done = await backfill_days(source, lake, start)
        assert (done.rankings, len(done.missing)) == (2, 1)
        assert "Your plan does not support it" in done.missing[0]
        again = await backfill_days(source, lake, start)
    assert again.missing == ()
    times = [r.known_ns for r in read_rankings(lake, source.name)]
    assert np.all(np.diff(times[:-1]) <= 7 * NS_PER_DAY)
    assert times[0] <= start
    assert all(t % NS_PER_DAY == 0 for t in times[:-1])  # known when the day was over
    assert len({r.query["date"] for r in asked if "date" in r.query}) == len(times) - 1


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            web.json_response({"status": {"error_code": 1001, "error_message": "This API Key is invalid."}}, status=401),
            "invalid",
        ),
        (web.Response(text="<html>Just a moment...</html>", content_type="text/html"), "no JSON object"),
        (web.json_response({"status": {"error_code": 0}, "data": {"BTC": 1}}), "no list of coins"),
        (web.json_response({"status": {"error_code": 0}}, status=500), "HTTP 500"),
    ],
)
async def test_a_refusal_of_coinmarketcap_is_one_clear_line(answer: web.Response, line: str) -> None:
    async with coinmarketcap([answer]) as (url, _):
        with pytest.raises(UserError, match=line):
            await CoinMarketCapRanking("KEY", url).page(1)
    with pytest.raises(UserError, match="cannot read market caps from 127"):
        await CoinMarketCapRanking("KEY", "http://127.0.0.1:9/v1", timeout_s=2.0).page(1)


@pytest.mark.slow
async def test_the_past_is_filled_through_coingeckos_client_and_the_dead_are_in_it(tmp_path: Path) -> None:
    """The embedded exchange speaks CoinGecko: charts, ids, markets; the rebuilt universe is that of the market's own caps."""
    start, now = parse_utc("2025-01-01"), parse_utc("2025-03-01")
    market = SimulatedMarket(SimulationSpec(24, start, now + NS_PER_DAY, seed=11))
    rules, lake = UniverseSettings(size=8, hysteresis=0, exclude_stablecoins=False), Lake(tmp_path)
    options = EmbeddedOptions(start_ns=now, step_frame_ns=NS_PER_HOUR)
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        source = CoinGeckoRanking(f"{exchange.base_url}/api/v3")
        archive_instruments(lake, await gateway.instruments(), now)
        await select_universe(gateway, source, lake, rules, now)
        contracts = [v[-1] for v in instrument_versions(lake).values()]
        done = await backfill_rankings(source, lake, contracts, rules, start + NS_PER_DAY)
    dead = {i.base for i in contracts if i.delisted_ns is not None}
    assert dead == {i.base for i in market.instruments() if i.delisted_ns is not None and i.delisted_ns <= now}
    assert done.missing == ()
    rankings = read_rankings(lake, "coingecko")
    assert len(rankings) == 59  # a day each from the second of January, and today's
    for ranking in rankings[5:-1:9]:
        true = market.market_caps(ranking.known_ns - NS_PER_HOUR)
        assert {c.symbol: pytest.approx(c.market_cap, rel=1e-9) for c in ranking.coins} == true
    snapshots = rebuild_history(lake, rules, "1h")
    for snapshot in snapshots[5:-1:9]:
        true = market.market_caps(snapshot.as_of_ns - NS_PER_HOUR)
        assert [m.base for m in snapshot.members] == sorted(true, key=lambda b: -true[b])[:8]
    assert load_membership(lake, rule_of(rules)).as_of_ns.size == len(snapshots)
