"""One tiny price table per rule of the venue, every expected number worked by hand.

Most tapes hold ten coins bought (or sold) at 100 with leverage 10 out of 1000 USDT: margin 100, opening fee 1, so 899 stays in
cash. With a maintenance rate of 1 % and a fee of 0.1 % the long is liquidated at mark 900 / 9.89 = 91.00101112234580 and the
short at 1100 / 10.11 = 108.80316518298714.
"""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, Protection, TriggerSource
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.venue.records import Ambiguous
from tests.venue.venue_tape import FLAT, ME, PLAIN, B, Tape, listed, order, run, tier_table

STOP, TARGET, LIQ, CUT = ExitKind.STOP, ExitKind.TAKE_PROFIT, ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION
LONG_LIQ, SHORT_LIQ = 91.00101112234580, 108.80316518298714
CROSS = MarginMode.CROSS
LIMIT, POST, IOC, FOK = OrderKind.LIMIT, OrderKind.POST_ONLY, OrderKind.IOC, OrderKind.FOK
BOUGHT, SOLD = (0, 10, 100.0, None), (0, -10, 100.0, None)


PAIR = {"AUSDT": FLAT, "BUSDT": FLAT}


def lever(symbol: str, mode: MarginMode, leverage: float):
    return lambda exchange: exchange.set_leverage(ME, symbol, mode, leverage)


def protect(protection: Protection):
    return lambda exchange: exchange.set_protection(ME, "AUSDT", MarginMode.ISOLATED, protection)


FUNDING = [
    Tape("a long pays a positive rate", "10 x 100 x 0.001 = 1 out of the margin, not out of cash",
         [FLAT, B(100, 100, 100, 100, funding=0.001)], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=998.0),
    Tape("a short receives a positive rate", "the same 1 into the margin",
         [FLAT, B(100, 100, 100, 100, funding=0.001)], {0: [order(-10)]}, [SOLD], cash=899.0, equity=1000.0),
    Tape("a long receives a negative rate", "sign of the rate turns the payment",
         [FLAT, B(100, 100, 100, 100, funding=-0.002)], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=1001.0),
    Tape("funding counts the mark, not the last price", "10 x 110 x 0.001 = 1.1; equity 899 + 98.9 + 100",
         [FLAT, B(100, 100, 100, 100, mark=(110, 110, 110, 110), funding=0.001)], {0: [order(10)]}, [BOUGHT], equity=1097.9),
    Tape("funding of a cross position moves cash", "cash 1000 - 1 fee - 1 funding",
         [FLAT, B(100, 100, 100, 100, funding=0.001)], {0: [order(10, mode=CROSS)]}, [BOUGHT], cash=998.0, equity=998.0),
    Tape("only bars with a settlement settle", "settlements after one and then two hours: 1 + 2; none in between",
         [FLAT, B(100, 100, 100, 100, funding=0.001), FLAT, B(100, 100, 100, 100, funding=0.002), FLAT],
         {0: [order(10)]}, [BOUGHT], equity=996.0),
    Tape("an entry at the settlement instant is charged", "same timestamp and it would pay: charge it",
         [B(100, 100, 100, 100, funding=0.001)], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=998.0),
    Tape("an entry at the settlement instant is not credited", "same timestamp and it would receive: nothing",
         [B(100, 100, 100, 100, funding=0.001)], {0: [order(-10)]}, [SOLD], cash=899.0, equity=999.0),
    Tape("an exit at the settlement instant has paid before", "funding first: 1; then 1 fee: 899 + 99 - 1",
         [FLAT, B(100, 100, 100, 100, funding=0.001)], {0: [order(10)], 1: [order(-10, reduce_only=True)]},
         [BOUGHT, (1, -10, 100.0, ExitKind.SIGNAL)], cash=997.0, equity=997.0),
    Tape("funding never takes the ratio below one", "at 92: equity 20, requirement 920 x 0.011 = 10.12, so 9.88 of 18.4 is paid",
         [FLAT, B(92, 93, 92, 92.5, funding=0.02)], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=914.12),
    Tape("funding comes before the gap test", "9 paid: liquidation rises to (1000 - 91) / 9.89 = 91.9; at 91.5 it is dead",
         [FLAT, B(94, 94, 94, 94, funding=0.0095744680851063829), B(91.5, 92, 91.5, 92)], {0: [order(10)]},
         [BOUGHT, (2, -10, 91.5, LIQ)], cash=899.0, equity=899.0),
]  # fmt: skip

