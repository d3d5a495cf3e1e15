"""Keep the last bars of the traded symbols as one :class:`MarketPanel`, extended by each bar that closes.

The window is long enough that features, market state and scores of its last bar equal those of the whole history bit for bit:
``max(feature look-back, portfolio.market_columns.history_bars)`` bars.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_HOUR, NS_PER_MINUTE, floor_ts
from crypto_qlib.core.errors import DoNotRetry, RetryLater, UserError
from crypto_qlib.core.market import (
    PANEL_FIELDS,
    PANEL_PRICES,
    BarBlock,
    BoolArray,
    FloatArray,
    FundingBlock,
    IntArray,
    MarketPanel,
)
from crypto_qlib.core.membership import Membership
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.exchange.gateway import Gateway, PriceKind
from crypto_qlib.live_trading.events import Freshness
from crypto_qlib.live_trading.live_feed import LiveFeed

_DELISTED = frozenset({"51001", "51087"})
"""The exchange no longer knows the symbol: a coin that belonged to the universe once, and has no new bars."""
_LAST_FIELDS = ("open", "high", "low", "close", "volume", "quote_volume")
_MARK_FIELDS = dict(zip(PANEL_PRICES[4:], PANEL_PRICES[:4], strict=True))


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """What the feed collects.

    Parameters
    ----------
    frame : str
        Bar length, e.g. ``1h``.
    window_bars : int
        Bars kept.
    mark, funding : bool
        Whether mark candles and settled funding are collected too.
    concurrency : int
        Requests in flight at once.
    patience_s : float
        How long bars are waited for that should be pushed, before they are asked for.
    """

    frame: str
    window_bars: int
    mark: bool = True
    funding: bool = True
    concurrency: int = 8
    patience_s: float = 1.0


@dataclass(frozen=True, slots=True)
class SymbolHistory:
    """What the exchange said of one symbol."""

    last: BarBlock
    mark: BarBlock
    funding: FundingBlock


class MarketFeed:
    """A rolling panel.

    Parameters
    ----------
    gateway : Gateway
        Where new bars come from.
    history : MarketPanel
        Bars up to now, from the lake.
    config : FeedConfig
        What to collect.
    funding_interval_h : mapping
        Hours between settlements by symbol; says when asking for new settlements is worth while.
    members : Membership, optional
        The universe over time, for bars to come; without it the members of the newest bar stay so.
    heard : LiveFeed, optional
        Bars that were pushed; only what it does not have is asked for.

    Raises
    ------
    UserError
        If the frame of ``history`` is not the configured one.
    """

    def __init__(
        self,
        gateway: Gateway,
        history: MarketPanel,
        config: FeedConfig,
        funding_interval_h: Mapping[str, int],
        members: Membership | None = None,
        heard: LiveFeed | None = None,
    ) -> None:
        self._heard = heard
        if history.frame_ns != FRAME_NS[config.frame]:
            raise UserError(
                f"the history has bars of {history.frame_ns} ns, not of {config.frame}", "rebuild it with data.frame"
            )
        self._gateway = gateway
        self._config = config
        self._interval_ns = {s: funding_interval_h.get(s, 8) * NS_PER_HOUR for s in history.symbols}
        self._permits = asyncio.Semaphore(config.concurrency)
        self._members = members
        self.panel = history.rows(max(history.n_bars - config.window_bars, 0), history.n_bars)
        self._asked_until_ns = self.known_until_ns

    @property
    def known_until_ns(self) -> int:
        """Return the close of the newest bar of the window."""
        return int(self.panel.ts_open[-1]) + self.panel.frame_ns

    async def update(self, as_of_ns: int) -> tuple[MarketPanel, Freshness]:
        """Fetch every bar that closed up to ``as_of_ns`` and return the window with how complete its last bar is.

        A symbol that does not answer has no fresh bar; the missing rows are asked for again with the next bar.
        """
        self._extend_to(as_of_ns)
        if self._heard is not None and self._config.patience_s > 0.0:
            alive = [s for s, missing in zip(self.panel.symbols, self._is_idle(), strict=True) if not missing]
            kinds = (PriceKind.LAST, PriceKind.MARK) if self._config.mark else (PriceKind.LAST,)
            await self._heard.wait_for_bar(alive, as_of_ns, self._config.patience_s, kinds)
        answers = await asyncio.gather(*(self._ask(symbol, as_of_ns) for symbol in self.panel.symbols))
        fields = {name: np.array(getattr(self.panel, name)) for name in PANEL_FIELDS}
        for column, answer in enumerate(answers):
            if answer is not None:
                self._fill(fields, column, answer)
        self.panel = _panel(self.panel, self.panel.ts_open, self.panel.is_member, fields)
        self._asked_until_ns = self.known_until_ns
        self.panel = self.panel.rows(max(self.panel.n_bars - self._config.window_bars, 0), self.panel.n_bars)
        return self.panel, freshness(self.panel, as_of_ns)

    async def history(self, symbol: str) -> SymbolHistory:
        """Return every bar and settlement the exchange has of ``symbol`` within the window, for :meth:`take_up`.

        Raises
        ------
        RetryLater
            If it does not answer.
        DoNotRetry
            If it does not know the symbol.
        """
        config, start, end = self._config, int(self.panel.ts_open[0]), self.known_until_ns
        none = FundingBlock(np.empty(0, np.int64), np.empty(0))
        async with self._permits:
            last = await self._gateway.candles(symbol, config.frame, start, end, PriceKind.LAST)
            is_marked, mark = config.mark, BarBlock.empty()
            if is_marked:
                mark = await self._gateway.candles(symbol, config.frame, start, end, PriceKind.MARK)
            funding = await self._gateway.funding_history(symbol, start, end) if config.funding else none
        return SymbolHistory(last, mark, funding)

    def take_up(
        self,
        members: Membership,
        joined: Mapping[str, SymbolHistory],
        funding_interval_h: Mapping[str, int],
        dropped: Collection[str] = (),
    ) -> None:
        """Go on with another universe: columns for who joined, filled with their past, and none for ``dropped``.

        What the window says of the past of those already in it stays as it was known then.
        """
        panel = self.panel
        kept = [k for k, symbol in enumerate(panel.symbols) if symbol not in dropped]
        names = (*(panel.symbols[k] for k in kept), *joined)
        empty = np.full((panel.n_bars, len(joined)), np.nan)
        fields = {name: np.concatenate([getattr(panel, name)[:, kept], empty], axis=1) for name in PANEL_FIELDS}
        new = members.at(tuple(joined), panel.ts_open + panel.frame_ns)
        is_member = np.concatenate([panel.is_member[:, kept], new], axis=1)
        has_mark = np.append(panel.has_mark[kept], [len(found.mark) > 0 for found in joined.values()]).astype(np.bool_)
        for column, found in enumerate(joined.values(), len(kept)):
            self._fill(fields, column, found)
        self.panel = MarketPanel(names, panel.frame_ns, panel.ts_open, has_mark=has_mark, is_member=is_member, **fields)
        self._members = members
        self._interval_ns = {s: funding_interval_h.get(s, 8) * NS_PER_HOUR for s in names}

    def _is_idle(self) -> list[bool]:
        """Return which symbols had no bar within the last day: nobody waits for them."""
        day = max(24 * NS_PER_HOUR // self.panel.frame_ns, 2)
        return list((np.isfinite(self.panel.close[-day - 1 : -1]).sum(axis=0) == 0).tolist())

    def _extend_to(self, as_of_ns: int) -> None:
        panel = self.panel
        n_new = (as_of_ns - self.known_until_ns) // panel.frame_ns
        if n_new <= 0:
            return
        ts = self.known_until_ns + panel.frame_ns * np.arange(n_new, dtype=np.int64)
        empty = np.full((n_new, len(panel.symbols)), np.nan)
        fields = {name: np.concatenate([getattr(panel, name), empty]) for name in PANEL_FIELDS}
        closes = ts + panel.frame_ns
        new = np.repeat(panel.is_member[-1:], n_new, 0) if self._members is None else self._members.at(panel.symbols, closes)
        self.panel = _panel(panel, np.concatenate([panel.ts_open, ts]), np.concatenate([panel.is_member, new]), fields)

    def _first_unknown(self, column: int) -> int:
        """Return the open of the first bar after the last one known.

        What was asked for before is asked for again only within the last two days: a symbol that stopped trading has no more.
        """
        known = np.flatnonzero(np.isfinite(self.panel.close[:, column]))
        two_days = max(2 * 24 * NS_PER_HOUR // self.panel.frame_ns, 2)
        never_asked = (self._asked_until_ns - int(self.panel.ts_open[0])) // self.panel.frame_ns
        oldest = max(min(self.panel.n_bars - two_days, never_asked), 0)
        return int(self.panel.ts_open[min(max(oldest, known[-1] + 1 if known.size else 0), self.panel.n_bars - 1)])

    async def _ask(self, symbol: str, as_of_ns: int) -> SymbolHistory | None:
        column = self.panel.symbols.index(symbol)
        start = self._first_unknown(column)
        config = self._config
        try:
            last = await self._bars(symbol, start, as_of_ns, PriceKind.LAST)
            mark = BarBlock.empty()
            if config.mark and self.panel.has_mark[column]:
                mark = await self._bars(symbol, start, as_of_ns, PriceKind.MARK)
            return SymbolHistory(last, mark, await self._ask_funding(symbol, column, as_of_ns))
        except RetryLater:  # the gateway has tried more than once; the bar counts as missing, which the session must see
            return None
        except DoNotRetry as e:
            if e.code not in _DELISTED:
                raise
            return None

    async def _bars(self, symbol: str, start_ns: int, end_ns: int, kind: PriceKind) -> BarBlock:
        """Return closed bars: those that were pushed where every one of them was, else by request."""
        pushed = self._heard.bars(symbol, kind, start_ns, end_ns) if self._heard is not None else None
        if pushed is not None:
            return pushed
        async with self._permits:
            return await self._gateway.candles(symbol, self._config.frame, start_ns, end_ns, kind)

    async def _ask_funding(self, symbol: str, column: int, as_of_ns: int) -> FundingBlock:
        settled = np.flatnonzero(np.isfinite(self.panel.funding_rate[:, column]))
        since = int(self.panel.ts_open[settled[-1]]) if settled.size else int(self.panel.ts_open[0])
        due = floor_ts(since, self._interval_ns[symbol]) + self._interval_ns[symbol] < as_of_ns
        if not (self._config.funding and due):
            return FundingBlock(np.empty(0, np.int64), np.empty(0))
        async with self._permits:
            jitter = min(NS_PER_MINUTE, self.panel.frame_ns // 2)  # what counts as "at the open", see funding_on_grid
            return await self._gateway.funding_history(symbol, since + jitter + 1, as_of_ns)

    def _fill(self, fields: dict[str, FloatArray], column: int, answer: SymbolHistory) -> None:
        rows, kept = self._rows_of(answer.last.ts_open)
        for name in _LAST_FIELDS:
            fields[name][rows, column] = getattr(answer.last, name)[kept]
        for mark_name, name in _MARK_FIELDS.items():
            fields[mark_name][rows, column] = getattr(answer.last, name)[kept]
        rows, kept = self._rows_of(answer.mark.ts_open)
        for mark_name, name in _MARK_FIELDS.items():
            fields[mark_name][rows, column] = getattr(answer.mark, name)[kept]
        settled = funding_on_grid(answer.funding.ts, answer.funding.rate, self.panel.ts_open, self.panel.frame_ns)
        known = np.isfinite(settled)
        fields["funding_rate"][known, column] = settled[known]

    def _rows_of(self, ts_open: IntArray) -> tuple[list[int], list[int]]:
        """Return (rows of the panel, places in the answer) of the instants that are on the panel's grid."""
        first, frame = int(self.panel.ts_open[0]), self.panel.frame_ns
        pairs = [((int(t) - first) // frame, k) for k, t in enumerate(ts_open) if first <= t <= int(self.panel.ts_open[-1])]
        return [row for row, _ in pairs], [k for _, k in pairs]


def _panel(like: MarketPanel, ts_open: IntArray, is_member: BoolArray, fields: dict[str, FloatArray]) -> MarketPanel:
    return MarketPanel(like.symbols, like.frame_ns, ts_open, has_mark=like.has_mark, is_member=is_member, **fields)


def freshness(panel: MarketPanel, as_of_ns: int) -> Freshness:
    """Return how many of the symbols that traded within the last day have the bar that closed at ``as_of_ns``."""
    day = max(24 * NS_PER_HOUR // panel.frame_ns, 2)
    alive = np.isfinite(panel.close[-day - 1 : -1]).sum(axis=0).tolist()
    is_current = int(panel.ts_open[-1]) + panel.frame_ns == as_of_ns
    expected = [s for k, s in enumerate(panel.symbols) if alive[k]]
    missing = tuple(s for s in expected if not is_current or not np.isfinite(panel.close[-1, panel.symbols.index(s)]))
    return Freshness(len(expected), len(expected) - len(missing), missing)
