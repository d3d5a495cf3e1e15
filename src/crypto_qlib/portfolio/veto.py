"""Why something was not done: every refusal of a decision as a value that reports can show."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class VetoRule(IntEnum):
    """The rule that refused; the number is its column in the counts of a backtest."""

    NO_EQUITY = 0
    DRAWDOWN = 1
    SLOTS = 2
    SIDE_OFF = 3
    BLACKLIST = 4
    STALE_DATA = 5
    LISTING_AGE = 6
    LIQUIDITY = 7
    COOLDOWN = 8
    MIN_WIN_PROBABILITY = 9
    MIN_NET_RETURN = 10
    CORRELATION = 11
    REPLACE_MARGIN = 12
    UNKNOWN_VOLATILITY = 13
    RISK_PER_TRADE = 14
    GROSS = 15
    NET = 16
    BETA = 17
    LEVERAGE = 18
    TIER = 19
    AVAILABLE_MARGIN = 20
    MIN_SIZE = 21
    DELISTING = 22
    POSITION_CAP = 23
    CLUSTER = 24
    STOPS = 25

    @property
    def label(self) -> str:
        """Return the name reports use, e.g. ``min_net_return``."""
        return self.name.lower()


N_RULES = len(VetoRule)


@dataclass(frozen=True, slots=True)
class Veto:
    """One refusal.

    Parameters
    ----------
    rule : VetoRule
        What refused.
    limit, actual : float
        The bound and the value that broke it, in the rule's own unit; NaN where the rule has no number.
    symbol : str
        Compact name; empty where the whole account was refused.
    """

    rule: VetoRule
    limit: float
    actual: float
    symbol: str = ""

    def __str__(self) -> str:
        where = f"{self.symbol}: " if self.symbol else ""
        return f"{where}{self.rule.label} limit {self.limit:g}, actual {self.actual:g}"
