"""The web console in a real browser: what it shows, an order by hand, a fault, the clock, and what it refuses to others."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import async_playwright

from crypto_qlib.exchange.embedded.console import page
from crypto_qlib.exchange.embedded.server import EmbeddedExchange

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")
needs_browser = pytest.mark.skipif(not BROWSER, reason=f"no browser here: none of {', '.join(BROWSERS)} is installed")
BTC = "BTC-USDT-SWAP"


@pytest.fixture
async def tab(exchange: EmbeddedExchange) -> AsyncIterator[Any]:
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        opened = await browser.new_page(viewport={"width": 1500, "height": 1050})
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        await opened.goto(f"{exchange.base_url}/console")
        yield opened
        await browser.close()
        assert complaints == []


async def says(tab: Any, text: str) -> None:
    await tab.get_by_role("status").filter(has_text=text).wait_for(timeout=5000)


async def picture(tab: Any, name: str) -> None:
    """Keep a screenshot where a person asked for one."""
    if folder := os.environ.get("CONSOLE_PICTURES"):
        await tab.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@needs_browser
@pytest.mark.slow
async def test_a_person_trades_breaks_and_moves_the_exchange_by_hand(exchange: EmbeddedExchange, tab: Any) -> None:
    await tab.locator("#market tr").filter(has_text=BTC).wait_for()
    assert "prices are invented" in await tab.locator("header").inner_text()
    assert "100,000.00 USDT" in await tab.locator("#account").inner_text()
    await picture(tab, "console-fresh")

    await tab.locator("#market tr").filter(has_text="DOGE").click()
    assert await tab.locator("#inst").input_value() == "DOGE-USDT-SWAP"
    await tab.select_option("#inst", BTC)
    await tab.fill("#lever", "5")
    await tab.click("#setlever")
    await says(tab, "Leverage: done")
    await tab.fill("#size", "2")
    await tab.fill("#sl", "50000")
    await tab.click("#buy")
    await says(tab, "Buy: done")
    row = tab.locator("#positions tr").filter(has_text=BTC)
    await row.wait_for()
    held = exchange.venue.exchange.snapshot(exchange.credentials.key).positions[0]
    shown = await row.inner_text()
    assert "long" in shown
    assert f"{float(f'{held.reported_liquidation_price:.8g}'):,}" in shown
    assert f"{held.margin_ratio:,.2f}" in shown
    await tab.locator("#orders tr").filter(has_text="SL 50,000").wait_for()

    await tab.select_option("#type", "limit")
    await tab.fill("#price", "60000")
    await tab.fill("#sl", "")
    await tab.click("#buy")
    resting = tab.locator("#orders tr").filter(has_text="limit")
    await resting.wait_for()
    await picture(tab, "console-trading")
    await resting.get_by_role("button", name="Cancel").click()
    await says(tab, "Cancel: done")
    await resting.wait_for(state="detached")
    await tab.fill("#price", "")
    await tab.click("#buy")
    await says(tab, "Buy refused: 50014")

    before = exchange.clock.market_ns
    await tab.fill("#bars", "5")
    await tab.click("#stepN")
    await says(tab, "5 bars: done")
    assert exchange.clock.market_ns == before + 5 * exchange.clock.step_ns

    await tab.select_option("#fault", "suspend")
    await tab.fill("#faultargs", '{"symbol": "DOGEUSDT"}')
    await tab.click("#faulton")
    await tab.locator("#faults").filter(has_text="DOGEUSDT").wait_for()
    await tab.click("#faultoff")
    await tab.locator("#faults").filter(has_text="none is on").wait_for()

    await row.get_by_role("button", name="Close").click()
    await says(tab, f"Close {BTC}: done")
    await row.wait_for(state="detached")
    assert exchange.venue.exchange.snapshot(exchange.credentials.key).positions == ()


async def test_the_page_is_whole_in_itself_and_may_load_nothing_else(exchange: EmbeddedExchange) -> None:
    text, policy = page()
    assert b"http://" not in text
    assert b"https://" not in text
    assert "default-src 'none'" in policy
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{exchange.base_url}/console") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            assert answer.headers["Content-Security-Policy"] == policy
            assert answer.headers["X-Frame-Options"] == "DENY"
        async with http.get(f"{exchange.base_url}/console", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403, "a foreign name that points here is no way in"


OTHERS = [
    ({"Origin": "http://evil.example"}, "another site"),
    ({"Origin": "http://127.0.0.1:1"}, "another port is another site"),
    ({"Sec-Fetch-Site": "cross-site"}, "the browser says so itself"),
]


@pytest.mark.parametrize(("headers", "why"), OTHERS, ids=[row[1] for row in OTHERS])
async def test_another_sites_page_cannot_place_an_order(exchange: EmbeddedExchange, headers: dict[str, str], why: str) -> None:
    row = {"instId": BTC, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "1"}
    async with aiohttp.ClientSession() as http:
        url = f"{exchange.base_url}/admin/operate"
        async with http.post(url, json={"operation": "trade/order", "row": row}, headers=headers) as answer:
            assert answer.status == 403, why
        assert exchange.venue.exchange.counts(exchange.credentials.key)[0] == 0
        async with http.post(
            url, json={"operation": "trade/order", "row": row}, headers={"Origin": exchange.base_url}
        ) as answer:
            assert (await answer.json())["code"] == "0", "our own page may"
        async with http.post(url, json={"operation": "admin/open", "row": row}) as answer:
            assert answer.status == 400, "only what a person trades with"
