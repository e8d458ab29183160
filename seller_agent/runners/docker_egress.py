"""The network of jobs that may reach the internet: stub."""

from __future__ import annotations


def no_network() -> str | None:
    """For a node that never offers one."""
    return None


class Egress:
    """Proved or not."""

    def network(self) -> str | None:
        """Its name while it is proved."""
        return None
