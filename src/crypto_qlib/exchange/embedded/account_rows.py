"""Account, positions and bills as OKX shows them. Source: OKX API v5, ``/account/*``; real rows in the conformance tests."""

from __future__ import annotations

import math
from typing import Final

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import MarginMode, PositionSide
from crypto_qlib.exchange.embedded.order_rows import shown_id, subtype
from crypto_qlib.exchange.embedded.paper_book import BILL_ID_BASE, AlgoOrder, PaperFill
from crypto_qlib.exchange.embedded.wire import Row, ms, num
from crypto_qlib.venue.records import Bill, BillKind, ClosedPosition
from crypto_qlib.venue.snapshot import AccountSnapshot, PositionSnapshot

POSITION_ID_BASE: Final = 5 * 10**17
BILL_TYPES: Final = {
    BillKind.TRANSFER: "1", BillKind.TRADE: "2", BillKind.DELISTING: "3", BillKind.LIQUIDATION: "5", BillKind.MARGIN: "6",
    BillKind.FUNDING: "8", BillKind.ADL: "9",
}  # fmt: skip
_EMPTY_GREEKS: Final = dict.fromkeys(
    (
        "baseBal", "baseBorrowed", "baseInterest", "bizRefId", "bizRefType", "deltaBS", "deltaPA", "gammaBS", "gammaPA",
        "interest", "liab", "liabCcy", "optVal", "pendingCloseOrdLiabVal", "posCcy", "quoteBal", "quoteBorrowed",
        "quoteInterest", "spotInUseAmt", "spotInUseCcy", "thetaBS", "thetaPA", "usdPx", "vegaBS", "vegaPA", "availPos",
    ), ""
)  # fmt: skip
_EMPTY_BALANCE: Final = dict.fromkeys(
    (
        "accAvgPx", "clSpotInUseAmt", "maxSpotInUse", "maxSpotInUseAmt", "openAvgPx", "spotBal", "spotUpl", "spotUplRatio",
        "totalPnl", "totalPnlRatio", "maxLoan",
    ), ""
)  # fmt: skip
_ZERO_BALANCE: Final = dict.fromkeys(
    (
        "borrowFroz", "crossLiab", "fixedBal", "interest", "isoLiab", "liab", "rewardBal", "smtSyncEq", "spotCopyTradingEq",
        "spotInUseAmt", "spotIsoBal", "stgyEq", "twap", "uplLiab", "disEq", "autoLendAmt", "autoLendMtAmt", "colRes", "frpType",
    ), "0"
)  # fmt: skip
_EMPTY_FILL: Final = dict.fromkeys(("fillFwdPx", "fillIdxPx", "fillMarkPx", "fillMarkVol", "fillPxUsd", "fillPxVol"), "")


def balance_row(state: AccountSnapshot) -> Row:
    """Return the row of ``account/balance`` (futures mode: the account's own figures are per currency, USDT only)."""
    isolated = [p for p in state.positions if p.position.margin_mode is MarginMode.ISOLATED]
    isolated_upl = sum(p.upl for p in isolated)
    ts = ms(state.as_of_ns)
    usdt: Row = {
        "ccy": "USDT", "eq": num(state.equity), "cashBal": num(state.cash), "uTime": ts, "isoEq": num(state.isolated_equity),
        "availEq": num(state.available), "availBal": num(state.available), "frozenBal": num(state.equity - state.available),
        "ordFrozen": num(state.frozen), "upl": num(state.upl), "isoUpl": num(isolated_upl), "mgnRatio": num(state.margin_ratio),
        "imr": num(state.imr), "mmr": num(state.mmr), "eqUsd": num(state.equity), "notionalLever": "",
        "autoLendStatus": "unsupported", "autoStakingStatus": "unsupported", "coinUsdPrice": "1",
        "collateralEnabled": False, "collateralRestrict": False, "colBorrAutoConversion": "0",
    }  # fmt: skip
    total: Row = {
        "totalEq": num(state.equity), "isoEq": num(state.isolated_equity), "adjEq": "", "availEq": "", "ordFroz": "",
        "imr": "", "mmr": "", "borrowFroz": "", "notionalUsd": "", "notionalUsdForBorrow": "", "notionalUsdForFutures": "",
        "notionalUsdForOption": "", "notionalUsdForSwap": "", "mgnRatio": "", "upl": "", "uTime": ts,
        "delta": "", "deltaLever": "", "deltaNeutralStatus": "",
    }  # fmt: skip
    return total | {"details": [_EMPTY_BALANCE | _ZERO_BALANCE | usdt]}


