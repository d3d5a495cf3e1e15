"""Ask a web API for JSON, politely: pauses, limits, retries, and one clear sentence for every way it can go wrong.

============================  ==============================================
answer                        what happens
============================  ==============================================
no connection, time-out, 5xx  asked again, three times, then ``RetryLater``
429                           asked again after ``Retry-After``, if that is at most a minute; else ``RetryLater``
404, other 4xx                ``DoNotRetry``, with the status as its code
200 that is no JSON           ``SkipCycle``: an error page, a log-in page, a cut answer
============================  ==============================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from crypto_qlib.core.errors import DoNotRetry, RetryLater, SkipCycle
from crypto_qlib.settings.identity import version

TRIES: Final = 3
LONGEST_WAIT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500

Model = TypeVar("Model", bound=BaseModel)


class WebApi:
    """One web API; use it as a context manager.

    Parameters
    ----------
    base_url : str
        Scheme, host and common path.
    timeout_s : float
        Time limit of one request, seconds.
    pause_s : float
        Least time between two requests, seconds.
    sleep : callable
        Waits so many seconds.
    """

    def __init__(
        self, base_url: str, timeout_s: float, pause_s: float = 0.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.host = urlsplit(base_url).hostname or base_url
        self._pause_s = pause_s
        self._sleep = sleep
        self._next_at = 0.0
        agent = f"crypto-qlib/{version()} (open-source research tool) python-httpx/{httpx.__version__}"
        self._client = httpx.Client(
            base_url=base_url,
            timeout=timeout_s,
            headers={"User-Agent": agent, "Accept": "application/json"},
            follow_redirects=True,
            trust_env=self.host not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def get(self, path: str, params: dict[str, Any], shape: type[Model]) -> Model:
        """Return the answer to ``GET path?params``, checked against ``shape``.

        Raises
        ------
        RetryLater, DoNotRetry, SkipCycle
            See the module's table; a JSON answer of another shape is a ``SkipCycle`` that names the first difference.
        """
        response = self._ask(path, params)
        try:
            return shape.model_validate(response.json())
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the answer"
            raise SkipCycle(
                f"{self.host} has changed its answer: {where}: {first['msg']}", "look for a newer release of crypto-qlib"
            ) from e
        except ValueError as e:
            kind = response.headers.get("content-type", "no content type").split(";")[0]
            raise SkipCycle(f"{self.host} answered with {kind} instead of JSON: {_words(response.text)}") from e

    def _ask(self, path: str, params: dict[str, Any]) -> httpx.Response:
        wait_s, reason = 0.0, ""
        for attempt in range(TRIES):
            if attempt:
                self._sleep(wait_s)
            self._keep_pace()
            wait_s = _FIRST_PAUSE_S * 2.0**attempt
            try:
                response = self._client.get(path, params=params)
            except httpx.TransportError as e:
                reason = f"{type(e).__name__}{f': {e}' if str(e) else ''}"
                continue
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                reason, wait_s = "too many requests", _retry_after_s(response, wait_s)
                if wait_s > LONGEST_WAIT_S:
                    break
                continue
            if response.status_code >= _SERVER_ERROR:
                reason = f"HTTP {response.status_code}"
                continue
            if response.status_code >= _CLIENT_ERROR:
                said = _words(response.text)
                raise DoNotRetry(f"{self.host}: HTTP {response.status_code}: {said}", code=str(response.status_code))
            return response
        raise RetryLater(f"{self.host} does not answer: {reason}", retry_after_s=wait_s)

    def _keep_pace(self) -> None:
        left = self._next_at - time.monotonic()
        if left > 0.0:
            self._sleep(left)
        self._next_at = time.monotonic() + self._pause_s


def _retry_after_s(response: httpx.Response, default_s: float) -> float:
    """Return the seconds of ``Retry-After``; a date or nonsense there counts as absent."""
    try:
        return max(float(response.headers.get("retry-after", default_s)), 0.0)
    except ValueError:
        return default_s


def _words(text: str) -> str:
    """Return the first words of an error page, markup left out."""
    shown = " ".join(text.replace("<", " <").split())[:_SHOWN]
    return repr(shown) if shown else "nothing"


_SHOWN: Final = 80
