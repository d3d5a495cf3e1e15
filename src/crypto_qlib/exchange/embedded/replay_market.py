"""Real history as a market: candles, and where known funding, marks and market caps, served as a ``MarketSource``.

What the files do not say is decided here, in the open:

- **Contract specification** is derived: the tick from the decimals of the prices, contract value, lot and tiers from the
  price and turnover of the symbol's first 30 days, shaped like the exchange's (``venue.contract_shapes``).
- **Funding** is what the file says; without a file there are no settlements at all, none is made up.
- **Mark**: from the file; otherwise none is served, and whoever asks uses the last price. **Index**: none.
- **Turnover** (quote volume) is the file's, otherwise volume x (open + high + low + close) / 4.
- **Gaps** stay gaps: the instrument was suspended there, see :meth:`ReplayMarket.gaps`.
- **Delisting**: trailing bars without volume and movement for at least a day are cut, and the symbol is delisted at its
  last trade. A symbol whose rows merely end more than ``delisted_after_ns`` before the file's global end is delisted there,
  because nothing else explains the silence to whoever trades on the replay; pass ``None`` to keep it listed.
- **Long/short ratios** are those our lake has collected, every hour; from elsewhere there are none, and open interest is not
  replayed.
- **Market caps** are known ``caps_known_after_ns`` after their stamp (a daily value is known when its day is over).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_S, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.exchange.embedded.recording import Recording, recorded_bars
from crypto_qlib.exchange.embedded.replay_contracts import specification
from crypto_qlib.exchange.embedded.replay_files import SymbolRows, Wanted, read_rows
from crypto_qlib.venue.bar_aggregation import aggregate_bars, rows_between

FloatArray = npt.NDArray[np.float64]

_PRICES: Final = (("open",), ("high",), ("low",), ("close",))
_CANDLES: Final = Wanted("candles", (*_PRICES, ("volume",)), ("quote_volume",))
_MARKS: Final = Wanted("mark candles", _PRICES)
_FUNDING: Final = Wanted("funding rates", (("funding_rate", "rate", "realized_rate"),))
_RATIOS: Final = Wanted("long/short ratios", (("ratio",),))
_CAPS: Final = Wanted("market caps", (("market_cap", "market_cap_usd", "cap"),))
_SECONDS: Final = tuple(n * NS_PER_S for n in (1, 5, 10, 15, 30))
_CAP_MAX_AGE_NS: Final = 45 * NS_PER_DAY
"""A market cap older than this is not known any more (monthly snapshots stay usable)."""
_MULTIPLES: Final = ("1000000", "1000", "1M")
"""Prefixes of contracts quoted per many coins; their market cap is that of the coin itself."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Bars missing inside a symbol's life.

    Parameters
    ----------
    symbol : str
        Compact name.
    start_ns, end_ns : int
        Open of the first missing bar, and open of the next one there is.
    n_bars : int
        How many are missing.
    """

    symbol: str
    start_ns: int
    end_ns: int
    n_bars: int


@dataclass(frozen=True, slots=True)
class _History:
    """One symbol as replayed."""

    instrument: Instrument
    tiers: TierHistory
    bars: BarBlock
    marks: BarBlock
    funding: FundingBlock


class ReplayMarket:
    """Serve recorded history.

    Parameters
    ----------
    candles : Path
        File or folder with columns symbol, ts (open time), open, high, low, close, volume (base coins) and, where known,
        quote_volume (USDT). A folder that has ``candles/1h`` and the like (our lake) is read at its finest frame,
        with the funding, marks and long/short ratios beside it. A folder of recordings (``recording``) has candles made
        from its trades, and order books.
    funding : Path, optional
        Columns symbol, ts (settlement), funding_rate.
    mark : Path, optional
        Mark candles: symbol, ts, open, high, low, close.
    market_caps : Path, optional
        Columns symbol or base, ts, market_cap (USD).
    instruments : mapping of str to Instrument, optional
        True specifications by compact symbol; the life span is still taken from the data.
    delisted_after_ns : int | None
        A symbol whose rows end more than this before the global end is delisted at its end; ``None``: never.
    caps_known_after_ns : int
        How long after its stamp a market cap is known.

    Attributes
    ----------
    recording : Recording | None
        Recorded order books and trades, where there are some.

    Raises
    ------
    UserError
        If a file is missing or damaged, lacks a column, or a row is impossible; the message names file and row.
    """

    def __init__(
        self,
        candles: Path,
        funding: Path | None = None,
        mark: Path | None = None,
        market_caps: Path | None = None,
        instruments: Mapping[str, Instrument] | None = None,
        *,
        delisted_after_ns: int | None = NS_PER_DAY,
        caps_known_after_ns: int = NS_PER_DAY,
    ) -> None:
        bars = recorded_bars(candles)
        self.recording = Recording(candles) if bars is not None else None
        path, ratios = bars or _finest_lake_folder(candles), None
        if bars is None and path != candles:
            funding, mark = funding or _existing(candles / "funding" / "event"), mark or _existing(candles / "mark" / path.name)
            ratios = _existing(candles / "long_short_ratio" / "1h")
        symbols = read_rows(path, _CANDLES)
        for rows in symbols:
            _refuse_impossible(path, rows)
        self._frame_ns = _base_frame(path, symbols)
        self._start_ns = min(int(s.ts[0]) for s in symbols)
        self._end_ns = max(int(s.ts[-1]) for s in symbols) + self._frame_ns
        marks = _marks(mark)
        self._mark_frame_ns = _base_frame(mark, list(marks.values())) if mark is not None else self._frame_ns
        rates = {r.base: FundingBlock(r.ts, r.columns["funding_rate"]) for r in _finite(funding, _FUNDING)}
        self._ratios = {r.base: LongShortBlock(r.ts, r.columns["ratio"]) for r in _finite(ratios, _RATIOS)}
        self._caps = {r.base: r for r in _finite(market_caps, _CAPS)}
        self._caps_delay_ns = caps_known_after_ns
        self._histories: dict[str, _History] = {}
        for rows in symbols:
            history = self._history(rows, rates.get(rows.base), marks.get(rows.base), delisted_after_ns, instruments or {})
            self._histories[history.instrument.symbol] = history

    @property
    def is_simulated(self) -> bool:
        """Return False: prices are recorded ones."""
        return False

    @property
    def base_frame_ns(self) -> int:
        """Return the bar length of the candle file."""
        return self._frame_ns

    @property
    def start_ns(self) -> int:
        """Return the open time of the first bar of any symbol."""
        return self._start_ns

    @property
    def end_ns(self) -> int:
        """Return the close time of the last bar of any symbol."""
        return self._end_ns

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every symbol of the file with the span its data covers."""
        return tuple(h.instrument for h in self._histories.values())

    def tiers(self, symbol: str) -> TierHistory:
        """Return the (derived) position tiers of ``symbol``."""
        return self._histories[symbol].tiers

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return complete bars with ``start_ns <= ts_open < end_ns``; the base frame's are the file's own rows.

        Raises
        ------
        ValueError
            If ``frame_ns`` is not a multiple of the base frame.
        """
        if frame_ns <= 0 or frame_ns % self._frame_ns:
            raise ValueError(f"a frame of {frame_ns} ns is not a multiple of the data's {self._frame_ns} ns")
        return self._cut(self._histories[symbol].bars, frame_ns, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return mark-price bars; an empty block without a mark file, or for frames finer than its own."""
        if frame_ns % self._mark_frame_ns:
            return BarBlock.empty()
        return self._cut(self._histories[symbol].marks, frame_ns, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:  # noqa: ARG002 - the protocol's
        """Return an empty block: no index is recorded."""
        return BarBlock.empty()

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the recorded settlements with ``start_ns <= ts < end_ns``; none where the file has none."""
        block = self._histories[symbol].funding
        a, b = np.searchsorted(block.ts, [start_ns, end_ns])
        return FundingBlock(block.ts[a:b], block.rate[a:b])

    def open_interest(self, symbol: str, ts_ns: int) -> float:  # noqa: ARG002 - the protocol's
        """Return NaN: open interest is not recorded."""
        return float("nan")

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return the recorded split of accounts; nothing for frames finer than the hours that are recorded."""
        rows = self._ratios.get(self._histories[symbol].instrument.base)
        if rows is None or frame_ns % NS_PER_HOUR:
            return LongShortBlock(np.empty(0, np.int64), np.empty(0))
        inside = (rows.ts >= start_ns) & (rows.ts < end_ns) & (rows.ts % frame_ns == 0)
        return LongShortBlock(rows.ts[inside], rows.ratio[inside])

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return market caps in USD as known at ``ts_ns``, none older than 45 days, for listed base coins.

        A contract quoted per 1000 coins (``1000PEPE``) gets the cap of the coin (``PEPE``).
        """
        caps: dict[str, float] = {}
        for history in self._histories.values():
            base = history.instrument.base
            rows = self._caps.get(base) or self._caps.get(_single_coin(base))
            if rows is None or not history.instrument.is_listed(ts_ns):
                continue
            at = int(np.searchsorted(rows.ts, ts_ns - self._caps_delay_ns, side="right")) - 1
            if at >= 0 and ts_ns - int(rows.ts[at]) <= _CAP_MAX_AGE_NS:
                caps[base] = float(rows.columns["market_cap"][at])
        return caps

    def gaps(self) -> tuple[Gap, ...]:
        """Return all spans without bars inside a symbol's life, by symbol and time."""
        found = []
        for symbol, history in self._histories.items():
            ts = history.bars.ts_open
            for k in np.flatnonzero(np.diff(ts) > self._frame_ns):
                start, end = int(ts[k]) + self._frame_ns, int(ts[k + 1])
                found.append(Gap(symbol, start, end, (end - start) // self._frame_ns))
        return tuple(found)

    def _cut(self, block: BarBlock, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        first = -(-start_ns // frame_ns) * frame_ns
        stop = min(-(-end_ns // frame_ns) * frame_ns, self._end_ns // frame_ns * frame_ns)
        return aggregate_bars(rows_between(block, first, stop), frame_ns)

    def _history(
        self,
        rows: SymbolRows,
        rates: FundingBlock | None,
        marks: SymbolRows | None,
        delisted_after_ns: int | None,
        known: Mapping[str, Instrument],
    ) -> _History:
        n = _traded_rows(rows, NS_PER_DAY // self._frame_ns)
        bars = _bar_block(rows, n)
        ended_ns = int(bars.ts_open[-1]) + self._frame_ns
        is_silent = delisted_after_ns is not None and ended_ns < self._end_ns - delisted_after_ns
        has_left = n < rows.ts.size or is_silent
        life = (int(bars.ts_open[0]), ended_ns if has_left else None)
        block = rates if rates is not None else FundingBlock(np.empty(0, np.int64), np.empty(0))
        instrument, tiers = specification(rows.base, bars, life, block, known)
        mark_block = BarBlock.empty() if marks is None else rows_between(_bar_block(marks, marks.ts.size), life[0], ended_ns)
        return _History(instrument, tiers, bars, mark_block, block)


def _single_coin(base: str) -> str:
    return next((base.removeprefix(m) for m in _MULTIPLES if base.startswith(m) and len(base) > len(m)), base)


def _bar_block(rows: SymbolRows, n: int) -> BarBlock:
    """Return the first ``n`` rows as bars; volumes NaN where the file has none (marks)."""
    o, h, low, x = (rows.columns[name][:n] for name in ("open", "high", "low", "close"))
    volume = rows.columns.get("volume", np.full(rows.ts.size, np.nan))[:n]
    quote = rows.columns["quote_volume"][:n] if "quote_volume" in rows.columns else volume * ((o + h + low + x) / 4.0)
    return BarBlock(rows.ts[:n], o, h, low, x, volume, quote)


def _traded_rows(rows: SymbolRows, least: int) -> int:
    """Return how many rows are left once a trailing run of at least ``least`` dead bars (no volume, no movement) is cut."""
    alive = np.flatnonzero((rows.columns["volume"] > 0.0) | (rows.columns["high"] != rows.columns["low"]))
    last = int(alive[-1]) + 1 if alive.size else 0
    return last if last > 0 and rows.ts.size - last >= least else int(rows.ts.size)


def _finest_lake_folder(path: Path) -> Path:
    """Return ``path/candles/<finest frame>`` where ``path`` is a lake, else ``path``."""
    frames = [p for p in (path / "candles").glob("*") if p.name in FRAME_NS and p.is_dir()]
    return min(frames, key=lambda p: FRAME_NS[p.name]) if frames else path


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _refuse_impossible(path: Path, rows: SymbolRows) -> None:
    """Raise for the first row whose prices or volume cannot be."""
    c = rows.columns
    prices = np.stack([c["open"], c["high"], c["low"], c["close"]])
    checks = [
        (~np.isfinite(prices).all(axis=0), "a price is missing or not a number"),
        (~(prices > 0.0).all(axis=0), "a price is zero or negative"),
        (c["high"] < c["low"], "high is below low"),
        ((prices > c["high"]).any(axis=0) | (prices < c["low"]).any(axis=0), "open or close lies outside low..high"),
    ]
    if "volume" in c:
        checks.append((~np.isfinite(c["volume"]) | (c["volume"] < 0.0), "volume is missing or negative"))
    for bad, why in checks:
        if bad.any():
            k = int(np.argmax(bad))
            raise UserError(f"{path}: {rows.base} row {k + 1} ({iso(int(rows.ts[k]))}): {why}")


def _base_frame(path: Path, symbols: list[SymbolRows]) -> int:
    """Return the bar length: the usual step between rows, which all times must be multiples of."""
    steps = np.concatenate([np.diff(s.ts) for s in symbols])
    if steps.size == 0:
        raise UserError(f"{path}: no symbol has two rows, so the bar length is unknown")
    values, counts = np.unique(steps, return_counts=True)
    frame = int(values[int(np.argmax(counts))])
    if frame not in (*FRAME_NS.values(), *_SECONDS):
        raise UserError(
            f"{path}: rows are {frame / 60e9:g} minutes apart",
            f"bars must be one of {', '.join(FRAME_NS)}, or of {', '.join(str(s // NS_PER_S) for s in _SECONDS)} seconds",
        )
    for rows in symbols:
        off = np.flatnonzero(rows.ts % frame)
        if off.size:
            k = int(off[0])
            raise UserError(
                f"{path}: {rows.base} row {k + 1} ({iso(int(rows.ts[k]))}) is not on the {frame / 60e9:g}-minute grid"
            )
    return frame


def _marks(path: Path | None) -> dict[str, SymbolRows]:
    if path is None:
        return {}
    rows = read_rows(path, _MARKS)
    for symbol in rows:
        _refuse_impossible(path, symbol)
    return {r.base: r for r in rows}


def _finite(path: Path | None, wanted: Wanted) -> list[SymbolRows]:
    """Return the rows of an optional file whose one column must be finite."""
    if path is None:
        return []
    name = wanted.required[0][0]
    found = read_rows(path, wanted)
    for rows in found:
        bad = ~np.isfinite(rows.columns[name])
        if bad.any():
            k = int(np.argmax(bad))
            raise UserError(f"{path}: {rows.base} row {k + 1} ({iso(int(rows.ts[k]))}): {name} is missing or not a number")
    return found
