"""The chat of :class:`~crypto_qlib.live_trading.bot_desk.BotDesk` on Telegram, by long polling: no port is open.

A process of its own (``crypto-qlib live telegram``): whatever Telegram does, the session does not notice, and the bot answers
while the session is down. Source: Telegram Bot API, ``getUpdates``, ``sendMessage``, ``answerCallbackQuery``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.error import Conflict, InvalidToken, NetworkError, TelegramError
from telegram.ext import Application, CallbackQueryHandler, ContextTypes, MessageHandler, filters

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.core.errors import CryptoQlibError, RetryLater, UserError
from crypto_qlib.live_trading.bot_desk import BotDesk, Said

LOG: Final = logging.getLogger(__name__)
_POLL_S: Final = 0.2
# The token is part of every address these write at their lower levels.
for _name in ("httpx", "httpcore", "telegram"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class TelegramBot:
    """Bring messages to the desk and its answers back.

    Parameters
    ----------
    token : str
        The bot's; a secret.
    desk : BotDesk
        Who may ask, and what is answered.
    clock : Clock
        The wall clock.
    api : str
        Address of the Bot API.
    answer_s : float
        Seconds to wait for the session's answer to a command.
    """

    def __init__(self, token: str, desk: BotDesk, clock: Clock, api: str, answer_s: float = 30.0) -> None:
        self._desk = desk
        self._clock = clock
        self._answer_s = answer_s
        self._waiting: set[asyncio.Task[None]] = set()
        self._app: Application[Any, Any, Any, Any, Any, Any] = (
            Application.builder().token(token).base_url(f"{api}/bot").base_file_url(f"{api}/file/bot").build()
        )
        self._app.add_handler(MessageHandler(filters.TEXT & ~filters.UpdateType.EDITED, self._on_message))
        self._app.add_handler(CallbackQueryHandler(self._on_button))
        self._app.add_error_handler(self._on_error)

    async def run(self, until: asyncio.Event) -> None:
        """Answer until ``until`` is set; a Telegram that cannot be reached is tried again for ever.

        Raises
        ------
        UserError
            If Telegram refuses the token.
        RetryLater
            If Telegram cannot be reached at the start.
        """
        try:
            await self._app.initialize()
        except InvalidToken:  # its text holds the token
            await self._app.bot.shutdown()
            raise UserError("Telegram refuses TELEGRAM_BOT_TOKEN", "ask @BotFather for the bot's token") from None
        except NetworkError as e:
            await self._app.bot.shutdown()
            raise RetryLater("Telegram cannot be reached", "check the network, and alerts.telegram_api") from e
        await self._app.start()
        assert self._app.updater is not None
        await self._app.updater.start_polling(
            poll_interval=0.0, timeout=10, bootstrap_retries=-1, error_callback=self._on_poll_error
        )
        try:
            await until.wait()
        finally:
            await self._app.updater.stop()
            await self._app.stop()
            await self._app.shutdown()

    async def _on_message(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        message, user = update.effective_message, update.effective_user
        if message is None or user is None or not message.text:
            return
        sent_ns = int(message.date.timestamp()) * NS_PER_S
        said = await asyncio.to_thread(self._desk.answer, user.id, message.text, self._clock.now_ns(), sent_ns)
        if said is not None:
            await self._say(message.chat_id, said)

    async def _on_button(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        query, user = update.callback_query, update.effective_user
        if query is None or user is None or not self._desk.is_listed(user.id):
            return
        yes, _, token = (query.data or "").partition(":")
        said = await asyncio.to_thread(self._desk.confirm, user.id, token, yes=yes == "yes", now_ns=self._clock.now_ns())
        await query.answer()
        chat = update.effective_chat
        if said is not None and chat is not None:
            await self._say(chat.id, said)

    async def _say(self, chat: int, said: Said) -> None:
        buttons = None
        if said.confirm:
            yes = InlineKeyboardButton("Yes", callback_data=f"yes:{said.confirm}")
            no = InlineKeyboardButton("No", callback_data=f"no:{said.confirm}")
            buttons = InlineKeyboardMarkup([[yes, no]])
        await self._app.bot.send_message(chat, said.text, reply_markup=buttons)
        if said.asked:
            task = asyncio.ensure_future(self._tell_answer(chat, said.asked))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _tell_answer(self, chat: int, seq: int) -> None:
        """Tell the session's answer when it comes; other messages are answered meanwhile."""
        text = f"No answer within {self._answer_s:g} s: it obeys as soon as it can."
        for _ in range(round(self._answer_s / _POLL_S)):
            try:
                answer = await asyncio.to_thread(self._desk.row_answer, seq)
            except CryptoQlibError as e:
                answer = str(e)
            if answer is not None:
                text = answer
                break
            await asyncio.sleep(_POLL_S)
        await self._app.bot.send_message(chat, text)

    async def _on_error(self, _update: object, context: ContextTypes.DEFAULT_TYPE) -> None:
        LOG.error("a message could not be answered: %s", type(context.error).__name__)

    def _on_poll_error(self, error: TelegramError) -> None:
        if isinstance(error, Conflict):
            LOG.error("another program asks for this bot's messages too: stop one of the two")
        else:
            LOG.warning("Telegram cannot be reached: %s", type(error).__name__)
