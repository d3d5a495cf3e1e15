"""The headline figures in words: sentences a person understands, for the page, the terminal and the log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

BANNERS: Final = {
    "simulated": (
        "Simulated prices",
        "The market of this run is invented by a seeded simulator. The figures say how the machinery works, nothing about real "
        "markets.",
    ),
    "replay": (
        "Real market history, simulated execution",
        "Prices and volumes are recorded history replayed, funding and marks where they were given; orders, slippage, margin "
        "and liquidations are simulated on top of them.",
    ),
    "exchange": (
        "Real market history, simulated execution",
        "Prices, volumes and funding come from the exchange's public history; orders, slippage, margin and liquidations are "
        "simulated on top of them.",
    ),
}
"""(headline, explanation) by kind of market."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the page's head: name, value in words, a hint, and whether it is good (+1), bad (-1) or neither."""

    label: str
    value: str
    hint: str
    tone: int = 0


def percent(fraction: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return ``0.1234`` as ``12.3 %``; ``n/a`` where there is no such figure."""
    if fraction is None or not math.isfinite(fraction):
        return "n/a"
    text = f"{100.0 * fraction:+,.{digits}f}" if sign else f"{100.0 * fraction:,.{digits}f}"
    return f"{text} %".replace("-", "\u2212")


def money(amount: float | None, *, sign: bool = False) -> str:
    """Return ``-1234.5`` as ``-1,234 USDT`` (with a true minus sign); ``n/a`` where there is no such figure."""
    if amount is None or not math.isfinite(amount):
        return "n/a"
    digits = 0 if abs(amount) >= 100.0 else 2  # noqa: PLR2004 - cents matter below a hundred
    text = f"{amount:+,.{digits}f}" if sign else f"{amount:,.{digits}f}"
    return f"{text} USDT".replace("-", "\u2212")


def number(value: float | None, digits: int = 2) -> str:
    """Return ``value`` with ``digits`` decimals; ``n/a`` where there is no such figure."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:,.{digits}f}".replace("-", "\u2212")


def chance(share: float | None) -> str:
    """Return a chance in words: what none of thousands of draws showed is not impossible."""
    return "under 0.1 %" if share is not None and share < 5e-4 else percent(share)  # noqa: PLR2004 - half of the last digit


def signed(value: float) -> str:
    """Return ``-1234.5`` as ``-1,234`` with its sign (a true minus)."""
    return f"{value:+,.0f}".replace("-", "\u2212")


def _tone(value: float) -> int:
    return 0 if not math.isfinite(value) or value == 0.0 else 1 if value > 0.0 else -1


def tiles(p: dict[str, Any]) -> list[Tile]:
    """Return the figures of the page's head from the performance dictionary."""
    r, t, x, c = p["returns"], p["trades"], p["exposure"], p["costs"]
    received, paid = c["funding_received"], c["funding_paid"]
    liquidations = int(p["liquidations"]["count"])
    penalties = money(p["liquidations"]["penalties"])
    funding = received - paid
    flows = f"received {money(received)}, paid {money(paid)}"
    won = f"of {t['count']:,} closed trades; profit factor {number(t['profit_factor'])}"
    under = f"longest {number(r['longest_drawdown_days'], 0)} days under water"
    total, ratio, daily = r["total_return"], r["sharpe"], number(r["sharpe_daily"])
    return [
        Tile("Return", percent(total, sign=True), f"over {p['period']['days']:,.0f} days, after all costs", _tone(total)),
        Tile("Sharpe ratio", number(ratio), f"per year; {daily} from daily returns", _tone(ratio)),
        Tile("Max drawdown", percent(r["max_drawdown"]), under),
        Tile("Win rate", percent(t["win_rate"]), won),
        Tile("Mean leverage", f"{number(x['mean_leverage'])}\u00d7", f"at most {number(x['max_leverage'])}\u00d7 of equity"),
        Tile("Open positions", number(x["mean_open"], 1), f"on average, at most {x['max_open']:.0f}"),
        Tile("Fees", money(c["fees"]), f"slippage {money(c['slippage'])}"),
        Tile("Funding", money(funding, sign=True), flows, _tone(funding)),
        Tile("Turnover", f"{number(p['turnover_per_year'], 0)}\u00d7", "of mean equity per year, both sides counted"),
        Tile("Liquidations", f"{liquidations}", f"penalties {penalties}", -1 if liquidations else 0),
    ]


def sentences(p: dict[str, Any]) -> list[str]:
    """Return what happened, in a few plain sentences."""
    r, period, bench = p["returns"], p["period"], p["benchmarks"]
    total = r["total_return"]
    verb = "gained" if total >= 0.0 else "lost"
    lines = [
        f"From {period['start'][:10]} to {period['end'][:10]} the strategy {verb} {percent(abs(total))} "
        f"({money(p['attribution']['total'], sign=True)} on {money(r['initial_equity'])}) after fees, slippage and funding."
    ]
    btc, basket = bench["btc"]["total_return"], bench["equal_weight"]["total_return"]
    held = f"BTC held over the same time returned {percent(btc, sign=True)}, " if math.isfinite(btc) else ""
    lines.append(f"{held}an equal-weight basket of the universe {percent(basket, sign=True)}, both without leverage or costs.")
    lines.append(_gross_and_costs(p))
    m = r["mean_return_per_bar"]
    if math.isfinite(m["low"]):
        clear = "is" if m["low"] > 0.0 or m["high"] < 0.0 else "is not"
        lines.append(
            f"The mean return per bar {clear} distinguishable from zero: {1e4 * m['mean']:+.3f} bp, 95 % interval "
            f"{1e4 * m['low']:+.3f} to {1e4 * m['high']:+.3f} bp (block bootstrap).".replace("-", "\u2212")
        )
    idle = p["period"]["idle_since"]
    if idle:
        why = ", when the drawdown limit was reached" if p["vetoes"].get("drawdown") else ""
        lines.append(f"Nothing was held after {idle[:16].replace('T', ' ')}{why}: the rest of the curve is flat.")
    if p["ambiguous_bars"]["count"]:
        b = p["ambiguous_bars"]
        bars = "1 bar" if b["count"] == 1 else f"{b['count']:,} bars"
        lines.append(
            f"In {bars} the order of events inside the bar is unknown; the worse outcome is booked. The final equity lies "
            f"between {money(b['worst_case_equity'])} (booked) and at most {money(b['best_case_equity'])} (the kindest order)."
        )
    return lines + _what_if_lines(p) + _delisting_lines(p)


def _what_if_lines(p: dict[str, Any]) -> list[str]:
    w = p.get("what_if")
    if not w:
        return []
    lines = []
    if w["frame"] != w["traded_frame"]:
        lines.append(
            f"Capacity and risk of ruin are run on bars of {w['frame']}, on which the run decides; it traded on bars of "
            f"{w['traded_frame']}."
        )
    limit = w["capacity"]["capital_limit"]
    if math.isfinite(limit):
        lines.append(f"About {money(limit)} of capital halves the annual return of a small account.")
    asked = next((row for row in w["ruin"] if row["multiple"] == 1.0), None)
    if asked is not None:
        odds = asked["odds"]
        falls = ", ".join(f"{chance(share)} for {percent(float(depth), 0)}" for depth, share in odds["drawdown"].items())
        lines.append(
            f"Over {odds['horizon_days']} days, were the drawdown brake off, the chance of falling from a peak is {falls}; "
            f"of a liquidated position {chance(odds['liquidation'])} (block bootstrap of this history)."
        )
    return lines


def _delisting_lines(p: dict[str, Any]) -> list[str]:
    ended, closed = p["delisted_in_the_run"], p["positions_closed_by_delisting"]
    if not ended:
        return []
    if not closed:
        return [f"Stopped trading before the end, with no position held in them: {', '.join(ended)}."]
    each = ", ".join(f"{row['symbol']} {row['side']} ({money(row['net_pnl'], sign=True)})" for row in closed)
    return [f"Stopped trading before the end: {', '.join(ended)}. Positions closed at their last mark: {each}."]


def _gross_and_costs(p: dict[str, Any]) -> str:
    a = p["attribution"]
    gross = a["signal"] + a["market"]
    costs = a["fees"] + a["slippage"] + a["funding"] + a["liquidation"]
    verdict = ""
    if gross > 0.0 > gross + costs:
        verdict = " The signal earned money, and costs took more than all of it."
    elif gross <= 0.0:
        verdict = " The positions lost money even before costs."
    chosen, moved = money(a["signal"], sign=True), money(a["market"], sign=True)
    split = f"{chosen} from the choice of coins and sides, {moved} from moving with BTC"
    return f"Price moves brought {money(gross, sign=True)} ({split}), costs and funding {money(costs, sign=True)}.{verdict}"


def model_line(model: dict[str, Any] | None) -> str:
    """Return the model's out-of-sample RankIC in words; empty where there is none."""
    rank_ic = (model or {}).get("rank_ic")
    if not isinstance(rank_ic, dict) or rank_ic.get("mean") is None:
        return ""
    error = rank_ic.get("standard_error")
    spread = f" \u00b1 {error:.4f}" if error is not None else ""
    return f"{rank_ic['mean']:.4f}{spread} over {rank_ic.get('n_bars', 0):,} bars".replace("-", "\u2212")


def summary(p: dict[str, Any], page: str) -> list[str]:
    """Return the human summary of a run, one line a fact.

    Parameters
    ----------
    p : dict
        The performance dictionary.
    page : str
        Where the report lies.
    """
    r, t, x, c, a = p["returns"], p["trades"], p["exposure"], p["costs"], p["attribution"]
    rank_ic = model_line(p["model"]) or "n/a"
    return [
        f"Market            {BANNERS[p['market']][0]}, {p['period']['start'][:10]} to {p['period']['end'][:10]}, "
        f"{p['period']['symbols']} symbols",
        f"RankIC            {rank_ic} (out of sample)",
        f"Return            {percent(r['total_return'], sign=True)} ({money(a['total'], sign=True)}); "
        f"BTC held {percent(p['benchmarks']['btc']['total_return'], sign=True)}",
        f"Sharpe            {number(r['sharpe'])}, max drawdown {percent(r['max_drawdown'])}",
        f"Trades            {t['count']:,}, {percent(t['win_rate'])} won, expectancy {money(t['expectancy'], sign=True)}",
        f"Turnover          {number(p['turnover_per_year'], 0)}x equity a year",
        f"Costs             fees {money(c['fees'])}, slippage {money(c['slippage'])}, "
        f"funding {money(c['funding_received'] - c['funding_paid'], sign=True)}",
        f"Attribution       signal {money(a['signal'], sign=True)}, market {money(a['market'], sign=True)}, costs and funding "
        f"{money(a['slippage'] + a['fees'] + a['funding'] + a['liquidation'], sign=True)}",
        f"Liquidations      {p['liquidations']['count']}",
        f"Open positions    {number(x['mean_open'], 1)} on average, {x['max_open']:.0f} at most",
        f"Leverage          {number(x['mean_leverage'])}x on average, {number(x['max_leverage'])}x at most",
        *_risk_lines(p),
        f"Report            {page}",
    ]


def _risk_lines(p: dict[str, Any]) -> list[str]:
    """Return capacity, ruin and what the search says, where they are known."""
    lines = []
    w, trials = p.get("what_if"), p.get("trials")
    asked = next((row for row in w["ruin"] if row["multiple"] == 1.0), None) if w else None
    if w and asked:
        odds, limit = asked["odds"], w["capacity"]["capital_limit"]
        half = next((share for depth, share in odds["drawdown"].items() if float(depth) == 0.5), None)  # noqa: PLR2004
        room = f"; half the return is gone at {money(limit)} of capital" if math.isfinite(limit) else ""
        bars = f" (run on {w['frame']} bars, not {w['traded_frame']})" if w["frame"] != w["traded_frame"] else ""
        lines.append(
            f"Ruin              {chance(half)} chance of halving in {odds['horizon_days']} days, brake off{room}{bars}"
        )
    if trials:
        lines.append(
            f"Search            {trials['n_trials']} runs on this data: {percent(trials['deflated_sharpe'])} sure that it is "
            f"not luck, {percent(trials['probability_of_overfitting'])} chance of overfitting"
        )
    return lines
