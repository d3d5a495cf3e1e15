"""The web console: one page, and the state it shows. Served under ``/console`` to browsers on this machine only.

The page is one file without anything from elsewhere; a policy forbids it to load or send anything to other hosts, and other
sites to frame it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any, Final

import orjson

from crypto_qlib.exchange.embedded.market_api import MarketApi
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk
from crypto_qlib.exchange.embedded.wire import Call

PATH: Final = "/console"
_SWAPS: Final = Call({"instType": "SWAP"})


class Console:
    """Collect what the console shows, in the rows OKX's clients get.

    Parameters
    ----------
    desk : PaperDesk
        Accounts and their handlers.
    market : MarketApi
        Tickers.
    account_id : str
        The paper account.
    """

    def __init__(self, desk: PaperDesk, market: MarketApi, account_id: str) -> None:
        self._desk = desk
        self._market = market
        self._account_id = account_id

    def state(self) -> dict[str, Any]:
        """Return tickers, balance, positions, open orders and protection."""
        mine = Call({"instType": "SWAP"}, [], self._account_id)
        algos = Call({"ordType": "conditional,oco"}, [], self._account_id)
        return {
            "tickers": _rows(self._market.tickers(_SWAPS)),
            "balance": _rows(self._desk.account.balance(mine)),
            "held": _rows(self._desk.account.positions(mine)),
            "pending": _rows(self._desk.trade.pending(mine)),
            "algos": _rows(self._desk.algo.pending(algos)),
        }


@cache
def page() -> tuple[bytes, str]:
    """Return the page and the content policy that goes with it."""
    text = resources.files(__package__).joinpath("console.html").read_text(encoding="utf-8")
    script, style = (_digest(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _digest(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"sha256-{base64.b64encode(hashlib.sha256(found.group(1).encode()).digest()).decode()}"


def _rows(answer: bytes) -> list[dict[str, Any]]:
    return list(orjson.loads(answer)["data"])
