"""The Telegram bot against a local server that speaks the Bot API: who is answered, what is asked back, what is done."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_S, SystemClock
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.core.order import Fill
from crypto_qlib.live_trading.bot_desk import CONFIRM_WITHIN_NS, TOO_OLD_NS, BotDesk
from crypto_qlib.live_trading.instance import SessionCard, last_session, one_instance
from crypto_qlib.live_trading.telegram_bot import TelegramBot
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import EquityRow, FundingRow, Ledger, PositionRow, SessionRow
from tests.loopback import Reply, Request, serving

TOKEN = "123456789:planted-telegram-token-AAAAAAAAAAAA"
ANN, EVE = 7001, 6666
NOW = 20_000 * NS_PER_DAY + 3_600 * NS_PER_S


@dataclass
class FakeTelegram:
    """Enough of the Bot API (core.telegram.org/bots/api) for long polling, messages and buttons."""

    updates: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    refuses: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> Reply:
        method = request.path.rpartition("/")[2].partition("?")[0]
        if self.refuses or TOKEN not in request.path:
            return _json({"ok": False, "error_code": 401, "description": "Unauthorized"}, 401)
        given = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if method == "getMe":
            return _ok({"id": 1, "is_bot": True, "first_name": "bot", "username": "cq_bot"})
        if method == "getUpdates":
            offset = int(given.get("offset", 0))
            with self.lock:
                found = [u for u in self.updates if u["update_id"] >= offset]
            if not found:
                time.sleep(0.02)
            return _ok(found)
        if method == "sendMessage":
            with self.lock:
                self.sent.append(given)
            chat = {"id": int(given["chat_id"]), "type": "private"}
            return _ok({"message_id": len(self.sent), "date": 1, "chat": chat, "text": given["text"]})
        return _ok(True)

    def _add(self, **what: Any) -> None:
        with self.lock:
            self.updates.append({"update_id": 100 + len(self.updates), **what})

    def message(self, user: int, text: str, date: int | None = None) -> None:
        who = {"id": user, "is_bot": False, "first_name": "x"}
        sent = int(time.time()) if date is None else date
        entities = [{"type": "bot_command", "offset": 0, "length": len(text.split(maxsplit=1)[0])}]
        chat = {"id": user, "type": "private"}
        self._add(message={"message_id": 1, "date": sent, "chat": chat, "from": who, "text": text, "entities": entities})

    def button(self, user: int, data: str) -> None:
        who = {"id": user, "is_bot": False, "first_name": "x"}
        message = {"message_id": 1, "date": 1, "chat": {"id": user, "type": "private"}}
        self._add(callback_query={"id": "9", "from": who, "chat_instance": "1", "message": message, "data": data})

    def texts(self) -> list[str]:
        return [str(given["text"]) for given in self.sent]


def _json(value: object, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"content-type": "application/json"})


def _ok(result: object) -> Reply:
    return _json({"ok": True, "result": result})


@pytest.fixture
def card(tmp_path: Path) -> SessionCard:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(path, SessionRow("s1", 1, "demo", {}))
    today = NOW - NOW % NS_PER_DAY
    for ts_ns, equity in ((today - 9 * NS_PER_DAY, 900.0), (today - NS_PER_DAY, 950.0), (today, 1000.0), (NOW, 990.0)):
        ledger.record_equity(EquityRow(ts_ns, equity, 800.0, 12.0, 500.0, -100.0, 1, 150.0))
    ledger.record_positions([PositionRow(NOW, "AUSDT", -5, 5.0, 10.0, 9.0, 3.0, 17.0, 10.8, None, None, 5.0)])
    ledger.record_fills([Fill(NOW, "AUSDT", -5, 10.0, 0.25, client_order_id="x")])
    ledger.record_funding([FundingRow("b", NOW, "AUSDT", 1.5)])
    ledger.put_state("risk", {"voices": {"margin": [1, "thin"]}, "peak_equity": 1.0, "day": 1, "day_start_equity": 1.0})
    ledger.close()
    return SessionCard("s1", "demo", str(path), os.getpid(), 1)


def asked(card: SessionCard) -> list[tuple[str, str, str]]:
    book = ControlBook(Path(card.ledger), "s1")
    rows = [(row.verb, row.argument, row.asked_by) for row in book.waiting()]
    book.close()
    return rows


def desk(card: SessionCard, *, runs: bool = True) -> BotDesk:
    return BotDesk(frozenset({ANN}), lambda: (card, runs))


def says(bot: BotDesk, text: str, user: int = ANN, age_ns: int = 0) -> str:
    said = bot.answer(user, text, NOW, NOW - age_ns)
    return "" if said is None else said.text


def test_what_it_tells_of_the_session(card: SessionCard) -> None:
    bot = desk(card)
    assert "mode       REDUCE_ONLY" in says(bot, "/status")
    assert "ledger" not in says(bot, "/status"), "no path of the machine goes out"
    assert "Today -10.00 (-1.00%)" in says(bot, "/profit")
    assert "7 days +90.00" in says(bot, "/profit")
    assert "Fees -0.25, funding +1.50" in says(bot, "/profit")
    assert "AUSDT short 3x +5.00" in says(bot, "/positions@cq_bot")
    assert "NO STOP, liquidation 20.0% away" in says(bot, "/positions")
    assert "Margin in use 150.00" in says(bot, "/balance")
    assert "/closeall" in says(bot, "/nonsense")
    assert "Which one?" in says(bot, "/close")
    assert "Which one?" in says(bot, "/close a;b")


def test_a_halt_is_obeyed_at_once_the_rest_only_after_a_yes(card: SessionCard) -> None:
    bot = desk(card)
    says(bot, "/halt")
    says(bot, "/reduce")
    me = f"telegram:{ANN}"
    assert asked(card) == [("halt", "", me), ("reduce", "", me)]
    for text in ("/resume", "/close btcusdt", "/closeall", "/stop", "/resume drawdown"):
        said = bot.answer(ANN, text, NOW, NOW)
        assert said is not None
        assert said.confirm
        assert said.text.endswith("? Session s1, DEMO")
        no = bot.answer(ANN, text, NOW, NOW)
        assert no is not None
        left = bot.confirm(ANN, no.confirm, yes=False, now_ns=NOW)
        assert left is not None
        assert left.text == "Left as it is."
        bot.confirm(ANN, said.confirm, yes=True, now_ns=NOW)
        again = bot.confirm(ANN, said.confirm, yes=True, now_ns=NOW)
        assert again is not None
        assert again.text == "Nothing waits for that."
    assert asked(card)[2:] == [
        ("resume", "", me), ("close", "BTCUSDT", me), ("close", "", me), ("stop", "", me), ("resume", "drawdown", me),
    ]  # fmt: skip


def test_a_yes_that_is_late_or_somebody_elses_does_nothing(card: SessionCard) -> None:
    bot = BotDesk(frozenset({ANN, 7002}), lambda: (card, True))
    said = bot.answer(ANN, "/closeall", NOW, NOW)
    assert said is not None
    other = bot.confirm(7002, said.confirm, yes=True, now_ns=NOW)
    assert other is not None
    assert other.text == "Nothing waits for that."
    assert bot.confirm(EVE, said.confirm, yes=True, now_ns=NOW) is None
    late = bot.confirm(ANN, said.confirm, yes=True, now_ns=NOW + CONFIRM_WITHIN_NS + 1)
    assert late is not None
    assert "Too late" in late.text
    assert "too old" in says(bot, "/closeall", age_ns=TOO_OLD_NS + 1)
    assert asked(card) == []
    assert "Asked to halt" in says(bot, "/halt", age_ns=TOO_OLD_NS + 1), "a halt is obeyed at any age"


def test_strangers_get_nothing_and_are_logged_once(card: SessionCard, caplog: pytest.LogCaptureFixture) -> None:
    bot = desk(card)
    with caplog.at_level(logging.WARNING):
        for text in ("/halt", "/status", "hello"):
            assert bot.answer(EVE, text, NOW, NOW) is None
    assert [r.message for r in caplog.records] == ["Telegram user 6666 is not in alerts.telegram_users: not answered"]
    assert asked(card) == []


def test_a_session_that_does_not_run_obeys_a_halt_later_and_closes_nothing(card: SessionCard) -> None:
    bot = desk(card, runs=False)
    assert "will obey when it starts" in says(bot, "/halt")
    said = bot.answer(ANN, "/closeall", NOW, NOW)
    assert said is not None
    done = bot.confirm(ANN, said.confirm, yes=True, now_ns=NOW)
    assert done is not None
    assert "does not run" in done.text
    assert [verb for verb, *_ in asked(card)] == ["halt"]
    nobody = BotDesk(frozenset({ANN}), lambda: None)
    assert "no session was ever started" in says(nobody, "/status")


@asynccontextmanager
async def running(telegram: FakeTelegram, bot_desk: BotDesk) -> AsyncIterator[None]:
    with serving(telegram) as server:
        bot = TelegramBot(TOKEN, bot_desk, SystemClock(), server.url, answer_s=30.0)
        ending = asyncio.Event()
        task = asyncio.ensure_future(bot.run(ending))
        try:
            yield
        finally:
            ending.set()
            await task


async def soon(telegram: FakeTelegram, words: str) -> dict[str, Any]:
    """Return the first message the bot sent with ``words`` in it; its absence is the failure, not its pace."""
    for _ in range(3000):
        for given in list(telegram.sent):
            if words in given["text"]:
                return given
        await asyncio.sleep(0.01)
    raise AssertionError(f"{words!r} was not sent, but {telegram.texts()}")


async def test_over_http_a_command_is_confirmed_obeyed_and_answered(
    card: SessionCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    telegram, folder = FakeTelegram(), tmp_path / "live"
    caplog.set_level(logging.DEBUG)

    def session() -> None:
        book = ControlBook(Path(card.ledger), "s1")
        while not (rows := book.waiting()):
            time.sleep(0.02)
        book.answer(rows[0].seq, 1, f"{rows[0].verb}: mode ACTIVE, 1 orders sent")
        book.close()

    with one_instance(folder, card):
        async with running(telegram, BotDesk(frozenset({ANN}), lambda: last_session(folder, "demo"))):
            telegram.message(EVE, "/status")
            telegram.message(ANN, "/status")
            await soon(telegram, "mode       REDUCE_ONLY")
            telegram.message(ANN, "/closeall")
            question = await soon(telegram, "close EVERY position at market?")
            buttons = json.loads(question["reply_markup"])["inline_keyboard"][0]
            telegram.button(EVE, buttons[0]["callback_data"])
            answering = threading.Thread(target=session)
            answering.start()
            telegram.button(ANN, buttons[0]["callback_data"])
            await soon(telegram, "close: mode ACTIVE, 1 orders sent")
            answering.join()
    assert {given["chat_id"] for given in telegram.sent} == {str(ANN)}, "nobody else got a word"
    assert "planted-telegram-token" not in caplog.text


async def test_a_token_that_is_refused_is_one_line_without_it(card: SessionCard) -> None:
    with pytest.raises(UserError, match="Telegram refuses TELEGRAM_BOT_TOKEN") as refused:
        async with running(FakeTelegram(refuses=True), desk(card)):
            pass
    assert "planted" not in str(refused.value)
    unreachable = TelegramBot(TOKEN, desk(card), SystemClock(), "http://127.0.0.1:9")
    with pytest.raises(RetryLater, match="cannot be reached"):
        await unreachable.run(asyncio.Event())
