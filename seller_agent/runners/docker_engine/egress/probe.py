"""Looks from inside one container's network what can be reached. A program of its own, standard library only, because it changes namespace.

`python probe.py JOB_PID NEIGHBOUR_PID` reads `{"own": [ip, ...], "shut": [[ip, port], ...], "open": [[ip, port], ...]}` on stdin.
It listens on every address of this machine and of the neighbour, so that a closed door is told from an empty room. Of other machines nobody
knows whether they listen: there the firewall itself must say no at once. It writes one object on stdout.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import socket
import sys
import time

CLONE_NEWNET = 0x40000000
PATIENCE_S = 2.0

Place = tuple[str, int]


def enter(namespace: int) -> None:
    """Sockets made from now on belong to this network namespace. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter a container's network; it needs CAP_SYS_ADMIN")


def listener() -> socket.socket:
    """Takes connections on every address of the present namespace."""
    return socket.create_server(("0.0.0.0", 0), backlog=64)


def knock(places: list[Place]) -> dict[Place, str]:
    """`open`, `refused` or `silent`, all asked at once."""
    found = dict.fromkeys(places, "silent")
    with selectors.DefaultSelector() as waiting:
        for place in found:
            asking = socket.socket()
            asking.setblocking(False)
            if asking.connect_ex(place) in (0, errno.EINPROGRESS):
                waiting.register(asking, selectors.EVENT_WRITE, place)
            else:
                asking.close()
        end = time.monotonic() + PATIENCE_S
        while waiting.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                asked = key.fileobj
                assert isinstance(asked, socket.socket)
                fault = asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[key.data] = "open" if not fault else "refused" if fault == errno.ECONNREFUSED else "silent"
                waiting.unregister(asked)
                asked.close()
        for key in list(waiting.get_map().values()):
            asked = key.fileobj
            assert isinstance(asked, socket.socket)
            asked.close()
    return found


def address_of(interface_listener: socket.socket) -> Place:
    """The listener's own address as others of its bridge see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
        return str(asking.getsockname()[0]), int(interface_listener.getsockname()[1])


def main() -> int:
    """See the module."""
    job, neighbour = (os.open(f"/proc/{int(pid)}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for pid in sys.argv[1:3])
    asked = json.load(sys.stdin)
    here = listener()
    port = int(here.getsockname()[1])
    works = {"open"} == set(knock([("127.0.0.1", port)]).values())
    enter(neighbour)
    beside = listener()
    beside_place = address_of(beside)
    works = works and knock([beside_place])[beside_place] == "open"
    enter(job)
    own: list[Place] = [(str(ip), port) for ip in asked["own"]]
    shut: list[Place] = [(str(ip), int(number)) for ip, number in asked["shut"]]
    wanted: list[Place] = [(str(ip), int(number)) for ip, number in asked["open"]]
    found = knock([*own, beside_place, *shut, *wanted])
    answer = {
        "works": works,
        "neighbour": found[beside_place] == "open",
        "leaks": sorted({ip for ip, number in own if found[ip, number] == "open"}),
        "unclosed": sorted({ip for ip, number in shut if found[ip, number] != "refused"}),
        "open": any(found[place] == "open" for place in wanted),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
