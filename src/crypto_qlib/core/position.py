"""A position is a fold over its fills; nothing else changes its size or average entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from crypto_qlib.core import margin as m
from crypto_qlib.core.order import Fill, MarginMode, PositionKey, PositionSide


@dataclass(frozen=True, slots=True)
class Position:
    """One position record (one symbol, one margin mode, one position side).

    Parameters
    ----------
    symbol : str
        Compact name.
    base_per_lot : float
        Base coins per lot of the instrument.
    margin_mode : MarginMode
        Isolated or cross.
    leverage : float
        Leverage set when it was opened.
    lots : int
        Signed size in lots: + long, - short, 0 flat.
    avg_entry : float
        Average entry in quote units; 0.0 when flat.
    isolated_margin : float
        USDT set aside for it (initial + added + funding); 0.0 in cross mode. The opening fee is *not* taken from it.
    realised_pnl, fee, funding, liquidation_penalty : float
        Since the position was opened, USDT; ``fee`` and ``liquidation_penalty`` are amounts paid (>= 0 except rebates).
    opened_ns : int
        Instant of the first fill.
    position_side : PositionSide
        ``NET`` unless the account is in long/short mode.
    """

    symbol: str
    base_per_lot: float
    margin_mode: MarginMode = MarginMode.ISOLATED
    leverage: float = 1.0
    lots: int = 0
    avg_entry: float = 0.0
    isolated_margin: float = 0.0
    realised_pnl: float = 0.0
    fee: float = 0.0
    funding: float = 0.0
    liquidation_penalty: float = 0.0
    opened_ns: int = 0
    position_side: PositionSide = PositionSide.NET

    @property
    def key(self) -> PositionKey:
        """Return what tells it from other positions of the account."""
        return self.symbol, self.margin_mode, self.position_side

    @property
    def side(self) -> float:
        """Return +1.0 long, -1.0 short, 0.0 flat."""
        return float((self.lots > 0) - (self.lots < 0))

    @property
    def qty(self) -> float:
        """Return the absolute size in base coins."""
        return abs(self.lots) * self.base_per_lot

    @property
    def net_realised(self) -> float:
        """Return ``realised_pnl - fee + funding - liquidation_penalty`` (OKX ``realizedPnl``)."""
        return self.realised_pnl - self.fee + self.funding - self.liquidation_penalty

    def unrealised_pnl(self, mark: float) -> float:
        """Return the unrealised PnL in USDT at ``mark``."""
        return m.unrealised_pnl(self.side, self.qty, self.avg_entry, mark) if self.lots else 0.0


def apply_fill(position: Position, fill: Fill) -> Position:
    """Return the position after ``fill``.

    Adding averages the entry and, isolated, sets aside ``qty * price / leverage``; reducing realises PnL, leaves the
    entry alone and releases margin pro rata; crossing zero closes first and opens the rest anew at the fill price.

    Raises
    ------
    ValueError
        If the fill belongs to another symbol.
    """
    if fill.symbol != position.symbol:
        raise ValueError(f"fill of {fill.symbol} applied to a position in {position.symbol}")
    if position.lots == 0 or (fill.signed_lots > 0) == (position.lots > 0):
        return _increase(position, fill)
    closing = min(abs(fill.signed_lots), abs(position.lots))
    share = closing / abs(fill.signed_lots)
    reduced = _reduce(position, fill, closing, fill.fee * share)
    rest = abs(fill.signed_lots) - closing
    if rest == 0:
        return reduced
    opening = replace(fill, signed_lots=rest if fill.signed_lots > 0 else -rest, fee=fill.fee * (1.0 - share))
    return _increase(replace(reduced, opened_ns=0), opening)


def fold(start: Position, fills: Iterable[Fill]) -> Position:
    """Return the position after all ``fills``, in order."""
    for fill in fills:
        start = apply_fill(start, fill)
    return start


def _increase(position: Position, fill: Fill) -> Position:
    added = abs(fill.signed_lots) * position.base_per_lot
    isolated = position.margin_mode is MarginMode.ISOLATED
    return replace(
        position,
        lots=position.lots + fill.signed_lots,
        avg_entry=m.average_entry(position.qty, position.avg_entry, added, fill.price),
        isolated_margin=position.isolated_margin
        + (m.initial_margin_isolated(added, fill.price, position.leverage) if isolated else 0.0),
        fee=position.fee + fill.fee,
        opened_ns=position.opened_ns if position.lots else fill.ts_ns,
    )


def _reduce(position: Position, fill: Fill, closing_lots: int, fee: float) -> Position:
    pnl = m.realised_pnl(position.side, closing_lots * position.base_per_lot, position.avg_entry, fill.price)
    left = abs(position.lots) - closing_lots
    return replace(
        position,
        lots=left if position.lots > 0 else -left,
        avg_entry=position.avg_entry if left else 0.0,
        isolated_margin=position.isolated_margin * left / abs(position.lots),
        realised_pnl=position.realised_pnl + pnl,
        fee=position.fee + fee,
    )
