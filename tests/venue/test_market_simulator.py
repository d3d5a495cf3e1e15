"""The simulated market: consistent over frames, reproducible, near real in its statistics, silent or speaking on demand."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.venue import market_simulator
from crypto_qlib.venue.market_catalogue import build_catalogue
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec
from crypto_qlib.venue.market_source import MarketSource

START = parse_utc("2025-03-01")
FIELDS = ("ts_open", "open", "high", "low", "close", "volume", "quote_volume")


@cache
def market(days: int = 30, n: int = 20, seed: int = 5, strength: float = 0.0) -> SimulatedMarket:
    return SimulatedMarket(SimulationSpec(n, START, START + days * NS_PER_DAY, seed, strength))


def hours(source: MarketSource, symbol: str) -> BarBlock:
    return source.bars(symbol, NS_PER_HOUR, source.start_ns, source.end_ns)


def whole_life(source: SimulatedMarket) -> tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (symbols, closes, volumes) of the coins that live throughout, arrays ``(n_hours, n_symbols)``."""
    symbols = [i.symbol for i in source.instruments() if i.listed_ns == source.start_ns and i.delisted_ns is None]
    blocks = [hours(source, s) for s in symbols]
    return symbols, np.column_stack([b.close for b in blocks]), np.column_stack([b.volume for b in blocks])


# One market in all frames ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    symbol=st.sampled_from(["BTCUSDT", "ETHUSDT", "DOGEUSDT", "SHIBUSDT"]),
    frame=st.sampled_from(["3m", "5m", "15m", "30m", "1h", "2h", "4h", "1d"]),
    first=st.integers(0, 25 * 1440),
    length=st.integers(1, 2 * 1440),
    kind=st.sampled_from(["bars", "mark_bars", "index_bars"]),
)
def test_a_coarse_bar_is_the_aggregate_of_its_minutes(symbol: str, frame: str, first: int, length: int, kind: str) -> None:
    source, frame_ns = market(), FRAME_NS[frame]
    begin = START + first * NS_PER_MINUTE
    coarse = getattr(source, kind)(symbol, frame_ns, begin, begin + length * NS_PER_MINUTE)
    assert np.all(coarse.ts_open % frame_ns == 0)
    for k, ts in enumerate(coarse.ts_open):
        fine = getattr(source, kind)(symbol, NS_PER_MINUTE, int(ts), int(ts) + frame_ns)
        assert len(fine) == frame_ns // NS_PER_MINUTE
        assert (coarse.open[k], coarse.close[k]) == (fine.open[0], fine.close[-1])
        assert (coarse.high[k], coarse.low[k]) == (fine.high.max(), fine.low.min())
        if kind == "bars":
            lot = next(i.base_per_lot for i in source.instruments() if i.symbol == symbol)
            assert round(coarse.volume[k] / lot) == np.rint(fine.volume / lot).sum(), "lots add up exactly"
            assert coarse.quote_volume[k] == np.sort(fine.quote_volume).sum(), "1/64 USDT add up exactly in any order"


def test_bars_are_complete_and_cover_exactly_what_was_asked_for() -> None:
    source = market()
    asked = source.bars("BTCUSDT", NS_PER_HOUR, START + 1, START + 5 * NS_PER_HOUR)
    np.testing.assert_array_equal(asked.ts_open, START + np.arange(1, 5) * NS_PER_HOUR)
    last_day = source.bars("BTCUSDT", FRAME_NS["1d"], source.end_ns - 10, source.end_ns + NS_PER_DAY)
    assert len(last_day) == 0, "no day opens there and closes before the end"
    assert len(source.bars("BTCUSDT", FRAME_NS["1d"], source.start_ns, source.end_ns + NS_PER_DAY)) == 30
    with pytest.raises(ValueError, match="multiple of one minute"):
        source.bars("BTCUSDT", 61 * 10**9, START, START + NS_PER_DAY)


