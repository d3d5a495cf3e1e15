"""One instrument's order book as a stream: snapshot, differences, sequence ids, checksum.

``seqId`` grows with every message; ``prevSeqId`` is the one before, -1 on a snapshot. A level of size 0 is gone. The checksum
is the signed CRC-32 of the best 25 levels, ``bidPx:bidSz:askPx:askSz:...`` in turn. Source: OKX API v5, "Order book channel".
"""

from __future__ import annotations

import zlib
from typing import Final

from crypto_qlib.exchange.embedded.order_book import Level
from crypto_qlib.exchange.embedded.wire import Row, ms

_CHECKED: Final = 25
_FIRST_SEQ: Final = 1_000_000
_SIGN_BIT: Final = 1 << 31


class BookStream:
    """Follow one book.

    Parameters
    ----------
    inst_id : str
        OKX's name.

    Attributes
    ----------
    last_update : dict | None
        The message that leads from the book before the last :meth:`renew` to the book after it.
    """

    def __init__(self, inst_id: str) -> None:
        self.inst_id = inst_id
        self.last_update: Row | None = None
        self._bids: list[Level] = []
        self._asks: list[Level] = []
        self._seq = 0
        self._recorded_seq = 0
        self._ts = ""

    def renew(self, bids: list[Level], asks: list[Level], now_ns: int, recorded_seq: int = 0) -> None:
        """Take the book as it stands now, best levels first.

        Parameters
        ----------
        recorded_seq : int
            Sequence id the book was recorded with; 0 = not recorded, the next number.
        """
        before, self._ts = self._seq, ms(now_ns)
        if not recorded_seq:
            self._seq = before + 1 if before else _FIRST_SEQ
        elif recorded_seq != self._recorded_seq:
            self._seq = max(recorded_seq, before + 1)
        self._recorded_seq = recorded_seq
        self.last_update = {
            "asks": _difference(self._asks, asks), "bids": _difference(self._bids, bids), "ts": self._ts,
            "checksum": checksum(bids, asks), "prevSeqId": before, "seqId": self._seq,
        }  # fmt: skip
        self._bids, self._asks = bids, asks

    def snapshot(self) -> Row:
        """Return the first message of channel ``books``."""
        return {
            "asks": self._asks, "bids": self._bids, "ts": self._ts, "checksum": checksum(self._bids, self._asks),
            "prevSeqId": -1, "seqId": self._seq,
        }  # fmt: skip

    def top(self, depth: int) -> Row:
        """Return the message of ``books5`` or ``bbo-tbt``: always the whole of the best ``depth`` levels."""
        row: Row = {"asks": self._asks[:depth], "bids": self._bids[:depth], "ts": self._ts, "seqId": self._seq}
        return row if depth == 1 else row | {"instId": self.inst_id}


def checksum(bids: list[Level], asks: list[Level]) -> int:
    """Return OKX's checksum of a book as a signed 32-bit integer."""
    parts: list[str] = []
    for k in range(_CHECKED):
        for side in (bids, asks):
            if k < len(side):
                parts += side[k][:2]
    value = zlib.crc32(":".join(parts).encode())
    return value - 2 * _SIGN_BIT if value & _SIGN_BIT else value


def _difference(before: list[Level], after: list[Level]) -> list[Level]:
    known = {level[0]: level for level in before}
    changed = [level for level in after if known.pop(level[0], None) != level]
    return changed + [[price, "0", "0", "0"] for price in known]
