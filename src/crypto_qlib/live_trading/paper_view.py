"""What a person sees after each bar: plain data, so that the command line, a dashboard or a test may show it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crypto_qlib.core import margin as m
from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.tiers import NO_TIER, tier_index
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.portfolio.market_state import ContractTable, MarketState


@dataclass(frozen=True, slots=True)
class PositionLine:
    """One open position (prices in quote units, money in USDT).

    Parameters
    ----------
    side : str
        ``long`` or ``short``.
    qty : float
        Base coins.
    margin_ratio : float
        Isolated: (margin + unrealised PnL) over the requirement, 1.0 liquidates; NaN where unknown.
    liquidation_distance : float
        Move of the mark that liquidates, a fraction of the mark; NaN where unknown.
    is_ours : bool
        False for positions somebody else opened; they are left alone.
    """

    symbol: str
    side: str
    lots: int
    qty: float
    entry: float
    mark: float
    notional: float
    leverage: float
    margin: float
    margin_ratio: float
    liquidation_price: float
    liquidation_distance: float
    stop_price: float
    take_profit_price: float
    unrealised_pnl: float
    opened_ns: int
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class PaperView:
    """The session after one bar.

    Parameters
    ----------
    as_of_ns : int
        Close of the bar.
    bar, n_bars : int
        Number of the bar, from 0 (the first decision) to ``n_bars`` (the end).
    mode : Mode
        Risk mode in force.
    equity, start_equity : float
        Account value now and at the start, USDT, as known before the orders of this bar.
    margin_ratio : float
        Account margin ratio, 1.0 liquidates; infinite without positions.
    orders_sent : int
        Orders of this bar.
    vetoes : int
        Refusals of the decision of this bar.
    positions : tuple of PositionLine
        After the orders of this bar, by symbol.
    pending : tuple of str
        Symbols with an order that is not final.
    alerts : tuple of str
        What a person should know, since the last view.
    """

    as_of_ns: int
    bar: int
    n_bars: int
    mode: Mode
    equity: float
    start_equity: float
    margin_ratio: float
    orders_sent: int
    vetoes: int
    positions: tuple[PositionLine, ...]
    pending: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()

    @property
    def pnl(self) -> float:
        """Return the gain since the start, USDT."""
        return self.equity - self.start_equity

    @property
    def pnl_fraction(self) -> float:
        """Return the gain since the start as a fraction of the equity then; NaN without it."""
        return self.pnl / self.start_equity if self.start_equity > 0.0 else math.nan

    @property
    def open_count(self) -> int:
        """Return the number of open positions."""
        return len(self.positions)


def position_lines(
    account: AccountState, market: MarketState, taker_fee: float, ours: frozenset[str]
) -> tuple[PositionLine, ...]:
    """Return one line per open position, by symbol.

    Parameters
    ----------
    account : AccountState
        As the exchange shows it.
    market : MarketState
        Contract rules, for the margin ratio.
    taker_fee : float
        Fraction; part of the requirement.
    ours : frozenset of str
        Symbols whose position this session opened.
    """
    column_of = {s: j for j, s in enumerate(market.symbols)}
    lines = []
    for p in account.positions:
        ratio = _margin_ratio(p, market.contracts, column_of.get(p.symbol, -1), taker_fee)
        lines.append(_line(p, ratio, is_ours=p.symbol in ours))
    return tuple(sorted(lines, key=lambda line: (not line.is_ours, line.symbol)))


def _line(p: OpenPosition, margin_ratio: float, *, is_ours: bool) -> PositionLine:
    return PositionLine(
        symbol=p.symbol,
        side="long" if p.lots > 0 else "short",
        lots=p.lots,
        qty=p.qty,
        entry=p.avg_entry,
        mark=p.mark,
        notional=p.qty * p.mark,
        leverage=p.leverage,
        margin=p.margin,
        margin_ratio=margin_ratio,
        liquidation_price=p.liquidation_price,
        liquidation_distance=abs(p.mark - p.liquidation_price) / p.mark,
        stop_price=p.stop_price,
        take_profit_price=p.take_profit_price,
        unrealised_pnl=m.unrealised_pnl(p.side, p.qty, p.avg_entry, p.mark),
        opened_ns=p.opened_ns,
        is_ours=is_ours,
    )


def _margin_ratio(position: OpenPosition, contracts: ContractTable, column: int, taker_fee: float) -> float:
    if column < 0:
        return math.nan
    size = abs(position.lots) * contracts.contracts_per_lot[column]
    bounds = contracts.tier_max[column]
    row = tier_index(size, bounds[bounds > 0.0])
    if row == NO_TIER:
        return math.nan
    mmr = float(contracts.tier_mmr[column, row])
    return m.margin_ratio_isolated(
        position.side, position.qty, position.avg_entry, position.margin, position.mark, mmr, taker_fee
    )
