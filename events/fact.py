"""The one parent of every fact. Facts are past tense, never edited; fields are only ever added, with defaults."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True, omit_defaults=True, gc=False):
    """Something that happened. `kw_only` is not inherited: every subclass repeats it."""
