"""``/api/v5/rubik/stat/*``: statistics over time, as far as the market behind the server knows them.

Source: OKX API v5, "Trading Statistics": ``contracts/open-interest-history`` (``[ts, contracts, coins, usd]``) and
``taker-volume-contract`` (``[ts, sell, buy]``); newest first, at most 100 rows. Who took what is not part of a market's
history here, and none is made up: taker volume is empty.
"""

from __future__ import annotations

import math
from typing import Final

from crypto_qlib.core.clock import FRAME_NS, NS_PER_MS
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.wire import Call, WireRefusal, envelope, ms, num

_PERIODS: Final = {"5m": "5m", "15m": "15m", "1H": "1h", "4H": "4h", "1D": "1d", "1Dutc": "1d"}
_LIMIT: Final = 100


class RubikApi:
    """Handlers of the statistics; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        The market at the server's time.
    """

    def __init__(self, window: MarketWindow) -> None:
        self._window = window

    def open_interest_history(self, call: Call) -> bytes:
        """Answer ``rubik/stat/contracts/open-interest-history``: one row per whole period, as far as it is known."""
        item, stamps = self._window.known(call.required("instId")), self._stamps(call)
        rows: list[list[str]] = []
        for ts_ns in stamps:
            coins = self._window.source.open_interest(item.symbol, ts_ns)
            if math.isnan(coins):
                continue
            bars = self._window.source.bars(item.symbol, self._window.clock.step_ns, ts_ns - self._window.clock.step_ns, ts_ns)
            price = float(bars.close[-1]) if len(bars) else math.nan
            usd = "" if math.isnan(price) else num(coins * price)
            rows.append([ms(ts_ns), num(coins / item.ct_val), num(coins), usd])
        return envelope(rows)

    def taker_volume(self, call: Call) -> bytes:
        """Answer ``rubik/stat/taker-volume-contract``: nothing is known."""
        self._window.known(call.required("instId"))
        self._stamps(call)
        return envelope([])

    def _stamps(self, call: Call) -> list[int]:
        """Return the instants asked for, newest first: multiples of the period in ``(begin, end)``, at most 100."""
        period = call.query.get("period", "5m")
        if period not in _PERIODS:
            raise WireRefusal("51000", "period")
        frame_ns = FRAME_NS[_PERIODS[period]]
        begin, end = call.whole("begin"), call.whole("end")
        now_ns = self._window.clock.market_ns
        stop = min(now_ns + 1, now_ns + 1 if end is None else end * NS_PER_MS)
        newest = (stop - 1) // frame_ns * frame_ns
        oldest = max(self._window.source.start_ns, 0 if begin is None else begin * NS_PER_MS + 1)
        stamps = range(newest, oldest - 1, -frame_ns)
        return list(stamps[: call.limit(_LIMIT, _LIMIT)])