GAPS = [
    Tape("a mark gap liquidates before the stop", "mark opens at 85, below 91.0: the stop at 95 comes too late",
         [FLAT, B(85, 86, 84, 85)], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 85.0, LIQ)], cash=899.0, equity=899.0),
    Tape("a mark gap liquidates a short", "mark opens at 110, above 108.8",
         [FLAT, B(110, 110, 109, 109)], {0: [order(-10, stop=105)]}, [SOLD, (1, 10, 110.0, LIQ)], cash=899.0, equity=899.0),
    Tape("a gapped stop fills at the open", "opens at 93 below the stop 95: 899 + 100 - 70 - 0.93",
         [FLAT, B(93, 97, 92, 96)], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 93.0, STOP)], cash=928.07),
    Tape("a gapped stop of a short fills at the open", "opens at 107 above the stop 105: 899 + 100 - 70 - 1.07",
         [FLAT, B(107, 107, 101, 102)], {0: [order(-10, stop=105)]}, [SOLD, (1, 10, 107.0, STOP)], cash=927.93),
    Tape("a take-profit passed at the open fills at the open", "899 + 100 + 80 - 1.08",
         [FLAT, B(108, 109, 90, 91)], {0: [order(10, target=105)]}, [BOUGHT, (1, -10, 108.0, TARGET)], cash=1077.92),
    Tape("liquidation looks at the mark even if last is far away", "mark opens at 90; last opens at 99 above the stop",
         [FLAT, B(99, 99, 99, 99, mark=(90, 92, 90, 92))], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 90.0, LIQ)], cash=899.0),
    Tape("a wick of last does not liquidate", "last opens and trades at 85, the mark stays at 99: equity 899 + 100 - 10",
         [FLAT, B(85, 100, 80, 99, mark=(99, 100, 99, 99))], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=989.0),
    Tape("a gapped stop never costs more than the margin", "last gaps to 80, mark only to 92: -200 - 0.8 against 100 of margin",
         [FLAT, B(80, 93, 80, 92, mark=(92, 93, 92, 92))], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 80.0, STOP)], cash=899.0,
         equity=899.0),
]  # fmt: skip

