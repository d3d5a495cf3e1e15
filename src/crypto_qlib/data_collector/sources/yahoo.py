"""QQQ, the NASDAQ 100 and its future from Yahoo Finance, through yfinance: hours with pre- and after-market, and days.

Bars are stamped at their open in exchange time; prices are taken as traded (adjusted for splits, not for dividends, which would
rewrite the past). A bar counts as known when it has ended plus the delay Yahoo quotes with: 15 minutes for the index, 10 for
futures, 1 for the ETF; a day's bar an hour after its session closed, when the closing auction has settled. Unfinished bars are
left out. Yahoo's API is unofficial: expect refusals, keep what was fetched.
Source: yfinance 1.7 ``PriceHistory.history``; hours reach back 730 days.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, floor_ts, utc
from crypto_qlib.core.errors import RetryLater, SkipCycle
from crypto_qlib.core.market import IntArray
from crypto_qlib.data_collector.external_catalogue import BAR_FIELDS, TICKERS, YAHOO
from crypto_qlib.data_collector.sources.source import Answer, Answers, Ask
from crypto_qlib.data_collector.stock_sessions import hour_ends, sessions_of_days, us_sessions
from crypto_qlib.store.series_store import MARKET

if TYPE_CHECKING:
    import pandas as pd

HOURS_REACH_NS: Final = 729 * NS_PER_DAY
QUOTE_DELAY_NS: Final = {"qqq": NS_PER_MINUTE, "ndx": 15 * NS_PER_MINUTE, "nq": 10 * NS_PER_MINUTE}
SETTLED_AFTER_NS: Final = NS_PER_HOUR
"""After the close of its session a day's bar has its final close and volume."""
_FUTURE: Final = "nq"
_YAHOO_HOSTS: Final = ("https://query1.finance.yahoo.com", "https://query2.finance.yahoo.com", "https://fc.yahoo.com",
                       "https://guce.yahoo.com")  # fmt: skip


@dataclass(frozen=True, slots=True)
class StockBars:
    """Bars of one ticker as a source has them, any order.

    Parameters
    ----------
    ts_open : (n,) int64
        Opens of hours, or midnight UTC of the session's date for days, ns.
    fields : dict of (n,) float64
        By name of :data:`~crypto_qlib.data_collector.external_catalogue.BAR_FIELDS`.
    """

    ts_open: IntArray
    fields: dict[str, Any]


def dated_bars(stem: str, frame: str, bars: StockBars, now_ns: int) -> tuple[list[Answer], int]:
    """Return one answer a field, finished bars only, and how many bars lay outside any session.

    Parameters
    ----------
    stem : str
        ``qqq``, ``ndx`` or ``nq``.
    frame : str
        ``1h`` or ``1d``.
    bars : StockBars
        Raw bars.
    now_ns : int
        Bars known later are left out.
    """
    if frame == "1d":
        session = sessions_of_days(bars.ts_open)
        times, at = us_sessions(), np.maximum(session, 0)
        event, known = times.open_ns[at], times.close_ns[at] + SETTLED_AFTER_NS
        is_real = session >= 0
    else:
        # Futures trade nearly around the clock: their hours are whole hours.
        end = bars.ts_open + NS_PER_HOUR if stem == _FUTURE else hour_ends(bars.ts_open)
        event, known, is_real = bars.ts_open, end + QUOTE_DELAY_NS[stem], end >= 0
    is_real &= np.isfinite(bars.fields["close"])
    use = np.flatnonzero(is_real & (known <= now_ns))
    use = use[np.unique(event[use], return_index=True)[1]]
    answers = [
        Answer(f"{stem}_{frame}_{n}", MARKET, event[use], np.asarray(bars.fields[n], np.float64)[use], known[use])
        for n in BAR_FIELDS
    ]
    return answers if use.size else [], int((~is_real).sum())


