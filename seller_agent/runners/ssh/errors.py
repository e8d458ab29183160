"""Why a host cannot be used over SSH, in words for its owner. Only HostAway passes by itself."""

from __future__ import annotations

from events.errors import BazaarError


class SshFailed(BazaarError):
    """The host cannot be used as it is."""

    what = "A host cannot be used over SSH."


class HostAway(SshFailed):
    """It does not answer, or the connection was lost: what was asked may have been done. This passes."""

    what = "A host cannot be reached over SSH."


class HostKeyWrong(SshFailed):
    """Somebody else answered, or the host was set up again. Nothing was sent to it but a greeting."""

    what = "A host showed another key than the one pinned for it: nothing was run there."


class LoginRefused(SshFailed):
    """The host does not let this user in with this key."""

    what = "A host refused the login."


class ForwardingRefused(SshFailed):
    """The host's SSH server does not forward sockets."""

    what = "The host's SSH server forwards no connections."
