"""Which external series exist, what one value of each means, when it is known and how long it may be carried on.

Features ask for a series by its name here; :func:`series_on_bars` serves it on bars with the catalogue's rules applied. Names
of stock-index series are ``<ticker>_<frame>_<field>``; on-chain and social series have one column a coin (``BTC``), all others
the one column :data:`~crypto_qlib.store.series_store.MARKET`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray
from crypto_qlib.data_collector.stock_sessions import carried_until
from crypto_qlib.store.observations import AsOf
from crypto_qlib.store.series_store import MARKET, SeriesStore


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """One external series.

    Parameters
    ----------
    name : str
        Its name in the store.
    source : str
        Who publishes it, see :mod:`crypto_qlib.data_collector.sources`.
    unit : str
        Unit of the value.
    event : str
        What the event time of a value is.
    carry_ns : int
        How long after it became known a value may still be used, ns; older is NaN.
    is_by_coin : bool
        Whether there is one series a coin, or one for the whole market.
    """

    name: str
    source: str
    unit: str
    event: str
    carry_ns: int
    is_by_coin: bool = False


YAHOO, ALTERNATIVE_ME, COINGECKO, COINMETRICS, WIKIMEDIA = "yahoo", "alternative_me", "coingecko", "coinmetrics", "wikimedia"

_LONGEST_CLOSURE_NS: Final = 100 * NS_PER_HOUR
"""Nothing is carried longer; besides, a value ends two hours into the next session (``stock_sessions.carried_until``)."""
BAR_FIELDS: Final = ("open", "high", "low", "close", "volume")
TICKERS: Final = {"qqq": "QQQ", "ndx": "^NDX", "nq": "NQ=F"}
"""Yahoo's ticker by the first word of the series' names: the ETF (with pre- and after-market hours), the index, the future."""


def _stock_series() -> list[SeriesSpec]:
    units = {"volume": "shares or contracts"}
    events = {"1h": "open of the bar", "1d": "open of the session"}
    return [
        SeriesSpec(f"{stem}_{frame}_{field}", YAHOO, units.get(field, "USD or points"), event, _LONGEST_CLOSURE_NS)
        for stem in TICKERS
        for frame, event in events.items()
        for field in BAR_FIELDS
    ]


def _day_series(source: str, carry_ns: int, units: dict[str, str]) -> list[SeriesSpec]:
    return [SeriesSpec(name, source, unit, "start of the UTC day it covers", carry_ns, True) for name, unit in units.items()]


CATALOGUE: Final[dict[str, SeriesSpec]] = {
    spec.name: spec
    for spec in (
        *_stock_series(),
        SeriesSpec("fear_greed", ALTERNATIVE_ME, "0 (fear) to 100 (greed)", "00:00 UTC of the day", 26 * NS_PER_HOUR),
        *(
            SeriesSpec(name, COINGECKO, unit, "instant of the snapshot", 3 * NS_PER_HOUR)
            for name, unit in (
                ("total_market_cap", "USD"),
                ("total_volume_24h", "USD"),
                ("btc_dominance", "fraction of the total market cap"),
                ("eth_dominance", "fraction of the total market cap"),
            )
        ),
        *_day_series(
            COINMETRICS,
            2 * NS_PER_DAY,
            {
                "active_addresses": "addresses active that day",
                "tx_count": "transactions",
                "transfer_count": "transfers",
                "transfer_value_usd": "USD, adjusted",
                "fees_usd": "USD",
                "mvrv": "market cap / realised cap",
                "nvt": "market cap / adjusted transfer value",
                "whale_addresses": "addresses that hold 1 million USD or more",
                "whale_supply": "coins on addresses that hold 1 million USD or more",
                "supply": "coins",
                "exchange_inflow_usd": "USD",
                "exchange_outflow_usd": "USD",
            },
        ),
        *_day_series(WIKIMEDIA, 2 * NS_PER_DAY, {"pageviews": "views by people of the coin's article, English Wikipedia"}),
    )
}
"""Every external series by name."""


def series_on_bars(store: SeriesStore, name: str, ts_close: IntArray, coins: Sequence[str] = ()) -> AsOf:
    """Return the series ``name`` as it was known at each bar's close, values too old to use as NaN.

    Parameters
    ----------
    store : SeriesStore
        Where series lie (``SeriesStore(paths.series)``).
    name : str
        A name of :data:`CATALOGUE`.
    ts_close : (n_bars,) int64
        Closes of the bars, ns since the epoch.
    coins : sequence of str
        Columns of a series by coin, e.g. ``("BTC", "ETH")``; ignored where the series is about the whole market.

    Returns
    -------
    AsOf
        Arrays of shape ``(n_bars, n_coins)``, or ``(n_bars, 1)`` for a series about the whole market.

    Raises
    ------
    UserError
        If there is no such series in the catalogue, or a file is damaged.
    """
    spec = CATALOGUE.get(name)
    if spec is None:
        raise UserError(f"there is no external series {name!r}", f"there are {', '.join(CATALOGUE)}")
    found = store.on_bars(name, coins if spec.is_by_coin else (MARKET,), ts_close, spec.carry_ns)
    if spec.source != YAHOO:
        return found
    is_stale = ts_close[:, None] >= carried_until(found.event_ns)
    return AsOf(np.where(is_stale, np.nan, found.value), found.age_ns, found.event_ns)
