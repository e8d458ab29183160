"""The flags of a job's specification for click, made from `spec_keys.py`, and the split of a command line at its `--`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from buyer_cli.spec_keys import KEYS, Shape

T = TypeVar("T")


def spec_flags(function: Callable[..., T]) -> Callable[..., T]:
    """Gives a command every flag of the specification and `--file`; it receives them as `flags` (by key) and `job_file`."""

    @functools.wraps(function)
    def wrapped(*args: Any, job_file: str | None, **kwargs: Any) -> T:
        flags = {key.name: kwargs.pop(_parameter(key.name)) for key in KEYS if key.flag}
        return function(*args, flags=flags, job_file=job_file, **kwargs)

    decorated: Callable[..., T] = wrapped
    for key in reversed(KEYS):
        if key.flag:
            decorated = _option(key.name, key.short, key.shape, key.metavar, key.help)(decorated)
    return click.option("--file", "job_file", metavar="FILE", help="Read the job from a TOML or YAML file; flags win.")(decorated)


def _parameter(name: str) -> str:
    return "spec_" + name.replace("-", "_")


def _option(name: str, short: str, shape: Shape, metavar: str, text: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    names = [_parameter(name), *([short] if short else []), f"--{name}"]
    if shape is Shape.SWITCH:
        return click.option(*names, is_flag=True, help=text)
    several = shape in (Shape.MANY, Shape.TABLE)
    return click.option(*names, metavar=metavar, multiple=several, help=text)


class AfterDashes(click.Command):
    """A command that takes what stands after the first `--` as it is, in `ctx.obj`; `None` when there is no `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = None
        if "--" in args:
            place = args.index("--")
            args, ctx.obj = args[:place], tuple(args[place + 1 :])
        return super().parse_args(ctx, args)
