"""May the session still take risk? Pure checks; several voices, the strictest wins.

Modes are ordered ``ACTIVE < REDUCE_ONLY < HALTED``. Each check speaks under its own name. A tripped drawdown, and what an
operator or the ledger asks for, stays until a person lifts it, over restarts too; the day's loss lifts at the next UTC day;
stale data and thin margin lift with the next bar that is sound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.settings.schema import LiveSettings
from crypto_qlib.store.live_events import EventKind

STALE_DATA: Final = "stale_data"
DAILY_LOSS: Final = "daily_loss"
DRAWDOWN: Final = "drawdown"
MARGIN: Final = "margin"
DRIFT: Final = "drift"
LEDGER: Final = "ledger"
BALANCE: Final = "balance"
EXPOSURE: Final = "exposure"
COUNT: Final = "count"
API: Final = "api"
ACCOUNT: Final = "account"
LATENCY: Final = "latency"
CLOCK: Final = "clock"
REJECTS: Final = "rejects"
_OF_THE_BAR: Final = frozenset({STALE_DATA, MARGIN, DAILY_LOSS, DRIFT, EXPOSURE, COUNT, API, ACCOUNT, LATENCY, CLOCK})
"""Voices that lift by themselves, with a bar, a day, or an account that agrees again; a person cannot talk them down."""

KIND_OF_VOICE: Final = {
    DAILY_LOSS: EventKind.DAILY_LOSS,
    DRAWDOWN: EventKind.DRAWDOWN,
    MARGIN: EventKind.MARGIN_HIGH,
    **dict.fromkeys((STALE_DATA, EXPOSURE, COUNT, LATENCY, CLOCK, REJECTS), EventKind.LIMIT),
}
"""What a tripped limit is to whoever listens; ``LIMIT`` where it is not here."""


class Mode(IntEnum):
    """What the session may do; larger is stricter."""

    ACTIVE = 0
    REDUCE_ONLY = 1
    HALTED = 2


@dataclass(frozen=True, slots=True)
class RiskLimits:
    """Limits of the running session (beside the rules every decision obeys).

    Parameters
    ----------
    max_daily_loss : float
        Loss since the day's first equity (UTC), a fraction of it, from which positions may only be reduced; 1 = off.
    halt_drawdown : float
        Fall from the highest equity, a fraction of it, from which nothing is sent any more; 1 = off.
    min_fresh_share : float
        Smallest share of symbols with a fresh bar for a cycle that may open positions.
    min_margin_ratio : float
        Account margin ratio (equity over requirement, 1 liquidates) below which positions may only be reduced.
    deleverage_ratio : float
        Margin ratio below which the session itself closes the position that is nearest to its liquidation; 0 = off.
    max_gross, max_net : float
        Exposure of all our positions, multiples of equity, beyond which positions may only be reduced.
    max_open : int
        Positions beyond which positions may only be reduced.
    max_order_risk : float
        Largest loss at its stop an entry may be sent with, a fraction of equity.
    max_price_deviation : float
        Largest distance of the book from the price an entry was sized with, a fraction; infinite = the book is not read.
    max_depth_share : float
        Largest share of the side of the book shown one order may take; larger ones are sent in parts. 0 = off.
    balance_tolerance : float
        Difference between balance and ledger, a fraction of equity, from which positions may only be reduced.
    reprice_distance, max_reprice : float
        How far the market may leave a resting entry behind before the entry follows, and how far it follows at most, fractions
        of the price; 0 = it stays where it is.
    """

    max_daily_loss: float = 1.0
    halt_drawdown: float = 1.0
    min_fresh_share: float = 0.9
    min_margin_ratio: float = 1.5
    deleverage_ratio: float = 0.0
    max_gross: float = math.inf
    max_net: float = math.inf
    max_open: int = 1_000_000
    max_order_risk: float = math.inf
    max_price_deviation: float = math.inf
    max_depth_share: float = 0.0
    balance_tolerance: float = math.inf
    reprice_distance: float = 0.0
    max_reprice: float = 0.0

    @property
    def reads_books(self) -> bool:
        """Return whether the book is looked at before an entry is sent."""
        return self.max_price_deviation < math.inf or self.max_depth_share > 0.0

    @staticmethod
    def of(settings: LiveSettings, rules: Rules, *, is_stepped: bool = False) -> RiskLimits:
        """Return the limits the ``live`` section asks for.

        The exposure limits are those of the rules, widened by ``live.exposure_slack``. A market that is stepped bar by bar has
        no seconds between decision and order, and no depth to wait for.
        """
        wider = 1.0 + settings.exposure_slack
        return RiskLimits(
            settings.max_daily_loss,
            settings.halt_drawdown,
            settings.min_fresh_share,
            settings.min_margin_ratio,
            settings.deleverage_ratio,
            rules.max_gross * wider,
            rules.max_net * wider + settings.exposure_slack,
            rules.max_open,
            settings.max_order_risk,
            settings.max_price_deviation,
            0.0 if is_stepped else settings.max_depth_share,
            settings.balance_tolerance,
            0.0 if is_stepped else settings.reprice_bps * 1e-4,
            settings.max_reprice_bps * 1e-4,
        )


@dataclass(frozen=True, slots=True)
class RiskVeto:
    """A tripped limit.

    Parameters
    ----------
    rule : str
        Name of the voice.
    limit, actual : float
        Bound and the value that broke it, fractions.
    mode : Mode
        What it asks for.
    """

    rule: str
    limit: float
    actual: float
    mode: Mode

    def __str__(self) -> str:
        return f"{self.rule} limit {self.limit:g}, actual {self.actual:g}: {self.mode.name}"


@dataclass(frozen=True, slots=True)
class RiskState:
    """What must be remembered between bars and over restarts.

    Parameters
    ----------
    voices : dict
        Voice -> (mode asked for, reason). A voice that is not in here asks for nothing.
    peak_equity : float
        Highest equity so far, USDT.
    day : int
        Days since the epoch (UTC) that ``day_start_equity`` belongs to; -1 before the first account.
    day_start_equity : float
        First equity of that day, USDT.
    """

    voices: dict[str, tuple[Mode, str]] = field(default_factory=dict)
    peak_equity: float = 0.0
    day: int = -1
    day_start_equity: float = 0.0

    @property
    def mode(self) -> Mode:
        """Return the strictest mode any voice asks for."""
        return max((mode for mode, _ in self.voices.values()), default=Mode.ACTIVE)

    def with_voice(self, voice: str, mode: Mode, reason: str) -> RiskState:
        """Return the state in which ``voice`` asks for ``mode``; ``ACTIVE`` takes the voice back."""
        voices = {name: said for name, said in self.voices.items() if name != voice}
        if mode is not Mode.ACTIVE:
            voices[voice] = (mode, reason)
        return RiskState(voices, self.peak_equity, self.day, self.day_start_equity)

    def moved(self, amount: float) -> RiskState:
        """Return the state after ``amount`` USDT were paid in (or out): neither a gain nor a loss."""
        return replace(
            self, peak_equity=max(self.peak_equity + amount, 0.0), day_start_equity=max(self.day_start_equity + amount, 0.0)
        )

    def resumed(self, *, forgives_drawdown: bool) -> RiskState:
        """Return the state after a person resumed trading.

        What bars and days lift stays. A tripped drawdown stays too unless forgiven: then the peak starts anew with the next
        account read, or the very next bar would trip it again.
        """
        kept = _OF_THE_BAR if forgives_drawdown else _OF_THE_BAR | {DRAWDOWN}
        voices = {name: said for name, said in self.voices.items() if name in kept}
        return RiskState(voices, 0.0 if forgives_drawdown else self.peak_equity, self.day, self.day_start_equity)


def check_daily_loss(equity: float, day_start_equity: float, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where ``1 - equity / day_start_equity >= max_daily_loss``."""
    if limits.max_daily_loss >= 1.0 or day_start_equity <= 0.0:
        return None
    loss = 1.0 - equity / day_start_equity
    if loss < limits.max_daily_loss:
        return None
    return RiskVeto(DAILY_LOSS, limits.max_daily_loss, loss, Mode.REDUCE_ONLY)


