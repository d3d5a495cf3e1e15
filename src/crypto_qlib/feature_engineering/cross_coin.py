"""The cross-section beyond BTC: correlations and their spread, peers and sectors, ETH, lead and lag, dispersion, dominance."""

from __future__ import annotations

from typing import Final

from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import flow_ops as f
from crypto_qlib.feature_engineering import wide_series as x
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "cross_coin"


def cross_coin_rules(_frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return the cross-coin set; windows are bars."""
    w, rel = x.CORR_BARS, x.REL_BARS

    def value(name: str, series: int, formula: str, unit: str, reach: int) -> FeatureRule:
        return FeatureRule(name, o.VALUE, formula, unit, series, reach=reach)

    rules = [
        value("MEAN_CORR168", x.MEAN_CORR, f"mean over other coins of corr(r, r_other) over {w}", "correlation", w),
        value("CORR_SPREAD168", x.CORR_SPREAD, f"std over other coins of corr(r, r_other) over {w}", "correlation", w),
        value("MARKET_CORR168", x.MARKET_CORR, f"mean over all pairs of corr over {w}", "correlation", w),
        value("MARKET_CORR_SPREAD168", x.MARKET_CORR_SPREAD, f"std over all pairs of corr over {w}", "correlation", w),
        value("PEER_REL24", x.PEER_REL, f"sum(r, {rel}) - mean of peers' weighted by max(corr, 0)^2", "log return", w),
        value("SECTOR_REL24", x.SECTOR_REL, f"sum(r, {rel}) - mean of the sector's other coins", "log return", rel),
        value("DISPERSION24", x.DISPERSION, f"std over coins of sum(r, {rel})", "log return", rel),
        value("BTC_TURNOVER_SHARE", x.BTC_SHARE, f"BTC's share of the universe's turnover over {rel}", "share", rel),
        FeatureRule("RANK_PEER_REL24", o.VALUE, "PEER_REL24", series=x.PEER_REL, reach=w, ranked=True),
        FeatureRule("ETH_RET24", o.SUM, "sum(r_eth, 24)", "log return", x.ETH_RETURN, window=24),
        FeatureRule("ETH_BTC24", o.EXCESS_SUM, "sum(r_eth, 24) - sum(r_btc, 24)", "log return", x.ETH_RETURN, b.BTC_RETURN, 24),
        FeatureRule(
            "ETH_BTC_CORR168", o.CORRELATION, "corr(r_eth, r_btc) over 168", "correlation", x.ETH_RETURN, b.BTC_RETURN, 168
        ),
        FeatureRule("CORR_ETH168", o.CORRELATION, "corr(r, r_eth) over 168", "correlation", b.RETURN, x.ETH_RETURN, 168),
        FeatureRule("BETA_MARKET168", o.BETA, "cov(r, mean r) / var(mean r) over 168", "-", b.RETURN, b.MARKET_RETURN, 168),
        *(
            FeatureRule(
                f"BTC_LEADS{lag}",
                o.CORRELATION,
                f"corr(r[t], r_btc[t-{lag}]) over 168",
                "correlation",
                b.RETURN,
                b.BTC_RETURN,
                168,
                lag,
                reach=lag,
            )
            for lag in (1, 2, 3)
        ),
        FeatureRule(
            "LEADS_BTC1",
            o.CORRELATION,
            "corr(r_btc[t], r[t-1]) over 168",
            "correlation",
            b.BTC_RETURN,
            b.RETURN,
            168,
            1,
            reach=1,
        ),
        FeatureRule(
            "BTC_DOMINANCE",
            o.VALUE,
            "BTC's share of the total market cap",
            "share",
            x.VALUE_OF["btc_dominance"],
            needs="btc_dominance",
        ),
        FeatureRule(
            "BTC_DOMINANCE_168",
            f.DIFFERENCE,
            "change of BTC's share over 168",
            "share",
            x.VALUE_OF["btc_dominance"],
            window=168,
            needs="btc_dominance",
        ),
        FeatureRule(
            "TOTAL_CAP_168",
            f.LOG_CHANGE,
            "log change of the total market cap over 168",
            "log ratio",
            x.VALUE_OF["total_market_cap"],
            window=168,
            needs="total_market_cap",
        ),
        *(
            FeatureRule(
                f"RANK_REL_BTC{n}",
                o.EXCESS_SUM,
                f"sum(r, {n}) - sum(r_btc, {n})",
                series=b.RETURN,
                other=b.BTC_RETURN,
                window=n,
                ranked=True,
            )
            for n in (24, 168)
        ),
        FeatureRule(
            "RANK_BETA168",
            o.BETA,
            "cov(r, r_btc) / var(r_btc) over 168",
            series=b.RETURN,
            other=b.BTC_RETURN,
            window=168,
            ranked=True,
        ),
    ]
    return tuple(rules)
