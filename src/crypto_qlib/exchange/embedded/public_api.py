"""``/api/v5/public/*`` and what ``load_markets`` needs besides. Source: OKX API v5, "Public Data"."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MS
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.wire import Call, Row, WireRefusal, envelope, ms, num, plain
from crypto_qlib.exchange.gateway import PriceKind

_FUNDING_LIMIT: Final = 100
_FAR_MS: Final = 2**62
_MAX_FAMILIES: Final = 5


@dataclass(frozen=True, slots=True)
class _Funding:
    ts_ms: list[int]
    rates: list[float]
    rows: list[bytes]


class PublicApi:
    """Handlers of the public-data endpoints; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        The market at the server's time.
    funding_retention_days : float | None
        How far back funding history reaches; ``None`` = all there is (OKX keeps about three months).
    """

    def __init__(self, window: MarketWindow, funding_retention_days: float | None) -> None:
        self._window = window
        self._retention_days = funding_retention_days
        self._funding: dict[tuple[str, int], _Funding] = {}

    def time(self, _call: Call) -> bytes:
        """Answer ``public/time``."""
        return envelope([{"ts": ms(self._window.clock.shown_ns())}])

    def status(self, _call: Call) -> bytes:
        """Answer ``system/status``: no maintenance."""
        return envelope([])

    def currencies(self, _call: Call) -> bytes:
        """Answer ``asset/currencies``: every base coin and USDT."""
        coins = ["USDT", *sorted({item.base for item in self._window.listed()})]
        return envelope([_currency_row(coin) for coin in coins])

    def instruments(self, call: Call) -> bytes:
        """Answer ``public/instruments``; only swaps exist here."""
        if call.required("instType") != "SWAP":
            return envelope([])
        wanted = call.query.get("instId", "")
        family = call.query.get("instFamily", call.query.get("uly", ""))
        listed = [
            i
            for i in (*self._window.listed(), *self._window.coming())
            if wanted in ("", i.inst_id) and family in ("", _family(i))
        ]
        if wanted and not listed:
            raise WireRefusal("51001")
        rows = [self.instrument_row(item) for item in listed]
        if not wanted and not family:
            # OKX drops a delisted swap from the list after a while; here it stays as suspended with its offline time, so
            # that a history replayed keeps the coins that died in it.
            # A delisting still to come is not told: the history behind the server knows it, a market would not.
            rows += [
                self.instrument_row(item) | {"state": "suspend", "expTime": ms(item.delisted_ns or 0)}
                for item in self._window.delisted()
            ]
        return envelope(rows)

    def instrument_row(self, item: Instrument) -> Row:
        """Return the row of ``public/instruments``."""
        row = _instrument_row(item, self._window.inst_id_code(item.inst_id))
        if item.listed_ns > self._window.clock.market_ns:
            return row | {"state": "preopen"}
        return row | {"state": "suspend"} if item.symbol in self._window.switches.suspended else row

    def channel_rows(self, channel: str, item: Instrument) -> list[Row]:
        """Return the row the public socket pushes for one instrument; none where the figure is not known."""
        if channel == "funding-rate":
            return [self._funding_row(item)]
        if channel == "price-limit":
            return [self._price_limit_row(item)]
        return self._mark_rows(item) if channel == "mark-price" else self._interest_rows(item)

    def funding_rate(self, call: Call) -> bytes:
        """Answer ``public/funding-rate``.

        The rate shown for the coming settlement is the last one settled: the coming one is not known yet.
        """
        wanted = call.required("instId")
        items = self._window.listed() if wanted == "ANY" else [self._window.tradable(wanted)]
        return envelope([self._funding_row(item) for item in items])

    def funding_history(self, call: Call) -> bytes:
        """Answer ``public/funding-rate-history``: settled rates, newest first, at most 100 rows."""
        item = self._window.known(call.required("instId"))
        table = self._funding_table(item)
        before, after = call.whole("before"), call.whole("after")
        now_ms = self._window.clock.market_ns // NS_PER_MS
        oldest_ms = 0
        if self._retention_days is not None:
            oldest_ms = now_ms - int(self._retention_days * NS_PER_DAY) // NS_PER_MS
        stop = bisect_left(table.ts_ms, min(_FAR_MS if after is None else after, now_ms))
        start = bisect_left(table.ts_ms, max(-1 if before is None else before, oldest_ms - 1) + 1)
        start = max(start, stop - call.limit(_FUNDING_LIMIT, _FUNDING_LIMIT))
        return b'{"code":"0","msg":"","data":[' + b",".join(reversed(table.rows[start:stop])) + b"]}"

    def mark_price(self, call: Call) -> bytes:
        """Answer ``public/mark-price``."""
        return envelope([row for item in self._asked(call) for row in self._mark_rows(item)])

    def open_interest(self, call: Call) -> bytes:
        """Answer ``public/open-interest``; instruments whose open interest is unknown are left out."""
        return envelope([row for item in self._asked(call) for row in self._interest_rows(item)])

    def position_tiers(self, call: Call) -> bytes:
        """Answer ``public/position-tiers``: bounds in contracts, up to five families."""
        if call.required("instType") != "SWAP":
            return envelope([])
        names = call.query.get("instFamily", call.query.get("uly", ""))
        if not names:
            raise WireRefusal("50014", "instFamily")
        families = names.split(",")
        if len(families) > _MAX_FAMILIES:
            raise WireRefusal("51000", "instFamily")
        return envelope([row for family in families for row in self._tier_rows(self._window.known(f"{family}-SWAP"))])

    def price_limit(self, call: Call) -> bytes:
        """Answer ``public/price-limit``: the index plus and minus the outer band (5 % majors, 8 % others)."""
        return envelope([self._price_limit_row(self._window.tradable(call.required("instId")))])

    def _mark_rows(self, item: Instrument) -> list[Row]:
        mark = self._window.price(PriceKind.MARK, item.symbol)
        if math.isnan(mark):
            return []
        return [{"instId": item.inst_id, "instType": "SWAP", "markPx": num(mark), "ts": ms(self._window.clock.now_ns())}]

    def _interest_rows(self, item: Instrument) -> list[Row]:
        coins = self._window.source.open_interest(item.symbol, self._window.clock.market_ns)
        if math.isnan(coins):
            return []
        usd = coins * self._window.price(PriceKind.LAST, item.symbol)
        row: Row = {
            "instId": item.inst_id,
            "instType": "SWAP",
            "oi": num(round(coins / item.ct_val, 8)),
            "oiCcy": num(round(coins, 8)),
        }
        return [row | {"oiUsd": num(round(usd, 8)), "ts": ms(self._window.clock.now_ns())}]

    def _price_limit_row(self, item: Instrument) -> Row:
        row: Row = {"instType": "SWAP", "instId": item.inst_id, "ts": ms(self._window.clock.now_ns()), "enabled": True}
        highest, lowest = self._window.price_limits(item)
        if math.isnan(highest):
            return row | {"buyLmt": "", "sellLmt": "", "enabled": False}
        return row | {"buyLmt": plain(item.format_price(highest)), "sellLmt": plain(item.format_price(lowest))}

    def _asked(self, call: Call) -> list[Instrument]:
        wanted = call.query.get("instId", "")
        if wanted:
            return [self._window.tradable(wanted)]
        family = call.query.get("instFamily", call.query.get("uly", ""))
        if call.required("instType") != "SWAP":
            return []
        return [item for item in self._window.listed() if family in ("", _family(item))]

    def _tier_rows(self, item: Instrument) -> list[Row]:
        table = self._window.source.tiers(item.symbol).at(self._window.clock.market_ns)
        rows: list[Row] = []
        low = 0.0
        for k in range(table.max_contracts.size):
            high = float(table.max_contracts[k])
            row = {
                "tier": str(k + 1),
                "minSz": num(low),
                "maxSz": num(high),
                "mmr": num(table.mmr[k]),
                "imr": num(table.imr[k]),
            }
            row |= {"maxLever": num(table.max_leverage[k]), "instFamily": _family(item), "uly": _family(item), "instId": ""}
            rows.append(row | {"baseMaxLoan": "", "quoteMaxLoan": "", "optMgnFactor": "0"})
            low = round(high + item.lot_size, 10)
        return rows

    def _funding_table(self, item: Instrument) -> _Funding:
        key = (item.symbol, self._window.switches.revision)
        table = self._funding.get(key)
        if table is None:
            block = self._window.source.funding(item.symbol, self._window.source.start_ns, self._window.source.end_ns + 1)
            stamps, rates = (block.ts // NS_PER_MS).tolist(), block.rate.tolist()
            rows = [_funding_history_row(item.inst_id, ts, rate) for ts, rate in zip(stamps, rates, strict=True)]
            table = self._funding[key] = _Funding(stamps, rates, rows)
        return table

    def _funding_row(self, item: Instrument) -> Row:
        table = self._funding_table(item)
        now_ms = self._window.clock.market_ns // NS_PER_MS
        # Settlement *times* are announced in advance, so reading them ahead is no look into the future; rates are not.
        coming = bisect_left(table.ts_ms, now_ms)
        step_ms = item.funding_interval_h * NS_PER_HOUR // NS_PER_MS
        first = table.ts_ms[coming] if coming < len(table.ts_ms) else -(-now_ms // step_ms) * step_ms
        second = table.ts_ms[coming + 1] if coming + 1 < len(table.ts_ms) else first + step_ms
        settled = table.rates[coming - 1] if coming else 0.0
        before = table.ts_ms[coming - 1] if coming else first - step_ms
        return {
            "instId": item.inst_id, "instType": "SWAP", "method": "current_period", "formulaType": "withRate",
            "fundingRate": num(settled), "fundingTime": str(first), "nextFundingRate": "", "nextFundingTime": str(second),
            "minFundingRate": "-0.015", "maxFundingRate": "0.015", "interestRate": "0.0001", "impactValue": "",
            "settState": "settled", "settFundingRate": num(settled), "premium": "", "prevFundingTime": str(before),
            "ts": ms(self._window.clock.now_ns()),
        }  # fmt: skip


def _family(item: Instrument) -> str:
    return item.inst_id.removesuffix("-SWAP")


def _funding_history_row(inst_id: str, ts_ms: int, rate: float) -> bytes:
    text = num(float(np.float64(rate)))
    return (
        f'{{"instType":"SWAP","instId":"{inst_id}","fundingRate":"{text}","realizedRate":"{text}",'
        f'"fundingTime":"{ts_ms}","method":"current_period","formulaType":"withRate"}}'
    ).encode()


def _instrument_row(item: Instrument, inst_id_code: str) -> Row:
    listed = ms(item.listed_ns)
    return {
        "alias": "", "baseCcy": "", "category": "1", "ctMult": "1", "ctType": "linear", "ctVal": num(item.ct_val),
        "ctValCcy": item.base, "expTime": "", "instFamily": _family(item), "instId": item.inst_id,
        "instIdCode": int(inst_id_code), "instType": "SWAP", "lever": num(item.max_leverage),
        "listTime": listed, "contTdSwTime": listed,
        "lotSz": num(item.lot_size), "maxIcebergSz": "100000000", "maxLmtAmt": "20000000",
        "maxLmtSz": num(item.max_limit_size) or "100000000", "maxMktAmt": "",
        "maxMktSz": num(item.max_market_size) or "100000000",
        "maxStopSz": num(item.max_market_size) or "100000000", "maxTriggerSz": "100000000", "maxTwapSz": "100000000",
        "minSz": num(item.min_size), "optType": "", "quoteCcy": "", "ruleType": "normal", "settleCcy": item.settle,
        "state": "live", "stk": "", "tickSz": num(item.tick_size), "uly": _family(item),
    }  # fmt: skip


def _currency_row(coin: str) -> Row:
    return {
        "ccy": coin, "name": coin, "chain": f"{coin}-Paper", "canDep": False, "canWd": False, "canInternal": False,
        "logoLink": "", "mainNet": True, "maxFee": "0", "minFee": "0", "maxWd": "0", "minWd": "0", "usedWdQuota": "0",
        "wdQuota": "0", "wdTickSz": "8",
    }  # fmt: skip
