"""What the columns of the simulated market's arrays mean; compiled code addresses them by these numbers."""

from __future__ import annotations

from typing import Final

MINUTES: Final = 60
SECTOR_COUNT: Final = 8
FACTOR_COUNT: Final = 2 + SECTOR_COUNT
"""BTC, all other coins, then one a sector."""

# Columns of an hour's stored row: what was published, in ticks, lots and USDT ...
OPEN, HIGH, LOW, CLOSE, LOTS, QUOTE, MARK_OPEN, MARK_HIGH, MARK_LOW, MARK_CLOSE, FUNDING = range(11)
# ... and what its minutes are grown from.
START_PRICE, OWN_SIGMA, TOTAL_SIGMA, DRIFT, LOT_RATE, PREMIUM_BEFORE, PREMIUM, OPEN_INTEREST = range(11, 19)
HOUR_FIELDS: Final = 19

# Columns of a minute row: the first ten are those of the hour's row, then the index in tenths of ticks.
M_OPEN, M_HIGH, M_LOW, M_CLOSE, M_LOTS, M_QUOTE, M_MARK_OPEN, M_MARK_HIGH, M_MARK_LOW, M_MARK_CLOSE = range(10)
M_INDEX_OPEN, M_INDEX_HIGH, M_INDEX_LOW, M_INDEX_CLOSE = range(10, 14)
MINUTE_FIELDS: Final = 14

# Columns of a coin's traits.
BETA, ALT_LOAD, SECTOR_LOAD, OWN_VOL, SECTOR, TICKS_PER_UNIT, BASE_PER_LOT, DAY_LOTS, FIRST_PRICE = range(9)
LISTED, DELISTED, INTERVAL, CAP, PREMIUM_SCALE, MARK_NOISE, OI_SCALE = range(9, 16)
COIN_FIELDS: Final = 16

# Streams of noise.
FACTOR_STREAM, FACTOR_JUMP_STREAM, MARKET_VOL_STREAM, MINUTE_STREAM, JUMP_STREAM, COIN_STREAM, MARK_STREAM = range(1, 8)
CROWD_STREAM: Final = 8
