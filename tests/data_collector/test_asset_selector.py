from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.data_collector.asset_selector import choose, fresh_universe, select_universe
from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.market_caps import Coin, CoinGeckoRanking
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, universe_at
from crypto_qlib.exchange.gateway import Ticker
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Lake
from tests.data_collector.fake_exchange import FakeExchange, instrument

NOW = parse_utc("2025-06-01T12:00:00")


def coin(symbol: str, price: float, cap: float, name: str = "", spread: float = 0.05) -> Coin:
    return Coin(name or symbol.lower(), symbol, name or symbol, price, cap, price * (1 + spread), price * (1 - spread))


class FixedRanking:
    source = "a table"
    name = "table"

    def __init__(self, *coins: Coin, error: str = "") -> None:
        self._coins, self._error = coins, error

    async def page(self, number: int) -> Sequence[Coin]:
        if self._error:
            raise UserError(self._error)
        return self._coins if number == 1 else ()


def exchange(**prices: float) -> FakeExchange:
    """Return an exchange with one live swap a price, turnover falling in the order given."""
    listing = [instrument(f"{base}USDT") for base in prices]
    quotes = [Ticker(f"{b}USDT", NOW, p, p, p, 1e9 / (k + 1)) for k, (b, p) in enumerate(prices.items())]
    return FakeExchange({}, NOW, listing=listing, quotes=quotes)


async def pick(
    tmp_path: Path, fake: FakeExchange, ranking: FixedRanking, now_ns: int = NOW, **rules: object
) -> UniverseSnapshot:
    return await select_universe(fake, ranking, Lake(tmp_path), UniverseSettings(**rules), now_ns)  # type: ignore[arg-type]


async def test_the_largest_coins_with_a_live_swap_are_chosen_by_rank(tmp_path: Path) -> None:
    fake = exchange(SOL=150.0, BTC=100_000.0, ETH=3000.0, DEAD=1.5)
    fake.listing[3] = instrument("DEADUSDT", state=InstrumentState.SUSPEND)
    ranking = FixedRanking(
        coin("ETH", 3000, 3e11),
        coin("BTC", 100_000, 2e12),
        coin("NOSWAP", 5, 1e11),
        coin("DEAD", 1.5, 9e10),
        coin("SOL", 150, 8e10),
    )
    found = await pick(tmp_path, fake, ranking, size=3)
    assert found.symbols == ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    assert [m.rank for m in found.members] == [1, 2, 3]
    assert found.source == "a table"


async def test_another_coin_of_the_same_ticker_is_refused_and_the_right_one_found(tmp_path: Path) -> None:
    fake = exchange(BTC=100_000.0, TON=3.0)
    ranking = FixedRanking(coin("BTC", 100_000, 2e12), coin("TON", 0.2, 5e9, "Tokamak"), coin("TON", 3.05, 4e9, "Toncoin"))
    found = await pick(tmp_path, fake, ranking)
    assert found.symbols == ("BTCUSDT", "TONUSDT")
    assert found.members[1].market_cap == 4e9
    assert any("TON (Tokamak) costs 0.2, TON-USDT-SWAP 3" in note for note in found.notes)


async def test_a_swap_per_thousand_coins_is_mapped_by_its_multiple(tmp_path: Path) -> None:
    fake = exchange(**{"1000SATS": 0.04, "PEPE": 1e-5, "1000000MOG": 1.0})
    ranking = FixedRanking(coin("PEPE", 1e-5, 4e9), coin("SATS", 0.00004, 3e9), coin("MOG", 1e-6, 2e9))
    found = await pick(tmp_path, fake, ranking)
    assert found.symbols == ("PEPEUSDT", "1000SATSUSDT", "1000000MOGUSDT")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (coin("USDT", 1.0, 1e11, spread=0.001), "stablecoin"),
        (coin("NEWUSD", 0.985, 1e9, spread=0.001), "one dollar"),  # says dollar and stays near it
        (coin("XYZ", 1.001, 1e9, spread=0.001), "one dollar"),  # behaves like one
        (coin("XRP", 1.001, 1e9, spread=0.03), ""),  # crosses one dollar on its way
        (Coin("ada", "ADA", "ADA", 1.0, 1e9), ""),  # day range not known
        (coin("ABC", 3000, 1e9, "Wrapped Thing"), "duplicate"),
        (coin("STETH", 3000, 1e9, "Lido"), "duplicate"),
        (coin("PAXG", 3300, 1e9, "PAX Gold"), "gold"),
        (coin("NUGGET", 3300, 1e9, "Tether Gold"), "gold"),
        (coin("STX", 1.5, 1e9, "Stacks"), ""),
    ],
)
def test_pegged_and_derived_coins_are_recognised(made: Coin, reason: str) -> None:
    assert reason in why_excluded(made)
    assert bool(reason) == bool(why_excluded(made))


