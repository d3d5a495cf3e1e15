"""Technical features of one coin: trend, momentum, bands, volatility, range position, volume.

Definitions are finite-window (see :mod:`window_ops`). Wilder's RSI and ATR and the EMAs of MACD remember 250 bars, which
differs from TA-Lib's endless recursion by less than 1e-7 relative and makes live rows equal batch rows bit for bit.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.rules import FeatureRule

GROUP: Final = "technical"


def technical_rules() -> tuple[FeatureRule, ...]:
    """Return the technical set; every window is in bars."""
    return (*_trend(), *_bands_and_ranges(), *_volatility(), *_volume())


def _trend() -> list[FeatureRule]:
    rules = [
        FeatureRule(f"MOM{w}", o.CHANGE, f"close[t] / close[t-{w}] - 1", series=b.CLOSE, window=w)
        for w in (1, 2, 3, 6, 12, 24, 48, 72, 168)
    ]
    rules += [
        FeatureRule(f"MA{w}", o.MEAN_TO_CLOSE, f"mean(close, {w}) / close - 1", series=b.CLOSE, window=w)
        for w in (6, 12, 24, 72, 168)
    ]
    rules += [FeatureRule(f"EMA{w}", o.EMA_TO_CLOSE, f"ema(close, {w}) / close - 1", window=w) for w in (12, 26)]
    rules += [
        FeatureRule("MACD", o.MACD_LINE, "(ema(close, 12) - ema(close, 26)) / close"),
        FeatureRule("MACD_HIST", o.MACD_HISTOGRAM, "(macd - ema(macd, 9)) / close", window=9),
    ]
    rules += [FeatureRule(f"RSI{n}", o.RSI, f"Wilder RSI of close over {n}", "0..100", window=n) for n in (6, 14)]
    rules += [
        FeatureRule(f"SLOPE{w}", o.SLOPE, f"least-squares slope of log(close) over {w}", "log return per bar",
                    series=b.LOG_CLOSE, window=w)
        for w in (24, 72)
    ]  # fmt: skip
    rules += [
        FeatureRule(f"EFFICIENCY{w}", o.EFFICIENCY, f"sum(r, {w}) / sum(|r|, {w})", series=b.RETURN, window=w) for w in (24, 72)
    ]
    rules.append(
        FeatureRule("AUTOCORR72", o.AUTOCORRELATION, "corr(r[t], r[t-1]) over 72", "correlation", b.RETURN, b.RETURN, 72, 1)
    )
    return rules


def _bands_and_ranges() -> list[FeatureRule]:
    rules: list[FeatureRule] = []
    for w in (20, 72):
        rules += [
            FeatureRule(f"BB_POS{w}", o.BAND_POSITION, f"(close - mean) / (2 std) over {w}", "band half-widths", window=w),
            FeatureRule(f"BB_WIDTH{w}", o.BAND_WIDTH, f"4 std / mean of close over {w}", window=w),
        ]
    rules += [
        FeatureRule(f"CHANNEL{w}", o.CHANNEL_POSITION, f"(close - min low) / (max high - min low) over {w}", window=w)
        for w in (14, 24, 72, 168)
    ]
    for w in (24, 168):
        rules += [
            FeatureRule(f"TO_HIGH{w}", o.HIGH_TO_CLOSE, f"max(high, {w}) / close - 1", window=w),
            FeatureRule(f"TO_LOW{w}", o.LOW_TO_CLOSE, f"min(low, {w}) / close - 1", window=w),
        ]
    rules += [
        FeatureRule("BODY", o.BODY, "close / open - 1"),
        FeatureRule("UPPER_SHADOW", o.UPPER_SHADOW, "(high - max(open, close)) / open"),
        FeatureRule("LOWER_SHADOW", o.LOWER_SHADOW, "(min(open, close) - low) / open"),
        FeatureRule("CCI20", o.COMMODITY_CHANNEL, "(TP - mean TP) / (0.015 mean|TP - mean TP|) over 20", "index", window=20),
    ]
    return rules


def _volatility() -> list[FeatureRule]:
    return [
        FeatureRule("ATR14", o.ATR, "Wilder mean of true range over 14 / close", window=14),
        *(
            FeatureRule(f"TR{w}", o.MEAN_OVER_CLOSE, f"mean(true range, {w}) / close", series=b.TRUE_RANGE, window=w)
            for w in (24, 168)
        ),
        *(
            FeatureRule(f"VOL{w}", o.ROOT_MEAN_SQUARE, f"sqrt(mean(r^2, {w}))", "per bar", b.RETURN, window=w)
            for w in (6, 12, 24, 72, 168)
        ),
        FeatureRule("VOL_RATIO", o.RMS_RATIO, "vol24 / vol168", "ratio", b.RETURN, window=24, second=168),
        FeatureRule("PARKINSON24", o.PARKINSON, "sqrt(mean(log(high / low)^2, 24) / (4 log 2))", "per bar", window=24),
        FeatureRule("DOWN_SHARE72", o.DOWN_SHARE, "sum(r^2 where r < 0) / sum(r^2) over 72", series=b.RETURN, window=72),
        FeatureRule("SKEW168", o.SKEWNESS, "skewness of r over 168", "-", b.RETURN, window=168),
        FeatureRule("KURT168", o.KURTOSIS, "excess kurtosis of r over 168", "-", b.RETURN, window=168),
        FeatureRule("MAX_ABS24", o.MAX_ABS, "max(|r|, 24)", series=b.RETURN, window=24),
    ]


def _volume() -> list[FeatureRule]:
    rules = [
        FeatureRule(f"VOLUME_Z{w}", o.Z_SCORE, f"z-score of log(1 + quote volume) over {w}", "sigmas", b.LOG_VOLUME, window=w)
        for w in (24, 168)
    ]
    rules += [
        FeatureRule(f"VWAP_DIST{w}", o.VWAP_DISTANCE, f"close / (sum quote volume / sum volume over {w}) - 1", window=w)
        for w in (1, 24, 168)
    ]
    rules += [
        FeatureRule("MFI24", o.MONEY_FLOW, "money flow index over 24", "0..100", window=24),
        FeatureRule(
            "PV_CORR72", o.CORRELATION, "corr(r, log(1 + quote volume)) over 72", "correlation", b.RETURN, b.LOG_VOLUME, 72
        ),
        FeatureRule("ILLIQ72", o.LOG_ILLIQUIDITY, "log10(mean(|r| / quote volume in millions, 72))", "log10", window=72),
    ]
    return rules
