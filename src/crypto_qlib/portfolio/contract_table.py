"""Contract rules and tiers of many instruments as padded arrays for compiled code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.market_state import BoolArray, ContractTable

NEVER_NS: Final = int(np.iinfo(np.int64).max)
"""Instant that never comes: the delisting of an instrument that trades."""


@dataclass(frozen=True, slots=True)
class ContractHistory:
    """Contract rules whose tiers change over time.

    Parameters
    ----------
    symbols : tuple of str
        Length ``n_symbols``.
    fixed : ContractTable
        Everything but the tiers is meant; its tiers are those of the first version.
    valid_from_ns : (n_versions,) int64
        Instant from which each version of the tiers holds; the first one holds before it too.
    tier_max, tier_mmr, tier_leverage : (n_versions, n_symbols, n_tiers) float64
        Padded tiers, see :class:`ContractTable`.
    """

    symbols: tuple[str, ...]
    fixed: ContractTable
    valid_from_ns: IntArray
    tier_max: FloatArray
    tier_mmr: FloatArray
    tier_leverage: FloatArray

    def version_at(self, ts_ns: int) -> int:
        """Return the row of the tiers in force at ``ts_ns``."""
        return max(int(np.searchsorted(self.valid_from_ns, ts_ns, side="right")) - 1, 0)

    def at(self, ts_ns: int) -> ContractTable:
        """Return the rules in force at ``ts_ns``."""
        v = self.version_at(ts_ns)
        f = self.fixed
        return ContractTable(
            f.tick_size, f.base_per_lot, f.contracts_per_lot, f.min_lots, f.max_lots, f.max_leverage,
            f.listed_ns, f.delisted_ns, self.tier_max[v], self.tier_mmr[v], self.tier_leverage[v], f.blacklisted,
        )  # fmt: skip


def contract_history(
    symbols: Sequence[str],
    instruments: Mapping[str, Instrument],
    tiers: Mapping[str, TierHistory],
    start_ns: int,
    end_ns: int,
    blacklist: Sequence[str] = (),
) -> ContractHistory:
    """Return the contract rules of ``symbols`` with every version of their tiers in ``[start_ns, end_ns)``.

    Parameters
    ----------
    symbols : sequence of str
        Compact names, in the order of the columns wanted.
    instruments, tiers : mapping
        Specification and tiers by symbol.
    blacklist : sequence of str
        Symbols never entered.

    Raises
    ------
    UserError
        If a symbol has no instrument or no tiers.
    """
    for symbol in symbols:
        if symbol not in instruments:
            raise UserError(f"{symbol}: no contract specification", "collect the instruments of the universe first")
        if symbol not in tiers:
            raise UserError(f"{symbol}: no position tiers", "a symbol without tiers cannot be margined")
    rows = [instruments[s] for s in symbols]
    starts = _version_starts([tiers[s] for s in symbols], start_ns, end_ns)
    versions = [_tier_arrays([tiers[s].at(ts) for s in symbols]) for ts in starts]
    width = max(v[0].shape[1] for v in versions)
    stacked = [np.stack([_padded(v[k], width, fill) for v in versions]) for k, fill in enumerate((-1.0, 1.0, 0.0))]
    fixed = ContractTable(
        tick_size=_column(r.tick_size for r in rows),
        base_per_lot=_column(r.base_per_lot for r in rows),
        contracts_per_lot=_column(r.lot_size for r in rows),
        min_lots=_column(np.ceil(r.min_size / r.lot_size - 1e-9) for r in rows),
        max_lots=_column(np.floor(r.max_market_size / r.lot_size + 1e-9) for r in rows),
        max_leverage=_column(r.max_leverage for r in rows),
        listed_ns=np.array([r.listed_ns for r in rows], np.int64),
        delisted_ns=np.array([NEVER_NS if r.delisted_ns is None else r.delisted_ns for r in rows], np.int64),
        tier_max=stacked[0][0],
        tier_mmr=stacked[1][0],
        tier_leverage=stacked[2][0],
        blacklisted=_mask(symbols, blacklist),
    )
    return ContractHistory(tuple(symbols), fixed, np.array(starts, np.int64), stacked[0], stacked[1], stacked[2])


def _column(values: Iterable[float]) -> FloatArray:
    return np.array(list(values), np.float64)


def _mask(symbols: Sequence[str], blacklist: Sequence[str]) -> BoolArray:
    return np.array([s in set(blacklist) for s in symbols], np.bool_)


def _version_starts(histories: Sequence[TierHistory], start_ns: int, end_ns: int) -> list[int]:
    changes = {t for history in histories for t in history.starts if start_ns < t < end_ns}
    return [start_ns, *sorted(changes)]


def _tier_arrays(tables: Sequence[TierTable]) -> tuple[FloatArray, FloatArray, FloatArray]:
    width = max(t.max_contracts.size for t in tables)
    return (
        np.stack([_row(t.max_contracts, width, -1.0) for t in tables]),
        np.stack([_row(t.mmr, width, 1.0) for t in tables]),
        np.stack([_row(t.max_leverage, width, 0.0) for t in tables]),
    )


def _row(values: FloatArray, width: int, fill: float) -> FloatArray:
    return np.concatenate([values, np.full(width - values.size, fill)])


def _padded(table: FloatArray, width: int, fill: float) -> FloatArray:
    return np.concatenate([table, np.full((table.shape[0], width - table.shape[1]), fill)], axis=1)
