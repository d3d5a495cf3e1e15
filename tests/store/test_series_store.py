"""The bitemporal store: nothing is served before it was known, and any road to the same facts ends in the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.store.observations import Observations, in_canonical_order, join_as_of, known_at
from crypto_qlib.store.series_store import MARKET, Recorded, Seen, SeriesStore

DAY0 = parse_utc("2024-12-30")
D, H = NS_PER_DAY, NS_PER_HOUR
LATER = DAY0 + 400 * D


def observations(*rows: tuple[int, int, float]) -> Observations:
    event, known, value = zip(*rows, strict=True)
    return Observations(np.array(event, np.int64), np.array(known, np.int64), np.array(value, np.float64))


def daily(values: list[float], seen_ns: int, last_poll_ns: int | None = None, *, is_archive: bool = False) -> Seen:
    """Days from DAY0 on, each usually published at 00:45 of the day it is stamped with."""
    event = DAY0 + D * np.arange(len(values))
    return Seen(event, np.array(values), event + 45 * H // 60, seen_ns, last_poll_ns, is_archive)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}


# what was known when, by hand: event 1 first 10, corrected to 11 at 7; event 2 known at 5; event 0 known late, at 6
HISTORY = observations((0, 6, 5.0), (1, 2, 10.0), (1, 7, 11.0), (2, 5, 20.0))


@pytest.mark.parametrize(
    ("at", "value", "age", "why"),
    [
        (1, np.nan, -1, "nothing is known yet"),
        (2, 10.0, 0, "known at that very instant"),
        (4, 10.0, 2, "carried on"),
        (5, 20.0, 0, "a newer event"),
        (6, 20.0, 1, "an older event that comes late changes nothing at the front"),
        (9, 20.0, 4, "nor does the correction of an older event"),
    ],
)
def test_the_newest_event_known_at_an_instant_is_served(at: int, value: float, age: int, why: str) -> None:
    got = join_as_of(HISTORY, np.array([at]))
    np.testing.assert_array_equal(got.value, [value], why)
    assert got.age_ns.tolist() == [age], why


def test_a_correction_of_the_newest_event_is_served_from_when_it_was_known_and_is_no_fresher() -> None:
    got = join_as_of(HISTORY.take(HISTORY.event_ns < 2), np.array([6, 7, 8]))
    assert got.value.tolist() == [10.0, 11.0, 11.0]
    assert got.age_ns.tolist() == [4, 5, 6]


def test_a_value_older_than_allowed_is_unknown_but_its_age_is_told() -> None:
    got = join_as_of(HISTORY, np.array([8, 9]), max_age_ns=3)
    np.testing.assert_array_equal(got.value, [20.0, np.nan])
    assert got.age_ns.tolist() == [3, 4]


TIMES = st.integers(0, 12)
ROWS = st.lists(st.tuples(TIMES, TIMES, st.sampled_from([1.0, 2.0, 3.0, float("nan")])), max_size=14)


@given(ROWS, st.lists(TIMES, min_size=1, max_size=6), st.one_of(st.none(), st.integers(0, 6)))
def test_the_join_equals_a_search_row_by_row(rows: list[tuple[int, int, float]], instants: list[int], age: int | None) -> None:
    unique = {(e, e + k): v for e, k, v in rows}
    history = in_canonical_order(observations(*((e, k, v) for (e, k), v in unique.items()))) if unique else Observations.empty()
    got = join_as_of(history, np.array(instants, np.int64), age)
    for i, t in enumerate(instants):
        known = [(e, k, v) for (e, k), v in unique.items() if k <= t]
        if not known:
            assert np.isnan(got.value[i])
            continue
        event = max(e for e, _, _ in known)
        first = min(k for e, k, _ in known if e == event)
        newest = max((k, v) for e, k, v in known if e == event)[1]
        wanted = newest if age is None or t - first <= age else float("nan")
        np.testing.assert_array_equal(got.value[i], wanted)
        assert got.age_ns[i] == t - first


@given(ROWS, ROWS, TIMES)
def test_what_becomes_known_later_changes_nothing_that_was_served(
    rows: list[tuple[int, int, float]], later: list[tuple[int, int, float]], at: int
) -> None:
    before = [(e, e + k, v) for e, k, v in rows if e + k <= at]
    after = [(e, max(e, at + 1 + k), v) for e, k, v in later]
    facts = {(e, k): v for e, k, v in before}
    short = in_canonical_order(observations(*((e, k, v) for (e, k), v in facts.items()))) if facts else Observations.empty()
    facts |= {(e, k): v for e, k, v in after}
    long = in_canonical_order(observations(*((e, k, v) for (e, k), v in facts.items()))) if facts else Observations.empty()
    instants = np.arange(at + 1, dtype=np.int64)
    for name in ("value", "age_ns", "event_ns"):
        np.testing.assert_array_equal(getattr(join_as_of(short, instants), name), getattr(join_as_of(long, instants), name))
    for name in ("event_ns", "value"):
        np.testing.assert_array_equal(getattr(known_at(short, at), name), getattr(known_at(long, at), name))


def test_a_correction_lies_beside_the_first_value_and_counts_from_when_it_was_seen(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    assert store.observe("fear_greed", MARKET, daily([40, 50, 60], DAY0 + 3 * D)) == Recorded(3, 0)
    assert store.observe("fear_greed", MARKET, daily([40, 55, 60], DAY0 + 5 * D)) == Recorded(0, 1)
    assert store.observe("fear_greed", MARKET, daily([40, 55, 60], DAY0 + 6 * D)) == Recorded(0, 0)
    assert store.as_known_at("fear_greed", MARKET, DAY0 + 5 * D - 1).value.tolist() == [40, 50, 60]
    assert store.as_known_at("fear_greed", MARKET, DAY0 + 5 * D).value.tolist() == [40, 55, 60]
    assert store.as_known_at("fear_greed", MARKET, DAY0 + 2 * D).value.tolist() == [40, 50]
    assert sorted(contents(tmp_path)) == ["fear_greed/MARKET/2024.parquet", "fear_greed/MARKET/2025.parquet"]


def test_a_value_that_was_due_at_the_last_poll_and_absent_counts_from_when_it_was_seen(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    polls = [DAY0 + 1 * H, DAY0 + D + 2 * H, DAY0 + D + 3 * H]
    store.observe("fear_greed", MARKET, daily([40], polls[0]))
    store.observe("fear_greed", MARKET, daily([40], polls[1], polls[0]))  # the second day's value is late
    store.observe("fear_greed", MARKET, daily([40, 50], polls[2], polls[1]))
    assert store.read("fear_greed").known_ns.tolist() == [DAY0 + 45 * H // 60, polls[2]]


def test_old_files_do_not_undo_a_correction_but_a_source_may_change_its_mind_back(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    for value, day in ((50.0, 3), (55.0, 4)):
        store.observe("fear_greed", MARKET, daily([value], DAY0 + day * D))
    assert store.observe("fear_greed", MARKET, daily([50], DAY0 + 5 * D, is_archive=True)) == Recorded(0, 0)
    assert store.observe("fear_greed", MARKET, daily([50], DAY0 + 6 * D)) == Recorded(0, 1)
    assert store.read("fear_greed").value.tolist() == [50, 55, 50]


@settings(max_examples=25, deadline=None)
@given(
    paths=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=8),
    extra=st.integers(0, 4),
    rng=st.randoms(use_true_random=False),
)
def test_observations_in_any_order_with_repeats_and_kills_end_in_the_same_bytes(
    paths: list[list[int]], extra: int, rng: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # every event runs through different values, the first known within the day, corrections 40 days apart: two year files
    facts = [
        (DAY0 + i * D, DAY0 + i * D + n * H + j * 40 * D, float(100 * i + j))
        for i, path in enumerate(paths)
        for j, n in enumerate(path)
    ]
    one, many = (SeriesStore(tmp_path_factory.mktemp(n)) for n in ("one", "many"))
    one.append("active_addresses", "BTC", observations(*facts), LATER)
    pieces = [*facts, *rng.choices(facts, k=extra)]
    rng.shuffle(pieces)
    while pieces:
        n = rng.randint(1, len(pieces))
        many.append("active_addresses", "BTC", observations(*pieces[:n]), LATER)
        folder = many.root / "active_addresses" / "BTC"
        (folder / f".2024.parquet.{rng.randint(1, 9)}.tmp").write_bytes(b"half a file")  # a killed writer's
        pieces = pieces[n:]
    assert contents(one.root) == {k: v for k, v in contents(many.root).items() if not k.endswith(".tmp")}
    assert many.symbols("active_addresses") == ("BTC",)
    assert many.names() == ("active_addresses",)


def test_series_are_served_on_bars_one_column_a_symbol(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    store.append("active_addresses", "BTC", observations((DAY0, DAY0 + 2 * H, 7.0)), LATER)
    closes = DAY0 + H * np.arange(1, 5)
    got = store.on_bars("active_addresses", ["BTC", "ETH"], closes, max_age_ns=H)
    np.testing.assert_array_equal(got.value, [[np.nan] * 2, [7.0, np.nan], [7.0, np.nan], [np.nan] * 2])
    assert got.age_ns.tolist() == [[-1, -1], [0, -1], [H, -1], [2 * H, -1]]
    assert store.on_bars("active_addresses", [], closes).value.shape == (4, 0)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((DAY0, DAY0 - 1, 1.0), "known before its event"),
        ((DAY0, LATER + 1, 1.0), "after it was seen"),
    ],
)
def test_impossible_times_are_refused(tmp_path: Path, row: tuple[int, int, float], why: str) -> None:
    with pytest.raises(UserError, match=why):
        SeriesStore(tmp_path).append("fear_greed", MARKET, observations(row), LATER)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b"])
def test_names_that_cannot_be_folders_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a series"):
        SeriesStore(tmp_path).read(name)


def test_the_last_poll_is_remembered(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    assert store.last_poll_ns("alternative_me") is None
    store.remember_poll("alternative_me", 5)
    assert store.last_poll_ns("alternative_me") == 5
