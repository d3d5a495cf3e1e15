"""Import a recorded order book and its trades: check the sequence, cut what cannot be followed, write what can be replayed.

Read are tables (parquet, CSV) with one row a level, and OKX's own socket messages, one JSON object a line. The rules:

1. messages are taken in the order of their ids, whenever they arrived: a snapshot asked for comes late;
   updates before the first snapshot, or with a sequence id not above the snapshot's, are already in it: dropped;
2. an update whose ``prev`` id is not the id before it breaks the chain: the book is unknown until the next snapshot;
3. candles of one second are made from the trades; a second without a trade repeats the close with volume 0.

Source: OKX API v5, "Order book channel" (``seqId``, ``prevSeqId``); Binance USD-M futures, "How to manage a local order book".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S, iso
from crypto_qlib.core.errors import UserError

BOOKS, TRADES, BARS = "books", "trades", "bars"
_BOOK_COLUMNS: Final = ("exch_ts_ms", "kind", "last_update_id", "prev_update_id", "side", "price", "qty")
_TRADE_COLUMNS: Final = ("exch_ts_ms", "trade_id", "price", "qty", "buyer_is_maker")
_SNAPSHOT_PREV: Final = -1


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import wrote.

    Parameters
    ----------
    symbol : str
        Compact name.
    n_messages, n_trades : int
        Book messages and trades kept.
    n_holes : int
        Breaks in the sequence, after which the book is unknown until the next snapshot.
    start_ns, end_ns : int
        From the first snapshot to the last book message.
    """

    symbol: str
    n_messages: int
    n_trades: int
    n_holes: int
    start_ns: int
    end_ns: int


def import_recording(books: Path, trades: Path, symbol: str, target: Path, ct_val: float = 1.0) -> Imported:
    """Write the recording of one symbol into the folder ``target``, beside others that are there.

    Parameters
    ----------
    books, trades : Path
        Tables (sizes in base coins), or OKX's messages with ending ``.jsonl`` (sizes in contracts).
    symbol : str
        Compact name, e.g. ``BTCUSDT``.
    ct_val : float
        Base coins per contract, for sizes in contracts.

    Raises
    ------
    UserError
        If a file cannot be read, lacks a column, or holds no snapshot or no trade.
    """
    levels, n_holes = followed(_book_rows(books, ct_val), books)
    deals = _trade_rows(trades, ct_val)
    if deals.empty:
        raise UserError(f"{trades}: there is no trade in it")
    for folder, frame in ((BOOKS, levels), (TRADES, deals), (BARS, _second_bars(deals))):
        (target / folder).mkdir(parents=True, exist_ok=True)
        frame.to_parquet(target / folder / f"{symbol}.parquet", index=False)
    stamps = levels["ts"]
    return Imported(symbol, int(levels["seq"].nunique()), len(deals), n_holes, int(stamps.iloc[0]), int(stamps.iloc[-1]))


def followed(rows: pd.DataFrame, where: Path) -> tuple[pd.DataFrame, int]:
    """Return the rows that can be followed from a snapshot on, and the number of breaks in their sequence."""
    rows = rows.sort_values(["seq", "snapshot"], ascending=[True, False], kind="stable", ignore_index=True)
    rows["ts"] = rows["ts"].cummax()
    ids = rows["seq"].to_numpy()
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    seqs, prevs = ids[starts], rows["prev_seq"].to_numpy()[starts]
    snapshots = rows["snapshot"].to_numpy()[starts]
    keep, known, after_snapshot, n_holes = np.zeros(starts.size, bool), -1, False, 0
    for k in range(starts.size):
        # The first update after a snapshot may begin before it; from then on each names the one before.
        is_next = known >= 0 and (prevs[k] == known or (after_snapshot and prevs[k] < known))
        if snapshots[k] or is_next:
            known, keep[k], after_snapshot = int(seqs[k]), True, bool(snapshots[k])
        elif known >= 0:
            known, n_holes = -1, n_holes + 1
    if not keep.any():
        raise UserError(f"{where}: there is no snapshot in it", "record the book's snapshot too; differences alone say nothing")
    sizes = np.diff(np.r_[starts, len(rows)])
    return rows[np.repeat(keep, sizes)].reset_index(drop=True), n_holes


