"""How many orders and messages does the embedded exchange carry? ``python -m benchmarks exchange``.

The server is a process of its own, on one core, with its state on disk; the load comes from this process, on the other. The
client is a light one: raw sockets, requests signed beforehand, answers only looked through for their ``sCode``, so that the
server is measured and not the client. Each figure also stands as a ratio to the same number of ``public/time`` requests in the
same run: what the bare HTTP server does on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from crypto_qlib.exchange.credentials import ApiCredentials, load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast

CLIENTS = (1, 10, 50)
SOCKETS = 20
SYMBOLS_STREAMED = 50
MINUTES = 60


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve from another process; yield its URL and process id."""
    command = [sys.executable, "-m", "benchmarks.exchange_server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


@dataclass(slots=True)
class Load:
    """What one run measured: seconds in all, seconds of each round trip, answers that were no success."""

    seconds: float
    latencies: list[float]
    failed: int

    def row(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        return {
            "round_trips_per_s": round(len(ordered) / self.seconds),
            "p50_ms": round(1e3 * statistics.median(ordered), 2),
            "p99_ms": round(1e3 * ordered[int(len(ordered) * 0.99)], 2),
            "failed": self.failed,
        }


class Caller(asyncio.Protocol):
    """One connection that sends its requests one after the other, each once the answer before is there."""

    def __init__(self, requests: list[bytes], done: asyncio.Future[Load]) -> None:
        self._requests = requests
        self._done = done
        self._at = 0
        self._buffer = b""
        self._latencies: list[float] = []
        self._failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._began = time.perf_counter()
        self._send()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the answer; act once it is whole."""
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.find(b"Content-Length: ") + 16
        size = int(self._buffer[at : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head + 4 + size:
            return
        self._latencies.append(time.perf_counter() - self._sent)
        body, self._buffer = self._buffer[head + 4 :], b""
        self._failed += not body.startswith((b'{"code":"0"', b'{"msg":"","code":"0"'))
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server hung up"))

    def _send(self) -> None:
        if self._at == len(self._requests):
            self._done.set_result(Load(time.perf_counter() - self._began, self._latencies, self._failed))
            self._transport.close()
            return
        request = self._requests[self._at]
        self._at += 1
        self._sent = time.perf_counter()
        self._transport.write(request)  # type: ignore[attr-defined]


def signed(key: ApiCredentials, path: str, body: bytes, host: str) -> bytes:
    """Return one request's bytes, signed now (good for thirty seconds)."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    digest = hmac.new(key.secret.encode(), f"{stamp}POST{path}".encode() + body, hashlib.sha256).digest()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nOK-ACCESS-KEY: {key.key}\r\nOK-ACCESS-PASSPHRASE: {key.passphrase}\r\n"
        f"OK-ACCESS-TIMESTAMP: {stamp}\r\nOK-ACCESS-SIGN: {base64.b64encode(digest).decode()}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def orders(key: ApiCredentials, host: str, client: int, count: int, run: str) -> list[bytes]:
    """Return ``count`` requests of one client: buy and sell at market, and rest a limit order and take it back."""
    made = []
    for k in range(count):
        name = f"{run}c{client}n{k - k % 4}"
        row: dict[str, Any] = {"instId": "BTC-USDT-SWAP", "tdMode": "cross", "sz": "1"}
        if k % 4 < 2:
            row |= {"side": ("buy", "sell")[k % 4], "ordType": "market", "clOrdId": f"{name}m{k % 4}"}
        elif k % 4 == 2:
            row |= {"side": "buy", "ordType": "limit", "px": "1000", "clOrdId": f"{name}r"}
        else:
            row = {"instId": "BTC-USDT-SWAP", "clOrdId": f"{name}r"}
        path = "/api/v5/trade/cancel-order" if k % 4 == 3 else "/api/v5/trade/order"
        made.append(signed(key, path, json.dumps(row, separators=(",", ":")).encode(), host))
    return made


async def call(url: str, requests: list[list[bytes]]) -> Load:
    """Send every client's requests, all clients at once."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    waiting = []
    began = time.perf_counter()
    for mine in requests:
        done: asyncio.Future[Load] = loop.create_future()
        await loop.create_connection(lambda mine=mine, done=done: Caller(mine, done), host, int(port))  # type: ignore[misc]
        waiting.append(done)
    loads = await asyncio.gather(*waiting)
    seconds = time.perf_counter() - began
    return Load(seconds, [x for load in loads for x in load.latencies], sum(load.failed for load in loads))


async def order_load(url: str, pid: int, key: ApiCredentials, total: int) -> list[dict[str, Any]]:
    """Return one row per number of clients."""
    host = url.removeprefix("http://")
    bare = [f"GET /api/v5/public/time HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()]
    rows = []
    for clients in CLIENTS:
        each = total // clients // 4 * 4
        await call(url, [orders(key, host, c, 40, f"w{clients}") for c in range(clients)])
        before = cpu_s(pid)
        measured = await call(url, [orders(key, host, c, each, f"x{clients}") for c in range(clients)])
        used_us = 1e6 * (cpu_s(pid) - before) / len(measured.latencies)
        floor = await call(url, [bare * each for _ in range(clients)])
        ratio = floor.seconds / measured.seconds
        row = {"clients": clients, "orders": clients * each, **measured.row(), "of_bare_http": round(ratio, 2)}
        rows.append(row | {"server_cpu_us_per_order": round(used_us)})
    return rows


async def listen(http: aiohttp.ClientSession, url: str, names: list[str], counts: list[int]) -> None:
    """Subscribe one socket to the tickers of all instruments and count what comes."""
    async with http.ws_connect(url.replace("http", "ws") + "/ws/v5/public") as socket:
        args = [{"channel": "tickers", "instId": name} for name in names]
        await socket.send_json({"op": "subscribe", "args": args})
        async for message in socket:
            counts[0] += b'"data"' in message.data.encode()


async def stream_load(url: str, key: ApiCredentials, pid: int) -> dict[str, Any]:
    """Move the market an hour in steps of a minute under sockets and orders; return messages/s and the growth of memory."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        async with http.get(f"{url}/api/v5/public/instruments?instType=SWAP") as answer:
            rows = (await answer.json())["data"]
        names = [row["instId"] for row in rows if row["state"] == "live"][:SYMBOLS_STREAMED]
        counts = [0]
        listening = [asyncio.create_task(listen(http, url, names, counts)) for _ in range(SOCKETS)]
        await asyncio.sleep(2.0)
        sizes, began, first = [], 0.0, 0
        for minute in range(2 * MINUTES):
            if minute == MINUTES:
                began, first = time.perf_counter(), counts[0]
            if minute >= MINUTES and minute % 10 == 0:
                sizes.append(resident_mb(pid))
            async with http.post(f"{url}/admin/step", json={"bars": 1}) as answer:
                assert answer.status == 200
            await call(url, [orders(key, url.removeprefix("http://"), 0, 4, f"s{minute}")])
        expected = first + MINUTES * SOCKETS * len(names)
        while counts[0] < expected and time.perf_counter() - began < 120:  # noqa: ASYNC110 - counting is measured
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - began
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    return {
        "sockets": SOCKETS, "symbols": len(names), "virtual_minutes": MINUTES, "seconds": round(seconds, 2),
        "messages_per_s": round((counts[0] - first) / seconds), "messages_missing": expected - counts[0],
        "server_mb_each_10_min": [round(size, 1) for size in sizes],
    }  # fmt: skip


def cpu_s(pid: int) -> float:
    """Return the processor seconds a process has used so far; unlike elapsed time it does not depend on who else works here."""
    shown = subprocess.run(["ps", "-o", "cputimes=", "-p", str(pid)], capture_output=True, text=True, check=True)
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():  # finer than whole seconds
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float(shown.stdout)


def resident_mb(pid: int) -> float:
    """Return the resident size of a process, MiB."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(shown.stdout) / 1024


async def run(url: str, pid: int, key: ApiCredentials, total: int) -> None:
    for row in await order_load(url, pid, key, total):
        print(json.dumps(row), flush=True)
    print(json.dumps(await stream_load(url, key, pid)), flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks exchange", description=__doc__)
    parser.add_argument("--orders", type=int, default=6_000, help="order round trips per number of clients")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        key = load_or_create_credentials(Path(folder))
        with server(Path(folder)) as (url, pid):
            run_fast(run(url, pid, key, options.orders))
