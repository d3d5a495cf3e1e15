"""``/api/v5/rubik/stat/*``: statistics over time, as far as the market behind the server knows them.

Source: OKX API v5, "Trading Statistics": ``contracts/open-interest-history`` (``[ts, contracts, coins, usd]``),
``taker-volume-contract`` (``[ts, sell, buy]``) and ``contracts/long-short-account-ratio-contract`` (``[ts, ratio]``); newest
first, at most 100 rows. A simulated market tells who took what by the trades it shows, and has a crowd of its own
(``venue.market_crowd``). Recorded candles say neither, and none is made up: it is empty then.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_MS
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.taker_tape import taker_coins
from crypto_qlib.exchange.embedded.wire import Call, WireRefusal, envelope, ms, num
from crypto_qlib.exchange.gateway import PriceKind

_PERIODS: Final = {"5m": "5m", "15m": "15m", "1H": "1h", "4H": "4h", "1D": "1d", "1Dutc": "1d"}
_LIMIT: Final = 100
_UNITS: Final = ("0", "1", "2")


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
        """Answer ``rubik/stat/taker-volume-contract``: one row per whole period; ``unit`` 0 coins, 1 contracts, 2 USD."""
        item, frame_ns = self._window.known(call.required("instId")), self._period(call)
        unit = call.query.get("unit", "1")
        if unit not in _UNITS:
            raise WireRefusal("51000", "unit")
        opens = self._stamps(call, frame_ns)
        if not opens or not self._window.source.is_simulated:
            return envelope([])
        step_ns = self._window.clock.step_ns
        bars = self._window.closed_bars(PriceKind.LAST, item.symbol, step_ns, opens[-1], opens[0] + frame_ns)
        buy, sell = taker_coins(item, bars)
        if unit == "1":
            buy, sell = buy / item.ct_val, sell / item.ct_val
        elif unit == "2":
            buy, sell = buy * bars.close, sell * bars.close
        place = (bars.ts_open - opens[-1]) // frame_ns
        n = (opens[0] - opens[-1]) // frame_ns + 1
        bought, sold = (np.bincount(place, values, n) for values in (buy, sell))
        is_known = np.bincount(place, minlength=n) > 0
        rows = [(ts, (ts - opens[-1]) // frame_ns) for ts in opens]
        return envelope([[ms(ts), num(float(sold[k])), num(float(bought[k]))] for ts, k in rows if is_known[k]])

    def long_short_ratio(self, call: Call) -> bytes:
        """Answer ``rubik/stat/contracts/long-short-account-ratio-contract``: one row per whole period, where it is known."""
        item, frame_ns = self._window.known(call.required("instId")), self._period(call)
        stamps = self._stamps(call, frame_ns)
        if not stamps:
            return envelope([])
        block = self._window.source.long_short_ratios(item.symbol, frame_ns, stamps[-1], stamps[0] + 1)
        rows = zip(block.ts[::-1].tolist(), block.ratio[::-1].tolist(), strict=True)
        return envelope([[ms(ts), num(ratio)] for ts, ratio in rows])

    def _period(self, call: Call) -> int:
        period = call.query.get("period", "5m")
        if period not in _PERIODS:
            raise WireRefusal("51000", "period")
        return FRAME_NS[_PERIODS[period]]

    def _stamps(self, call: Call, known_after_ns: int = 0) -> list[int]:
        """Return the instants asked for, newest first: multiples of the period in ``(begin, end)``, at most 100.

        Those whose row is known ``known_after_ns`` after its instant, by now.
        """
        frame_ns = self._period(call)
        begin, end = call.whole("begin"), call.whole("end")
        now_ns = self._window.clock.market_ns - known_after_ns
        stop = min(now_ns + 1, now_ns + 1 if end is None else end * NS_PER_MS)
        newest = (stop - 1) // frame_ns * frame_ns
        oldest = max(self._window.source.start_ns, 0 if begin is None else begin * NS_PER_MS + 1)
        stamps = range(newest, oldest - 1, -frame_ns)
        return list(stamps[: call.limit(_LIMIT, _LIMIT)])
