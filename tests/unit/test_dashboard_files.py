"""What of others' work is copied into the dashboard is what VENDOR.toml says, and all of it together stays small."""

from __future__ import annotations

import hashlib
import tomllib

from services.api.pages import FOLDER, PAGES, POLICY, load

VENDORED = {file["name"]: file for file in tomllib.loads((FOLDER / "vendor/VENDOR.toml").read_text())["file"]}
SIZE_MAX = 150_000


def test_every_vendored_file_is_the_one_that_was_named() -> None:
    there = {file.name for file in (FOLDER / "vendor").iterdir() if file.suffix in (".js", ".css")}
    assert set(VENDORED) == there
    for name, file in VENDORED.items():
        assert file["sha256"] == hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest(), name
        assert file["licence"] and file["source"].startswith("https://")


def test_the_licences_of_vendored_files_lie_beside_them() -> None:
    assert {"LICENSE.htm.txt", "LICENSE.preact.txt", "LICENSE.uplot.txt"} <= {file.name for file in (FOLDER / "vendor").iterdir()}


def test_a_whole_visit_stays_small() -> None:
    served = [file for path, file in load().items() if path not in PAGES and not path.endswith((".txt", ".toml"))]
    assert sum(len(file.data) for file in served) <= SIZE_MAX


def test_no_page_holds_a_script_of_its_own_or_one_from_elsewhere() -> None:
    assert "unsafe" not in POLICY
    for path in PAGES:
        text = load()[path].data.decode()
        assert "<script>" not in text and "http" not in text and "style=" not in text


def test_no_page_makes_markup_of_text() -> None:
    for file in FOLDER.glob("*.js"):
        text = file.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "dangerouslySet", "eval(", "new Function"):
            assert word not in text, (file.name, word)
