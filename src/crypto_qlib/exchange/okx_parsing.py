"""OKX's rows to the package's types: strings to numbers, contracts to lots, milliseconds to nanoseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from crypto_qlib.core.account import OpenPosition
from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.instrument import Instrument, InstrumentState, symbol_from_inst_id
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.exchange.gateway import OrderReport

Row = dict[str, Any]

ORDER_STATES: Final[dict[str, OrderStatus]] = {
    "live": OrderStatus.LIVE,
    "partially_filled": OrderStatus.PARTIALLY_FILLED,
    "filled": OrderStatus.FILLED,
    "canceled": OrderStatus.CANCELED,
    "mmp_canceled": OrderStatus.CANCELED,
}
_STATES: Final[dict[str, InstrumentState]] = {
    "live": InstrumentState.LIVE,
    "preopen": InstrumentState.PREOPEN,
    "suspend": InstrumentState.SUSPEND,
}
_EXIT_OF_SUBTYPE: Final[dict[str, ExitKind]] = {
    **dict.fromkeys(("100", "101", "102", "103"), ExitKind.PARTIAL_LIQUIDATION),
    **dict.fromkeys(("104", "105", "106", "107", "109"), ExitKind.LIQUIDATION),
    **dict.fromkeys(("125", "126", "127", "128"), ExitKind.ADL),
    **dict.fromkeys(("112", "113"), ExitKind.DELISTED),
}
"""Closing reason by a fill's ``subType``. Source: OKX API v5, bill subtypes."""
_DEFAULT_FUNDING_HOURS: Final = 8
_CANDLE_COLUMNS: Final = 9


def number(text: str | float | None) -> float:
    """Return the number in ``text``; NaN where OKX sent an empty string or nothing."""
    return float(text) if text not in ("", None) else math.nan


def is_usdt_swap(row: Row) -> bool:
    """Return whether an instrument row is a USDT-margined linear swap."""
    return row.get("instType") == "SWAP" and row.get("settleCcy") == "USDT" and row.get("ctType") == "linear"


def instrument_from(row: Row, funding_interval_h: int = _DEFAULT_FUNDING_HOURS) -> Instrument:
    """Return the instrument in a row of ``public/instruments`` (``ct_val = ctVal * ctMult``)."""
    inst_id = str(row["instId"])
    return Instrument(
        symbol=symbol_from_inst_id(inst_id),
        inst_id=inst_id,
        base=str(row["ctValCcy"]),
        settle=str(row["settleCcy"]),
        ct_val=float(row["ctVal"]) * float(row.get("ctMult") or 1.0),
        tick_size=float(row["tickSz"]),
        lot_size=float(row["lotSz"]),
        min_size=float(row["minSz"]),
        max_market_size=float(row.get("maxMktSz") or math.inf),
        max_limit_size=float(row.get("maxLmtSz") or math.inf),
        max_leverage=float(row.get("lever") or 1.0),
        funding_interval_h=funding_interval_h,
        listed_ns=int(row.get("listTime") or 0) * NS_PER_MS,
        delisted_ns=int(row["expTime"]) * NS_PER_MS if row.get("expTime") else None,
        state=_STATES.get(str(row.get("state")), InstrumentState.EXPIRED),
    )


def tiers_from(rows: Sequence[Row]) -> TierTable:
    """Return the table in the rows of ``public/position-tiers`` (bounds in contracts)."""
    ordered = sorted(rows, key=lambda row: float(row["maxSz"]))
    bounds, mmr, imr, leverage = (
        np.array([float(row[name]) for row in ordered]) for name in ("maxSz", "mmr", "imr", "maxLever")
    )
    return TierTable(bounds, mmr, imr, leverage)


def bars_from(rows: Sequence[Sequence[str]]) -> BarBlock:
    """Return the candles in ``rows`` (any order, no duplicates), oldest first.

    Nine columns for last prices, six (no volumes: NaN) for mark and index.
    """
    if not rows:
        return BarBlock.empty()
    ordered = sorted(rows, key=lambda row: int(row[0]))
    columns = list(zip(*ordered, strict=True))
    # Plain int() and float() parse strings several times faster than numpy does.
    ts_open = np.fromiter(map(int, columns[0]), np.int64, len(ordered)) * NS_PER_MS
    first, high, low, close = (np.fromiter(map(float, columns[k]), np.float64, len(ordered)) for k in range(1, 5))
    if len(columns) < _CANDLE_COLUMNS:
        unknown = np.full(ts_open.size, np.nan)
        return BarBlock(ts_open, first, high, low, close, unknown, unknown)
    volume, quote_volume = (np.array([number(text) for text in columns[k]]) for k in (6, 7))
    return BarBlock(ts_open, first, high, low, close, volume, quote_volume)


def funding_from(rows: Sequence[Row]) -> FundingBlock:
    """Return the settlements in rows of ``public/funding-rate-history``, oldest first (``realizedRate``)."""
    pairs = sorted((int(row["fundingTime"]), float(row.get("realizedRate") or row["fundingRate"])) for row in rows)
    stamps = np.array([ts for ts, _ in pairs], dtype=np.int64) * NS_PER_MS
    return FundingBlock(stamps, np.array([rate for _, rate in pairs], dtype=np.float64))


def lots_from(contracts: str, instrument: Instrument) -> int:
    """Return a contract size as whole lots (signed)."""
    return round(number(contracts) / instrument.lot_size)


def order_report(row: Row, instrument: Instrument) -> OrderReport:
    """Return what a row of ``trade/order`` says; ``fee`` is the amount paid (OKX's sign flipped)."""
    return OrderReport(
        client_order_id=str(row.get("clOrdId", "")),
        exchange_order_id=str(row.get("ordId", "")),
        symbol=instrument.symbol,
        status=ORDER_STATES[str(row["state"])],
        filled_lots=lots_from(row.get("accFillSz") or "0", instrument),
        average_price=number(row.get("avgPx")),
        fee=-float(row.get("fee") or 0.0),
    )


def fill_from(row: Row, instrument: Instrument, exit_kind: ExitKind | None) -> Fill:
    """Return the fill in a row of ``trade/fills-history``; the row's ``subType`` beats ``exit_kind``."""
    lots = lots_from(row["fillSz"], instrument)
    return Fill(
        ts_ns=int(row.get("fillTime") or row["ts"]) * NS_PER_MS,
        symbol=instrument.symbol,
        signed_lots=lots if row["side"] == "buy" else -lots,
        price=float(row["fillPx"]),
        fee=-float(row.get("fee") or 0.0),
        is_maker=row.get("execType") == "M",
        client_order_id=str(row.get("clOrdId", "")),
        exit_kind=_EXIT_OF_SUBTYPE.get(str(row.get("subType", "")), exit_kind),
    )


def position_from(row: Row, instrument: Instrument, stop: float, take_profit: float) -> OpenPosition:
    """Return the position in a row of ``account/positions``; the sign is ``pos`` in net mode, ``posSide`` else."""
    lots = lots_from(row["pos"], instrument)
    if row.get("posSide") == "short":
        lots = -abs(lots)
    margin = row["margin"] if row.get("mgnMode") == "isolated" else row["imr"]
    return OpenPosition(
        symbol=instrument.symbol,
        lots=lots,
        qty=abs(lots) * instrument.base_per_lot,
        avg_entry=number(row["avgPx"]),
        mark=number(row["markPx"]),
        leverage=number(row["lever"]),
        margin=number(margin),
        opened_ns=int(row["cTime"]) * NS_PER_MS,
        stop_price=stop,
        take_profit_price=take_profit,
        liquidation_price=number(row.get("liqPx")),
    )