def test_every_bar_is_possible_and_each_opens_where_the_last_closed() -> None:
    source = market(days=60, n=60)
    for instrument in source.instruments():
        for read in (source.bars, source.mark_bars, source.index_bars):
            bars = read(instrument.symbol, NS_PER_HOUR, source.start_ns, source.end_ns)
            assert np.all(bars.low > 0)
            assert np.all(bars.low <= np.minimum(bars.open, bars.close))
            assert np.all(bars.high >= np.maximum(bars.open, bars.close))
            np.testing.assert_array_equal(bars.open[1:], bars.close[:-1])
        last = hours(source, instrument.symbol)
        assert np.all(last.volume > 0)
        assert np.all((last.quote_volume / last.volume > 0.9 * last.low) & (last.quote_volume / last.volume < 1.1 * last.high))


def test_a_price_survives_the_trip_through_its_decimal_string() -> None:
    source = market()
    for instrument in source.instruments():
        closes = source.bars(instrument.symbol, NS_PER_MINUTE, START, START + NS_PER_HOUR).close
        assert [float(instrument.format_price(p)) for p in closes] == closes.tolist()


# The same market again ------------------------------------------------------------------------------------------------


def test_equal_specs_give_equal_bytes_and_other_seeds_other_markets() -> None:
    first = hours(SimulatedMarket(SimulationSpec(4, START, START + NS_PER_DAY, 5)), "ETHUSDT")
    market_simulator._paths.cache_clear()
    again = hours(SimulatedMarket(SimulationSpec(4, START, START + NS_PER_DAY, 5)), "ETHUSDT")
    other = hours(SimulatedMarket(SimulationSpec(4, START, START + NS_PER_DAY, 6)), "ETHUSDT")
    assert all(getattr(first, f).tobytes() == getattr(again, f).tobytes() for f in FIELDS)
    assert not np.array_equal(first.close, other.close)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_longer_market_begins_with_exactly_the_shorter_one(strength: float) -> None:
    short, long = market(30, 60, 5, strength), market(60, 60, 5, strength)
    end = short.end_ns
    assert len(long.instruments()) >= len(short.instruments())
    for instrument in short.instruments():
        s = instrument.symbol
        for frame, begin in ((NS_PER_HOUR, START), (NS_PER_MINUTE, end - 3 * NS_PER_HOUR)):
            for kind in ("bars", "mark_bars", "index_bars"):
                a, b = (getattr(m, kind)(s, frame, begin, end) for m in (short, long))
                assert all(getattr(a, f).tobytes() == getattr(b, f).tobytes() for f in FIELDS), (s, kind)
        a_funding, b_funding = short.funding(s, START, end), long.funding(s, START, end)
        assert a_funding.rate.tobytes() == b_funding.rate.tobytes()
        np.testing.assert_array_equal(a_funding.ts, b_funding.ts)
        np.testing.assert_equal(short.open_interest(s, end - 1), long.open_interest(s, end - 1))
        a_crowd, b_crowd = (m.long_short_ratios(s, NS_PER_HOUR, START, end) for m in (short, long))
        assert a_crowd.ratio.tobytes() == b_crowd.ratio.tobytes()
        np.testing.assert_array_equal(a_crowd.ts, b_crowd.ts)
    assert short.market_caps(end - 1) == long.market_caps(end - 1)


def test_what_a_coin_is_does_not_depend_on_how_many_there_are() -> None:
    assert build_catalogue(7, 5, START) == build_catalogue(60, 5, START)[:7]
    many = build_catalogue(500, 5, START)
    assert len({coin.base for coin in many}) == 500


# Near real ------------------------------------------------------------------------------------------------------------


