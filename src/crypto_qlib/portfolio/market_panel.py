"""Market states of every bar of a panel: the batch form of :class:`MarketState`, shared by backtest, paper and live."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.portfolio import market_columns as columns
from crypto_qlib.portfolio.clusters import clusters_by_day
from crypto_qlib.portfolio.contract_table import ContractHistory, contract_history
from crypto_qlib.portfolio.market_state import ContractTable, MarketState
from crypto_qlib.portfolio.rules import CAP_OFF, KELLY, Rules

BTC = "BTCUSDT"
RecordArray = npt.NDArray[Any]


DAILY: Final = np.dtype(
    [("adv", np.float64), ("sigma", np.float64), ("half_spread", np.float64), ("beta", np.float64), ("cluster", np.int64)]
)
"""Daily figures of one symbol: turnover (USDT), volatility (fraction), half spread (basis points), beta to BTC, cluster."""

CONTRACT: Final = np.dtype(
    [
        ("tick_size", np.float64),
        ("base_per_lot", np.float64),
        ("contracts_per_lot", np.float64),
        ("min_lots", np.float64),
        ("max_lots", np.float64),
        ("max_leverage", np.float64),
        ("listed_ns", np.int64),
        ("delisted_ns", np.int64),
        ("blacklisted", np.bool_),
    ]
)
"""Contract rules of one symbol, see :class:`ContractTable`."""


class StateArrays(NamedTuple):
    """What compiled decisions read; columns that the rules do not need have one row, read for every moment.

    Parameters
    ----------
    close, age, atr, funding_rate, funding_settlements : (n_bars, n_symbols) float64
        As in :class:`MarketState`.
    returns : (n_bars, n_symbols) float64
        Log returns; empty where no correlation is asked for.
    daily : (n_days, n_symbols) DAILY
        Daily figures.
    contracts : (n_symbols,) CONTRACT
        Contract rules.
    tier_max, tier_mmr, tier_leverage : (n_versions, n_symbols, n_tiers) float64
        Padded tiers.
    """

    close: FloatArray
    age: FloatArray
    atr: FloatArray
    funding_rate: FloatArray
    funding_settlements: FloatArray
    returns: FloatArray
    daily: RecordArray
    contracts: RecordArray
    tier_max: FloatArray
    tier_mmr: FloatArray
    tier_leverage: FloatArray


@dataclass(frozen=True, slots=True)
class MarketStatePanel:
    """Market states after every bar of a panel.

    Parameters
    ----------
    symbols : tuple of str
        Length ``n_symbols``.
    as_of_ns : (n_bars,) int64
        Closes of the panel's bars: row ``r`` is known from ``as_of_ns[r]`` on.
    day_start_ns : (n_days,) int64
        Midnights from which the rows of the daily columns are known; the first one holds before it too.
    mark : (n_bars, n_symbols) float64
        Last known marks.
    arrays : StateArrays
        Everything else.
    contracts : ContractHistory
        Contract rules over time.
    """

    symbols: tuple[str, ...]
    as_of_ns: IntArray
    day_start_ns: IntArray
    mark: FloatArray
    arrays: StateArrays
    contracts: ContractHistory

    def row_of(self, as_of_ns: int) -> int:
        """Return the row known exactly at ``as_of_ns``.

        Raises
        ------
        UserError
            If no bar closes then.
        """
        row = int(np.searchsorted(self.as_of_ns, as_of_ns))
        if row >= self.as_of_ns.size or self.as_of_ns[row] != as_of_ns:
            raise UserError(f"no bar closes at {iso(as_of_ns)}", "ask for a moment at which a bar of the panel closes")
        return row

    def day_of(self, as_of_ns: int) -> int:
        """Return the row of the daily columns known at ``as_of_ns``."""
        return max(int(np.searchsorted(self.day_start_ns, as_of_ns, side="right")) - 1, 0)

    def at(self, as_of_ns: int) -> MarketState:
        """Return the state known at ``as_of_ns``, the close of one of the panel's bars."""
        row, day, a = self.row_of(as_of_ns), self.day_of(as_of_ns), self.arrays
        return MarketState(
            as_of_ns=as_of_ns,
            symbols=self.symbols,
            close=_at(a.close, row),
            mark=_at(self.mark, row),
            data_age_bars=_at(a.age, row),
            atr_fraction=_at(a.atr, row),
            funding_rate=_at(a.funding_rate, row),
            funding_settlements=_at(a.funding_settlements, row),
            adv=_at(a.daily["adv"], day),
            sigma_day=_at(a.daily["sigma"], day),
            half_spread_bps=_at(a.daily["half_spread"], day),
            beta=_at(a.daily["beta"], day),
            cluster=_at(a.daily["cluster"], day),
            returns=a.returns[max(row + 1 - columns.CORRELATION_BARS, 0) : row + 1],
            contracts=self.contracts.at(as_of_ns),
        )


