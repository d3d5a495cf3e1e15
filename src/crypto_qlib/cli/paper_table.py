"""A running session on the terminal: one line a bar, and a table of all positions at the first and the last bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crypto_qlib.core.clock import iso
from crypto_qlib.live_trading.paper_view import PaperView, PositionLine

WIDE: Final = 120
"""Terminal columns from which everything is shown."""
_NEAR_LIQUIDATION: Final = 0.05
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
            self._console.print(positions_table(view, self._console.width))


def bar_line(view: PaperView) -> Text:
    """Return the account after one bar in one line."""
    ratio = "-" if math.isinf(view.margin_ratio) else f"{view.margin_ratio:,.1f}"
    return Text.assemble(
        (f"  bar {view.bar:>3}/{view.n_bars}  {iso(view.as_of_ns)[:16]}  ", "dim"),
        f"equity {view.equity:>12,.2f} USDT  ",
        (f"{view.pnl:>+10,.2f} ({view.pnl_fraction:+.2%})", _gain_style(view.pnl)),
        f"  open {view.open_count:>2}  orders {view.orders_sent:>2}  margin ratio {ratio:>7}  {view.mode.name}",
    )


def positions_table(view: PaperView, width: int = WIDE) -> Table:
    """Return the open positions (prices in USDT per coin, money in USDT; margin ratio 1.0 is liquidation).

    Parameters
    ----------
    view : PaperView
        What to show.
    width : int
        Columns of the terminal; on a narrow one the less important columns are left out.
    """
    table = Table(
        title=f"Open positions at {iso(view.as_of_ns)[:16]} UTC",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    total = sum(line.unrealised_pnl for line in view.positions)
    shown = [c for c in _COLUMNS if width >= WIDE or not c.only_wide]
    for column in shown:
        left = column.heading in ("symbol", "side")
        footer = {"symbol": Text("total"), "PnL": _money(total)}.get(column.heading, Text(""))
        table.add_column(column.heading, footer=footer, justify="left" if left else "right", no_wrap=True)
    for line in view.positions:
        table.add_row(*(column.cell(line) for column in shown))
    return table


def _name(line: PositionLine) -> Text:
    return Text(line.symbol if line.is_ours else f"{line.symbol} (not ours)")


def _side(line: PositionLine) -> Text:
    return Text(line.side, style="green" if line.side == "long" else "magenta")


def _away(line: PositionLine) -> Text:
    near = line.liquidation_distance < _NEAR_LIQUIDATION
    return Text(_number(line.liquidation_distance, ".1%"), style="red" if near else "")


def _money(value: float) -> Text:
    return Text(f"{value:+,.2f}", style=_gain_style(value))


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cell: Callable[[PositionLine], Text]
    only_wide: bool = False


_COLUMNS: Final = (
    _Column("symbol", _name),
    _Column("side", _side),
    _Column("size", lambda x: Text(_price(x.qty)), only_wide=True),
    _Column("entry", lambda x: Text(_price(x.entry)), only_wide=True),
    _Column("mark", lambda x: Text(_price(x.mark))),
    _Column("lev", lambda x: Text(f"{x.leverage:g}x")),
    _Column("margin", lambda x: Text(f"{x.margin:,.0f}"), only_wide=True),
    _Column("ratio", lambda x: Text(_number(x.margin_ratio, ",.1f"))),
    _Column("liquidation", lambda x: Text(_price(x.liquidation_price))),
    _Column("away", _away),
    _Column("stop", lambda x: Text(_price(x.stop_price)), only_wide=True),
    _Column("take profit", lambda x: Text(_price(x.take_profit_price)), only_wide=True),
    _Column("PnL", lambda x: _money(x.unrealised_pnl)),
)


def _price(value: float) -> str:
    return _number(value, ",.6g")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _gain_style(value: float) -> str:
    return "green" if value > 0 else "red" if value < 0 else ""
