"""Archives of news (parquet, CSV, JSON lines) as articles with honest times.

1. A time without a zone is refused, row by row, and counted.
2. Seen time: the crawl's, else the vendor's creation time; where both are absent it is assumed as published plus a lag.
3. A crawl time equal to the published one was invented by whoever migrated the archive and counts as absent.
4. Rows a vendor back-filled (created more than ``max_lag`` after publication) are dropped: nobody could have read them then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MINUTE
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_text import TITLE_CHARACTERS, article_id, clean

MAX_LAG_NS: Final = NS_PER_DAY
_PUBLISHED: Final = ("published_at", "published", "pub_date", "date")
_SEEN: Final = ("crawled_at", "first_seen_at", "first_seen", "vendor_created_at")


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive file gave.

    Parameters
    ----------
    articles : tuple of Article
        Usable ones.
    back_filled, untimed, untitled : int
        Rows dropped, by reason.
    assumed : int
        Articles whose seen time is assumed.
    """

    articles: tuple[Article, ...]
    back_filled: int
    untimed: int
    untitled: int
    assumed: int


def read_archive(path: Path, assumed_lag_minutes: float) -> Archive:
    """Return the articles of an archive file.

    Parameters
    ----------
    path : Path
        ``.parquet``, ``.csv``, ``.jsonl``; columns ``title`` and one of ``published_at published pub_date date``; optional
        ``source url body lang crawled_at first_seen_at vendor_created_at``.
    assumed_lag_minutes : float
        Minutes from publication to being seen, where nobody recorded it.

    Raises
    ------
    UserError
        If the file cannot be read or lacks a column.
    """
    table = _table(path)
    published_name = next((n for n in _PUBLISHED if n in table), None)
    if published_name is None or "title" not in table:
        raise UserError(f"{path} needs the columns title and one of {', '.join(_PUBLISHED)}")
    published, seen = _times(table[published_name]), _first_of([_times(table[n]) for n in _SEEN if n in table], len(table))
    lag_ns = round(assumed_lag_minutes * NS_PER_MINUTE)
    counts = dict.fromkeys(("back_filled", "untimed", "untitled", "assumed"), 0)
    kept: list[Article] = []
    rows: Any = table.to_dict("records")
    for row, at, found in zip(rows, published, seen, strict=True):
        title = clean(_text(row, "title"), TITLE_CHARACTERS)
        if not title:
            counts["untitled"] += 1
        elif at is None:
            counts["untimed"] += 1
        elif found is not None and found - at > MAX_LAG_NS:
            counts["back_filled"] += 1
        else:
            is_assumed = found is None or found <= at
            counts["assumed"] += is_assumed
            kept.append(_article(row, title, at, at + lag_ns if found is None or is_assumed else found, is_assumed))
    return Archive(tuple(kept), **counts)


def _article(row: dict[str, Any], title: str, published_ns: int, seen_ns: int, is_assumed: bool) -> Article:
    source, url = _text(row, "source") or "archive", _text(row, "url")
    return Article(
        article_id=article_id(source, url, title),
        source=source,
        url=url,
        title=title,
        body=clean(_text(row, "body")),
        published_ns=published_ns,
        first_seen_ns=seen_ns,
        is_archive=True,
        is_seen_assumed=is_assumed,
        language=_text(row, "lang")[:2].lower(),
    )


def _table(path: Path) -> pd.DataFrame:
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    if path.suffix not in readers:
        raise UserError(f"{path} is no archive this can read", f"one of {', '.join(readers)} is needed")
    try:
        return readers[path.suffix](path)  # type: ignore[no-any-return, operator]
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _times(column: pd.Series) -> list[int | None]:
    """Return nanoseconds since the epoch; ``None`` where there is no time or it names no zone."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        ns = column.dt.tz_convert("UTC").dt.as_unit("ns").astype("int64")
        return [None if missing else int(v) for v, missing in zip(ns, column.isna(), strict=True)]
    return [_time(value) for value in column]


def _time(value: Any) -> int | None:
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        stamp = pd.Timestamp(value)
    except ValueError:
        return None
    return None if pd.isna(stamp) or stamp.tzinfo is None else int(stamp.value)


def _first_of(columns: Sequence[Sequence[int | None]], n: int) -> list[int | None]:
    return [next((c[k] for c in columns if c[k] is not None), None) for k in range(n)]
