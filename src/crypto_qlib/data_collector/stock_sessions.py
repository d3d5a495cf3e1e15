"""When a stock bar ends and how long it may be carried on: sessions, half days and daylight saving of New York.

::

    04:00    09:30                      16:00 (13:00)        20:00 (17:00)      New York, half day in brackets
      |--pre---|--------session-----------|------after---------|
      bars on the hour   bars on the half hour   bars on the hour               hours, as Yahoo cuts them

A bar ends at its nominal length or at the next of these borders, whichever comes first: the half-hour bar that opens at 15:30
ends with the session. Times of the sessions come from exchange-calendars, so half days and daylight saving are its facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import exchange_calendars
import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.market import IntArray

_FIRST_SESSION: Final = "2000-01-03"
_PRE_MARKET_NS: Final = 330 * NS_PER_MINUTE
_AFTER_MARKET_NS: Final = 4 * NS_PER_HOUR
_NEWS_IS_LATE_NS: Final = 2 * NS_PER_HOUR
"""First hour of the new session, its publication and the time to fetch it."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Trading sessions, oldest first.

    Parameters
    ----------
    day_ns : (n,) int64
        Midnight UTC of the session's date (its name, not an instant of trading).
    open_ns, close_ns : (n,) int64
        Opening and closing auction, ns since the epoch.
    """

    day_ns: IntArray
    open_ns: IntArray
    close_ns: IntArray

    def holding(self, ts_ns: IntArray) -> IntArray:
        """Return the index of the session whose trading hours, pre- and after-market included, hold each instant; else -1."""
        at = np.searchsorted(self.open_ns - _PRE_MARKET_NS, ts_ns, side="right") - 1
        is_inside = (at >= 0) & (ts_ns < self.close_ns[np.maximum(at, 0)] + _AFTER_MARKET_NS)
        return np.where(is_inside, at, -1)


@cache
def us_sessions() -> Sessions:
    """Return the sessions of the New York exchanges since the year 2000, a year ahead of now."""
    table = exchange_calendars.get_calendar("XNYS", start=_FIRST_SESSION).schedule
    day, opens, closes = (
        np.asarray(column, dtype="datetime64[ns]").astype(np.int64)
        for column in (table.index, table["open"].dt.tz_localize(None), table["close"].dt.tz_localize(None))
    )
    return Sessions(day, opens, closes)


def hour_ends(ts_open: IntArray) -> IntArray:
    """Return when each hourly bar of a US stock ends, ns; -1 for a bar that opens outside any session (holidays, nights).

    Parameters
    ----------
    ts_open : (n,) int64
        Opens of the bars, ns.
    """
    sessions = us_sessions()
    at = sessions.holding(ts_open)
    session = np.maximum(at, 0)
    end = ts_open + NS_PER_HOUR
    for border in (
        sessions.open_ns[session],
        sessions.close_ns[session],
        sessions.close_ns[session] + _AFTER_MARKET_NS,
    ):
        end = np.where((ts_open < border) & (border < end), border, end)
    return np.where(at >= 0, end, -1)


def sessions_of_days(day_ns: IntArray) -> IntArray:
    """Return the index of the session each date (midnight UTC) names, -1 where there was none."""
    sessions = us_sessions()
    at = np.searchsorted(sessions.day_ns, day_ns)
    found = sessions.day_ns[np.minimum(at, sessions.day_ns.size - 1)] == day_ns
    return np.where(found, at, -1)


def carried_until(event_ns: IntArray) -> IntArray:
    """Return until when a bar's value may be carried on: two hours into the session after its own.

    Nights, weekends and holidays are bridged by the last value; once the next session has traded for an hour and its bar is
    published, the old value is stale, whatever became of the new one.

    Parameters
    ----------
    event_ns : (n,) int64
        Opens of bars or of sessions, ns; negative where there is none.
    """
    sessions = us_sessions()
    at = sessions.holding(event_ns)
    following = np.where(at >= 0, at + 1, np.searchsorted(sessions.open_ns, event_ns, side="right"))
    following = np.minimum(following, sessions.open_ns.size - 1)
    return np.where(event_ns < 0, -1, sessions.open_ns[following] + _NEWS_IS_LATE_NS)
