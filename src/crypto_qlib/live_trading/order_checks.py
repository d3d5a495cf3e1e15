"""May this entry be sent as it stands *now*? A second look at each order, on the book of this moment and the account as traded.

``decide()`` obeyed the same rules on the close of the bar; between it and the order lie seconds, other orders, and a market
that moved. Exits are never checked: they only take risk away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import numpy as np

from crypto_qlib.core import margin as m
from crypto_qlib.core.order import OrderKind
from crypto_qlib.core.tiers import NO_TIER, tier_index
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.portfolio.market_state import ContractTable, MarketState
from crypto_qlib.portfolio.plan import PlannedOrder
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.selection import correlation

SLACK: Final = 0.05
"""What the size rules of ``decide()`` may be exceeded by until the order is sent: the price moves in between."""


@dataclass(frozen=True, slots=True)
class Quote:
    """The book of one symbol at the moment of sending.

    Parameters
    ----------
    bid, ask : float
        Best prices, quote units.
    bid_lots, ask_lots : float
        Lots shown on each side.
    """

    bid: float
    ask: float
    bid_lots: float = math.inf
    ask_lots: float = math.inf

    @property
    def mid(self) -> float:
        """Return the middle of the best prices."""
        return 0.5 * (self.bid + self.ask)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an entry is not sent: the rule, its bound, and the value that broke it."""

    rule: str
    limit: float
    actual: float

    def __str__(self) -> str:
        return f"{self.rule} limit {self.limit:g}, actual {self.actual:g}"


@dataclass(frozen=True, slots=True)
class Held:
    """The account as traded so far: equity (USDT) and signed notional by symbol (USDT), pending entries included.

    ``leaving`` is the signed notional of what this plan closes, in its order: a decision sizes an entry with what it closes
    later still held.
    """

    equity: float
    notional: dict[str, float]
    leaving: dict[str, float] = field(default_factory=dict)

    @property
    def gross(self) -> float:
        """Return the sum of absolute notionals, USDT."""
        return sum(abs(n) for n in self.notional.values())

    @property
    def net(self) -> float:
        """Return the sum of signed notionals, USDT."""
        return sum(self.notional.values())


def entry_refusal(
    entry: PlannedOrder,
    quote: Quote | None,
    held: Held,
    contracts: ContractTable,
    column: int,
    rules: Rules,
    limits: RiskLimits,
) -> Refusal | None:
    """Return the first rule that keeps ``entry`` from being sent, ``None`` where it may go.

    Parameters
    ----------
    quote : Quote | None
        The book now; ``None`` where it is not looked at.
    held : Held
        The account without this entry.
    contracts, column : ContractTable, int
        Contract rules and the symbol's column in them.
    """
    price = entry.reference_price if quote is None else quote.mid
    if entry.kind is not OrderKind.MARKET and entry.limit_price is not None:
        price = entry.limit_price
    notional = entry.lots * float(contracts.base_per_lot[column]) * price
    checks = (
        _price(entry, quote, limits),
        _stop_side(entry, quote),
        _over("leverage", rules.leverage * (1.0 + 1e-9), entry.leverage),
        _over("position size", rules.max_position_fraction * (1.0 + SLACK), notional / held.equity),
        _over("order risk", limits.max_order_risk, notional / held.equity * abs(1.0 - entry.stop_price / price)),
        _over("open positions", float(rules.max_open), float(len(held.notional.keys() | {entry.symbol}))),
        _over("gross exposure", rules.max_gross * (1.0 + SLACK), (held.gross + notional) / held.equity),
        _net(entry, held, notional, rules),
        _liquidation(entry, price, notional, contracts, column, rules),
    )
    return next((refusal for refusal in checks if refusal is not None), None)


def correlation_refusal(entry: PlannedOrder, held: Held, market: MarketState, rules: Rules) -> Refusal | None:
    """Return a refusal where ``entry`` moves too much like a name held, or sent before it, on the same side.

    The measure is the decision's own; what was planned as leaving and did not leave counts here as held.
    """
    if rules.max_correlation >= 1.0 or entry.symbol not in market.symbols:
        return None
    column, side, returns = market.symbols.index(entry.symbol), entry.side.sign, np.array(market.returns)
    same_side = (s for s, notional in held.notional.items() if side * notional > 0.0 and s != entry.symbol)
    others = [market.symbols.index(s) for s in same_side if s in market.symbols]
    known = (correlation(returns, returns.shape[0], column, other) for other in others)
    return _over("correlation", rules.max_correlation, max((c for c in known if not math.isnan(c)), default=-1.0))


def _over(rule: str, limit: float, actual: float) -> Refusal | None:
    return Refusal(rule, limit, actual) if actual > limit else None


def _price(entry: PlannedOrder, quote: Quote | None, limits: RiskLimits) -> Refusal | None:
    """Refuse where the market is far from the price the order was sized and protected with, either way."""
    if quote is None or math.isnan(entry.reference_price):
        return None
    return _over("price sanity", limits.max_price_deviation, abs(quote.mid / entry.reference_price - 1.0))


def _stop_side(entry: PlannedOrder, quote: Quote | None) -> Refusal | None:
    """Refuse where the market is already beyond the stop: the exchange would (51280), or the stop would fire at once."""
    if quote is None or math.isnan(entry.stop_price):
        return None
    leaves_at = quote.bid if entry.side.sign > 0.0 else quote.ask
    if entry.side.sign * (leaves_at - entry.stop_price) <= 0.0:
        return Refusal("stop side", entry.stop_price, leaves_at)
    return None


def _net(entry: PlannedOrder, held: Held, notional: float, rules: Rules) -> Refusal | None:
    after = held.net + entry.side.sign * notional
    if abs(after) <= abs(held.net):
        return None
    # The plan closes in order and sized this entry before the later ones were closed to make room for entries after it.
    as_decided = accumulate(reversed(held.leaving.values()), initial=after)
    net = min(map(abs, as_decided))
    return _over("net exposure", rules.max_net + SLACK * rules.max_gross, net / held.equity)


def _liquidation(
    entry: PlannedOrder, price: float, notional: float, contracts: ContractTable, column: int, rules: Rules
) -> Refusal | None:
    """Refuse where the stop lies at or beyond the price that would liquidate (isolated margin, the tier of this size)."""
    if rules.cross or math.isnan(entry.stop_price):
        return None
    bounds = contracts.tier_max[column]
    row = tier_index(entry.lots * float(contracts.contracts_per_lot[column]), bounds[bounds > 0.0])
    if row == NO_TIER:
        return Refusal("tier", float(bounds.max()), entry.lots * float(contracts.contracts_per_lot[column]))
    qty, side = notional / price, entry.side.sign
    mmr = float(contracts.tier_mmr[column, row])
    liquidates = m.liquidation_price_isolated(side, qty, price, notional / entry.leverage, mmr, rules.taker_fee)
    if side * (entry.stop_price - liquidates) <= 0.0:
        return Refusal("stop before liquidation", liquidates, entry.stop_price)
    return None
