"""A simulated perpetual-swap market: seeded, of any length, from 1-minute bars up. **Its prices are invented.**

:class:`SimulatedMarket` serves what ``market_paths`` computes. Construction is cheap; the first question about prices
runs the compiled pass (60 coins x 400 days in a few seconds) and keeps one row an hour, about 90 MB. Minutes are
never stored: they are grown again, bit for bit, from the hour's row. Two markets with the same spec share one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, iso, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.venue import market_layout as c
from crypto_qlib.venue.bar_aggregation import aggregate_bars
from crypto_qlib.venue.contract_shapes import LiquidityClass, Listing, shaped_contract
from crypto_qlib.venue.counter_noise import exponential_table, normal_table, student4_table
from crypto_qlib.venue.market_catalogue import Coin, build_catalogue
from crypto_qlib.venue.market_crowd import crowd_ratios
from crypto_qlib.venue.market_minutes import Tables
from crypto_qlib.venue.market_paths import grow_minutes, run_hours

FloatArray = npt.NDArray[np.float64]

_LAST = (c.OPEN, c.HIGH, c.LOW, c.CLOSE)
_MARK = (c.MARK_OPEN, c.MARK_HIGH, c.MARK_LOW, c.MARK_CLOSE)
_INDEX = (c.M_INDEX_OPEN, c.M_INDEX_HIGH, c.M_INDEX_LOW, c.M_INDEX_CLOSE)

_PREMIUM_SCALE = {
    LiquidityClass.MAJOR: 1e-4,
    LiquidityClass.LARGE: 2e-4,
    LiquidityClass.MID: 3e-4,
    LiquidityClass.SMALL: 4.5e-4,
}
_MARK_NOISE = {
    LiquidityClass.MAJOR: 0.7e-4,
    LiquidityClass.LARGE: 1.2e-4,
    LiquidityClass.MID: 1.8e-4,
    LiquidityClass.SMALL: 2.8e-4,
}
_OPEN_INTEREST_DAYS = 0.35
"""Open interest as a multiple of a typical day's turnover."""


@dataclass(frozen=True, slots=True)
class SimulationSpec:
    """What market to simulate; equal specs give equal bytes.

    Parameters
    ----------
    n_symbols : int
        Instruments listed over the market's life (some arrive late, some leave), 1..500.
    start_ns, end_ns : int
        First open and last close, whole hours, nanoseconds since the epoch. With the same start and seed, a market
        with a later end begins with exactly the shorter one.
    seed : int
        Seed of everything random.
    signal_strength : float
        Planted cross-sectional signal in [0, 1]. 0: returns are a martingale difference, nothing predicts them.
        1: the true drift has a 24 h rank correlation of about 0.18 with returns, plain momentum about 0.13.

    Raises
    ------
    UserError
        If the span is empty or not of whole hours, or a number is out of range.
    """

    n_symbols: int
    start_ns: int
    end_ns: int
    seed: int = 20260101
    signal_strength: float = 0.0

    def __post_init__(self) -> None:
        if self.start_ns % NS_PER_HOUR or self.end_ns % NS_PER_HOUR:
            raise UserError("a simulated market starts and ends on whole hours", "set exchange.simulated_end to a whole hour")
        if self.end_ns <= self.start_ns:
            raise UserError(f"the simulated market ends at {iso(self.end_ns)}, before it starts at {iso(self.start_ns)}")
        if not 1 <= self.n_symbols <= 500:  # noqa: PLR2004 - as in the settings
            raise UserError(f"simulated_symbols must be between 1 and 500, got {self.n_symbols}")
        if not 0.0 <= self.signal_strength <= 1.0:
            raise UserError(f"signal_strength must be between 0 and 1, got {self.signal_strength}")

    @property
    def n_hours(self) -> int:
        """Return the length in hours."""
        return (self.end_ns - self.start_ns) // NS_PER_HOUR


@dataclass(frozen=True, slots=True)
class _Paths:
    """What the pass leaves behind."""

    coins: FloatArray
    hourly: FloatArray
    sigmas: FloatArray
    tables: Tables


