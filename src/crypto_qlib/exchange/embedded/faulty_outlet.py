"""Socket faults: an outlet of the push hub that loses, doubles and reorders messages, and breaks or silences sockets.

A fault that hits a message of one socket leaves the others alone.
"""

from __future__ import annotations

from typing import Final

import orjson

from crypto_qlib.exchange.embedded.faults import SOCKET_FAULTS, Fault, Faults
from crypto_qlib.exchange.embedded.push_hub import Frame, Receiver
from crypto_qlib.exchange.embedded.socket_session import SocketSession

_BOOKS: Final = "books"
_NOTICE: Final = {
    "event": "notice",
    "code": "64008",
    "msg": "The connection will soon be closed for a service upgrade. Please reconnect.",
}


class FaultyOutlet:
    """Deliver frames as the faults in force have it.

    Parameters
    ----------
    faults : Faults
        Decides which frame meets which fault.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._silent: set[int] = set()
        self._held: dict[int, Frame] = {}

    def __call__(self, receiver: Receiver, frame: Frame) -> None:
        """Deliver one frame, or what a fault makes of it; answers and events of a session are never touched."""
        if self._faults.are_off and not self._silent and not self._held:
            receiver.enqueue(frame)
            return
        if id(receiver) in self._silent:
            return
        fault = next((f for f in SOCKET_FAULTS if frame.channel and self._fits(f, frame)), None)
        if fault is Fault.REORDER and id(receiver) not in self._held:
            self._held[id(receiver)] = frame
            return
        if fault in (Fault.SOCKET_DROP, Fault.NOTICE, Fault.SOCKET_SILENT):
            self._end(receiver, fault)
            return
        if fault is not Fault.SEQUENCE_GAP:
            receiver.enqueue(frame)
        if fault is Fault.DUPLICATE:
            receiver.enqueue(frame)
        late = self._held.pop(id(receiver), None)
        if late is not None:
            receiver.enqueue(late)

    def forget(self, receiver: Receiver) -> None:
        """Forget a socket that is gone."""
        self._silent.discard(id(receiver))
        self._held.pop(id(receiver), None)

    def _fits(self, fault: Fault, frame: Frame) -> bool:
        if fault is Fault.SEQUENCE_GAP and frame.channel != _BOOKS:
            return False
        return self._faults.strikes(fault, frame.channel)

    def _end(self, receiver: Receiver, fault: Fault) -> None:
        if fault is Fault.SOCKET_SILENT:
            self._silent.add(id(receiver))
            return
        if fault is Fault.NOTICE:
            conn_id = receiver.conn_id if isinstance(receiver, SocketSession) else ""
            receiver.enqueue(Frame(orjson.dumps(_NOTICE | {"connId": conn_id})))
        if isinstance(receiver, SocketSession):
            receiver.close()
