"""Who was in the universe as known then: rankings, back-fill, rebuilt history, membership."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.data_collector.asset_selector import rule_of
from crypto_qlib.data_collector.cap_backfill import backfill_rankings
from crypto_qlib.data_collector.cap_rankings import (
    Ranking,
    import_rankings,
    keep_rankings,
    merged_rankings,
    ranking_sources,
    read_rankings,
)
from crypto_qlib.data_collector.contract_archive import archive_instruments
from crypto_qlib.data_collector.market_caps import CapChart, Coin
from crypto_qlib.data_collector.peg_watch import PegWatch
from crypto_qlib.data_collector.universe_history import (
    UniverseMember,
    UniverseSnapshot,
    all_snapshots,
    keep_snapshot,
    load_membership,
    rebuilt_history,
)
from crypto_qlib.data_collector.universe_rebuild import PriceTable, rebuild, rebuild_history
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Lake
from tests.data_collector.fake_exchange import KilledError, instrument

T0 = parse_utc("2024-01-01")
NO_PRICES = PriceTable({})


def coin(symbol: str, cap: float, price: float = 10.0, coin_id: str = "") -> Coin:
    return Coin(coin_id or symbol.lower(), symbol, symbol, price, cap)


def daily(caps: Sequence[dict[str, float]], start_ns: int = T0) -> list[Ranking]:
    """Return one ranking a day; prices move, or the coins would count as pegged."""
    rng = np.random.default_rng(99)
    price = {s: 10.0 for row in caps for s in row}
    made: list[Ranking] = []
    for k, row in enumerate(caps):
        price = {s: p * float(np.exp(rng.normal(0, 0.03))) for s, p in price.items()}
        order = sorted(row.items(), key=lambda pair: -pair[1])
        made.append(Ranking(start_ns + k * NS_PER_DAY, "a", tuple(coin(s, c, price[s]) for s, c in order)))
    return made


def rules(size: int, hysteresis: int = 0, **more: object) -> UniverseSettings:
    return UniverseSettings(size=size, hysteresis=hysteresis, **more)  # type: ignore[arg-type]


def names(snapshots: Sequence[UniverseSnapshot]) -> list[str]:
    return ["".join(m.base for m in s.members) for s in snapshots]


def test_a_coin_that_died_stays_in_the_history_until_its_swap_was_delisted() -> None:
    caps = [{"A": 9.0, "L": 8.0, "B": 7.0}] * 3 + [{"A": 9.0, "B": 7.0, "L": 1.0}] * 2
    dead = instrument("LUSDT", delisted_ns=T0 + 2 * NS_PER_DAY, state=InstrumentState.EXPIRED)
    found = rebuild(daily(caps), [instrument("AUSDT"), instrument("BUSDT"), dead], rules(2), NO_PRICES)
    assert names(found) == ["AL", "AL", "AB", "AB", "AB"]


def test_a_swap_takes_part_only_from_its_listing() -> None:
    caps = [{"A": 9.0, "N": 8.0, "B": 7.0}] * 3
    late = instrument("NUSDT", listed_ns=T0 + 2 * NS_PER_DAY)
    assert names(rebuild(daily(caps), [instrument("AUSDT"), instrument("BUSDT"), late], rules(2), NO_PRICES)) == [
        "AB",
        "AB",
        "AN",
    ]


def test_ranks_that_swing_around_the_edge_do_not_churn() -> None:
    """Ranks 49 to 52 swap places every day for 60 days: without hysteresis the edge changes daily, with it never."""
    bases = [f"C{k:02d}X" for k in range(60)]
    rng = np.random.default_rng(1)
    caps = []
    for _ in range(60):
        order = [*range(48), *(48 + rng.permutation(4)), *range(52, 60)]
        caps.append({bases[k]: 1e9 - 1e6 * place for place, k in enumerate(order)})
    contracts = [instrument(f"{b}USDT") for b in bases]

    def joins(hysteresis: int) -> int:
        found = rebuild(daily(caps), contracts, rules(50, hysteresis), NO_PRICES)
        return sum(len(set(b.symbols) - set(a.symbols)) for a, b in pairwise(found))

    assert joins(0) > 30
    assert joins(3) == 0


def test_a_ticker_used_again_is_told_apart_by_the_price_of_its_time() -> None:
    """LUNA was one coin until May 2022 and another one after; the swap of each time is the coin of its time."""
    ranking = Ranking(T0, "a", (coin("LUNA", 9.0, 80.0, "old"), coin("LUNA", 5.0, 2.0, "new"), coin("B", 4.0)))
    closes = np.array([T0 - NS_PER_HOUR])

    def chosen(price: float) -> UniverseMember:
        table = PriceTable({"LUNAUSDT": (closes, np.array([price * 1.01]), np.array([price * 0.99]))})
        (snapshot,) = rebuild([ranking], [instrument("LUNAUSDT")], rules(1), table)
        return snapshot.members[0]

    assert chosen(81.0).market_cap == 9.0
    assert chosen(2.01).market_cap == 5.0
    wrong = PriceTable({"LUNAUSDT": (closes, np.array([30.0]), np.array([29.0]))})
    assert rebuild([ranking], [instrument("LUNAUSDT")], rules(1), wrong) == []


def test_what_is_known_later_changes_no_earlier_choice() -> None:
    rng = np.random.default_rng(5)
    bases = [f"C{k}X" for k in range(12)]
    caps = [dict(zip(bases, rng.lognormal(0, 1, 12), strict=True)) for _ in range(20)]
    contracts = [instrument(f"{b}USDT") for b in bases]
    whole = rebuild(daily(caps), contracts, rules(5, 2), NO_PRICES)
    assert len(whole) == 20
    for cut in (1, 7, 19):
        assert rebuild(daily(caps[:cut]), contracts, rules(5, 2), NO_PRICES) == whole[:cut]


def seen(prices: dict[str, np.ndarray]) -> tuple[PegWatch, dict[str, Coin]]:
    watch = PegWatch()
    caps = {name: 1e12 / (k + 1) for k, name in enumerate(prices)}
    newest: dict[str, Coin] = {}
    for t in range(40):
        newest = {name: coin(name, caps[name], float(p[t])) for name, p in prices.items()}
        watch.see(T0 + t * NS_PER_DAY, newest.values())
    return watch, newest


def test_pegs_are_seen_in_the_price_alone_whatever_the_coin_is_called() -> None:
    rng = np.random.default_rng(0)

    def walk(sigma: float) -> np.ndarray:
        return np.exp(np.cumsum(rng.normal(0, sigma, 40)))

    btc, eth = 5e4 * walk(0.03), 3e3 * walk(0.04)
    watch, coins = seen(
        {
            "BTC": btc,
            "ETH": eth,
            "FREE": eth * walk(0.03),  # correlated with ETH, but a bet of its own
            "QUIET": 20.0 * walk(0.012),
            "STAKED": 1.1 * eth * np.exp(0.0001 * np.arange(40)) * (1 + rng.normal(0, 0.001, 40)),
            "BRIDGED": btc * (1 + rng.normal(0, 0.001, 40)),
            "DOLLAR": 1.0 + rng.normal(0, 0.002, 40),
            "FRANC": 1.12 * walk(0.002),
        }
    )
    found = {name: watch.pegged_to(made) for name, made in coins.items()}
    assert found == {
        "BTC": "",
        "ETH": "",
        "FREE": "",
        "QUIET": "",
        "STAKED": "ETH",
        "BRIDGED": "BTC",
        "DOLLAR": "one dollar",
        "FRANC": "a fixed price",
    }


def test_a_peg_seen_in_prices_keeps_a_coin_out_and_the_override_list_lets_it_in() -> None:
    rankings = [
        Ranking(T0 + k * NS_PER_DAY, "a", (coin("A", 9.0, 10 + k % 3), coin("ODD", 8.0, 1.0), coin("B", 7.0, 5 + k % 2)))
        for k in range(15)
    ]
    contracts = [instrument(f"{b}USDT") for b in ("A", "ODD", "B")]
    assert names(rebuild(rankings, contracts, rules(2), NO_PRICES))[-1] == "AB"
    assert names(rebuild(rankings, contracts, rules(2, never_pegged=("ODD",)), NO_PRICES))[-1] == "AODD"


def test_a_ranking_once_told_is_never_changed(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert keep_rankings(lake, "CoinGecko", [(T0, [coin("A", 2.0)]), (T0 + 1, [coin("B", 1.0)])]) == 2
    assert keep_rankings(lake, "CoinGecko", [(T0, [coin("A", 99.0)])]) == 0
    assert [(r.known_ns, r.coins[0].market_cap) for r in read_rankings(lake, "CoinGecko")] == [(T0, 2.0), (T0 + 1, 1.0)]


def test_a_better_source_silences_a_worse_one_while_it_speaks(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    keep_rankings(lake, "table", [(T0 + k * NS_PER_DAY, [coin("T", 1.0)]) for k in range(0, 40, 10)])
    keep_rankings(lake, "coingecko", [(T0 + k * NS_PER_DAY, [coin("G", 1.0)]) for k in range(9, 14)])
    served = [(r.source, (r.known_ns - T0) // NS_PER_DAY) for r in merged_rankings(lake, ("coingecko",))]
    assert served == [("table", 0), *(("coingecko", k) for k in range(9, 14)), ("table", 30)]


@pytest.mark.real_data
def test_the_ranking_tables_are_imported_with_the_day_they_were_known(shared: Path, tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    source, n = import_rankings(lake, shared / "data/cmc_top200_monthly.parquet")
    found = read_rankings(lake, source)
    raw = pd.read_parquet(shared / "data/cmc_top200_monthly.parquet")
    assert n == len(found) == raw.ts.nunique()
    assert found[0].known_ns == parse_utc("2020-01-02")
    assert sum(len(r.coins) for r in found) == len(raw)
    assert found[0].coins[0].symbol == "BTC"
    assert import_rankings(lake, shared / "data/market_cap_daily_derived.parquet")[1] > 1400
    assert ranking_sources(lake) == ("cmc_top200_monthly", "market_cap_daily_derived")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (pd.DataFrame({"symbol": ["A"], "ts": ["2024-01-01"]}), "has no column market_cap"),
        (pd.DataFrame({"symbol": ["A"], "ts": ["soon"], "market_cap": [1.0]}), "write ISO dates"),
        (pd.DataFrame({"symbol": ["A"], "ts": ["2024-01-01"], "market_cap": [0.0]}), "no row with a market cap above zero"),
    ],
)
def test_a_bad_table_is_one_clear_line(tmp_path: Path, table: pd.DataFrame, line: str) -> None:
    path = tmp_path / "caps.csv"
    table.to_csv(path, index=False)
    with pytest.raises(UserError) as e:
        import_rankings(Lake(tmp_path), path)
    assert line in f"{e.value.message} {e.value.hint}"
    with pytest.raises(UserError, match="is no parquet, feather or CSV"):
        import_rankings(Lake(tmp_path), tmp_path / "absent.parquet")


class Charts:
    """A source of charts of known content that dies after a number of answers."""

    name = "coingecko"

    def __init__(self, dies_after: int = 10**9) -> None:
        self.asked: list[str] = []
        self._left = dies_after

    async def chart(self, coin_id: str, start_ns: int, end_ns: int) -> CapChart:
        if self._left == 0:
            raise KilledError
        self._left -= 1
        self.asked.append(coin_id)
        if coin_id == "broken":
            raise UserError("HTTP 404")
        first = -(-start_ns // NS_PER_DAY) * NS_PER_DAY
        ts = np.arange(first, end_ns, NS_PER_HOUR)
        return CapChart(ts, np.full(ts.size, 2.0), 1e9 + (ts - T0) / NS_PER_DAY * len(coin_id))

    async def ids(self) -> dict[str, list[str]]:
        return {"DEAD": ["dead-coin"], "OTHER": ["other"]}


async def test_the_past_is_filled_day_by_day_and_a_killed_back_fill_goes_on(tmp_path: Path) -> None:
    now = T0 + 30 * NS_PER_DAY + 5 * NS_PER_HOUR
    contracts = [instrument("AUSDT"), instrument("BBBUSDT"), instrument("DEADUSDT", delisted_ns=T0 + NS_PER_DAY)]
    contracts.append(instrument("BROKENUSDT"))
    newest = [coin("A", 5.0), coin("BBB", 4.0), coin("BROKEN", 3.0), coin("NOSWAP", 2.0), coin("USDT", 9.0, 1.0)]

    def lake_of(name: str) -> Lake:
        lake = Lake(tmp_path / name)
        keep_rankings(lake, "coingecko", [(now, newest)])
        return lake

    killed, whole = lake_of("killed"), lake_of("whole")
    first, second = Charts(dies_after=2), Charts()
    with pytest.raises(KilledError):
        await backfill_rankings(first, killed, contracts, rules(5), T0)
    await backfill_rankings(second, killed, contracts, rules(5), T0)
    done = await backfill_rankings(Charts(), whole, contracts, rules(5), T0)
    assert sorted({*first.asked, *second.asked}) == ["a", "bbb", "broken", "dead-coin"]  # no stablecoin, nothing without a swap
    assert len([a for a in first.asked if a in second.asked]) <= 1  # what was stored is not asked again
    assert done.missing == ("BROKEN (broken): HTTP 404",)
    assert read_rankings(killed, "coingecko") == read_rankings(whole, "coingecko")
    days = [r.known_ns for r in read_rankings(whole, "coingecko")]
    assert days[0] <= T0 + NS_PER_HOUR
    assert {t % NS_PER_DAY for t in days[:-1]} == {NS_PER_HOUR}
    assert (await backfill_rankings(Charts(dies_after=0), whole, contracts, rules(5), T0)).rankings == 0


def test_what_was_chosen_at_the_time_beats_what_is_rebuilt_and_rules_do_not_mix(tmp_path: Path) -> None:
    lake, rule = Lake(tmp_path), rules(2)
    archive_instruments(lake, [instrument(f"{b}USDT") for b in "ABC"], T0)
    keep_rankings(
        lake, "coingecko", [(T0 + k * NS_PER_DAY, [coin("A", 3.0), coin("B", 2.0), coin("C", 1.0)]) for k in range(5)]
    )
    rebuild_history(lake, rule, "1h")
    taken = UniverseSnapshot(T0 + 3 * NS_PER_DAY, (UniverseMember("CUSDT", "C", 1, 1.0),), "live", rule_of(rule))
    keep_snapshot(lake, taken)
    assert len(rebuilt_history(lake)) == 5
    assert names(all_snapshots(lake, rule_of(rule))) == ["AB", "AB", "AB", "C"]
    members = load_membership(lake, rule_of(rule))
    at = members.at(("AUSDT", "CUSDT"), np.array([T0 - 1, T0, T0 + 3 * NS_PER_DAY]))
    assert at.tolist() == [[False, False], [True, False], [False, True]]
    assert load_membership(lake, rule_of(rules(3))).symbols == ()
