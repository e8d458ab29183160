"""Which socket a Docker host names."""

from __future__ import annotations

import pytest

from seller_agent.runners.docker_engine.daemon.host import socket_of
from seller_agent.runners.runner import RunnerError


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_host_it_is_dockers_own_socket(nothing: str | None) -> None:
    assert "/var/run/docker.sock" == socket_of(nothing)


@pytest.mark.parametrize("host", ["unix:///run/user/1000/docker.sock", "/run/user/1000/docker.sock"])
def test_a_socket_is_taken_as_a_path(host: str) -> None:
    assert "/run/user/1000/docker.sock" == socket_of(host)


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://me@there", "unix://docker.sock", "10.0.0.1:2375", "npipe:////./pipe/x"])
def test_a_docker_behind_a_network_is_refused_by_name(host: str) -> None:
    with pytest.raises(RunnerError, match="is no socket on this machine"):
        socket_of(host)
