"""Coins that are no bet of their own: pegged to money or gold, or claims on another coin.

Found by the source's own category, by ticker, by name, and by behaviour (also over weeks: :mod:`.peg_watch`):
a coin that stays within half a percent of one dollar all day is a stablecoin,
whatever it is called. The lists are of 2025; behaviour and names catch most newcomers, ``universe.exclude`` the rest.
"""

from __future__ import annotations

import re
from typing import Final

from crypto_qlib.data_collector.market_caps import Coin


def _tickers(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STABLECOINS: Final = _tickers(
    "USDT USDC DAI FDUSD TUSD USDE USDD PYUSD USDS BUSD GUSD USDP LUSD FRAX FRXUSD CRVUSD USD0 USD1 USDY USDX USDB USDG USDF "
    "USYC BUIDL SUSD SUSDE SUSDS SDAI RLUSD USDL USDR USDA USDZ USDM USDAI USDTB DOLA MIM ALUSD GHO EURC EURS EURT EURI EURCV "
    "AEUR UST USDN BFUSD BSC-USD USDT0 USDT.E USDC.E AUSD RUSD SYRUPUSDC SYRUPUSDT XSGD BRZ"
)
_CLAIMS: Final = _tickers(
    "WBTC WETH WBNB WSOL WBETH WSTETH STETH RETH CBETH CBBTC CBXRP TBTC RENBTC HBTC BTCB LBTC SOLVBTC UNIBTC FBTC CLBTC EBTC "
    "WEETH EETH EZETH RSETH METH CMETH SWETH OSETH SFRXETH FRXETH ETHX ANKRETH RSWETH PUFETH BETH WTRX STRX WAVAX SAVAX WMATIC "
    "STMATIC MSOL JITOSOL BNSOL BBSOL JUPSOL DSOL HSOL LSETH SUPEROETHB WHYPE KHYPE STSUI JLP XSOLVBTC ENZOBTC KBTC SLISBNB "
    "ASBNB WEETHS PUMPBTC BTC.B WBT-WRAPPED"
)
_GOLD: Final = _tickers("PAXG XAUT KAU KAG XAUM DGX PMGT AWG GOLD")
_CLAIM_NAME: Final = re.compile(r"\b(wrapped|staked|restaked|bridged|liquid staking|pegged|peg)\b|binance-peg", re.IGNORECASE)
_GOLD_NAME: Final = re.compile(
    r"\b(gold|silver)\b.*\b(token|tether|pax|backed)\b|\b(tether|pax) (gold|silver)\b", re.IGNORECASE
)
_STABLE_NAME: Final = re.compile(r"\b(usd|eur|dollar|stablecoin)\b|\busd[a-z0-9]?\b", re.IGNORECASE)
_PEG_BAND: Final = 0.005
_NAMED_PEG_BAND: Final = 0.03


def why_excluded(coin: Coin) -> str:
    """Return why ``coin`` is no bet of its own, or an empty string if it is one.

    Notes
    -----
    By behaviour: price, high and low of the last day all within 0.5 % of one dollar (3 % if the name speaks of dollars).
    """
    if coin.category:
        return coin.category
    if coin.symbol in _STABLECOINS:
        return "stablecoin"
    if coin.symbol in _CLAIMS or _CLAIM_NAME.search(coin.name):
        return "wrapped, staked or bridged duplicate"
    if coin.symbol in _GOLD or _GOLD_NAME.search(coin.name):
        return "gold token"
    band = _NAMED_PEG_BAND if _STABLE_NAME.search(coin.name) or "USD" in coin.symbol else _PEG_BAND
    if all(abs(price - 1.0) <= band for price in (coin.price, coin.high_24h, coin.low_24h)):
        return "stablecoin (stays at one dollar)"
    return ""
