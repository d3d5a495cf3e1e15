"""Faults of the market itself: suspended instruments, funding that settles more often, orders that stall, canceled post-onlys.

Unlike faults of transport they change what happens to accounts, so they are part of the exchange's state: switched by
operations of the journal, kept in its snapshots, in force again after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np
import orjson

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.wire import Call, Row
from crypto_qlib.venue.market_source import MarketSource
from crypto_qlib.venue.simulator import SimulatedExchange

SWITCH: Final = "admin/market-fault"
_FUNDING_HOURS: Final = (1, 2, 4, 8)


@dataclass(slots=True)
class MarketSwitches:
    """What is switched away from normal.

    Parameters
    ----------
    suspended : set of str
        Symbols that do not trade.
    funding_steps : dict
        Symbol -> (since when, nanoseconds; hours between two settlements).
    revision : int
        Number of changes so far: whoever keeps what depends on the switches reads it again when this moved.
    """

    suspended: set[str] = field(default_factory=set)
    funding_steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    revision: int = 0

    def become(self, other: MarketSwitches) -> None:
        """Take over the positions of another set of switches."""
        for item in fields(self):
            setattr(self, item.name, getattr(other, item.name))
        self.revision += 1


class SwitchedMarket:
    """A market as the switches have it: the same prices, with additional funding settlements.

    An additional settlement has the rate settled last before it. Source: OKX notices 2024-2026: at the cap or floor the
    interval steps from 8 to 4, 2, 1 hours.

    Parameters
    ----------
    source : MarketSource
        The market itself.
    switches : MarketSwitches
        Read at every call.
    """

    def __init__(self, source: MarketSource, switches: MarketSwitches) -> None:
        self._source = source
        self._switches = switches
        self._delisted = {item.symbol: item.delisted_ns for item in source.instruments()}
        self.is_simulated = source.is_simulated
        self.base_frame_ns = source.base_frame_ns
        self.start_ns = source.start_ns
        self.end_ns = source.end_ns

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every instrument that lives at some time."""
        return self._source.instruments()

    def tiers(self, symbol: str) -> TierHistory:
        """Return the position tiers of ``symbol`` over time."""
        return self._source.tiers(symbol)

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return complete bars."""
        return self._source.bars(symbol, frame_ns, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return mark-price bars."""
        return self._source.mark_bars(symbol, frame_ns, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return index-price bars."""
        return self._source.index_bars(symbol, frame_ns, start_ns, end_ns)

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return open interest in base coins."""
        return self._source.open_interest(symbol, ts_ns)

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return the split of accounts."""
        return self._source.long_short_ratios(symbol, frame_ns, start_ns, end_ns)

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return market cap in USD by base coin."""
        return self._source.market_caps(ts_ns)

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the settlements with ``start_ns <= ts < end_ns``, the additional ones among them."""
        step = self._switches.funding_steps.get(symbol)
        if step is None:
            return self._source.funding(symbol, start_ns, end_ns)
        since_ns, frame_ns = step[0], step[1] * NS_PER_HOUR
        own = self._source.funding(symbol, self._source.start_ns, end_ns)
        first = -(-max(start_ns, since_ns) // frame_ns) * frame_ns
        more = np.arange(first, min(end_ns, self._delisted[symbol] or end_ns), frame_ns, dtype=np.int64)
        before = np.searchsorted(own.ts, more, side="right") - 1
        # Within a minute of a settlement of the market's own, an additional one would be the same one twice.
        is_new = (before >= 0) & (more - own.ts[np.maximum(before, 0)] >= frame_ns // 2) if own.ts.size else more < 0
        kept = own.ts >= start_ns
        ts = np.concatenate([own.ts[kept], more[is_new]])
        rate = np.concatenate([own.rate[kept], own.rate[before[is_new]]])
        order = np.argsort(ts, kind="stable")
        return FundingBlock(ts[order], rate[order])


class MarketFaults:
    """Handler of the operation that moves a switch.

    Parameters
    ----------
    switches : MarketSwitches
        The switches.
    exchange : SimulatedExchange
        Its rules hold the switches that concern orders.
    symbols : dict
        Instrument id -> symbol.
    clock : ServerClock
        The market's time.
    """

    def __init__(
        self, switches: MarketSwitches, exchange: SimulatedExchange, symbols: dict[str, str], clock: ServerClock
    ) -> None:
        self._switches = switches
        self._exchange = exchange
        self._symbols = symbols
        self._clock = clock

    def switch(self, call: Call) -> bytes:
        """Move one switch; answer with all of them.

        Raises
        ------
        UserError
            If the row names no switch, no instrument, or a value out of range.
        """
        row = call.body[0]
        name, is_on = str(row.get("fault")), row.get("on", True) not in (False, "off", "no", 0)
        if name == "suspend":
            self._suspend(self._symbol(row), is_on)
        elif name == "funding_step":
            self._step_funding(self._symbol(row), row.get("hours", 4) if is_on else 0)
        elif name == "partial_fill":
            self._stall(row.get("fraction", 0.5) if is_on else 1.0)
        elif name == "post_only_cancel":
            self._exchange.set_rules(replace(self._exchange.rules, cancels_post_only=is_on))
        elif name == "off":
            self._all_off()
        else:
            raise UserError(f"there is no market fault {name!r}")
        return orjson.dumps(self.shown())

    def shown(self) -> dict[str, Any]:
        """Return every switch that is not in its normal position."""
        rules = self._exchange.rules
        shown: dict[str, Any] = {}
        if self._switches.suspended:
            shown["suspend"] = sorted(self._switches.suspended)
        if self._switches.funding_steps:
            shown["funding_step"] = {symbol: hours for symbol, (_, hours) in sorted(self._switches.funding_steps.items())}
        if rules.stall_fraction < 1.0:
            shown["partial_fill"] = rules.stall_fraction
        if rules.cancels_post_only:
            shown["post_only_cancel"] = True
        return shown

    def _symbol(self, row: Row) -> str:
        asked = str(row.get("symbol", ""))
        symbol = self._symbols.get(asked, asked)
        if symbol not in self._symbols.values():
            raise UserError(f"there is no instrument {asked!r}", "name it like BTCUSDT or BTC-USDT-SWAP")
        return symbol

    def _suspend(self, symbol: str, is_on: bool) -> None:
        if is_on:
            self._switches.suspended.add(symbol)
            self._exchange.halt(symbol)
        else:
            self._switches.suspended.discard(symbol)
        self._switches.revision += 1

    def _step_funding(self, symbol: str, hours: object) -> None:
        if hours not in (0, *_FUNDING_HOURS):
            raise UserError(f"funding cannot settle every {hours} hours", f"choose one of {_FUNDING_HOURS}")
        if hours and isinstance(hours, int):
            self._switches.funding_steps[symbol] = (self._clock.market_ns, hours)
        else:
            self._switches.funding_steps.pop(symbol, None)
        self._switches.revision += 1

    def _stall(self, fraction: object) -> None:
        if not isinstance(fraction, int | float) or not 0.0 <= fraction <= 1.0:
            raise UserError(f"the fraction of an order that fills must be from 0 to 1, not {fraction!r}")
        self._exchange.set_rules(replace(self._exchange.rules, stall_fraction=float(fraction)))

    def _all_off(self) -> None:
        self._switches.become(MarketSwitches(revision=self._switches.revision))
        self._exchange.set_rules(replace(self._exchange.rules, stall_fraction=1.0, cancels_post_only=False))
