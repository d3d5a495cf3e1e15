"""The verbs of OKX that protect an account: whose it is, the dead-man's countdown, and stops that stand alone."""

from __future__ import annotations

from contextlib import suppress

from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, UserError
from crypto_qlib.core.order import MarginMode, Protection
from crypto_qlib.exchange.error_map import Request
from crypto_qlib.exchange.okx_parsing import Row
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.exchange.okx_statistics import OkxStatistics

_LONG_SHORT = "long_short_mode"
TRAILING_KIND = "move_order_stop"
"""Algo kind of a trailing stop."""
_CANCELLED_AT_ONCE = 10
"""Algo orders of one cancellation, the most OKX takes."""


class OkxSafety(OkxStatistics):
    """Protect one OKX account.

    Parameters
    ----------
    connection : Connection
        Where and as whom.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._config: Row = {}

    async def account_id(self) -> str:
        """Return OKX's id of the account, the same for all of its keys (``uid`` of ``account/config``).

        Raises
        ------
        UserError
            If OKX does not say.
        """
        uid = str((await self._account_config()).get("uid", ""))
        if not uid:
            raise UserError("OKX does not say which account the key belongs to", "the key needs the right to read")
        return uid

    async def cancel_all_after(self, seconds: int) -> None:
        """Let OKX cancel all pending orders of the account in ``seconds`` (10 to 120), unless this is said again; 0 ends it.

        Algo orders (stops) are not cancelled. Source: OKX API v5, ``POST /trade/cancel-all-after``.
        """
        what = f"set the dead-man's countdown to {seconds} s"
        await self._session.change(what, "privatePostTradeCancelAllAfter", {"timeOut": str(seconds)})

    async def protect(self, symbol: str, lots: int, protection: Protection, margin_mode: MarginMode, client_id: str) -> None:
        """Put a stop (and take-profit), or a trailing stop, that stands alone over the whole position of ``lots`` (signed).

        All become market orders once triggered. A trailing stop (``move_order_stop``) has a size of its own, the others close
        what is open then (``closeFraction``). Source: OKX API v5, ``POST /trade/order-algo``.

        Raises
        ------
        OutcomeUnknown
            Where no answer says whether it stands; the next look at the account does.
        DoNotRetry
            Where OKX refused it, e.g. because the market is already beyond the level.
        """
        item = await self._instrument(symbol)
        levels = {"sl": protection.stop_price, "tp": protection.take_profit_price}
        is_trailing = protection.trailing_ratio is not None
        wanted = {prefix: level for prefix, level in levels.items() if level is not None}
        body: Row = {
            "instId": item.inst_id,
            "tdMode": margin_mode.value,
            "side": "sell" if lots > 0 else "buy",
            "ordType": TRAILING_KIND if is_trailing else "oco" if len(wanted) > 1 else "conditional",
            "algoClOrdId": client_id,
        }
        if await self._hedged():
            body["posSide"] = "long" if lots > 0 else "short"
        else:
            body["reduceOnly"] = True
        if protection.trailing_ratio is not None:
            body |= {"callbackRatio": f"{protection.trailing_ratio:.4f}", "sz": item.format_size(abs(lots))}
        else:
            body["closeFraction"] = "1"
        for prefix, level in wanted.items():
            body |= {f"{prefix}TriggerPx": item.format_price(level), f"{prefix}OrdPx": "-1"}
            body[f"{prefix}TriggerPxType"] = protection.trigger.value
        what = f"place the stop of {symbol}"
        sending = Request(what, sends_order=True, client_order_id=client_id)
        rows = await self._session.send(sending, "privatePostTradeOrderAlgo", body)
        if not rows:
            raise OutcomeUnknown(f"OKX's answer to {what} was empty", client_order_id=client_id)
        if rows[0].get("sCode", "0") != "0":
            raise DoNotRetry(f"could not {what}: {rows[0].get('sMsg', '')}", code=str(rows[0]["sCode"]))

    async def cancel_trailing(self, symbol: str) -> None:
        """Cancel the trailing stops of ``symbol``; a refusal (it is gone) is no error: what stands, the next look shows.

        Source: OKX API v5, ``POST /trade/cancel-algos``.
        """
        item = await self._instrument(symbol)
        query = {"ordType": TRAILING_KIND, "instType": "SWAP", "instId": item.inst_id}
        rows = await self._session.private(f"read the trailing stops of {symbol}", "privateGetTradeOrdersAlgoPending", query)
        ids = [{"instId": item.inst_id, "algoId": str(row["algoId"])} for row in rows]
        for first in range(0, len(ids), _CANCELLED_AT_ONCE):
            batch = ids[first : first + _CANCELLED_AT_ONCE]
            with suppress(DoNotRetry):
                await self._session.change(f"cancel the trailing stops of {symbol}", "privatePostTradeCancelAlgos", batch)

    async def _hedged(self) -> bool:
        return (await self._account_config()).get("posMode") == _LONG_SHORT

    async def _account_config(self) -> Row:
        if not self._config:
            rows = await self._session.private("read the account's configuration", "privateGetAccountConfig", {})
            self._config = rows[0] if rows else {}
        return self._config
