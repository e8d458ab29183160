"""Takes the pictures of the dashboard that stand in the documentation: a market of its own, a few jobs, a real browser.

Run: `python docs/screenshots.py [CHROMIUM]`. Ends everything that it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
BIN = Path(sys.executable).parent
CARDS = ("4xRTX 4090", "2xA100", "8xH100")
TRAIN = "import time\nfor epoch in range(90): print(f'epoch {epoch} loss {1 / (epoch + 1):.3f}', flush=True); time.sleep(1)"
JOBS = (
    ("resnet-lr3", "--gpus", "2", "-c", TRAIN),
    ("tokenise", "--gpus", "1", "-c", "import time; sum(range(10**8)); time.sleep(60)"),
    ("finetune", "--gpus", "8", "--vram", "80GB", "-c", "import time; time.sleep(90)"),
    ("eval", "--gpus", "1", "-c", "print('accuracy 0.912')"),
    ("sweep", "--gpus", "8", "--max-price", "0.20", "-c", "1"),
    ("distil", "--gpus", "2", "--gpu-model", "A100", "-c", "import time; time.sleep(80)"),
    ("distil-2", "--gpus", "2", "--gpu-model", "A100", "-c", "1"),
)


def bazaar(home: Path, *words: str) -> str:
    """A buyer's command."""
    environment = {**os.environ, "BAZAAR_HOME": str(home), "BAZAAR_ALLOW_SIMULATED": "1"}
    return subprocess.run([BIN / "bazaar", *words], env=environment, capture_output=True, text=True, check=True, cwd=home).stdout.strip()


def shoot(page: Page, name: str) -> None:
    """A picture of what the page shows now."""
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / f"{name}.png")


def pictures(page: Page, api: str, jobs: dict[str, str], scheme: str) -> None:
    """The main views in one colour scheme."""
    page.goto(api)
    page.get_by_role("heading", name="Machines").wait_for()
    shoot(page, f"market-{scheme}")
    page.goto(f"{api}/#/jobs/{jobs['sweep']}")
    page.get_by_text("Smallest change").wait_for()
    shoot(page, f"why-{scheme}")
    page.goto(f"{api}/#/jobs/{jobs['resnet-lr3']}")
    page.get_by_label("Output of the job").wait_for()
    shoot(page, f"job-{scheme}")


def main() -> None:
    """Start, look, end."""
    home = Path(tempfile.mkdtemp(prefix="bazaar-pictures-"))
    IMAGES.mkdir(exist_ok=True)
    bazaar(home, "wallet", "new")
    command = [str(BIN / "bazaar-market"), "up", "--port", "0", "--api-port", "0", "--json", "--runner", "process", "--price", "0.40"]
    for cards in CARDS:
        command += ["--simulate-gpus", cards]
    up = subprocess.Popen(command, env={**os.environ, "BAZAAR_HOME": str(home)}, stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        api = json.loads(up.stdout.readline())["api"]
        time.sleep(4)
        jobs = {name: bazaar(home, "run", "-d", "-y", "--name", name, *words) for name, *words in JOBS}
        time.sleep(8)
        with sync_playwright() as playwright:
            chromium = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 1000})
                pictures(page, api, jobs, scheme)
            browser.close()
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
