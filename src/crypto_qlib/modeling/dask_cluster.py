"""The door to a Dask cluster: a client of the scheduler at an address, or one clear line."""

from __future__ import annotations

from typing import Any

from crypto_qlib.core.errors import UserError


def dask_client(address: str) -> Any:
    """Return a client of the scheduler at ``address``; a context manager.

    Raises
    ------
    UserError
        If dask.distributed is not installed, the address is none, or no scheduler answers there.
    """
    try:
        import distributed  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as e:
        raise UserError("training on Dask needs dask.distributed", "pip install 'crypto-qlib[dask]'") from e
    try:
        return distributed.Client(address, timeout="10s")
    except (OSError, TimeoutError, ValueError) as e:
        raise UserError(f"no Dask scheduler answers at {address}", "start one with `dask scheduler`") from e
