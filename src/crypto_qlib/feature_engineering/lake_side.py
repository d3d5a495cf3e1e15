"""The lake's series beside the candles as observations: index, takers, open interest, crowd, funding quotes, order flow.

=====================  ==========================================  ==========================================
side series            kind in the lake                            known
=====================  ==========================================  ==========================================
``index_close``        ``index`` at the panel's frame              close of the bar
``taker_buy_volume``   ``taker_volume``, hours, hourly panels      end of the hour
``open_interest``      ``open_interest_history``, hours; without   end of the hour; when asked
                       any, ``open_interest`` snapshots
``long_short_ratio``   ``long_short_ratio``, hours                 end of the hour
``predicted_funding``  ``funding_quotes``                          when asked
``book_*``             ``order_flow``, whole minutes               end of the minute and 5 seconds
``*_spread`` of        ``order_flow``, mean of the last 60 whole   end of the newest minute and 5 seconds
trades                 minutes, by volume
=====================  ==========================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from crypto_qlib.core.clock import FRAME_NS, NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.data_collector.live_flow import PATIENCE_NS
from crypto_qlib.store.lake import EVENT, Columns, Kind, Lake, Series
from crypto_qlib.store.observations import Observations

_HOUR: Final = "1h"
_MINUTE: Final = "1m"
_BPS: Final = 1e-4
_HOUR_MINUTES: Final = 60
_FLOW: Final = ("buy", "sell", "imbalance", "spread_bps", "depth_quote", "is_whole", "bid_slope", "ask_slope", "effective_bps",
                "realised_bps")  # fmt: skip


def lake_series(lake: Lake, symbols: Sequence[str], frame: str) -> dict[tuple[str, str], Observations]:
    """Return every side series the lake holds of ``symbols``.

    Parameters
    ----------
    lake : Lake
        Where series lie.
    symbols : sequence of str
        Contracts.
    frame : str
        The panel's frame.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    found: dict[tuple[str, str], Observations] = {}
    for symbol in symbols:
        for name, rows in _of_symbol(lake, symbol, frame).items():
            if len(rows):
                found[name, symbol] = rows
    return found


def _of_symbol(lake: Lake, symbol: str, frame: str) -> dict[str, Observations]:
    frame_ns = FRAME_NS[frame]
    index = lake.read(Series(Kind.INDEX, frame, symbol), columns=("close",))
    quotes = lake.read(Series(Kind.FUNDING_QUOTES, EVENT, symbol), columns=("rate",))
    crowd = lake.read(Series(Kind.LONG_SHORT, _HOUR, symbol), columns=("ratio",))
    found = {
        "index_close": _known_later(index, "close", frame_ns),
        "predicted_funding": _known_later(quotes, "rate", 0),
        "open_interest": _interest(lake, symbol),
        "long_short_ratio": _known_later(crowd, "ratio", NS_PER_HOUR),
    }
    if frame == _HOUR:
        taker = lake.read(Series(Kind.TAKER_VOLUME, _HOUR, symbol), columns=("buy",))
        found["taker_buy_volume"] = _known_later(taker, "buy", NS_PER_HOUR)
    return found | _books(lake, symbol)


def _interest(lake: Lake, symbol: str) -> Observations:
    """Return the hourly history; the snapshots where there is none (their unit may be another, so they are never mixed)."""
    history = lake.read(Series(Kind.INTEREST_HISTORY, _HOUR, symbol), columns=("open_interest",))
    if history["ts"].size:
        return _known_later(history, "open_interest", NS_PER_HOUR)
    return _known_later(lake.read(Series(Kind.OPEN_INTEREST, EVENT, symbol)), "open_interest", 0)


def _books(lake: Lake, symbol: str) -> dict[str, Observations]:
    rows = lake.read(Series(Kind.ORDER_FLOW, _MINUTE, symbol), columns=_FLOW)
    whole = rows["is_whole"] > 0.0
    kept = {name: values[whole] for name, values in rows.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        kept["spread"] = kept["spread_bps"] * _BPS
        kept["depth"] = np.where(kept["depth_quote"] > 0.0, np.log10(kept["depth_quote"]), np.nan)
        bid, ask = kept["bid_slope"], kept["ask_slope"]
        both = (bid > 0.0) & (ask > 0.0)
        kept["slope"] = np.where(both, np.log10(0.5 * (bid + ask)), np.nan)
        kept["slope_skew"] = np.where(both, np.log(bid / ask), np.nan)
        volume = kept["buy"] + kept["sell"]
        for name in ("effective", "realised"):
            kept[name] = _hour_mean(kept["ts"], kept[f"{name}_bps"] * _BPS, volume)
    after = NS_PER_MINUTE + PATIENCE_NS
    return {
        "book_imbalance": _known_later(kept, "imbalance", after),
        "book_spread": _known_later(kept, "spread", after),
        "book_depth": _known_later(kept, "depth", after),
        "book_slope": _known_later(kept, "slope", after),
        "book_slope_skew": _known_later(kept, "slope_skew", after),
        "effective_spread": _known_later(kept, "effective", after),
        "realised_spread": _known_later(kept, "realised", after),
    }


def _hour_mean(ts: IntArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the mean of the values of the last :data:`_HOUR_MINUTES` minutes, by weight, at each minute; NaN without any.

    Each mean is summed anew from its own minutes, so it does not depend on where the series begins.
    """
    if not ts.size:
        return np.empty(0)
    at = (ts - ts[0]) // NS_PER_MINUTE
    is_known = np.isfinite(values) & (weights > 0.0)
    grids = np.zeros((2, int(at[-1]) + _HOUR_MINUTES))
    grids[0, at[is_known] + _HOUR_MINUTES - 1] = values[is_known] * weights[is_known]
    grids[1, at[is_known] + _HOUR_MINUTES - 1] = weights[is_known]
    total, weight = sliding_window_view(grids, _HOUR_MINUTES, axis=1).sum(axis=2)[:, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        result: FloatArray = np.where(weight > 0.0, total / weight, np.nan)
    return result


def _known_later(rows: Columns, name: str, after_ns: int) -> Observations:
    keep = np.isfinite(rows[name])
    ts = rows["ts"][keep]
    return Observations(ts, ts + after_ns, rows[name][keep].astype(np.float64))
