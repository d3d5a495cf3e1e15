"""What a decision may know about the account: equity, margin in use, open and pending positions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OpenPosition:
    """One open position as a decision sees it.

    Parameters
    ----------
    symbol : str
        Compact name.
    lots : int
        Signed size in lots.
    qty : float
        Absolute size in base coins.
    avg_entry : float
        Average entry, quote units.
    mark : float
        Current mark, quote units.
    leverage : float
        Leverage it was opened with.
    margin : float
        Initial margin in use, USDT.
    opened_ns : int
        Instant of its first fill.
    stop_price, take_profit_price : float
        Protection levels; NaN where there is none.
    liquidation_price : float
        Mark that liquidates it; NaN where unknown (never read NaN as safe).
    entry_score : float
        Rank score it was opened with; NaN where unknown.
    unprotected_lots : int
        Lots no stop at the exchange covers, of a position that has one; 0 where all are.
    trailing_ratio : float
        Trailing stop at the exchange, a fraction of the best price; NaN where there is none.
    untrailed_lots : int
        Lots its trailing stops, where it has any, do not cover; negative where they are larger than the position.
    """

    symbol: str
    lots: int
    qty: float
    avg_entry: float
    mark: float
    leverage: float
    margin: float
    opened_ns: int
    stop_price: float = float("nan")
    take_profit_price: float = float("nan")
    liquidation_price: float = float("nan")
    entry_score: float = float("nan")
    unprotected_lots: int = 0
    trailing_ratio: float = float("nan")
    untrailed_lots: int = 0

    @property
    def side(self) -> float:
        """Return +1.0 long, -1.0 short."""
        return 1.0 if self.lots > 0 else -1.0


@dataclass(frozen=True, slots=True)
class AccountState:
    """The account at one moment.

    Parameters
    ----------
    as_of_ns : int
        Instant the figures hold for.
    equity : float
        USDT, unrealised PnL and isolated margin included (OKX ``eq``).
    available : float
        USDT free to open positions (OKX ``availEq``).
    positions : tuple of OpenPosition
        Open positions; pending entries are in ``pending_symbols``.
    pending_symbols : tuple of str
        Symbols with an entry order that is not final; they count as open slots.
    peak_equity : float
        Highest equity so far, for the drawdown brake; equal to ``equity`` where unknown.
    margin_ratio : float
        Account margin ratio (equity / requirement, 1.0 liquidates); infinite without positions.
    cooldown_until_ns : mapping
        Symbol -> instant before which it must not be re-opened (after a stop-out).
    """

    as_of_ns: int
    equity: float
    available: float
    positions: tuple[OpenPosition, ...] = ()
    pending_symbols: tuple[str, ...] = ()
    peak_equity: float = 0.0
    margin_ratio: float = float("inf")
    cooldown_until_ns: dict[str, int] = field(default_factory=dict)
