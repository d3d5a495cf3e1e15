"""``crypto-qlib news``: collect news, read it, and say how well it is read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.progress import Progress

from crypto_qlib.cli.asked import Asked, asked, err, out
from crypto_qlib.core.clock import SystemClock, iso, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.paths import Paths

if TYPE_CHECKING:
    from crypto_qlib.feature_engineering.llm_client import OpenAIChatModel
    from crypto_qlib.store.news_store import NewsStore

_app = typer.Typer(help="Collect news, read it with a language model or without, and measure how well.", no_args_is_help=True)

Labelled = Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV of headlines with the columns title, label.")]


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="news")


@_app.command()
def collect(context: typer.Context) -> None:
    """Poll the feeds of news.feeds once and keep what is new."""
    settings = asked(context).settings()
    from crypto_qlib.data_collector.fetch_news import collect_news

    _say(asyncio.run(collect_news(settings.news, _store(settings), SystemClock())).summary_lines())


@_app.command("import")
def import_archive(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Archives: .parquet, .csv, .jsonl.")],
) -> None:
    """Import archives of news, with the time each article could have been known."""
    settings = asked(context).settings()
    from crypto_qlib.data_collector.fetch_news import import_news

    store = _store(settings)
    for path in files:
        _say(import_news(path, settings.news, store).summary_lines())


@_app.command()
def backfill(
    context: typer.Context,
    since: Annotated[str, typer.Option("--since", help="ISO date from which GDELT is asked.")],
    until: Annotated[str, typer.Option("--until", help="ISO date up to which.", show_default="now")] = "",
) -> None:
    """Fill history from GDELT; goes on where it stopped."""
    settings = asked(context).settings()
    from crypto_qlib.data_collector.fetch_news import backfill_gdelt

    clock = SystemClock()
    span = _time(since, "--since"), _time(until, "--until") if until else clock.now_ns()
    _say(asyncio.run(backfill_gdelt(settings.news, _store(settings), *span, clock)).summary_lines())


@_app.command()
def read(context: typer.Context) -> None:
    """Read every article not read yet: locally, and by the language model of news.llm within its budget."""
    wanted = asked(context)
    settings = wanted.settings()
    from crypto_qlib.feature_engineering.llm_processor import NewsReader
    from crypto_qlib.feature_engineering.local_reader import LocalReader
    from crypto_qlib.feature_engineering.news_classifier import best_classifier
    from crypto_qlib.feature_engineering.news_lexicon import lexicon

    store = _store(settings)
    local = LocalReader(best_classifier(_paths(settings).news_model))
    allowed = sorted({*lexicon().coins, *settings.universe.include} - set(settings.universe.exclude))
    reader = NewsReader(store, local, _chat(wanted, settings), settings.news.llm, SystemClock(), allowed)
    with Progress(console=err(), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        report = reader.read(store.articles(), lambda share: bar.advance(task, share))
    _say(report.summary_lines())


@_app.command()
def status(context: typer.Context) -> None:
    """Show what is known: articles, polls, readings by reader, tokens and money spent."""
    settings = asked(context).settings()
    store, now_ns = _store(settings), SystemClock().now_ns()
    articles = [a for a, _ in store.articles()]
    lines = [f"articles: {len(articles)} versions of {len({a.article_id for a in articles})}"]
    if articles:
        lines[0] += f", available {iso(min(a.available_ns for a in articles))} to {iso(max(a.available_ns for a in articles))}"
    polls = store.polls()
    lines.append(f"polls: {sum(p.is_ok for p in polls)} answered, {sum(not p.is_ok for p in polls)} failed")
    by_model: dict[str, int] = {}
    for _, reading in store.readings():
        by_model[reading.model] = by_model.get(reading.model, 0) + 1
    lines += [f"readings by {model}: {n}" for model, n in sorted(by_model.items())]
    for name, spent in (("today", store.spent(now_ns)), ("ever", store.spent())):
        lines.append(f"language model {name}: {spent.requests} requests, {spent.tokens:,} tokens, {spent.cost_usd:.4f} USD")
    limit = settings.news.llm
    lines.append(f"budget a day: {limit.daily_tokens:,} tokens, {limit.daily_usd:.2f} USD")
    _say(lines)


@_app.command()
def evaluate(
    context: typer.Context,
    file: Labelled,
    fit_before: Annotated[str, typer.Option("--fit-before", help="Also fit the classifier on headlines before this ISO date "
                                            "and compare all on those after.")] = "",
    llm: Annotated[int, typer.Option("--llm", help="Also ask the language model about this many headlines (costs).")] = 0,
) -> None:  # fmt: skip
    """Measure accuracy and calibration of each reader on headlines that people labelled."""
    wanted = asked(context)
    settings = wanted.settings()
    from crypto_qlib.feature_engineering.news_classifier import LexiconClassifier, best_classifier, fit_classifier
    from crypto_qlib.feature_engineering.news_evaluation import evaluate_chat, evaluate_classifier, read_labelled

    labelled = read_labelled(file)
    rows = [best_classifier(_paths(settings).news_model)]
    if rows[0].name != LexiconClassifier().name:
        rows.insert(0, LexiconClassifier())
    if fit_before:
        is_early = labelled.times_ns < _time(fit_before, "--fit-before")
        early, labelled = labelled.take(is_early), labelled.take(~is_early)
        rows.append(fit_classifier(early.titles, early.labels))
    lines = [evaluate_classifier(row, labelled).line() for row in rows]
    chat = _chat(wanted, settings) if llm else None
    if chat is not None:
        few = labelled.take(np.arange(len(labelled.titles)) < llm)
        lines.append(evaluate_chat(chat, few, settings.news.llm.batch_size).line())
    elif llm:
        raise UserError("no language model is configured", "set news.llm.base_url and news.llm.model")
    _say(lines)


@_app.command()
def fit(context: typer.Context, file: Labelled) -> None:
    """Fit the light local model on labelled headlines you may train on; `news read` then uses it."""
    settings = asked(context).settings()
    from crypto_qlib.feature_engineering.news_classifier import describe, fit_classifier
    from crypto_qlib.feature_engineering.news_evaluation import read_labelled

    labelled = read_labelled(file)
    model = fit_classifier(labelled.titles, labelled.labels, int(labelled.times_ns.max(initial=0)))
    path = _paths(settings).news_model
    model.save(path)
    _say([describe(model), f"saved to {path}"])


@_app.command()
def calibrate(context: typer.Context, file: Labelled) -> None:
    """Fit the few numbers that turn the word list's weights into probabilities; `news read` then uses them."""
    settings = asked(context).settings()
    from crypto_qlib.feature_engineering.news_calibration import fit_calibration
    from crypto_qlib.feature_engineering.news_classifier import LexiconClassifier, describe
    from crypto_qlib.feature_engineering.news_evaluation import evaluate_classifier, read_labelled
    from crypto_qlib.feature_engineering.news_lexicon import lexicon

    labelled = read_labelled(file)
    numbers = fit_calibration(lexicon(), labelled.titles, labelled.labels)
    model = LexiconClassifier(numbers, int(labelled.times_ns.max(initial=0)), len(labelled.titles))
    path = _paths(settings).news_model
    model.save(path)
    rows = zip(("negative", "neutral", "positive"), numbers, strict=True)
    lines = [f"{name:<9}" + "".join(f"{x:>7.2f}" for x in row) for name, row in rows]
    before, after = evaluate_classifier(LexiconClassifier(), labelled), evaluate_classifier(model, labelled)
    _say([*lines, before.line(), f"in sample: {after.line()}", describe(model), f"saved to {path}"])


def _store(settings: Settings) -> NewsStore:
    from crypto_qlib.store.news_store import NewsStore

    return NewsStore.open(_paths(settings).news)


def _paths(settings: Settings) -> Paths:
    """Return the folders of the market asked for: what is learned beside one market never meets another."""
    from crypto_qlib.scheduler.exchange_access import market_folder

    return Paths(Paths(settings.store.root).ensure().root / market_folder(settings)).ensure()


def _chat(wanted: Asked, settings: Settings) -> OpenAIChatModel | None:
    llm = settings.news.llm
    if not llm.base_url or not llm.model:
        return None
    from crypto_qlib.feature_engineering.llm_client import OpenAIChatModel

    return OpenAIChatModel(llm.base_url, llm.model, wanted.secrets().openai_api_key, llm.timeout_s, llm.retries)


def _time(text: str, option: str) -> int:
    try:
        return parse_utc(text)
    except ValueError:
        raise UserError(f"{option} must be an ISO date, got {text!r}") from None


def _say(lines: list[str] | tuple[str, ...]) -> None:
    console = out()
    for line in lines:
        console.print(escape(line))
