"""Volume and microstructure: who trades, at what spread and impact, from bars, taker volume and recorded order books."""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import flow_ops as f
from crypto_qlib.feature_engineering import wide_series as x
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "microstructure"


def volume_flow_rules(frame_ns: int) -> tuple[FeatureRule, ...]:
    """Return the volume and microstructure set for bars of ``frame_ns``; windows are bars."""
    return (*_bar_rules(max(1, NS_PER_DAY // frame_ns)), *_taker_rules(), *_book_rules())


def _bar_rules(day: int) -> tuple[FeatureRule, ...]:
    """Return what bars alone tell of volume, spread and impact; a day is ``day`` bars."""
    return (
        *(FeatureRule(f"VWAP_DIST{w}", o.VWAP_DISTANCE, f"close / (sum quote volume / sum volume over {w}) - 1", window=w)
          for w in (6, 72)),
        *(FeatureRule(f"BULK_DELTA{w}", f.BULK_DELTA, f"sum volume (2 Phi(r / std) - 1) / sum volume over {w}", "share",
                      window=w) for w in (24, 72)),
        *(FeatureRule(f"CORWIN_SCHULTZ{w}", f.CORWIN_SCHULTZ, f"mean high-low spread over {w}, negative as zero", window=w)
          for w in (24, 168)),
        FeatureRule("ABDI_RANALDO72", f.ABDI_RANALDO, "close-high-low spread over 72", window=72),
        FeatureRule("ROLL72", f.ROLL_SPREAD, "2 sqrt(max(-cov(r[t], r[t-1]), 0)) over 72", window=72, reach=1),
        FeatureRule("AMIHUD24", o.LOG_ILLIQUIDITY, "log10(mean(|r| / quote volume in millions, 24))", "log10", window=24),
        FeatureRule("KYLE72", f.KYLE, "log10(mean(|r| q) / mean(q^2)), q turnover in millions, over 72", "log10", window=72),
        FeatureRule("HOUR_TURNOVER", f.HOUR_RATIO, "log(turnover / its mean at this hour on the past 14 days)", "log ratio",
                    window=14 * day, second=day),
        FeatureRule("CONCENTRATION24", f.CONCENTRATION, "n sum(q^2) / sum(q)^2 of turnover over 24", "1..24", window=24),
        FeatureRule("VOLUME_TIME24", f.VOLUME_TIME, "bars back to trade 24 mean bars of turnover (mean of 168), / 24", "ratio",
                    window=24, second=168),
    )  # fmt: skip


def _taker_rules() -> tuple[FeatureRule, ...]:
    """Return what is told by who took: takers' buys against their sells."""
    needs = "taker_buy_volume"
    return (
        *(FeatureRule(f"TAKER_DELTA{w}", f.SUM_RATIO, f"sum(2 taker buys - volume) / sum(volume) over {w}", "share",
                      x.TAKER_DELTA, b.VOLUME, w, needs=needs) for w in (1, 6, 24)),
        FeatureRule("TAKER_Z72", o.Z_SCORE, "z-score of 2 taker buys - volume over 72", "sigmas", x.TAKER_DELTA, window=72,
                    needs=needs),
        FeatureRule("TAKER_PRICE_CORR72", o.CORRELATION, "corr(r, 2 taker buys - volume) over 72", "correlation", b.RETURN,
                    x.TAKER_DELTA, 72, needs=needs),
    )  # fmt: skip


def _book_rules() -> tuple[FeatureRule, ...]:
    """Return what recorded order books and trades tell."""
    v = x.VALUE_OF
    realised = "mean by volume of 2 side (price - mid 5 s later) / mid over the trades of"
    return (
        FeatureRule("BOOK_IMBALANCE", o.VALUE, "(bid - ask) / (bid + ask) of depth near the mid", "share",
                    v["book_imbalance"], needs="book_imbalance"),
        FeatureRule("BOOK_IMBALANCE24", o.MEAN, "mean book imbalance over 24", "share", v["book_imbalance"], window=24,
                    needs="book_imbalance"),
        FeatureRule("BOOK_SPREAD", o.VALUE, "(best ask - best bid) / mid", series=v["book_spread"], needs="book_spread"),
        FeatureRule("BOOK_DEPTH", o.VALUE, "log10 USDT of the best five levels of both sides", "log10", v["book_depth"],
                    needs="book_depth"),
        FeatureRule("BOOK_SLOPE", o.VALUE, "log10 USDT a basis point of distance from the mid, five levels, mean of both sides",
                    "log10", v["book_slope"], needs="book_slope"),
        FeatureRule("BOOK_SLOPE_SKEW", o.VALUE, "log(slope of the bids / slope of the asks)", "log ratio",
                    v["book_slope_skew"], needs="book_slope_skew"),
        FeatureRule("EFFECTIVE_SPREAD", o.VALUE, "mean by volume of 2 |price - mid| / mid over the trades of an hour",
                    series=v["effective_spread"], needs="effective_spread"),
        FeatureRule("REALISED_SPREAD", o.VALUE, f"{realised} an hour", series=v["realised_spread"], window=1,
                    needs="realised_spread"),
        FeatureRule("REALISED_SPREAD24", o.MEAN, f"{realised} 24 bars", series=v["realised_spread"], window=24,
                    needs="realised_spread"),
        FeatureRule("BOOK_AGE", o.VALUE, "hours since the snapshot was known", "hours", x.AGE_OF["book_imbalance"],
                    needs="book_imbalance"),
    )  # fmt: skip