async def test_include_overrides_the_exclusions_and_exclude_overrides_the_ranking(tmp_path: Path) -> None:
    fake = exchange(BTC=100_000.0, PAXG=3300.0, ETH=3000.0, TINY=0.1)
    ranking = FixedRanking(coin("BTC", 100_000, 2e12), coin("ETH", 3000, 3e11), coin("PAXG", 3300, 1e9))
    found = await pick(tmp_path, fake, ranking, size=3, include=("PAXG", "TINY"), exclude=("BTC",))
    assert found.symbols == ("ETHUSDT", "PAXGUSDT", "TINYUSDT")
    assert math.isnan(found.members[2].market_cap)


async def test_an_included_coin_without_a_swap_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"universe\.include: there is no live USDT swap of NOPE"):
        await pick(tmp_path, exchange(BTC=1e5), FixedRanking(coin("BTC", 1e5, 2e12)), include=("NOPE",))


async def test_an_empty_universe_is_one_clear_line(tmp_path: Path) -> None:
    ranking = FixedRanking(coin("USDT", 1.0, 1e11, spread=0.001))
    with pytest.raises(UserError, match="the universe is empty: none of 1 live USDT swaps qualifies"):
        await pick(tmp_path, exchange(USDT=1.0), ranking, market_cap_source="coingecko")


async def test_too_few_coins_are_said_aloud(tmp_path: Path) -> None:
    found = await pick(tmp_path, exchange(BTC=1e5), FixedRanking(coin("BTC", 1e5, 2e12)), size=50)
    assert found.notes[0] == "only 1 of universe.size = 50 coins qualify"


@pytest.mark.parametrize(
    ("source", "ranking", "note"),
    [
        ("volume", FixedRanking(error="never asked"), ""),
        ("auto", FixedRanking(error="cannot read market caps"), "cannot read market caps: ranked by turnover instead"),
        ("auto", FixedRanking(), "a table knows none of the exchange's coins: ranked by turnover instead"),
    ],
)
async def test_turnover_is_the_fall_back_and_is_named_as_the_source(
    tmp_path: Path, source: str, ranking: FixedRanking, note: str
) -> None:
    fake = exchange(SOL=150.0, BTC=100_000.0, USDC=1.0)
    found = await pick(tmp_path, fake, ranking, size=2, market_cap_source=source)
    assert found.symbols == ("SOLUSDT", "BTCUSDT")
    assert found.source == "24 h turnover on the exchange"
    assert (note in found.notes) if note else not found.notes


async def test_an_unreachable_source_that_was_asked_for_by_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        await pick(tmp_path, exchange(BTC=1e5), FixedRanking(error="cannot read"), market_cap_source="coingecko")


async def test_a_back_test_sees_the_universe_as_known_then(tmp_path: Path) -> None:
    lake, rules = Lake(tmp_path), UniverseSettings(size=1, hysteresis=0)
    first = FixedRanking(coin("BTC", 1e5, 2e12), coin("ETH", 3e3, 1e11))
    second = FixedRanking(coin("BTC", 1e5, 2e12), coin("ETH", 3e3, 3e12))
    fake = exchange(BTC=1e5, ETH=3e3)
    await select_universe(fake, first, lake, rules, NOW)  # type: ignore[arg-type]
    await select_universe(fake, second, lake, rules, NOW + 5 * NS_PER_HOUR)  # type: ignore[arg-type]
    assert universe_at(lake, NOW - 1) is None
    early, late = universe_at(lake, NOW + 5 * NS_PER_HOUR - 1), universe_at(lake, NOW + 5 * NS_PER_HOUR)
    assert early is not None and early.symbols == ("BTCUSDT",)  # noqa: PT018
    assert late is not None and late.symbols == ("ETHUSDT",)  # noqa: PT018


