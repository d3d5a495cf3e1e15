"""Qlib's binary store, written by ourselves and appended in place (no Qlib import here).

::

    calendars/60min.txt  60min_future.txt  day.txt ...      naive UTC open times, one a line
    instruments/all.txt                                     BTCUSDT<TAB>first open<TAB>last open, full time stamps
    instruments/universe.txt                                the same, one line for each stretch in the top N, as known then
    features/btcusdt/close.60min.bin                        little-endian float32: start index, then one value a bar, NaN = gap

1. The panel decides what every file must hold. A file whose bytes are a prefix of that is appended to; one that already
   equals it is left alone; anything else (history changed) is rewritten atomically. A torn append is therefore healed by the
   next run, and appending always ends in the same bytes as building anew.
2. When the calendar's beginning moves, every start index changes: the whole store is built beside the old one and swapped in.
3. Bins are written before calendars, calendars before instruments: a reader never finds a bar announced but not there.
4. Day bars are aggregated from whole UTC days, because Qlib's accounts start at frequency ``day``. A day is stamped at its
   open, like every bar: joining it to intraday rows of the same day would be look-ahead.

Source: Qlib 0.9.7 ``qlib/data/storage/file_storage.py``.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.store.parquet_file import write_atomic

QLIB_FREQ: Final = {"1m": "1min", "5m": "5min", "15m": "15min", "1h": "60min", "4h": "240min", "1d": "day"}
"""Qlib's name of each frame (``1h`` does not parse there)."""
MARKET: Final = "all"
UNIVERSE: Final = "universe"
"""``D.instruments("universe")``: who belonged to the universe when, as Qlib's index members (``csi300``) are told."""
FIELDS: Final = (
    "open", "high", "low", "close", "volume", "quote_volume", "vwap", "change", "factor", "funding", "mark_close",
)  # fmt: skip
"""Fields of every instrument; ``$vwap`` is needed by Alpha360 (missing, its columns are silently NaN)."""

_FUTURE_BARS: Final = 1000
"""The calendar of the future goes on for one to two times so many bars: it is written once in so many bars, not at each."""