def test_returns_have_fat_tails_clusters_and_one_common_factor() -> None:
    symbols, closes, volumes = whole_life(market(days=240, n=50, seed=20260101))
    r = np.diff(np.log(closes), axis=0)
    z = (r - r.mean(axis=0)) / r.std(axis=0)
    assert np.median((z**4).mean(axis=0)) - 3.0 > 3.0, "a normal distribution has 0; real hours about 14"
    size = np.abs(r)
    lag = {k: np.median([np.corrcoef(x[:-k], x[k:])[0, 1] for x in size.T]) for k in (1, 24)}
    assert 0.1 < lag[1] < 0.4
    assert 0.04 < lag[24] < 0.25
    pairwise = np.corrcoef(r.T)[np.triu_indices(len(symbols), 1)].mean()
    assert 0.45 < pairwise < 0.8
    btc = r[:, symbols.index("BTCUSDT")]
    beta = np.median(r.T @ btc / (btc @ btc))
    assert 1.1 < beta < 1.7
    assert 0.03 < np.median(r.std(axis=0)) * np.sqrt(24) < 0.08
    follows = np.median([np.corrcoef(np.log(volumes[1:, k]), np.log(size[:, k] + 1e-5))[0, 1] for k in range(len(symbols))])
    assert follows > 0.25, "volume follows volatility"
    autocorrelation = np.median([np.corrcoef(x[:-1], x[1:])[0, 1] for x in r.T])
    assert abs(autocorrelation) < 0.03


def test_the_mark_stays_near_the_last_price_and_the_premium_shows_in_funding() -> None:
    source = market(days=60, n=60)
    gaps, premiums, rates = [], [], []
    for instrument in source.instruments():
        last, mark = hours(source, instrument.symbol), source.mark_bars(instrument.symbol, NS_PER_HOUR, START, source.end_ns)
        gaps.append(np.abs(mark.close / last.close - 1.0).max())
        index = source.index_bars(instrument.symbol, NS_PER_HOUR, START, source.end_ns)
        funding = source.funding(instrument.symbol, START, source.end_ns)
        at = np.searchsorted(last.ts_open, funding.ts)
        premiums += list((last.close / index.close - 1.0)[at - 1])
        rates += list(funding.rate)
        assert np.all(np.isnan(mark.volume))
    assert max(gaps) < 0.01
    extreme = np.abs(rates) > 3e-4
    assert extreme.sum() > 10
    assert np.corrcoef(np.array(premiums)[extreme], np.array(rates)[extreme])[0, 1] > 0.5


def test_the_funding_interval_halves_at_the_cap_and_comes_back() -> None:
    source = market(days=365, n=60, seed=20260101)
    coins = {f"{coin.base}USDT": coin for coin in build_catalogue(60, 20260101, START)}
    stepped, returned, defaults = 0, 0, set()
    for instrument in source.instruments():
        coin = coins[instrument.symbol]
        funding = source.funding(instrument.symbol, START, source.end_ns)
        assert np.all(np.abs(funding.rate) <= coin.funding_cap)
        assert np.all(funding.ts % NS_PER_HOUR == 0)
        gaps = np.diff(funding.ts) // NS_PER_HOUR
        defaults.add(int(np.median(gaps)))
        assert set(gaps.tolist()) <= {1, 2, 3, 4, 5, 6, 7, 8}
        capped = np.abs(funding.rate[1:-1]) >= coin.funding_cap
        stepped += int((gaps[1:][capped] < coin.funding_interval_h).sum())
        assert np.all(gaps[1:][capped] < coin.funding_interval_h), "one step down after every settlement at the cap"
        returned += int(gaps[-1] == coin.funding_interval_h and gaps.min() < coin.funding_interval_h)
    assert defaults == {4, 8}
    assert stepped > 10
    assert returned > 3


