"""The checks of ``crypto-qlib doctor`` that talk to the exchange: reachable, clock, and what the keys may do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crypto_qlib.cli.checks import Check, State
from crypto_qlib.core.clock import NS_PER_S, Clock, SystemClock, iso
from crypto_qlib.core.errors import CryptoQlibError, RetryLater
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.exchange.key_rights import KeyRights, key_rights
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets

SKEW_WARN_S = 2.0
SKEW_FAIL_S = 25.0
"""OKX refuses requests whose stamp is 30 s off (code 50102)."""

_TRIAL_SYMBOLS, _TRIAL_DAYS = 2, 3


def exchange_checks(settings: Settings, secrets: Secrets) -> Iterator[Check]:
    """Yield the checks of the exchange the settings name; the embedded one is started, asked and stopped."""
    with tempfile.TemporaryDirectory(prefix="crypto-qlib-doctor-") as scratch:
        trial = _trial(settings, Path(scratch)) if settings.exchange.mode == "embedded" else settings
        try:
            with ExchangeAccess(trial, secrets) as access:
                theirs, skew_s, n_symbols = access.run(lambda gateway: _ask(gateway, SystemClock()))
                where = "embedded exchange starts and answers" if access.is_embedded else "OKX answers"
        except CryptoQlibError as e:
            mend = "check the network (proxy, firewall), or choose another exchange.mode"
            yield Check("exchange", State.FAIL, e.message, mend if isinstance(e, RetryLater) else e.hint or mend)
            return
    yield Check("exchange", State.OK, f"{where}: {n_symbols} swaps")
    if settings.exchange.mode == "embedded":
        yield Check("clock", State.OK, f"the embedded market keeps its own time, {iso(theirs)}")
        return
    yield skew_check(skew_s)
    if secrets.has_okx_keys:
        yield _rights_on_exchange(settings, secrets)


def skew_check(skew_s: float) -> Check:
    """Check how far this machine's clock is from the exchange's; positive = ahead of it."""
    detail = f"{abs(skew_s):.1f} s {'ahead of' if skew_s >= 0 else 'behind'} the exchange"
    mend = "synchronise the system clock (NTP): timedatectl set-ntp true"
    if abs(skew_s) >= SKEW_FAIL_S:
        return Check("clock", State.FAIL, f"{detail}; signed requests are refused", mend)
    return Check("clock", State.WARN if abs(skew_s) >= SKEW_WARN_S else State.OK, detail, mend)


def rights_check(rights: KeyRights, mode: str) -> Check:
    """Check that a key may trade and may not withdraw."""
    if not rights.may_trade:
        held = "read only" if rights.may_read else "no rights"
        return Check("rights", State.FAIL, f"the key cannot trade ({held})", "give it the Trade permission at OKX")
    if rights.may_withdraw:
        return Check("rights", State.WARN, "the key can withdraw funds; this program never does", "make a key without Withdraw")
    if mode == "live" and not rights.ip_bound:
        return Check("rights", State.WARN, "trade; not bound to an address", "bind the key to this machine's IP address at OKX")
    return Check("rights", State.OK, "trade, no withdrawal")


def _trial(settings: Settings, scratch: Path) -> Settings:
    """Return the settings with a throw-away workspace, a free port and (unless real history is replayed) a tiny market."""
    simulated = settings.exchange.market == "simulated"
    tiny = {"simulated_symbols": _TRIAL_SYMBOLS, "simulated_days": _TRIAL_DAYS} if simulated else {}
    return settings.model_copy(
        update={
            "store": settings.store.model_copy(update={"root": scratch}),
            "exchange": settings.exchange.model_copy(update={"port": 0, **tiny}),
        }
    )


async def _ask(gateway: Gateway, clock: Clock) -> tuple[int, float, int]:
    """Return the exchange's time, this machine's lead over it in seconds, and how many swaps it lists."""
    before = clock.now_ns()
    theirs = await gateway.server_time_ns()
    middle = (before + clock.now_ns()) // 2
    return theirs, (middle - theirs) / NS_PER_S, len(await gateway.instruments())


def _rights_on_exchange(settings: Settings, secrets: Secrets) -> Check:
    exchange = settings.exchange
    credentials = ApiCredentials(secrets.okx_api_key, secrets.okx_api_secret, secrets.okx_api_passphrase)
    connection = Connection("", credentials, exchange.mode == "demo", exchange.timeout_s)
    try:
        return rights_check(asyncio.run(key_rights(connection)), exchange.mode)
    except CryptoQlibError as e:
        return Check("rights", State.FAIL, e.message, e.hint or "check the key at OKX")
