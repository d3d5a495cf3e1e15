"""How an embedded exchange runs: its market's pace, its address, the paper account's terms, what goes wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.admin_api import is_loopback
from crypto_qlib.exchange.embedded.faults import FaultOptions
from crypto_qlib.exchange.embedded.key_terms import KeyTerms
from crypto_qlib.exchange.embedded.market_api import OKX_MARK_LIMIT
from crypto_qlib.exchange.embedded.tls import TlsFiles
from crypto_qlib.venue.venue_config import VenueConfig


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """How the embedded exchange runs.

    Parameters
    ----------
    start_ns : int | None
        The market's time at start; ``None`` = the end of the data.
    step_frame_ns : int | None
        Bar length of one step; ``None`` = the source's base frame; a finer one walks a path drawn inside each bar.
    speed : float
        Market seconds per real second; 0 = moves only when a client steps it.
    host : str
        Address to bind to.
    tls : TlsFiles | None
        Serve https and wss with these.
    allow_public : bool
        Whether an address that other machines can reach is allowed; it needs ``tls`` too.
    port : int
        Port; 0 = any free one.
    paper_equity : float
        USDT of the paper account at start.
    fees : FeeSchedule
        The paper account's fee rates.
    venue : VenueConfig
        How the simulated exchange executes: spread, impact, volume share, liquidation.
    funding_retention_days : float | None
        How far back funding history reaches; OKX keeps about three months, ``None`` serves all there is.
    mark_page_limit : int
        Most rows of a page of mark or index candles (OKX: 100); a higher one makes a first download quicker.
    rate_limits : bool
        Whether OKX's request limits are enforced (code 50011).
    is_demo : bool | None
        Whether the key is one of demo trading: then signed requests must carry ``x-simulated-trading: 1``, otherwise they must
        not (50101); ``None`` takes both.
    key : KeyTerms
        What the paper account's key may do.
    faults : FaultOptions
        What goes wrong on purpose from the start.
    """

    start_ns: int | None = None
    step_frame_ns: int | None = None
    speed: float = 0.0
    host: str = "127.0.0.1"
    tls: TlsFiles | None = None
    allow_public: bool = False
    port: int = 0
    paper_equity: float = 100_000.0
    fees: FeeSchedule = field(default_factory=FeeSchedule)
    venue: VenueConfig = field(default_factory=VenueConfig)
    funding_retention_days: float | None = 92.0
    mark_page_limit: int = OKX_MARK_LIMIT
    rate_limits: bool = False
    is_demo: bool | None = None
    key: KeyTerms = field(default_factory=KeyTerms)
    faults: FaultOptions = field(default_factory=FaultOptions)


def check_address(options: EmbeddedOptions) -> None:
    """Raise a ``UserError`` for an address that other machines can reach, unless it is allowed and served over TLS."""
    if is_loopback(options.host):
        return
    if not options.allow_public:
        raise UserError(
            f"{options.host} can be reached from other machines, the embedded exchange serves on loopback only",
            "set exchange.host to 127.0.0.1; or allow it with --public and --tls",
        )
    if options.tls is None:
        raise UserError(f"on the public address {options.host} the embedded exchange serves TLS only", "add --tls")
