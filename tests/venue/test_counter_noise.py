"""Noise by counter: the published generator, exact symmetry, unit variance."""

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.venue.counter_noise import (
    exponential_table,
    mix,
    normal_table,
    stream_key,
    student4_table,
    table_draw,
    uniform,
)

SPLITMIX64_OF_1234567 = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)
"""First outputs of SplitMix64 seeded with 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64")."""


def test_the_nth_draw_is_splitmix64s_nth_output() -> None:
    assert [int(mix(np.uint64(1234567), n)) for n in range(1, 6)] == list(SPLITMIX64_OF_1234567)


def test_streams_of_different_seeds_kinds_and_members_differ() -> None:
    keys = {int(stream_key(seed, stream, member)) for seed in range(8) for stream in range(8) for member in range(60)}
    assert len(keys) == 8 * 8 * 60


@pytest.mark.parametrize("table", [normal_table(), student4_table()], ids=["normal", "student4"])
def test_symmetric_tables_have_mean_zero_and_variance_one(table: np.ndarray) -> None:
    np.testing.assert_array_equal(table, -table[::-1])
    draws = np.array([table_draw(np.uint64(mix(np.uint64(3), n)), table) for n in range(100_000)])
    assert abs(draws.mean()) < 4.0 / np.sqrt(draws.size)
    assert draws.var() == pytest.approx(1.0, rel=0.05)


def test_tails_are_those_of_the_distribution() -> None:
    two_sided = {"normal": (normal_table(), 0.0455, 0.003), "student4": (student4_table(), 0.0474, 0.003)}
    for name, (table, share, slack) in two_sided.items():
        beyond = np.mean(np.abs(table) > 2.0)
        # P(|Z| > 2) = 4.55 %; P(|T4| / sqrt(2) > 2) = P(|T4| > 2.828) = 4.74 %
        assert beyond == pytest.approx(share, abs=slack), name
    assert np.abs(student4_table()).max() > 1.5 * np.abs(normal_table()).max()


def test_the_exponential_has_mean_one_and_uniforms_fill_the_unit_interval() -> None:
    assert exponential_table().mean() == pytest.approx(1.0, abs=1e-12)
    u = np.array([uniform(np.uint64(mix(np.uint64(9), n))) for n in range(20_000)])
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert np.abs(np.histogram(u, 20, (0, 1))[0] - 1000).max() < 150
