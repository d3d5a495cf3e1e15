"""What an API key is allowed to do, as OKX itself says."""

from __future__ import annotations

from dataclasses import dataclass

from crypto_qlib.exchange.okx_session import Connection, OkxSession


@dataclass(frozen=True, slots=True)
class KeyRights:
    """The rights of one key.

    Parameters
    ----------
    may_read, may_trade, may_withdraw : bool
        ``read_only``, ``trade`` and ``withdraw`` in OKX's ``perm``. A trading key can always read.
    ip_bound : bool
        Whether OKX accepts it from named addresses only.

    Notes
    -----
    Source: OKX API v5, ``GET /api/v5/account/config``, fields ``perm`` and ``ip``.
    """

    may_read: bool
    may_trade: bool
    may_withdraw: bool
    ip_bound: bool


async def key_rights(connection: Connection) -> KeyRights:
    """Ask the exchange what the connection's key may do.

    Raises
    ------
    UserError
        If the key is wrong, or there is none.
    RetryLater
        If the exchange does not answer.
    """
    session = OkxSession(connection)
    try:
        rows = await session.private("read the key's rights", "privateGetAccountConfig", {})
    finally:
        await session.close()
    row = rows[0] if rows else {}
    named = frozenset(part.strip() for part in str(row.get("perm", "")).split(",") if part.strip())
    return KeyRights(bool(named), "trade" in named, "withdraw" in named, bool(row.get("ip")))
