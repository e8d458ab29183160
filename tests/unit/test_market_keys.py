"""The market's secrets: made once, read only by their owner, known outside by their public names."""

from __future__ import annotations

from pathlib import Path

import pytest

from events.errors import IdentityError
from services import market_keys


def test_keys_are_made_once_and_then_the_same_for_ever(tmp_path: Path) -> None:
    made = market_keys.load_or_make(tmp_path / "keys")
    assert made == market_keys.load_or_make(tmp_path / "keys")
    assert made != market_keys.load_or_make(tmp_path / "others")
    assert 32 == len(made.live_secret)


def test_the_broker_learns_public_names_only(tmp_path: Path) -> None:
    keys = market_keys.load_or_make(tmp_path / "keys")
    environment = keys.environment()
    assert ["A", "U", "U", "U"] == sorted(name[0] for name in environment.values())
    assert {"BAZAAR_NKEY_SYS", "BAZAAR_NKEY_CALLOUT", "BAZAAR_NKEY_MARKET", "BAZAAR_NKEY_ISSUER"} == set(environment)
    assert not any(seed in environment.values() for seed in (keys.sys, keys.callout, keys.market, keys.issuer))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    market_keys.load_or_make(tmp_path / "keys")
    (tmp_path / "keys" / "market.seed").chmod(0o644)
    with pytest.raises(IdentityError, match="open to others"):
        market_keys.load_or_make(tmp_path / "keys")


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    market_keys.load_or_make(tmp_path / "keys")
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(IdentityError, match="open to others"):
        market_keys.load_or_make(tmp_path / "keys")


@pytest.mark.parametrize("content", ["", "SUxyz", "nonsense", "SA" + "A" * 56])
def test_a_damaged_key_is_named(tmp_path: Path, content: str) -> None:
    market_keys.load_or_make(tmp_path / "keys")
    (tmp_path / "keys" / "market.seed").write_text(content)
    with pytest.raises(IdentityError, match="damaged") as caught:
        market_keys.load_or_make(tmp_path / "keys")
    assert "market.seed" in caught.value.why


@pytest.mark.parametrize("content", ["", "not hex", "ab" * 31])
def test_a_damaged_secret_is_named(tmp_path: Path, content: str) -> None:
    market_keys.load_or_make(tmp_path / "keys")
    (tmp_path / "keys" / "live.secret").write_text(content)
    with pytest.raises(IdentityError, match="damaged"):
        market_keys.load_or_make(tmp_path / "keys")


def test_only_who_asks_for_it_gets_what_opens_secrets(tmp_path: Path) -> None:
    keys = market_keys.load_or_make(tmp_path / "keys")
    opens = market_keys.load_sealing_key(tmp_path / "keys")
    assert keys.sealing_public == bytes(opens.verify_key)
    assert bytes(opens) not in {bytes(market_keys.signing_key(seed)) for seed in (keys.sys, keys.callout, keys.market, keys.matcher)}
    (tmp_path / "keys" / "sealing.seed").unlink()
    assert keys == market_keys.load_or_make(tmp_path / "keys"), "the public half is enough for everybody else"


def test_halves_that_do_not_fit_together_are_noticed(tmp_path: Path) -> None:
    market_keys.load_or_make(tmp_path / "keys")
    (tmp_path / "keys" / "sealing.public").write_text("ab" * 32)
    with pytest.raises(IdentityError, match="damaged"):
        market_keys.load_sealing_key(tmp_path / "keys")
