"""Alpha158 by one pass over the last 60 bars: Qlib's stock factor set on coins, in its column order.

Equal to Qlib 0.9.7's ``Alpha158DL`` to float32 rounding where no bar is missing. The pass walks from the newest bar to the
oldest and writes a window's statistics when it has seen its bars (5, 10, 20, 30, 60), so each bar is read once for all windows.
Quantiles and ranks come from closes kept in order, one bar in and one out: order has no rounding, so this running state is the
same whichever bar it began at.

Kept from Qlib, with its consequences: ``RSQR CORR CORD`` are NaN where a window's standard deviation is at most 2e-5 *in
units of the price*, which makes ``RSQR`` and ``CORR`` of very cheap coins NaN; a window counts from its first bar on (no 3/4
rule). Different at gaps: missing bars are left out everywhere, where Qlib counts a comparison with one as false (``CNT*``) and
takes its place for the largest (``IMAX IMIN``).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import CLOSE, HIGH, LOW, OPEN, VOLUME, VWAP, FeatureInputs
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.rules import pieces

GROUP: Final = "alpha158"
WINDOWS: Final = (5, 10, 20, 30, 60)
LONGEST: Final = 60
TINY: Final = 1e-12
FLAT: Final = 2e-5
"""Qlib's absolute tolerance below which a standard deviation counts as zero."""

Row = npt.NDArray[np.float64]

_BARS: Final = (
    ("KMID", "(close - open) / open"),
    ("KLEN", "(high - low) / open"),
    ("KMID2", "(close - open) / (high - low + 1e-12)"),
    ("KUP", "(high - max(open, close)) / open"),
    ("KUP2", "(high - max(open, close)) / (high - low + 1e-12)"),
    ("KLOW", "(min(open, close) - low) / open"),
    ("KLOW2", "(min(open, close) - low) / (high - low + 1e-12)"),
    ("KSFT", "(2 close - high - low) / open"),
    ("KSFT2", "(2 close - high - low) / (high - low + 1e-12)"),
    ("OPEN0", "open / close"),
    ("HIGH0", "high / close"),
    ("LOW0", "low / close"),
    ("VWAP0", "vwap / close"),
)
_ROLLING: Final = (
    ("ROC", "close[t-{w}] / close", 1),
    ("MA", "mean(close, {w}) / close", 0),
    ("STD", "std(close, {w}) / close", 0),
    ("BETA", "slope(close, {w}) / close", 0),
    ("RSQR", "R^2 of close on time over {w}", 0),
    ("RESI", "residual of the newest close on time over {w}, / close", 0),
    ("MAX", "max(high, {w}) / close", 0),
    ("MIN", "min(low, {w}) / close", 0),
    ("QTLU", "80 % quantile of close over {w}, / close", 0),
    ("QTLD", "20 % quantile of close over {w}, / close", 0),
    ("RANK", "rank of close in its last {w}, / count", 0),
    ("RSV", "(close - min low) / (max high - min low + 1e-12) over {w}", 0),
    ("IMAX", "position of the highest high in the last {w}, / {w}", 0),
    ("IMIN", "position of the lowest low in the last {w}, / {w}", 0),
    ("IMXD", "IMAX - IMIN", 0),
    ("CORR", "corr(close, log(volume + 1)) over {w}", 0),
    ("CORD", "corr(close / close[-1], log(volume / volume[-1] + 1)) over {w}", 1),
    ("CNTP", "share of rising bars over {w}", 1),
    ("CNTN", "share of falling bars over {w}", 1),
    ("CNTD", "CNTP - CNTN", 1),
    ("SUMP", "sum of rises / (sum of |changes| + 1e-12) of close over {w}", 1),
    ("SUMN", "sum of falls / (sum of |changes| + 1e-12) of close over {w}", 1),
    ("SUMD", "SUMP - SUMN", 1),
    ("VMA", "mean(volume, {w}) / (volume + 1e-12)", 0),
    ("VSTD", "std(volume, {w}) / (volume + 1e-12)", 0),
    ("WVMA", "std / (mean + 1e-12) of |close / close[-1] - 1| volume over {w}", 1),
    ("VSUMP", "sum of rises / (sum of |changes| + 1e-12) of volume over {w}", 1),
    ("VSUMN", "sum of falls / (sum of |changes| + 1e-12) of volume over {w}", 1),
    ("VSUMD", "VSUMP - VSUMN", 1),
)
N_BAR: Final = len(_BARS)
N_WINDOWS: Final = len(WINDOWS)
N_FEATURES: Final = N_BAR + N_WINDOWS * len(_ROLLING)


