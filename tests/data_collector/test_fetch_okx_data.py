from __future__ import annotations

import asyncio
import contextlib
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.lake_identity import data_identity
from tests.data_collector.fake_exchange import T0, FakeExchange, KilledError, instrument, part, walk, with_values

N = 2000
NOW = T0 + N * NS_PER_HOUR
SETTINGS = DataSettings(since="2025-01-01", concurrency=3, statistics=False)


def exchange(now_ns: int = NOW, **changes: object) -> FakeExchange:
    holes = np.ones(N, dtype=bool)
    holes[[50, 51, 700, N - 5]] = False  # outages, one of them young
    last = {"BTCUSDT": walk(1, N), "ETHUSDT": part(walk(2, N), holes), "NEWUSDT": part(walk(3, N), np.arange(N) >= 900)}
    mark = {s: with_values(b, close=b.close * 1.0001) for s, b in last.items() if s != "NEWUSDT"}
    ts = T0 + 8 * NS_PER_HOUR * np.arange(N // 8)
    settled = {s: FundingBlock(ts[ts >= b.ts_open[0]], np.full((ts >= b.ts_open[0]).sum(), 1e-4)) for s, b in last.items()}
    return FakeExchange(last, now_ns, mark, settled, **changes)  # type: ignore[arg-type]


def files(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): sha256(p.read_bytes()).hexdigest()[:12] for p in sorted(root.rglob("*.parquet"))}


async def test_everything_the_exchange_has_is_stored_exactly(tmp_path: Path) -> None:
    fake, lake = exchange(), Lake(tmp_path)
    report = await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    for symbol, block in fake.last.items():
        stored = lake.read_bars(Kind.CANDLES, "1h", symbol)
        for name in BarBlock.__slots__:
            np.testing.assert_array_equal(getattr(stored, name), getattr(block, name))
        np.testing.assert_array_equal(lake.read_funding(symbol).ts, fake.settlements[symbol].ts)
    assert report.excluded == {}
    assert report.symbols == tuple(fake.last)


async def test_a_second_run_at_the_same_moment_asks_for_nothing_but_young_holes_and_changes_no_byte(tmp_path: Path) -> None:
    fake, lake = exchange(), Lake(tmp_path)
    await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    before, identity = files(tmp_path), data_identity(lake)
    fake.calls.clear()
    report = await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    hole = T0 + (N - 5) * NS_PER_HOUR
    asked = {(v, s): (a, b) for v, s, a, b in fake.calls if v.startswith("candles")}
    assert asked.pop(("candles-last", "ETHUSDT")) == (hole, hole + NS_PER_HOUR)
    assert asked.pop(("candles-mark", "ETHUSDT")) == (hole, hole + NS_PER_HOUR)
    # a symbol without any mark is asked again for the last two days only
    assert asked.pop(("candles-mark", "NEWUSDT")) == (NOW - 2 * NS_PER_DAY, NOW)
    assert asked == {}
    assert report.added == report.corrected == 0
    assert files(tmp_path) == before
    assert data_identity(lake) == identity


