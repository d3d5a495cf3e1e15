"""The border of bar data, checked with pandera: what every table of bars must satisfy before it is stored or handed on.

Two schemas: **raw** (types, columns, one row a time stamp and in order) and **clean**, which adds what cleaning promises:
prices are all there and consistent or all NaN, volumes are not negative, opens lie on the grid of the frame.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock

PRICES: Final = ("open", "high", "low", "close")
VOLUMES: Final = ("volume", "quote_volume")


def bar_table(block: BarBlock) -> pd.DataFrame:
    """Return bars as a table: ``ts`` (ns since the epoch) and the value columns."""
    return pd.DataFrame({"ts": block.ts_open, **{n: getattr(block, n) for n in (*PRICES, *VOLUMES)}})


def bar_schema(frame_ns: int, *, is_clean: bool) -> Any:
    """Return the pandera schema of bars of one symbol.

    Parameters
    ----------
    frame_ns : int
        Bar length.
    is_clean : bool
        Whether the promises of cleaning are checked too.
    """
    import pandera.pandas as pa  # noqa: PLC0415 - heavy, only where a border is crossed

    columns: dict[str, Any] = {"ts": pa.Column(np.int64, unique=True)}
    columns |= {n: pa.Column(float, nullable=True) for n in (*PRICES, *VOLUMES)}
    checks = [pa.Check(lambda t: t["ts"].is_monotonic_increasing, error="rows are not in order of time")]
    if is_clean:
        checks += [
            pa.Check(lambda t: t["ts"] % frame_ns == 0, error="a bar does not open on the grid of its frame"),
            pa.Check(_all_or_nothing, error="some prices of a bar are missing while others are there"),
            pa.Check(_consistent, error="high is below or low above another price of the bar, or a price is not positive"),
            pa.Check(_not_negative, error="a volume is negative or infinite"),
        ]
    return pa.DataFrameSchema(columns, checks=checks, strict=True)


def require_bars(block: BarBlock, frame_ns: int, symbol: str, *, is_clean: bool) -> None:
    """Check bars at a border.

    Raises
    ------
    UserError
        Naming symbol, rule, and the time of the first bar that breaks it.
    """
    import pandera.errors  # noqa: PLC0415

    try:
        bar_schema(frame_ns, is_clean=is_clean).validate(bar_table(block), lazy=True)
    except pandera.errors.SchemaErrors as e:
        first = e.failure_cases.iloc[0]
        row = first["index"]
        when = f" at {iso(int(block.ts_open[int(row)]))}" if row is not None and not pd.isna(row) else ""
        raise UserError(
            f"bars of {symbol} break a rule of their border{when}: {first['check']} ({len(e.failure_cases)} cells)",
            "run `crypto-qlib data check`; if they were imported, mend the file",
        ) from e


def _all_or_nothing(table: pd.DataFrame) -> pd.Series:
    there = table[list(PRICES)].notna().sum(axis=1)
    return pd.Series((there == 0) | (there == len(PRICES)))


def _consistent(table: pd.DataFrame) -> pd.Series:
    prices = table[list(PRICES)]
    top, bottom = prices.max(axis=1), prices.min(axis=1)
    is_fine = (table["high"] >= top) & (table["low"] <= bottom) & (bottom > 0.0) & np.isfinite(top)
    return pd.Series(is_fine | prices.isna().all(axis=1))


def _not_negative(table: pd.DataFrame) -> pd.Series:
    volumes = table[list(VOLUMES)]
    is_fine = (volumes >= 0.0) & np.isfinite(volumes) | volumes.isna()
    return pd.Series(is_fine.all(axis=1))
