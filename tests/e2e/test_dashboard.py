"""The dashboard in a real browser: live, through a restart of the API, in the past, for everybody, and with hostile text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from e2e.market_env import TWO_CARDS, MarketEnv, market, opened_market, own_market
from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__ = ["market", "own_market"]  # fixtures

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
SEEN_MS = 15_000
BYTES_MAX = 150_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Reader:
    """A page, and everything it complained of."""

    def __init__(self, browser: Browser, market: MarketEnv, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(SEEN_MS)
        self.complaints: list[str] = []
        self.expected_away = False
        self.bytes = 0
        self._market = market
        self.page.on("console", lambda said: self._complain(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        self.page.on("response", lambda answer: self._count(answer.headers.get("content-length", "0"), answer.url))

    def _complain(self, text: str) -> None:
        if not (self.expected_away and "Failed to load resource" in text):
            self.complaints.append(text)

    def _count(self, length: str, url: str) -> None:
        if "/v1/" not in url:
            self.bytes += int(length)

    def open(self, place: str = "") -> Page:
        self.page.goto(f"{self._market.api}/{place}")
        self.page.get_by_role("navigation").wait_for()
        return self.page

    def close(self) -> None:
        self.page.close()
        assert [] == self.complaints


def test_a_job_is_seen_from_its_submission_to_its_end_without_a_reload(browser: Browser, market: MarketEnv) -> None:
    reader = Reader(browser, market)
    page = reader.open()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("heading", name="Machines")).to_be_visible()
    assert 2 == page.locator(".card.free").count()
    job = market.submit("--gpus", "2", "--name", "watched", "-c", "import sys, time; print('working', flush=True); time.sleep(4)")
    expect(page.get_by_role("link", name="watched")).to_be_visible()
    expect(page.locator(".card.taken")).to_have_count(2)
    page.get_by_role("link", name="watched").click()
    expect(page.locator(".state").first).to_contain_text("running")
    expect(page.get_by_label("Output of the job")).to_have_text("working\n")
    expect(page.locator(".state").first).to_contain_text("succeeded")
    market.wait_for_job(job, "succeeded")
    page.get_by_role("button", name="Show the whole wait").click()
    expect(page.get_by_text("It waited")).to_be_visible()
    assert reader.bytes <= BYTES_MAX
    reader.close()


def test_a_waiting_job_tells_why_and_what_would_place_it(browser: Browser, market: MarketEnv) -> None:
    job = market.submit("--gpus", "2", "--max-price", "0.10", "--name", "frugal", "-c", "1")
    reader = Reader(browser, market)
    page = reader.open()
    expect(page.get_by_role("region", name="Queue").get_by_text("asks more than it may cost")).to_be_visible()
    reader.open(f"#/jobs/{job}")
    expect(page.get_by_text("--max-price 0.40")).to_be_visible()
    market.bazaar("cancel", job)
    expect(page.locator(".state").first).to_contain_text("cancelled")
    reader.close()


def test_the_tape_has_no_hole_when_the_api_is_killed(browser: Browser, own_market: MarketEnv) -> None:
    market = own_market
    reader = Reader(browser, market)
    reader.expected_away = True
    page = reader.open("#/tape")
    market.bazaar("run", "--allow-simulated", "-c", "1")
    first = market.bazaar("show", "last", "--json").json["id"]
    before = market.job(first)["updated_seq"]
    page.locator(f'tr[data-seq="{before}"]').wait_for()
    market.kill("api")
    market.wait_until(lambda: market.job(first), "the API answers again")
    last = market.job(market.submit("-c", "2"))["submitted_seq"]
    page.locator(f'tr[data-seq="{last}"]').wait_for()
    expect(page.get_by_role("status")).to_have_text("live")
    seqs = [int(row.get_attribute("data-seq") or 0) for row in page.locator("tr[data-seq]").all()]
    assert list(range(max(seqs), min(seqs) - 1, -1)) == seqs
    assert min(seqs) < before < last
    reader.close()


def test_the_slider_shows_the_market_as_it_was_and_comes_back(browser: Browser, own_market: MarketEnv) -> None:
    market = own_market
    job = market.submit("--gpus", "2", "--name", "past", "-c", "import time; time.sleep(1.5)")
    matched = market.job(job)["submitted_seq"] + 1
    market.wait_for_job(job, "succeeded")
    reader = Reader(browser, market)
    page = reader.open()
    expect(page.locator(".card.free")).to_have_count(2)
    slider = page.get_by_label("Moment")
    slider.focus()
    slider.evaluate("(input, seq) => { input.value = seq; input.dispatchEvent(new Event('input', { bubbles: true })); }", matched)
    expect(page.locator(".card.taken")).to_have_count(2)
    expect(page.get_by_role("status")).to_have_text("as it was")
    expect(page.get_by_role("link", name="past")).to_be_visible()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    expect(page.locator(".card.taken")).to_have_count(0)
    expect(page.get_by_role("link", name="past")).to_have_count(0)
    page.get_by_role("button", name="Back to now").click()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator(".card.free")).to_have_count(2)
    reader.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out_by_colours_or_markup(browser: Browser, market: MarketEnv, scheme: str) -> None:
    job = market.submit("--name", "seen", "-c", "print('x')")
    market.wait_for_job(job, "succeeded")
    waiting = market.submit("--gpus", "2", "--max-price", "0.10", "-c", "1")
    node = market.get("/v1/nodes")["items"][0]["id"]
    reader = Reader(browser, market, scheme)
    for place, ready in (
        ("", "Machines"),
        ("#/jobs", "Jobs"),
        (f"#/jobs/{job}", "Output"),
        (f"#/jobs/{waiting}", "Why"),
        (f"#/nodes/{node}", "Jobs here"),
        ("#/tape", "Ledger"),
    ):
        page = reader.open(place)
        page.get_by_role("heading", name=ready, exact=True).wait_for()
        page.wait_for_load_state("load")
        found = Axe().run(page).response["violations"]
        assert [] == [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found], place
    page.goto(f"{market.api}/docs")
    page.get_by_role("heading", name="/v1/jobs", exact=True).wait_for()
    assert [] == [(one["id"], one["nodes"][0]["html"][:200]) for one in Axe().run(page).response["violations"]]
    market.bazaar("cancel", waiting)
    reader.close()


PAYLOADS = [
    text
    for planted in (
        "<script>document.title='PLANTED'</script>",
        "<img src=x onerror=\"document.title='PLANTED'\">",
        "<svg onload=document.title='PLANTED'>",
        "\"><script>document.title='PLANTED'</script>",
        "'-document.title='PLANTED'-'",
        "javascript:document.title='PLANTED'",
        "<iframe srcdoc=\"<script>parent.document.title='PLANTED'</script>\">",
        "${document.title='PLANTED'}",
        "{{constructor.constructor('document.title=1')()}}",
        "<a href=\"javascript:document.title='PLANTED'\">x</a>",
    )
    for text in (planted, planted.upper(), f"\x1b]0;{planted}\x07", f"\u202e{planted}", f"{planted}\x9b31m")
]


def test_hostile_text_is_shown_and_never_runs(browser: Browser, market: MarketEnv) -> None:
    assert 50 == len(PAYLOADS)
    program = "import sys; [print(text) for text in sys.argv[1:]]; sys.exit(3)"
    job = market.submit("--name", "hostile", "-c", program, "--", *PAYLOADS)
    market.wait_for_job(job, "failed")
    node = market.get("/v1/nodes")["items"][0]["id"]
    reader = Reader(browser, market)
    for place in ("", "#/jobs", f"#/jobs/{job}", f"#/nodes/{node}", "#/tape"):
        page = reader.open(place)
        if place.endswith(job):
            output = page.get_by_label("Output of the job")
            expect(output).to_contain_text("<script>document.title='PLANTED'</script>")
            text = output.inner_text()
            assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text), "a copied line must not command a terminal"
        if place == "#/tape":
            row = page.locator("tr", has_text=job).filter(has_text="JobSubmitted")
            row.get_by_role("button").click()
            expect(page.locator("pre")).to_contain_text("onerror")
        page.wait_for_timeout(200)
        assert "GPU Bazaar" == page.title()
    reader.close()


def test_a_page_lets_no_script_run_but_its_own(market: MarketEnv) -> None:
    import urllib.request

    with urllib.request.urlopen(f"{market.api}/", timeout=10) as answer:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy and "script-src 'self'" in policy
        assert 1 == len(answer.headers.get_all("content-security-policy"))
        assert b"<script>" not in answer.read()


@pytest.fixture
def guarded_market(tmp_path: Path) -> Iterator[MarketEnv]:
    """A market whose API is meant for other machines, so that it asks everybody for a read token."""
    yield from opened_market(tmp_path, *TWO_CARDS, "--public-host", "market.example")


def test_where_tokens_are_required_the_page_asks_for_one_and_keeps_it_in_its_tab(browser: Browser, guarded_market: MarketEnv) -> None:
    token = guarded_market.bazaar("token", "create", "wall").stdout.strip()
    reader = Reader(browser, guarded_market)
    reader.expected_away = True  # the refusals that make it ask
    page = reader.page
    page.goto(f"{guarded_market.api}/")
    page.get_by_label("Read token").fill("a guess")
    page.get_by_role("button", name="Look").click()
    page.get_by_label("Read token").fill(token)
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("heading", name="Machines")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("live")
    assert token == page.evaluate("sessionStorage.getItem('gpubazaar-token')")
    assert token not in page.url and page.evaluate("localStorage.length === 0 && document.cookie === ''")
    reader.close()
