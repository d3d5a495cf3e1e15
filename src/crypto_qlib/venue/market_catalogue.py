"""The coins of the simulated market: tickers people know, with invented but plausible prices, sizes and behaviour.

Nothing here is market data. Start prices and capitalisations are round numbers of the right order; listing and
delisting times, betas and volatilities are drawn from the seed. Coins past the table get made-up tickers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.venue.contract_shapes import LiquidityClass, tick_decimals

SECTORS: Final = ("layer1", "layer2", "defi", "meme", "ai", "payments", "gaming", "infra")
"""Sectors with a factor of their own."""

_TABLE: Final = """
BTC payments 94000 1860 | ETH layer1 3300 400 | XRP payments 2.1 120 | BNB layer1 690 99 | SOL layer1 190 91
DOGE meme 0.32 47 | ADA layer1 0.86 30 | TRX payments 0.25 22 | AVAX layer1 36 15 | LINK infra 20 13
SUI layer1 4.2 12.5 | TON layer1 5.5 14 | SHIB meme 0.000021 12.6 | DOT layer1 6.7 10.2 | XLM payments 0.33 10
HBAR infra 0.27 10.4 | BCH payments 435 8.6 | UNI defi 13.2 7.9 | LTC payments 103 7.8 | PEPE meme 0.000020 8.4
NEAR ai 5 6 | APT layer1 8.7 4.9 | ICP infra 10 4.8 | AAVE defi 310 4.6 | ETC payments 25 3.8
TAO ai 460 3.5 | FET ai 1.3 3.4 | ARB layer2 0.72 3.1 | FIL infra 5 3.1 | ATOM layer1 6.2 2.4
OP layer2 1.75 2.4 | INJ defi 20 2 | RENDER ai 7 3.6 | IMX gaming 1.3 2.2 | STX layer2 1.5 2.3
WIF meme 1.9 1.9 | BONK meme 0.000029 2.2 | TIA infra 4.7 2.3 | SEI layer1 0.4 1.7 | JUP defi 0.82 1.4
ONDO defi 1.4 1.9 | LDO defi 1.8 1.6 | WLD ai 2.15 1.8 | ALGO layer1 0.33 2.8 | FLOKI meme 0.00017 1.65
SAND gaming 0.54 1.3 | GALA gaming 0.035 1.4 | MKR defi 1480 1.3 | THETA infra 2.2 2.2 | EOS layer1 0.77 1.2
PYTH infra 0.36 1.3 | CRV defi 0.89 1.1 | STRK layer2 0.46 1.05 | AXS gaming 6 0.95 | ENS infra 33 1.1
DYDX defi 1.5 1.08 | APE gaming 1.15 0.87 | CHZ gaming 0.083 0.78 | ZK layer2 0.19 0.7 | MANA gaming 0.47 0.9
ORDI meme 23 0.49 | COMP defi 75 0.66 | SUSHI defi 1.35 0.26 | GMX defi 26 0.26 | BLUR gaming 0.27 0.58
NOT meme 0.0065 0.66 | ZRX infra 0.5 0.42 | YFI defi 8200 0.28 | MEW meme 0.0077 0.68 | TURBO meme 0.0085 0.58
MAGIC gaming 0.44 0.13 | ETHFI defi 2 0.43 | AR infra 17 1.1 | W infra 0.29 0.8 | JTO defi 3.1 0.9
ARKM ai 1.5 0.6 | BOME meme 0.0065 0.45 | MASK infra 3 0.3 | SSV infra 22 0.25 | UMA defi 2.6 0.22
KSM layer1 33 0.5 | QTUM layer1 3 0.32 | ONT infra 0.24 0.2 | BICO layer2 0.31 0.28
""".strip()

_SYLLABLES: Final = tuple(
    map("".join, zip(*[iter("AXOBELCYRDRAEVOFENGLOHEXIVAJOLKROLUMMIRNOXORBPLUQUARIVSOV")] * 3, strict=True))
)

_LARGE_CAP: Final = 10.0
_MID_CAP: Final = 1.5
_ALWAYS_LISTED: Final = 12
_LATE_SHARE: Final = 0.12
_DELISTED_SHARE: Final = 0.07


@dataclass(frozen=True, slots=True)
class Coin:
    """One simulated coin's fixed traits.

    Parameters
    ----------
    base : str
        Ticker.
    sector : int
        Index into :data:`SECTORS`.
    liquidity : LiquidityClass
        Depth of its market.
    start_price : float
        Price at its first trade, quote units.
    decimals : int
        Price decimals.
    supply : float
        Coins in circulation at the start of the market.
    inflation : float
        Growth of the supply, fraction a year.
    turnover : float
        Typical daily turnover, USDT.
    beta : float
        Loading on the BTC factor; 1 for BTC itself.
    alt_vol, sector_vol, own_vol : float
        Daily volatility due to the factor of all coins but BTC, to its sector, and of its own.
    listed_hour, delisted_hour : int
        Hours since the market's start; the latter is ``NEVER`` for most.
    funding_interval_h : int
        Default hours between settlements.
    funding_cap : float
        Largest absolute funding rate.
    """

    base: str
    sector: int
    liquidity: LiquidityClass
    start_price: float
    decimals: int
    supply: float
    inflation: float
    turnover: float
    beta: float
    alt_vol: float
    sector_vol: float
    own_vol: float
    listed_hour: int
    delisted_hour: int
    funding_interval_h: int
    funding_cap: float


NEVER: Final = 1 << 60
"""``delisted_hour`` of a coin that stays."""


def build_catalogue(n_symbols: int, seed: int, start_ns: int) -> tuple[Coin, ...]:
    """Return the first ``n_symbols`` coins with their seeded traits; coin ``k`` is the same in every larger catalogue.

    Parameters
    ----------
    n_symbols : int
        How many coins live over the market's life, at least 1.
    seed : int
        Seed of the traits.
    start_ns : int
        The market's start; listings fall on whole hours, delistings on 08:00 UTC.
    """
    rows = [row.split() for line in _TABLE.splitlines() for row in line.split("|")]
    start_hour = start_ns // NS_PER_HOUR
    coins: list[Coin] = []
    for k in range(n_symbols):
        rng = np.random.default_rng([seed, k, 1])
        if k < len(rows):
            base, sector, price, cap = rows[k][0], rows[k][1], float(rows[k][2]), float(rows[k][3])
        else:
            base, sector = _made_up_ticker(k - len(rows)), SECTORS[k % len(SECTORS)]
            price, cap = float(f"{10 ** rng.uniform(-3, 1.5):.3g}"), float(rng.uniform(0.08, 0.5))
        coins.append(_draw_coin(k, (base, SECTORS.index(sector), price, cap * 1e9), rng, start_hour))
    return tuple(coins)


def _made_up_ticker(k: int) -> str:
    """Return the ``k``-th invented ticker: two syllables, different for every ``k`` below 361."""
    n = len(_SYLLABLES)
    first, second = divmod(k, n)
    return _SYLLABLES[first % n] + _SYLLABLES[second] + (str(first // n) if first >= n else "")


def _draw_coin(k: int, row: tuple[str, int, float, float], rng: np.random.Generator, start_hour: int) -> Coin:
    base, sector, price, cap = row
    is_btc = base == "BTC"
    liquidity = _liquidity(base, cap / 1e9)
    own = {LiquidityClass.MAJOR: 0.016, LiquidityClass.LARGE: 0.027, LiquidityClass.MID: 0.029, LiquidityClass.SMALL: 0.034}
    meme = 1.25 if SECTORS[sector] == "meme" else 1.0
    listed, delisted = _life(k, rng, start_hour)
    interval_small = liquidity in {LiquidityClass.MID, LiquidityClass.SMALL}
    return Coin(
        base=base,
        sector=sector,
        liquidity=liquidity,
        start_price=price,
        decimals=tick_decimals(price),
        supply=cap / price,
        inflation=0.0 if is_btc else float(rng.uniform(0.0, 0.15)),
        turnover=6e9 if is_btc else 1.1e8 * (cap / 2.5e9) ** 0.8 * math.exp(0.5 * float(rng.standard_normal())),
        beta=1.0 if is_btc else float(rng.uniform(1.05, 1.6)) * (0.9 if liquidity is LiquidityClass.MAJOR else 1.0),
        alt_vol=0.0 if is_btc else float(rng.uniform(0.015, 0.022)),
        sector_vol=0.0 if is_btc else float(rng.uniform(0.007, 0.012)) * meme,
        own_vol=0.0 if is_btc else own[liquidity] * meme * math.exp(0.15 * float(rng.standard_normal())),
        listed_hour=listed,
        delisted_hour=delisted,
        funding_interval_h=4 if interval_small and rng.random() < 0.35 else 8,  # noqa: PLR2004 - a third of them
        funding_cap={LiquidityClass.MAJOR: 0.00375, LiquidityClass.LARGE: 0.0075}.get(liquidity, 0.015),
    )


def _liquidity(base: str, cap_bn: float) -> LiquidityClass:
    if base in {"BTC", "ETH"}:
        return LiquidityClass.MAJOR
    if cap_bn >= _LARGE_CAP:
        return LiquidityClass.LARGE
    return LiquidityClass.MID if cap_bn >= _MID_CAP else LiquidityClass.SMALL


def _life(k: int, rng: np.random.Generator, start_hour: int) -> tuple[int, int]:
    """Draw (listed, delisted) hours: log-uniform between 2 and 400 days, so short markets see listings as well."""
    late, gone = rng.random(2)
    hours = np.exp(rng.uniform(math.log(48.0), math.log(9600.0), 2)).astype(np.int64)
    if k < _ALWAYS_LISTED:
        return 0, NEVER
    if late < _LATE_SHARE:
        return int(hours[0]), NEVER
    if gone < _DELISTED_SHARE:
        at = int(hours[1]) + 240
        return 0, at - (start_hour + at - 8) % 24
    return 0, NEVER
