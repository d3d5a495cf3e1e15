"""The reference path: the same backtest, driven event by event through the simulated exchange in plain Python.

Slow and obvious on purpose. At every bar it asks the exchange for the account, calls ``decide()``, shows the exchange the bar,
sends the plan and lets the bar end. The compiled engine must give the same fills, fees, funding, liquidations and equity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from crypto_qlib.backtest.inputs import BacktestInputs, PreparedRun, prepare
from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.costs import BPS, FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.margin import initial_margin_cross
from crypto_qlib.core.market import FloatArray
from crypto_qlib.core.order import ExitKind, Fill, MarginMode, OrderRequest, Protection, TriggerSource
from crypto_qlib.core.signal import Scores
from crypto_qlib.portfolio.decision import decide
from crypto_qlib.portfolio.lookup import row_in
from crypto_qlib.portfolio.plan import PlannedOrder, client_order_id
from crypto_qlib.portfolio.sizing import today
from crypto_qlib.venue.market_board import VenueBar
from crypto_qlib.venue.records import Bill, FundingPaid, Liquidated, VenueEvent
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.snapshot import AccountSnapshot
from crypto_qlib.venue.venue_config import VenueConfig, VenueInstrument

ACCOUNT = "backtest"
STOPPED_OUT = (ExitKind.STOP, ExitKind.TRAILING, ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION)
"""Exits after which a symbol pauses."""


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """What the reference path recorded.

    Parameters
    ----------
    equity : (n_bars,) float64
        Equity at each close, USDT.
    fills : tuple of Fill
        Oldest first.
    bills : tuple of Bill
        Every movement of money.
    funding : tuple of FundingPaid
        Settlements.
    liquidations : tuple of Liquidated
        Liquidations.
    """

    equity: FloatArray
    fills: tuple[Fill, ...]
    bills: tuple[Bill, ...]
    funding: tuple[FundingPaid, ...]
    liquidations: tuple[Liquidated, ...]


def run_reference(inputs: BacktestInputs) -> ReferenceRun:
    """Run ``inputs`` through :class:`SimulatedExchange` bar by bar.

    Raises
    ------
    UserError
        As :func:`~crypto_qlib.backtest.engine.run_backtest`, and where ``execution`` asks for rules the exchange does not have.
    """
    execution = inputs.execution
    if execution.take_profit_in_entry_bar or not execution.doubled_stop_spread or not execution.funding_at_entry:
        raise UserError("the exchange has no such execution rules", "run the reference path with the default execution")
    return _Driver(inputs, prepare(inputs)).run()


class _Driver:
    def __init__(self, inputs: BacktestInputs, run: PreparedRun) -> None:
        self._inputs = inputs
        self._run = run
        rules = run.rules
        self._mode = MarginMode.CROSS if rules.cross else MarginMode.ISOLATED
        listing = [
            VenueInstrument(replace(inputs.instruments[s], delisted_ns=_end(run, j)), inputs.tiers[s])
            for j, s in enumerate(run.symbols)
        ]
        fees = inputs.fees or FeeHistory([FeeSchedule(rules.maker_fee, rules.taker_fee)])
        self._fees = fees
        config = VenueConfig(
            impact_y=rules.impact_y,
            half_spread_bps=rules.half_spread_bps,
            max_bar_volume_share=inputs.execution.max_bar_volume_share,
            partial_liquidation=inputs.execution.partial_liquidation,
            adl_stress_move=inputs.execution.adl_stress_move,
        )
        self._exchange = SimulatedExchange(listing, config, int(run.bars.ts_open[run.first_bar]))
        self._exchange.open_account(ACCOUNT, run.initial_equity, fees)
        self._waiting: dict[str, PlannedOrder] = {}
        self._filled: set[str] = set()
        self._peak = run.initial_equity
        self._cooldown: dict[str, int] = {}

    def run(self) -> ReferenceRun:
        run = self._run
        equity: list[float] = []
        events: list[VenueEvent] = []
        n_fills = 0
        for t in range(run.first_bar, run.bars.ts_open.size):
            ts = int(run.bars.ts_open[t])
            self._cancel_unwanted(ts)
            plan = self._plan(ts)
            self._exchange.begin_bar(self._bar(t))
            for order in plan:
                # A replaced position without a bar could not leave: its successor must wait too.
                if order.reduce_only or self._taken_slots() < run.rules.max_open:
                    self._send(ts, order)
            self._exchange.end_bar()
            snapshot = self._exchange.snapshot(ACCOUNT)
            equity.append(snapshot.equity)
            self._peak = max(self._peak, snapshot.equity)
            fills = self._exchange.fills(ACCOUNT)
            self._pause(fills[n_fills:], ts + run.frame_ns)
            self._filled |= {fill.client_order_id for fill in fills[n_fills:]}
            n_fills = len(fills)
            events += self._exchange.drain_events()
        return ReferenceRun(
            np.array(equity),
            tuple(self._exchange.fills(ACCOUNT)),
            tuple(self._exchange.bills(ACCOUNT)),
            tuple(e for e in events if isinstance(e, FundingPaid)),
            tuple(e for e in events if isinstance(e, Liquidated)),
        )

    def _plan(self, ts: int) -> Iterable[PlannedOrder]:
        run, fees = self._run, self._fees.at(ts)
        rules = run.rules._replace(maker_fee=fees.maker, taker_fee=fees.taker)
        snapshot = self._exchange.snapshot(ACCOUNT)
        row = int(np.searchsorted(run.score_as_of, ts))
        has_scores = row < run.score_as_of.size and run.score_as_of[row] == ts
        decides = has_scores and ts % (rules.frame_ns * rules.decide_every_bars) == 0
        state_row = int(np.searchsorted(run.state_as_of, ts, side="right")) - 1
        if state_row < 0:
            return ()
        market = run.states.at(int(run.state_as_of[state_row]))
        nothing = np.full(len(run.symbols), np.nan)
        expected = run.expected_return[row] if decides else nothing
        win = run.win_probability[row_in(run.win_probability, row)] if decides else nothing
        scores = Scores(market.as_of_ns, run.symbols, expected, win, nothing)
        plan = decide(scores, self._account(snapshot, ts), replace(market, as_of_ns=ts), rules)
        return plan.orders

    def _account(self, snapshot: AccountSnapshot, ts: int) -> AccountState:
        positions = []
        for s in snapshot.positions:
            p = s.position
            cross = initial_margin_cross(p.qty, s.mark, p.leverage)
            positions.append(
                OpenPosition(
                    symbol=p.symbol,
                    lots=p.lots,
                    qty=p.qty,
                    avg_entry=p.avg_entry,
                    mark=s.mark,
                    leverage=p.leverage,
                    margin=p.isolated_margin if self._mode is MarginMode.ISOLATED else cross,
                    opened_ns=p.opened_ns,
                    stop_price=math.nan if s.protection is None else (s.protection.stop_price or math.nan),
                )
            )
        return AccountState(
            ts,
            snapshot.equity,
            snapshot.available,
            tuple(positions),
            (),
            self._peak,
            snapshot.margin_ratio,
            dict(self._cooldown),
        )

    def _bar(self, t: int) -> VenueBar:
        run, b, a = self._run, self._run.bars, self._run.state
        day = run.states.day_of(int(b.ts_open[t]))
        n = range(len(run.symbols))
        return VenueBar(
            int(b.ts_open[t]),
            run.frame_ns,
            run.symbols,
            b.open[t],
            b.high[t],
            b.low[t],
            b.close[t],
            b.mark_open[t],
            b.mark_high[t],
            b.mark_low[t],
            b.mark_close[t],
            b.volume[t],
            b.quote_volume[t],
            b.funding_rate[t],
            np.array([today(a.daily, day, j)["adv"] for j in n]),
            np.array([today(a.daily, day, j)["sigma"] / BPS for j in n]),
        )

    def _send(self, ts: int, order: PlannedOrder) -> None:
        protection = None
        if not order.reduce_only:
            refusal = self._exchange.set_leverage(ACCOUNT, order.symbol, self._mode, order.leverage)
            if refusal is not None:
                return
            protection = Protection(
                None if math.isnan(order.stop_price) else order.stop_price,
                None if math.isnan(order.take_profit_price) else order.take_profit_price,
                TriggerSource.MARK if self._run.rules.stop_on_mark else TriggerSource.LAST,
                order.trailing_ratio,
            )
        purpose = "entry" if order.reason is None else order.reason.value
        request = OrderRequest(
            client_order_id("reference", ts, order.symbol, purpose),
            order.symbol,
            order.side,
            order.lots,
            order.kind,
            order.limit_price,
            margin_mode=self._mode,
            reduce_only=order.reduce_only,
            protection=protection,
        )
        sent = self._exchange.submit(ACCOUNT, request, exit_kind=order.reason)
        if not sent.status.is_final:
            self._waiting[request.client_order_id] = order

    def _taken_slots(self) -> int:
        """Return how many symbols have a position or an entry that waits."""
        held = {s.position.symbol for s in self._exchange.snapshot(ACCOUNT).positions}
        return len(held | {self._waiting[coid].symbol for coid in self._pending()})

    def _pending(self) -> set[str]:
        """Return the ids of the entries that still wait."""
        if not self._waiting:
            return set()
        return {order.client_order_id for order in self._exchange.orders(ACCOUNT) if not order.status.is_final}

    def _cancel_unwanted(self, ts: int) -> None:
        """Cancel entries whose time is up, and what is left of one whose position has closed again."""
        if not self._waiting:
            return
        pending = self._pending()
        held = {s.position.symbol for s in self._exchange.snapshot(ACCOUNT).positions}
        for coid, order in list(self._waiting.items()):
            is_over = coid in self._filled and order.symbol not in held
            if coid in pending and (is_over or (order.expires_ns is not None and ts >= order.expires_ns)):
                self._exchange.cancel(ACCOUNT, order.symbol, coid)
                pending.discard(coid)
            if coid not in pending:
                del self._waiting[coid]

    def _pause(self, fills: Iterable[Fill], bar_close_ns: int) -> None:
        for fill in fills:
            if fill.exit_kind in STOPPED_OUT:
                self._cooldown[fill.symbol] = bar_close_ns + self._run.rules.cooldown_ns


def _end(run: PreparedRun, j: int) -> int | None:
    end = int(run.delisted_ns[j])
    return None if end == np.iinfo(np.int64).max else end
