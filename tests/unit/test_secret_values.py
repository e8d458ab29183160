"""Where secrets come from: a file, the environment, the person; and what is said when they come from nowhere. No message shows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from buyer_cli.secret_values import SecretReader, SecretValues
from buyer_cli.spec import SpecError
from events.sealing import SECRET_BYTES_MAX, SECRETS_MAX


def read(wanted: dict[str, str | None], said: list[str] | None = None, *, typed: str | None = None, **environment: str) -> SecretValues:
    ask = None if typed is None else lambda question: typed
    return SecretReader(ask, (said if said is not None else []).append, environment).read(wanted)


def test_a_file_comes_first_then_the_environment_then_the_person(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"from a file\n\xff")
    said: list[str] = []
    found = read({"A": str(tmp_path / "token"), "B": None, "C": None}, said, typed="from a person", A="not this", B="from outside")
    assert {"A": b"from a file\n\xff", "B": b"from outside", "C": b"from a person"} == found.values
    assert ["its file", "the environment", "what was typed"] == [line.split(" from ")[1].split(":")[0] for line in said]
    assert not any(value.decode(errors="replace") in repr(found) + repr(said) for value in found.values.values())


def test_each_secret_is_asked_for_once_however_many_jobs_want_it() -> None:
    asked: list[str] = []
    reader = SecretReader(lambda question: asked.append(question) or "x", lambda line: None, {})  # type: ignore[func-returns-value]
    assert reader.read({"A": None}) == reader.read({"A": None})
    assert ["Secret A"] == asked


def test_a_value_that_stands_nowhere_is_a_usage_error_with_the_ways_out() -> None:
    with pytest.raises(SpecError) as caught:
        read({"HF_TOKEN": None})
    assert ("--secret HF_TOKEN", True) == (caught.value.what, "--secret HF_TOKEN=FILE" in caught.value.hint)


def test_a_secret_in_the_place_of_a_file_name_is_not_shown() -> None:
    with pytest.raises(SpecError) as caught:
        read({"HF_TOKEN": "hunter2"})
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert "never the secret itself" in caught.value.hint


@pytest.mark.parametrize(("size", "words"), [(0, "empty"), (SECRET_BYTES_MAX + 1, "64 KiB")])
def test_a_secret_has_a_size(tmp_path: Path, size: int, words: str) -> None:
    (tmp_path / "secret").write_bytes(b"x" * size)
    with pytest.raises(SpecError, match=words):
        read({"K": str(tmp_path / "secret")})


def test_a_job_has_a_number_of_secrets() -> None:
    with pytest.raises(SpecError, match="at most 16"):
        read({f"K{number}": None for number in range(SECRETS_MAX + 1)})


def test_no_secrets_are_nothing() -> None:
    assert not read({})