def position_row(
    state: PositionSnapshot, instrument: Instrument, number: int, index_price: float, algo: AlgoOrder | None
) -> Row:
    """Return a row of ``account/positions``; ``number`` makes the position's id."""
    p = state.position
    isolated = p.margin_mode is MarginMode.ISOLATED
    last_upl = p.unrealised_pnl(state.last)
    entry_margin = p.qty * p.avg_entry / p.leverage
    opened = ms(p.opened_ns)
    row: Row = {
        "adl": "1", "avgPx": num(p.avg_entry), "bePx": num(state.break_even_price), "cTime": opened, "ccy": "USDT",
        "closeOrderAlgo": [_close_algo(algo)] if algo else [], "fee": num(-p.fee), "fundingFee": num(p.funding),
        "idxPx": num(index_price), "imr": "" if isolated else num(state.imr), "instId": instrument.inst_id,
        "instType": "SWAP", "last": num(state.last), "lever": num(p.leverage), "liqPenalty": num(-p.liquidation_penalty),
        "liqPx": num(state.reported_liquidation_price), "margin": num(p.isolated_margin) if isolated else "",
        "markPx": num(state.mark), "mgnMode": p.margin_mode.value, "mgnRatio": num(state.margin_ratio), "mmr": num(state.mmr),
        "notionalUsd": num(state.notional), "pnl": num(p.realised_pnl),
        "pos": signed_size(p.lots if p.position_side is PositionSide.NET else abs(p.lots), instrument),
        "posId": str(POSITION_ID_BASE + number), "posSide": p.position_side.value, "realizedPnl": num(p.net_realised),
        "tradeId": "",
        "uTime": opened, "upl": num(state.upl), "uplRatio": num(state.upl_ratio), "uplLastPx": num(last_upl),
        "uplRatioLastPx": num(last_upl / entry_margin),
    }  # fmt: skip
    return _EMPTY_GREEKS | row


def closed_row(row: Row, now_ms: str) -> Row:
    """Return what the positions channel shows once the position of ``row`` is closed: size 0, what depends on it empty."""
    emptied = dict.fromkeys(
        (
            "avgPx", "bePx", "imr", "liqPx", "margin", "mgnRatio", "mmr", "notionalUsd", "upl", "uplLastPx", "uplRatio",
            "uplRatioLastPx",
        ), ""
    )  # fmt: skip
    return row | emptied | {"pos": "0", "closeOrderAlgo": [], "uTime": now_ms, "pTime": now_ms}


def closed_position_row(closed: ClosedPosition, instrument: Instrument, number: int) -> Row:
    """Return a row of ``account/positions-history`` (type 2 closed, 3 liquidated, 5 auto-deleveraged)."""
    kind = {"liquidation": "3", "partial_liquidation": "4", "adl": "5"}.get(closed.exit_kind.value, "2")
    net = closed.pnl - closed.fee + closed.funding - closed.penalty
    size = num(instrument.contracts(abs(closed.lots)))
    margin = abs(closed.lots) * instrument.base_per_lot * closed.open_average / closed.leverage
    return {
        "cTime": ms(closed.opened_ns), "ccy": "USDT", "closeAvgPx": num(closed.close_average), "closeTotalPos": size,
        "direction": "long" if closed.lots > 0 else "short", "fee": num(-closed.fee), "fundingFee": num(closed.funding),
        "instId": instrument.inst_id, "instType": "SWAP", "lever": num(closed.leverage), "liqPenalty": num(-closed.penalty),
        "mgnMode": closed.margin_mode.value, "openAvgPx": num(closed.open_average), "openMaxPos": size, "pnl": num(closed.pnl),
        "pnlRatio": num(net / margin), "posId": str(POSITION_ID_BASE + number), "posSide": closed.position_side.value,
        "realizedPnl": num(net),
        "triggerPx": "", "type": kind, "uTime": ms(closed.closed_ns), "uly": instrument.inst_id.removesuffix("-SWAP"),
    }  # fmt: skip


