"""The collector as Qlib users know it: the interface of ``BaseCollector`` in Qlib's ``scripts/data_collector``.

``collector_data()`` fetches through the gateway into the lake and writes one CSV a symbol to ``save_dir``, in the columns that
Qlib's ``dump_bin.py`` reads (``symbol, date, open, high, low, close, volume, change, factor``; crypto has no splits: ``factor``
is 1).
Source: microsoft/qlib, ``scripts/data_collector/base.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from crypto_qlib.core.clock import FRAME_NS, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake

_FRAMES: Final = {"1min": "1m", "5min": "5m", "15min": "15m", "60min": "1h", "1h": "1h", "240min": "4h", "1d": "1d"}
"""Our frame by Qlib's ``interval``."""

OpenGateway = Callable[[], AbstractAsyncContextManager[Gateway]]


class OkxCollector:
    """Collect bars of USDT swaps.

    Parameters
    ----------
    save_dir : str or Path
        Where the CSV files go; the lake lies in ``save_dir/lake``.
    gateway : callable
        Opens the exchange, e.g. ``lambda: OkxGateway(ExchangeSettings(mode="live"), None)``.
    symbols : sequence of str
        Compact names.
    start, end : str
        ISO times; bars with ``start <= date < end``.
    interval : str
        ``1min 5min 15min 60min 240min 1d``.
    max_workers : int
        Requests in flight.
    limit_nums : int, optional
        Only so many symbols, for trying out.

    Raises
    ------
    UserError
        If the interval is unknown or the span is empty.
    """

    def __init__(
        self,
        save_dir: str | Path,
        gateway: OpenGateway,
        symbols: Sequence[str],
        start: str,
        end: str,
        interval: str = "60min",
        max_workers: int = 8,
        limit_nums: int | None = None,
    ) -> None:
        if interval not in _FRAMES:
            raise UserError(f"{interval!r} is no interval of this collector", f"one of {', '.join(_FRAMES)}")
        self.save_dir = Path(save_dir)
        self.interval = interval
        self.start_datetime, self.end_datetime = pd.Timestamp(start, tz="UTC"), pd.Timestamp(end, tz="UTC")
        self.max_workers = max_workers
        self.instrument_list = sorted(set(symbols))[:limit_nums]
        self._span = parse_utc(start), parse_utc(end)
        self._gateway = gateway
        self._lake = Lake(self.save_dir / "lake")
        if self._span[0] >= self._span[1]:
            raise UserError(f"no bar lies between {start} and {end}", "give a later end")

    def get_instrument_list(self) -> list[str]:
        """Return the symbols that are collected."""
        return list(self.instrument_list)

    def normalize_symbol(self, symbol: str) -> str:
        """Return the name a symbol has in Qlib's store."""
        return symbol.upper()

    def get_data(self, symbol: str, interval: str, start_datetime: pd.Timestamp, end_datetime: pd.Timestamp) -> pd.DataFrame:
        """Return the collected bars of one symbol with ``start_datetime <= date < end_datetime``; empty where there is none."""
        bars = self._lake.read_bars(Kind.CANDLES, _FRAMES[interval], symbol, start_datetime.value, end_datetime.value)
        dates = pd.DatetimeIndex(bars.ts_open.astype("datetime64[ns]"))
        frame = pd.DataFrame({n: getattr(bars, n) for n in ("open", "high", "low", "close", "volume")})
        frame.insert(0, "date", dates)
        frame.insert(0, "symbol", self.normalize_symbol(symbol))
        frame["change"] = np.append(np.nan, bars.close[1:] / bars.close[:-1] - 1.0)[: len(bars)]
        frame["factor"] = 1.0
        return frame

    def collector_data(self) -> list[Path]:
        """Fetch what is missing and write one CSV a symbol; return the files, those of symbols without bars left out."""
        asyncio.run(self._fetch())
        self.save_dir.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for symbol in self.instrument_list:
            frame = self.get_data(symbol, self.interval, self.start_datetime, self.end_datetime)
            if len(frame):
                path = self.save_dir / f"{self.normalize_symbol(symbol)}.csv"
                frame.to_csv(path, index=False)
                written.append(path)
        return written

    async def _fetch(self) -> None:
        frame = _FRAMES[self.interval]
        wanted = DataSettings.model_validate(
            {
                "frame": frame, "since": self.start_datetime.isoformat(), "concurrency": self.max_workers,
                "mark_candles": False, "funding": False, "statistics": False,
            }
        )  # fmt: skip
        async with self._gateway() as gateway:
            now_ns = min(await gateway.server_time_ns(), self._span[1] // FRAME_NS[frame] * FRAME_NS[frame])
            await update_data(gateway, self._lake, self.instrument_list, wanted, now_ns)
