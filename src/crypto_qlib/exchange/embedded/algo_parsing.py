"""A posted algo order, as OKX words it, to a :class:`~crypto_qlib.venue.trigger_records.TriggerRequest`.

Source: OKX API v5, ``POST /trade/order-algo`` and ``/trade/amend-algos``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import ExitKind, Side, TriggerSource
from crypto_qlib.exchange.embedded import order_parsing as parse
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal
from crypto_qlib.venue.trigger_records import Trailing, TriggerKind, TriggerLeg, TriggerRequest

_MARKET: Final = "-1"
_LEGS: Final = (("sl", ExitKind.STOP), ("tp", ExitKind.TAKE_PROFIT))
_SOURCES: Final = {source.value: source for source in TriggerSource}
_SIDES: Final = {"buy": Side.BUY, "sell": Side.SELL}


def posted_trigger(row: Row, item: Instrument, *, hedged: bool, order_client_id: str) -> TriggerRequest:
    """Return the trigger order in ``row``.

    Parameters
    ----------
    row : dict
        One posted object, "not sent" values already dropped.
    order_client_id : str
        Client id of the order it becomes.

    Raises
    ------
    WireRefusal
        51000 for a malformed parameter or a kind not served, 50014 for a missing one, 51020/51121 size.
    """
    kind = {kind.value: kind for kind in TriggerKind}.get(parse.required(row, "ordType"))
    if kind is None:
        raise WireRefusal("51000", "ordType")
    side = _SIDES.get(parse.required(row, "side"))
    if side is None:
        raise WireRefusal("51000", "side")
    whole = "closeFraction" in row
    if whole and str(row["closeFraction"]) != "1":
        raise WireRefusal("51000", "closeFraction")
    legs, trailing = _levels(row, kind)
    # ``clOrdId`` is what clients send that know no other id.
    client_id = parse.client_id(row, "algoClOrdId") or parse.client_id(row, "clOrdId")
    reduce_only = not hedged and str(row.get("reduceOnly", "false")).lower() == "true"
    attached, _ = parse.attached(row, reduce_only=False)
    return TriggerRequest(
        client_id,
        order_client_id,
        item.symbol,
        side,
        0 if whole else parse.lots(row, "sz", item),
        kind,
        legs,
        trailing,
        parse.margin_mode(row, "tdMode"),
        parse.position_side(row, hedged=hedged),
        reduce_only,
        attached,
    )


def amended_trigger(row: Row, request: TriggerRequest, item: Instrument) -> TriggerRequest:
    """Return ``request`` with the size, levels, prices and sources ``row`` changes; 50014 where it changes nothing."""
    renamed = {_plain(name): value for name, value in row.items() if name.startswith("new")}
    if not renamed:
        raise WireRefusal("50014", "newSz")
    lots = parse.lots(row, "newSz", item) if "newSz" in row else request.lots
    legs = tuple(_amended_leg(renamed, leg) for leg in request.legs)
    for prefix, exit_kind in _LEGS:
        is_new = all(leg.exit_kind is not exit_kind for leg in request.legs) and f"{prefix}TriggerPx" in renamed
        if is_new and request.kind in (TriggerKind.CONDITIONAL, TriggerKind.OCO):
            legs = (*legs, _leg(renamed, prefix, exit_kind))
    kind = TriggerKind.OCO if len(legs) > 1 else request.kind
    return replace(request, lots=lots, legs=legs, kind=kind)


def _levels(row: Row, kind: TriggerKind) -> tuple[tuple[TriggerLeg, ...], Trailing | None]:
    if kind is TriggerKind.TRIGGER:
        price = _price(row, "orderPx") if "orderPx" in row else _price(row, "ordPx")
        return (TriggerLeg(None, parse.number(row, "triggerPx"), price, _source(row, "triggerPxType")),), None
    if kind is TriggerKind.TRAILING:
        return (), _trailing(row)
    legs = tuple(_leg(row, prefix, exit_kind) for prefix, exit_kind in _LEGS if f"{prefix}TriggerPx" in row)
    if not legs or (kind is TriggerKind.OCO and len(legs) < len(_LEGS)):
        raise WireRefusal("50014", "tpTriggerPx" if legs and legs[0].exit_kind is ExitKind.STOP else "slTriggerPx")
    return legs, None


def _trailing(row: Row) -> Trailing:
    if ("callbackRatio" in row) is ("callbackSpread" in row):
        raise WireRefusal("51000", "callbackRatio")
    ratio = parse.number(row, "callbackRatio") if "callbackRatio" in row else None
    if ratio is not None and not ratio < 1.0:
        raise WireRefusal("51000", "callbackRatio")
    spread = parse.number(row, "callbackSpread") if "callbackSpread" in row else None
    active = parse.number(row, "activePx") if "activePx" in row else None
    return Trailing(ratio, spread, active)


def _leg(row: Row, prefix: str, kind: ExitKind) -> TriggerLeg:
    source = _source(row, f"{prefix}TriggerPxType")
    return TriggerLeg(kind, parse.number(row, f"{prefix}TriggerPx"), _price(row, f"{prefix}OrdPx"), source)


def _amended_leg(renamed: Row, leg: TriggerLeg) -> TriggerLeg:
    prefix = {ExitKind.STOP: "sl", ExitKind.TAKE_PROFIT: "tp"}.get(leg.exit_kind, "") if leg.exit_kind else ""
    trigger = f"{prefix}TriggerPx" if prefix else "triggerPx"
    order = f"{prefix}OrdPx" if prefix else "ordPx"
    if trigger in renamed:
        leg = replace(leg, level=parse.number(renamed, trigger))
    if order in renamed:
        leg = replace(leg, price=_price(renamed, order))
    return replace(leg, source=_source(renamed, f"{trigger}Type")) if f"{trigger}Type" in renamed else leg


def _plain(name: str) -> str:
    rest = name.removeprefix("new")
    return rest[:1].lower() + rest[1:]


def _price(row: Row, name: str) -> float | None:
    return None if str(row.get(name, _MARKET)) == _MARKET else parse.number(row, name)


def _source(row: Row, name: str) -> TriggerSource:
    found = _SOURCES.get(str(row.get(name, TriggerSource.LAST.value)))
    if found is None:
        raise WireRefusal("51000", name)
    return found