def bill_row(bill: Bill, instrument: Instrument | None, fill: PaperFill | None) -> Row:
    """Return a row of ``account/bills``; ``balChg`` moves cash, ``posBalChg`` the position's isolated margin.

    Parameters
    ----------
    fill : PaperFill | None
        The fill behind a trade's bill.
    """
    size = instrument.contracts(abs(bill.signed_lots)) if instrument else abs(bill.cash_change)
    amount = bill.cash_change + bill.margin_change
    row: Row = {
        "bal": num(bill.cash_balance), "balChg": num(bill.cash_change), "billId": str(BILL_ID_BASE + bill.bill_id),
        "ccy": "USDT", "clOrdId": shown_id(bill.client_order_id),
        "execType": ("M" if fill.fill.is_maker else "T") if fill else "", "fee": num(-bill.fee), "from": "", "to": "",
        "instId": instrument.inst_id if instrument else "", "instType": "SWAP" if instrument else "", "interest": "0",
        "mgnMode": bill.margin_mode.value if bill.margin_mode else "", "notes": "",
        "ordId": str(fill.order_id) if fill and fill.order_id else "",
        "pnl": num(bill.funding if bill.kind is BillKind.FUNDING else bill.pnl), "posBal": "",
        "posBalChg": num(bill.margin_change), "px": "" if math.isnan(bill.price) else num(bill.price), "sz": num(size),
        "subType": subtype(fill) if fill else _bill_subtype(bill, amount),
        "tag": "", "ts": ms(bill.ts_ns), "type": BILL_TYPES[bill.kind],
        "fillTime": ms(bill.ts_ns) if bill.kind is BillKind.TRADE else "", "tradeId": str(fill.trade_id) if fill else "0",
    }  # fmt: skip
    return _EMPTY_FILL | row


def uid_of(account_id: str) -> str:
    """Return the number OKX's clients know an account by."""
    return str(int.from_bytes(account_id.encode()[:6]))


def signed_size(lots: int, instrument: Instrument) -> str:
    """Return signed lots in contracts, as net mode shows a position."""
    size = instrument.format_size(abs(lots))
    return f"-{size}" if lots < 0 else size


def _bill_subtype(bill: Bill, amount: float) -> str:
    """Return the ``subType`` of a bill without a fill."""
    if bill.kind is BillKind.FUNDING:
        return "174" if amount >= 0.0 else "173"
    if bill.kind is BillKind.MARGIN:
        return "160" if bill.margin_change >= 0.0 else "161"
    if bill.kind is BillKind.TRANSFER:
        return "11" if amount >= 0.0 else "12"
    # What the insurance fund bore after a cross liquidation has no fill either.
    return "104"


def _close_algo(algo: AlgoOrder) -> Row:
    levels = algo.protection
    stop, target = levels.stop_price, levels.take_profit_price
    kind = levels.trigger.value
    return {
        "algoId": str(algo.algo_id), "closeFraction": "1",
        "slTriggerPx": "" if stop is None else num(stop), "slTriggerPxType": "" if stop is None else kind,
        "tpTriggerPx": "" if target is None else num(target), "tpTriggerPxType": "" if target is None else kind,
    }  # fmt: skip
