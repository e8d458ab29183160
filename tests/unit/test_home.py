"""Where settings come from, which files of a home count, and who acts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from events import home
from events.errors import BazaarError, IdentityError, MarketUnreachable
from events.home import KnownWallet
from events.values import Role

ALICE, BOB, CAROL = ("0x" + digit * 40 for digit in "abc")


def settings_of(folder: Path, flags: dict[str, str | None] | None = None, **environment: str) -> home.Settings:
    return home.resolve(flags or {}, {"BAZAAR_HOME": str(folder), **environment})


def running_market(folder: Path, *, pid: int | None = None, **more: object) -> None:
    content = {"market": "nats://127.0.0.1:1111", "api": "http://127.0.0.1:2222", "pid": pid or os.getpid(), **more}
    (folder / "market").mkdir()
    (folder / "market" / "endpoints.json").write_text(json.dumps(content))


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def wallet_file(folder: Path, name: str, address: str) -> None:
    home.write_private(folder / "keystore" / f"{name}.json", json.dumps({"address": address[2:], "version": 3}).encode())


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_running_market(tmp_path: Path) -> None:
    running_market(tmp_path)
    assert ("nats://127.0.0.1:1111", home.RUNNING) == settings_of(tmp_path).settings["market"]
    home.write_config(tmp_path, {"market": "nats://file:1"})
    assert ("nats://file:1", "config.toml") == settings_of(tmp_path).settings["market"]
    assert ("nats://env:1", "BAZAAR_MARKET") == settings_of(tmp_path, BAZAAR_MARKET="nats://env:1").settings["market"]
    assert ("nats://flag:1", "flag") == settings_of(tmp_path, {"market": "nats://flag:1"}, BAZAAR_MARKET="nats://env:1").settings["market"]


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert settings_of(tmp_path, BAZAAR_WALLET="").wallet is None


def test_without_any_market_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MarketUnreachable) as caught:
        _ = settings_of(tmp_path).market
    assert "No market is running here and none is configured." == caught.value.what
    assert "bazaar-market up" in caught.value.hint
    assert "BAZAAR_MARKET" in caught.value.hint


def test_the_endpoints_of_a_market_that_was_killed_do_not_count(tmp_path: Path) -> None:
    running_market(tmp_path, pid=ended_process())
    assert settings_of(tmp_path).endpoints is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"market": 1}', '{"market":"a","api":"b","pid":-1}', '{"market":"a","api":"b","pid":1e99}', "[" * 100000]
)
def test_damaged_endpoints_count_as_no_market(tmp_path: Path, content: str) -> None:
    (tmp_path / "market").mkdir()
    (tmp_path / "market" / "endpoints.json").write_text(content)
    assert settings_of(tmp_path).endpoints is None


def test_more_keys_in_the_endpoints_are_welcome(tmp_path: Path) -> None:
    running_market(tmp_path, market_id="ab" * 32, matcher_pid=4)
    assert "ab" * 32 == settings_of(tmp_path).market_id


def test_the_market_id_of_one_market_is_not_taken_for_that_of_another(tmp_path: Path) -> None:
    home.write_config(tmp_path, {"market": "nats://joined:1", "market_id": "cd" * 32})
    assert "cd" * 32 == settings_of(tmp_path).market_id
    assert settings_of(tmp_path, BAZAAR_MARKET="nats://other:1").market_id is None
    running_market(tmp_path, market_id="ab" * 32)
    assert "cd" * 32 == settings_of(tmp_path).market_id


def test_a_broker_address_may_come_without_scheme_and_several_at_once(tmp_path: Path) -> None:
    assert "nats://10.0.0.1:4222,tls://b:4222" == settings_of(tmp_path, BAZAAR_MARKET="10.0.0.1:4222, tls://b:4222").market


@pytest.mark.parametrize("address", ["ftp://x:1", "nats://", "nats://x:99999", "nats://x:1\n", "nats://u:p@x:1", "nats://\x1b[2J", "a b"])
def test_an_address_that_is_none_is_refused_with_its_origin(tmp_path: Path, address: str) -> None:
    with pytest.raises(BazaarError) as caught:
        settings_of(tmp_path, BAZAAR_MARKET=address)
    assert "BAZAAR_MARKET" in caught.value.why
    assert "\x1b" not in caught.value.what


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)])
def test_simulated_cards_are_allowed_by_a_variable(tmp_path: Path, value: str, allowed: bool) -> None:
    assert allowed == settings_of(tmp_path, BAZAAR_ALLOW_SIMULATED=value).allow_simulated


def test_simulated_cards_are_allowed_by_the_file(tmp_path: Path) -> None:
    home.write_config(tmp_path, {"allow_simulated": True})
    assert settings_of(tmp_path).allow_simulated


def test_writing_a_setting_keeps_everything_else_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('# mine\nwallet = "bob"\nmarket = "nats://old:1"\n\n[runner]\nmarket = "kept"\n')
    home.write_config(tmp_path, {"market": "nats://new:1", "token": 'quo"te \\ é'})
    text = (tmp_path / "config.toml").read_text()
    assert text.startswith('# mine\nwallet = "bob"\n')
    config = home.read_config(tmp_path)
    assert {"wallet": "bob", "market": "nats://new:1", "token": 'quo"te \\ é', "runner": {"market": "kept"}} == config
    home.write_config(tmp_path, {"token": None})
    assert "token" not in home.read_config(tmp_path)


def test_a_damaged_config_file_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("market = ")
    with pytest.raises(BazaarError) as caught:
        settings_of(tmp_path)
    assert "config.toml" in caught.value.why
    with pytest.raises(BazaarError):
        home.write_config(tmp_path, {"wallet": "x"})
    assert "market = " == (tmp_path / "config.toml").read_text()


def test_a_setting_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("wallet = 7\n")
    with pytest.raises(BazaarError) as caught:
        settings_of(tmp_path)
    assert "`wallet`" in caught.value.why


def test_the_rows_for_a_person_show_origins_and_no_secret(tmp_path: Path) -> None:
    rows = {name: (value, origin) for name, value, origin in settings_of(tmp_path, {"wallet": "bob"}, BAZAAR_TOKEN="very secret").rows()}
    assert ("(set)", "BAZAAR_TOKEN") == rows["token"]
    assert ("bob", "flag") == rows["wallet"]
    assert (str(tmp_path), "BAZAAR_HOME") == rows["home"]


def test_a_private_file_is_readable_by_its_owner_only_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "secret"
    home.write_private(path, b"one")
    home.write_private(path, b"two")
    with pytest.raises(FileExistsError):
        home.write_private(path, b"three", replace=False)
    assert b"two" == home.read_secret(path, "It")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(IdentityError) as caught:
        home.read_secret(path, "The passphrase file")
    assert "chmod 600" in caught.value.hint


def test_the_only_wallet_acts(tmp_path: Path) -> None:
    wallet_file(tmp_path, "default", ALICE)
    assert KnownWallet("default", ALICE) == home.choose_wallet(settings_of(tmp_path), Role.BUYER)


def test_the_markets_own_wallets_are_never_picked_as_the_buyer(tmp_path: Path) -> None:
    wallet_file(tmp_path, "market", ALICE)
    wallet_file(tmp_path, "seller", BOB)
    with pytest.raises(IdentityError) as caught:
        home.choose_wallet(settings_of(tmp_path), Role.BUYER)
    assert "bazaar wallet new" in caught.value.hint
    wallet_file(tmp_path, "mine", CAROL)
    assert "mine" == home.choose_wallet(settings_of(tmp_path), Role.BUYER).name
    assert "seller" == home.choose_wallet(settings_of(tmp_path), Role.SELLER).name
    assert "market" == home.choose_wallet(settings_of(tmp_path), Role.OPERATOR).name


def test_of_several_wallets_none_is_guessed_and_all_are_listed(tmp_path: Path) -> None:
    wallet_file(tmp_path, "alice", ALICE)
    wallet_file(tmp_path, "bob", BOB)
    with pytest.raises(IdentityError) as caught:
        home.choose_wallet(settings_of(tmp_path), Role.BUYER)
    assert f"They are: alice ({ALICE}), bob ({BOB})." == caught.value.why
    assert "bob" == home.choose_wallet(settings_of(tmp_path, BAZAAR_WALLET="bob"), Role.BUYER).name
    assert "bob" == home.choose_wallet(settings_of(tmp_path, {"wallet": "0x" + BOB[2:].upper()}), Role.BUYER).name


def test_a_wallet_that_is_not_here_is_named_with_those_that_are(tmp_path: Path) -> None:
    wallet_file(tmp_path, "alice", ALICE)
    with pytest.raises(IdentityError) as caught:
        home.choose_wallet(settings_of(tmp_path, BAZAAR_WALLET="bobo\x1b[2J"), Role.BUYER)
    assert "\x1b" not in caught.value.what
    assert "alice" in caught.value.why


def test_an_address_with_a_typing_error_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError) as caught:
        home.choose_wallet(settings_of(tmp_path, BAZAAR_WALLET="0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"), Role.BUYER)
    assert "is no address" in caught.value.what


def test_a_delegation_alone_is_enough_to_act(tmp_path: Path) -> None:
    assert KnownWallet("", BOB) == home.choose_wallet(settings_of(tmp_path), Role.BUYER, delegated=[BOB])


def test_files_that_are_no_keystore_are_passed_over(tmp_path: Path) -> None:
    wallet_file(tmp_path, "good", ALICE)
    for name, content in {"bad": b"{", "odd": b'{"address": "zz"}', "list": b"[1]", "deep": b"[" * 100_000}.items():
        home.write_private(tmp_path / "keystore" / f"{name}.json", content)
    assert [KnownWallet("good", ALICE)] == home.known_wallets(tmp_path)
