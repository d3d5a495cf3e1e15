"""Settings of alerts, of the Telegram bot and of the gap report; addresses and tokens come from the environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from crypto_qlib.settings.section import Section

AlertKind = Literal[
    "started", "stopped", "trade", "exit", "stop_hit", "take_profit_hit", "liquidation", "funding", "margin_high",
    "near_liquidation", "api_lost", "api_back", "mode", "daily_loss", "drawdown", "limit", "unprotected", "drift", "foreign",
    "order", "universe", "cycle", "summary", "gap",
]  # fmt: skip
"""What can happen in a session; ``store.live_events.EventKind`` by value."""


class AlertSettings(Section):
    """What a person is told of a session, and how. Channels: ALERT_URLS, or TELEGRAM_BOT_TOKEN with TELEGRAM_CHAT_ID."""

    when: Literal["online", "always", "never"] = Field(
        "online", description="online = only of sessions at OKX (demo, live); always = of those on the embedded exchange too."
    )
    mute: tuple[AlertKind, ...] = Field((), description="Kinds that are not told unless critical, e.g. [trade, funding].")
    repeat_minutes: float = Field(60.0, gt=0, description="Minutes within which the same is not told again.")
    per_hour: int = Field(20, ge=1, description="Notices of one kind an hour at most; the rest is counted. Critical ones pass.")
    tries: int = Field(3, ge=1, le=100, description="Tries on one channel before the next one gets the notice.")
    acknowledge_minutes: float = Field(
        15.0,
        ge=0,
        description="Minutes a person has to acknowledge what is critical until the next channel gets it; 0 = none.",
    )
    summary_at: str = Field("00:05", description="Time of the daily summary of the day before, UTC, HH:MM; empty = none.")
    telegram_users: tuple[int, ...] = Field(
        (), description="Telegram user ids that may command the session through the bot; anybody else gets no answer."
    )
    telegram_api: str = Field(
        "https://api.telegram.org", description="Address of the Bot API: Telegram's, or a server of one's own."
    )
    gap_bound: float = Field(
        0.002, gt=0, le=1, description="Difference between live and its backtest, a fraction of equity, that is told."
    )

    @field_validator("summary_at")
    @classmethod
    def _time_of_day(cls, text: str) -> str:
        hour, _, minute = text.partition(":")
        is_time = len(text) == len("00:00") and hour.isdigit() and minute.isdigit()
        if text and not (is_time and int(hour) < 24 and int(minute) < 60):  # noqa: PLR2004 - a day, an hour
            raise ValueError("must be a time of day such as 00:05, or empty")
        return text

    @field_validator("telegram_api")
    @classmethod
    def _address(cls, text: str) -> str:
        if not text.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ValueError("must be an https:// address (http:// only on this machine)")
        return text.rstrip("/")
