"""The embedded exchange as a process of its own: serve it until told to stop, leave its address, ask how it is.

While it serves, ``<store.root>/exchange/address`` holds its URL, so that ``crypto-qlib exchange status`` finds it on any port.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crypto_qlib.core.clock import NS_PER_S, SystemClock, floor_ts, iso, parse_utc
from crypto_qlib.core.errors import CryptoQlibError, UserError
from crypto_qlib.exchange.credentials import key_file, load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast, settle_memory
from crypto_qlib.exchange.embedded.server import START_FACT, EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import FILE_NAME, RESET_HINT, StateFile, hold
from crypto_qlib.exchange.embedded.tls import CERTIFICATE, TlsFiles, own_certificate
from crypto_qlib.scheduler.exchange_access import embedded_options, live_source, market_folder, market_source
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.paths import Paths
from crypto_qlib.venue.market_source import MarketSource

_SWAPS_FACT = "swaps"
"""Name of OKX's contracts, as they were at the first start, among the facts of a state file."""


def served_exchange(settings: Settings, start: str) -> EmbeddedExchange:
    """Return the embedded exchange of ``settings``, not yet started, as its state file left it.

    Parameters
    ----------
    settings : Settings
        The market, host, port and speed; ``exchange.persist`` says whether there is a state file.
    start : str
        Where a fresh market's clock begins: an ISO time; ``first`` = one bar after the market's first; empty = the settings'
        own "now".

    Raises
    ------
    UserError
        If ``start`` is no time, lies outside the market's data, or differs from where the kept state began; if the state
        belongs to another market or another process serves it.
    """
    folder = Paths(settings.store.root).exchange
    if settings.exchange.market == "okx_public":
        return _served_live(settings, start, folder)
    source = market_source(settings)
    options = embedded_options(settings, source)
    options = replace(options, tls=_tls_files(settings, folder), allow_public=settings.exchange.allow_public)
    if start:
        options = replace(options, start_ns=_start_ns(start, source, options.step_frame_ns or source.base_frame_ns))
    credentials = load_or_create_credentials(folder)
    if not settings.exchange.persist:
        return EmbeddedExchange(source, options, credentials)
    state = StateFile(folder, _facts(settings, options), survives_power_cut=settings.exchange.survive_power_cut)
    try:
        began = state.fact(START_FACT)
        if start and began and int(began) != options.start_ns:
            raise UserError(
                f"the exchange kept in {state.path} began at {iso(int(began))}", f"leave --start out, or {RESET_HINT}"
            )
        return EmbeddedExchange(source, options, credentials, state=state)
    except BaseException:
        state.close()
        raise


def _served_live(settings: Settings, start: str, folder: Path) -> EmbeddedExchange:
    """Return the exchange on OKX's live market; its contracts are kept with its accounts."""
    if start:
        raise UserError("a live market has no start time", "leave --start out, or choose exchange.market=simulated or replay")
    credentials = load_or_create_credentials(folder)
    if not settings.exchange.persist:
        return EmbeddedExchange(live := live_source(settings), _live_options(settings, live, folder), credentials)
    about = _facts(settings, EmbeddedOptions()) | {"bar length": "as it happens"}
    state = StateFile(folder, about, survives_power_cut=settings.exchange.survive_power_cut)
    try:
        source = live_source(settings, lambda facts: _kept_facts(state, facts))
        return EmbeddedExchange(source, _live_options(settings, source, folder), credentials, state=state)
    except BaseException:
        state.close()
        raise


def _live_options(settings: Settings, source: MarketSource, folder: Path) -> EmbeddedOptions:
    options = embedded_options(settings, source)
    return replace(options, tls=_tls_files(settings, folder), allow_public=settings.exchange.allow_public)


def _kept_facts(state: StateFile, facts: str) -> str:
    state.remember(_SWAPS_FACT, facts)
    return state.fact(_SWAPS_FACT)


def _tls_files(settings: Settings, folder: Path) -> TlsFiles | None:
    exchange = settings.exchange
    if not exchange.tls:
        return None
    if exchange.tls_certificate is not None and exchange.tls_key is not None:
        return TlsFiles(exchange.tls_certificate, exchange.tls_key)
    return own_certificate(folder, exchange.host, SystemClock())


