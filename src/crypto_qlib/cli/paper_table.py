"""A running session on the terminal: one line a bar, and a table of all positions at the first and the last bar."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crypto_qlib.core.clock import iso
from crypto_qlib.live_trading.paper_view import PaperView, PositionLine

_NEAR_LIQUIDATION = 0.05
"""Distance to liquidation (fraction of the mark) below which it is shown in red."""


class PaperScreen:
    """Show a session's views on ``console``.

    Parameters
    ----------
    console : Console
        Where to draw; the one the progress display draws on, so that lines appear above it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, view: PaperView) -> None:
        """Show one bar."""
        self._console.print(bar_line(view), highlight=False)
        for alert in view.alerts:
            self._console.print(Text(f"    {alert}", style="yellow"))
        if view.bar == view.n_bars and view.positions:
            self._console.print(positions_table(view))


def bar_line(view: PaperView) -> Text:
    """Return the account after one bar in one line."""
    ratio = "-" if math.isinf(view.margin_ratio) else f"{view.margin_ratio:,.1f}"
    return Text.assemble(
        (f"  bar {view.bar:>3}/{view.n_bars}  {iso(view.as_of_ns)[:16]}  ", "dim"),
        f"equity {view.equity:>12,.2f} USDT  ",
        (f"{view.pnl:>+10,.2f} ({view.pnl_fraction:+.2%})", _gain_style(view.pnl)),
        f"  open {view.open_count:>2}  orders {view.orders_sent:>2}  margin ratio {ratio:>7}  {view.mode.name}",
    )


def positions_table(view: PaperView) -> Table:
    """Return the open positions (prices in USDT per coin, money in USDT; margin ratio 1.0 is liquidation)."""
    table = Table(title=f"Open positions at {iso(view.as_of_ns)[:16]} UTC", title_justify="left", header_style="bold")
    table.add_column("symbol")
    table.add_column("side")
    for heading in (
        "size",
        "entry",
        "mark",
        "lev",
        "margin",
        "margin ratio",
        "liquidation",
        "away",
        "stop",
        "take profit",
        "PnL",
    ):
        table.add_column(heading, justify="right")
    for line in view.positions:
        table.add_row(*_cells(line))
    total = sum(line.unrealised_pnl for line in view.positions)
    table.add_section()
    blanks = [""] * (len(table.columns) - 2)
    table.add_row("total", *blanks, Text(f"{total:+,.2f}", style=_gain_style(total)))
    return table


def _cells(line: PositionLine) -> list[str | Text]:
    near = line.liquidation_distance < _NEAR_LIQUIDATION
    return [
        line.symbol if line.is_ours else f"{line.symbol} (not ours)",
        Text(line.side, style="green" if line.side == "long" else "magenta"),
        _price(line.qty),
        _price(line.entry),
        _price(line.mark),
        f"{line.leverage:g}x",
        f"{line.margin:,.0f}",
        _number(line.margin_ratio, ",.1f"),
        _price(line.liquidation_price),
        Text(_number(line.liquidation_distance, ".1%"), style="red" if near else ""),
        _price(line.stop_price),
        _price(line.take_profit_price),
        Text(f"{line.unrealised_pnl:+,.2f}", style=_gain_style(line.unrealised_pnl)),
    ]


def _price(value: float) -> str:
    return _number(value, ",.6g")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _gain_style(value: float) -> str:
    return "green" if value > 0 else "red" if value < 0 else ""
