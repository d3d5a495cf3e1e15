"""OKX behind the :class:`~crypto_qlib.exchange.gateway.Gateway`: account and orders, on top of the public data.

Orders carry our own client order id, are sent once, and are read back: OKX's answer to an order says only that it arrived.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Final

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.errors import BadAnswer, CryptoQlibError, DoNotRetry, HaltTrading, OutcomeUnknown
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import ExitKind, Fill, MarginMode, OrderKind, OrderRequest, OrderStatus, Side
from crypto_qlib.exchange import okx_parsing as parse
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.error_map import Request
from crypto_qlib.exchange.gateway import OrderReport, Transfer
from crypto_qlib.exchange.okx_parsing import Row
from crypto_qlib.exchange.okx_safety import TRAILING_KIND, OkxSafety
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger_rows import FundingRow

_PAGE: Final = 100
"""Rows of a page of executions or bills, the most OKX gives."""
_FUNDING_BILL: Final = "8"
_TRANSFER_BILL: Final = "1"
_GONE: Final = frozenset({"51400", "51401", "51402", "51405", "51603"})
"""Cancel refused because there is nothing to cancel any more: not an error."""
_NOT_AMENDABLE: Final = frozenset({"51503", "51509", "51510", "51511"})
"""Amend refused because the order is over, filled, being cancelled, or would take: the next look sees what is."""
_UNKNOWN_ORDER: Final = frozenset({"51603", "51001"})
_LEVERAGE_SLACK: Final = 1e-9
_PROTECTION_KINDS: Final = ("oco", "conditional")


class OkxGateway(OkxSafety):
    """Talk to one OKX account, or to the embedded exchange.

    Parameters
    ----------
    settings : ExchangeSettings
        Mode and time limit.
    credentials : ApiCredentials | None
        Key; ``None`` allows public data only.
    base_url : str
        Address of the embedded exchange; empty = OKX itself.

    Notes
    -----
    Implements :class:`~crypto_qlib.exchange.gateway.Gateway`. Use as ``async with`` or call :meth:`close`.
    """

    def __init__(self, settings: ExchangeSettings, credentials: ApiCredentials | None, base_url: str = "") -> None:
        super().__init__(Connection(base_url, credentials, settings.mode == "demo", settings.timeout_s))

    async def account(self) -> AccountState:
        """Return balance and open positions, with the stops that protect them.

        Raises
        ------
        BadAnswer
            If the balance has no row of USDT: an account that cannot be read is not an account without equity.
        """
        balance, rows, pending, now = await asyncio.gather(
            self._session.private("read the balance", "privateGetAccountBalance", {"ccy": "USDT"}),
            self._session.private("read the positions", "privateGetAccountPositions", {"instType": "SWAP"}),
            self._session.private("read the open orders", "privateGetTradeOrdersPending", {"instType": "SWAP"}),
            self.server_time_ns(),
        )
        stops = await self._stop_rows()
        positions: list[OpenPosition] = []
        for row in rows:
            # A closed position may come back once more with pos 0 and empty fields.
            if parse.number(row.get("pos")) == 0.0 or not row.get("avgPx"):
                continue
            item = await self._instrument_of(str(row["instId"]))
            position = parse.position_from(row, item, math.nan, math.nan)
            positions.append(_protected(position, stops.get(str(row["instId"]), []), item))
        usdt: Row = next((d for row in balance for d in row.get("details", []) if d.get("ccy") == "USDT"), {})
        equity = parse.number(usdt.get("eq"))
        if math.isnan(equity):
            raise BadAnswer("OKX's balance shows no USDT", "is any in the trading account? it is asked for again")
        entries = [row for row in pending if row.get("reduceOnly") != "true"]
        ratios = [parse.number(source.get("mgnRatio")) for source in (*rows, usdt)]
        return AccountState(
            as_of_ns=now,
            equity=equity,
            available=float(usdt.get("availEq") or usdt.get("availBal") or 0.0),
            positions=tuple(positions),
            pending_symbols=tuple(sorted({(await self._instrument_of(str(row["instId"]))).symbol for row in entries})),
            peak_equity=equity,
            margin_ratio=min((ratio for ratio in ratios if not math.isnan(ratio)), default=math.inf),
        )

    async def set_leverage(self, symbol: str, leverage: float, margin_mode: MarginMode) -> None:
        """Set the leverage of ``symbol`` and read it back.

        Raises
        ------
        DoNotRetry
            If OKX refuses it (above the instrument's or the tier's maximum, or orders are open).
        HaltTrading
            If OKX accepted it but reads back another one.
        """
        item = await self._instrument(symbol)
        what = f"set {leverage:g}x {margin_mode.value} leverage on {symbol}"
        body: Row = {"instId": item.inst_id, "lever": f"{leverage:g}", "mgnMode": margin_mode.value}
        hedged_isolated = margin_mode is MarginMode.ISOLATED and await self._hedged()
        for extra in ({"posSide": "long"}, {"posSide": "short"}) if hedged_isolated else ({},):
            await self._session.change(what, "privatePostAccountSetLeverage", body | extra)
        query = {"instId": item.inst_id, "mgnMode": margin_mode.value}
        rows = await self._session.private(f"read the leverage of {symbol}", "privateGetAccountLeverageInfo", query)
        got = [float(row["lever"]) for row in rows]
        if not got or any(abs(value - leverage) > _LEVERAGE_SLACK * leverage for value in got):
            raise HaltTrading(f"OKX accepted {leverage:g}x on {symbol} but shows {got}", "check the leverage on OKX")

    async def place(self, request: OrderRequest) -> OrderReport:
        """Send one order, then read it back (OKX's own answer does not say what became of it).

        Raises
        ------
        OutcomeUnknown
            Where no answer says whether the order exists; look it up by its client order id.
        DoNotRetry
            Where OKX refused it.
        """
        item = await self._instrument(request.symbol)
        what = f"{request.side.name.lower()} {request.lots} lots of {request.symbol}"
        sending = Request(what, sends_order=True, client_order_id=request.client_order_id)
        rows = await self._session.send(sending, "privatePostTradeOrder", await self._order_body(request, item))
        if not rows:
            raise OutcomeUnknown(f"OKX's answer to {what} was empty", client_order_id=request.client_order_id)
        if rows[0].get("sCode", "0") != "0":
            raise DoNotRetry(f"could not {what}: {rows[0].get('sMsg', '')}", code=str(rows[0]["sCode"]))
        accepted = OrderReport(
            request.client_order_id, str(rows[0]["ordId"]), request.symbol, OrderStatus.LIVE, 0, math.nan, 0.0
        )
        try:
            return await self.order(request.symbol, request.client_order_id) or accepted
        except CryptoQlibError:
            # The order exists, only the look at it failed: what is certain is reported, the rest is reconciled later.
            return accepted

    async def cancel(self, symbol: str, client_order_id: str) -> None:
        """Ask for cancellation; an order that is already gone is no error."""
        item = await self._instrument(symbol)
        sending = Request(f"cancel order {client_order_id}", sends_order=True, client_order_id=client_order_id)
        body = {"instId": item.inst_id, "clOrdId": client_order_id}
        try:
            await self._session.send(sending, "privatePostTradeCancelOrder", body)
        except DoNotRetry as e:
            if e.code not in _GONE:
                raise

    async def amend(self, symbol: str, client_order_id: str, price: float) -> None:
        """Ask for another limit of a resting order; one that is gone meanwhile is no error.

        Source: OKX API v5, ``POST /trade/amend-order``; code 0 says the request arrived, the order says what came of it.
        """
        item = await self._instrument(symbol)
        sending = Request(f"amend order {client_order_id}", sends_order=True, client_order_id=client_order_id)
        body = {"instId": item.inst_id, "clOrdId": client_order_id, "newPx": item.format_price(price)}
        try:
            await self._session.send(sending, "privatePostTradeAmendOrder", body)
        except DoNotRetry as e:
            if e.code not in _GONE | _NOT_AMENDABLE:
                raise

    async def order(self, symbol: str, client_order_id: str) -> OrderReport | None:
        """Return the order, or ``None`` if the exchange does not know the id."""
        item = await self._instrument(symbol)
        query = {"instId": item.inst_id, "clOrdId": client_order_id}
        try:
            rows = await self._session.private(f"look up order {client_order_id}", "privateGetTradeOrder", query)
        except DoNotRetry as e:
            if e.code in _UNKNOWN_ORDER:
                return None
            raise
        return parse.order_report(rows[0], item) if rows else None

    async def fills(self, since_ns: int) -> list[Fill]:
        """Return the account's fills since ``since_ns``, oldest first."""
        found: list[Row] = []
        query: Row = {"instType": "SWAP", "begin": str(since_ns // NS_PER_MS), "limit": str(_PAGE)}
        while True:
            rows = await self._session.private("read the fills", "privateGetTradeFillsHistory", query)
            found.extend(rows)
            if len(rows) < _PAGE:
                break
            query = query | {"after": str(rows[-1]["billId"])}
        kinds = await self._exit_kinds(found)
        fills = []
        for row in reversed(found):
            item = await self._instrument_of(str(row["instId"]))
            fills.append(parse.fill_from(row, item, kinds.get(str(row["ordId"]))))
        return [fill for fill in fills if fill.ts_ns >= since_ns]

    async def funding_paid(self, since_ns: int) -> list[FundingRow]:
        """Return what each settlement booked since ``since_ns`` (three months at most), oldest first.

        Source: OKX API v5, ``GET /account/bills-archive``, type 8; the amount is ``balChg``, of an isolated position
        ``posBalChg``.
        """
        found = await self._bills({"instType": "SWAP", "type": _FUNDING_BILL}, since_ns)
        booked = []
        for row in reversed(found):
            item = await self._instrument_of(str(row["instId"]))
            amount = float(row.get("balChg") or 0.0) or float(row.get("posBalChg") or 0.0)
            booked.append(FundingRow(str(row["billId"]), int(row["ts"]) * NS_PER_MS, item.symbol, amount))
        return [bill for bill in booked if bill.ts_ns >= since_ns]

    async def transfers(self, since_ns: int) -> list[Transfer]:
        """Return USDT paid into the account or out of it since ``since_ns``, oldest first.

        Source: OKX API v5, ``GET /account/bills-archive``, type 1.
        """
        rows = [row for row in reversed(await self._bills({"type": _TRANSFER_BILL}, since_ns)) if row.get("ccy") == "USDT"]
        return [Transfer(str(row["billId"]), int(row["ts"]) * NS_PER_MS, float(row.get("balChg") or 0.0)) for row in rows]

    async def _bills(self, wanted: Row, since_ns: int) -> list[Row]:
        found: list[Row] = []
        query: Row = wanted | {"begin": str(since_ns // NS_PER_MS), "limit": str(_PAGE)}
        while True:
            rows = await self._session.private("read the bills", "privateGetAccountBillsArchive", query)
            found.extend(rows)
            if len(rows) < _PAGE:
                return found
            query = query | {"after": str(rows[-1]["billId"])}

    async def _order_body(self, request: OrderRequest, item: Instrument) -> Row:
        body: Row = {
            "instId": item.inst_id,
            "tdMode": request.margin_mode.value,
            "side": request.side.name.lower(),
            "ordType": request.kind.value,
            "sz": item.format_size(request.lots),
            "clOrdId": request.client_order_id,
        }
        if request.kind is not OrderKind.MARKET and request.price is not None:
            body["px"] = item.format_price(request.price)
        if await self._hedged():
            # Hedge accounts need posSide on every order and know no reduceOnly: closing is "the other side of posSide".
            opens_long = (request.side is Side.BUY) != request.reduce_only
            body["posSide"] = "long" if opens_long else "short"
        elif request.reduce_only:
            body["reduceOnly"] = True
        if request.protection is not None:
            body["attachAlgoOrds"] = [_attached(request, item)]
        return body

    async def _stop_rows(self) -> dict[str, list[Row]]:
        # Attached stops live as "oco" (both levels) or "conditional" (one); the query needs one kind at a time.
        found: dict[str, list[Row]] = {}
        queries = ({"ordType": kind, "instType": "SWAP"} for kind in (*_PROTECTION_KINDS, TRAILING_KIND))
        answers = await asyncio.gather(
            *(self._session.private("read the stops", "privateGetTradeOrdersAlgoPending", query) for query in queries)
        )
        for row in (row for rows in answers for row in rows):
            found.setdefault(str(row["instId"]), []).append(row)
        return found

    async def _exit_kinds(self, fills: list[Row]) -> dict[str, ExitKind]:
        # Fills of a triggered stop carry no hint of it; the algo order's history names the child order and which side fired.
        if all(row.get("clOrdId") for row in fills):
            return {}
        kinds: dict[str, ExitKind] = {}
        for kind in _PROTECTION_KINDS:
            query = {"ordType": kind, "state": "effective", "instType": "SWAP"}
            for row in await self._session.private("read triggered stops", "privateGetTradeOrdersAlgoHistory", query):
                kinds[str(row.get("ordId", ""))] = ExitKind.STOP if row.get("actualSide") == "sl" else ExitKind.TAKE_PROFIT
        return kinds


def _protected(position: OpenPosition, rows: list[Row], item: Instrument) -> OpenPosition:
    """Return the position with the levels of the stops that would close it, and how much of it no stop covers.

    A stop placed with ``closeFraction`` 1 covers whatever is open when it fires; others cover their own size.
    """
    side = "sell" if position.lots > 0 else "buy"
    stop = profit = trailing = math.nan
    covered = trailed = 0
    for row in (row for row in rows if row.get("side") == side):
        if row.get("ordType") == TRAILING_KIND:
            trailing = parse.number(row.get("callbackRatio"))
            trailed += parse.lots_from(row.get("sz") or "0", item)
            continue
        stop_here, profit_here = parse.number(row.get("slTriggerPx")), parse.number(row.get("tpTriggerPx"))
        profit = profit if math.isnan(profit_here) else profit_here
        if not math.isnan(stop_here):
            stop = stop_here
            covered += abs(position.lots) if row.get("closeFraction") == "1" else parse.lots_from(row.get("sz") or "0", item)
    bare = 0 if math.isnan(stop) else max(abs(position.lots) - covered, 0)
    bare_of_trailing = 0 if math.isnan(trailing) else abs(position.lots) - trailed
    return replace(
        position,
        stop_price=stop,
        take_profit_price=profit,
        unprotected_lots=bare,
        trailing_ratio=trailing,
        untrailed_lots=bare_of_trailing,
    )


def _attached(request: OrderRequest, item: Instrument) -> Row:
    protection = request.protection
    attached: Row = {}
    if protection is None:
        return attached
    for prefix, level in (("sl", protection.stop_price), ("tp", protection.take_profit_price)):
        if level is not None:
            # An order price of -1 means "market once triggered".
            trigger = {f"{prefix}TriggerPx": item.format_price(level), f"{prefix}OrdPx": "-1"}
            attached |= trigger | {f"{prefix}TriggerPxType": protection.trigger.value}
    return attached