Bins = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What one write did to the store: numbers of bin files by what happened to them."""

    appended: int
    rewritten: int
    unchanged: int


def write_qlib_store(root: Path, panel: MarketPanel) -> StoreReport:
    """Bring the store below ``root`` in line with ``panel``, appending where only new bars came.

    Parameters
    ----------
    root : Path
        The store's folder (``Paths.qlib``).
    panel : MarketPanel
        All history there is, from its first bar. One store may hold several frames side by side; their instruments share
        ``instruments/all.txt``, so write every frame from the same symbols.

    Raises
    ------
    UserError
        If the store cannot be written, or Qlib has no frequency of the panel's bar length.
    """
    panels = [panel] if panel.frame_ns == NS_PER_DAY else [panel, whole_days(panel)]
    try:
        return _rebuild(root, panels) if _calendar_start_moved(root, panel) else _bring_up_to_date(root, panels)
    except OSError as e:
        raise UserError(f"cannot write the Qlib store {root}: {e.strerror or e}", "free disk space or mend permissions") from e


def freq_of(panel: MarketPanel) -> str:
    """Return Qlib's frequency name of the panel's bars.

    Raises
    ------
    UserError
        If Qlib has none.
    """
    for frame, freq in QLIB_FREQ.items():
        if FRAME_NS[frame] == panel.frame_ns:
            return freq
    raise UserError(f"Qlib has no frequency for bars of {panel.frame_ns / 1e9:g} s", f"choose one of {', '.join(QLIB_FREQ)}")


def _calendar_start_moved(root: Path, panel: MarketPanel) -> bool:
    path = root / "calendars" / f"{freq_of(panel)}.txt"
    if not path.exists() or not panel.n_bars:
        return False
    with path.open() as f:
        return f.readline().strip() != stamps(panel.ts_open[:1], panel.frame_ns)[0]


def _rebuild(root: Path, panels: list[MarketPanel]) -> StoreReport:
    fresh, old = root.with_name(f"{root.name}.new"), root.with_name(f"{root.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    report = _bring_up_to_date(fresh, panels)
    root.rename(old)
    fresh.rename(root)
    shutil.rmtree(old, ignore_errors=True)
    return StoreReport(0, report.rewritten, 0)


def _bring_up_to_date(root: Path, panels: list[MarketPanel]) -> StoreReport:
    appended = rewritten = unchanged = 0
    for panel in panels:
        freq = freq_of(panel)
        for j, symbol in enumerate(panel.symbols):
            folder = root / "features" / symbol.lower()
            folder.mkdir(parents=True, exist_ok=True)
            for name, values in instrument_bins(panel, j).items():
                done = write_bin(folder / f"{name}.{freq}.bin", values.tobytes())
                appended += done == "appended"
                rewritten += done == "rewritten"
                unchanged += done == "unchanged"
    for panel in panels:
        _write_calendars(root / "calendars", panel)
    _write_instruments(root / "instruments" / f"{MARKET}.txt", panels[0])
    return StoreReport(appended, rewritten, unchanged)


def write_bin(path: Path, wanted: bytes) -> str:
    """Make ``path`` hold ``wanted``, by appending where it holds its beginning; return what was done, in a word."""
    size = path.stat().st_size if path.exists() else -1
    if 0 <= size <= len(wanted) and path.read_bytes() == wanted[:size]:
        if size == len(wanted):
            return "unchanged"
        with path.open("ab") as f:
            f.write(wanted[size:])
        return "appended"
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_bytes(wanted)
    scratch.replace(path)
    return "rewritten"


def listing_span(panel: MarketPanel, j: int) -> tuple[int, int] | None:
    """Return the rows of the first and last bar with a close of symbol ``j``, or ``None`` if it has none."""
    rows = np.flatnonzero(np.isfinite(panel.close[:, j]))
    return (int(rows[0]), int(rows[-1])) if rows.size else None


def instrument_bins(panel: MarketPanel, j: int) -> Bins:
    """Return the content of each field's bin of symbol ``j``: start index, then values of its listing span (float32).

    ``vwap`` = quote volume / volume, held inside the bar's range; the close where nothing traded; ``(high + low + close) / 3``
    where the quote volume is not known. ``change`` = close / previous close - 1. ``factor`` = 1.
    """
    span = listing_span(panel, j)
    if span is None:
        return {}
    values = field_values(panel.rows(span[0], span[1] + 1), j)
    return {n: np.concatenate((np.array([span[0]], "<f4"), values[k, :, 0])) for k, n in enumerate(FIELDS)}


def field_values(panel: MarketPanel, j: int | None = None) -> npt.NDArray[np.float32]:
    """Return the values of :data:`FIELDS` as Qlib holds them, ``(n_fields, n_bars, n_symbols)``, of symbol ``j`` or of all.

    ``change`` of the first bar is NaN: the bar before it is not there.
    """
    columns = slice(None) if j is None else slice(j, j + 1)
    named = {n: getattr(panel, n)[:, columns] for n in (*FIELDS[:6], "mark_close")}
    named["funding"] = panel.funding_rate[:, columns]
    named["vwap"] = vwap(named["high"], named["low"], named["close"], named["volume"], named["quote_volume"])
    close = named["close"]
    named["change"] = np.concatenate((np.full((1, close.shape[1]), np.nan), close[1:] / close[:-1] - 1.0))
    named["factor"] = np.where(np.isfinite(close), 1.0, np.nan)
    return np.stack([named[n] for n in FIELDS]).astype("<f4")


def vwap(high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, quote_volume: FloatArray) -> FloatArray:
    """Return the volume-weighted price of each bar (arrays of one shape, quote units), see :func:`instrument_bins`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.clip(quote_volume / volume, low, high)
    known = np.where(np.isfinite(weighted), weighted, (high + low + close) / 3.0)
    return np.where(volume == 0.0, close, known)


def stamps(ts_open: IntArray, frame_ns: int) -> list[str]:
    """Return open times as Qlib's calendars spell them: dates for days, else ``2025-01-31 08:00:00``."""
    instants: npt.NDArray[np.datetime64] = ts_open.astype("datetime64[ns]")
    text = np.datetime_as_string(instants, unit="D") if frame_ns == NS_PER_DAY else np.datetime_as_string(instants, unit="s")
    return [str(t).replace("T", " ") for t in text]


def _write_calendars(folder: Path, panel: MarketPanel) -> None:
    past = stamps(panel.ts_open, panel.frame_ns)
    ahead = (
        panel.ts_open[-1:] + panel.frame_ns * np.arange(1, n_future(panel.n_bars) + 1, dtype=np.int64)
        if panel.n_bars
        else panel.ts_open
    )
    future = past + stamps(ahead, panel.frame_ns)
    write_atomic(folder / f"{freq_of(panel)}.txt", _lines(past))
    write_atomic(folder / f"{freq_of(panel)}_future.txt", _lines(future))


