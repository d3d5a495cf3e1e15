"""How well does cleaning find what is wrong? Defects are seeded into real hours, and every flag is compared with the truth.

``python -m benchmarks cleaning [FOLDER]``: FOLDER holds ``okx_perp_1h.parquet`` and ``okx_mark_1h.parquet`` (default
``../shared/data``). The hours of September to November 2025 contain the crash of 10 October: what it moved is not a defect, and
flagging it counts as a mistake.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import BarBlock
from crypto_qlib.data_collector.bar_rules import Flag, in_order
from crypto_qlib.data_collector.clean_data import clean
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake, Series

COINS = ("BTC", "ETH", "SOL", "DOGE", "XRP", "ADA", "AVAX", "LINK", "LTC", "DOT", "BNB")
SPAN = ("2025-09-01", "2025-12-01")
PRICES = ("open", "high", "low", "close")
Truth = dict[str, set[tuple[str, int]]]
FLAGS = {
    "bad_price": Flag.BAD_PRICE,
    "bad_range": Flag.BAD_RANGE,
    "bad_volume": Flag.BAD_VOLUME,
    "bad_print": Flag.OUTLIER | Flag.SUSPECT,
    "frozen": Flag.FROZEN,
    "stale": Flag.STALE,
    "volume_unit": Flag.VOLUME_UNIT,
    "rescaled": Flag.RESCALED,
}


@dataclass(frozen=True)
class Score:
    """Precision and recall of one kind of defect."""

    kind: str
    seeded: int
    found: int
    hits: int

    @property
    def precision(self) -> float:
        return self.hits / self.found if self.found else float("nan")

    @property
    def recall(self) -> float:
        return self.hits / self.seeded if self.seeded else float("nan")


def real_hours(folder: Path, name: str) -> dict[str, BarBlock]:
    """Return the bars of a file by compact symbol; turnover, where it is not told, is volume times the mean price."""
    wanted = {f"{c}/USDT:USDT": f"{c}USDT" for c in COINS}
    rows = pd.read_parquet(folder / name, filters=[("symbol", "in", list(wanted))])
    rows = rows[(rows.ts >= pd.Timestamp(SPAN[0], tz="UTC")) & (rows.ts < pd.Timestamp(SPAN[1], tz="UTC"))]
    found: dict[str, BarBlock] = {}
    for symbol, part in rows.groupby("symbol"):
        ts = part.ts.dt.as_unit("ns").astype("int64").to_numpy()
        prices = [part[c].to_numpy() for c in PRICES]
        volume = part.volume.to_numpy() if "volume" in part else np.full(ts.size, np.nan)
        found[wanted[str(symbol)]] = BarBlock(ts, *prices, volume, volume * sum(prices) / 4.0)
    return found


def _copy(block: BarBlock) -> dict[str, np.ndarray]:
    return {n: getattr(block, n).copy() for n in BarBlock.__slots__}


def seeded(blocks: dict[str, BarBlock], seed: int, n_each: int = 20) -> tuple[dict[str, BarBlock], Truth]:
    """Return the bars with defects, and where each is; defects lie apart from each other and after the first ten days."""
    rng = np.random.default_rng(seed)
    arrays = {s: _copy(b) for s, b in blocks.items()}
    free = {s: [*range(240 + 3 * j, len(b) - 120, 40)] for j, (s, b) in enumerate(blocks.items())}
    for slots in free.values():
        rng.shuffle(slots)
    truth: Truth = {k: set() for k in FLAGS}

    def somewhere(symbols: list[str]) -> tuple[str, int]:
        symbol = symbols[int(rng.integers(len(symbols)))]
        return symbol, free[symbol].pop()

    symbols = list(blocks)
    plain, units = symbols[:-2], symbols[-2:]
    for _ in range(n_each):
        for kind in ("bad_price", "bad_range", "bad_volume", "bad_print", "frozen", "volume_unit"):
            symbol, k = somewhere(plain)
            for at in _spoil(arrays[symbol], kind, k, rng):
                truth[kind].add((symbol, int(arrays[symbol]["ts_open"][at])))
    for symbol in plain[:4]:
        _, k = somewhere([symbol])
        a = arrays[symbol]
        for name in PRICES:
            a[name][k : k + 30] = a["close"][k - 1]
        a["volume"][k : k + 30] = a["quote_volume"][k : k + 30] = 0.0
        truth["stale"] |= {(symbol, int(t)) for t in a["ts_open"][k + 23 : k + 30]}  # the 24th flat bar is the first
    for symbol, factor in zip(units, (1e-3, 1e2), strict=True):
        a, k = arrays[symbol], len(blocks[symbol]) // 2
        for name in PRICES:
            a[name][k:] *= factor
        a["volume"][k:] /= factor
        truth["rescaled"].add((symbol, int(a["ts_open"][k])))
    return {s: BarBlock(**a) for s, a in arrays.items()}, truth


def _spoil(a: dict[str, np.ndarray], kind: str, k: int, rng: np.random.Generator) -> list[int]:
    """Put one defect at bar ``k`` and return the bars that are wrong."""
    if kind == "bad_price":
        a[PRICES[int(rng.integers(4))]][k] = rng.choice([0.0, -1.0, np.nan, np.inf])
    elif kind == "bad_range":
        a["high"][k] = min(a["open"][k], a["close"][k]) * 0.999
    elif kind == "bad_volume":
        a["volume"][k] = rng.choice([-5.0, -np.inf])
    elif kind == "bad_print":
        jump = float(np.exp(rng.choice([-1.0, 1.0]) * rng.uniform(0.05, 1.0)))
        a["close"][k] *= jump
        a["high"][k], a["low"][k] = max(a["high"][k], a["close"][k]), min(a["low"][k], a["close"][k])
    elif kind == "frozen":
        for name in (*PRICES, "volume", "quote_volume"):
            a[name][k + 1 : k + 3] = a[name][k]
        return [k + 1, k + 2]
    else:
        a["volume"][k : k + 5] *= float(rng.choice([0.01, 100.0, 1000.0]))
        return list(range(k, k + 5))
    return [k]


def scores(blocks: dict[str, BarBlock], marks: dict[str, BarBlock], seed: int) -> list[Score]:
    """Return precision and recall of every rule on seeded bars, cleaned by the package."""
    spoilt, truth = seeded(blocks, seed)
    with tempfile.TemporaryDirectory() as scratch:
        lake = Lake(Path(scratch))
        for symbol, block in spoilt.items():
            lake.write_bars(Kind.CANDLES, "1h", symbol, block)
            if symbol in marks:
                lake.write_bars(Kind.MARK, "1h", symbol, marks[symbol])
        clean(lake, list(spoilt), DataSettings())
        flagged: Truth = {k: set() for k in FLAGS}
        for symbol in spoilt:
            rows = lake.read(Series(Kind.CLEAN, "1h", symbol))
            for kind, flag in FLAGS.items():
                flagged[kind] |= {(symbol, int(t)) for t in rows["ts"][(rows["flag"] & flag) != 0]}
    return [Score(k, len(truth[k]), len(flagged[k]), len(truth[k] & flagged[k])) for k in FLAGS] + _order(blocks, seed)


def _order(blocks: dict[str, BarBlock], seed: int) -> list[Score]:
    """Return the scores of the two rules that act before rows reach the lake: doubled rows and rows out of order."""
    rng = np.random.default_rng(seed)
    made = {"duplicate": Score("duplicate", 0, 0, 0), "out_of_order": Score("out_of_order", 0, 0, 0)}
    for block in blocks.values():
        order = np.arange(len(block))
        late = np.sort(rng.choice(np.arange(10, len(block) - 10, 7), 5, replace=False))
        moved = np.concatenate([np.delete(order, late), late])
        twice = rng.choice(np.delete(order, late), 5, replace=False)
        rows = np.concatenate([moved, np.sort(twice)])
        kept, flags = in_order(BarBlock(*(getattr(block, n)[rows] for n in BarBlock.__slots__)))
        for name, flag, true in (("duplicate", Flag.DUPLICATE, twice), ("out_of_order", Flag.OUT_OF_ORDER, late)):
            found = set(kept.ts_open[(flags & flag) != 0].tolist())
            # a doubled row at the end is out of order, too
            wanted = set(block.ts_open[np.concatenate([true, twice]) if name == "out_of_order" else true].tolist())
            before = made[name]
            made[name] = Score(name, before.seeded + len(wanted), before.found + len(found), before.hits + len(found & wanted))
    return list(made.values())


def table(with_marks: list[Score], without: list[Score]) -> str:
    """Return both results as a markdown table."""
    lines = ["| defect | seeded | precision | recall | without marks: precision | recall |", "|---|---|---|---|---|---|"]
    for a, b in zip(with_marks, without, strict=True):
        lines.append(f"| {a.kind} | {a.seeded} | {a.precision:.3f} | {a.recall:.3f} | {b.precision:.3f} | {b.recall:.3f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    folder = Path(argv[0]) if argv else Path("../shared/data")
    blocks, marks = real_hours(folder, "okx_perp_1h.parquet"), real_hours(folder, "okx_mark_1h.parquet")
    hours = sum(len(b) for b in blocks.values())
    print(f"{len(blocks)} coins, {hours:,} hours from {SPAN[0]} to {SPAN[1]} ({NS_PER_HOUR // 10**9} s bars), seeds 1 to 3\n")
    rounds = [(scores(blocks, marks, seed), scores(blocks, {}, seed)) for seed in (1, 2, 3)]
    print(table(*(_summed([r[k] for r in rounds]) for k in (0, 1))))


def _summed(rounds: list[list[Score]]) -> list[Score]:
    return [
        Score(same[0].kind, sum(s.seeded for s in same), sum(s.found for s in same), sum(s.hits for s in same))
        for same in zip(*rounds, strict=True)
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
