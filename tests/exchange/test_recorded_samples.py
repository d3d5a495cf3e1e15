"""Cards 150-199: OKX's recorded requests and answers, replayed.

Requests: each recorded request is posted as it was, to an exchange that lists the same swaps; it must be taken, or refused
for the documented reason. Answers: ccxt makes its unified object of OKX's recorded answer and of ours; the two must be filled
in the same places with the same types (``None`` where OKX gives ``None``), but for the documented differences.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt_async
import pytest

from crypto_qlib.core.clock import utc
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.signature import SignedRequest, sign
from tests.exchange.cards import allowed
from tests.exchange.recorded_cases import CASES, Case
from tests.exchange.sample_market import SampleMarket
from tests.exchange.test_embedded_server import NOW_NS

pytestmark = pytest.mark.real_data


def recorded(shared: Path) -> dict[str, Any]:
    path = shared / "reference" / "okx_v5_samples.json"
    if not path.exists():
        pytest.skip("recorded OKX samples are not here")
    # Some of the recordings were broken on their way: "28 .21006347".
    found: dict[str, Any] = json.loads(re.sub(r'"(-?[\d.]+) ([\d.]+)"', r'"\1\2"', path.read_text()))
    return found


def posted(exchange: EmbeddedExchange, method: str, target: str, body: Any = None) -> dict[str, Any]:
    key = exchange.credentials
    stamp = utc(exchange.clock.now_ns()).isoformat(timespec="milliseconds")
    raw = b"" if body is None else json.dumps(body).encode()
    headers = {
        "OK-ACCESS-KEY": key.key, "OK-ACCESS-PASSPHRASE": key.passphrase, "OK-ACCESS-TIMESTAMP": stamp,
        "OK-ACCESS-SIGN": sign(key.secret, stamp, method, target, raw),
    }  # fmt: skip
    answer: dict[str, Any] = json.loads(exchange.router.answer(SignedRequest(method, target, raw, headers), "127.0.0.1").body)
    return answer


# What a recorded request meets here that is not success, by what makes it so. Everything else must be code 0.
REFUSED = [
    ("BTC-USD-SWAP", "51001", "coin-margined swaps are not traded here"),
    ('"LTC-USDT"', "51001", "nor is spot"),
    ("instId=LTC-USDT&", "51001", "nor is spot"),
    ("instId=BTC-USDT&", "51001", "nor is spot"),
    ("trades?instId=BTC-USDT", "51001", "nor is spot"),
    ("641788883193122816", "51603", "the order of the recording does not exist here"),
    ("642666885133189120", "51400", "the same"),
    ("682998640696188928", "51503", "the same"),
    ("641788035268431872", "51400", "the same"),
    ("639637720528322560", "51400", "the same"),
    ('{"instId": "ADA-USDT-SWAP", "mgnMode": "cross"}', "51023", "nothing is held in net mode"),
    ('"tpTriggerPx": "49000"', "51279", "a take-profit of a sell below the market"),
]


@pytest.mark.parametrize("hedged", [False, True], ids=["net", "long/short"])
def test_card_150_every_recorded_request_is_understood(shared: Path, hedged: bool) -> None:
    exchange = EmbeddedExchange(SampleMarket(), EmbeddedOptions(start_ns=NOW_NS))
    if hedged:
        posted(exchange, "POST", "/api/v5/account/set-position-mode", {"posMode": "long_short_mode"})
        for base in ("LTC", "ETH", "ADA", "BTC"):
            row = {"instId": f"{base}-USDT-SWAP", "tdMode": "cross", "side": "buy", "posSide": "long", "ordType": "market"}
            assert posted(exchange, "POST", "/api/v5/trade/order", row | {"sz": "2"})["code"] == "0"
    wrong = []
    for request in recorded(shared)["requests"]:
        body = request.get("body")
        text = json.dumps(body) if body else ""
        if ('"posSide": "long"' in text) is not hedged or "asset/transfer" in request["path"]:
            continue
        answer = posted(exchange, request["http"], request["path"], body)
        rows = [row["sCode"] for row in answer["data"] if isinstance(row, dict) and "sCode" in row]
        found = next((code for code in (*rows, answer["code"]) if code != "0"), "0")
        expected = next((code for mark, code, _ in REFUSED if mark in text + request["path"]), "0")
        if found != expected:
            wrong.append((request["description"], request["path"], text, found, expected))
    assert wrong == []


def filled(thing: Any, path: str = "") -> dict[str, str]:
    """Return path -> type of every leaf that is not ``None``; of a list, its first element stands for all."""
    if isinstance(thing, dict):
        leaves: dict[str, str] = {}
        for name, value in thing.items():
            if name != "info":
                leaves |= filled(value, f"{path}.{name}")
        return leaves
    if isinstance(thing, list):
        return filled(thing[0], f"{path}[]") if thing else {}
    if thing is None:
        return {}
    return {path: "number" if isinstance(thing, int | float) and not isinstance(thing, bool) else type(thing).__name__}


@pytest.fixture
async def both(shared: Path) -> AsyncIterator[tuple[Any, Any, dict[str, Any]]]:
    """Yield (client of our exchange, client that is handed recorded answers, the recordings)."""
    samples = recorded(shared)["rest"]
    async with EmbeddedExchange(SampleMarket(), EmbeddedOptions(start_ns=NOW_NS)) as exchange:
        key = exchange.credentials
        terms = {"apiKey": key.key, "secret": key.secret, "password": key.passphrase, "enableRateLimit": False}
        options = {"options": {"defaultType": "swap"}}
        ours = ccxt_async.okx(terms | options | {"urls": {"api": {"rest": exchange.base_url}}})
        theirs = ccxt_async.okx(terms | options)
        rows = [row for case in samples["GET public/instruments"] for row in case["response"]["data"]]
        theirs.set_markets(theirs.parse_markets(rows))
        await ours.load_markets()
        yield ours, theirs, samples
        await ours.close()
        await theirs.close()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_card_160_ccxt_makes_the_same_of_our_answer_as_of_okx_own(both: tuple[Any, Any, Any], case: Case) -> None:
    ours, theirs, samples = both

    async def answered(*_: Any, **__: Any) -> Any:
        return json.loads(json.dumps(samples[case.endpoint][case.at]["response"]))

    theirs.fetch = answered
    expected = filled(await case.call(theirs, {}))
    found = filled(await case.call(ours, await case.prepare(ours)))
    names = sorted(set(expected) | set(found))
    differing = [f"{n}: {expected.get(n)} -> {found.get(n)}" for n in names if expected.get(n) != found.get(n)]
    assert [text for text in differing if text.split(":")[0] not in allowed(case.name)] == []