def test_the_crowd_fades_the_last_day_lingers_and_knows_nothing_of_the_next() -> None:
    source = market(days=240, n=50, seed=20260101)
    faded, lag, ahead, levels = [], [], [], []
    for instrument in source.instruments():
        bars, crowd = (
            hours(source, instrument.symbol),
            source.long_short_ratios(instrument.symbol, NS_PER_HOUR, START, source.end_ns),
        )
        np.testing.assert_array_equal(crowd.ts, bars.ts_open, "one value an hour, from the listing on")
        assert np.all((crowd.ratio > 0.2) & (crowd.ratio < 12.0))
        log_ratio, close = np.log(crowd.ratio), np.log(bars.close)
        day = close[24:-1] - close[:-25]  # the 24 hours that closed when the hour of log_ratio[25:] opens
        faded.append(np.corrcoef(day, log_ratio[25:])[0, 1])
        lag.append(np.corrcoef(log_ratio[:-24], log_ratio[24:])[0, 1])
        ahead.append(np.corrcoef(log_ratio[1:-24], close[24:-1] - close[:-25])[0, 1])
        levels.append(np.median(crowd.ratio))
    assert -0.8 < np.median(faded) < -0.3
    assert np.median(lag) > 0.5
    assert abs(np.median(ahead)) < 0.1, "at signal strength 0 it cannot lead"
    assert 1.0 < np.median(levels) < 2.5, "most private accounts are long"
    finer = source.long_short_ratios("BTCUSDT", 5 * NS_PER_MINUTE, START + 90 * NS_PER_MINUTE, START + 3 * NS_PER_HOUR)
    whole = source.long_short_ratios("BTCUSDT", NS_PER_HOUR, START, START + 3 * NS_PER_HOUR).ratio
    assert finer.ratio.tolist() == [whole[1]] * 6 + [whole[2]] * 12, "as at the last full hour"


def test_coins_are_listed_and_delisted_on_the_way() -> None:
    source = market(days=365, n=60, seed=20260101)
    late = [i for i in source.instruments() if i.listed_ns > START]
    gone = [i for i in source.instruments() if i.delisted_ns is not None]
    assert len(late) >= 2
    assert len(gone) >= 1
    for instrument in (*late, *gone):
        end = source.end_ns if instrument.delisted_ns is None else instrument.delisted_ns
        bars = hours(source, instrument.symbol)
        assert (bars.ts_open[0], bars.ts_open[-1]) == (instrument.listed_ns, end - NS_PER_HOUR)
        assert np.isnan(source.open_interest(instrument.symbol, instrument.listed_ns - 1))
        assert source.open_interest(instrument.symbol, instrument.listed_ns) > 0
        crowd = source.long_short_ratios(instrument.symbol, NS_PER_HOUR, 0, 2 * source.end_ns)
        assert (crowd.ts[0], crowd.ts[-1]) == (instrument.listed_ns, end - NS_PER_HOUR)
        assert instrument.base not in source.market_caps(instrument.listed_ns - 1)
        funding = source.funding(instrument.symbol, 0, source.end_ns * 2)
        assert funding.ts[0] > instrument.listed_ns
        assert funding.ts[-1] <= end
    assert all(sum(i.is_listed(ts) for i in source.instruments()) >= 50 for ts in range(START, source.end_ns, 5 * NS_PER_DAY))


def test_market_caps_come_from_closed_bars_and_change_rank() -> None:
    source = market(days=365, n=60, seed=20260101)
    coins = {coin.base: coin for coin in build_catalogue(60, 20260101, START)}
    early, late = source.market_caps(START + 2 * NS_PER_DAY), source.market_caps(source.end_ns - 1)
    ranks = [sorted(set(early) & set(late), key=caps.__getitem__, reverse=True) for caps in (early, late)]
    assert ranks[0][0] == "BTC"
    assert sum(a != b for a, b in zip(*ranks, strict=True)) > 20
    ts = START + 10 * NS_PER_DAY + 17 * NS_PER_MINUTE
    closed = source.bars("BTCUSDT", NS_PER_HOUR, START, START + 10 * NS_PER_DAY).close[-1]
    assert source.market_caps(ts)["BTC"] == pytest.approx(closed * coins["BTC"].supply)
    assert source.market_caps(START) == {}, "no bar has closed yet"


# Noise and signal -----------------------------------------------------------------------------------------------------