def _start_ns(start: str, source: MarketSource, step_ns: int) -> int:
    if start == "first":
        wanted = source.start_ns + step_ns
    else:
        try:
            wanted = parse_utc(start)
        except ValueError as e:
            raise UserError(f"{start} is no ISO time", "give one such as 2025-01-31T08:00:00, or `first`") from e
    if not source.start_ns < wanted <= source.end_ns:
        first, last = iso(source.start_ns), iso(source.end_ns)
        raise UserError(f"the market has no data at {iso(wanted)}", f"choose a start after {first} and not after {last}")
    return floor_ts(wanted, step_ns)


def _facts(settings: Settings, options: EmbeddedOptions) -> dict[str, str]:
    """Return what a kept state depends on; with other facts it would not be the same exchange."""
    rules = asdict(options.venue) | asdict(options.fees)
    return {
        "market": market_folder(settings),
        "bar length": f"{(options.step_frame_ns or 0) // NS_PER_S} s",
        "rules": ", ".join(f"{name} {value:g}" for name, value in rules.items()),
    }


def serve(exchange: EmbeddedExchange, paths: Paths, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``announce`` is called with the URL once it answers.

    Raises
    ------
    UserError
        If the port is taken, or the address file cannot be written.
    """
    run_fast(_serve(exchange, paths, announce))


async def _serve(exchange: EmbeddedExchange, paths: Paths, announce: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    address = _address_file(paths)
    async with exchange:
        try:
            address.parent.mkdir(parents=True, exist_ok=True)
            address.write_text(exchange.base_url)
        except OSError as e:
            raise UserError(f"cannot write {address}: {e.strerror or e}", "choose another folder with store.root") from e
        settle_memory()
        try:
            announce(exchange.base_url)
            await stopped.wait()
        finally:
            address.unlink(missing_ok=True)


def served_url(settings: Settings) -> str:
    """Return the URL of the exchange served for this workspace.

    Raises
    ------
    UserError
        If none is served.
    """
    try:
        return _address_file(Paths(settings.store.root)).read_text().strip()
    except OSError as e:
        raise UserError(
            f"no embedded exchange is served for {settings.store.root}",
            "start one with `crypto-qlib exchange serve`, or name another with --url",
        ) from e


class Admin:
    """Ask and tell a served exchange through its admin paths.

    Parameters
    ----------
    url : str
        Its address.
    timeout_s : float
        Time limit of one request.
    folder : Path
        Where the certificate of an exchange served by this workspace is kept; trusted besides the usual authorities.

    Raises
    ------
    UserError
        If ``url`` is no HTTP address.
    """

    def __init__(self, url: str, timeout_s: float, folder: Path) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url} is no HTTP address", "for example http://127.0.0.1:8650")
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._certificate = folder / CERTIFICATE

    def get(self, name: str) -> dict[str, Any]:
        """Return the answer to GET ``/admin/NAME``."""
        return self._ask(name, None)

    def post(self, name: str, posted: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to POST ``/admin/NAME``.

        Raises
        ------
        UserError
            If it was refused.
        """
        return self._ask(name, json.dumps(posted).encode())

    def _ask(self, name: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._url}/admin/{name}", body)  # noqa: S310 - checked in the constructor
        trust = ssl.create_default_context() if self._url.startswith("https") else None
        if trust and self._certificate.exists():
            trust.load_verify_locations(self._certificate)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s, context=trust) as answer:  # noqa: S310 - as above
                return dict(json.load(answer))
        except urllib.error.HTTPError as e:
            raise _refusal(e, self._url) from e
        except (urllib.error.URLError, TimeoutError, ValueError) as e:
            raise CryptoQlibError(
                f"no embedded exchange answers at {self._url}: {getattr(e, 'reason', e)}",
                "is `crypto-qlib exchange serve` still running?",
            ) from e


def reset(folder: Path, *, with_keys: bool) -> list[Path]:
    """Delete the state kept in ``folder`` (and the API key); return the files that are gone.

    Raises
    ------
    UserError
        If an exchange is being served from it.
    """
    if not folder.exists():
        return []
    wanted = [folder / f"{FILE_NAME}{ending}" for ending in ("", "-wal", "-shm")]
    if with_keys:
        wanted.append(key_file(folder))
    with hold(folder):
        gone = [path for path in wanted if path.exists()]
        for path in gone:
            path.unlink()
    return gone


def _refusal(error: urllib.error.HTTPError, url: str) -> CryptoQlibError:
    try:
        return UserError(str(json.load(error)["error"]))
    except (ValueError, KeyError, TypeError):
        return CryptoQlibError(f"no embedded exchange answers at {url}: HTTP {error.code}")


def _address_file(paths: Paths) -> Path:
    return paths.exchange / "address"
