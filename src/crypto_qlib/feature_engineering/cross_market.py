"""The NASDAQ beside the coins: QQQ's returns, volatility, gap, correlation with BTC, and where New York stands in its day.

A stock bar is known when its source published it, after its close; nights, weekends and holidays are bridged by the last value
until two hours into the next session. Half days and daylight saving are those of the exchange's calendar.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import flow_ops as f
from crypto_qlib.feature_engineering import wide_series as x
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering import window_stats as st
from crypto_qlib.feature_engineering.market_structure import bars_of_hours
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "cross_market"
_HOURS: Final = "qqq_1h_close"
_DAYS: Final = "qqq_1d_close"


def cross_market_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return the cross-market set for bars of ``frame_ns``."""
    day, month = (bars_of_hours(h, frame_ns) for h in (24, 720))
    rules = [
        FeatureRule(
            "QQQ_RET_1D", o.VALUE, "log return of QQQ's last session known", "log return", x.QQQ_RETURN_1D, needs=_DAYS
        ),
        FeatureRule("QQQ_RET_5D", o.VALUE, "log return of its last five sessions", "log return", x.QQQ_RETURN_5D, needs=_DAYS),
        FeatureRule(
            "QQQ_VOL_20D", o.VALUE, "sqrt(mean(r^2)) of its last 20 sessions", "per session", x.QQQ_VOL_20D, needs=_DAYS
        ),
        FeatureRule(
            "QQQ_GAP",
            o.VALUE,
            "log(open of the session / close of the one before)",
            "log return",
            x.QQQ_GAP,
            needs="qqq_1h_open",
        ),
        FeatureRule(
            "QQQ_RET_24H",
            st.EVENT_SUM,
            "sum of hourly QQQ returns that became known in 24 h",
            "log return",
            x.QQQ_STEP,
            window=day,
            needs=_HOURS,
            reach=1,
        ),
        FeatureRule(
            "QQQ_CORR_30D",
            f.EVENT_CORRELATION,
            "corr(r_btc, QQQ's hourly return) over bars of 30 days that have both",
            "correlation",
            b.BTC_RETURN,
            x.QQQ_STEP,
            month,
            needs=_HOURS,
            reach=1,
        ),
        FeatureRule(
            "QQQ_LEADS_30D",
            f.EVENT_CORRELATION,
            "corr(r_btc[t], QQQ's hourly return[t-1]) over 30 days",
            "correlation",
            b.BTC_RETURN,
            x.QQQ_STEP,
            month,
            1,
            needs=_HOURS,
            reach=2,
        ),
        FeatureRule(
            "BTC_LEADS_QQQ_30D",
            f.EVENT_CORRELATION,
            "corr(QQQ's hourly return[t], r_btc[t-1]) over 30 days",
            "correlation",
            x.QQQ_STEP,
            b.BTC_RETURN,
            month,
            1,
            needs=_HOURS,
            reach=2,
        ),
        FeatureRule("QQQ_AGE", o.VALUE, "hours since QQQ's last bar was known", "hours", x.AGE_OF[_HOURS], needs=_HOURS),
        FeatureRule("US_SESSION", o.VALUE, "1 while the New York session is open at the bar's close", "flag", x.US_SESSION),
        FeatureRule("US_EXTENDED", o.VALUE, "1 in pre- or after-market hours", "flag", x.US_EXTENDED),
        FeatureRule("US_HOURS_CLOSED", o.VALUE, "hours since the session closed, 0 while open", "hours", x.HOURS_SINCE_CLOSE),
    ]
    return tuple(rules)
