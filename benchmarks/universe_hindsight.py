"""What is hindsight worth? The same portfolio on the universe as known then, and on today's universe carried back.

``python -m benchmarks hindsight [FOLDER] [PICTURE]``: FOLDER holds ``cmc_top200_monthly.parquet`` (default
``../shared/data``), the ranking of the first of each month with the coins that have died since. At each month the N largest
coins that qualify (the package's own exclusions) are bought in equal parts and held for a month.

- *as known then*: the N largest of that month's ranking;
- *with hindsight*: the N largest of the **last** ranking, those of them that existed, from the beginning.

A coin that leaves the ranking of 200 is sold at the price at which its market cap would equal that of rank 200: the most it
can have been worth, so the universe as known then is flattered and the figures are the least that hindsight adds. Where price
and market cap disagree about a month by more than a factor of five (a change of units, another coin of the ticker), the
change of the market cap is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.market_caps import Coin

SIZES = (20, 50)
_DISAGREE = 5.0


@dataclass(frozen=True)
class Month:
    """One month's ranking: all coins by ticker with price and market cap, and those that qualify, largest first."""

    ts: pd.Timestamp
    coins: pd.DataFrame
    chosen: tuple[str, ...]

    @property
    def floor_cap(self) -> float:
        """Return the market cap of the last rank."""
        return float(self.coins.market_cap_usd.min())


def months(path: Path) -> list[Month]:
    """Return the rankings, oldest first."""
    rows = pd.read_parquet(path).sort_values(["ts", "rank"])
    found = []
    for ts, part in rows.groupby("ts"):
        table = part.drop_duplicates("base").set_index("base")
        made = [
            Coin(b.lower(), b, n, p, c)
            for b, n, p, c in zip(table.index, table.name, table.price_usd, table.market_cap_usd, strict=True)
        ]
        chosen = tuple(coin.symbol for coin in made if not why_excluded(coin))
        found.append(Month(pd.Timestamp(ts), table, chosen))
    return found


def month_returns(now: Month, later: Month, names: list[str]) -> np.ndarray:
    """Return what each coin earned from one ranking to the next."""
    earned = []
    for name in names:
        price, cap = now.coins.price_usd[name], now.coins.market_cap_usd[name]
        if name not in later.coins.index:
            earned.append(min(later.floor_cap / cap, 1.0) - 1.0)
            continue
        by_price = later.coins.price_usd[name] / price
        by_cap = later.coins.market_cap_usd[name] / cap
        agree = 1.0 / _DISAGREE < by_price / by_cap < _DISAGREE
        earned.append((by_price if agree else by_cap) - 1.0)
    return np.array(earned)


def curve(rankings: list[Month], size: int, *, hindsight: bool) -> tuple[np.ndarray, int]:
    """Return the growth of one dollar at each ranking, and how many different coins were ever held."""
    final = list(rankings[-1].chosen[:size])
    growth, held = [1.0], set()
    for now, later in pairwise(rankings):
        names = [n for n in final if n in now.coins.index] if hindsight else list(now.chosen[:size])
        held |= set(names)
        growth.append(growth[-1] * (1.0 + float(month_returns(now, later, names).mean())))
    return np.array(growth), len(held)


@dataclass(frozen=True)
class Figures:
    """Growth of both portfolios over one span."""

    size: int
    start: pd.Timestamp
    end: pd.Timestamp
    then: float
    hindsight: float
    n_then: int
    n_hindsight: int

    def per_year(self, growth: float) -> float:
        years = (self.end - self.start).days / 365.25
        return growth ** (1.0 / years) - 1.0


def figures(rankings: list[Month], size: int, start: str) -> Figures:
    """Return the figures of the span from ``start`` to the last ranking."""
    span = [m for m in rankings if m.ts >= pd.Timestamp(start, tz="UTC")]
    (then, n_then), (late, n_late) = curve(span, size, hindsight=False), curve(span, size, hindsight=True)
    return Figures(size, span[0].ts, span[-1].ts, float(then[-1]), float(late[-1]), n_then, n_late)


def draw(rankings: list[Month], path: Path) -> None:
    """Draw both portfolios of each size, on a log scale."""
    fig, axes = plt.subplots(1, len(SIZES), figsize=(10, 4), sharey=True)
    for axis, size in zip(axes, SIZES, strict=True):
        for late, colour, label in ((False, "#0072B2", "as known then"), (True, "#D55E00", "chosen with hindsight")):
            growth, _ = curve(rankings, size, hindsight=late)
            axis.plot([m.ts for m in rankings], growth, color=colour, label=label, linewidth=1.6)
            axis.annotate(f"x{growth[-1]:.1f}", (rankings[-1].ts, growth[-1]), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=9, color=colour)  # fmt: skip
        axis.set_yscale("log")
        axis.margins(x=0.13)
        axis.set_title(f"the {size} largest coins, equal parts, monthly", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("growth of one dollar")
    axes[0].legend(frameon=False, fontsize=9)
    fig.autofmt_xdate()
    fig.tight_layout()
    fig.savefig(path, dpi=130)


def main(argv: list[str]) -> None:
    folder = Path(argv[0]) if argv else Path("../shared/data")
    rankings = months(folder / "cmc_top200_monthly.parquet")
    print("| coins | from | as known then | with hindsight | hindsight adds a year | coins held then / with hindsight |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        for start in ("2020-01-01", "2022-01-01", "2024-01-01"):
            f = figures(rankings, size, start)
            then, late = f.per_year(f.then), f.per_year(f.hindsight)
            print(
                f"| {size} | {start[:4]} | x{f.then:.2f}, {then:+.1%} a year | x{f.hindsight:.2f}, {late:+.1%} a year | "
                f"**{late - then:+.1%}** | {f.n_then} / {f.n_hindsight} |"
            )
    if len(argv) > 1:
        draw(rankings, Path(argv[1]))
