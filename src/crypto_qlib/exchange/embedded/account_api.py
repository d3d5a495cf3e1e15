"""``/api/v5/account/*``: configuration, balance, positions, leverage, bills. Source: OKX API v5, "Trading Account"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MS
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.order import MarginMode, PositionKey, PositionSide
from crypto_qlib.exchange.embedded import order_parsing as parse
from crypto_qlib.exchange.embedded.account_rows import (
    BILL_TYPES,
    balance_row,
    bill_row,
    closed_position_row,
    position_row,
    uid_of,
)
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.paging import page
from crypto_qlib.exchange.embedded.paper_book import BILL_ID_BASE, PaperBook
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.refusals import wire_refusal
from crypto_qlib.exchange.embedded.wire import Call, Row, WireRefusal, envelope, ms, num
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.venue.records import Bill

_BILLS_KEPT_NS: Final = 7 * NS_PER_DAY
_ARCHIVE_KEPT_NS: Final = 92 * NS_PER_DAY
_MODES: Final = {False: "net_mode", True: "long_short_mode"}
_SIDES: Final = {False: (PositionSide.NET,), True: (PositionSide.LONG, PositionSide.SHORT)}
_FUTURES_MODE: Final = "2"
_MAX_INSTRUMENTS: Final = 10


class AccountApi:
    """Handlers of the account endpoints; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        Market and clock.
    venue : PaperVenue
        The simulated exchange.
    book : PaperBook
        Ids of algo orders.
    fees : FeeSchedule
        The account's fee rates.
    """

    def __init__(self, window: MarketWindow, venue: PaperVenue, book: PaperBook, fees: FeeSchedule) -> None:
        self._window = window
        self._venue = venue
        self._book = book
        self._fees = fees
        self._by_symbol = {item.symbol: item for item in window.source.instruments()}
        self._numbers = {symbol: 6 * k for k, symbol in enumerate(self._by_symbol)}

    def config(self, call: Call) -> bytes:
        """Answer ``account/config``: futures mode, net or long/short positions."""
        uid = uid_of(call.account_id)
        row = {
            "acctLv": _FUTURES_MODE, "posMode": _MODES[self._hedged(call)], "autoLoan": False, "ctIsoMode": "automatic",
            "greeksType": "PA",
            "ip": "", "kycLv": "", "label": "paper", "level": "Lv1", "levelTmp": "", "liquidationGear": "-1", "mainUid": uid,
            "mgnIsoMode": "automatic", "opAuth": "0", "perm": "read_only,trade", "roleType": "0", "spotOffsetType": "",
            "spotRoleType": "0", "spotTraderInsts": [], "traderInsts": [], "uid": uid,
            "acctStpMode": "cancel_maker", "enableSpotBorrow": False, "spotBorrowAutoRepay": False, "feeType": "0", "type": "0",
            "settleCcy": "USDT", "settleCcyList": ["USDT"],
        }  # fmt: skip
        return envelope([row])

    def balance(self, call: Call) -> bytes:
        """Answer ``account/balance``; the account holds USDT only."""
        row = self.balance_of(call.account_id)
        wanted = call.query.get("ccy", "")
        if wanted and "USDT" not in wanted.split(","):
            row["details"] = []
        return envelope([row])

    def funding_balances(self, _call: Call) -> bytes:
        """Answer ``asset/balances``: nothing is kept in the funding account."""
        return envelope([])

    def positions(self, call: Call) -> bytes:
        """Answer ``account/positions``; a named instrument without a position gives no row."""
        wanted = [name for name in call.query.get("instId", "").split(",") if name]
        if len(wanted) > _MAX_INSTRUMENTS:
            raise WireRefusal("51000", "instId")
        return envelope([row for row in self.position_rows(call.account_id) if not wanted or row["instId"] in wanted])

    def position_rows(self, account_id: str) -> list[Row]:
        """Return the rows of all open positions."""
        rows: list[Row] = []
        for held in self._venue.exchange.snapshot(account_id).positions:
            item = self._by_symbol[held.position.symbol]
            algo = self._book.live_algo(account_id, held.position.key)
            index = self._window.price(PriceKind.INDEX, item.symbol)
            rows.append(position_row(held, item, self._number(held.position.key), index, algo))
        return rows

    def balance_of(self, account_id: str) -> Row:
        """Return the row of ``account/balance``."""
        return balance_row(self._venue.exchange.snapshot(account_id))

    def has_positions(self, account_id: str) -> bool:
        """Return whether an account holds anything."""
        return self._venue.exchange.has_positions(account_id)

    def now_ms(self) -> str:
        """Return the server's time as pushes show it."""
        return ms(self._window.clock.now_ns())

    def positions_history(self, call: Call) -> bytes:
        """Answer ``account/positions-history``."""
        closed, wanted = self._venue.exchange.closed_positions(call.account_id), call.query.get("instId", "")
        chosen = page(
            closed, call, lambda c: c.closed_ns // NS_PER_MS, lambda c: c.closed_ns,
            self._window.clock.market_ns - _ARCHIVE_KEPT_NS, lambda c: wanted in ("", self._by_symbol[c.symbol].inst_id),
        )  # fmt: skip
        rows = [
            closed_position_row(c, self._by_symbol[c.symbol], self._number((c.symbol, c.margin_mode, c.position_side)))
            for c in chosen
        ]
        return envelope(rows)

    def set_position_mode(self, call: Call) -> bytes:
        """Answer ``account/set-position-mode``; 59000 while something is open."""
        mode = parse.required(_only(call), "posMode")
        if mode not in _MODES.values():
            raise WireRefusal("51000", "posMode")
        refusal = self._venue.exchange.set_position_mode(call.account_id, hedged=mode == _MODES[True])
        if refusal is not None:
            raise wire_refusal(refusal)
        return envelope([{"posMode": mode}])

    def set_leverage(self, call: Call) -> bytes:
        """Answer ``account/set-leverage``; 59102 above the cap of the tier of what is held, 59105 below 1."""
        row = _only(call)
        item = self._window.tradable(parse.required(row, "instId"))
        mode, leverage = parse.margin_mode(row, "mgnMode"), parse.number(row, "lever")
        side = self._leverage_side(call, row, mode)
        refusal = self._venue.exchange.set_leverage(call.account_id, item.symbol, mode, leverage, side)
        if refusal is not None:
            raise wire_refusal(refusal, leverage_above_cap=("59102",))
        answer = {"instId": item.inst_id, "lever": num(leverage), "mgnMode": mode.value}
        return envelope([answer | {"posSide": side.value if mode is MarginMode.ISOLATED else ""}])

    def leverage_info(self, call: Call) -> bytes:
        """Answer ``account/leverage-info`` for up to ten instruments."""
        mode = parse.margin_mode(dict(call.query), "mgnMode")
        rows: list[Row] = []
        for name in call.required("instId").split(",")[:_MAX_INSTRUMENTS]:
            item = self._window.tradable(name)
            for side in _SIDES[self._hedged(call)]:
                leverage = self._venue.exchange.leverage(call.account_id, item.symbol, mode, side)
                row = {"ccy": "", "instId": item.inst_id, "lever": num(leverage), "mgnMode": mode.value}
                rows.append(row | {"posSide": side.value})
        return envelope(rows)

    def trade_fee(self, call: Call) -> bytes:
        """Answer ``account/trade-fee``: USDT-margined rates in ``makerU``/``takerU``, negative where charged."""
        maker, taker = num(-self._fees.maker), num(-self._fees.taker)
        row = {
            "category": "1", "delivery": "", "exercise": "", "feeGroup": [], "fiat": [], "instType": call.required("instType"),
            "level": "Lv1", "maker": "", "makerU": maker, "makerUSDC": "", "taker": "", "takerU": taker, "takerUSDC": "",
            "ruleType": "normal", "ts": ms(self._window.clock.now_ns()),
        }  # fmt: skip
        return envelope([row])

    def bills(self, call: Call) -> bytes:
        """Answer ``account/bills``: the last seven days."""
        return self._bills(call, _BILLS_KEPT_NS)

    def bills_archive(self, call: Call) -> bytes:
        """Answer ``account/bills-archive``: the last three months."""
        return self._bills(call, _ARCHIVE_KEPT_NS)

    def adjust_margin(self, call: Call) -> bytes:
        """Answer ``account/position/margin-balance``: move USDT into or out of an isolated position."""
        row = _only(call)
        item = self._window.tradable(parse.required(row, "instId"))
        kind = parse.required(row, "type")
        if kind not in ("add", "reduce"):
            raise WireRefusal("51000", "type")
        amount = parse.number(row, "amt")
        side = parse.position_side(row, hedged=self._hedged(call))
        signed = amount if kind == "add" else -amount
        refusal = self._venue.exchange.adjust_margin(call.account_id, item.symbol, signed, side)
        if refusal is not None:
            raise wire_refusal(refusal)
        leverage = num(self._venue.exchange.leverage(call.account_id, item.symbol, MarginMode.ISOLATED, side))
        answer = {"amt": num(amount), "ccy": "USDT", "instId": item.inst_id, "leverage": leverage, "posSide": side.value}
        return envelope([answer | {"type": kind}])

    def _bills(self, call: Call, kept_ns: int) -> bytes:
        asked = call.query
        oldest, fill_of = self._window.clock.market_ns - kept_ns, self._book.fill_of_bill
        chosen = page(
            self._venue.exchange.bills(call.account_id), call, lambda bill: BILL_ID_BASE + bill.bill_id,
            lambda bill: bill.ts_ns, oldest, lambda bill: self._is_bill_asked(bill, asked),
        )  # fmt: skip
        return envelope([bill_row(b, self._by_symbol.get(b.symbol), fill_of(call.account_id, b.bill_id)) for b in chosen])

    def _is_bill_asked(self, bill: Bill, asked: Mapping[str, str]) -> bool:
        item = self._by_symbol.get(bill.symbol)
        if item is not None and asked.get("instType", "SWAP") != "SWAP":
            return False
        return asked.get("type", "") in ("", BILL_TYPES[bill.kind]) and asked.get("instId", "") in (
            ("",) if item is None else ("", item.inst_id)
        )

    def _number(self, key: PositionKey) -> int:
        return self._numbers[key[0]] + 2 * list(PositionSide).index(key[2]) + (key[1] is MarginMode.CROSS)

    def _hedged(self, call: Call) -> bool:
        return self._venue.exchange.is_hedged(call.account_id)

    def _leverage_side(self, call: Call, row: Row, mode: MarginMode) -> PositionSide:
        if mode is MarginMode.CROSS:
            # One leverage for both sides; whatever side is sent means nothing.
            return PositionSide.NET
        return parse.position_side(row, hedged=self._hedged(call))


def _only(call: Call) -> Row:
    if len(call.body) != 1:
        raise WireRefusal("50000")
    return call.body[0]
