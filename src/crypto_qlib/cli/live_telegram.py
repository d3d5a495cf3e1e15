"""``crypto-qlib live telegram``: the bot through which listed people command the session."""

from __future__ import annotations

import asyncio
import signal

import typer

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.core.clock import SystemClock
from crypto_qlib.core.errors import UserError


def register(live: typer.Typer) -> None:
    """Add the command to the group ``live``."""
    live.command(name="telegram")(telegram)


def telegram(context: typer.Context) -> None:
    """Run the Telegram bot of this workspace's session until interrupted: a process of its own, beside the session.

    The users of `alerts.telegram_users` may ask /status /profit /positions /balance and command /halt /reduce /resume /close
    SYMBOL /closeall /stop; anybody else gets no answer.
    """
    settings, secrets = asked(context).settings(), asked(context).secrets()
    if not secrets.telegram_bot_token:
        raise UserError("TELEGRAM_BOT_TOKEN is not set", "ask @BotFather for a bot, and export its token")
    if not settings.alerts.telegram_users:
        raise UserError("alerts.telegram_users lists nobody", "add your numeric user id (ask @userinfobot)")
    from crypto_qlib.live_trading.bot_desk import BotDesk
    from crypto_qlib.live_trading.instance import last_session
    from crypto_qlib.live_trading.telegram_bot import TelegramBot
    from crypto_qlib.store.paths import Paths

    folder, mode = Paths(settings.store.root).live, settings.exchange.mode
    users = frozenset(settings.alerts.telegram_users)
    desk = BotDesk(users, lambda: last_session(folder, mode), secrets.ledger_password)
    bot = TelegramBot(secrets.telegram_bot_token, desk, SystemClock(), settings.alerts.telegram_api)

    async def serve() -> None:
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        await bot.run(ending)

    out().print(f"answering {len(users)} users about the {mode} session of {settings.store.root}; Ctrl-C ends it")
    asyncio.run(serve())
