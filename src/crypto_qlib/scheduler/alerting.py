"""Put the alerts of a session together: its outbox in the ledger, the channels of the environment, the courier's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from crypto_qlib.core.clock import NS_PER_MINUTE, SystemClock
from crypto_qlib.live_trading.alerts.channels import channels_of
from crypto_qlib.live_trading.alerts.courier import Courier, Patience
from crypto_qlib.live_trading.alerts.daily_summary import DailySummary
from crypto_qlib.live_trading.alerts.desk import AlertDesk
from crypto_qlib.live_trading.alerts.policy import AlertRules
from crypto_qlib.settings.alert_schema import AlertSettings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.ledger import Ledger, LedgerPlace, SessionRow
from crypto_qlib.store.live_events import EventKind, Tell, tell_nobody
from crypto_qlib.store.notice_box import NoticeBox

Chore = Callable[[int], None]


def alert_rules(settings: AlertSettings) -> AlertRules:
    """Return which events are told."""
    muted = frozenset(EventKind(kind) for kind in settings.mute)
    return AlertRules(muted, int(settings.repeat_minutes * NS_PER_MINUTE), settings.per_hour)


def patience(settings: AlertSettings) -> Patience:
    """Return how long the courier waits for what."""
    return Patience(tries=settings.tries, acknowledge_ns=int(settings.acknowledge_minutes * NS_PER_MINUTE))


def time_of_day_ns(text: str) -> int:
    """Return ``HH:MM`` as nanoseconds after midnight."""
    hour, _, minute = text.partition(":")
    return (int(hour) * 60 + int(minute)) * NS_PER_MINUTE


@contextmanager
def alerting(
    settings: Settings, secrets: Secrets, place: LedgerPlace, session: SessionRow, chores: tuple[Chore, ...] = ()
) -> Iterator[Tell]:
    """Yield the listener of a session; what it is told is delivered meanwhile, and for some seconds after the end.

    Without a channel, or where ``alerts.when`` excludes the session, nothing is written down.

    Raises
    ------
    UserError
        If an address of the environment is none.
    """
    alerts = settings.alerts
    is_wanted = alerts.when == "always" or (alerts.when == "online" and settings.exchange.mode != "embedded")
    channels = channels_of(secrets) if is_wanted else []
    if not channels:
        yield tell_nobody
        return
    with ExitStack() as stack:
        ledger, engine = Ledger.open(place, session), place.engine()
        stack.callback(ledger.close)
        stack.callback(engine.dispose)
        own = NoticeBox(ledger.engine, session.session_id)
        doing: list[Chore] = [*chores]
        courier = Courier(own, channels, SystemClock(), patience(alerts), doing)
        desk = AlertDesk(NoticeBox(engine, session.session_id), alert_rules(alerts), courier.woken)
        if alerts.summary_at:
            doing.append(DailySummary(ledger, own, desk, time_of_day_ns(alerts.summary_at)))
        if settings.exchange.mode != "embedded":
            doing.append(desk.release)  # an embedded market has a time of its own
        stack.enter_context(courier)
        yield desk
