"""Keep a running session's universe current: coins that joined are taken up with their past, coins that left are let go.

1. Between two bars the keeper is asked whether the universe changed; asking may take its time, trading does not wait for it.
2. Of every symbol the window does not know, all its bars within the window are fetched *first*. One whose past does not come
   stays outside and is asked for again; nothing is decided on half a history.
3. Then, between two cycles, window, contract rules and websockets change at once. A coin counts as a member from the snapshot
   on, not before, so it is first scored, and can first be entered, at the next close. Its leverage and margin mode are set and
   verified before its first order, as of every symbol.
4. A coin that left gets no score any more: nothing is opened in it. While it is held, or was a member anywhere in the window,
   its bars are kept; its position leaves by its stop, its time exit or replacement. Then its column goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import DoNotRetry, RetryLater
from crypto_qlib.core.membership import Membership
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.market_feed import MarketFeed, SymbolHistory
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor

LEADERS: Final = frozenset({"BTCUSDT", "ETHUSDT"})
"""Symbols whose bars features of every coin read, members or not."""


@dataclass(frozen=True, slots=True)
class UniverseNow:
    """The universe as chosen last.

    Parameters
    ----------
    as_of_ns : int
        When it was chosen.
    current : tuple of str
        Its members.
    members : Membership
        Who belonged when, this choice included.
    contracts : Contracts
        Contract rules of ``current``, as listed now.
    """

    as_of_ns: int
    current: tuple[str, ...]
    members: Membership
    contracts: Contracts


class Keeper(Protocol):
    """Say how the universe stands."""

    async def __call__(self) -> UniverseNow | None:
        """Return the universe where it was chosen anew since the last call, else ``None``.

        Raises
        ------
        RetryLater
            If it could not be looked at.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A universe with the past of those the window does not know; ``missing``: whose past did not come, and why."""

    universe: UniverseNow
    joined: dict[str, SymbolHistory]
    missing: dict[str, str] = field(default_factory=dict)


class UniverseWatch:
    """Look at the universe and take it up.

    Parameters
    ----------
    keeper : Keeper
        Chooses it.
    feed : MarketFeed
        The window.
    signals : SignalProcessor
        Knows the contract rules.
    heard : LiveFeed, optional
        Websockets.
    """

    def __init__(self, keeper: Keeper, feed: MarketFeed, signals: SignalProcessor, heard: LiveFeed | None = None) -> None:
        self._keeper = keeper
        self._feed = feed
        self._signals = signals
        self._heard = heard
        self._unfinished: UniverseNow | None = None
        self._looking: asyncio.Task[Prepared | None] | None = None

    def begin(self) -> None:
        """Look in the background, unless a look is under way."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self.look())

    async def wait(self) -> None:
        """Wait for the look under way."""
        if self._looking is not None:
            await asyncio.wait({self._looking})

    def seen(self) -> Prepared | None:
        """Return what a look that ended found, once; ``None`` where none did, or nothing changed.

        Raises
        ------
        RetryLater
            If it could not be looked at.
        """
        if self._looking is None or not self._looking.done():
            return None
        ended, self._looking = self._looking, None
        return ended.result()

    def cancel(self) -> None:
        """Give up the look under way."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def look(self) -> Prepared | None:
        """Return the universe with everything it needs, or ``None`` where nothing changed; changes nothing.

        Raises
        ------
        RetryLater
            If it could not be looked at.
        """
        universe = await self._keeper() or self._unfinished
        if universe is None:
            return None
        new = [s for s in universe.current if s not in self._feed.panel.symbols and s in universe.contracts.instruments]
        found = await asyncio.gather(*(self._past(symbol) for symbol in new))
        joined = {s: past for s, past in zip(new, found, strict=True) if not isinstance(past, str)}
        return Prepared(universe, joined, {s: past for s, past in zip(new, found, strict=True) if isinstance(past, str)})

    async def _past(self, symbol: str) -> SymbolHistory | str:
        try:
            past = await self._feed.history(symbol)
        except (RetryLater, DoNotRetry) as e:
            return e.message
        return past if len(past.last) else "no bar of it is known"

    def take_up(self, prepared: Prepared, held: Collection[str]) -> tuple[str, ...]:
        """Go on with ``prepared`` and return what a person should know; ``held`` are symbols with a position or an order."""
        universe, panel = prepared.universe, self._feed.panel
        before = {s for s, is_member in zip(panel.symbols, panel.is_member[-1].tolist(), strict=True) if is_member}
        in_window = set(np.array(panel.symbols)[panel.is_member.any(axis=0)].tolist())
        kept = in_window | set(universe.current) | set(held) | LEADERS
        dropped = set(panel.symbols) - kept
        symbols = [s for s in (*panel.symbols, *prepared.joined) if s not in dropped]
        known, new = self._signals.contracts, universe.contracts
        contracts = replace(
            known,
            instruments={s: new.instruments.get(s) or known.instruments[s] for s in symbols},
            tiers={s: new.tiers.get(s) or known.tiers[s] for s in symbols},
        )
        hours = {s: i.funding_interval_h for s, i in contracts.instruments.items()}
        self._feed.take_up(universe.members, prepared.joined, hours, dropped)
        self._signals.take_up(contracts)
        if self._heard is not None and prepared.joined:
            self._heard.watch([contracts.instruments[s] for s in prepared.joined])
        self._unfinished = universe if prepared.missing else None
        return _told(prepared, before, set(held))


def _told(prepared: Prepared, before: set[str], held: set[str]) -> tuple[str, ...]:
    current = set(prepared.universe.current) - set(prepared.missing)
    joined = [f"+ {s}" for s in sorted(current - before)]
    left = [
        f"- {s}{' (held: managed to its end)' if s in held else ''}" for s in sorted(before - set(prepared.universe.current))
    ]
    lines = [f"{s} belongs to the universe, but not yet to the session: {why}" for s, why in sorted(prepared.missing.items())]
    if joined or left:
        lines.insert(0, f"universe of {iso(prepared.universe.as_of_ns)}: {', '.join([*joined, *left])}")
    return tuple(lines)