def rank_ics(source: SimulatedMarket) -> dict[str, npt.NDArray[np.float64]]:
    """Return daily rank correlations of simple predictors at midnight with the return from 01:00 on for 24 h."""
    symbols, closes, volumes = whole_life(source)
    funding = np.zeros_like(closes)
    for k, symbol in enumerate(symbols):
        block = source.funding(symbol, source.start_ns, source.end_ns)
        funding[(block.ts - source.start_ns) // NS_PER_HOUR, k] = block.rate
    logs, activity = np.log(closes), np.log(volumes)
    rows: dict[str, list[float]] = {}
    for t in range(240, len(logs) - 26, 24):
        predictors = {f"return {k} h": logs[t] - logs[t - k] for k in (1, 4, 24, 48, 168)}
        predictors["volatility"] = np.diff(logs[t - 48 : t + 1], axis=0).std(axis=0)
        predictors["volume"] = activity[t - 23 : t + 1].mean(axis=0) - activity[t - 240 : t + 1].mean(axis=0)
        predictors["funding"] = funding[t - 24 : t + 1].sum(axis=0)
        forward = _ranks(logs[t + 25] - logs[t + 1])
        for name, values in predictors.items():
            rows.setdefault(name, []).append(float(np.corrcoef(_ranks(values), forward)[0, 1]))
    return {name: np.array(ics) for name, ics in rows.items()}


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def t_value(sample: npt.NDArray[np.float64]) -> float:
    return float(sample.mean() / (sample.std(ddof=1) / np.sqrt(sample.size)))


def test_pure_noise_is_predicted_by_nothing() -> None:
    pooled: dict[str, list[npt.NDArray[np.float64]]] = {}
    hourly = []
    for seed in range(1, 7):
        source = market(days=120, n=40, seed=seed)
        for name, ics in rank_ics(source).items():
            pooled.setdefault(name, []).append(ics)
        closes = whole_life(source)[1]
        hourly.append((closes[1:] / closes[:-1] - 1.0).mean(axis=1))
    found = {name: t_value(np.concatenate(ics)) for name, ics in pooled.items()}
    assert all(abs(t) < 3.0 for t in found.values()), found
    assert abs(t_value(np.concatenate(hourly))) < 3.0, "the market as a whole has no drift either"


def test_the_planted_signal_is_found_and_grows_with_its_strength() -> None:
    ics = {s: rank_ics(market(days=365, n=50, seed=11, strength=s)) for s in (0.0, 0.5, 1.0)}
    momentum = [ics[s]["return 48 h"].mean() for s in (0.0, 0.5, 1.0)]
    assert momentum[0] < momentum[1] < momentum[2]
    assert momentum[2] > 0.06
    assert t_value(ics[1.0]["return 48 h"]) > 5.0
    assert t_value(ics[1.0]["volume"]) > 3.0, "the hidden part of the signal shows in volume"


# Settings and refusals ------------------------------------------------------------------------------------------------


def test_settings_name_now_and_a_future_lies_behind_it() -> None:
    wanted = ExchangeSettings(simulated_symbols=3, simulated_days=5, simulated_end="2025-06-01T00:00:00", seed=9)
    source = SimulatedMarket.from_settings(wanted, extra_days=2)
    assert (source.start_ns, source.end_ns) == (parse_utc("2025-05-27"), parse_utc("2025-06-03"))
    assert source.is_simulated
    assert source.base_frame_ns == NS_PER_MINUTE
    assert [i.base for i in source.instruments()] == ["BTC", "ETH", "XRP"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_ns": START}, "before it starts"),
        ({"end_ns": START + NS_PER_DAY + 1}, "whole hours"),
        ({"n_symbols": 0}, "between 1 and 500"),
        ({"signal_strength": 1.5}, "between 0 and 1"),
    ],
)
def test_an_impossible_spec_is_refused_in_one_line(changes: dict[str, float], message: str) -> None:
    fields = {"n_symbols": 3, "start_ns": START, "end_ns": START + NS_PER_DAY, "seed": 1, "signal_strength": 0.0}
    with pytest.raises(UserError, match=message):
        SimulationSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_now_inside_an_hour_is_refused() -> None:
    with pytest.raises(UserError, match="whole hours"):
        SimulatedMarket.from_settings(ExchangeSettings(simulated_end="2025-06-01T00:30:00"))
