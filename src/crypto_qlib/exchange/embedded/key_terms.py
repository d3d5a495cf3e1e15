"""What the paper account's key may do and from where, as ``account/config`` says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from crypto_qlib.exchange.embedded.wire import Call

Handler = Callable[[Call], bytes]


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """Rights of a key.

    Parameters
    ----------
    perm : str
        ``read_only``, ``trade`` and ``withdraw`` with commas between. There is nothing to withdraw here: the last one is
        shown, so that a client that must refuse such a key can be tried.
    ip : str
        Addresses the key is bound to; empty = none.

    Notes
    -----
    Source: OKX API v5, ``GET /account/config``, fields ``perm`` and ``ip``; 50120, a key without the permission.
    """

    perm: str = "read_only,trade"
    ip: str = ""

    @property
    def may_trade(self) -> bool:
        """Return whether orders and settings are taken."""
        return "trade" in self.perm.split(",")

    def shown(self, config: Handler) -> Handler:
        """Return the handler of ``account/config`` that shows these rights."""

        def _config(call: Call) -> bytes:
            answer = orjson.loads(config(call))
            for row in answer["data"]:
                row["perm"], row["ip"] = self.perm, self.ip
            return orjson.dumps(answer)

        return _config