def check_drawdown(equity: float, peak_equity: float, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where ``1 - equity / peak_equity >= halt_drawdown``."""
    if limits.halt_drawdown >= 1.0 or peak_equity <= 0.0:
        return None
    fall = 1.0 - equity / peak_equity
    return RiskVeto(DRAWDOWN, limits.halt_drawdown, fall, Mode.HALTED) if fall >= limits.halt_drawdown else None


def check_margin(margin_ratio: float, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where the account's margin ratio is below its floor (NaN counts as unknown, not as safe or unsafe)."""
    if margin_ratio < limits.min_margin_ratio:
        return RiskVeto(MARGIN, limits.min_margin_ratio, margin_ratio, Mode.REDUCE_ONLY)
    return None


def check_exposure(seen: Observation, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where gross or net exposure is beyond its limit (equity at or below zero: beyond any)."""
    if seen.gross <= 0.0:
        return None
    gross, net = (x / seen.equity if seen.equity > 0.0 else math.inf for x in (seen.gross, abs(seen.net)))
    if gross > limits.max_gross:
        return RiskVeto(EXPOSURE, limits.max_gross, gross, Mode.REDUCE_ONLY)
    return RiskVeto(EXPOSURE, limits.max_net, net, Mode.REDUCE_ONLY) if net > limits.max_net else None


def check_count(open_count: int, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where more positions are open than allowed."""
    return RiskVeto(COUNT, limits.max_open, open_count, Mode.REDUCE_ONLY) if open_count > limits.max_open else None


def check_freshness(fresh_share: float, limits: RiskLimits) -> RiskVeto | None:
    """Return a veto where too few symbols have a fresh bar: such a cycle may only reduce risk."""
    if fresh_share < limits.min_fresh_share:
        return RiskVeto(STALE_DATA, limits.min_fresh_share, fresh_share, Mode.REDUCE_ONLY)
    return None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look shows of the account (USDT; gross and net notional) and of the data.

    ``fresh_share`` is ``None`` between bars: then what the last bar said of the data stands.
    """

    ts_ns: int
    equity: float
    margin_ratio: float
    fresh_share: float | None
    gross: float = 0.0
    net: float = 0.0
    open_count: int = 0


def observe(state: RiskState, seen: Observation, limits: RiskLimits) -> tuple[RiskState, tuple[RiskVeto, ...]]:
    """Return the state after one bar, and the limits that tripped *now* (not those that were tripped already).

    The peak and the day's start are moved first; a tripped drawdown stays, the other voices follow the bar.
    """
    known = frozenset(state.voices)
    day = seen.ts_ns // NS_PER_DAY
    new_day = day != state.day
    state = RiskState(
        state.voices,
        max(state.peak_equity, seen.equity),
        day,
        seen.equity if new_day else state.day_start_equity,
    )
    if new_day:
        state = state.with_voice(DAILY_LOSS, Mode.ACTIVE, "")
    for lifted in (MARGIN, EXPOSURE, COUNT, *(() if seen.fresh_share is None else (STALE_DATA,))):
        state = state.with_voice(lifted, Mode.ACTIVE, "")
    tripped = []
    for veto in (
        None if seen.fresh_share is None else check_freshness(seen.fresh_share, limits),
        check_exposure(seen, limits),
        check_count(seen.open_count, limits),
        check_margin(seen.margin_ratio, limits),
        check_daily_loss(seen.equity, state.day_start_equity, limits),
        check_drawdown(seen.equity, state.peak_equity, limits),
    ):
        if veto is not None and veto.rule not in state.voices:
            if veto.rule not in known:
                tripped.append(veto)
            state = state.with_voice(veto.rule, veto.mode, str(veto))
    return state, tuple(tripped)


def risk_from_json(saved: dict[str, object] | None) -> RiskState | None:
    """Return the risk state the ledger kept, ``None`` where it kept none."""
    if saved is None:
        return None
    plain = RiskState(**{k: v for k, v in saved.items() if k != "voices"})  # type: ignore[arg-type]
    voices = {voice: (Mode(mode), str(reason)) for voice, (mode, reason) in saved["voices"].items()}  # type: ignore[attr-defined]
    return replace(plain, voices=voices)