async def test_a_young_snapshot_of_the_same_settings_is_used_again(tmp_path: Path) -> None:
    lake, rules = Lake(tmp_path), UniverseSettings(size=1, refresh_hours=24)
    made = await pick(tmp_path, exchange(BTC=1e5), FixedRanking(coin("BTC", 1e5, 2e12)), size=1, refresh_hours=24)
    assert fresh_universe(lake, rules, NOW + 23 * NS_PER_HOUR) == made
    assert fresh_universe(lake, rules, NOW + 24 * NS_PER_HOUR) is None
    assert fresh_universe(lake, rules.model_copy(update={"size": 2}), NOW) is None


def members(order: Sequence[str]) -> list[UniverseMember]:
    return [UniverseMember(s, s, k) for k, s in enumerate(order, 1)]


@pytest.mark.parametrize(
    ("previous", "chosen"),
    [
        ("", "ABCD"),  # no past: the top four
        ("ABCE", "ABCE"),  # E fell to rank 5, within the band: D waits
        ("ABCF", "ABCD"),  # F fell to rank 6, out of the band
        ("ABEC", "ABCE"),
        ("BCDE", "ABCD"),  # A climbed above size - 1 = 3: the worst member leaves
    ],
)
def test_hysteresis_keeps_members_at_the_edge(previous: str, chosen: str) -> None:
    found = choose(members("ABCDEFG"), frozenset(previous), UniverseSettings(size=4, hysteresis=1))
    assert "".join(m.symbol for m in found) == chosen


@settings(max_examples=200, deadline=None)
@given(st.permutations("ABCDEFGHIJ"), st.sets(st.sampled_from("ABCDEFGHIJ")), st.integers(1, 12), st.integers(0, 5))
def test_a_choice_is_full_stable_and_never_far_from_the_top(order: list[str], previous: set[str], size: int, band: int) -> None:
    rules = UniverseSettings(size=size, hysteresis=band)
    found = choose(members(order), frozenset(previous), rules)
    assert len(found) == min(size, 10)
    assert all(m.rank <= size + band for m in found)
    assert {m.symbol for m in found} >= set(order[: max(size - band, 0)])
    again = choose(members(order), frozenset(m.symbol for m in found), rules)
    assert again == found  # nothing churns while ranks stand still


async def test_the_official_client_reads_a_server_that_speaks_coingecko(tmp_path: Path) -> None:
    row = {
        "id": "bitcoin",
        "symbol": "btc",
        "name": "Bitcoin",
        "image": "",
        "current_price": 93921,
        "market_cap": 1864959154869,
    }
    row |= {"high_24h": 95115, "low_24h": None, "last_updated": "2025-04-27T12:11:45.991Z"}
    asked: list[web.Request] = []

    async def markets(request: web.Request) -> web.Response:
        asked.append(request)
        kind = request.query.get("category", "")
        if kind == "tokenized-gold":
            return web.json_response({"error": "no such category"}, status=404)
        peg = row | {"id": "odd-dollar", "symbol": "odd", "name": "Odd", "current_price": 1.2, "market_cap": 5e9}
        return web.json_response([peg] if kind == "stablecoins" else [] if kind else [row, peg])

    async def broken(_request: web.Request) -> web.Response:
        return web.Response(text="<html>Just a moment...</html>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/api/v3/coins/markets", markets)
    app.router.add_get("/html/coins/markets", broken)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        coins = await CoinGeckoRanking(f"{root}/api/v3", "KEY").page(1)
        await CoinGeckoRanking(f"{root}/api/v3").page(1)
        with pytest.raises(UserError, match="is no list of coins"):
            await CoinGeckoRanking(f"{root}/html").page(1)
        with pytest.raises(UserError, match=r"cannot read market caps from 127\.0\.0\.1"):
            await CoinGeckoRanking(f"{root}/absent").page(1)
    finally:
        await runner.cleanup()
    assert (coins[0].symbol, coins[0].price, coins[0].market_cap) == ("BTC", 93921.0, 1864959154869.0)
    assert math.isnan(coins[0].low_24h)
    assert [c.category for c in coins] == ["", "stablecoin"]
    assert why_excluded(coins[1]) == "stablecoin"
    assert asked[0].query["per_page"] == "250"
    assert asked[0].headers["x-cg-demo-api-key"] == "KEY"
    assert not any(name.lower().startswith("x-cg") for name in asked[-1].headers)
