"""A web server on loopback that says what a test tells it to, over a real connection."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Said:
    """One answer."""

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    wait_s: float = 0.0

    def encoded(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


Speaker = Callable[[str, dict[str, str]], Said]
"""Answers a path and its query."""


class WebServer:
    """The server: ``speaker`` answers, ``asked`` remembers paths and queries."""

    def __init__(self) -> None:
        self.speaker: Speaker = lambda _path, _query: Said({}, 404)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.agents: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(url.query).items()}
                owner.asked.append((unquote(url.path), query))
                owner.agents.append(self.headers.get("User-Agent", ""))
                said = owner.speaker(unquote(url.path), query)
                time.sleep(said.wait_s)
                body = said.encoded()
                try:
                    self.send_response(said.status)
                    self.send_header("Content-Type", said.kind)
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in said.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client's patience ended first, as tests of time-outs want

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[WebServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def says(self, *answers: Said) -> None:
        """Give ``answers`` one after the other, the last one for ever."""
        left = list(answers)
        self.speaker = lambda _path, _query: left.pop(0) if len(left) > 1 else left[0]
