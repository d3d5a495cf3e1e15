"""Secrets planted everywhere they can be given, and searched for in everything that is written, shown or sent elsewhere."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from crypto_qlib.cli.failure import redacted
from crypto_qlib.core.clock import NS_PER_DAY, ManualClock
from crypto_qlib.core.errors import CryptoQlibError, UserError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.runner import SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.scheduler.alerting import alerting
from crypto_qlib.settings.alert_schema import AlertSettings
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import ExchangeSettings, Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.ledger import Ledger, LedgerPlace, SessionRow
from tests.cli.command_line import Run
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.live_trading.test_parity import Tape
from tests.live_trading.test_runner import FIRST, TAPE, momentum, no_sleep
from tests.live_trading.test_telegram_bot import TOKEN, FakeTelegram
from tests.loopback import Reply, serving

PLANTED = {
    "OKX_API_KEY": "planted-okx-key-1111",
    "OKX_API_SECRET": "planted-okx-secret-2222",
    "OKX_API_PASSPHRASE": "planted-okx-phrase-3333",
    "OPENAI_API_KEY": "planted-openai-4444",
    "TELEGRAM_BOT_TOKEN": TOKEN,
    "LEDGER_PASSWORD": "planted-ledger-5555",
}
SMTP_PASSWORD = "planted-smtp-6666"


def urls(server: str) -> str:
    """Two channels: a mail server that does not exist, and a hook with a password that fails."""
    host = server.removeprefix("http://")
    return f"mailto://bot:{SMTP_PASSWORD}@example.com:9?smtp=127.0.0.1&to=a@example.com&rto=0.2&cto=0.2 json://me:{SMTP_PASSWORD}@{host}/"


def hunt(text: str, where: str) -> None:
    found = [word for word in (*PLANTED.values(), SMTP_PASSWORD) if word in text]
    assert found == [], f"{where} holds {found}"


def hunt_files(folder: Path) -> int:
    count = 0
    for path in (p for p in folder.rglob("*") if p.is_file()):
        hunt(path.read_bytes().decode("utf-8", "replace"), str(path))
        count += 1
    return count


async def test_a_session_with_failing_channels_writes_no_secret_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda _request: Reply(status=500)) as server:
        secrets = Secrets.from_environ({**PLANTED, "ALERT_URLS": urls(server.url)})
        place = LedgerPlace(str(tmp_path / "l.sqlite"), secrets.ledger_password)
        settings = Settings(alerts=AlertSettings(when="always", tries=1))
        exchange, session = FakeExchange(TAPE, FIRST), SessionRow("s1", FIRST, "demo", {})
        exchange.faults = ["refused", "lost", "later"]
        with alerting(settings, secrets, place, session) as tell:
            ledger = Ledger.open(place, session)
            feed = MarketFeed(exchange, TAPE.known_until(FIRST), FeedConfig("1h", 60), {})
            parts = SessionParts(
                exchange, SignalProcessor(feed, momentum, RULES, contracts()), ledger, SessionConfig("s1", RULES),
                ManualClock(FIRST), no_sleep, tell=tell,
            )  # fmt: skip
            await run_session(parts, SteppedBars(exchange.step, FIRST), FIRST, 8)
            hunt(repr((parts, secrets, place, settings)), "repr")
            ledger.close()
        assert server.requests
    assert hunt_files(tmp_path) >= 1
    hunt(caplog.text, "the log")


async def test_a_key_that_is_refused_is_in_no_error_log_or_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = ApiCredentials(PLANTED["OKX_API_KEY"], PLANTED["OKX_API_SECRET"], PLANTED["OKX_API_PASSPHRASE"])
    tape = Tape(1, 4)
    options = EmbeddedOptions(start_ns=tape.start_ns + 40 * NS_PER_DAY)
    async with EmbeddedExchange(tape, options) as exchange, OkxGateway(ExchangeSettings(), key, exchange.base_url) as gateway:
        with pytest.raises(CryptoQlibError) as refused:
            await gateway.account()
        shown = io.StringIO()
        traceback.print_exception(refused.value, file=shown)
        hunt(str(refused.value) + shown.getvalue(), "the error")
    assert PLANTED["OKX_API_SECRET"] not in repr(key)
    assert PLANTED["OKX_API_PASSPHRASE"] not in repr(key)
    hunt(caplog.text, "the log")


WITH_PASSWORD = ("--set", "store.ledger=postgresql://u:planted-ledger-5555@h/db")
COMMANDS = [
    "config show",
    "doctor",
    "live status",
    "live notices",
    "live notices --test",
    "live journal",
    "live telegram",
    "live gap",
]
LINES = [*(tuple(line.split()) for line in COMMANDS), (*WITH_PASSWORD, "config", "show")]


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_no_command_shows_a_secret(words: tuple[str, ...], cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _request: Reply(status=500)) as server:
        for name, value in {**PLANTED, "ALERT_URLS": urls(server.url)}.items():
            monkeypatch.setenv(name, value)
        ended = cli(*words)
    assert ended.out + ended.err, "there is something to hunt in"
    hunt(ended.out + ended.err, " ".join(words))


def test_a_crash_log_is_redacted_whole_addresses_and_passwords_in_them() -> None:
    secrets = Secrets.from_environ({**PLANTED, "ALERT_URLS": urls("http://127.0.0.1:1")})
    trace = "\n".join(
        [*PLANTED.values(), *secrets.alert_urls.split(), f"password={SMTP_PASSWORD}", "postgresql://u:other-pw-77@h/db"]
    )
    told = redacted(trace, secrets)
    hunt(told, "the crash log")
    assert "other-pw-77" not in told
    assert "nothing secret" in redacted("nothing secret", secrets)


@pytest.mark.slow
def test_the_process_list_shows_no_secret_and_the_bot_ends_when_told(tmp_path: Path, card_folder: Path) -> None:
    telegram = FakeTelegram()
    with serving(telegram) as server:
        words = ["--set", f"store.root={card_folder}", "--set", f"alerts.telegram_api={server.url}",
                 "--set", "alerts.telegram_users=7001", "live", "telegram"]  # fmt: skip
        environment = {**os.environ, **PLANTED}
        process = subprocess.Popen(
            [sys.executable, "-m", "crypto_qlib", *words], env=environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for _ in range(20_000):  # until it asks Telegram for messages; starting takes as long as it takes
                if any("getUpdates" in path for path in server.paths()) or process.poll() is not None:
                    break
                time.sleep(0.01)
            hunt(Path(f"/proc/{process.pid}/cmdline").read_text(), "the process list")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    hunt(out + err, "the output")
    assert hunt_files(tmp_path) >= 0


@pytest.fixture
def card_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def test_a_file_of_secrets_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text("# mine\nOKX_API_KEY = a\nLEDGER_PASSWORD='b c'\nTELEGRAM_CHAT_ID=1\n")
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        with pytest.raises(UserError, match="can be read by others") as refused:
            Secrets.from_environ({"SECRETS_FILE": str(path)})
        assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    read = Secrets.from_environ({"SECRETS_FILE": str(path), "TELEGRAM_CHAT_ID": "2"})
    assert (read.okx_api_key, read.ledger_password, read.telegram_chat_id) == ("a", "b c", "2"), "the environment wins"
    with pytest.raises(UserError, match="cannot read the file of secrets"):
        Secrets.from_environ({"SECRETS_FILE": str(tmp_path / "gone")})


def test_a_password_in_a_setting_is_refused_and_not_repeated() -> None:
    for address in ("postgresql://u:planted-ledger-5555@h/db", "postgresql://u@h/db?password=planted-ledger-5555"):
        with pytest.raises(UserError, match="LEDGER_PASSWORD") as refused:
            load_settings(None, [f"store.ledger={address}"], {})
        hunt(str(refused.value), "the error")
    assert load_settings(None, ["store.ledger=postgresql://u@h:5432/db"], {}).store.ledger == "postgresql://u@h:5432/db"
