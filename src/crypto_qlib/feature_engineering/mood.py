"""Sentiment and on-chain activity beside the news, each from the time of its publication, with its age as a feature."""

from __future__ import annotations

from typing import Final

from crypto_qlib.feature_engineering import flow_ops as f
from crypto_qlib.feature_engineering import wide_series as x
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.market_structure import bars_of_hours
from crypto_qlib.feature_engineering.rules import FeatureRule

SENTIMENT: Final = "sentiment"
ON_CHAIN: Final = "on_chain"


def sentiment_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return fear & greed and attention for bars of ``frame_ns``."""
    week, month = (bars_of_hours(h, frame_ns) for h in (168, 720))
    fear, views = "fear_greed", "pageviews"
    return (
        FeatureRule("FEAR_GREED", o.VALUE, "index / 100", "0..1", x.VALUE_OF[fear], needs=fear, scale=0.01),
        FeatureRule(
            "FEAR_GREED_7D",
            f.DIFFERENCE,
            "change of index / 100 over 7 days",
            "0..1",
            x.VALUE_OF[fear],
            window=week,
            needs=fear,
            scale=0.01,
        ),
        FeatureRule("FEAR_GREED_Z", o.Z_SCORE, "z-score over 30 days", "sigmas", x.VALUE_OF[fear], window=month, needs=fear),
        FeatureRule("FEAR_GREED_AGE", o.VALUE, "hours since it was published", "hours", x.AGE_OF[fear], needs=fear),
        FeatureRule(
            "ATTENTION_Z",
            o.Z_SCORE,
            "z-score of log(1 + page views) over 30 days",
            "sigmas",
            x.LOG_PAGEVIEWS,
            window=month,
            needs=views,
        ),
        FeatureRule(
            "ATTENTION_7D",
            f.DIFFERENCE,
            "change of log(1 + page views) over 7 days",
            "log ratio",
            x.LOG_PAGEVIEWS,
            window=week,
            needs=views,
        ),
        FeatureRule(
            "RANK_ATTENTION_7D",
            f.DIFFERENCE,
            "change of log(1 + page views) over 7 days",
            series=x.LOG_PAGEVIEWS,
            window=week,
            needs=views,
            ranked=True,
        ),
        FeatureRule("ATTENTION_AGE", o.VALUE, "hours since the views were published", "hours", x.AGE_OF[views], needs=views),
    )


def on_chain_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return activity, valuation and whale holdings for bars of ``frame_ns``."""
    week, month = (bars_of_hours(h, frame_ns) for h in (168, 720))
    active, transactions = "active_addresses", "tx_count"
    v = x.VALUE_OF
    return (
        FeatureRule(
            "ACTIVE_7D",
            f.LOG_CHANGE,
            "log change of active addresses over 7 days",
            "log ratio",
            v[active],
            window=week,
            needs=active,
        ),
        FeatureRule(
            "ACTIVE_Z", o.Z_SCORE, "z-score of active addresses over 30 days", "sigmas", v[active], window=month, needs=active
        ),
        FeatureRule(
            "TRANSACTIONS_7D",
            f.LOG_CHANGE,
            "log change of transactions over 7 days",
            "log ratio",
            v[transactions],
            window=week,
            needs=transactions,
        ),
        FeatureRule("MVRV", o.VALUE, "market cap / realised cap", "ratio", v["mvrv"], needs="mvrv"),
        FeatureRule("NVT", f.LOG_VALUE, "log(market cap / adjusted transfer value)", "log ratio", v["nvt"], needs="nvt"),
        FeatureRule(
            "WHALE_SHARE",
            o.VALUE,
            "coins on addresses of 1 million USD or more / supply",
            "share",
            x.WHALE_SHARE,
            needs="whale_supply",
        ),
        FeatureRule(
            "WHALE_SHARE_7D", f.DIFFERENCE, "its change over 7 days", "share", x.WHALE_SHARE, window=week, needs="whale_supply"
        ),
        FeatureRule(
            "NET_INFLOW_Z",
            o.Z_SCORE,
            "z-score of exchange inflow - outflow over 30 days",
            "sigmas",
            x.NET_INFLOW,
            window=month,
            needs="exchange_inflow_usd",
        ),
        FeatureRule(
            "ON_CHAIN_AGE", o.VALUE, "hours since active addresses were published", "hours", x.AGE_OF[active], needs=active
        ),
    )
