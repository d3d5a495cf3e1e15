"""Which trades made a bar? A fixed number per bar, laid along open, nearer extreme, other extreme and close.

The first trade is the open, the last the close, the extremes are reached exactly, and the sizes add up to the bar's volume
in whole lots. The same bar always gives the same trades with the same ids, over REST and socket.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.recording import TapeRows
from crypto_qlib.exchange.embedded.wire import Row, ms, num, plain

TRADES_PER_BAR: Final = 100
_LEGS: Final = 3


def bar_trades(item: Instrument, bars: BarBlock, k: int, span_ns: int) -> list[Row]:
    """Return the trades of bar ``k`` of ``bars``, oldest first; none where nothing traded.

    Parameters
    ----------
    span_ns : int
        Length of the bar.
    """
    total_lots = round(float(bars.volume[k]) / item.base_per_lot)
    if total_lots <= 0:
        return []
    count = min(TRADES_PER_BAR, total_lots)
    prices = _path(item, tuple(float(column[k]) for column in (bars.open, bars.high, bars.low, bars.close)), count)
    opened = int(bars.ts_open[k])
    first_id = opened // span_ns * TRADES_PER_BAR
    rows: list[Row] = []
    before = prices[0]
    for n, price in enumerate(prices):
        lots = total_lots * (n + 1) // count - total_lots * n // count
        rows.append(
            {
                "instId": item.inst_id, "tradeId": str(first_id + n), "px": plain(item.format_price(price)),
                "sz": num(round(lots * item.lot_size, 10)), "side": "buy" if price >= before else "sell", "count": "1",
                "source": "0", "ts": ms(opened + (n + 1) * span_ns // (count + 1)),
            }
        )  # fmt: skip
        before = price
    return rows


def tape_rows(item: Instrument, tape: TapeRows) -> list[Row]:
    """Return recorded trades as OKX shows them, oldest first; a trade below a lot counts as one."""
    columns = (tape.ts.tolist(), tape.trade_id.tolist(), tape.price.tolist(), tape.qty.tolist(), tape.side.tolist())
    return [
        {
            "instId": item.inst_id, "tradeId": str(number), "px": plain(item.format_price(price)),
            "sz": num(round(max(round(qty / item.base_per_lot), 1) * item.lot_size, 10)),
            "side": "buy" if side > 0 else "sell", "count": "1", "source": "0", "ts": ms(ts),
        }
        for ts, number, price, qty, side in zip(*columns, strict=True)
    ]  # fmt: skip


def _path(item: Instrument, ohlc: tuple[float, ...], count: int) -> list[float]:
    first, high, low, close = ohlc
    corners = (first, high, low, close) if high - first < first - low else (first, low, high, close)
    if count <= _LEGS:
        return list(corners[:1] + corners[3:])[:count] if count < _LEGS else [first, corners[1], close]
    # Corners sit on whole places, so that the extremes are hit exactly however many trades there are.
    places = [0, (count - 1) // 3, 2 * (count - 1) // 3, count - 1]
    prices: list[float] = []
    for leg in range(_LEGS):
        start, stop = places[leg], places[leg + 1]
        step = (corners[leg + 1] - corners[leg]) / (stop - start)
        prices += [corners[leg] + step * n for n in range(stop - start)]
    prices.append(close)
    tick = item.tick_size
    return [min(max(round(price / tick) * tick, low), high) for price in prices]
