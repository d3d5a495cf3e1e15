"""Recognise by behaviour a coin that is no bet of its own: its price stays at a dollar, hardly moves, or follows another coin.

Over the last 30 rankings (at least 10, none older than 60 days) of a coin's price ``p`` and a leader's price ``q``:

- *dollar*: every ``|p - 1| <= 0.03`` and the median ``<= 0.01``;
- *peg*: the standard deviation of the daily ``ln p`` changes is below 0.4 %, which no free coin manages;
- *claim on q*: the changes of ``ln p - ln q`` have less than a quarter of the standard deviation of those of ``ln q``, which
  itself is above 0.5 %, and the coin is smaller than its leader. Staking rewards are a slow drift and do not hide it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.market import FloatArray
from crypto_qlib.data_collector.market_caps import Coin

LEADERS: Final = ("BTC", "ETH", "SOL", "BNB", "TRX", "AVAX", "XAUT", "PAXG")
"""Coins others are claims on; the largest coin of the ticker is meant."""
_WINDOW: Final = 30
_LEAST: Final = 10
_MAX_AGE_NS: Final = 60 * NS_PER_DAY
_DOLLAR_BAND: Final = 0.03
_DOLLAR_MEDIAN: Final = 0.01
_PEG_SIGMA: Final = 0.004
_CLAIM_SHARE: Final = 0.25
_LEADER_SIGMA: Final = 0.005


class PegWatch:
    """Remember the latest prices of every coin; feed it rankings in order of time."""

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=_WINDOW)
        self._prices: dict[str, dict[int, float]] = {}
        self._leaders: dict[str, str] = {}

    def see(self, known_ns: int, coins: Iterable[Coin]) -> None:
        """Take in the prices of one ranking."""
        if len(self._times) == _WINDOW:
            oldest = self._times[0]
            for prices in self._prices.values():
                prices.pop(oldest, None)
        self._times.append(known_ns)
        leaders: dict[str, Coin] = {}
        for coin in coins:
            if coin.price > 0.0:
                self._prices.setdefault(coin.coin_id, {})[known_ns] = coin.price
            if coin.symbol in LEADERS and coin.market_cap > getattr(leaders.get(coin.symbol), "market_cap", 0.0):
                leaders[coin.symbol] = coin
        self._leaders = {name: coin.coin_id for name, coin in leaders.items()}

    def pegged_to(self, coin: Coin) -> str:
        """Return what the coin's price follows (``one dollar``, ``a fixed price``, ``ETH``), or an empty string."""
        times = self._recent()
        own = self._prices.get(coin.coin_id, {})
        p = np.array([own.get(t, math.nan) for t in times])
        if np.count_nonzero(np.isfinite(p)) < _LEAST:
            return ""
        off = np.abs(p[np.isfinite(p)] - 1.0)
        if off.max() <= _DOLLAR_BAND and float(np.median(off)) <= _DOLLAR_MEDIAN:
            return "one dollar"
        log_p = np.log(p)
        if _sigma(np.diff(log_p)) < _PEG_SIGMA:
            return "a fixed price"
        for name, leader in self._leaders.items():
            if leader == coin.coin_id or name == coin.symbol:
                continue
            theirs = self._prices.get(leader, {})
            log_q = np.log(np.array([theirs.get(t, math.nan) for t in times]))
            leader_sigma = _sigma(np.diff(log_q))
            if leader_sigma > _LEADER_SIGMA and _sigma(np.diff(log_p - log_q)) < _CLAIM_SHARE * leader_sigma:
                return name
        return ""

    def _recent(self) -> list[int]:
        newest = self._times[-1] if self._times else 0
        return [t for t in self._times if newest - t <= _MAX_AGE_NS]


def _sigma(changes: FloatArray) -> float:
    """Return the standard deviation of the finite changes; infinite where fewer than nine are known."""
    known = changes[np.isfinite(changes)]
    return float(known.std()) if known.size >= _LEAST - 1 else math.inf
