"""What is known beside the bars, read from where it is kept: external series, the lake's event series, the news database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crypto_qlib.core.clock import parse_utc
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.lake_side import lake_series
from crypto_qlib.feature_engineering.news_classifier import load_classifier
from crypto_qlib.feature_engineering.news_events import NEVER, load_news
from crypto_qlib.feature_engineering.side_data import SideData, load_external
from crypto_qlib.settings.schema import FeatureSettings, Settings
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.lake_identity import data_identity
from crypto_qlib.store.news_store import NewsStore
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore

NEWS: Final = "news"
_LAKE_KINDS: Final = (Kind.INDEX, Kind.TAKER_VOLUME, Kind.INTEREST_HISTORY, Kind.OPEN_INTEREST, Kind.LONG_SHORT,
                      Kind.FUNDING_QUOTES, Kind.ORDER_FLOW)  # fmt: skip


def reads_side(features: FeatureSettings) -> bool:
    """Return whether any chosen set reads what is kept beside the bars."""
    return any(FEATURE_SETS[name].is_wide or name == NEWS for name in features.sets)


def load_side(paths: Paths, lake: Lake, settings: Settings, symbols: Sequence[str]) -> SideData:
    """Return all observations beside the bars that the chosen sets read; nothing where none does.

    Parameters
    ----------
    paths : Paths
        Workspace.
    lake : Lake
        Its lake, which may lie elsewhere (``store.lake``).
    settings : Settings
        ``features.sets`` says what is read, ``news`` how articles count.
    symbols : sequence of str
        Contracts of the panel.

    Raises
    ------
    UserError
        If a file or the database is damaged.
    """
    if not reads_side(settings.features):
        return SideData()
    series = load_external(SeriesStore(paths.series), symbols)
    series |= lake_series(lake, symbols, settings.data.frame)
    news = None
    if NEWS in settings.features.sets and paths.news.exists():
        store = NewsStore.open(paths.news)
        news = load_news(store, settings.news, hindsight_ends(paths, settings))
        store.close()
    return SideData(series, news)


def hindsight_ends(paths: Paths, settings: Settings) -> dict[str, int]:
    """Return, by reader, the time before which its readings are hindsight; readers not named may read their whole past.

    A language model whose training end is not told reads live news only (archives are all older than now).
    """
    ends: dict[str, int] = {}
    llm = settings.news.llm
    if llm.model:
        ends[llm.model] = parse_utc(llm.trained_until) if llm.trained_until else NEVER
    if paths.news_model.exists():
        fitted = load_classifier(paths.news_model)
        ends[fitted.name] = fitted.fitted_until_ns
    return ends


def side_identity(paths: Paths, lake: Lake, settings: Settings) -> str:
    """Return a digest of all :func:`load_side` reads: the lake's rows by checksum, files beside it by size and time.

    Empty where no chosen set reads any.
    """
    if not reads_side(settings.features):
        return ""
    files: list[Path] = [*paths.series.rglob("*.parquet")]
    files += [p for p in (paths.news, paths.news.with_name(f"{paths.news.name}-wal"), paths.news_model) if p.exists()]
    digest = hashlib.sha256(data_identity(lake, _LAKE_KINDS).encode())
    for path in sorted(files):
        stat = path.stat()
        digest.update(f"{path.relative_to(paths.root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
