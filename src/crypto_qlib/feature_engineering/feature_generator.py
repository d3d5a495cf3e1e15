"""Join the chosen feature sets into one frame; all bars or a block of them for research, the newest bar alone for live trading.

1. :func:`build_inputs` stacks the panel's series once (symbols in sorted order, time last).
2. The result matrix is allocated at its final size, float32, one row per bar and symbol that traded.
3. Every set writes straight into its columns, in pieces run by a few threads (the kernels hold no lock).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import SkipCycle, UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.bar_series import N_SERIES, FeatureInputs, build_inputs, mark_is_known
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, FeatureSpec
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.feature_engineering.wide_series import N_WIDE, fill_wide
from crypto_qlib.settings.schema import FeatureSettings

BTC_SYMBOL: Final = "BTCUSDT"

Progress = Callable[[float], None]
"""Called with the fraction of the work just finished; the amounts add up to 1."""


def feature_catalogue(settings: FeatureSettings | None = None, frame_ns: int = NS_PER_HOUR) -> tuple[FeatureSpec, ...]:
    """Return every feature ``settings`` asks for (default: all), in column order, with formula, unit and look-back.

    Raises
    ------
    UserError
        If ``settings.exclude`` names a feature no chosen set has, or nothing is left.
    """
    return _catalogue(settings or FeatureSettings(), frame_ns)


@lru_cache(maxsize=64)
def _catalogue(settings: FeatureSettings, frame_ns: int) -> tuple[FeatureSpec, ...]:
    """Return :func:`feature_catalogue`, kept: hundreds of entries, asked for at every bar of a live session."""
    specs: list[FeatureSpec] = []
    for group in settings.sets:
        specs += FEATURE_SETS[group].specs(settings, frame_ns)
    excluded = set(settings.exclude)
    unknown = sorted(excluded - {s.name for s in specs})
    if unknown:
        raise UserError(f"features.exclude names unknown features: {', '.join(unknown)}", "see `crypto-qlib features list`")
    kept = tuple(s for s in specs if s.name not in excluded)
    if not kept:
        raise UserError("no feature is left to build", "name at least one set in features.sets")
    return kept


def lookback_bars(settings: FeatureSettings, frame_ns: int) -> int:
    """Return how many bars the newest row depends on, itself included."""
    return _longest(settings, frame_ns)


@lru_cache(maxsize=64)
def _longest(settings: FeatureSettings, frame_ns: int) -> int:
    return max(spec.lookback_bars for spec in feature_catalogue(settings, frame_ns))


def settings_for_panel(
    panel: MarketPanel, settings: FeatureSettings, side: SideData | None = None
) -> tuple[FeatureSettings, tuple[str, ...]]:
    """Return ``settings`` without the features neither ``panel`` nor ``side`` has input for, and one line per omission.

    Call it once, before training, and keep the answer with the model: the live session must build the same columns.
    """
    missing: dict[str, str] = {}
    if not np.isfinite(panel.funding_rate).any():
        missing["funding"] = "no funding settlement is known"
    if not mark_is_known(panel).any():
        missing["mark"] = "no mark price is known"
    known = side or SideData()
    catalogue = feature_catalogue(settings, panel.frame_ns)
    for need in dict.fromkeys(s.needs for s in catalogue if s.needs not in {"", "funding", "mark"}):
        if not known.has(need):
            missing[need] = f"no {need} is known"
    notes: list[str] = []
    dropped: list[str] = []
    for need, why in missing.items():
        names = [s.name for s in catalogue if s.needs == need]
        if names:
            notes.append(f"{why}: left out {', '.join(names)}")
            dropped += names
    return settings.model_copy(update={"exclude": (*settings.exclude, *dropped)}), tuple(notes)


def build_features(
    panel: MarketPanel, settings: FeatureSettings, progress: Progress | None = None, side: SideData | None = None
) -> FeatureFrame:
    """Return the features of every bar and symbol of ``panel``.

    Parameters
    ----------
    panel : MarketPanel
        Bars; row ``t`` of the result reads bars ``<= t`` only.
    settings : FeatureSettings
        Which sets, in which order.
    progress : callable, optional
        Told the fraction just finished.
    side : SideData, optional
        What is known beside the bars; features that need it are NaN without.

    Returns
    -------
    FeatureFrame
        A row is known at the close of its bar; NaN where a window is less than 3/4 filled.

    Raises
    ------
    UserError
        If the panel holds no bar, or the BTC-relative set is wanted without BTC.
    """
    if not np.isfinite(panel.close).any():
        raise UserError("the panel holds no prices to build features from", "run `crypto-qlib data update` first")
    return _build(panel, settings, side, 0, os.cpu_count() or 1, progress)


def block_features(
    panel: MarketPanel,
    settings: FeatureSettings,
    first_bar: int,
    side: SideData | None = None,
    progress: Progress | None = None,
) -> FeatureFrame:
    """Return the rows of the bars of ``panel`` from ``first_bar`` on, bit-equal to those of a build over a longer past.

    Parameters
    ----------
    panel : MarketPanel
        The block's bars behind as many earlier ones as :func:`lookback_bars` asks for, or all there are.
    settings : FeatureSettings
        Which sets.
    first_bar : int
        First bar that gets rows; ``row_bar`` counts from the panel's first bar.
    side : SideData, optional
        What is known beside the bars.
    progress : callable, optional
        Told the fraction just finished.

    Raises
    ------
    UserError
        If the BTC-relative sets are wanted without BTC.
    """
    return _build(panel, settings, side, first_bar, os.cpu_count() or 1, progress)


def bytes_per_bar(n_symbols: int, settings: FeatureSettings, frame_ns: int) -> int:
    """Return what one bar of ``n_symbols`` takes while features are built: its series and its rows."""
    is_wide = any(FEATURE_SETS[name].is_wide for name in settings.sets)
    n_features = len(feature_catalogue(settings, frame_ns))
    return n_symbols * (8 * (N_WIDE if is_wide else N_SERIES) + 4 * n_features)


def latest_features(panel: MarketPanel, settings: FeatureSettings, bars: int = 1, side: SideData | None = None) -> FeatureFrame:
    """Return the rows of the last ``bars`` bars of ``panel`` only, bit-equal to the last rows of :func:`build_features`.

    Only the last :func:`lookback_bars` ``+ bars - 1`` bars are read; the frame's grid is those ``bars`` bars, or as many as
    there are.

    Raises
    ------
    SkipCycle
        If no symbol has a price in the last bar.
    UserError
        As :func:`build_features`.
    """
    n = min(panel.n_bars, lookback_bars(settings, panel.frame_ns) + bars - 1)
    first = max(n - bars, 0)
    window = panel.rows(panel.n_bars - n, panel.n_bars)
    if n == 0 or not np.isfinite(window.close[-1]).any():
        raise SkipCycle("no symbol has a price in the newest bar")
    frame = _build(window, settings, side, first, 1, None)
    return FeatureFrame(
        values=frame.values,
        names=frame.names,
        ts_open=frame.ts_open[first:],
        frame_ns=frame.frame_ns,
        symbols=frame.symbols,
        row_bar=frame.row_bar - np.int32(first),
        row_symbol=frame.row_symbol,
        settings=settings,
    )


def _build(
    panel: MarketPanel,
    settings: FeatureSettings,
    side: SideData | None,
    first_bar: int,
    threads: int,
    progress: Progress | None,
) -> FeatureFrame:
    return evaluated(window_inputs(panel, settings, side, first_bar), panel, settings, threads, progress)


def window_inputs(panel: MarketPanel, settings: FeatureSettings, side: SideData | None, first_bar: int) -> FeatureInputs:
    """Return every series of ``panel`` the chosen sets read, and the rows wanted from ``first_bar`` on.

    Raises
    ------
    UserError
        If the BTC-relative sets are wanted without BTC.
    """
    led = [name for name in settings.sets if FEATURE_SETS[name].needs_leader]
    if led and BTC_SYMBOL not in panel.symbols:
        raise UserError(
            f"the {' and '.join(led)} features need {BTC_SYMBOL} in the universe",
            f"add BTC to universe.include, or leave {' and '.join(led)} out of features.sets",
        )
    is_wide = any(FEATURE_SETS[name].is_wide for name in settings.sets)
    n_series = N_WIDE if is_wide else N_SERIES
    with_macd = reads_macd(feature_catalogue(settings, panel.frame_ns))
    inputs = build_inputs(panel, first_bar, BTC_SYMBOL, side, n_series, with_macd=with_macd)
    if is_wide:
        fill_wide(inputs, panel)
    return inputs


def reads_macd(specs: Sequence[FeatureSpec]) -> bool:
    """Return whether any of ``specs`` reads the MACD series, most of the work where it is wanted."""
    return any(spec.name.startswith("MACD") for spec in specs)


def evaluated(
    inputs: FeatureInputs, panel: MarketPanel, settings: FeatureSettings, threads: int, progress: Progress | None = None
) -> FeatureFrame:
    """Return the rows ``inputs`` asks for, on the grid of ``panel``; their series must stand."""
    specs = feature_catalogue(settings, panel.frame_ns)
    out = np.empty((inputs.rows.row_bar.size, len(specs)), dtype=np.float32)
    jobs = _jobs(inputs, settings, specs, out, 1 if threads == 1 else 4 * threads)
    _run(jobs, threads, progress)
    return FeatureFrame(
        values=out,
        names=tuple(s.name for s in specs),
        ts_open=panel.ts_open,
        frame_ns=panel.frame_ns,
        symbols=panel.symbols,
        row_bar=inputs.rows.row_bar,
        row_symbol=inputs.rows.row_symbol,
        settings=settings,
    )


def _jobs(
    inputs: FeatureInputs, settings: FeatureSettings, specs: Sequence[FeatureSpec], out: Any, n_jobs: int
) -> list[tuple[Any, tuple[object, ...]]]:
    columns = {spec.name: c for c, spec in enumerate(specs)}
    jobs: list[tuple[Any, tuple[object, ...]]] = []
    for group in settings.sets:
        jobs += FEATURE_SETS[group].jobs(inputs, settings, columns, out, n_jobs)
    return jobs


def _run(jobs: list[tuple[Any, tuple[object, ...]]], threads: int, progress: Progress | None) -> None:
    """Run the pieces; each writes cells no other piece touches, so their order does not matter."""
    tell = progress or (lambda _share: None)
    if threads == 1:
        for kernel, args in jobs:
            kernel(*args)
        tell(1.0)
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(kernel, *args) for kernel, args in jobs]:
            future.result()
            tell(1.0 / len(jobs))
