"""The universe of a running session: what another job chose last, or, where that has aged, chosen anew by the same rule.

A ranking by market cap that cannot be had now leaves the universe as it is: to fall back to turnover, as a first choice may,
would turn half of it over because a web page was down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.errors import DoNotRetry, RetryLater, SkipCycle, UserError
from crypto_qlib.core.membership import Membership, membership_of
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.data_collector.asset_selector import BY_TURNOVER, looked_up, rule_of, select_universe
from crypto_qlib.data_collector.market_caps import Coin, CoinRanking
from crypto_qlib.data_collector.universe_history import UniverseSnapshot, universe_at
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.live_trading.signal_processor import Contracts
from crypto_qlib.live_trading.universe_watch import UniverseNow
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Lake

_AGAIN_NS: Final = 15 * NS_PER_MINUTE
"""Pause after a look that failed."""


@dataclass(frozen=True, slots=True)
class _Unyielding:
    """A ranking whose failure is a failure: no fall-back behind it."""

    ranking: CoinRanking

    @property
    def source(self) -> str:
        return self.ranking.source

    @property
    def name(self) -> str:
        return self.ranking.name

    async def page(self, number: int) -> Sequence[Coin]:
        try:
            return await self.ranking.page(number)
        except UserError as e:
            raise RetryLater(e.message) from e


@dataclass(slots=True)
class UniverseKeeper:
    """Say how the universe stands, see :class:`~crypto_qlib.live_trading.universe_watch.Keeper`.

    Parameters
    ----------
    gateway : Gateway
        Whose swaps, and whose clock.
    ranking : CoinRanking
        Coins by market cap.
    lake : Lake
        Where snapshots lie, those of other jobs too.
    settings : UniverseSettings
        The rule, and how often it is applied.
    members : Membership
        Who belonged when, as the session was started with.
    newest : UniverseSnapshot
        The choice it was started with.
    keeps : bool
        Whether a choice is written into the lake. Not that of a market that is stepped: its time begins anew with every start,
        and the next run must not know it.
    """

    gateway: Gateway
    ranking: CoinRanking
    lake: Lake
    settings: UniverseSettings
    members: Membership
    newest: UniverseSnapshot
    keeps: bool = True
    _not_before_ns: int = field(default=0, init=False)

    async def __call__(self) -> UniverseNow | None:
        """Return the universe where it was chosen anew since the last call, else ``None``.

        Raises
        ------
        RetryLater
            If it could not be chosen; it is not tried again for a quarter of an hour.
        """
        now_ns = await self.gateway.server_time_ns()
        if now_ns < self._not_before_ns:
            return None
        try:
            snapshot = await self._chosen(now_ns)
            found = None if snapshot.as_of_ns == self.newest.as_of_ns else await self._listed(snapshot)
        except (UserError, RetryLater, DoNotRetry, SkipCycle) as e:
            self._not_before_ns = now_ns + _AGAIN_NS
            raise RetryLater(e.message) from e
        if found is None:
            return None
        self.newest, self.members = snapshot, _with(self.members, snapshot)
        return UniverseNow(snapshot.as_of_ns, snapshot.symbols, self.members, found)

    async def _chosen(self, now_ns: int) -> UniverseSnapshot:
        fresh_ns = now_ns - int(self.settings.refresh_hours * NS_PER_HOUR)
        kept = universe_at(self.lake, now_ns)
        if kept is not None and kept.rule == rule_of(self.settings) and kept.as_of_ns > max(fresh_ns, self.newest.as_of_ns):
            return kept
        if self.newest.as_of_ns > fresh_ns:
            return self.newest
        ranking = self.ranking if self.newest.source == BY_TURNOVER else _Unyielding(self.ranking)
        if self.keeps:
            return await select_universe(self.gateway, ranking, self.lake, self.settings, now_ns)
        snapshot, _ = await looked_up(self.gateway, ranking, self.newest, self.settings, now_ns)
        return snapshot

    async def _listed(self, snapshot: UniverseSnapshot) -> Contracts:
        """Return the contract rules of the members as the exchange lists them now; one without tiers is left out."""
        items = {i.symbol: i for i in await self.gateway.instruments()}
        names = [s for s in snapshot.symbols if s in items]
        tables = await asyncio.gather(*(self._tiers(s) for s in names))
        known = {s: TierHistory([table]) for s, table in zip(names, tables, strict=True) if table is not None}
        return Contracts({s: items[s] for s in known}, known)

    async def _tiers(self, symbol: str) -> TierTable | None:
        try:
            return await self.gateway.tiers(symbol)
        except (SkipCycle, DoNotRetry):  # one bad contract must not keep the others out
            return None


def _with(members: Membership, snapshot: UniverseSnapshot) -> Membership:
    """Return ``members`` with one more choice."""
    past = [
        (int(as_of), [s for s, belonged in zip(members.symbols, row.tolist(), strict=True) if belonged])
        for as_of, row in zip(members.as_of_ns, members.is_member, strict=True)
    ]
    return membership_of([*past, (snapshot.as_of_ns, snapshot.symbols)])