INSIDE = [
    Tape("a stop fills at its trigger", "899 + 100 - 50 - 0.95",
         [FLAT, B(100, 101, 94, 96)], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 95.0, STOP)], cash=948.05),
    Tape("a touch sets a stop off", "the low is the trigger itself",
         [FLAT, B(100, 101, 95, 96)], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 95.0, STOP)], cash=948.05),
    Tape("a stop of a short fills at its trigger", "899 + 100 - 50 - 1.05",
         [FLAT, B(100, 106, 99, 104)], {0: [order(-10, stop=105)]}, [SOLD, (1, 10, 105.0, STOP)], cash=947.95),
    Tape("a stop nearer than liquidation saves the position", "the bar falls to 85, but 95 comes before 91.0",
         [FLAT, B(100, 101, 85, 96)], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 95.0, STOP)], cash=948.05),
    Tape("a liquidation nearer than the stop wins", "91.0 comes before 90; booked at the mark that triggered",
         [FLAT, B(100, 101, 85, 96)], {0: [order(10, stop=90)]}, [BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=899.0, equity=899.0),
    Tape("a short is liquidated above", "the bar rises to 109, beyond 108.8",
         [FLAT, B(100, 109, 99, 100)], {0: [order(-10)]}, [SOLD, (1, 10, SHORT_LIQ, LIQ)], cash=899.0, equity=899.0),
    Tape("just short of the liquidation price nothing happens", "the low 91.01 stays above 91.001",
         [FLAT, B(100, 100, 91.01, 100)], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=999.0),
    Tape("liquidation inside the bar looks at the mark", "mark falls to 90, last only to 99",
         [FLAT, B(100, 100, 99, 100, mark=(100, 100, 90, 100))], {0: [order(10)]}, [BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=899.0),
    Tape("a wick of last inside the bar does not liquidate", "last falls to 85, mark only to 95",
         [FLAT, B(100, 100, 85, 100, mark=(100, 100, 95, 100))], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=999.0),
    Tape("liquidation where stop and mark cannot be told apart", "stop is 1.0 nearer, but last and mark differ by 2 at the lows",
         [FLAT, B(100, 100, 91, 100, mark=(100, 100, 89, 100))], {0: [order(10, stop=92)]}, [BOUGHT, (1, -10, LONG_LIQ, LIQ)],
         cash=899.0, ambiguous=1),
    Tape("the stop where it is nearer by more than the basis", "stop is 4.0 nearer, last and mark differ by 2",
         [FLAT, B(100, 100, 91, 100, mark=(100, 100, 89, 100))], {0: [order(10, stop=95)]}, [BOUGHT, (1, -10, 95.0, STOP)],
         cash=948.05),
    Tape("liquidation beats take-profit", "both 85 and 112 in one bar: the worse came first",
         [FLAT, B(100, 112, 85, 100)], {0: [order(10, target=110)]}, [BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=899.0, ambiguous=1),
    Tape("stop beats take-profit", "both 94 and 106 in one bar: the worse came first",
         [FLAT, B(100, 106, 94, 100)], {0: [order(10, stop=95, target=105)]}, [BOUGHT, (1, -10, 95.0, STOP)], cash=948.05,
         ambiguous=1),
    Tape("stop beats take-profit for a short", "899 + 100 - 50 - 1.05",
         [FLAT, B(100, 106, 94, 100)], {0: [order(-10, stop=105, target=95)]}, [SOLD, (1, 10, 105.0, STOP)], cash=947.95,
         ambiguous=1),
    Tape("a take-profit fills at its trigger", "899 + 100 + 50 - 1.05",
         [FLAT, B(100, 106, 99, 104)], {0: [order(10, stop=95, target=105)]}, [BOUGHT, (1, -10, 105.0, TARGET)], cash=1047.95),
    Tape("a take-profit of a short fills at its trigger", "899 + 100 + 50 - 0.95",
         [FLAT, B(100, 101, 94, 96)], {0: [order(-10, stop=105, target=95)]}, [SOLD, (1, 10, 95.0, TARGET)], cash=1048.05),
    Tape("no take-profit in the entry bar", "105 is reached, but perhaps before the entry; the next bar may take it",
         [B(100, 106, 99, 100), B(100, 105, 99, 100)], {0: [order(10, target=105)]}, [BOUGHT, (1, -10, 105.0, TARGET)],
         cash=1047.95, ambiguous=1),
    Tape("a stop works in the entry bar", "the adverse extreme is taken to come after the entry",
         [B(100, 101, 94, 100)], {0: [order(10, stop=95)]}, [BOUGHT, (0, -10, 95.0, STOP)], cash=948.05),
    Tape("a stop already passed at the entry fills at the open", "the stop lies above the entry: never at the better trigger",
         [B(100, 104, 99, 103)], {0: [order(10, stop=102)]}, [BOUGHT, (0, -10, 100.0, STOP)], cash=998.0),
    Tape("an entry can be liquidated in its own bar", "the bar falls to 90 after the entry at 100",
         [B(100, 101, 90, 100)], {0: [order(10)]}, [BOUGHT, (0, -10, LONG_LIQ, LIQ)], cash=899.0, equity=899.0),
    Tape("a mark stop ignores last", "last falls to 94, mark only to 96",
         [FLAT, B(100, 100, 94, 100, mark=(100, 100, 96, 100))], {0: [order(10, stop=95, on=TriggerSource.MARK)]}, [BOUGHT],
         equity=999.0),
    Tape("a mark stop trades at last", "mark falls to 94, last to 92: two below the trigger; 899 + 100 - 70 - 0.93",
         [FLAT, B(100, 100, 92, 100, mark=(100, 100, 94, 100))], {0: [order(10, stop=95, on=TriggerSource.MARK)]},
         [BOUGHT, (1, -10, 93.0, STOP)], cash=928.07),
    Tape("protection can be set later", "set at the open of bar 1, hit in bar 1",
         [FLAT, B(100, 100, 94, 100)], {0: [order(10)], 1: [protect(Protection(95.0, None))]}, [BOUGHT, (1, -10, 95.0, STOP)],
         cash=948.05),
]  # fmt: skip

TRAILING = ExitKind.TRAILING
TRAILS = [
    Tape("a trailing stop follows the best price", "best 110, so 110 x 0.95 = 104.5: 899 + 100 + 45 - 1.045",
         [FLAT, B(100, 110, 99, 108), B(108, 109, 104, 105)], {0: [order(10, trailing=0.05)]},
         [BOUGHT, (2, -10, 104.5, TRAILING)], cash=1042.955),
    Tape("a trailing stop does not use this bar's high before its low", "96 is above 95, though below 104.5 of this bar's high",
         [FLAT, B(100, 110, 96, 109)], {0: [order(10, trailing=0.05)]}, [BOUGHT], equity=1089.0),
    Tape("a bar that ends beyond the new trailing level closes there", "up to 110, down to 104: through 104.5 on the way",
         [FLAT, B(100, 110, 99, 104)], {0: [order(10, trailing=0.05)]}, [BOUGHT, (1, -10, 104.5, TRAILING)], cash=1042.955),
    Tape("a gapped trailing stop fills at the open", "level 104.5, open 102: 899 + 100 + 20 - 1.02",
         [FLAT, B(100, 110, 99, 108), B(102, 103, 101, 103)], {0: [order(10, trailing=0.05)]},
         [BOUGHT, (2, -10, 102.0, TRAILING)], cash=1017.98),
    Tape("a trailing stop of a short follows down", "best 90, so 94.5: 899 + 100 + 55 - 0.945",
         [FLAT, B(100, 101, 90, 92), B(92, 95, 91, 93)], {0: [order(-10, trailing=0.05)]},
         [SOLD, (2, 10, 94.5, TRAILING)], cash=1053.055),
    Tape("the nearer of fixed and trailing stop counts", "fixed 98 lies above trailing 95: 899 + 100 - 20 - 0.98",
         [FLAT, B(100, 100, 94, 95)], {0: [order(10, stop=98, trailing=0.05)]}, [BOUGHT, (1, -10, 98.0, STOP)], cash=978.02),
]  # fmt: skip

LIMITS = [
    Tape("a touch does not fill a limit", "the low equals the limit: nothing, 98.98 stay frozen",
         [B(100, 101, 98, 99)], {0: [order(10, kind=LIMIT, price=98.0)]}, [], cash=1000.0, equity=1000.0),
    Tape("a tick beyond fills a limit at its price", "maker fee 0.196, margin 98",
         [B(100, 101, 97.99, 98)], {0: [order(10, kind=LIMIT, price=98.0)]}, [(0, 10, 98.0, None)], cash=901.804, equity=999.804),
    Tape("a limit the open gaps through fills at the limit", "open 97, limit 98",
         [FLAT, B(97, 99, 96.5, 98)], {0: [order(10, kind=LIMIT, price=98.0)]}, [(1, 10, 98.0, None)], cash=901.804),
    Tape("an entry inside the bar lives through the rest of it", "bought at 98, stopped at 96 by the same low",
         [B(100, 101, 95, 99)], {0: [order(10, kind=LIMIT, price=98.0, stop=96)]}, [(0, 10, 98.0, None), (0, -10, 96.0, STOP)],
         cash=901.804 + 98.0 - 20.0 - 0.96),
    Tape("a sell limit opens a short above", "maker fee 0.204, margin 102",
         [B(100, 103, 99, 101)], {0: [order(-10, kind=LIMIT, price=102.0)]}, [(0, -10, 102.0, None)], cash=897.796),
    Tape("a marketable limit takes the open", "limit 101 above the open: fills at 100 as taker",
         [FLAT], {0: [order(10, kind=LIMIT, price=101.0)]}, [BOUGHT], cash=899.0),
    Tape("post-only is cancelled where it would take", "limit 100 at an open of 100",
         [B(100, 101, 99, 100)], {0: [order(10, kind=POST, price=100.0)]}, [], cash=1000.0),
    Tape("post-only rests and fills as maker", "limit 99, low 98.5",
         [B(100, 101, 98.5, 99)], {0: [order(10, kind=POST, price=99.0)]}, [(0, 10, 99.0, None)], cash=1000.0 - 99.0 - 0.198),
    Tape("an IOC beyond the market is cancelled", "limit 99 at an open of 100, even though the bar trades at 98",
         [B(100, 101, 98, 99)], {0: [order(10, kind=IOC, price=99.0)]}, [], cash=1000.0),
    Tape("an IOC takes what the volume share allows", "5 % of 100 coins: 5 of 10 lots, the rest is cancelled",
         [B(100, 100, 100, 100, volume=100)], {0: [order(10, kind=IOC, price=100.0)]}, [(0, 5, 100.0, None)], cash=949.5),
    Tape("a FOK is all or nothing", "5 of 10 lots would fill: nothing does",
         [B(100, 100, 100, 100, volume=100)], {0: [order(10, kind=FOK, price=100.0)]}, [], cash=1000.0),
    Tape("a market order is limited by the bar's volume", "5 lots fill, the rest is cancelled",
         [B(100, 100, 100, 100, volume=100)], {0: [order(10)]}, [(0, 5, 100.0, None)], cash=949.5),
    Tape("closing a position is not limited by volume", "all ten lots leave in a thin bar",
         [FLAT, B(100, 100, 100, 100, volume=20)], {0: [order(10)], 1: [order(-10, reduce_only=True)]},
         [BOUGHT, (1, -10, 100.0, ExitKind.SIGNAL)], cash=998.0),
    Tape("a resting limit fills over several bars", "5 % of 120 is 6 lots, then the other 4",
         [B(100, 101, 97, 99, volume=120), B(99, 99, 97, 99, volume=120)], {0: [order(10, kind=LIMIT, price=98.0)]},
         [(0, 6, 98.0, None), (1, 4, 98.0, None)], cash=901.804),
    Tape("a closing limit comes after the adverse extreme", "stop 95 and limit 105 in one bar: the stop, and the limit is cancelled",
         [FLAT, B(100, 106, 94, 100), B(100, 110, 100, 110)],
         {0: [order(10, stop=95), order(-10, kind=LIMIT, price=105.0, reduce_only=True)]}, [BOUGHT, (1, -10, 95.0, STOP)],
         cash=948.05),
    Tape("a closing limit fills on the favourable side", "899 + 100 + 50 - 0.21 maker fee",
         [FLAT, B(100, 106, 99, 104)], {0: [order(10), order(-10, kind=LIMIT, price=105.0, reduce_only=True)]},
         [BOUGHT, (1, -10, 105.0, ExitKind.SIGNAL)], cash=1048.79),
    Tape("a reduce-only order is cut down to the position", "15 asked, 10 held",
         [FLAT, FLAT], {0: [order(10)], 1: [order(-15, reduce_only=True)]}, [BOUGHT, (1, -10, 100.0, ExitKind.SIGNAL)], cash=998.0),
    Tape("selling more than held closes and opens the other side", "10 closed, 5 sold short: 998 - 0.5 - 50",
         [FLAT, FLAT], {0: [order(10)], 1: [order(-15)]}, [BOUGHT, (1, -10, 100.0, ExitKind.SIGNAL), (1, -5, 100.0, None)],
         cash=947.5),
]  # fmt: skip

TIERED = {"start": 10_000.0}
FIRST_CUT, SECOND = 22_500 / 242.25, 9_000 / 98.9
LIQUIDATIONS = [
    Tape("an isolated liquidation costs the margin and nothing else", "the mark gaps to 50: -500 on paper, 100 in money",
         [FLAT, B(50, 60, 40, 50)], {0: [order(10)]}, [BOUGHT, (1, -10, 50.0, LIQ)], cash=899.0, equity=899.0),
    Tape("cash does not save an isolated position", "899 of cash lies idle while 100 of margin dies",
         [FLAT, B(100, 100, 91, 100)], {0: [order(10)]}, [BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=899.0),
    Tape("added margin moves the liquidation away", "50 more: (1000 - 150) / 9.89 = 85.9, so 88 is survived",
         [FLAT, B(100, 100, 88, 100)], {0: [order(10), lambda e: e.adjust_margin(ME, "AUSDT", 50.0)]}, [BOUGHT], cash=849.0,
         equity=999.0),
    Tape("lower leverage on an open position adds margin", "from 10x to 5x: 100 more margin, liquidation at 80.9",
         [FLAT, B(100, 100, 85, 100)], {0: [order(10), lever("AUSDT", MarginMode.ISOLATED, 5)]}, [BOUGHT], cash=799.0,
         equity=999.0),
    Tape("a tier-3 position is cut by two tiers first", "250 lots at 3.1 %: 22500 / 242.25; 100 lots stay with 1000 of margin",
         [FLAT, B(100, 100, 92, 100)], {0: [order(250)]}, [(0, 250, 100.0, None), (1, -150, FIRST_CUT, CUT)], cash=7475.0,
         equity=8475.0, **TIERED),
    Tape("after the cut the rest can still die", "the rest at 1.1 %: 9000 / 98.9 = 91.0; the low 90 is beyond",
         [FLAT, B(100, 100, 90, 100)], {0: [order(250)]},
         [(0, 250, 100.0, None), (1, -150, FIRST_CUT, CUT), (1, -100, SECOND, LIQ)], cash=7475.0, equity=7475.0, **TIERED),
    Tape("without partial liquidation all goes at once", "switch off: the whole position at 92.88",
         [FLAT, B(100, 100, 92, 100)], {0: [order(250)]}, [(0, 250, 100.0, None), (1, -250, FIRST_CUT, LIQ)], cash=7475.0,
         config=replace(PLAIN, partial_liquidation=False), **TIERED),
    Tape("the whole position takes its tier's rate", "101 lots pay 2 %: 9090 / (101 x 0.979) = 91.93, so 91.5 kills it",
         [FLAT, B(100, 100, 91.5, 100)], {0: [order(101)]}, [(0, 101, 100.0, None), (1, -101, 9090 / (101 * 0.979), LIQ)],
         cash=10_000 - 1010 - 10.1, **TIERED),
    Tape("a new tier table holds from its day", "from bar 2 the rate is 5 %: 900 / 9.49 = 94.8, so 94 kills what bar 1 spared",
         [FLAT, B(100, 100, 94, 100), B(100, 100, 94, 100)], {0: [order(10)]}, [BOUGHT, (2, -10, 900 / 9.49, LIQ)], cash=899.0,
         instruments=[listed(history=TierHistory([tier_table(), tier_table(5.0, 2 * NS_PER_HOUR)]))]),
    Tape("nothing trades after a liquidation in the same bar", "the resting add at 90 is cancelled with the position",
         [FLAT, B(100, 112, 85, 100)], {0: [order(10, target=110), order(-5, kind=LIMIT, price=111.0)]},
         [BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=899.0, ambiguous=1),
]  # fmt: skip

CROSS_ACCOUNTS = [
    Tape("a cross account dies at the joint adverse extreme", "each leg alone lives; together -40 - 45 leaves 13 of 22.05 needed",
         [PAIR, {"AUSDT": B(100, 100, 96, 100), "BUSDT": B(100, 104.5, 100, 100)}],
         {0: [order(10, mode=CROSS), order(-10, symbol="BUSDT", mode=CROSS)]},
         # equity falls from 98 by 85 f, the need rises from 22 by 0.055 f: f = 76 / 85.055
         [BOUGHT, SOLD, (1, -10, 100 - 4 * 76 / 85.055, LIQ), (1, 10, 100 + 4.5 * 76 / 85.055, LIQ)],
         cash=0.0, equity=0.0, start=100.0, ambiguous=2,
         config=replace(PLAIN, default_leverage=25.0)),
    Tape("cross profit of one leg carries the other", "A loses 80, B gains 80: equity stays 98, far above 22",
         [PAIR, {"AUSDT": B(92, 92, 92, 92), "BUSDT": B(92, 92, 92, 92)}],
         {0: [order(10, mode=CROSS), order(-10, symbol="BUSDT", mode=CROSS)]}, [BOUGHT, SOLD], cash=98.0, equity=98.0, start=100.0,
         config=replace(PLAIN, default_leverage=25.0)),
    Tape("a cross account dies at a gap of the mark open", "opens at 88: 99 - 120 below zero; the floor is zero",
         [FLAT, B(88, 90, 88, 90)], {0: [order(10, mode=CROSS)]}, [BOUGHT, (1, -10, 88.0, LIQ)], cash=0.0, equity=0.0, start=100.0,
         config=replace(PLAIN, default_leverage=25.0)),
    Tape("a gap of the mark open liquidates a cross account before its stop", "the stop at 95 comes too late at 88",
         [FLAT, B(88, 90, 88, 90)], {0: [order(10, stop=95, mode=CROSS)]}, [BOUGHT, (1, -10, 88.0, LIQ)], cash=0.0, equity=0.0,
         start=100.0, config=replace(PLAIN, default_leverage=25.0)),
    Tape("a stop nearer than death saves a cross account", "99 - 50 at the stop is above 10.45: it closes at 95 instead",
         [FLAT, B(100, 100, 85, 90)], {0: [order(10, stop=95, mode=CROSS)]}, [BOUGHT, (1, -10, 95.0, STOP)],
         cash=100 - 1 - 50 - 0.95, start=100.0, config=replace(PLAIN, default_leverage=25.0)),
    Tape("a cross position is cut by tiers too", "equity 2475 + 250 (m - 100) against 7.75 m: m = 22525 / 242.25",
         [FLAT, B(100, 100, 92.5, 100)], {0: [order(250, mode=CROSS)]},
         [(0, 250, 100.0, None), (1, -150, 22_525 / 242.25, CUT)], start=2500.0, config=replace(PLAIN, default_leverage=16.0),
         cash=2475 - 150 * (100 - 22_525 / 242.25) - 150 * 0.031 * 22_525 / 242.25),
    Tape("an isolated death leaves the cross leg alone", "A isolated dies with 100; B cross keeps its 899",
         [PAIR, {"AUSDT": B(100, 100, 85, 100), "BUSDT": FLAT}],
         {0: [order(10), order(10, symbol="BUSDT", mode=CROSS)]}, [BOUGHT, BOUGHT, (1, -10, LONG_LIQ, LIQ)], cash=898.0,
         equity=898.0),
]  # fmt: skip

COSTS_AND_LIFE = [
    Tape("half the spread is paid on entry", "10 bp of 100",
         [FLAT], {0: [order(10)]}, [(0, 10, 100.1, None)], config=replace(PLAIN, half_spread_bps=10.0)),
    Tape("a stop pays the spread twice", "20 bp below 95: 94.81",
         [FLAT, B(100, 100, 94, 96)], {0: [order(10, stop=95)]}, [(0, 10, 100.1, None), (1, -10, 94.81, STOP)],
         config=replace(PLAIN, half_spread_bps=10.0)),
    Tape("a large order pays square-root impact", "1000 of 100000: 1 x 100 bp x 0.1 = 10 bp",
         [B(100, 100, 100, 100, adv=1e5, sigma=100.0)], {0: [order(10)]}, [(0, 10, 100.1, None)],
         config=replace(PLAIN, impact_y=1.0)),
    Tape("four times the size pays twice the impact", "4000 of 100000: 20 bp",
         [B(100, 100, 100, 100, adv=1e5, sigma=100.0)], {0: [order(40)]}, [(0, 40, 100.2, None)],
         config=replace(PLAIN, impact_y=1.0)),
    Tape("a slipped price is moved to the worse tick", "3.3 bp of 100 is 100.033: a buyer pays 100.04",
         [FLAT], {0: [order(10)]}, [(0, 10, 100.04, None)], config=replace(PLAIN, half_spread_bps=3.3)),
    Tape("an order sent between bars fills at the next open", "sent after the close of bar 0, filled at 101",
         [FLAT, B(101, 102, 101, 101)], {}, [(1, 10, 101.0, None)], after={0: [order(10)]}, cash=1000 - 101 - 1.01),
    Tape("waiting exits fill before waiting entries", "the exit of A goes first although the entry of B was sent first",
         [PAIR, PAIR], {0: [order(10)]}, [BOUGHT, (1, -10, 100.0, ExitKind.SIGNAL), (1, 10, 100.0, None)],
         after={0: [order(10, symbol="BUSDT", client_id="entry"), order(-10, reduce_only=True)]}, start=202.1,
         cash=202.1 - 1 - 1 - 101),
    Tape("a delisted symbol closes at its last mark", "last mark 104: 899 + 100 + 40 - 1.04",
         [FLAT, B(100, 106, 100, 103, mark=(100, 106, 100, 104)), {"BUSDT": FLAT}], {0: [order(10)]},
         [BOUGHT, (2, -10, 104.0, ExitKind.DELISTED)], cash=1037.96, equity=1037.96,
         instruments=[listed(delisted_ns=2 * NS_PER_HOUR), listed("BUSDT")]),
    Tape("a bar without a price holds the position", "bar 1 is missing; bar 2 stops it",
         [FLAT, B(math.nan, math.nan, math.nan, math.nan), B(94, 95, 93, 94)], {0: [order(10, stop=95)]},
         [BOUGHT, (2, -10, 94.0, STOP)], cash=899 + 100 - 60 - 0.94),
    Tape("the deleveraging switch closes the winner at the mark close", "a fall of 10 % beyond the switch at 9 %: the short leaves at 92",
         [FLAT, B(100, 100, 90, 92)], {0: [order(-10)]}, [SOLD, (1, 10, 92.0, ExitKind.ADL)], cash=899 + 100 + 80 - 0.92,
         config=replace(PLAIN, adl_stress_move=0.09)),
]  # fmt: skip

ALL = FUNDING + GAPS + INSIDE + TRAILS + LIMITS + LIQUIDATIONS + CROSS_ACCOUNTS + COSTS_AND_LIFE


@pytest.mark.parametrize("tape", ALL, ids=lambda tape: tape.name.replace(" ", "_"))
def test_tape(tape: Tape) -> None:
    exchange = run(tape)
    fills = [(f.ts_ns // NS_PER_HOUR, f.signed_lots, f.exit_kind) for f in exchange.fills(ME)]
    assert fills == [(bar, lots, kind) for bar, lots, _, kind in tape.fills], tape.reason
    assert [f.price for f in exchange.fills(ME)] == pytest.approx([price for _, _, price, _ in tape.fills], rel=1e-12), (
        tape.reason
    )
    snapshot = exchange.snapshot(ME)
    for got, expected in ((snapshot.cash, tape.cash), (snapshot.equity, tape.equity)):
        if not math.isnan(expected):
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9), tape.reason
    assert sum(isinstance(event, Ambiguous) for event in exchange.drain_events()) == tape.ambiguous, tape.reason


def test_there_are_at_least_forty_tapes_with_distinct_names() -> None:
    assert len({tape.name for tape in ALL}) == len(ALL) >= 40


@pytest.mark.parametrize(
    ("name", "pnl", "fee", "penalty", "overshoot"),
    [
        # -200 and 0.8 against 100 of margin
        ("a gapped stop never costs more than the margin", -200.0, 0.8, 0.0, 100.8),
        # 10 x (50 - 100), 0.1 % and 1 % of 500: 505.5 against 100 of margin
        ("an isolated liquidation costs the margin and nothing else", -500.0, 0.5, 5.0, 405.5),
        # at the exact trigger nothing is missing: 10 x 8.99898..., 0.910..., 9.10...
        ("a liquidation nearer than the stop wins", 10 * (LONG_LIQ - 100), LONG_LIQ / 100, LONG_LIQ / 10, 0.0),
    ],
)
def test_what_the_margin_could_not_pay_is_the_insurance_funds(
    name: str, pnl: float, fee: float, penalty: float, overshoot: float
) -> None:
    bill = run(next(tape for tape in ALL if tape.name == name)).bills(ME)[-1]
    assert (bill.pnl, bill.fee, bill.penalty) == pytest.approx((pnl, fee, penalty))
    assert bill.overshoot == pytest.approx(overshoot, abs=1e-9)
    assert bill.margin_change == pytest.approx(-100.0)
    assert bill.cash_change == pytest.approx(0.0, abs=1e-9)
