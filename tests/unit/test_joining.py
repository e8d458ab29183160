"""Joining a market: addresses that end in a fingerprint, the line that carries them, and how far a market may be opened."""

from __future__ import annotations

import socket
import ssl
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import ascii_letters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import pinning
from events.errors import BazaarError, MarketUnreachable
from events.home import Endpoints, resolve, write_config
from events.invitation import BadLine, Invitation, OtherMarket, read_line, refuse_other
from events.pinning import WrongCertificate
from services.certificates import BadCertificate, Certificate, own
from services.reach import Asked, BadReach, OpenBind, Reach, api_for_others, broker_for_others, decide

PIN, OTHER = "a1" * 32, "b2" * 32
INVITATION = Invitation(f"tls://market.test:4222#sha256={PIN}", f"https://market.test:8420#sha256={PIN}", "cd" * 32)


# --- addresses ---


def test_an_address_is_parted_from_its_fingerprint_and_joined_again() -> None:
    for address in ("tls://host:4222", "https://host", "tls://[::1]:1"):
        assert (address, PIN) == pinning.split(pinning.pinned(address, PIN))
        assert (address, None) == pinning.split(address)
    assert "nats://host:4222" == pinning.pinned("nats://host:4222", PIN), "there is nothing to check"


@pytest.mark.parametrize("end", ["", "sha256=", f"sha256={PIN}0", f"sha256={PIN.upper()}", f"sha1={PIN}", f"sha256={PIN}#"])
def test_an_end_that_is_no_fingerprint_is_refused_wherever_it_comes_from(end: str, tmp_path: Path) -> None:
    with pytest.raises(BazaarError, match="no fingerprint"):
        pinning.split(f"tls://host:4222#{end}")
    with pytest.raises(BazaarError, match="no address"):
        resolve({"home": str(tmp_path), "market": f"tls://host:4222#{end}"}, {})


def test_a_fingerprint_behind_an_address_in_the_clear_is_refused() -> None:
    with pytest.raises(BazaarError, match="no fingerprint"):
        pinning.split(f"nats://host:4222#sha256={PIN}")