def n_future(n_bars: int) -> int:
    """Return how many bars the calendar of the future goes on after ``n_bars``."""
    return (n_bars // _FUTURE_BARS + 2) * _FUTURE_BARS - n_bars


def _write_instruments(path: Path, panel: MarketPanel) -> None:
    rows: list[str] = []
    for j, symbol in enumerate(panel.symbols):
        span = listing_span(panel, j)
        if span is not None:
            first, last = stamps(panel.ts_open[list(span)], 1)
            rows.append(f"{symbol}\t{first}\t{last}")
    write_atomic(path, _lines(rows))


def write_universe(root: Path, panel: MarketPanel) -> None:
    """Announce each symbol for the stretches of bars at whose close it was listed and belonged to the universe.

    A line holds the open times of the first and the last bar of a stretch; Qlib shows an instrument inside its stretches only.
    Days are stamped at their open: the day on which a coin leaves is still shown, the day on which it joins is not.
    """
    rows: list[str] = []
    for j, symbol in enumerate(panel.symbols):
        span = listing_span(panel, j)
        if span is None:
            continue
        belongs = np.zeros(panel.n_bars + 2, np.int8)
        belongs[span[0] + 1 : span[1] + 2] = panel.is_member[span[0] : span[1] + 1, j]
        edges = np.diff(belongs)
        first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
        rows += [
            f"{symbol}\t{a}\t{b}" for a, b in zip(stamps(panel.ts_open[first], 1), stamps(panel.ts_open[last], 1), strict=True)
        ]
    write_atomic(root / "instruments" / f"{UNIVERSE}.txt", _lines(rows))


def _lines(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def whole_days(panel: MarketPanel) -> MarketPanel:
    """Return the panel's bars aggregated to UTC days; only days the grid covers from 00:00 to 24:00.

    First open, highest high, lowest low, last close, summed volumes and funding over the bars there are; a day without any
    bar of a symbol is NaN.
    """
    per_day = NS_PER_DAY // panel.frame_ns
    skip = int(-panel.ts_open[0] % NS_PER_DAY // panel.frame_ns) if panel.n_bars else 0
    n_days = max(panel.n_bars - skip, 0) // per_day
    rows = slice(skip, skip + n_days * per_day)

    def days(name: str) -> FloatArray:
        shaped: FloatArray = getattr(panel, name)[rows].reshape(n_days, per_day, len(panel.symbols))
        return shaped

    columns: dict[str, FloatArray] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        for prefix in ("", "mark_"):
            columns[f"{prefix}open"] = _edge(days(f"{prefix}open"), first=True)
            columns[f"{prefix}high"] = np.nanmax(days(f"{prefix}high"), axis=1)
            columns[f"{prefix}low"] = np.nanmin(days(f"{prefix}low"), axis=1)
            columns[f"{prefix}close"] = _edge(days(f"{prefix}close"), first=False)
    for name in ("volume", "quote_volume", "funding_rate"):
        values = days(name)
        columns[name] = np.where(np.all(np.isnan(values), axis=1), np.nan, np.nansum(values, axis=1))
    grid = panel.ts_open[skip] // NS_PER_DAY * NS_PER_DAY if n_days else 0
    ts_open = grid + NS_PER_DAY * np.arange(n_days, dtype=np.int64)
    return MarketPanel(panel.symbols, NS_PER_DAY, ts_open, has_mark=panel.has_mark, **columns)


def _edge(values: FloatArray, *, first: bool) -> FloatArray:
    """Return the first (or last) finite value along axis 1, NaN where there is none."""
    ordered = values if first else values[:, ::-1]
    at = np.argmax(np.isfinite(ordered), axis=1)
    edge: FloatArray = np.take_along_axis(ordered, at[:, None], axis=1)[:, 0]
    return edge


def bins_that_differ(root: Path, panel: MarketPanel) -> list[Path]:
    """Return the bin files that do not hold exactly what ``panel`` says (or are absent); empty = the store is sound."""
    bad: list[Path] = []
    for part in [panel] if panel.frame_ns == NS_PER_DAY else [panel, whole_days(panel)]:
        for j, symbol in enumerate(part.symbols):
            for name, values in instrument_bins(part, j).items():
                path = root / "features" / symbol.lower() / f"{name}.{freq_of(part)}.bin"
                if not path.exists() or path.read_bytes() != values.tobytes():
                    bad.append(path)
    return bad
