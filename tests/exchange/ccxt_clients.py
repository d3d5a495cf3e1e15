"""The real ccxt client, pointed at an embedded exchange."""

from __future__ import annotations

from typing import Any

import ccxt.async_support as ccxt

from crypto_qlib.exchange.credentials import ApiCredentials


def okx_client(url: str, key: ApiCredentials, **options: Any) -> Any:
    """Return an unmodified ccxt async client of the exchange at ``url``; nothing is retried."""
    client = ccxt.okx({
        "apiKey": key.key, "secret": key.secret, "password": key.passphrase, "enableRateLimit": False, "timeout": 5000,
        "options": {"defaultType": "swap", "fetchMarkets": {"types": ["swap"]}} | options,
    })  # fmt: skip
    client.urls["api"]["rest"] = url
    return client