@contextmanager
def shows(certificate: Certificate) -> Iterator[str]:
    """Somebody who shows this certificate; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tls://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def hears(address: str, context: ssl.SSLContext) -> bytes:
    host, _, port = address.removeprefix("tls://").rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        return secure.recv(5)


def test_only_the_certificate_that_was_agreed_on_is_believed(tmp_path: Path) -> None:
    ours, theirs = own(tmp_path / "ours", ["market.test"]), own(tmp_path / "theirs", ["127.0.0.1"])
    with shows(ours) as address:
        context = pinning.context_for([pinning.pinned(address, ours.fingerprint)])
        assert context is not None
        assert b"hello" == hears(address, context), "whatever name it was made for"
        with pytest.raises(WrongCertificate) as refused:
            pinning.context_for([pinning.pinned(address, theirs.fingerprint)])
        assert ours.fingerprint in refused.value.why and theirs.fingerprint in refused.value.why
        with pytest.raises(ssl.SSLCertVerificationError):
            hears(address, ssl.create_default_context())
    with shows(theirs) as address, pytest.raises(ssl.SSLCertVerificationError):
        hears(address, context)  # it stands elsewhere now, or somebody in between
    with pytest.raises(MarketUnreachable):
        pinning.context_for([pinning.pinned(address, PIN)])


# --- the line ---


def test_a_line_is_read_as_it_was_written_also_with_its_command_in_front() -> None:
    line = INVITATION.line()
    assert INVITATION == read_line(line) == read_line(f"bazaar join {line}\n")
    bare = Invitation("nats://127.0.0.1:4222", None, "00" * 32)
    assert bare == read_line(bare.line())


@given(place=st.integers(min_value=0), letter=st.sampled_from(ascii_letters + "-_.0123456789 \x00"))
def test_a_line_with_any_character_changed_never_says_something_else(place: int, letter: str) -> None:
    line = INVITATION.line()
    place %= len(line)
    changed = line[:place] + letter + line[place + 1 :]
    try:
        found = read_line(changed)
    except BadLine:
        return
    assert INVITATION == found, "only a bit that means nothing may differ"


@given(st.text(max_size=60))
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(BadLine):
        read_line(text)


def test_a_line_of_a_later_kind_says_so() -> None:
    with pytest.raises(BadLine, match="of a kind that is not known"):
        read_line("bzj9." + INVITATION.line().partition(".")[2])


def test_what_was_joined_stands_in_the_settings(tmp_path: Path) -> None:
    write_config(tmp_path, {"market": INVITATION.market, "api": INVITATION.api, "market_id": INVITATION.market_id})
    found = resolve({"home": str(tmp_path)}, {})
    assert (INVITATION.market, INVITATION.api, INVITATION.market_id) == (found.market, found.api, found.market_id)
    assert INVITATION.market == tomllib.loads((tmp_path / "config.toml").read_text())["market"]
    elsewhere = resolve({"home": str(tmp_path)}, {"BAZAAR_MARKET": "tls://other:1"})
    assert (None, "tls://other:1") == (elsewhere.market_id, elsewhere.market), "id and fingerprint belong to the address they came with"


# --- how far ---


def test_beyond_this_machine_nothing_listens_in_the_clear_unless_it_is_said(tmp_path: Path) -> None:
    for asked in (Asked("0.0.0.0"), Asked("::"), Asked("192.0.2.1"), Asked(api_bind="0.0.0.0")):
        with pytest.raises(OpenBind):
            decide(asked, tmp_path)
    assert not list(tmp_path.iterdir())
    assert None is decide(Asked("0.0.0.0", insecure=True), tmp_path).tls
    assert None is decide(Asked("127.0.0.2"), tmp_path).tls
    reach = decide(Asked("0.0.0.0", self_signed=True), tmp_path)
    assert reach.tls is not None and reach.tls == reach.api_tls
    assert 0o600 == reach.tls.key.stat().st_mode & 0o777
    assert reach.tls.fingerprint == decide(Asked("0.0.0.0", self_signed=True), tmp_path).tls.fingerprint, "made once"  # type: ignore[union-attr]


def test_behind_a_proxy_of_this_machine_the_api_leaves_tls_to_it(tmp_path: Path) -> None:
    proxied = decide(Asked("0.0.0.0", "127.0.0.1", self_signed=True, public_hosts=("Market.Test",)), tmp_path)
    assert proxied.tls is not None and proxied.api_tls is None
    assert ["--public-host", "market.test"] == proxied.api_options()


@pytest.mark.parametrize(
    "asked",
    [
        Asked("market.test"),
        Asked("1.2.3"),
        Asked(tls_cert="c.pem"),
        Asked(tls_key="k.pem"),
        Asked(tls_cert="c", tls_key="k", self_signed=True),
        Asked(public_hosts=("https://market.test",)),
        Asked(public_hosts=("market.test:443",)),
        Asked(public_hosts=("",)),
        Asked(public_hosts=("a b",)),
    ],
)
def test_options_that_cannot_be_meant_are_refused(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(BadReach):
        decide(asked, tmp_path)


def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    ours, theirs = own(tmp_path / "ours", ["a.test"]), own(tmp_path / "theirs", ["a.test"])
    given = Asked("0.0.0.0", tls_cert=str(ours.certificate), tls_key=str(theirs.key))
    with pytest.raises(BadCertificate):
        decide(given, tmp_path)
    with pytest.raises(BadCertificate):
        decide(Asked(tls_cert=str(tmp_path / "none"), tls_key=str(ours.key)), tmp_path)
    found = decide(Asked("0.0.0.0", tls_cert=str(ours.certificate), tls_key=str(ours.key)), tmp_path)
    assert found == Reach("0.0.0.0", "0.0.0.0", ours)


def endpoints(**values: object) -> Endpoints:
    known = {"market": f"tls://127.0.0.1:4222#sha256={PIN}", "api": f"https://127.0.0.1:8420#sha256={PIN}", "pid": 1}
    return Endpoints(**(known | values))  # type: ignore[arg-type]


def test_others_are_told_addresses_that_they_can_reach() -> None:
    everywhere = endpoints(bind="0.0.0.0", api_bind="0.0.0.0")
    assert f"tls://market.test:4222#sha256={PIN}" == broker_for_others(everywhere, "market.test", pin=True)
    assert "https://market.test:8420" == api_for_others(everywhere, "market.test", pin=False)
    assert f"tls://192.0.2.7:4222#sha256={PIN}" == broker_for_others(endpoints(bind="192.0.2.7"), None, pin=True)
    assert f"tls://[2001:db8::1]:4222#sha256={PIN}" == broker_for_others(everywhere, "2001:db8::1", pin=True)
    proxied = endpoints(bind="0.0.0.0", public_hosts=("market.test",), api="http://127.0.0.1:8420")
    assert ("tls://market.test:4222", "https://market.test") == (
        broker_for_others(proxied, None, pin=False),
        api_for_others(proxied, None, pin=True),
    )
    assert None is api_for_others(endpoints(bind="0.0.0.0"), "market.test", pin=True), "reads then go over the broker"
    with pytest.raises(BadReach):
        broker_for_others(everywhere, "not a host", pin=True)


def test_a_home_keeps_the_market_that_it_has(tmp_path: Path) -> None:
    refuse_other(tmp_path, INVITATION, False)
    write_config(tmp_path, {"market": "tls://old.test:1", "market_id": INVITATION.market_id})
    refuse_other(tmp_path, INVITATION, False)  # the same market has moved
    write_config(tmp_path, {"market_id": OTHER})
    with pytest.raises(OtherMarket, match="another market"):
        refuse_other(tmp_path, INVITATION, False)
    refuse_other(tmp_path, INVITATION, True)
    write_config(tmp_path, {"market_id": None})
    with pytest.raises(OtherMarket):
        refuse_other(tmp_path, INVITATION, False)
