"""Where news lives: articles in all their versions, polls of the sources, readings by model, and what they cost.

==============  =========================================================================================
table           one row is
==============  =========================================================================================
``articles``    one version of an article as first seen; a changed text is a new row, nothing is overwritten
``polls``       one request to a source and how it ended: times without a poll are gaps, not silence
``readings``    one answer of one reader about one text, kept by its cache key
``spending``    tokens and money of one request, reserved before it is sent, settled after
==============  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DatabaseError

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.news import Article, EventClass, Horizon, Reading

_META: Final = sa.MetaData()
_ARTICLES: Final = sa.Table(
    "articles",
    _META,
    sa.Column("article_id", sa.String, primary_key=True),
    sa.Column("text_hash", sa.String, primary_key=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("url", sa.String, nullable=False),
    sa.Column("title", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("published_ns", sa.BigInteger, nullable=False),
    sa.Column("first_seen_ns", sa.BigInteger, nullable=False, index=True),
    sa.Column("is_archive", sa.Boolean, nullable=False),
    sa.Column("is_seen_assumed", sa.Boolean, nullable=False),
    sa.Column("language", sa.String, nullable=False),
)
_POLLS: Final = sa.Table(
    "polls",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("source", sa.String, nullable=False, index=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("is_ok", sa.Boolean, nullable=False),
    sa.Column("n_new", sa.Integer, nullable=False),
    sa.Column("note", sa.String, nullable=False),
)
_READINGS: Final = sa.Table(
    "readings",
    _META,
    sa.Column("cache_key", sa.String, primary_key=True),
    sa.Column("text_hash", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("prompt_version", sa.String, nullable=False),
    sa.Column("scored_ns", sa.BigInteger, nullable=False),
    sa.Column("reading", sa.String, nullable=False),
    sa.Column("raw", sa.String, nullable=False),
)
_SPENDING: Final = sa.Table(
    "spending",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("day", sa.Integer, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("tokens_in", sa.BigInteger, nullable=False),
    sa.Column("tokens_out", sa.BigInteger, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("is_settled", sa.Boolean, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Poll:
    """One request to a source.

    Parameters
    ----------
    source : str
        Feed or archive.
    ts_ns : int
        When it was answered.
    is_ok : bool
        Whether its articles could be read.
    n_new : int
        Articles or versions not seen before.
    note : str
        Why it failed, else empty.
    """

    source: str
    ts_ns: int
    is_ok: bool
    n_new: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and money of a day or of all time."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost_usd: float

    @property
    def tokens(self) -> int:
        """Return tokens in and out together."""
        return self.tokens_in + self.tokens_out


class NewsStore:
    """Articles, polls, readings and spending in one database.

    Parameters
    ----------
    engine : Engine
        SQLAlchemy engine; :meth:`open` makes one for a SQLite file.

    Raises
    ------
    UserError
        If the database cannot be opened or is none.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        try:
            _META.create_all(engine)
        except DatabaseError as e:
            raise UserError(f"cannot use the news database {engine.url}: {e.orig}", "move the file away or mend it") from e

    @staticmethod
    def open(path: Path) -> NewsStore:
        """Open the SQLite file at ``path``, creating it where absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(f"sqlite:///{path}")

        @sa.event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
                connection.execute(f"PRAGMA {pragma}")

        return NewsStore(engine)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def add(self, articles: Iterable[tuple[Article, str]]) -> int:
        """Add ``(article, text hash)`` pairs not seen before and return how many were new.

        A version that is already there keeps the time it was first seen; a new text under a known id is a new version.
        """
        rows = [asdict(article) | {"text_hash": digest} for article, digest in articles]
        if not rows:
            return 0
        with self._engine.begin() as db:
            before = db.execute(sa.select(sa.func.count()).select_from(_ARTICLES)).scalar_one()
            db.execute(sqlite_insert(_ARTICLES).on_conflict_do_nothing(), rows)
            return int(db.execute(sa.select(sa.func.count()).select_from(_ARTICLES)).scalar_one() - before)

    def articles(self, start_ns: int | None = None, end_ns: int | None = None) -> list[tuple[Article, str]]:
        """Return ``(article, text hash)`` of every version first seen in ``start_ns <= t < end_ns``, earliest first."""
        query = sa.select(_ARTICLES).order_by(_ARTICLES.c.first_seen_ns, _ARTICLES.c.article_id, _ARTICLES.c.text_hash)
        if start_ns is not None:
            query = query.where(_ARTICLES.c.first_seen_ns >= start_ns)
        if end_ns is not None:
            query = query.where(_ARTICLES.c.first_seen_ns < end_ns)
        with self._engine.connect() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [(Article(**{k: v for k, v in row.items() if k != "text_hash"}), row["text_hash"]) for row in rows]

    def known_ids(self) -> frozenset[str]:
        """Return the ids of all articles."""
        with self._engine.connect() as db:
            return frozenset(db.execute(sa.select(_ARTICLES.c.article_id).distinct()).scalars())

    def remember_poll(self, poll: Poll) -> None:
        """Keep how one request to a source ended."""
        with self._engine.begin() as db:
            db.execute(_POLLS.insert().values(asdict(poll)))

    def polls(self, source: str | None = None) -> list[Poll]:
        """Return the polls of ``source`` (of all by default), oldest first."""
        query = sa.select(_POLLS).order_by(_POLLS.c.ts_ns, _POLLS.c.seq)
        if source is not None:
            query = query.where(_POLLS.c.source == source)
        with self._engine.connect() as db:
            return [Poll(**{k: v for k, v in row.items() if k != "seq"}) for row in db.execute(query).mappings()]

    def keep_reading(self, cache_key: str, text_hash: str, reading: Reading, raw: str = "") -> None:
        """Keep an answer under its cache key; the first one stands."""
        self.keep_readings([(cache_key, text_hash, reading)], raw)

    def keep_readings(self, readings: Iterable[tuple[str, str, Reading]], raw: str = "") -> None:
        """Keep ``(cache key, text hash, reading)`` of many answers in one transaction; the first of a key stands."""
        rows = [
            {
                "cache_key": cache_key,
                "text_hash": text_hash,
                "model": reading.model,
                "prompt_version": reading.prompt_version,
                "scored_ns": reading.scored_ns,
                "reading": orjson.dumps(asdict(reading)).decode(),
                "raw": raw,
            }
            for cache_key, text_hash, reading in readings
        ]
        if rows:
            with self._engine.begin() as db:
                db.execute(sqlite_insert(_READINGS).on_conflict_do_nothing(), rows)

    def cached(self, cache_keys: Sequence[str]) -> dict[str, Reading]:
        """Return the answers kept under ``cache_keys``."""
        found: dict[str, Reading] = {}
        with self._engine.connect() as db:
            for start in range(0, len(cache_keys), 500):
                part = cache_keys[start : start + 500]
                query = sa.select(_READINGS.c.cache_key, _READINGS.c.reading).where(_READINGS.c.cache_key.in_(part))
                found |= {key: reading_of(orjson.loads(text)) for key, text in db.execute(query).all()}
        return found

    def readings(self) -> list[tuple[str, Reading]]:
        """Return ``(text hash, reading)`` of every answer, oldest first."""
        query = sa.select(_READINGS.c.text_hash, _READINGS.c.reading).order_by(_READINGS.c.scored_ns, _READINGS.c.cache_key)
        with self._engine.connect() as db:
            return [(digest, reading_of(orjson.loads(text))) for digest, text in db.execute(query).all()]

    def reserve(self, ts_ns: int, model: str, estimate: Spent, *, max_tokens: int, max_usd: float) -> int | None:
        """Put ``estimate`` aside for a request about to be sent; ``None`` if the day's budget has no room for it.

        Checked and written in one transaction, so two processes cannot both take the last of it. A request whose outcome is
        never settled (a crash) goes on counting as estimated.
        """
        day = ts_ns // NS_PER_DAY
        with self._engine.begin() as db:
            spent = _spent(db, day)
            if spent.tokens + estimate.tokens > max_tokens or spent.cost_usd + estimate.cost_usd > max_usd:
                return None
            row = {"ts_ns": ts_ns, "day": day, "model": model, "tokens_in": estimate.tokens_in,
                   "tokens_out": estimate.tokens_out, "cost_usd": estimate.cost_usd, "is_settled": False}  # fmt: skip
            result = db.execute(_SPENDING.insert().values(row))
            return int(result.inserted_primary_key[0]) if result.inserted_primary_key else 0

    def settle(self, reservation: int, actual: Spent) -> None:
        """Replace a reservation by what the request really took."""
        values = {"tokens_in": actual.tokens_in, "tokens_out": actual.tokens_out, "cost_usd": actual.cost_usd}
        with self._engine.begin() as db:
            where = _SPENDING.c.seq == reservation
            db.execute(_SPENDING.update().where(where).values(values | {"is_settled": True}))

    def spent(self, ts_ns: int | None = None) -> Spent:
        """Return what was spent or is reserved on the UTC day of ``ts_ns`` (ever, by default)."""
        with self._engine.connect() as db:
            return _spent(db, None if ts_ns is None else ts_ns // NS_PER_DAY)


def _spent(db: sa.Connection, day: int | None) -> Spent:
    total = [sa.func.coalesce(sa.func.sum(_SPENDING.c[n]), 0) for n in ("tokens_in", "tokens_out", "cost_usd")]
    query = sa.select(sa.func.count(), *total)
    if day is not None:
        query = query.where(_SPENDING.c.day == day)
    n, tokens_in, tokens_out, cost = db.execute(query).one()
    return Spent(int(n), int(tokens_in), int(tokens_out), float(cost))


def reading_of(row: dict[str, Any]) -> Reading:
    """Return the reading written as ``row`` by ``dataclasses.asdict``."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Reading(**(values | {"event": EventClass(row["event"]), "horizon": Horizon(row["horizon"])}))