class SimulatedMarket:
    """Serve a simulated market as a ``MarketSource``.

    Prices are whole ticks of a power of ten and sizes whole lots, so every price survives a round trip through its
    decimal string. Bars of any frame are exact aggregates of the 1-minute bars; quote volumes are sums of 1/64 USDT.

    Parameters
    ----------
    spec : SimulationSpec
        What to simulate.
    """

    def __init__(self, spec: SimulationSpec) -> None:
        self.spec = spec
        self._coins = build_catalogue(spec.n_symbols, spec.seed, spec.start_ns)
        shaped = [shaped_contract(_listing(coin, spec)) for coin in self._coins]
        self._contracts = tuple(contract for contract, _ in shaped)
        self._tiers = {contract.symbol: tiers for contract, tiers in shaped}
        self._rows = {contract.symbol: k for k, contract in enumerate(self._contracts)}

    @classmethod
    def from_settings(cls, settings: ExchangeSettings, extra_days: int = 30) -> SimulatedMarket:
        """Return the market the settings ask for, with ``extra_days`` of future after ``simulated_end`` for a session.

        Raises
        ------
        UserError
            If ``simulated_end`` is not on a whole hour.
        """
        now_ns = parse_utc(settings.simulated_end)
        start_ns = now_ns - settings.simulated_days * NS_PER_DAY
        return cls(
            SimulationSpec(
                settings.simulated_symbols, start_ns, now_ns + extra_days * NS_PER_DAY, settings.seed, settings.signal_strength
            )
        )

    @property
    def is_simulated(self) -> bool:
        """Return True: prices are invented."""
        return True

    @property
    def base_frame_ns(self) -> int:
        """Return one minute."""
        return NS_PER_MINUTE

    @property
    def start_ns(self) -> int:
        """Return the open time of the first bar."""
        return self.spec.start_ns

    @property
    def end_ns(self) -> int:
        """Return the close time of the last bar."""
        return self.spec.end_ns

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every instrument listed before the end; a delisting after the end is not told."""
        return tuple(x for x in self._contracts if x.listed_ns < self.end_ns)

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers of ``symbol``."""
        return self._tiers[symbol]

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return complete last-price bars with ``start_ns <= ts_open < end_ns``.

        Raises
        ------
        ValueError
            If ``frame_ns`` is not a multiple of one minute.
        """
        return self._serve(symbol, frame_ns, (start_ns, end_ns), _LAST)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return mark-price bars (volumes NaN), as :meth:`bars`."""
        return self._serve(symbol, frame_ns, (start_ns, end_ns), _MARK)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return index-price bars (volumes NaN), as :meth:`bars`; the index has one decimal more than the contract."""
        return self._serve(symbol, frame_ns, (start_ns, end_ns), _INDEX)

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the settlements with ``start_ns <= ts < end_ns``; the interval shortens while the cap is hit."""
        rates = _paths(self.spec).hourly[self._rows[symbol], :, c.FUNDING]
        ts = self.start_ns + np.flatnonzero(~np.isnan(rates)) * NS_PER_HOUR
        a, b = np.searchsorted(ts, [start_ns, end_ns])
        return FundingBlock(ts[a:b], rates[~np.isnan(rates)][a:b])

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return open interest in base coins at the last full hour, in whole lots; NaN while not listed."""
        k = self._rows[symbol]
        hour = (ts_ns - self.start_ns) // NS_PER_HOUR
        if not (0 <= hour < self.spec.n_hours and self._contracts[k].is_listed(ts_ns)):
            return float("nan")
        lot = self._contracts[k].base_per_lot
        return round(float(_paths(self.spec).hourly[k, hour, c.OPEN_INTEREST]) / lot) * lot

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return accounts long per account short at the multiples of ``frame_ns`` in the span, as at the last full hour."""
        ratios = _crowd(self.spec, self._rows[symbol])
        first, stop = max(start_ns, self.start_ns), min(end_ns, self.end_ns)
        ts = np.arange(-(-first // frame_ns) * frame_ns, stop, frame_ns, dtype=np.int64)
        found = ratios[(ts - self.start_ns) // NS_PER_HOUR]
        is_listed = ~np.isnan(found)
        return LongShortBlock(ts[is_listed], found[is_listed])

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return market caps in USD by base coin: last closed hour's close times the coins in circulation then."""
        closed = min((ts_ns - self.start_ns) // NS_PER_HOUR, self.spec.n_hours) - 1
        if closed < 0:
            return {}
        years = (ts_ns - self.start_ns) / (365.0 * NS_PER_DAY)
        closes = _paths(self.spec).hourly[:, closed, c.CLOSE]
        caps = {}
        for k, coin in enumerate(self._coins):
            if self._contracts[k].is_listed(ts_ns) and not np.isnan(closes[k]):
                caps[coin.base] = float(closes[k]) / 10.0**coin.decimals * coin.supply * (1.0 + coin.inflation * years)
        return caps

    def _serve(self, symbol: str, frame_ns: int, span: tuple[int, int], columns: tuple[int, ...]) -> BarBlock:
        """Return bars of the given price columns, from the hourly rows where they hold them, else from minutes."""
        if frame_ns <= 0 or frame_ns % NS_PER_MINUTE:
            raise ValueError(f"a frame of {frame_ns} ns is not a multiple of one minute")
        k = self._rows[symbol]
        first, stop = self._closed_span(frame_ns, span, self._contracts[k])
        if first >= stop:
            return BarBlock.empty()
        if columns is not _INDEX and frame_ns % NS_PER_HOUR == 0:
            a, b = (first - self.start_ns) // NS_PER_HOUR, (stop - self.start_ns) // NS_PER_HOUR
            rows, fine_ns = _paths(self.spec).hourly[k, a:b], NS_PER_HOUR
        else:
            rows, fine_ns = self._minutes(k, first, stop), NS_PER_MINUTE
        ts = first + np.arange(rows.shape[0], dtype=np.int64) * fine_ns
        prices = [rows[:, column] for column in columns]
        fine = BarBlock(ts, prices[0], prices[1], prices[2], prices[3], rows[:, c.LOTS], rows[:, c.QUOTE])
        return self._in_coins(k, aggregate_bars(fine, frame_ns), columns)

    def _closed_span(self, frame_ns: int, span: tuple[int, int], instrument: Instrument) -> tuple[int, int]:
        """Return the time span of all complete bars asked for, cut to the instrument's life."""
        first = -(-span[0] // frame_ns) * frame_ns
        stop = min(-(-span[1] // frame_ns) * frame_ns, self.end_ns // frame_ns * frame_ns)
        return max(first, instrument.listed_ns), min(stop, instrument.delisted_ns or stop)

    def _minutes(self, k: int, first: int, stop: int) -> FloatArray:
        p = _paths(self.spec)
        begin, end = (first - self.start_ns) // NS_PER_MINUTE, (stop - self.start_ns) // NS_PER_MINUTE
        hours = (begin // c.MINUTES, -(-end // c.MINUTES))
        grown = grow_minutes(self.spec.seed, k, hours, p.coins, p.hourly, p.sigmas, p.tables)
        skip = begin - hours[0] * c.MINUTES
        return grown[skip : skip + end - begin]

    def _in_coins(self, k: int, ticks: BarBlock, columns: tuple[int, ...]) -> BarBlock:
        """Turn ticks and lots into prices and coins: one correctly rounded division each."""
        unit = 10.0 ** self._coins[k].decimals * (10.0 if columns is _INDEX else 1.0)
        if columns is _LAST:
            volume, quote = _coins_of(ticks.volume, self._contracts[k].base_per_lot), ticks.quote_volume.copy()
        else:
            volume, quote = np.full(len(ticks), np.nan), np.full(len(ticks), np.nan)
        return BarBlock(
            ticks.ts_open, ticks.open / unit, ticks.high / unit, ticks.low / unit, ticks.close / unit, volume, quote
        )


def _coins_of(lots: FloatArray, base_per_lot: float) -> FloatArray:
    """Return base coins of whole lots; lots are powers of ten, so the result is the nearest double to the decimal."""
    return lots * round(base_per_lot) if base_per_lot >= 1.0 else lots / round(1.0 / base_per_lot)


def _listing(coin: Coin, spec: SimulationSpec) -> Listing:
    gone = spec.start_ns + coin.delisted_hour * NS_PER_HOUR if coin.delisted_hour < spec.n_hours else None
    return Listing(
        coin.base,
        coin.start_price,
        coin.decimals,
        coin.liquidity,
        spec.start_ns + coin.listed_hour * NS_PER_HOUR,
        gone,
        coin.funding_interval_h,
    )


def _traits(coin: Coin, instrument: Instrument) -> FloatArray:
    """Return one coin's row of the compiled pass."""
    row = np.zeros(c.COIN_FIELDS)
    row[c.BETA], row[c.ALT_LOAD], row[c.SECTOR_LOAD] = coin.beta, coin.alt_vol, coin.sector_vol
    row[c.OWN_VOL], row[c.SECTOR] = coin.own_vol, coin.sector
    row[c.TICKS_PER_UNIT], row[c.BASE_PER_LOT] = 10.0**coin.decimals, instrument.base_per_lot
    row[c.DAY_LOTS] = coin.turnover / coin.start_price / instrument.base_per_lot
    row[c.FIRST_PRICE], row[c.LISTED], row[c.DELISTED] = coin.start_price, coin.listed_hour, coin.delisted_hour
    row[c.INTERVAL], row[c.CAP] = coin.funding_interval_h, coin.funding_cap
    row[c.PREMIUM_SCALE], row[c.MARK_NOISE] = _PREMIUM_SCALE[coin.liquidity], _MARK_NOISE[coin.liquidity]
    row[c.OI_SCALE] = _OPEN_INTEREST_DAYS * coin.turnover / coin.start_price
    return row


@lru_cache(maxsize=2)
def _paths(spec: SimulationSpec) -> _Paths:
    """Run the compiled pass for ``spec``; a coin's noise is keyed by its place in the catalogue."""
    coins = build_catalogue(spec.n_symbols, spec.seed, spec.start_ns)
    traits = np.array([_traits(coin, shaped_contract(_listing(coin, spec))[0]) for coin in coins])
    tables = (student4_table(), normal_table(), exponential_table())
    hourly, sigmas = run_hours(spec.seed, spec.start_ns // NS_PER_HOUR, spec.n_hours, spec.signal_strength, traits, tables)
    return _Paths(traits, hourly, sigmas, tables)


@lru_cache(maxsize=64)
def _crowd(spec: SimulationSpec, k: int) -> FloatArray:
    """Return the accounts' split of coin ``k`` at every hour's open."""
    paths = _paths(spec)
    return crowd_ratios(spec.seed, k, paths.hourly[k], paths.tables[1])