def alpha158_specs() -> tuple[FeatureSpec, ...]:
    """Return the 158 catalogue entries in Qlib's column order."""
    specs = [FeatureSpec(f"A158_{name}", GROUP, formula, "ratio", 1) for name, formula in _BARS]
    for name, formula, reach in _ROLLING:
        specs += [FeatureSpec(f"A158_{name}{w}", GROUP, formula.format(w=w), "ratio", w + reach) for w in WINDOWS]
    return tuple(specs)


@njit
def _std(total: float, square: float, n: int) -> float:
    """Return the sample standard deviation from sums; NaN below two."""
    if n < 2:  # noqa: PLR2004 - a spread needs two
        return math.nan
    return math.sqrt(max(square - total * total / n, 0.0) / (n - 1))


@njit
def _place(ordered: Row, n: int, value: float) -> tuple[int, int]:
    """Return where values equal to ``value`` begin and end in the first ``n`` of ``ordered``."""
    first = 0
    beyond = n
    while first < beyond:
        middle = (first + beyond) // 2
        if ordered[middle] < value:
            first = middle + 1
        else:
            beyond = middle
    last = first
    while last < n and ordered[last] == value:
        last += 1
    return first, last


@njit
def _slide(close: Row, t: int, ordered: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
    """Let bar ``t`` into every window of ordered closes and the bar it pushes out go; missing ones are not there."""
    for j in range(N_WINDOWS):
        n = counts[j]
        gone = t - WINDOWS[j]
        if gone >= 0 and not math.isnan(close[gone]):
            n -= 1
            for i in range(_place(ordered[j], n + 1, close[gone])[0], n):
                ordered[j, i] = ordered[j, i + 1]
        if not math.isnan(close[t]):
            place = n
            while place > 0 and ordered[j, place - 1] > close[t]:
                ordered[j, place] = ordered[j, place - 1]
                place -= 1
            ordered[j, place] = close[t]
            n += 1
        counts[j] = n


@njit
def _quantile(ordered: Row, n: int, q: float) -> float:
    at = q * (n - 1)
    low = int(at)
    high = min(low + 1, n - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (at - low))


@njit
def _correlation(n: int, a: float, b: float, aa: float, bb: float, ab: float) -> float:
    """Return Pearson's correlation from sums; NaN where a spread is flat by Qlib's tolerance."""
    if n < 2 or _std(a, aa, n) <= FLAT or _std(b, bb, n) <= FLAT:  # noqa: PLR2004 - a pair of points
        return math.nan
    cov = ab - a * b / n
    scale = math.sqrt(aa - a * a / n) * math.sqrt(bb - b * b / n)
    return cov / scale if scale > 0.0 else math.nan


@njit
def _bar_features(x: npt.NDArray[np.float64], t: int, out: Row) -> None:
    o, h, low, c = x[OPEN, t], x[HIGH, t], x[LOW, t], x[CLOSE, t]
    span = h - low + TINY
    top, bottom = max(o, c), min(o, c)
    out[0], out[1], out[2] = (c - o) / o, (h - low) / o, (c - o) / span
    out[3], out[4] = (h - top) / o, (h - top) / span
    out[5], out[6] = (bottom - low) / o, (bottom - low) / span
    out[7], out[8] = (2.0 * c - h - low) / o, (2.0 * c - h - low) / span
    out[9], out[10], out[11], out[12] = o / c, h / c, low / c, x[VWAP, t] / c


@njit
def _derive(x: npt.NDArray[np.float64], work: npt.NDArray[np.float64], start: int) -> None:
    """Fill ``work`` of one symbol: log volume, close ratio - 1, log volume ratio, |return| x volume."""
    for t in range(start, x.shape[1]):
        c, v = x[CLOSE, t], x[VOLUME, t]
        c1 = x[CLOSE, t - 1] if t > 0 else math.nan
        v1 = x[VOLUME, t - 1] if t > 0 else math.nan
        work[0, t] = math.log(v + 1.0)
        work[1, t] = c / c1 - 1.0
        work[2, t] = math.log(v / v1 + 1.0) if v1 > 0.0 else math.nan
        work[3, t] = abs(c / c1 - 1.0) * v


@njit
def _window_features(  # noqa: PLR0915 - one pass, many sums
    x: npt.NDArray[np.float64], work: npt.NDArray[np.float64], t: int, out: Row, ordered: npt.NDArray[np.float64]
) -> None:
    """Write the rolling features of bar ``t`` behind the bar features; ``ordered`` holds each window's closes in order."""
    c0, v0 = x[CLOSE, t], x[VOLUME, t] + TINY
    n = pairs = moves = nv = swings = cords = 0
    s1 = s2 = si = sii = siy = 0.0
    high, low = -math.inf, math.inf
    at_high = at_low = 0
    ly = lyy = lb = lbb = lab = 0.0
    pa = paa = pb = pbb = pab = 0.0
    up = down = gain = loss = 0.0
    v1 = v2 = vgain = vloss = w1 = w2 = 0.0
    vmoves = 0
    j = 0
    oldest = max(0, t - LONGEST + 1)
    for age in range(LONGEST):
        k = t - age
        if k >= oldest and not math.isnan(x[CLOSE, k]):
            y = x[CLOSE, k] / c0 - 1.0
            n += 1
            s1 += y
            s2 += y * y
            si += age
            sii += age * age
            siy += age * y
            if x[HIGH, k] >= high:
                high, at_high = x[HIGH, k], age
            if x[LOW, k] <= low:
                low, at_low = x[LOW, k], age
            v = x[VOLUME, k]
            if not math.isnan(v):
                nv += 1
                v1 += v
                v2 += v * v
                pairs += 1
                ly += y
                lyy += y * y
                lb += work[0, k]
                lbb += work[0, k] * work[0, k]
                lab += y * work[0, k]
            r = work[1, k]
            if not math.isnan(r):
                moves += 1
                change = x[CLOSE, k] - x[CLOSE, k - 1]
                up += 1.0 if change > 0.0 else 0.0
                down += 1.0 if change < 0.0 else 0.0
                gain += max(0.0, change)
                loss -= min(0.0, change)
                if not math.isnan(work[2, k]):
                    cords += 1
                    pa += r
                    paa += r * r
                    pb += work[2, k]
                    pbb += work[2, k] * work[2, k]
                    pab += r * work[2, k]
            if not math.isnan(work[3, k]):
                swings += 1
                w1 += work[3, k]
                w2 += work[3, k] * work[3, k]
            if k > 0:
                change = v - x[VOLUME, k - 1]
                if not math.isnan(change):
                    vmoves += 1
                    vgain += max(0.0, change)
                    vloss -= min(0.0, change)
        if age + 1 == WINDOWS[j]:
            w = WINDOWS[j]
            b = N_BAR + j
            g = N_WINDOWS
            back = t - w
            out[b] = x[CLOSE, back] / c0 if back >= 0 else math.nan
            out[b + g] = 1.0 + s1 / n
            std = _std(s1, s2, n)
            out[b + 2 * g] = std
            spread = n * sii - si * si
            slope = -(n * siy - si * s1) / spread if spread > 0.0 else math.nan
            out[b + 3 * g] = slope
            level = n * s2 - s1 * s1
            known = spread > 0.0 and level > 0.0 and std * c0 > FLAT
            out[b + 4 * g] = (n * siy - si * s1) ** 2 / (spread * level) if known else math.nan
            out[b + 5 * g] = -(s1 / n + slope * (si / n))
            out[b + 6 * g] = high / c0
            out[b + 7 * g] = low / c0
            out[b + 8 * g] = _quantile(ordered[j], n, 0.8) / c0
            out[b + 9 * g] = _quantile(ordered[j], n, 0.2) / c0
            first, last = _place(ordered[j], n, c0)
            out[b + 10 * g] = (first + 0.5 * (last - first + 1)) / n
            out[b + 11 * g] = (c0 - low) / (high - low + TINY)
            seen = min(w, t + 1)
            out[b + 12 * g] = (seen - at_high) / w
            out[b + 13 * g] = (seen - at_low) / w
            out[b + 14 * g] = (at_low - at_high) / w
            corr = _correlation(pairs, ly, lb, lyy, lbb, lab)
            out[b + 15 * g] = corr if std * c0 > FLAT else math.nan
            out[b + 16 * g] = _correlation(cords, pa, pb, paa, pbb, pab)
            out[b + 17 * g] = up / moves if moves > 0 else math.nan
            out[b + 18 * g] = down / moves if moves > 0 else math.nan
            out[b + 19 * g] = (up - down) / moves if moves > 0 else math.nan
            path = gain + loss + TINY
            out[b + 20 * g] = gain / path if moves > 0 else math.nan
            out[b + 21 * g] = loss / path if moves > 0 else math.nan
            out[b + 22 * g] = (gain - loss) / path if moves > 0 else math.nan
            out[b + 23 * g] = v1 / nv / v0 if nv > 0 else math.nan
            out[b + 24 * g] = _std(v1, v2, nv) / v0
            out[b + 25 * g] = _std(w1, w2, swings) / (w1 / swings + TINY) if swings > 0 else math.nan
            path = vgain + vloss + TINY
            out[b + 26 * g] = vgain / path if vmoves > 0 else math.nan
            out[b + 27 * g] = vloss / path if vmoves > 0 else math.nan
            out[b + 28 * g] = (vgain - vloss) / path if vmoves > 0 else math.nan
            j += 1


@njit
def _fill_alpha158(
    data: npt.NDArray[np.float64],
    wanted: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int, int],
) -> None:
    """Write features ``wanted`` of symbols ``span[0]:span[1]`` from bar ``span[2]`` on."""
    row = np.empty(N_FEATURES)
    ordered = np.empty((N_WINDOWS, LONGEST))
    counts = np.empty(N_WINDOWS, dtype=np.int64)
    work = np.empty((4, data.shape[2]))
    before = max(0, span[2] - LONGEST)
    for s in range(span[0], span[1]):
        _derive(data[s], work, before)
        counts[:] = 0
        for t in range(before, span[2]):
            _slide(data[s, CLOSE, before:], t - before, ordered, counts)
        for t in range(span[2], data.shape[2]):
            _slide(data[s, CLOSE, before:], t - before, ordered, counts)
            at = row_of[s, t]
            if at < 0:
                continue
            _bar_features(data[s], t, row)
            _window_features(data[s], work, t, row, ordered)
            for j in range(wanted.size):
                out[at, columns[j]] = row[wanted[j]]


def alpha158_jobs(
    inputs: FeatureInputs, wanted: dict[str, int], out: Float32Array, n_jobs: int
) -> list[tuple[object, tuple[object, ...]]]:
    """Return pieces of work that write the wanted columns (name -> column) into ``out``."""
    pairs = [(k, wanted[s.name]) for k, s in enumerate(alpha158_specs()) if s.name in wanted]
    if not pairs:
        return []
    which = np.array([k for k, _ in pairs], dtype=np.int64)
    where = np.array([c for _, c in pairs], dtype=np.int64)
    return [
        (_fill_alpha158, (inputs.data, which, inputs.rows.row_of, out, where, (a, b, inputs.first_bar)))
        for a, b in pieces(0, inputs.data.shape[0], n_jobs)
    ]
