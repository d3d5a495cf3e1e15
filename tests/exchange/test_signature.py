"""What the server accepts as signed; the codes are OKX's."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace

import pytest

from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.signature import SignedRequest, check_signature
from crypto_qlib.exchange.embedded.wire import WireRefusal

NOW_NS = 1_700_000_000 * 10**9
STAMP = "2023-11-14T22:13:20.000Z"
KEY = ApiCredentials("key-1", "secret-1", "phrase-1")
KEYS = {KEY.key: KEY}
TARGET = "/api/v5/account/positions?instId=BTC-USDT-SWAP%2CETH-USDT-SWAP"


def signed(target: str = TARGET, body: bytes = b"", stamp: str = STAMP, **headers: str) -> SignedRequest:
    # The oracle: written out from OKX's documentation, sharing nothing with the code under test.
    text = (stamp + "POST" + target).encode() + body
    sign = base64.b64encode(hmac.new(b"secret-1", text, hashlib.sha256).digest()).decode()
    given = {
        "OK-ACCESS-KEY": "key-1",
        "OK-ACCESS-SIGN": sign,
        "OK-ACCESS-TIMESTAMP": stamp,
        "OK-ACCESS-PASSPHRASE": "phrase-1",
    } | headers
    return SignedRequest("POST", target, body, {name: value for name, value in given.items() if value})


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (TARGET, b""),
        (TARGET.replace("%2C", ","), b""),
        ("/api/v5/trade/order", b'{"instId":"BTC-USDT-SWAP"}'),
        ("/api/v5/trade/order", b'{"instId": "BTC-USDT-SWAP"}'),
    ],
)
def test_raw_target_and_body_are_what_is_signed(target: str, body: bytes) -> None:
    assert check_signature(signed(target, body), KEYS, NOW_NS, 0) is KEY


def test_one_changed_byte_is_refused() -> None:
    request = replace(signed(body=b'{"sz":"1"}'), body=b'{"sz":"9"}')
    with pytest.raises(WireRefusal) as refused:
        check_signature(request, KEYS, NOW_NS, 0)
    assert (refused.value.code, refused.value.http_status) == ("50113", 401)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"OK-ACCESS-KEY": ""}, "50103"),
        ({"OK-ACCESS-PASSPHRASE": ""}, "50104"),
        ({"OK-ACCESS-SIGN": ""}, "50106"),
        ({"OK-ACCESS-TIMESTAMP": ""}, "50107"),
        ({"OK-ACCESS-TIMESTAMP": "yesterday"}, "50112"),
        ({"OK-ACCESS-TIMESTAMP": "2023-11-14T22:13:20.000"}, "50112"),
        ({"OK-ACCESS-KEY": "key-2"}, "50111"),
        ({"OK-ACCESS-PASSPHRASE": "phrase-2"}, "50105"),
        ({"OK-ACCESS-SIGN": "bm8="}, "50113"),
    ],
)
def test_a_bad_header_has_its_own_code(headers: dict[str, str], code: str) -> None:
    with pytest.raises(WireRefusal) as refused:
        check_signature(signed(**headers), KEYS, NOW_NS, 0)
    assert refused.value.code == code


@pytest.mark.parametrize(("offset_s", "accepted"), [(0, True), (30, True), (-30, True), (31, False), (-31, False)])
def test_a_stamp_counts_within_thirty_seconds(offset_s: int, accepted: bool) -> None:
    if accepted:
        check_signature(signed(), KEYS, NOW_NS + offset_s * 10**9, 0)
        return
    with pytest.raises(WireRefusal) as refused:
        check_signature(signed(), KEYS, NOW_NS + offset_s * 10**9, 0)
    assert refused.value.code == "50102"


def test_a_client_on_the_markets_own_virtual_time_is_let_in() -> None:
    assert check_signature(signed(), KEYS, NOW_NS + 10**18, NOW_NS) is KEY
