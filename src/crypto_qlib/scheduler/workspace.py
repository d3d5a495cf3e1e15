"""One workspace of one market: its settings, folders, lake, record of steps done, and its way to the exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crypto_qlib.scheduler.exchange_access import ExchangeAccess, market_folder
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.scheduler.steps import StepBook
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths, open_folder

_ASKS_THE_EXCHANGE = ("universe", "data update", "external data")


class Workspace:
    """What every step of a workspace works with.

    Parameters
    ----------
    settings : Settings
        All sections.
    secrets : Secrets
        Keys for demo, live and the rankings of coins.
    reporter : Reporter
        Shows what is going on.

    Raises
    ------
    UserError
        If ``store.root`` cannot be written.
    """

    def __init__(self, settings: Settings, secrets: Secrets, reporter: Reporter) -> None:
        self.settings = settings
        self.secrets = secrets
        self.reporter = reporter
        self.paths = Paths(Paths(settings.store.root).ensure().root / market_folder(settings)).ensure()
        place = settings.store.lake
        self.lake = Lake(open_folder(place) / market_folder(settings) if place else self.paths.lake)
        self.book = StepBook(self.paths.steps)
        self.access = ExchangeAccess(settings, secrets)
        self.is_whole_run = False

    @contextmanager
    def one_exchange(self) -> Iterator[None]:
        """Keep the exchange that is started inside running until the end, over several steps."""
        is_outermost, self.is_whole_run = not self.is_whole_run, True
        try:
            yield
        finally:
            if is_outermost:
                self.is_whole_run = False
                self.access.close()

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a step; the function yielded adds a remark to it. A step run alone stops the exchange it started."""
        with self.reporter.step(name):
            yield lambda remark: self.reporter.say(f"{name}: {remark}")
        if not self.is_whole_run and name in _ASKS_THE_EXCHANGE:
            self.access.close()
