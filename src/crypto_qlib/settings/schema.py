"""Every setting there is: frozen, typed, documented; unknown keys are refused by ``settings.load``.

Each field's description says what it does and in which unit; ``crypto-qlib config init`` writes them as comments.
Secrets are never settings: they come from the environment only (``settings.load.Secrets``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from crypto_qlib.core.clock import FRAME_NS
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import FeeHistory, account_fees
from crypto_qlib.settings.alert_schema import AlertSettings
from crypto_qlib.settings.model_schema import ModelSettings
from crypto_qlib.settings.section import Fraction, Frame, IsoTime, Names, Section

__all__ = ["Fraction", "Frame", "IsoTime", "ModelSettings", "Names", "Section", "Settings"]

FeatureSetName = Literal[
    "alpha360", "technical", "btc_relative", "funding", "alpha158", "multi_frame", "microstructure", "derivatives",
    "cross_coin", "cross_market", "sentiment", "on_chain", "news",
]  # fmt: skip

CollectedFrame = Literal["1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "1d"]
"""Bar lengths that can be collected; features and trading know fewer."""


class UniverseSettings(Section):
    """Which coins may be traded."""

    size: int = Field(50, ge=1, le=500, description="Coins in the universe: the top N by market cap with a USDT swap.")
    market_cap_source: Literal["auto", "coingecko", "coinmarketcap", "volume"] = Field(
        "auto",
        description="Where market caps come from: coingecko, or coinmarketcap (needs COINMARKETCAP_API_KEY); volume ranks by "
        "24 h turnover instead; "
        "auto = coingecko's API (served by the embedded exchange in embedded mode).",
    )
    include: Names = Field((), description="Base coins always in the universe, e.g. [BTC, ETH].")
    exclude: Names = Field((), description="Base coins never in the universe.")
    exclude_stablecoins: bool = Field(True, description="Leave out stablecoins, wrapped/staked duplicates and gold tokens.")
    never_pegged: Names = Field((), description="Base coins the exclusion by category and by peg never applies to.")
    point_in_time: bool = Field(
        True, description="Research and trade at each bar only the coins that were in the universe as known then."
    )
    hysteresis: int = Field(3, ge=0, description="Ranks a member may fall below the size before it leaves.")
    refresh_hours: float = Field(24.0, gt=0, description="Hours between two refreshes of the ranking.")


class DataSettings(Section):
    """Which history is collected, and how."""

    frame: Frame = Field("1h", description="Bar length of features, scores and backtest.")
    history_days: int = Field(365, ge=3, description="Days of history to keep up to date, counted back from now.")
    since: IsoTime = Field("", description="ISO date that overrides history_days as the start; empty = use history_days.")
    frames: tuple[CollectedFrame, ...] = Field((), description="Further bar lengths collected beside frame, e.g. [1m].")
    index_candles: bool = Field(False, description="Also collect index-price candles.")
    statistics: bool = Field(
        True,
        description="Also collect hourly open interest, taker volume and long/short ratios, which OKX keeps for 60 days only.",
    )
    mark_candles: bool = Field(True, description="Also collect mark-price candles (used for liquidation).")
    funding: bool = Field(True, description="Also collect realised funding.")
    concurrency: int = Field(8, ge=1, le=64, description="Requests in flight at once.")
    outlier_sigmas: float = Field(25.0, gt=0, description="Robust z-score of a one-bar jump that reverts at once, above "
                                  "which a bar is flagged as an outlier.")  # fmt: skip
    max_gap_bars: int = Field(6, ge=0, description="Longest gap, in bars, tolerated without failing `data check`.")


class ExternalSettings(Section):
    """What is asked of the world beside the exchange: stock index, sentiment, on-chain, page views."""

    sources: tuple[Literal["yahoo", "alternative_me", "coingecko", "coinmetrics", "wikimedia"], ...] = Field(
        ("yahoo", "alternative_me", "coingecko", "coinmetrics", "wikimedia"),
        description="Whom to ask. Coin Metrics' community data are not for commercial use.",
    )
    when: Literal["online", "always", "never"] = Field(
        "online",
        description="online = where the market is OKX's (the sources are asked) or simulated (the embedded exchange speaks for "
        "them, invented like its prices), not where candles are replayed.",
    )
    mirror: str = Field(
        "", description="Address of a server that speaks all sources' APIs (a cache, a test); empty = the sources themselves."
    )
    timeout_s: float = Field(20.0, gt=0, description="Time limit of one request, seconds.")


class FeatureSettings(Section):
    """Which features are built."""

    sets: tuple[FeatureSetName, ...] = Field(
        ("alpha360", "technical", "btc_relative", "funding"), description="Feature sets, joined in this order."
    )
    alpha360_window: int = Field(60, ge=5, le=240, description="Look-back of Alpha360, bars.")
    exclude: Names = Field((), description="Features left out by name, e.g. [VWAP59].")
    selection: str = Field("", description="Build only the features of this saved selection: NAME (newest version) or NAME@N; "
                           "empty = all of the sets.")  # fmt: skip


class LlmSettings(Section):
    """The language model that reads the news; the key comes from OPENAI_API_KEY."""

    base_url: str = Field("", description="OpenAI-compatible address, e.g. https://api.openai.com/v1 or a local server's "
                          "http://127.0.0.1:11434/v1; empty = none, the light local model reads alone.")  # fmt: skip
    model: str = Field("", description="Model name the server knows; empty = none.")
    batch_size: int = Field(10, ge=1, le=50, description="Articles in one request.")
    timeout_s: float = Field(45.0, gt=0, description="Time limit of one request, seconds.")
    retries: int = Field(2, ge=0, le=10, description="Further tries after a busy or broken server.")
    daily_tokens: int = Field(500_000, ge=0, description="Tokens a UTC day at most, in and out together; then the local "
                              "model reads.")  # fmt: skip
    daily_usd: float = Field(1.0, ge=0, description="Money a UTC day at most, USD.")
    usd_per_million_in: float = Field(0.0, ge=0, description="Price of a million prompt tokens, USD (0 for a local server).")
    usd_per_million_out: float = Field(0.0, ge=0, description="Price of a million answer tokens, USD.")
    trained_until: IsoTime = Field("", description="ISO date the model's training data ends; its readings of older "
                                   "articles are hindsight and not used. Empty = only live readings are used.")  # fmt: skip
    min_relevance: float = Field(0.2, ge=0, le=1, description="Relevance, by the local model, from which the language model "
                                 "is asked.")  # fmt: skip


class NewsSettings(Section):
    """Which news is collected, and who reads it."""

    feeds: tuple[str, ...] = Field(
        (
            "coindesk https://www.coindesk.com/arc/outboundfeeds/rss/",
            "cointelegraph https://cointelegraph.com/rss",
            "decrypt https://decrypt.co/feed",
            "theblock https://www.theblock.co/rss.xml",
            "bloomberg_crypto https://feeds.bloomberg.com/crypto/news.rss",
            "okx_announcements https://www.okx.com/help/section/announcements-latest-announcements/rss",
        ),
        description="RSS and Atom feeds, each as `name address`. Reuters publishes none; name the one you have access to.",
    )
    full_text: bool = Field(False, description="Also read the article's page where robots.txt allows it.")
    gdelt_query: str = Field(
        "(bitcoin OR ethereum OR cryptocurrency) sourcelang:english", description="Query of the GDELT history client."
    )
    host_interval_s: float = Field(2.0, ge=0, description="Least seconds between two requests to one host.")
    timeout_s: float = Field(20.0, gt=0, description="Time limit of one request, seconds.")
    assumed_lag_minutes: float = Field(60.0, ge=0, description="Minutes from publication to being seen where an archive did "
                                       "not record it (measured at a vendor: median 27, 90 % under 55, most 80).")  # fmt: skip
    processing_delay_s: float = Field(60.0, ge=0, description="Seconds from being seen to being usable, at least.")
    llm: LlmSettings = Field(LlmSettings(), description="The language model.")


class StrategySettings(Section):
    """How scores become positions."""

    max_open: int = Field(10, ge=1, le=500, description="Positions open at once, pending entries included (N).")
    allow_long: bool = Field(True, description="May open long positions.")
    allow_short: bool = Field(True, description="May open short positions.")
    decide_every_bars: int = Field(1, ge=1, description="Bars between two decisions.")
    min_net_return: float = Field(0.0, description="Smallest |expected return| after fees, slippage and expected funding.")
    min_win_probability: Fraction = Field(0.5, description="Smallest win probability of an entry.")
    min_daily_turnover: float = Field(1e6, ge=0, description="Liquidity floor, USDT traded per day (trailing median).")
    min_listing_days: float = Field(7.0, ge=0, description="Days since listing before a coin may be traded.")
    max_data_age_bars: int = Field(2, ge=1, description="Bars without a fresh price after which a symbol is not entered.")
    max_correlation: float = Field(1.0, gt=0, le=1, description="Largest trailing return correlation between two chosen "
                                   "names on the same side; 1 = off.")  # fmt: skip
    blacklist: Names = Field((), description="Symbols never entered, e.g. [LUNAUSDT].")
    entry_order: Literal["market", "limit", "post_only"] = Field(
        "market",
        description="How positions are opened: at the market; by a limit order that takes what it may and rests; or post-only, "
        "which pays the maker fee and is missed where the price does not come.",
    )
    entry_offset_bps: float = Field(
        5.0, ge=0, lt=5_000, description="How far a limit entry waits behind the last close, basis points (below it for a buy)."
    )
    entry_bars: int = Field(1, ge=1, description="Bars a limit entry may wait; at most decide_every_bars.")
    replace_margin: float = Field(0.002, ge=0, description="By how much (fraction of notional, after the switch's cost) a new "
                                  "signal must beat the worst open position to replace it.")  # fmt: skip
    cooldown_bars: int = Field(12, ge=0, description="Bars a symbol is not re-entered after a stop-out.")
    holding_bars: int = Field(24, ge=1, description="Time exit: bars a position is held at most.")
    stop_atr: float = Field(3.0, gt=0, description="Stop distance in ATRs of the decision frame.")
    take_profit_atr: float = Field(6.0, gt=0, description="Take-profit distance in ATRs.")
    min_stop_distance: float = Field(0.01, gt=0, lt=1, description="Smallest stop distance, fraction of the entry price.")
    max_stop_distance: float = Field(0.15, gt=0, lt=1, description="Largest stop distance, fraction of the entry price.")
    trailing_atr: float = Field(0.0, ge=0, description="Trailing stop: distance behind the best price in ATRs, inside the "
                                "stop's bounds; 0 = none. In backtests only.")  # fmt: skip
    trigger: Literal["last", "mark"] = Field("last", description="Price that triggers stops and take-profits.")
    sizing: Literal["equal_risk", "fixed_fraction", "score_weighted", "kelly"] = Field(
        "equal_risk", description="How a position is sized before the caps apply."
    )
    risk_per_trade: Fraction = Field(0.005, description="Equity lost if the stop is hit (equal_risk; cap for all others).")
    position_fraction: Fraction = Field(0.1, description="Margin per position as a fraction of equity (fixed_fraction).")
    kelly_cap: Fraction = Field(0.25, description="Share of full Kelly used (kelly).")
    leverage: float = Field(
        3.0, ge=1, le=125, description="Leverage wanted per position; lowered to fit the tier and the stop."
    )
    max_position_fraction: float = Field(0.5, gt=0, description="Cap of one position's notional, multiple of equity.")
    max_gross: float = Field(3.0, gt=0, description="Cap of gross notional, multiple of equity.")
    max_net: float = Field(
        0.3,
        gt=0,
        description="Cap of |net| notional, multiple of equity; small, because scores rank coins and say nothing of "
        "the market's direction.",
    )
    max_beta: float = Field(100.0, gt=0, description="Cap of |net beta to BTC| x notional, multiple of equity; 100 = off.")
    max_cluster: float = Field(100.0, gt=0, description="Cap of |net| notional in coins that move together, multiple of "
                               "equity; 100 = off.")  # fmt: skip
    cluster_correlation: float = Field(0.7, gt=0, lt=1, description="Mean trailing return correlation from which coins are one "
                                       "cluster.")  # fmt: skip
    liquidation_buffer: float = Field(0.5, ge=0, description="Least distance from stop to liquidation, as a fraction of the "
                                      "stop distance.")  # fmt: skip
    max_drawdown: Fraction = Field(0.5, description="Drawdown from the peak at which no position is opened any more.")

    @model_validator(mode="after")
    def _agree(self) -> StrategySettings:
        if not (self.allow_long or self.allow_short):
            raise ValueError("allow_long and allow_short are both false: nothing could ever be traded")
        if self.entry_order != "market" and self.entry_bars > self.decide_every_bars:
            raise ValueError(
                f"entry_bars = {self.entry_bars} is above decide_every_bars = {self.decide_every_bars}: a decision plans every "
                "entry anew"
            )
        if self.min_stop_distance > self.max_stop_distance:
            raise ValueError(
                f"min_stop_distance = {self.min_stop_distance:g} is above max_stop_distance = {self.max_stop_distance:g}"
            )
        return self


class CostSettings(Section):
    """Fees and slippage (fractions and basis points of notional)."""

    maker_fee: float = Field(0.0002, ge=-0.01, le=0.01, description="Maker fee, fraction of notional (negative: rebate).")
    taker_fee: float = Field(0.0005, ge=0, le=0.01, description="Taker fee, fraction of notional.")
    impact_y: float = Field(0.8, ge=0, description="Prefactor Y of the square-root impact.")
    half_spread_bps: float = Field(-1.0, description="Half spread in basis points; negative = by turnover (see core.costs).")
    fee_level: str = Field("", description="Fee level of the account (LV1 to LV5, VIP1 to VIP7): its published rates over time "
                           "instead of maker_fee and taker_fee; empty = those two.")  # fmt: skip
    fee_changes: Names = Field((), description="Later levels or rates with the date (UTC) from which they hold, e.g. "
                               "[2026-03-01=VIP2, 2026-06-01=0.0001/0.0003] (maker/taker).")  # fmt: skip

    @model_validator(mode="after")
    def _agree(self) -> CostSettings:
        self.fees()
        return self

    def fees(self) -> FeeHistory:
        """Return what the account pays over time."""
        return account_fees(FeeSchedule(self.maker_fee, self.taker_fee), self.fee_level, self.fee_changes)


class BacktestSettings(Section):
    """The leveraged backtest."""

    initial_equity: float = Field(100_000.0, gt=0, description="Starting equity, USDT.")
    margin_mode: Literal["isolated", "cross"] = Field("isolated", description="Margin mode of all positions.")
    costs: CostSettings = Field(CostSettings(), description="Fees and slippage.")
    max_bar_volume_share: Fraction = Field(0.05, description="Largest share of a bar's volume one order may take.")
    execution_frame: Literal["", "1m", "3m", "5m", "15m", "30m", "1h"] = Field(
        "",
        description="Bars the backtest trades on, finer than data.frame on which it decides, streamed from the lake (collect "
        "them: data update --frames 1m); empty = data.frame.",
    )
    adl_stress_move: float = Field(
        0.0,
        ge=0,
        description="Stress: a mark move of this fraction within one bar closes the positions that gain from it at the bar's "
        "mark close (auto-deleveraging); 0 = off.",
    )
    segment: Literal["test", "valid+test", "all"] = Field("test", description="Which part of the history is traded.")


class FaultSettings(Section):
    """What goes wrong on purpose at the embedded exchange; probabilities of each request or message, nothing by default.

    Faults of the market (suspended instruments, stepped funding, stalled and canceled orders) are switched while it runs, with
    `crypto-qlib exchange fault`.
    """

    seed: int = Field(0, ge=0, description="Seed of all draws: the same seed and requests give the same faults.")
    latency_ms: float = Field(0.0, ge=0, description="Time every answer is held back, milliseconds.")
    jitter_ms: float = Field(0.0, ge=0, description="Mean of a random time on top of it, milliseconds.")
    clock_skew_ms: float = Field(0.0, description="How far ahead the exchange's clock is, milliseconds.")
    rate_limit: Fraction = Field(0.0, description="Burst of code 50011.")
    unavailable: Fraction = Field(0.0, description="Code 50001, not carried out.")
    timeout: Fraction = Field(0.0, description="Code 50004 after the request was carried out.")
    server_error: Fraction = Field(0.0, description="HTTP 500 with code 51149 after the request was carried out.")
    bad_gateway: Fraction = Field(0.0, description="HTTP 502 with an HTML page, carried out or not by chance.")
    drop: Fraction = Field(0.0, description="Connection broken without an answer, after the request was carried out.")
    socket_drop: Fraction = Field(0.0, description="Socket broken.")
    socket_silent: Fraction = Field(0.0, description="Socket stays open and says nothing any more.")
    notice: Fraction = Field(0.0, description="Notice 64008, then the socket is closed.")
    sequence_gap: Fraction = Field(0.0, description="Order book message lost.")
    duplicate: Fraction = Field(0.0, description="Socket message sent twice.")
    reorder: Fraction = Field(0.0, description="Socket message sent after the next one.")


class ExchangeSettings(Section):
    """Where orders and data requests go."""

    mode: Literal["embedded", "demo", "live"] = Field(
        "embedded", description="embedded = the simulated OKX in this package; demo = OKX demo trading; live = real money."
    )
    host: str = Field("127.0.0.1", description="Address the embedded exchange binds to and is reached at.")
    port: int = Field(0, ge=0, le=65535, description="Port of the embedded exchange; 0 = any free port.")
    tls: bool = Field(False, description="Whether `crypto-qlib exchange serve` serves https and wss.")
    tls_certificate: Path | None = Field(None, description="PEM certificate for tls; empty = one made here.")
    tls_key: Path | None = Field(None, description="PEM key of tls_certificate.")
    allow_public: bool = Field(False, description="Allow a host that other machines can reach (`exchange serve`; needs tls).")
    market: Literal["simulated", "replay", "okx_public"] = Field(
        "simulated",
        description="Market behind the embedded exchange; okx_public = OKX's live public data, with simulated fills "
        "(`crypto-qlib exchange serve`).",
    )
    okx_url: str = Field("", description="Where market = okx_public reads public data, http(s)://host:port; empty = OKX.")
    okx_symbols: int = Field(20, ge=1, le=300, description="How many of OKX's most traded swaps market = okx_public serves.")
    stale_s: float = Field(
        10.0, gt=0, description="Orders are refused (50001) where the last live price is older than this many seconds."
    )
    replay_path: Path | None = Field(
        None,
        description="Candles to replay (market = replay): parquet, CSV, a lake, or recorded order books "
        "(`crypto-qlib exchange import`).",
    )
    replay_market_caps: Path | None = Field(
        None, description="Parquet or CSV of market caps for the replay (symbol, ts, market_cap)."
    )
    replay_funding: Path | None = Field(
        None, description="Parquet or CSV of realised funding for the replay (symbol, ts, rate)."
    )
    replay_mark: Path | None = Field(None, description="Parquet or CSV of mark candles for the replay.")
    replay_end: IsoTime = Field(
        "",
        description="ISO time of 'now' on the replayed market at start; empty = so long before the end of the data that the "
        "paper session fits behind it.",
    )
    step_s: float = Field(
        0.0, ge=0, description="Seconds the embedded market moves in one step; 0 = a bar of data.frame, or the market's own."
    )
    speed: float = Field(0.0, ge=0, description="Market seconds per real second; 0 = moves only when a client steps it.")
    simulated_symbols: int = Field(60, ge=2, le=500, description="Instruments the simulated market lists over its life.")
    simulated_days: int = Field(372, ge=3, description="Days of simulated history before the paper session.")
    simulated_end: IsoTime = Field("2026-01-01T00:00:00", description="ISO time of 'now' on the simulated market at start.")
    signal_strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Signal planted in the simulated market, so that there is something to find; 0 = pure noise.",
    )
    seed: int = Field(20260101, ge=0, description="Seed of the simulated market.")
    own_process: bool = Field(
        False,
        description="Whether the embedded exchange inside another command runs in a process of its own, on the other cores; "
        "it builds its market once more.",
    )
    rate_limits: bool = Field(False, description="Whether the embedded exchange enforces OKX's request limits (50011, 50061).")
    demo_key: bool | None = Field(
        None,
        description="Whether the embedded exchange's key belongs to demo trading: requests of the other kind get 50101; "
        "empty = both are taken.",
    )
    persist: bool = Field(
        True, description="Whether `crypto-qlib exchange serve` keeps accounts and market time in <store.root>/exchange; the "
        "exchange inside another command always forgets them."
    )  # fmt: skip
    survive_power_cut: bool = Field(
        False, description="Wait for the disk at every operation: acknowledged orders outlive a power cut, not only a kill."
    )
    faults: FaultSettings = Field(FaultSettings(), description="What goes wrong on purpose at the embedded exchange.")
    paper_equity: float = Field(100_000.0, gt=0, description="Starting USDT of the embedded paper account.")
    timeout_s: float = Field(20.0, gt=0, description="Time limit of one request, seconds.")

    @model_validator(mode="after")
    def _agree(self) -> ExchangeSettings:
        if self.market == "replay" and self.replay_path is None:
            raise ValueError("market = replay needs replay_path, the candles to replay")
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        return self


class LiveSettings(Section):
    """The live (or paper) session."""

    paper_bars: int = Field(24, ge=0, description="Bars the paper session of `crypto-qlib run` lives through.")
    flatten_on_exit: bool = Field(False, description="Close all positions at the end; otherwise they stay, protected.")
    confirm_live: bool = Field(False, description="Second confirmation needed for mode = live (real money).")
    max_daily_loss: Fraction = Field(
        0.2, description="Loss since the first equity of the UTC day from which positions may only be reduced; 1 = off."
    )
    halt_drawdown: Fraction = Field(
        0.6, description="Fall from the highest equity from which nothing is sent any more until a person resumes; 1 = off."
    )
    min_fresh_share: Fraction = Field(
        0.9, description="Smallest share of symbols with a fresh bar for a cycle that may open positions."
    )
    min_margin_ratio: float = Field(
        1.5, ge=1, description="Account margin ratio (1 liquidates) below which positions may only be reduced."
    )
    deleverage_ratio: float = Field(
        1.1, ge=0, description="Margin ratio (1 liquidates) below which the session closes the position nearest "
        "its liquidation; 0 = off."
    )  # fmt: skip
    exposure_slack: float = Field(
        0.5, ge=0, description="Share by which gross and net exposure may outgrow strategy.max_gross and max_net before "
        "positions may only be reduced."
    )  # fmt: skip
    max_order_risk: Fraction = Field(
        0.1, description="Largest loss at its stop, a fraction of equity, an entry may be sent with; 1 = off."
    )
    max_price_deviation: float = Field(
        0.03,
        gt=0,
        description="Largest distance between the book and the price an entry was sized with; beyond it is not sent.",
    )
    max_depth_share: Fraction = Field(
        0.25, description="Largest share of the shown side of the book one order takes; larger ones are sent in parts. 0 = off."
    )
    balance_tolerance: float = Field(
        0.002, gt=0, description="Difference between the exchange's balance and the ledger, a fraction of equity, from which "
        "positions may only be reduced."
    )  # fmt: skip
    max_api_errors: int = Field(8, ge=0, description="Failed requests in a row after which nothing is opened; 0 = off.")
    max_rejects: int = Field(
        8, ge=0, description="Refused orders in a row after which nothing is opened until a person resumes; 0 = off."
    )
    max_latency_s: float = Field(
        10.0,
        ge=0,
        description="Slowest answer of the exchange, seconds, after which nothing is opened until it is faster; 0 = off.",
    )
    max_clock_skew_s: float = Field(
        2.0, ge=0, description="Largest offset between this clock and the exchange's, seconds, for opening positions; 0 = off."
    )
    check_every_s: float = Field(
        30.0, gt=0, description="Seconds between two looks at account, orders and stops while a bar is waited for."
    )
    reprice_bps: float = Field(
        5.0, ge=0, description="Basis points the market leaves a resting entry behind before the entry follows; 0 = it stays."
    )
    max_reprice_bps: float = Field(20.0, ge=0, description="Basis points a resting entry follows the market at most.")
    adopt: bool = Field(
        False, description="Take over positions the session did not open: they get a stop and leave like its own."
    )
    websockets: bool = Field(
        True, description="Hear bars, orders and positions by websocket; REST answers where they are silent."
    )
    dead_man_s: Literal[0, 10, 15, 20, 30, 45, 60, 90, 120] = Field(
        60,
        description="Seconds after which the exchange cancels the resting orders of a session that hangs or died; 0 = never. "
        "A market stepped bar by bar arms none.",
    )


class MonitoringSettings(Section):
    """Logs and the dashboard."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING", description="Smallest severity written to the terminal."
    )


