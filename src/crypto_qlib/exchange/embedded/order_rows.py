"""Orders, algo orders and fills as OKX shows them. Source: OKX API v5, ``/trade/*``; real rows in the conformance tests."""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import ExitKind, OrderKind, PositionSide, Protection
from crypto_qlib.exchange.embedded.order_parsing import ANONYMOUS
from crypto_qlib.exchange.embedded.paper_book import BILL_ID_BASE, ORDER_ID_BASE, AlgoOrder, PaperFill
from crypto_qlib.exchange.embedded.refusals import wire_refusal
from crypto_qlib.exchange.embedded.wire import Row, ms, num, plain
from crypto_qlib.venue.records import RefusalCode, VenueOrder
from crypto_qlib.venue.trigger_records import TriggerOrder

_CANCEL_SOURCES: Final = {
    RefusalCode.CANCELED_BY_CLIENT: "1", RefusalCode.DEAD_MAN: "20",
    RefusalCode.POSITION_CLOSED: "22", RefusalCode.POST_ONLY_WOULD_TAKE: "31",
    RefusalCode.LIQUIDATED: "3", RefusalCode.DELISTED: "0",
}  # fmt: skip
_NOT_FILLED_SOURCES: Final = {OrderKind.FOK: "13", OrderKind.IOC: "14", OrderKind.MARKET: "14"}
_CATEGORIES: Final = {
    ExitKind.LIQUIDATION: "full_liquidation", ExitKind.PARTIAL_LIQUIDATION: "partial_liquidation", ExitKind.ADL: "adl",
    ExitKind.DELISTED: "delivery",
}  # fmt: skip
_CLOSING_SUBTYPES: Final = {
    ExitKind.PARTIAL_LIQUIDATION: ("100", "101"), ExitKind.LIQUIDATION: ("104", "105"), ExitKind.ADL: ("125", "126"),
    ExitKind.DELISTED: ("112", "113"),
}  # fmt: skip
"""Fill ``subType`` of (closing a long, closing a short) by reason; ordinary fills show 1 buy, 2 sell."""
_TRIGGERED: Final = "7"
_EMPTY_ORDER: Final = dict.fromkeys(
    (
        "algoClOrdId", "algoId", "attachAlgoClOrdId", "ccy", "pxType", "pxUsd", "pxVol", "quickMgnType", "slOrdPx",
        "slTriggerPx", "slTriggerPxType", "stpId", "tgtCcy", "tpOrdPx", "tpTriggerPx", "tpTriggerPxType", "source",
        "cancelSourceReason",
    ), ""
)  # fmt: skip
_EMPTY_ALGO: Final = dict.fromkeys(
    (
        "activePx", "amendPxOnTriggerType", "callbackRatio", "callbackSpread", "ccy", "chaseType", "chaseVal", "clOrdId",
        "failReason", "maxChaseType", "maxChaseVal", "moveTriggerPx", "ordPx", "pxLimit", "pxSpread", "pxVar",
        "quickMgnType", "szLimit", "tag", "tgtCcy", "timeInterval", "triggerPx", "triggerPxType", "actualPx", "activePxType",
    ), ""
)  # fmt: skip


def order_row(
    order: VenueOrder,
    instrument: Instrument,
    leverage: float,
    tag: str,
    last_fill: PaperFill | None,
    algo: AlgoOrder | None = None,
) -> Row:
    """Return a row of ``trade/order``; ``avgPx`` is empty and ``fee`` 0 before the first fill.

    Parameters
    ----------
    algo : AlgoOrder | None
        The algo order it came from.
    """
    request = order.request
    filled = last_fill is not None
    row: Row = {
        "accFillSz": instrument.format_size(order.filled_lots), "avgPx": num(order.average_price),
        "attachAlgoOrds": [attached_row(request.protection)] if request.protection else [],
        "cTime": ms(order.created_ns), "cancelSource": _cancel_source(order), "category": "normal",
        "clOrdId": shown_id(order.client_order_id), "fee": num(-order.fee) if order.filled_lots else "0", "feeCcy": "USDT",
        "fillPx": num(last_fill.fill.price) if last_fill else "",
        "fillSz": instrument.format_size(abs(last_fill.fill.signed_lots)) if last_fill else "0",
        "fillTime": ms(last_fill.fill.ts_ns) if last_fill else "", "instId": instrument.inst_id, "instType": "SWAP",
        "isTpLimit": "false", "lever": num(leverage), "linkedAlgoOrd": {"algoId": ""},
        "ordId": str(ORDER_ID_BASE + order.order_id), "ordType": request.kind.value, "pnl": num(order.pnl),
        "posSide": request.position_side.value,
        "px": "" if request.price is None else plain(instrument.format_price(request.price)), "rebate": "0",
        "rebateCcy": "USDT",
        "reduceOnly": str(request.reduce_only).lower(), "side": request.side.name.lower(), "state": order.status.value,
        "stpMode": "cancel_maker", "sz": instrument.format_size(request.lots), "tag": tag, "tdMode": request.margin_mode.value,
        "tradeId": str(last_fill.trade_id) if last_fill else "", "uTime": ms(order.updated_ns),
        "execType": ("M" if last_fill.fill.is_maker else "T") if filled and last_fill else "",
    }  # fmt: skip
    if algo is not None:
        row |= {"algoId": str(algo.algo_id), "algoClOrdId": algo.client_id, "source": _TRIGGERED}
    return _EMPTY_ORDER | row


