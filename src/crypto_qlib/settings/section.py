"""What a section of the settings is, and the kinds of value several of them hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from crypto_qlib.core.clock import parse_utc

Frame = Literal["1m", "5m", "15m", "1h", "4h", "1d"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _iso_or_empty(text: str) -> str:
    if text:
        try:
            parse_utc(text)
        except ValueError:
            raise ValueError("must be an ISO date or date-time such as 2025-01-31 or 2025-01-31T08:00:00") from None
    return text


def _upper(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip().upper() for name in names)


IsoTime = Annotated[str, AfterValidator(_iso_or_empty)]
"""ISO date or date-time, read as UTC where it names no zone; or empty."""

Names = Annotated[tuple[str, ...], AfterValidator(_upper)]
"""Coins or symbols; kept in capitals."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
