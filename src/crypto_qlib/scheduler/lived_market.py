"""What a session on a stepped market traded on: the bars collected, and behind them those of the market itself.

Such a market begins anew with every start, so no later `data update` collects what a session lived through.
"""

from __future__ import annotations

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.source_panel import continued
from crypto_qlib.live_trading.gap_inputs import LiveSide
from crypto_qlib.scheduler.exchange_access import market_source
from crypto_qlib.settings.schema import Settings


def lived_market(
    panel: MarketPanel,
    instruments: dict[str, Instrument],
    tiers: dict[str, TierHistory],
    live: LiveSide,
    settings: Settings,
) -> tuple[MarketPanel, dict[str, Instrument], dict[str, TierHistory]]:
    """Return panel, contracts and tiers up to the session's last close, with every symbol it saw.

    Raises
    ------
    UserError
        If the market cannot be opened.
    """
    source = market_source(settings)
    seen = {fill.symbol for fill in live.fills} | {symbol for bar in live.bars.values() for symbol in bar.scores}
    items = {item.symbol: item for item in source.instruments()}
    new = sorted(seen & set(items) - set(panel.symbols))
    lived = continued(panel, source, settings.data.frame, new, live.equity[-1].ts_ns)
    return lived, instruments | {s: items[s] for s in new}, tiers | {s: source.tiers(s) for s in new}
