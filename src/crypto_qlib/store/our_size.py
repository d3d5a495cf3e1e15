"""How large is a position of ours after an execution that may be somebody else's?"""

from __future__ import annotations


def size_after(before: int, signed_lots: int, *, is_ours: bool) -> int:
    """Return the signed size of a position of ours after one execution in its symbol.

    What is not ours (a stop or liquidation by the exchange, somebody's own trade) can only shrink it: what lies beyond flat, or
    opens or adds, is theirs.
    """
    after = before + signed_lots
    if is_ours:
        return after
    if before * signed_lots >= 0:
        return before
    return after if before * after >= 0 else 0
