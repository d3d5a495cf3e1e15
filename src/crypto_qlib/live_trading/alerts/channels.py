"""Ways to reach a person, through Apprise: any service it knows, by an address that is a secret.

``ALERT_URLS`` holds one address a word, first the one that is told everything; each further one is told what the one before did
not take, or what nobody acknowledged. ``TELEGRAM_BOT_TOKEN`` and ``TELEGRAM_CHAT_ID`` together are a channel before them.
An address is never shown: not in errors, logs or ``repr``; only the name of its service is.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

import apprise

from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.live_events import Severity

_TYPES: Final = {
    Severity.INFO: apprise.NotifyType.INFO,
    Severity.WARNING: apprise.NotifyType.WARNING,
    Severity.CRITICAL: apprise.NotifyType.FAILURE,
}
# Apprise logs what it sends and where to: addresses with keys in them. What matters is whether it was taken.
logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)


class Channel(Protocol):
    """Bring one message to a person."""

    @property
    def name(self) -> str:
        """Return what to call it in logs and notes."""
        ...

    def send(self, title: str, body: str, severity: Severity) -> None:
        """Send it; raises ``RetryLater`` where the service did not take it."""
        ...


class AppriseChannel:
    """One address Apprise knows.

    Parameters
    ----------
    url : str
        The address; a secret.
    number : int
        Its place among the addresses, for messages.

    Raises
    ------
    UserError
        If Apprise does not know such an address.
    """

    def __init__(self, url: str, number: int = 1) -> None:
        scheme = url.partition("://")[0] if "://" in url else "?"
        self._service = apprise.Apprise(asset=apprise.AppriseAsset(secure_logging=True, app_id="crypto-qlib"))
        if not self._service.add(url):
            raise UserError(
                f"ALERT_URLS: address {number} ({scheme[:12]}://...) is none that Apprise knows",
                "addresses are separated by blanks; see github.com/caronc/apprise/wiki",
            )
        self.name = f"{scheme} ({number})"

    def __repr__(self) -> str:
        return f"AppriseChannel({self.name})"

    def send(self, title: str, body: str, severity: Severity) -> None:
        """Send it; Apprise gives a service that does not answer up after its own few seconds (``?cto=`` and ``?rto=``).

        Raises
        ------
        RetryLater
            If the service did not take it.
        """
        if not self._service.notify(title=title, body=body, notify_type=_TYPES[severity]):
            raise RetryLater(f"{self.name} did not take the message", "check the address and the service")


def channels_of(secrets: Secrets) -> list[Channel]:
    """Return the channels the environment names, first the one that is told everything; empty where it names none.

    Raises
    ------
    UserError
        If an address is none, or only one half of Telegram's pair is set.
    """
    urls = secrets.alert_urls.split()
    token, chat = secrets.telegram_bot_token, secrets.telegram_chat_id
    if token and chat:
        urls.insert(0, f"tgram://{token}/{chat}")
    elif chat:
        raise UserError("TELEGRAM_CHAT_ID is set without TELEGRAM_BOT_TOKEN", "set both, or neither")
    return [AppriseChannel(url, number) for number, url in enumerate(urls, 1)]
