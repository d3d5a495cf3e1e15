"""BTC leadership and the cross-section: what the leader and the universe did, and where this coin stands among them.

The same rows are known at the same bar close for every coin. Ranks are over the symbols that traded in the bar.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "btc_relative"


def cross_asset_rules() -> tuple[FeatureRule, ...]:
    """Return the BTC-relative and cross-sectional set; ``r`` is the log return, windows in bars."""
    return (*_leader(), *_relative(), *_ranks())


def _leader() -> list[FeatureRule]:
    rules = [
        FeatureRule(f"BTC_RET{w}", o.SUM, f"sum(r_btc, {w})", "log return", b.BTC_RETURN, window=w)
        for w in (1, 3, 6, 24, 72, 168)
    ]
    rules += [
        FeatureRule(f"BTC_VOL{w}", o.ROOT_MEAN_SQUARE, f"sqrt(mean(r_btc^2, {w}))", "per bar", b.BTC_RETURN, window=w)
        for w in (24, 168)
    ]
    rules += [
        FeatureRule(f"MARKET_RET{w}", o.SUM, f"sum(mean over symbols of r, {w})", "log return", b.MARKET_RETURN, window=w)
        for w in (1, 24)
    ]
    rules += [
        FeatureRule(f"BREADTH{w}", o.MEAN, f"mean(share of symbols with r > 0, {w})", series=b.BREADTH, window=w)
        for w in (1, 24)
    ]
    return rules


def _relative() -> list[FeatureRule]:
    rules = [
        FeatureRule(f"REL_BTC{w}", o.EXCESS_SUM, f"sum(r, {w}) - sum(r_btc, {w})", "log return", b.RETURN, b.BTC_RETURN, w)
        for w in (1, 6, 24, 72, 168)
    ]
    for w in (72, 168):
        rules += [
            FeatureRule(f"BETA{w}", o.BETA, f"cov(r, r_btc) / var(r_btc) over {w}", "-", b.RETURN, b.BTC_RETURN, w),
            FeatureRule(f"CORR_BTC{w}", o.CORRELATION, f"corr(r, r_btc) over {w}", "correlation", b.RETURN, b.BTC_RETURN, w),
        ]
    rules += [
        FeatureRule(f"RESID{w}", o.RESIDUAL_SUM, f"sum(r - beta168 r_btc, {w})", "log return", window=w, second=168)
        for w in (6, 24, 72)
    ]
    rules.append(
        FeatureRule("RESID_VOL168", o.RESIDUAL_VOL, "sqrt(mean((r - beta168 r_btc)^2, 168))", "per bar", window=168, second=168)
    )
    return rules


def _ranks() -> list[FeatureRule]:
    rules = [
        FeatureRule(f"RANK_RET{w}", o.CHANGE, f"close[t] / close[t-{w}] - 1", series=b.CLOSE, window=w, ranked=True)
        for w in (1, 6, 24, 72, 168)
    ]
    rules += [
        FeatureRule(f"RANK_VOL{w}", o.ROOT_MEAN_SQUARE, f"sqrt(mean(r^2, {w}))", series=b.RETURN, window=w, ranked=True)
        for w in (24, 168)
    ]
    rules.append(
        FeatureRule("RANK_TURNOVER24", o.MEAN, "mean(quote volume, 24)", series=b.QUOTE_VOLUME, window=24, ranked=True)
    )
    return rules