def child_order_row(fill: PaperFill, instrument: Instrument, leverage: float, algo: AlgoOrder | None) -> Row:
    """Return the order behind a fill the exchange made itself: a triggered stop, a liquidation, a delisting."""
    f = fill.fill
    size, ts = instrument.format_size(abs(f.signed_lots)), ms(f.ts_ns)
    row: Row = {
        "accFillSz": size, "avgPx": num(f.price), "attachAlgoOrds": [], "cTime": ts, "cancelSource": "",
        "category": _CATEGORIES.get(f.exit_kind, "normal") if f.exit_kind else "normal", "clOrdId": "", "fee": num(-f.fee),
        "feeCcy": "USDT", "fillPx": num(f.price), "fillSz": size, "fillTime": ts, "instId": instrument.inst_id,
        "instType": "SWAP", "isTpLimit": "false", "lever": num(leverage), "linkedAlgoOrd": {"algoId": ""},
        "ordId": str(fill.order_id), "ordType": "market", "pnl": num(fill.pnl), "posSide": fill.position_side.value, "px": "",
        "rebate": "0",
        "rebateCcy": "USDT", "reduceOnly": "true", "side": "buy" if f.signed_lots > 0 else "sell", "state": "filled",
        "stpMode": "cancel_maker", "sz": size, "tag": "", "tdMode": fill.margin_mode.value, "tradeId": str(fill.trade_id),
        "uTime": ts, "execType": "T", "source": _TRIGGERED if algo else "",
        "algoId": str(algo.algo_id) if algo else "", "algoClOrdId": algo.client_id if algo else "",
    }  # fmt: skip
    return _EMPTY_ORDER | row


def algo_row(algo: AlgoOrder, instrument: Instrument, leverage: float, last: float) -> Row:
    """Return a row of ``trade/orders-algo-pending`` or ``-history``."""
    child = str(algo.child_id) if algo.child_id else ""
    size = instrument.format_size(algo.lots) if algo.lots else ""
    whole = algo.trigger is None or algo.trigger.request.lots == 0
    reduces = algo.trigger is None or algo.trigger.request.closes_only
    failed = algo.trigger is not None and algo.state == "order_failed" and algo.trigger.refusal is not None
    row: Row = {
        "actualSide": algo.fired_side, "actualSz": size if child else "0", "algoClOrdId": algo.client_id,
        "clOrdId": algo.client_id,
        "algoId": str(algo.algo_id), "attachAlgoOrds": [], "cTime": ms(algo.created_ns), "closeFraction": "1" if whole else "",
        "failCode": wire_refusal(algo.trigger.refusal).code if failed and algo.trigger and algo.trigger.refusal else "0",
        "instId": instrument.inst_id, "instType": "SWAP", "isTradeBorrowMode": "", "last": num(last), "lever": num(leverage),
        "linkedOrd": {"ordId": ""}, "ordId": child, "ordIdList": [child] if child else [], "ordType": algo.kind,
        "posSide": algo.key[2].value, "reduceOnly": str(reduces).lower(), "side": "sell" if algo.closes_long else "buy",
        "state": algo.state, "sz": size, "tdMode": algo.key[1].value, "uTime": ms(algo.updated_ns),
        "triggerTime": ms(algo.updated_ns) if child else "", "ctVal": num(instrument.ct_val),
        "notionalUsd": num(algo.lots * instrument.base_per_lot * last), "uly": instrument.inst_id.removesuffix("-SWAP"),
    }  # fmt: skip
    levels = _levels(algo.protection) if algo.trigger is None else _trigger_levels(algo.trigger)
    return _EMPTY_ALGO | row | levels


def _trigger_levels(trigger: TriggerOrder) -> Row:
    row = _levels(Protection())
    for leg in trigger.request.legs:
        price = "-1" if leg.price is None else num(leg.price)
        prefix = {ExitKind.STOP: "sl", ExitKind.TAKE_PROFIT: "tp"}.get(leg.exit_kind, "") if leg.exit_kind else ""
        if prefix:
            row |= {f"{prefix}TriggerPx": num(leg.level), f"{prefix}OrdPx": price, f"{prefix}TriggerPxType": leg.source.value}
        else:
            row |= {"triggerPx": num(leg.level), "ordPx": price, "triggerPxType": leg.source.value}
    trailing = trigger.request.trailing
    if trailing is not None:
        ratio, spread, active = (
            "" if value is None else num(value) for value in (trailing.ratio, trailing.spread, trailing.active_price)
        )
        row |= {"callbackRatio": ratio, "callbackSpread": spread, "activePx": active, "moveTriggerPx": num(trigger.best)}
    if trigger.request.protection is not None:
        row["attachAlgoOrds"] = [attached_row(trigger.request.protection)]
    return row