class SchedulerSettings(Section):
    """What runs when."""

    data_update_minutes: float = Field(60.0, gt=0, description="Minutes between two data updates of the scheduler.")


class StoreSettings(Section):
    """Where state lives."""

    root: Path = Field(Path("workspace"), description="Folder of lake, features, models, reports and ledger.")
    lake: str = Field(
        "",
        description="Where the lake lies, if not below root: a folder, or an address such as s3://bucket/lake "
        "(S3-compatible; needs crypto-qlib[s3]).",
    )
    ledger: str = Field(
        "",
        description="PostgreSQL database of the ledger, such as postgresql://bot@host/trading (needs crypto-qlib[postgres]; "
        "the password comes from LEDGER_PASSWORD); empty = an SQLite file below root.",
    )

    @field_validator("ledger")
    @classmethod
    def _names_a_database(cls, address: str) -> str:
        if address and not re.fullmatch(r"postgres(ql)?://([^:/?@\s]+@)?[^/?@\s]+/[^/?\s]+(\?(?!.*password)\S*)?", address):
            raise ValueError("must be postgresql://USER@HOST:PORT/DATABASE; the password comes from LEDGER_PASSWORD")
        return address


class Settings(Section):
    """All sections."""

    universe: UniverseSettings = UniverseSettings()
    data: DataSettings = DataSettings()
    external: ExternalSettings = ExternalSettings()
    features: FeatureSettings = FeatureSettings()
    news: NewsSettings = NewsSettings()
    model: ModelSettings = ModelSettings()
    strategy: StrategySettings = StrategySettings()
    backtest: BacktestSettings = BacktestSettings()
    exchange: ExchangeSettings = ExchangeSettings()
    live: LiveSettings = LiveSettings()
    alerts: AlertSettings = AlertSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    store: StoreSettings = StoreSettings()

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        fine = self.backtest.execution_frame
        if fine and FRAME_NS[self.data.frame] % FRAME_NS[fine]:
            raise ValueError(
                f"backtest.execution_frame = {fine} does not divide data.frame = {self.data.frame}: trade on finer bars, or "
                "empty it"
            )
        return self