def state_arrays(state: MarketState) -> StateArrays:
    """Return one moment's state as arrays of one row, for compiled decisions."""
    c = state.contracts
    daily = _records(DAILY, state.adv, state.sigma_day, state.half_spread_bps, state.beta, state.cluster)
    return StateArrays(
        _row(state.close), _row(state.data_age_bars), _row(state.atr_fraction), _row(state.funding_rate),
        _row(state.funding_settlements), frozen(state.returns), _row(daily), _contracts(c),
        _row(c.tier_max), _row(c.tier_mmr), _row(c.tier_leverage),
    )  # fmt: skip


def market_states(
    panel: MarketPanel,
    instruments: Mapping[str, Instrument],
    tiers: Mapping[str, TierHistory],
    rules: Rules,
    blacklist: Sequence[str] = (),
) -> MarketStatePanel:
    """Return what a decision may know after each bar of ``panel``; columns the rules do not use are left out.

    Called on the latest :func:`~crypto_qlib.portfolio.market_columns.history_bars` bars it gives for the last bar the very
    values it gives on the whole history.

    Parameters
    ----------
    panel : MarketPanel
        Bars of the decision frame, ``rules.frame_ns``.
    instruments, tiers : mapping
        Specification and tiers of every symbol of the panel.
    rules : Rules
        What the states are for.
    blacklist : sequence of str
        Symbols never entered.

    Raises
    ------
    UserError
        If a symbol has no specification or no tiers, or the panel has no bars.
    """
    if panel.n_bars == 0:
        raise UserError("the market panel has no bars", "collect data first")
    start, end = int(panel.ts_open[0]), int(panel.ts_open[-1]) + panel.frame_ns
    contracts = contract_history(panel.symbols, instruments, tiers, start, end + 1, blacklist)
    close, mark, age = _last_known(panel)
    rate, settlements = _funding(panel, instruments, rules)
    day_start, *daily = _daily(panel, contracts, rules)
    needs_atr = rules.min_stop_distance < rules.max_stop_distance or rules.min_take_distance < rules.max_take_distance
    atr = columns.atr_fraction(panel.high, panel.low, panel.close, close) if needs_atr else _constant(panel, math.nan)
    returns = columns.log_returns(panel.close) if rules.max_correlation < 1.0 else np.empty((0, len(panel.symbols)))
    arrays = StateArrays(
        frozen(close), frozen(age), frozen(atr), frozen(rate), frozen(settlements), frozen(returns),
        frozen(_records(DAILY, *daily)), _contracts(contracts.fixed),
        frozen(contracts.tier_max), frozen(contracts.tier_mmr), frozen(contracts.tier_leverage),
    )  # fmt: skip
    return MarketStatePanel(panel.symbols, panel.ts_open + panel.frame_ns, day_start, frozen(mark), arrays, contracts)