def attached_row(protection: Protection) -> Row:
    """Return the element of ``attachAlgoOrds`` an order shows for its stop-loss and take-profit."""
    row: Row = {"attachAlgoId": "", "attachAlgoClOrdId": "", "amendPxOnTriggerType": "0", "failCode": "", "failReason": ""}
    return row | {"sz": "", "tpOrdKind": "condition"} | _levels(protection)


def fill_row(fill: PaperFill, instrument: Instrument, tag: str) -> Row:
    """Return a row of ``trade/fills``; ``fee`` is negative where it is charged."""
    f = fill.fill
    buys = f.signed_lots > 0
    notional = abs(f.signed_lots) * instrument.base_per_lot * f.price
    return {
        "billId": str(BILL_ID_BASE + fill.bill.bill_id), "clOrdId": shown_id(f.client_order_id),
        "execType": "M" if f.is_maker else "T", "fee": num(-f.fee), "feeCcy": "USDT",
        "feeRate": num(round(-f.fee / notional, 10)),
        "fillFwdPx": "", "fillIdxPx": "", "fillMarkPx": "", "fillMarkVol": "", "fillPnl": num(fill.pnl),
        "fillPx": num(f.price), "fillPxUsd": "", "fillPxVol": "", "fillSz": instrument.format_size(abs(f.signed_lots)),
        "fillTime": ms(f.ts_ns), "instId": instrument.inst_id, "instType": "SWAP", "ordId": str(fill.order_id),
        "posSide": fill.position_side.value, "side": "buy" if buys else "sell", "subType": subtype(fill), "tag": tag,
        "tradeId": str(fill.trade_id),
        "ts": ms(f.ts_ns),
    }  # fmt: skip


def subtype(fill: PaperFill) -> str:
    """Return the ``subType`` of a fill and its bill: why the exchange closed; else buy and sell, or what it did to a side.

    Source: OKX API v5, bill subtypes: 1 buy, 2 sell, 3 open long, 4 open short, 5 close long, 6 close short.
    """
    f, buys = fill.fill, fill.fill.signed_lots > 0
    pair = _CLOSING_SUBTYPES.get(f.exit_kind) if f.exit_kind else None
    if pair is not None:
        return pair[1] if buys else pair[0]
    names = {PositionSide.NET: ("1", "2"), PositionSide.LONG: ("3", "5"), PositionSide.SHORT: ("6", "4")}
    return names[fill.position_side][0 if buys else 1]


def pushed_fields(fill: PaperFill | None, instrument: Instrument, last: float, row: Row) -> Row:
    """Return the fields the orders channel has besides those of ``trade/order``."""
    price = float(row["px"] or row["avgPx"] or last)
    more: Row = {
        "amendResult": "", "amendSource": "", "code": "0", "msg": "", "reqId": "", "lastPx": num(last),
        "notionalUsd": num(round(float(row["sz"]) * instrument.ct_val * price, 8)), "fillFee": "0", "fillFeeCcy": "",
        "fillMarkPx": "", "fillMarkVol": "", "fillNotionalUsd": "", "fillPnl": "0", "fillPxUsd": "", "fillPxVol": "",
        "fillFwdPx": "", "fillIdxPx": "", "tradeQuoteCcy": "", "linkedAlgoOrd": row["linkedAlgoOrd"],
    }  # fmt: skip
    if fill is None:
        return more
    notional = abs(fill.fill.signed_lots) * instrument.base_per_lot * fill.fill.price
    return more | {
        "fillFee": num(-fill.fill.fee), "fillFeeCcy": "USDT", "fillNotionalUsd": num(notional), "fillPnl": num(fill.pnl),
    }  # fmt: skip


def liquidation_row(fill: PaperFill, instrument: Instrument) -> Row:
    """Return the row of the public channel liquidation-orders."""
    f = fill.fill
    buys = f.signed_lots > 0
    detail: Row = {
        "side": "buy" if buys else "sell", "posSide": "short" if buys else "long", "bkPx": num(f.price), "bkLoss": "0",
        "sz": instrument.format_size(abs(f.signed_lots)), "ccy": "", "ts": ms(f.ts_ns),
    }  # fmt: skip
    family = instrument.inst_id.removesuffix("-SWAP")
    return {"instType": "SWAP", "instId": instrument.inst_id, "instFamily": family, "uly": family, "details": [detail]}


def shown_id(client_order_id: str) -> str:
    """Return a client order id as clients see it: ids the server made itself are hidden."""
    return "" if client_order_id.startswith(ANONYMOUS) else client_order_id


def _levels(protection: Protection) -> Row:
    row: Row = {}
    for prefix, level in (("sl", protection.stop_price), ("tp", protection.take_profit_price)):
        given = level is not None
        row |= {f"{prefix}TriggerPx": num(level) if level is not None else "", f"{prefix}OrdPx": "-1" if given else ""}
        row[f"{prefix}TriggerPxType"] = protection.trigger.value if given else ""
    return row


def _cancel_source(order: VenueOrder) -> str:
    if order.status.value != "canceled" or order.refusal is None:
        return ""
    return _CANCEL_SOURCES.get(order.refusal.code, _NOT_FILLED_SOURCES.get(order.kind, ""))