async def test_new_bars_cost_one_small_request_a_series(tmp_path: Path) -> None:
    fake, lake = exchange(NOW - 4 * NS_PER_HOUR), Lake(tmp_path)
    await update_data(fake, lake, ["BTCUSDT"], SETTINGS, fake.now_ns)  # type: ignore[arg-type]
    fake.calls.clear()
    fake.now_ns = NOW
    report = await update_data(fake, lake, ["BTCUSDT"], SETTINGS, NOW)  # type: ignore[arg-type]
    spans = [(b - a) // NS_PER_HOUR for v, _, a, b in fake.calls if v.startswith("candles")]
    assert spans == [7, 7]  # four new bars and three that are checked again
    assert report.added == 4 + 4  # candles, marks; the next settlement is not due yet


async def test_a_late_correction_of_the_last_bars_is_taken_over(tmp_path: Path) -> None:
    fake, lake = exchange(NOW - NS_PER_HOUR), Lake(tmp_path)
    await update_data(fake, lake, ["BTCUSDT"], SETTINGS, fake.now_ns)  # type: ignore[arg-type]
    close = fake.last["BTCUSDT"].close.copy()
    close[N - 3] *= 1.01
    fake.last["BTCUSDT"] = with_values(fake.last["BTCUSDT"], close=close)
    fake.now_ns = NOW
    report = await update_data(fake, lake, ["BTCUSDT"], SETTINGS, NOW)  # type: ignore[arg-type]
    assert report.corrected == 1
    np.testing.assert_array_equal(lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT").close, close)


async def test_an_unfinished_bar_is_never_stored(tmp_path: Path) -> None:
    fake, lake = exchange(NOW - 1, shows_unfinished=True), Lake(tmp_path)
    await update_data(fake, lake, ["BTCUSDT"], SETTINGS, fake.now_ns)  # type: ignore[arg-type]
    assert int(lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT").ts_open[-1]) == NOW - 2 * NS_PER_HOUR


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the bytes of a lake filled in one go."""
    root = tmp_path_factory.mktemp("complete")
    fake = exchange()
    asyncio.run(update_data(fake, Lake(root), list(fake.last), SETTINGS, NOW))  # type: ignore[arg-type]
    return files(root)


_ONE_RUN = st.tuples(st.integers(1, 45), st.permutations(["BTCUSDT", "ETHUSDT", "NEWUSDT"]), st.integers(1, 8))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(_ONE_RUN, max_size=5), stutter=st.sampled_from([0, 2, 5]))
async def test_any_row_of_kills_and_orders_ends_in_the_same_bytes(
    runs: list[tuple[int, list[str], int]], stutter: int, complete: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("killed")
    for kill_at, symbols, concurrency in runs:
        fake = exchange(kill_at=kill_at, stutter_every=stutter)
        wanted = SETTINGS.model_copy(update={"concurrency": concurrency})
        with contextlib.suppress(KilledError, RetryLater):
            await update_data(fake, Lake(root), symbols, wanted, NOW)  # type: ignore[arg-type]
    fake = exchange()
    await update_data(fake, Lake(root), list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    assert files(root) == complete


async def test_a_lake_grown_bar_by_bar_equals_one_filled_at_once(tmp_path: Path, complete: dict[str, str]) -> None:
    fake = exchange()
    for hours in (1, 2, 3, 30, 31, 800, 1500, 1999, 2000):
        fake.now_ns = T0 + hours * NS_PER_HOUR
        wanted = SETTINGS.model_copy(update={"concurrency": hours % 4 + 1})
        symbols = [s for s, b in fake.last.items() if b.ts_open[0] < fake.now_ns]
        await update_data(fake, Lake(tmp_path), symbols, wanted, fake.now_ns)  # type: ignore[arg-type]
    grown = files(tmp_path)
    kinds = ("candles/", "mark/", "funding/")
    assert {k: v for k, v in grown.items() if k.startswith(kinds)} == {k: v for k, v in complete.items() if k.startswith(kinds)}


async def test_a_busy_exchange_is_asked_again_and_a_dead_one_given_up(tmp_path: Path) -> None:
    fake = exchange(dies_after=1)
    with pytest.raises(RetryLater, match="busy"):
        await update_data(fake, Lake(tmp_path), ["BTCUSDT"], SETTINGS, NOW)  # type: ignore[arg-type]
    assert [v for v, *_ in fake.calls] == ["instruments", *["candles-last"] * 3]


async def test_symbols_without_data_are_set_aside_with_a_reason(tmp_path: Path) -> None:
    fake = exchange(refused=frozenset({"ETHUSDT"}))
    fake.last["OLDUSDT"] = BarBlock.empty()
    fake.listing = [instrument(s) for s in ("BTCUSDT", "ETHUSDT", "OLDUSDT")]
    symbols = ["BTCUSDT", "ETHUSDT", "OLDUSDT", "NOPEUSDT"]
    report = await update_data(fake, Lake(tmp_path), symbols, SETTINGS, NOW)  # type: ignore[arg-type]
    assert report.symbols == ("BTCUSDT",)
    assert report.excluded == {
        "ETHUSDT": "ETHUSDT is suspended",
        "OLDUSDT": "the exchange has no candles between 2025-01-01T00:00:00Z and 2025-03-25T08:00:00Z",
        "NOPEUSDT": "the exchange lists no USDT swap of that name",
    }


async def test_a_required_symbol_without_data_stops_the_run_with_one_line(tmp_path: Path) -> None:
    fake = exchange()
    with pytest.raises(UserError, match="no data for NOPEUSDT: the exchange lists no USDT swap of that name"):
        await update_data(
            fake,
            Lake(tmp_path),
            ["BTCUSDT", "NOPEUSDT"],
            SETTINGS,
            NOW,
            required=frozenset({"NOPEUSDT"}),  # type: ignore[arg-type]
        )


async def test_no_data_at_all_is_an_error_even_if_nothing_was_required(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data for AUSDT.*1 more symbols"):
        await update_data(exchange(), Lake(tmp_path), ["AUSDT", "BUSDT"], SETTINGS, NOW)  # type: ignore[arg-type]


async def test_a_start_in_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves no finished bar"):
        await update_data(exchange(), Lake(tmp_path), ["BTCUSDT"], DataSettings(since="2999-01-01", statistics=False), NOW)  # type: ignore[arg-type]


async def test_progress_adds_up_to_the_number_of_symbols(tmp_path: Path) -> None:
    fake = exchange()
    done: list[float] = []
    await update_data(fake, Lake(tmp_path), [*fake.last, "NOPEUSDT"], SETTINGS, NOW, done.append)  # type: ignore[arg-type]
    assert sum(done) == pytest.approx(4)


async def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with lake.writing(), pytest.raises(UserError, match="another process is writing"):
        await update_data(exchange(), lake, ["BTCUSDT"], SETTINGS, NOW)  # type: ignore[arg-type]


async def test_a_repaired_lake_fetches_what_was_deleted(tmp_path: Path, complete: dict[str, str]) -> None:
    fake, lake = exchange(), Lake(tmp_path)
    await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    for name in ("candles/1h/BTCUSDT/2025-02.parquet", "funding/event/ETHUSDT/2025-01.parquet"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"2025-02\.parquet is damaged.*crypto-qlib data repair"):
        await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    assert len(lake.delete_damaged()) == 2
    await update_data(fake, lake, list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    assert files(tmp_path) == complete


_CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data_collector.test_fetch_okx_data import NOW, SETTINGS, exchange
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.store.lake import Lake
fake = exchange()
print("ready", flush=True)
asyncio.run(update_data(fake, Lake(Path(sys.argv[2])), list(fake.last), SETTINGS, NOW))
"""


@pytest.mark.slow
async def test_a_process_killed_without_warning_leaves_a_readable_lake_and_the_next_run_completes_it(
    tmp_path: Path, complete: dict[str, str]
) -> None:
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, str(Path(__file__).parents[2]), str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        await asyncio.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        assert Lake(tmp_path).damaged() == []
    fake = exchange()
    await update_data(fake, Lake(tmp_path), list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    assert files(tmp_path) == complete
    assert not list(tmp_path.rglob("*.tmp"))  # noqa: ASYNC240 - nothing else runs


class LateExchange(FakeExchange):
    """An exchange whose last two bars are wrong at first, as long as ``is_late``."""

    is_late = True

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        block = await super().candles(symbol, frame, start_ns, end_ns, kind)
        is_fresh = (block.ts_open >= self.now_ns - 2 * NS_PER_HOUR) & self.is_late
        return with_values(block, close=np.where(is_fresh, block.close * 1.01, block.close))


_HOURS = st.sampled_from([1, 2, 3, 24, 49, 600])
_PIECE = st.tuples(_HOURS, st.integers(1, 60), st.permutations(["BTCUSDT", "ETHUSDT", "NEWUSDT"]), st.integers(1, 8))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(_PIECE, max_size=6), stutter=st.sampled_from([0, 3]))
async def test_any_interleaving_of_fetches_kills_overlaps_and_late_corrections_ends_in_the_same_bytes(
    pieces: list[tuple[int, int, list[str], int]],
    stutter: int,
    complete: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root, now = tmp_path_factory.mktemp("late"), T0 + 300 * NS_PER_HOUR
    model = exchange()
    for hours, kill_at, symbols, concurrency in pieces:
        now = min(now + hours * NS_PER_HOUR, NOW - NS_PER_HOUR)
        fake = LateExchange(model.last, now, model.mark, model.settlements, kill_at=kill_at, stutter_every=stutter)
        wanted = SETTINGS.model_copy(update={"concurrency": concurrency})
        with contextlib.suppress(KilledError, RetryLater, UserError):  # UserError: a symbol alone that is not listed yet
            await update_data(fake, Lake(root), symbols, wanted, now)  # type: ignore[arg-type]
    fake = LateExchange(model.last, NOW, model.mark, model.settlements)
    fake.is_late = False
    await update_data(fake, Lake(root), list(fake.last), SETTINGS, NOW)  # type: ignore[arg-type]
    kinds = ("candles/", "mark/", "funding/")
    ended = {k: v for k, v in files(root).items() if k.startswith(kinds)}
    assert ended == {k: v for k, v in complete.items() if k.startswith(kinds)}