def frozen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only C-ordered view, so that compiled code sees one type whoever made the array."""
    view = np.ascontiguousarray(values).view()
    view.setflags(write=False)
    return view


def _records(kind: np.dtype[Any], *columns_: npt.NDArray[Any]) -> RecordArray:
    """Return equally shaped columns as one array of records."""
    result = np.empty(columns_[0].shape, kind)
    for name, values in zip(kind.names or (), columns_, strict=True):
        result[name] = values
    return result


def _contracts(c: ContractTable) -> RecordArray:
    return frozen(
        _records(
            CONTRACT, c.tick_size, c.base_per_lot, c.contracts_per_lot, c.min_lots, c.max_lots, c.max_leverage,
            c.listed_ns, c.delisted_ns, c.blacklisted,
        )
    )  # fmt: skip


def _row(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return frozen(values[None])


def _at(values: npt.NDArray[Any], row: int) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = values[min(row, values.shape[0] - 1)]
    return result


def _constant(panel: MarketPanel, value: float) -> FloatArray:
    return np.full((1, len(panel.symbols)), value)


def _last_known(panel: MarketPanel) -> tuple[FloatArray, FloatArray, FloatArray]:
    if columns.has_nan(frozen(panel.close)):
        age = np.empty(panel.close.shape)
        close = columns.carried(frozen(panel.close), age)
    else:
        close, age = panel.close, _constant(panel, 0.0)
    if panel.mark_close is panel.close:
        return close, close, age
    if columns.has_nan(frozen(panel.mark_close)):
        return close, columns.carried(frozen(panel.mark_close), np.empty(panel.close.shape)), age
    return close, panel.mark_close, age


def _funding(panel: MarketPanel, instruments: Mapping[str, Instrument], rules: Rules) -> tuple[FloatArray, FloatArray]:
    if not rules.expect_funding:
        return _constant(panel, 0.0), _constant(panel, 0.0)
    default = np.array([instruments[s].funding_interval_h * NS_PER_HOUR for s in panel.symbols], np.int64)
    return columns.expected_funding(frozen(panel.funding_rate), panel.ts_open, panel.frame_ns, rules.holding_ns, default)


def _daily(
    panel: MarketPanel, contracts: ContractHistory, rules: Rules
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray, FloatArray, IntArray]:
    """Return (midnights, turnover, volatility, half spread, beta, cluster); one row where the rules need none of them."""
    unused = (
        rules.impact_y == 0.0 and rules.half_spread_bps >= 0.0 and rules.min_daily_turnover <= 0.0
        and rules.max_beta >= CAP_OFF and rules.max_cluster >= CAP_OFF and rules.sizing != KELLY
    )  # fmt: skip
    alone = np.arange(len(panel.symbols), dtype=np.int64)
    if unused or NS_PER_DAY % panel.frame_ns:
        start = np.array([panel.ts_open[0]], np.int64)
        none = _constant(panel, math.nan)
        half = none if rules.half_spread_bps < 0.0 else _constant(panel, rules.half_spread_bps)
        return start, none, none, half, _constant(panel, 1.0), alone[None]
    per_day = NS_PER_DAY // panel.frame_ns
    first_midnight = -(-int(panel.ts_open[0]) // NS_PER_DAY) * NS_PER_DAY
    first_row = (first_midnight - int(panel.ts_open[0])) // panel.frame_ns
    n_days = max((panel.n_bars - first_row) // per_day, 0)
    btc = panel.symbols.index(BTC) if BTC in panel.symbols else -1
    sums = columns.daily_sums(
        frozen(panel.close), frozen(panel.volume), frozen(panel.quote_volume), first_row, per_day, n_days, btc
    )
    adv, sigma, beta = columns.daily_figures(*sums)
    starts = first_midnight + NS_PER_DAY * np.arange(n_days + 1, dtype=np.int64)
    half = _half_spread(panel, contracts, rules, adv, first_row + per_day * np.arange(n_days + 1))
    cluster = np.broadcast_to(alone, adv.shape)
    if rules.max_cluster < CAP_OFF:
        returns = columns.log_returns(frozen(panel.close))
        cluster = clusters_by_day(returns, first_row, per_day, n_days, rules.cluster_correlation)
    return starts, adv, sigma, half, beta, cluster


def _half_spread(
    panel: MarketPanel, contracts: ContractHistory, rules: Rules, adv: FloatArray, first_rows: IntArray
) -> FloatArray:
    """Return the half spread of each day: the setting, or the ladder by turnover with the close before midnight."""
    if rules.half_spread_bps >= 0.0:
        return np.full(adv.shape, rules.half_spread_bps)
    return columns.half_spreads(adv, contracts.fixed.tick_size, frozen(panel.close), first_rows)
