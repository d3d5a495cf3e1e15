"""Derivatives: predicted and cumulated funding, open interest against price, basis to the index, crowding, forced trades."""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import flow_ops as f
from crypto_qlib.feature_engineering import wide_series as x
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering import window_stats as st
from crypto_qlib.feature_engineering.market_structure import bars_of_hours
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "derivatives"


def derivatives_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return the derivatives set for bars of ``frame_ns``."""
    return (*_funding_rules(frame_ns), *_interest_rules(frame_ns), *_crowd_rules(frame_ns))


def _funding_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return what settled and announced funding tells."""
    day, week, month = (bars_of_hours(h, frame_ns) for h in (24, 168, 720))
    return (
        FeatureRule("FUNDING_168H", st.EVENT_SUM, "sum of rates settled in 168 h", series=b.FUNDING, window=week,
                    needs="funding"),
        FeatureRule("FUNDING_CUM_Z", f.CUMULATED_Z, "z-score of rates settled in 24 h against the days of 720 h", "sigmas",
                    b.FUNDING, window=day, second=month, needs="funding"),
        FeatureRule("FUNDING_TO_SETTLE", f.TO_SETTLEMENT, "hours to the next settlement, by the interval of the last two",
                    "hours", window=bars_of_hours(48, frame_ns), needs="funding", scale=frame_ns / NS_PER_HOUR),
        FeatureRule("FUNDING_PREDICTED", o.VALUE, "rate announced for the next settlement",
                    series=x.VALUE_OF["predicted_funding"], needs="predicted_funding"),
    )  # fmt: skip


def _interest_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return open interest, and its change against the price's."""
    day, month = bars_of_hours(24, frame_ns), bars_of_hours(720, frame_ns)
    oi, needs = x.VALUE_OF["open_interest"], "open_interest"
    return (
        *(FeatureRule(f"OI_CHANGE_{h}H", f.LOG_CHANGE, f"log(OI[t] / OI[t - {h} h])", "log ratio", oi,
                      window=bars_of_hours(h, frame_ns), needs=needs) for h in (24, 72, 168)),
        FeatureRule("OI_Z", o.Z_SCORE, "z-score of open interest over 720 h", "sigmas", oi, window=month, needs=needs),
        *(FeatureRule(f"OI_PRICE_GAP_{h}H", f.OI_PRICE_GAP, f"log change of OI - log change of close over {h} h", "log ratio",
                      oi, window=bars_of_hours(h, frame_ns), needs=needs) for h in (24, 168)),
        FeatureRule("OI_TURNOVER", f.TURNOVER_TO_OI, "volume of 24 h / open interest", "ratio", oi, window=day, needs=needs),
        FeatureRule("OI_AGE", o.VALUE, "hours since open interest was known", "hours", x.AGE_OF["open_interest"], needs=needs),
        FeatureRule("RANK_OI_CHANGE", f.LOG_CHANGE, "log(OI[t] / OI[t - 24 h])", series=oi, window=day, needs=needs,
                    ranked=True),
    )  # fmt: skip


def _crowd_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return basis to the index and to the mark, the split of accounts, and what forced trades leave behind."""
    day, week = bars_of_hours(24, frame_ns), bars_of_hours(168, frame_ns)
    ratio, needs = x.VALUE_OF["long_short_ratio"], "long_short_ratio"
    return (
        FeatureRule("BASIS_INDEX", o.VALUE, "close / index - 1", series=x.INDEX_BASIS, needs="index_close"),
        FeatureRule("BASIS_INDEX_24H", o.MEAN, "mean(close / index - 1) over 24 h", series=x.INDEX_BASIS, window=day,
                    needs="index_close"),
        FeatureRule("BASIS_Z", o.Z_SCORE, "z-score of mark / close - 1 over 168 h", "sigmas", b.BASIS, window=week,
                    needs="mark"),
        FeatureRule("LONG_SHORT", f.LOG_VALUE, "log(accounts long / accounts short)", "log ratio", ratio, needs=needs),
        FeatureRule("LONG_SHORT_Z", o.Z_SCORE, "z-score of the long/short ratio over 168 h", "sigmas", ratio, window=week,
                    needs=needs),
        *(FeatureRule(f"LIQUIDATION_{h}H", f.LIQUIDATION_PRESSURE,
                      f"sum(max(q / mean q - 1, 0) (lower - upper shadow) / close) over {h} h", "fraction",
                      window=bars_of_hours(h, frame_ns)) for h in (24, 72)),
    )  # fmt: skip
