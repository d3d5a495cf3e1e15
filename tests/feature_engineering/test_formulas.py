"""Every operator against an independent computation: TA-Lib, pandas or plain numpy on a whole series."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import talib

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.feature_engineering.feature_generator import build_features, feature_catalogue
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import changed, noise_panel

N_BARS = 700
SETS = FeatureSettings(sets=("technical", "btc_relative", "funding"))
PANEL = noise_panel(N_BARS, 5, seed=21)
FRAME = build_features(PANEL, SETS)
SYMBOL = 3  # C01USDT
BTC = 1


def feature(name: str, symbol: int = SYMBOL) -> np.ndarray:
    return FRAME.to_grid(FRAME.values[:, FRAME.names.index(name)].astype(np.float64))[:, symbol]


o, h, lo, c, v, q = (getattr(PANEL, n)[:, SYMBOL].copy() for n in ("open", "high", "low", "close", "volume", "quote_volume"))
close, volume, quote = pd.Series(c), pd.Series(v), pd.Series(q)
r = np.log(close).diff()
rb = pd.Series(np.log(PANEL.close[:, BTC])).diff()
every = pd.DataFrame(np.log(PANEL.close)).diff()
funding = pd.Series(PANEL.funding_rate[:, SYMBOL])
basis = pd.Series(PANEL.mark_close[:, SYMBOL] / c - 1.0)
tr = pd.concat([pd.Series(h - lo), (pd.Series(h) - close.shift()).abs(), (pd.Series(lo) - close.shift()).abs()], axis=1).max(
    axis=1
)
typical = pd.Series((h + lo + c) / 3.0)
up, mid, down = talib.BBANDS(c, 20, 2.0, 2.0)
macd, _, hist = talib.MACD(c, 12, 26, 9)


def rms(x: pd.Series, w: int) -> pd.Series:
    return (x**2).rolling(w).mean() ** 0.5


def z_score(x: pd.Series, w: int) -> pd.Series:
    return (x - x.rolling(w).mean()) / x.rolling(w).std(ddof=0)


def beta(w: int) -> pd.Series:
    return r.rolling(w).cov(rb, ddof=0) / rb.rolling(w).var(ddof=0)


def residual(w: int) -> list[float]:
    b = beta(168)
    return [float((r[t - w + 1 : t + 1] - b[t] * rb[t - w + 1 : t + 1]).sum()) if t > 170 else np.nan for t in range(N_BARS)]


def age() -> np.ndarray:
    hours = PANEL.ts_open // NS_PER_HOUR
    return hours % 8 + 1.0


def event_z() -> list[float]:
    values = [np.nan] * 24
    for t in range(24, N_BARS):
        rates = funding[max(0, t - 167) : t + 1].dropna().to_numpy()
        values.append((rates[-1] - rates.mean()) / rates.std())
    return values


ROWS: list[tuple[str, Callable[[], object]]] = [
    ("MOM24", lambda: close.pct_change(24)),
    ("MA72", lambda: talib.SMA(c, 72) / c - 1),
    ("EMA12", lambda: talib.EMA(c, 12) / c - 1),
    ("EMA26", lambda: talib.EMA(c, 26) / c - 1),
    ("MACD", lambda: macd / c),
    ("MACD_HIST", lambda: hist / c),
    ("RSI6", lambda: talib.RSI(c, 6)),
    ("RSI14", lambda: talib.RSI(c, 14)),
    ("SLOPE24", lambda: talib.LINEARREG_SLOPE(np.log(c), 24)),
    ("EFFICIENCY24", lambda: r.rolling(24).sum() / r.abs().rolling(24).sum()),
    ("AUTOCORR72", lambda: r.rolling(72).corr(r.shift())),
    ("BB_POS20", lambda: (c - mid) / (up - mid)),
    ("BB_WIDTH20", lambda: (up - down) / mid),
    ("CHANNEL24", lambda: (c - talib.MIN(lo, 24)) / (talib.MAX(h, 24) - talib.MIN(lo, 24))),
    ("TO_HIGH168", lambda: talib.MAX(h, 168) / c - 1),
    ("TO_LOW24", lambda: talib.MIN(lo, 24) / c - 1),
    ("BODY", lambda: c / o - 1),
    ("UPPER_SHADOW", lambda: (h - np.maximum(o, c)) / o),
    ("LOWER_SHADOW", lambda: (np.minimum(o, c) - lo) / o),
    ("CCI20", lambda: talib.CCI(h, lo, c, 20)),
    ("ATR14", lambda: talib.ATR(h, lo, c, 14) / c),
    ("TR24", lambda: tr.rolling(24).mean() / c),
    ("VOL72", lambda: rms(r, 72)),
    ("VOL_RATIO", lambda: rms(r, 24) / rms(r, 168)),
    ("PARKINSON24", lambda: ((pd.Series(np.log(h / lo)) ** 2).rolling(24).mean() / (4 * np.log(2))) ** 0.5),
    ("DOWN_SHARE72", lambda: (r.clip(upper=0) ** 2).rolling(72).sum() / (r**2).rolling(72).sum()),
    ("SKEW168", lambda: r.rolling(168).apply(lambda x: ((x - x.mean()) ** 3).mean() / x.std(ddof=0) ** 3)),
    ("KURT168", lambda: r.rolling(168).apply(lambda x: ((x - x.mean()) ** 4).mean() / x.std(ddof=0) ** 4 - 3)),
    ("MAX_ABS24", lambda: r.abs().rolling(24).max()),
    ("VOLUME_Z24", lambda: z_score(np.log1p(quote), 24)),
    ("VWAP_DIST24", lambda: close / (quote.rolling(24).sum() / volume.rolling(24).sum()) - 1),
    ("MFI24", lambda: talib.MFI(h, lo, c, v, 24)),
    ("PV_CORR72", lambda: r.rolling(72).corr(np.log1p(quote))),
    ("ILLIQ72", lambda: np.log10((r.abs() / (quote * 1e-6)).rolling(72).mean())),
    ("BTC_RET24", lambda: rb.rolling(24).sum()),
    ("BTC_VOL24", lambda: rms(rb, 24)),
    ("MARKET_RET24", lambda: every.mean(axis=1).rolling(24).sum()),
    ("BREADTH24", lambda: (every > 0).mean(axis=1).where(every[0].notna()).rolling(24).mean()),
    ("REL_BTC24", lambda: r.rolling(24).sum() - rb.rolling(24).sum()),
    ("BETA72", lambda: beta(72)),
    ("CORR_BTC168", lambda: r.rolling(168).corr(rb)),
    ("RESID24", lambda: residual(24)),
    ("RANK_RET24", lambda: (pd.DataFrame(PANEL.close).pct_change(24).rank(axis=1)[SYMBOL] - 0.5) / 5 - 0.5),
    ("RANK_TURNOVER24", lambda: (pd.DataFrame(PANEL.quote_volume).rolling(24).mean().rank(axis=1)[SYMBOL] - 0.5) / 5 - 0.5),
    ("FUNDING", funding.ffill),
    ("FUNDING_24H", lambda: funding.rolling(24, min_periods=1).sum()),
    ("FUNDING_72H", lambda: funding.rolling(72, min_periods=1).sum()),
    ("FUNDING_Z", event_z),
    ("FUNDING_AGE", age),
    ("RANK_FUNDING_24H", lambda: (pd.DataFrame(PANEL.funding_rate).rolling(24, min_periods=1).sum().rank(axis=1)[SYMBOL] - 0.5)
     / 5 - 0.5),
    ("BASIS", lambda: basis),
    ("BASIS_24H", lambda: basis.rolling(24).mean()),
    ("TURNOVER_24H", lambda: np.log10(quote.rolling(24).mean())),
    ("TURNOVER_CHANGE", lambda: np.log(quote.rolling(24).mean() / quote.rolling(168).mean())),
]  # fmt: skip


@pytest.mark.parametrize(("name", "oracle"), ROWS, ids=[row[0] for row in ROWS])
def test_equals_an_independent_computation(name: str, oracle: Callable[[], object]) -> None:
    expected = np.asarray(oracle(), dtype=np.float64)
    tail = slice(350, None)  # past TA-Lib's own seeding (below 1e-7 of the weight is left)
    assert np.isfinite(expected[tail]).all()
    np.testing.assert_allclose(feature(name)[tail], expected[tail], rtol=2e-5, atol=2e-7)


def test_every_operator_is_checked_above() -> None:
    def stem(name: str) -> str:
        return name.rstrip("0123456789")

    checked = {stem(name) for name, _ in ROWS}
    left = {stem(s.name) for s in feature_catalogue(SETS)} - checked
    same_operator = {"RANK_VOL": "RANK_RET", "RESID_VOL": "RESID"}
    assert left == set(same_operator)


def test_residual_volatility_of_btc_itself_is_zero() -> None:
    assert np.abs(feature("RESID_VOL168", BTC)[350:]).max() < 1e-9
    assert np.allclose(feature("BETA72", BTC)[350:], 1.0)


def test_funding_of_a_bar_counts_from_that_bar_on_and_not_before() -> None:
    rate = np.full(PANEL.close.shape, np.nan)
    rate[100] = 0.01
    frame = build_features(changed(PANEL, funding_rate=rate), FeatureSettings(sets=("funding",)))
    grid = frame.to_grid(frame.values[:, frame.names.index("FUNDING")].astype(float))
    assert np.isnan(grid[99]).all()
    assert np.allclose(grid[100:172], 0.01)
    assert np.isnan(grid[172]).all(), "after 72 hours without a settlement the rate is unknown"


def test_a_window_with_a_gap_uses_what_is_there_down_to_three_quarters() -> None:
    missing = PANEL.close.copy()
    missing[300:306] = np.nan
    frame = build_features(changed(PANEL, close=missing), FeatureSettings(sets=("technical",)))
    ma = frame.to_grid(frame.values[:, frame.names.index("MA24")].astype(float))[:, SYMBOL]
    assert np.isnan(ma[300:306]).all(), "no row without a close"
    kept = np.r_[missing[283:300, SYMBOL], missing[306, SYMBOL]]
    assert ma[306] == pytest.approx(kept.mean() / missing[306, SYMBOL] - 1.0, rel=1e-6)
    missing[306] = np.nan
    frame = build_features(changed(PANEL, close=missing), FeatureSettings(sets=("technical",)))
    ma = frame.to_grid(frame.values[:, frame.names.index("MA24")].astype(float))[:, SYMBOL]
    assert np.isnan(ma[307]), "17 of 24 bars are fewer than three quarters"
