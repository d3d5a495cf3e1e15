"""Market structure: settled funding, basis of mark to last, turnover.

A funding rate settled at the open instant of bar ``t`` is public well before that bar's close, when the row becomes known.
Windows are given in hours and turned into bars of the frame.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering import window_stats as st
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "funding"


def bars_of_hours(hours: float, frame_ns: int) -> int:
    """Return how many bars ``hours`` span, at least one."""
    return max(1, round(hours * NS_PER_HOUR / frame_ns))


def market_structure_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return the funding, basis and turnover set for bars of ``frame_ns``."""
    day, three_days, week = (bars_of_hours(h, frame_ns) for h in (24, 72, 168))
    f = b.FUNDING
    return (
        FeatureRule("FUNDING", st.LAST_VALID, "last settled rate of the past 72 h", series=f, window=three_days,
                    needs="funding"),
        FeatureRule("FUNDING_24H", st.EVENT_SUM, "sum of rates settled in 24 h", series=f, window=day, needs="funding"),
        FeatureRule("FUNDING_72H", st.EVENT_SUM, "sum of rates settled in 72 h", series=f, window=three_days, needs="funding"),
        FeatureRule("FUNDING_Z", st.EVENT_Z, "(last - mean) / std of rates settled in 168 h", "sigmas", f, window=week,
                    needs="funding"),
        FeatureRule("FUNDING_AGE", st.BARS_SINCE, "hours from the last settlement to the bar's close", "hours", f,
                    window=three_days, needs="funding", scale=frame_ns / NS_PER_HOUR),
        FeatureRule("RANK_FUNDING_24H", st.EVENT_SUM, "sum of rates settled in 24 h", series=f, window=day, needs="funding",
                    ranked=True),
        FeatureRule("BASIS", o.VALUE, "mark_close / close - 1", series=b.BASIS, needs="mark"),
        FeatureRule("BASIS_24H", o.MEAN, "mean(mark_close / close - 1) over 24 h", series=b.BASIS, window=day, needs="mark"),
        FeatureRule("TURNOVER_24H", o.LOG_MEAN, "log10(mean quote volume a bar over 24 h)", "log10 USDT", b.QUOTE_VOLUME,
                    window=day),
        FeatureRule("TURNOVER_CHANGE", o.LOG_MEAN_RATIO, "log(mean quote volume 24 h / mean quote volume 168 h)", "log ratio",
                    b.QUOTE_VOLUME, window=day, second=week),
    )  # fmt: skip