class StockIndex:
    """Yahoo Finance.

    Parameters
    ----------
    base_url : str
        A server that speaks Yahoo's chart API; empty = Yahoo itself.
    timeout_s : float
        Time limit of one request, seconds.
    """

    name: Final = YAHOO
    terms: Final = "Yahoo Finance; for personal use"

    def __init__(self, base_url: str = "", timeout_s: float = 20.0) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s

    def fetch(self, ask: Ask) -> Answers:
        """Return hours and days of every ticker; a ticker that fails is a note unless all do."""
        answers: list[Answer] = []
        notes: list[str] = []
        for stem, ticker in TICKERS.items():
            for frame in ("1h", "1d"):
                since = ask.since_ns(f"{stem}_{frame}_close", MARKET)
                if frame == "1h":
                    since = max(since, ask.now_ns - HOURS_REACH_NS)
                try:
                    bars = self._bars(ticker, frame, since)
                except SkipCycle as e:
                    notes.append(e.message)
                    continue
                found, n_outside = dated_bars(stem, frame, bars, ask.now_ns)
                answers += found
                if n_outside:
                    notes.append(f"{ticker} {frame}: {n_outside} bars without a price or outside any session left out")
        if not answers:
            raise SkipCycle(notes[0] if notes else "Yahoo Finance gave no bar", "try later, or import a file")
        return Answers(tuple(answers), tuple(notes))

    def _bars(self, ticker: str, frame: str, since_ns: int) -> StockBars:
        import yfinance as yf  # noqa: PLC0415 - heavy, and only needed online
        from yfinance.data import YfData  # noqa: PLC0415
        from yfinance.exceptions import YFException, YFRateLimitError  # noqa: PLC0415

        logging.getLogger("yfinance").setLevel(logging.CRITICAL)
        yf.config.debug.hide_exceptions = False
        # It keeps failed answers for the life of the process; a watcher would never recover.
        YfData.cache_get.cache_clear()
        start = utc(floor_ts(since_ns, NS_PER_DAY))
        try:
            table = yf.Ticker(ticker, session=self._session()).history(
                interval=frame, start=start, prepost=frame == "1h", auto_adjust=False, actions=False, timeout=self._timeout_s
            )
        except YFRateLimitError as e:
            raise RetryLater("Yahoo Finance refuses: too many requests", retry_after_s=3600.0) from e
        except (YFException, OSError) as e:
            raise SkipCycle(f"Yahoo Finance gave no {frame} bars of {ticker}: {_first_line(e)}") from e
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
            # What yfinance raises on an error page or on an answer of another shape.
            raise SkipCycle(f"Yahoo Finance has changed its answer for {ticker}: {type(e).__name__}: {_first_line(e)}") from e
        return _stock_bars(ticker, frame, table)

    def _session(self) -> Any:
        from curl_cffi import requests  # noqa: PLC0415 - as above

        if not self._base_url:
            return requests.Session(impersonate="chrome")
        base_url = self._base_url

        class Mirror(requests.Session):  # type: ignore[misc]
            """Ask the mirror whatever would be asked of Yahoo."""

            def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
                for host in _YAHOO_HOSTS:
                    if url.startswith(host):
                        url = base_url + url.removeprefix(host)
                return super().request(method, url, *args, **kwargs)

        return Mirror()


def _stock_bars(ticker: str, frame: str, table: pd.DataFrame) -> StockBars:
    if table.empty:
        raise SkipCycle(f"Yahoo Finance gave no {frame} bars of {ticker}")
    try:
        index: Any = table.index
        local = index.tz_localize(None) if frame == "1d" else index.tz_convert("UTC").tz_localize(None)
        ts_open = local.to_numpy("datetime64[ns]").astype(np.int64)
        fields = {name: table[name.capitalize()].to_numpy(np.float64) for name in BAR_FIELDS}
    except (KeyError, TypeError, AttributeError) as e:
        raise SkipCycle(f"Yahoo Finance has changed its answer for {ticker}: no {e}") from e
    return StockBars(floor_ts_array(ts_open, NS_PER_DAY) if frame == "1d" else ts_open, fields)


def floor_ts_array(ts_ns: IntArray, frame_ns: int) -> IntArray:
    """Return the open of the bar of length ``frame_ns`` that holds each instant."""
    return ts_ns - ts_ns % frame_ns


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
