"""Ask every external source what is new and keep it with the time it became known; each source fails alone.

1. All sources are asked side by side, one thread each. What to ask follows from what is stored, overlapping by some days so
   that corrections are seen.
2. An answer is stored whole before its poll is remembered; a run that dies in between asks again and adds nothing twice.
3. A source that fails is a warning: its series simply age, and features see NaN once a value is too old to be carried on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.data_collector.sources.source import Answers, Ask, ExternalSource
from crypto_qlib.store.series_store import Recorded, Seen, SeriesStore

_OVERLAP_NS = 5 * NS_PER_DAY
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceUpdate:
    """What one source brought.

    Parameters
    ----------
    source : str
        Its name.
    added, corrected : int
        Values of new events, and values the source has corrected since.
    notes : tuple of str
        What it could not give.
    failure : str
        Why it gave nothing at all; empty if it answered.
    """

    source: str
    added: int = 0
    corrected: int = 0
    notes: tuple[str, ...] = ()
    failure: str = ""


def fetch_external_data(
    sources: Sequence[ExternalSource],
    store: SeriesStore,
    coins: Sequence[str],
    start_ns: int,
    now_ns: int,
    progress: Callable[[float], None] = lambda _share: None,
) -> tuple[SourceUpdate, ...]:
    """Bring the store up to date with every source.

    Parameters
    ----------
    sources : sequence of ExternalSource
        Whom to ask.
    store : SeriesStore
        Where answers go.
    coins : sequence of str
        Base coins of the universe.
    start_ns : int
        Oldest event wanted, ns.
    now_ns : int
        Now, ns: what was seen is known from here on at the latest.
    progress : callable
        Called with the share done since the last call; all calls add up to 1.

    Returns
    -------
    tuple of SourceUpdate
        One a source, in their order; failures are told, not raised.

    Raises
    ------
    UserError
        If the store cannot be read or written.
    """
    if not sources:
        return ()

    def since_ns(series: str, symbol: str) -> int:
        known = store.read(series, symbol)
        return start_ns if not len(known) else max(start_ns, int(known.event_ns[-1]) - _OVERLAP_NS)

    ask = Ask(tuple(dict.fromkeys(coins)), now_ns, since_ns)
    updates: list[SourceUpdate] = []
    with store.writing(), ThreadPoolExecutor(len(sources), "external") as pool:
        running = [pool.submit(_answers_of, source, ask) for source in sources]
        for source, job in zip(sources, running, strict=True):
            answers = job.result()
            if isinstance(answers, CryptoQlibError):
                _log.warning("%s: %s", source.name, answers)
                updates.append(SourceUpdate(source.name, failure=str(answers)))
            else:
                updates.append(_keep(source.name, answers, store, now_ns))
            progress(1.0 / len(sources))
    return tuple(updates)


def _answers_of(source: ExternalSource, ask: Ask) -> Answers | CryptoQlibError:
    try:
        return source.fetch(ask)
    except CryptoQlibError as e:
        return e


def _keep(source: str, answers: Answers, store: SeriesStore, now_ns: int) -> SourceUpdate:
    for note in answers.notes:
        _log.info("%s: %s", source, note)
    last_poll_ns = store.last_poll_ns(source)
    done = Recorded(0, 0)
    for a in answers.answers:
        got = store.observe(a.series, a.symbol, Seen(a.event_ns, a.value, a.usually_known_ns, now_ns, last_poll_ns))
        done = Recorded(done.added + got.added, done.corrected + got.corrected)
    store.remember_poll(source, now_ns)
    return SourceUpdate(source, done.added, done.corrected, answers.notes)
