"""Notebooks and containers through the whole market: real Jupyter in a real container, opened in a real browser through the tunnel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from e2e.docker_market import IMAGE, DockerMarket, docker_market, engine
from e2e.jupyter_image import JUPYTER_IMAGE, jupyter_root
from e2e.market_env import Running
from integration.docker_engine import Engine
from playwright.sync_api import Page, sync_playwright

__all__ = ["docker_market", "engine"]  # the fixtures

pytestmark = pytest.mark.timeout(180)

NOTEBOOK = ("notebook", "--allow-simulated", "--image", JUPYTER_IMAGE, "--memory", "1500MB", "-y")
BROWSER_MS = 60_000
CELL = "import os; print(6 * 7, open('data.txt').read(), os.environ['CUDA_VISIBLE_DEVICES'])"
WORKS = "echo ' and more' >> notes.md; echo weights > $BAZAAR_OUT/model; exec sleep 600"
NAME = "answers.ipynb"
ANSWER = "42 from the buyer 0,1"


def chromium() -> str:
    """The distribution's browser."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def notebooks(docker_market: DockerMarket, engine: Engine) -> DockerMarket:
    """The market, whose engine has an image with Jupyter."""
    engine.load(JUPYTER_IMAGE, jupyter_root())
    return docker_market


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A browser's page."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(BROWSER_MS)
        yield page
        browser.close()


def address(market: DockerMarket, running: Running) -> str:
    """The address that a command prints for the browser."""
    market.wait_until(lambda: running.lines or running.code is not None, "the address is printed", 90)
    assert running.code is None, running.err
    [url] = running.lines
    return url


def ask(url: str, what: str, token: str = "") -> tuple[int, Any]:
    """One request to the notebook's own API."""
    split = urlsplit(url)
    request = urllib.request.Request(f"{split.scheme}://{split.netloc}{split.path}{what}", headers={"Authorization": f"token {token}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def token_of(url: str) -> str:
    [token] = parse_qs(urlsplit(url).query)["token"]
    return token


def compute(page: Page, url: str) -> None:
    """As a person: open the address, make a notebook, run a cell, see the answer, save."""
    page.goto(url)
    page.click(".jp-LauncherCard[data-category=Notebook]")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.click(".jp-Notebook .jp-Cell .cm-content")
    page.keyboard.insert_text(CELL)
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(f".jp-OutputArea-output pre:text-is('{ANSWER}')")
    page.click('jp-button[data-command="docmanager:save"]')
    page.fill(".jp-Dialog input[type=text]", NAME)
    page.click(".jp-Dialog button.jp-mod-accept")


def saved_answer(notebook: str) -> str:
    """What the first cell of a notebook file has written."""
    return "".join(text for output in json.loads(notebook)["cells"][0]["outputs"] for text in output.get("text", ()))


def places_with(market: DockerMarket, secret: str) -> list[str]:
    """Where a secret stands that should stand nowhere: command lines, the ledger, logs, anything in the home or in the engine's logs."""
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, secret)]
    containers = Path(market.engine.folder / "data" / "containers")
    files = [*market.home.rglob("*"), *market.words.rglob("*.err"), *containers.glob("*/*-json.log")]
    return found + [str(path) for path in files if path.is_file() and path.name != "session.json" and _holds(path, secret)]


def _holds(path: Path, secret: str) -> bool:
    try:
        return secret.encode() in path.read_bytes()
    except OSError:
        return False


def test_a_notebook_with_two_cards_computes_in_a_browser_and_leaves_its_work(notebooks: DockerMarket, page: Page) -> None:
    market = notebooks
    (market.work / "data.txt").write_text("from the buyer")
    running = market.run_on("bazaar", *NOTEBOOK, "--gpus", "2", "--in", "data.txt", "--out", "fetched")
    url = address(market, running)
    assert ("http", "127.0.0.1") == (urlsplit(url).scheme, urlsplit(url).hostname)
    compute(page, url)
    token = token_of(url)

    def is_saved() -> bool:
        status, file = ask(url, f"api/contents/{NAME}", token)
        return status == 200 and any(cell.get("outputs") for cell in file["content"]["cells"])

    market.wait_until(is_saved, "the notebook is saved")
    assert 403 == ask(url, "api/contents")[0] == ask(url, "api/contents", "0" * 48)[0]
    assert [] == places_with(market, token)
    job = market.bazaar("show", "last", "--json").json
    assert ("running", "notebook", 2, 7200) == (job["state"], job["kind"], len(job["gpus"]), job["timeout_s"])

    page.goto("about:blank")
    running.tell(signal.SIGINT)
    assert 130 == running.ended()
    assert f"bazaar open {job['id']}" in running.err and f"bazaar close {job['id']}" in running.err
    again = market.run_on("bazaar", "open", job["id"])
    reopened = address(market, again)
    assert token == token_of(reopened)
    assert [NAME, "data.txt"] == sorted(entry["name"] for entry in ask(reopened, "api/contents", token)[1]["content"])

    told = market.bazaar("close", job["id"])
    assert f"bazaar results {job['id']}" in told.stderr
    job = market.job(job["id"])
    assert ("succeeded", "session_closed", 1) == (job["state"], job["reason"], job["attempt"])
    market.bazaar("results", job["id"], "--to", "fetched")
    assert [NAME] == os.listdir(market.work / "fetched")  # data.txt is what it was
    assert ANSWER == saved_answer((market.work / "fetched" / NAME).read_text()).strip()
    again.ended()
    market.ended_once(job["id"])
    assert [] == places_with(market, token)


def test_a_container_fetches_its_work_when_it_is_closed_from_elsewhere(notebooks: DockerMarket) -> None:
    market = notebooks
    (market.work / "notes.md").write_text("thoughts")
    asked = ("--allow-simulated", "--image", IMAGE, "-y", "--in", "notes.md", "--out", "left")
    running = market.run_on("bazaar", "container", *asked, "--", "sh", "-c", WORKS)
    market.wait_until(lambda: "it runs" in running.err, "the container runs")
    job_id = market.bazaar("show", "last", "--json").json["id"]
    assert ("running", "container", 10800) == tuple(market.job(job_id)[name] for name in ("state", "kind", "timeout_s"))
    market.bazaar("close", job_id)
    assert 0 == running.ended(), running.err
    assert {"model": "weights\n", "notes.md": "thoughts and more\n"} == {
        path.name: path.read_text() for path in (market.work / "left").iterdir()
    }
    market.ended_once(job_id)


def test_an_image_without_jupyter_is_told_to_the_buyer(notebooks: DockerMarket) -> None:
    market = notebooks
    told = market.bazaar("notebook", "--allow-simulated", "-y", code=100)
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", "exited_nonzero") == (job["state"], job["reason"])
    assert "This image has no Jupyter" in job["detail"]
    assert "This image has no Jupyter" in told.stderr
    market.ended_once(job["id"])


def test_a_session_that_waits_is_cancelled_not_closed(notebooks: DockerMarket) -> None:
    market = notebooks
    [job_id] = market.bazaar("notebook", "-d", "--vram", "900GB", "--allow-simulated").stdout.split()
    told = market.bazaar("close", job_id, code=1)
    assert f"bazaar cancel {job_id}" in told.stderr
    market.bazaar("cancel", job_id)
    told = market.bazaar("close", job_id, code=1)
    assert "It has ended: cancelled." in told.stderr