def _book_rows(path: Path, ct_val: float) -> pd.DataFrame:
    """Return one row a level: ts (ns), seq, prev_seq, snapshot, side (+1 bid, -1 ask), price, qty (base coins)."""
    if path.suffix == ".jsonl":
        rows = [row for message in _messages(path) for row in _okx_levels(message, ct_val)]
        names = ["ts", "seq", "prev_seq", "snapshot", "side", "price", "qty"]
        frame = pd.DataFrame(rows, columns=names)
        return frame.astype({"ts": "int64", "seq": "int64", "prev_seq": "int64", "side": "int8"})
    table = _table(path, _BOOK_COLUMNS)
    return pd.DataFrame(
        {
            "ts": table["exch_ts_ms"].astype("int64") * NS_PER_MS,
            "seq": table["last_update_id"].astype("int64"),
            "prev_seq": table["prev_update_id"].astype("int64"),
            "snapshot": table["kind"] == "snapshot",
            "side": table["side"].astype("int8"),
            "price": table["price"].astype("float64"),
            "qty": table["qty"].astype("float64"),
        }
    )


def _trade_rows(path: Path, ct_val: float) -> pd.DataFrame:
    """Return one row a trade: ts (ns), trade_id, price, qty (base coins), side (+1 the taker bought)."""
    if path.suffix == ".jsonl":
        found = [
            (int(row["ts"]) * NS_PER_MS, int(row["tradeId"]), float(row["px"]), float(row["sz"]) * ct_val, row["side"])
            for message in _messages(path)
            for row in message["data"]
        ]
        frame = pd.DataFrame(found, columns=["ts", "trade_id", "price", "qty", "side"])
        frame["side"] = np.where(frame["side"] == "buy", 1, -1).astype("int8")
        return frame
    table = _table(path, _TRADE_COLUMNS)
    return pd.DataFrame(
        {
            "ts": table["exch_ts_ms"].astype("int64") * NS_PER_MS,
            "trade_id": table["trade_id"].astype("int64"),
            "price": table["price"].astype("float64"),
            "qty": table["qty"].astype("float64"),
            "side": np.where(table["buyer_is_maker"], -1, 1).astype("int8"),
        }
    ).sort_values("ts", kind="stable", ignore_index=True)


def _second_bars(deals: pd.DataFrame) -> pd.DataFrame:
    """Return candles of one second: ts (datetime, open), open, high, low, close, volume (base), quote_volume."""
    second = deals["ts"] // NS_PER_S
    money = deals["price"] * deals["qty"]
    groups = deals.groupby(second)
    bars = pd.DataFrame(
        {
            "open": groups["price"].first(), "high": groups["price"].max(), "low": groups["price"].min(),
            "close": groups["price"].last(), "volume": groups["qty"].sum(), "quote_volume": money.groupby(second).sum(),
        }
    )  # fmt: skip
    bars = bars.reindex(np.arange(int(second.iloc[0]), int(second.iloc[-1]) + 1))
    close = bars["close"].ffill()
    for name in ("open", "high", "low", "close"):
        bars[name] = bars[name].fillna(close)
    bars = bars.fillna(0.0)
    bars.insert(0, "ts", pd.to_datetime(bars.index * NS_PER_S, utc=True))
    return bars.reset_index(drop=True)


def _okx_levels(message: dict[str, Any], ct_val: float) -> list[tuple[Any, ...]]:
    is_snapshot = message.get("action") == "snapshot"
    rows = []
    for book in message["data"]:
        prev = _SNAPSHOT_PREV if is_snapshot else int(book["prevSeqId"])
        head = (int(book["ts"]) * NS_PER_MS, int(book["seqId"]), prev, is_snapshot)
        for side, name in ((1, "bids"), (-1, "asks")):
            rows += [(*head, side, float(level[0]), float(level[1]) * ct_val) for level in book[name]]
    return rows


def _messages(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
        return [message for line in lines if line.strip() and "data" in (message := orjson.loads(line))]
    except (OSError, orjson.JSONDecodeError, TypeError) as e:
        raise UserError(f"{path}: cannot be read: {e}", "one JSON message of OKX's public socket a line") from e


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {str(e).splitlines()[0]}", "parquet, CSV, or OKX's messages (.jsonl)") from e
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{path}: the column {missing[0]!r} is missing", f"found: {', '.join(map(str, table.columns))}")
    return table


def described(done: Imported) -> str:
    """Return one line about an import."""
    holes = f", {done.n_holes} holes" if done.n_holes else ""
    span = f"{iso(done.start_ns)} to {iso(done.end_ns)}"
    return f"{done.symbol}: {done.n_messages:,} book messages{holes}, {done.n_trades:,} trades, {span}"
