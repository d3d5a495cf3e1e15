"""Write the account as the exchange shows it into the ledger: its equity and margins, and each open position."""

from __future__ import annotations

import math

from crypto_qlib.core import margin as m
from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.store.ledger import EquityRow, Ledger, PositionRow


def record_account(ledger: Ledger, account: AccountState, ts_ns: int) -> None:
    """Write the account at the bar close ``ts_ns``; the first snapshot of an instant stands."""
    ledger.record_equity(equity_row(account, ts_ns))
    ledger.record_positions([position_row(p, ts_ns) for p in account.positions])


def equity_row(account: AccountState, ts_ns: int) -> EquityRow:
    """Return the account in one row, USDT; the margin in use is the positions' initial margin."""
    notionals = [p.side * p.qty * p.mark for p in account.positions]
    return EquityRow(
        ts_ns,
        account.equity,
        account.available,
        _known(account.margin_ratio),
        sum(abs(n) for n in notionals),
        sum(notionals),
        len(notionals),
        sum(p.margin for p in account.positions),
    )


def position_row(position: OpenPosition, ts_ns: int) -> PositionRow:
    """Return one open position in one row."""
    p = position
    return PositionRow(
        ts_ns,
        p.symbol,
        p.lots,
        p.qty,
        p.avg_entry,
        p.mark,
        p.leverage,
        p.margin,
        _known(p.liquidation_price),
        _known(p.stop_price),
        _known(p.take_profit_price),
        m.unrealised_pnl(p.side, p.qty, p.avg_entry, p.mark),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
