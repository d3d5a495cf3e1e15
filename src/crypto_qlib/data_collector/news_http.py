"""A polite reader of the web: robots.txt, one request to a host at a time and not too often, size and time limits.

Conditional requests (ETag, Last-Modified) spare the publisher what has not changed; ``Retry-After`` is obeyed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

import httpx

from crypto_qlib.core.errors import DoNotRetry, RetryLater

USER_AGENT: Final = "crypto-qlib-news/1 (market research; respects robots.txt)"
_MAX_BYTES: Final = 5_000_000
_NOT_MODIFIED: Final = 304
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_CLIENT_ERROR: Final = 400
_GONE: Final = frozenset({404, 410})


@dataclass(slots=True)
class _Host:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    next_s: float = 0.0
    robots: RobotFileParser | None = None
    validators: dict[str, dict[str, str]] = field(default_factory=dict)


class PoliteReader:
    """Fetch pages and feeds.

    Parameters
    ----------
    interval_s : float
        Least seconds between two requests to one host.
    timeout_s : float
        Limit of one request.
    intervals : mapping of host to seconds, optional
        Hosts that ask for more.
    """

    def __init__(self, interval_s: float, timeout_s: float, intervals: Mapping[str, float] | None = None) -> None:
        self._client = httpx.AsyncClient(timeout=timeout_s, follow_redirects=True, headers={"User-Agent": USER_AGENT})
        self._interval_s = interval_s
        self._intervals = dict(intervals or {})
        self._hosts: dict[str, _Host] = {}

    async def __aenter__(self) -> PoliteReader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, url: str, *, heed_robots: bool = True) -> bytes | None:
        """Return the body of ``url``; ``None`` if it has not changed since the last time.

        Parameters
        ----------
        url : str
            http or https.
        heed_robots : bool
            Feeds and APIs are made for programs; pages ask ``robots.txt`` first.

        Raises
        ------
        DoNotRetry
            If robots.txt forbids it, the address is none, or the server refuses for good.
        RetryLater
            If the server is busy, broken or out of reach.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise DoNotRetry(f"{url!r} is no web address")
        host = self._hosts.setdefault(parts.netloc, _Host())
        async with host.lock:
            if heed_robots and not await self._allowed(host, url):
                raise DoNotRetry(f"robots.txt of {parts.netloc} forbids {parts.path}")
            return await self._fetch(host, url)

    async def _allowed(self, host: _Host, url: str) -> bool:
        if host.robots is None:
            parts = urlsplit(url)
            robots = RobotFileParser()
            try:
                text = await self._fetch(host, f"{parts.scheme}://{parts.netloc}/robots.txt")
                robots.parse((text or b"").decode("utf-8", "replace").splitlines())
            except DoNotRetry as e:
                # RFC 9309: no robots.txt (4xx) allows everything; a forbidden one is read as forbidding everything.
                if e.code in {"401", "403"}:
                    robots.parse(["User-agent: *", "Disallow: /"])
                else:
                    robots.parse([])
            host.robots = robots
        return host.robots.can_fetch(USER_AGENT, url)

    async def _fetch(self, host: _Host, url: str) -> bytes | None:
        name = urlsplit(url).netloc
        wait_s = host.next_s - time.monotonic()
        if wait_s > 0.0:
            await asyncio.sleep(wait_s)
        try:
            async with self._client.stream("GET", url, headers=host.validators.get(url, {})) as answer:
                return await self._read(host, url, answer)
        except (httpx.TransportError, httpx.TooManyRedirects) as e:
            raise RetryLater(f"{name} cannot be reached: {type(e).__name__}", retry_after_s=60.0) from e
        finally:
            host.next_s = max(host.next_s, time.monotonic() + self._intervals.get(name, self._interval_s))

    async def _read(self, host: _Host, url: str, answer: httpx.Response) -> bytes | None:
        status, name = answer.status_code, urlsplit(url).netloc
        if status == _NOT_MODIFIED:
            return None
        if status == _TOO_MANY or status >= _SERVER_ERROR:
            wait_s = retry_after_s(answer.headers.get("retry-after", ""), 60.0)
            host.next_s = time.monotonic() + wait_s
            raise RetryLater(f"{name} answered {status}", retry_after_s=wait_s)
        if status >= _CLIENT_ERROR:
            raise DoNotRetry(f"{name} refused {urlsplit(url).path}: {status}", code=str(status))
        body = bytearray()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > _MAX_BYTES:
                raise DoNotRetry(f"{url} is larger than {_MAX_BYTES:,} bytes")
        pairs = {"If-None-Match": answer.headers.get("etag"), "If-Modified-Since": answer.headers.get("last-modified")}
        host.validators[url] = {k: v for k, v in pairs.items() if v}
        return bytes(body)


def retry_after_s(header: str, default_s: float) -> float:
    """Return the seconds of a ``Retry-After`` header; ``default_s`` for none or a date."""
    return min(float(header), 3_600.0) if header.strip().isdigit() else default_s
