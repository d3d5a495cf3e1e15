"""Technical features of higher frames beside the base bars, each from the last higher bar that had closed.

Higher bars are aggregated from the base bars on the UTC grid (4 h from 00:00, days from 00:00). At base bar ``t`` the row of
the newest higher bar whose end is not later than the close of ``t`` is used: a 4 h bar 08:00-12:00 counts from the close of the
hour that ends at 12:00, never before. A higher bar with fewer than three quarters of its base bars is missing.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering import bar_series as b
from crypto_qlib.feature_engineering import window_ops as o
from crypto_qlib.feature_engineering.bar_series import N_SERIES, Cube, FeatureInputs, fill_symbol_series
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.rules import FeatureRule, pieces

GROUP: Final = "multi_frame"
FRAMES: Final = (("4H", 4 * NS_PER_HOUR, 14, 90), ("1D", NS_PER_DAY, 7, 45))
"""Name, length, bars of Wilder's averages, and their memory in bars (what is older weighs below 0.2 %)."""


def frame_rules(name: str, n: int, memory: int) -> tuple[FeatureRule, ...]:
    """Return the rules of one higher frame; windows are bars of that frame."""
    p = f"{name}_"
    return (
        *(FeatureRule(f"{p}MOM{w}", o.CHANGE, f"close[t] / close[t-{w}] - 1", series=b.CLOSE, window=w) for w in (1, 6, 20)),
        *(
            FeatureRule(f"{p}MA{w}", o.MEAN_TO_CLOSE, f"mean(close, {w}) / close - 1", series=b.CLOSE, window=w)
            for w in (6, 20)
        ),
        FeatureRule(f"{p}EMA12", o.EMA_TO_CLOSE, "ema(close, 12) / close - 1", window=12, second=memory),
        FeatureRule(f"{p}RSI{n}", o.RSI, f"Wilder RSI of close over {n}", "0..100", window=n, second=memory),
        FeatureRule(f"{p}ATR{n}", o.ATR, f"Wilder mean of true range over {n} / close", window=n, second=memory),
        FeatureRule(f"{p}BB_POS20", o.BAND_POSITION, "(close - mean) / (2 std) over 20", "band half-widths", window=20),
        FeatureRule(f"{p}CHANNEL20", o.CHANNEL_POSITION, "(close - min low) / (max high - min low) over 20", window=20),
        FeatureRule(f"{p}VOL20", o.ROOT_MEAN_SQUARE, "sqrt(mean(r^2, 20))", "per bar", b.RETURN, window=20),
        FeatureRule(
            f"{p}SLOPE20",
            o.SLOPE,
            "least-squares slope of log(close) over 20",
            "log return per bar",
            series=b.LOG_CLOSE,
            window=20,
        ),
        FeatureRule(f"{p}VOLUME_Z20", o.Z_SCORE, "z-score of log(1 + quote volume) over 20", "sigmas", b.LOG_VOLUME, window=20),
    )


def multi_frame_specs(frame_ns: int) -> tuple[FeatureSpec, ...]:
    """Return the catalogue entries; frames not above the base frame are left out."""
    specs = []
    for name, length_ns, n, memory in FRAMES:
        factor = length_ns // frame_ns
        for rule in frame_rules(name, n, memory) if factor > 1 else ():
            reach = (rule.lookback_bars + 1) * factor
            formula = f"{rule.formula}, bars of {name}"
            specs.append(FeatureSpec(rule.name, GROUP, formula, rule.unit, reach, "close of the last whole higher bar"))
    return tuple(specs)


@njit
def _aggregate(data: Cube, group: npt.NDArray[np.int64], factor: int, high: Cube) -> None:
    """Fill open, high, low, close, volume and turnover of the higher bars; NaN where fewer than 3/4 of the bars are there."""
    for s in range(data.shape[0]):
        count = np.zeros(high.shape[2])
        for t in range(data.shape[2]):
            g = group[t]
            close = data[s, b.CLOSE, t]
            if math.isnan(close):
                continue
            if count[g] == 0:
                high[s, b.OPEN, g] = data[s, b.OPEN, t]
                high[s, b.HIGH, g] = data[s, b.HIGH, t]
                high[s, b.LOW, g] = data[s, b.LOW, t]
                high[s, b.VOLUME, g] = 0.0
                high[s, b.QUOTE_VOLUME, g] = 0.0
            count[g] += 1
            high[s, b.HIGH, g] = max(high[s, b.HIGH, g], data[s, b.HIGH, t])
            high[s, b.LOW, g] = min(high[s, b.LOW, g], data[s, b.LOW, t])
            high[s, b.CLOSE, g] = close
            high[s, b.VOLUME, g] += data[s, b.VOLUME, t]
            high[s, b.QUOTE_VOLUME, g] += data[s, b.QUOTE_VOLUME, t]
        for g in range(high.shape[2]):
            if 4 * count[g] < 3 * factor:
                high[s, :, g] = math.nan


@njit
def _fill_frames(
    high: Cube,
    codes: npt.NDArray[np.int64],
    newest: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int, int],
) -> None:
    """Write the rules of symbols ``span[0]:span[1]`` from base bar ``span[2]`` on; one evaluation a higher bar."""
    values = np.empty(codes.shape[0])
    for s in range(span[0], span[1]):
        done = -2
        for t in range(span[2], newest.size):
            g = newest[t]
            if g != done:
                for j in range(codes.shape[0]):
                    values[j] = o.evaluate(high[s], g, codes[j]) if g >= 0 else math.nan
                done = g
            if row_of[s, t] >= 0:
                for j in range(codes.shape[0]):
                    out[row_of[s, t], columns[j]] = values[j]


def multi_frame_jobs(
    inputs: FeatureInputs, wanted: dict[str, int], out: Float32Array, n_jobs: int
) -> list[tuple[object, tuple[object, ...]]]:
    """Return pieces of work that write the wanted columns (name -> column) into ``out``."""
    jobs: list[tuple[object, tuple[object, ...]]] = []
    for name, length_ns, n, memory in FRAMES:
        factor = length_ns // inputs.frame_ns
        rules = [(r, wanted[r.name]) for r in frame_rules(name, n, memory) if r.name in wanted]
        if factor <= 1 or not rules:
            continue
        number = inputs.ts_open // length_ns
        group = number - number[0]
        high = np.full((inputs.data.shape[0], N_SERIES, int(group[-1]) + 1), np.nan)
        _aggregate(inputs.data, group, factor, high)
        for s in range(high.shape[0]):
            fill_symbol_series(high[s], high.shape[2])
        is_last = (inputs.ts_open + inputs.frame_ns) % length_ns == 0
        newest = np.where(is_last, group, group - 1)
        codes = np.array([r.code() for r, _ in rules], dtype=np.int64)
        columns = np.array([c for _, c in rules], dtype=np.int64)
        for a, stop in pieces(0, high.shape[0], n_jobs):
            arguments = (high, codes, newest, inputs.rows.row_of, out, columns, (a, stop, inputs.first_bar))
            jobs.append((_fill_frames, arguments))
    return jobs
