"""Read the news: the local model first, the language model where it is worth asking, and a record of who said what.

1. Texts already read by the reader asked for (same model, prompt, schema, coins) come from the cache.
2. The local model reads the rest; what it finds irrelevant stays with its reading.
3. The others go to the language model in batches. Each request reserves its estimated tokens and money before it is sent and is
   settled after; a request the day's budget has no room for is not sent.
4. What the language model does not answer, or answers against the schema, keeps the local reading and is asked again next time.

A run that is killed loses at most the batch in flight: every answer is stored as it comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import Clock
from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, RetryLater
from crypto_qlib.core.news import Article, Reading
from crypto_qlib.feature_engineering.llm_client import ChatModel, Completion
from crypto_qlib.feature_engineering.llm_prompt import SCHEMA, SYSTEM, Question, ask, believed, cache_key, to_reading
from crypto_qlib.feature_engineering.local_reader import LocalReader
from crypto_qlib.settings.schema import LlmSettings
from crypto_qlib.store.news_store import NewsStore, Spent

_LOG = logging.getLogger(__name__)
_NOTHING: Final = Spent(1, 0, 0, 0.0)

Text = tuple[Article, str]
"""An article and the hash of its text."""


@dataclass(slots=True)
class ReadReport:
    """How a run went.

    Parameters
    ----------
    cached, local, llm : int
        Texts whose reading was there already, was made by the local model, by the language model.
    failed : int
        Texts the language model was asked about in vain.
    over_budget : int
        Texts it was not asked about because the day's budget was spent.
    note : str
        Last failure, in words.
    """

    cached: int = 0
    local: int = 0
    llm: int = 0
    failed: int = 0
    over_budget: int = 0
    note: str = ""

    def summary_lines(self) -> tuple[str, ...]:
        """Return what a person should know, line by line."""
        lines = [f"read: {self.llm} by the language model, {self.local} by the local one, {self.cached} known already"]
        if self.failed:
            lines.append(f"  asked in vain: {self.failed} ({self.note}); the local reading stands")
        if self.over_budget:
            lines.append(f"  budget of the day spent: {self.over_budget} left to the local model")
        return tuple(lines)


class NewsReader:
    """Read texts and keep the readings.

    Parameters
    ----------
    store : NewsStore
        Cache and spending.
    local : LocalReader
        First pass and fallback.
    chat : ChatModel | None
        The language model, if there is one.
    settings : LlmSettings
        Batch size, budget, prices.
    clock : Clock
        Time of scoring.
    allowed : sequence of str
        Base coins that may be named.
    """

    def __init__(
        self,
        store: NewsStore,
        local: LocalReader,
        chat: ChatModel | None,
        settings: LlmSettings,
        clock: Clock,
        allowed: Sequence[str],
    ) -> None:
        self._store = store
        self._local = local
        self._chat = chat
        self._settings = settings
        self._clock = clock
        self._allowed = tuple(sorted(allowed))

    def read(self, texts: Sequence[Text], progress: Callable[[float], None] | None = None) -> ReadReport:
        """Read ``texts``; each distinct text once.

        Parameters
        ----------
        texts : sequence of (article, text hash)
            Any order; copies share a hash.
        progress : callable, optional
            Told the fraction just finished.
        """
        report = ReadReport()
        todo = list({digest: (article, digest) for article, digest in texts}.values())
        worth = self._first_pass(todo, report)
        if self._chat is None or not worth:
            if progress is not None:
                progress(1.0)
            return report
        self._ask_all(self._chat, worth, report, progress)
        return report

    def _first_pass(self, todo: Sequence[Text], report: ReadReport) -> list[tuple[Text, Reading]]:
        """Store local readings of new texts; return the texts the language model should be asked about."""
        local_keys = [cache_key(d, self._local.name, self._allowed) for _, d in todo]
        llm_keys = [cache_key(d, self._chat.name, self._allowed) for _, d in todo] if self._chat is not None else []
        known, known_llm = self._store.cached(local_keys), self._store.cached(llm_keys)
        fresh = [(t, key) for t, key in zip(todo, local_keys, strict=True) if key not in known]
        made = self._local.read([article for (article, _), _ in fresh], self._allowed, self._clock.now_ns())
        self._store.keep_readings((key, digest, r) for ((_, digest), key), r in zip(fresh, made, strict=True))
        readings = known | {key: r for (_, key), r in zip(fresh, made, strict=True)}
        report.local = len(fresh)
        report.cached = len(todo) - len(fresh) if self._chat is None else len(known_llm)
        if self._chat is None:
            return []
        pairs = zip(todo, local_keys, llm_keys, strict=True)
        waiting = [(text, readings[key]) for text, key, llm_key in pairs if llm_key not in known_llm]
        return [(text, r) for text, r in waiting if r.relevance >= self._settings.min_relevance]

    def _ask_all(
        self,
        chat: ChatModel,
        worth: Sequence[tuple[Text, Reading]],
        report: ReadReport,
        progress: Callable[[float], None] | None,
    ) -> None:
        for batch in _batches(worth, self._settings.batch_size):
            question = ask([article for (article, _), _ in batch], nonce=str(self._clock.now_ns()))
            reservation = self._reserve(chat, question)
            if reservation is None:
                report.over_budget += len(batch)
            elif not self._ask(chat, question, batch, reservation, report):
                break
            if progress is not None:
                progress(len(batch) / len(worth))

    def _reserve(self, chat: ChatModel, question: Question) -> int | None:
        estimate = self._spent(question.tokens_in, question.tokens_out)
        limits = {"max_tokens": self._settings.daily_tokens, "max_usd": self._settings.daily_usd}
        return self._store.reserve(self._clock.now_ns(), chat.name, estimate, **limits)  # type: ignore[arg-type]

    def _spent(self, tokens_in: int, tokens_out: int) -> Spent:
        s = self._settings
        return Spent(1, tokens_in, tokens_out, (tokens_in * s.usd_per_million_in + tokens_out * s.usd_per_million_out) / 1e6)

    def _ask(
        self,
        chat: ChatModel,
        question: Question,
        batch: Sequence[tuple[Text, Reading]],
        reservation: int,
        report: ReadReport,
    ) -> bool:
        """Send one question and keep what can be believed; return whether it makes sense to go on."""
        try:
            answer = chat.complete(SYSTEM, question.user, SCHEMA, question.tokens_out)
        except OutcomeUnknown as e:
            # It may have been billed: the reservation stays as it is.
            report.failed, report.note = report.failed + len(batch), e.message
            return True
        except (RetryLater, DoNotRetry) as e:
            self._store.settle(reservation, _NOTHING)
            report.failed, report.note = report.failed + len(batch), str(e)
            _LOG.warning("the language model was asked in vain: %s", e)
            return False
        self._store.settle(reservation, self._actual(answer, question))
        self._keep(chat, answer, question, batch, report)
        return True

    def _actual(self, answer: Completion, question: Question) -> Spent:
        """Return what the request took; the estimate where the server did not count."""
        tokens_in = answer.tokens_in if answer.tokens_in >= 0 else question.tokens_in
        return self._spent(tokens_in, answer.tokens_out if answer.tokens_out >= 0 else question.tokens_out)

    def _keep(
        self,
        chat: ChatModel,
        answer: Completion,
        question: Question,
        batch: Sequence[tuple[Text, Reading]],
        report: ReadReport,
    ) -> None:
        items = believed(answer.text, question.ids)
        now_ns = self._clock.now_ns()
        for item_id, ((article, digest), local) in zip(question.ids, batch, strict=True):
            item = items.get(item_id)
            if item is None:
                report.failed += 1
                report.note = "the answer was cut off" if answer.is_truncated else "the answer did not keep the schema"
                continue
            reading = to_reading(item, self._local.coins(article, self._allowed), local, chat.name, now_ns)
            raw = item.model_dump_json()
            self._store.keep_reading(cache_key(digest, chat.name, self._allowed), digest, reading, raw)
            report.llm += 1


def _batches(items: Sequence[tuple[Text, Reading]], size: int) -> Iterator[Sequence[tuple[Text, Reading]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
