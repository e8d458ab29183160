"""The shape of the house, checked by reading the source: section numbers are those of docs/architecture.md.

Every rule collects all of its violations as `file:line message`, so that one run shows the whole list.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from events import codec, subjects
from events.fact import Event

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400
POSITIONAL_MAX = 5

ARROWS = {
    "events": set(),
    "projections": {"events"},
    "services": {"events", "projections"},
    "seller_agent": {"events", "projections"},
    "buyer_cli": {"events", "projections"},
}
"""Package -> what of ours it may import besides itself."""

OWNERS = {
    "nats": ("events/nats_client.py", "events/nats_log.py"),
    "docker": ("seller_agent/runners/docker_engine/sdk.py",),
    "asyncssh": ("seller_agent/runners/ssh/connection.py", "seller_agent/runners/ssh/files.py"),
    "pynvml": ("seller_agent/cards/nvidia.py",),
    "web3": ("services/settlement/chain.py",),
    "eth_account": ("services/settlement/chain.py",),
    "cryptography": ("services/certificates.py",),
    "aiosqlite": ("services/api/read_model.py",),
}
"""Library -> the only modules that may import it."""

CORE = (
    "projections/*.py",
    "services/matcher/admission.py",
    "services/matcher/feasibility.py",
    "services/matcher/policies.py",
    "services/matcher/engine.py",
    "services/matcher/expiry.py",
    "services/matcher/turn.py",
    "seller_agent/owner/accounts.py",
    "seller_agent/attempts/decisions.py",
    "seller_agent/attempts/endings.py",
    "seller_agent/attempts/reconcile.py",
    "seller_agent/cards/health.py",
    "seller_agent/cards/models.py",
    "seller_agent/cards/simulated.py",
    "seller_agent/doctor/rules.py",
    "seller_agent/owner/standing_orders.py",
    "seller_agent/owner/systemd_units.py",
    "seller_agent/runs/watching.py",
    "seller_agent/runs/hints.py",
    "buyer_cli/render.py",
    "buyer_cli/render_usage.py",
    "buyer_cli/printable.py",
    "events/quantities.py",
    "buyer_cli/spec.py",
    "buyer_cli/spec_keys.py",
)
IMPURE_LIBRARIES = {
    "asyncio",
    "os",
    "time",
    "random",
    "uuid",
    "socket",
    "subprocess",
    "pathlib",
    "logging",
    "threading",
    "secrets",
    "urllib",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval"}

LAZY_IMPORTS = (
    "buyer_cli/",
    "seller_agent/cli.py",
    "seller_agent/commands/",
    "services/cli.py",
    "services/commands/",
    "services/processes.py",
)
"""Where an import inside a function is a matter of start-up time, not of a cycle."""

BINS = {"utils", "util", "common", "helpers", "base", "misc"}


class Module(NamedTuple):
    path: str
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        return self.path.split("/")[0]


class Import(NamedTuple):
    name: str
    line: int

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for package in ARROWS:
        for file in sorted((ROOT / package).rglob("*.py")):
            text = file.read_text()
            found.append(Module(file.relative_to(ROOT).as_posix(), ast.parse(text), text.count("\n")))
    return tuple(found)


@cache
def imports_of(tree: ast.AST) -> tuple[Import, ...]:
    """Every module named by an import, also inside functions, and by `import_module` with a literal name."""
    return tuple(found for node in ast.walk(tree) for found in imports_at(node))


def imports_at(node: ast.AST) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            yield from (Import(alias.name, node.lineno) for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in names)
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[ast.Constant(value=str(name)), *_]):
            yield Import(name, node.lineno)


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_core(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in CORE)


def check(rule: Callable[[Module], Iterator[str]]) -> None:
    found = [f"{module.path}:{message}" for module in modules() for message in rule(module)]
    assert not found, "\n" + "\n".join(found)


def test_the_wheel_ships_exactly_the_packages_that_lie_at_the_top_level() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert set(ARROWS) == shipped
    assert shipped == {file.parent.name for file in ROOT.glob("*/__init__.py")}


def test_no_arrow_runs_up() -> None:
    def rule(module: Module) -> Iterator[str]:
        allowed = ARROWS[module.package] | {module.package}
        for found in imports_of(module.tree):
            if found.top in ARROWS and found.top not in allowed:
                yield f"{found.line} {module.package} must not import {found.name}"

    check(rule)


def test_folders_stand_on_one_another_without_circles() -> None:
    """In `services` the programs at the top put together what lies in the folders, so there it is no circle of concerns."""
    below: dict[str, set[str]] = {}
    for module in modules():
        files = {file_of(found.name) for found in imports_of(module.tree) if found.top in ARROWS} - {None}
        below.setdefault(folder_of(module.path), set()).update(folder_of(str(file)) for file in files)
    assert [] == [folder for folder in below if not folder.startswith("services") and folder in all_below(folder, below)]


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def all_below(folder: str, below: dict[str, set[str]]) -> set[str]:
    """Every folder that this one stands on, itself only by way of another."""
    found: set[str] = set()
    waiting = below[folder] - {folder}
    while waiting:
        found |= waiting
        waiting = {deeper for one in waiting for deeper in below.get(one, set()) - {one}} - found
    return found


def test_every_third_party_library_has_one_owner() -> None:
    def rule(module: Module) -> Iterator[str]:
        for found in imports_of(module.tree):
            owners = OWNERS.get(found.top)
            if owners is not None and module.path not in owners:
                yield f"{found.line} only {' and '.join(owners)} may import {found.top}"

    check(rule)


def test_core_modules_have_no_clock_no_chance_no_environment_and_no_io() -> None:
    def rule(module: Module) -> Iterator[str]:
        if not is_core(module.path):
            return
        for found in imports_of(module.tree):
            if found.top in IMPURE_LIBRARIES | set(OWNERS):
                yield f"{found.line} a core module must not import {found.top}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                yield f"{node.lineno} a core module must not be async"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                yield f"{node.lineno} a core module must not call {node.func.id}"
            if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}:
                yield f"{node.lineno} a core module must not read the clock: .{node.attr}"

    check(rule)


def test_core_modules_import_no_shell_of_ours() -> None:
    def rule(module: Module) -> Iterator[str]:
        if not is_core(module.path):
            return
        for found in imports_of(module.tree):
            file = file_of(found.name) if found.top in ARROWS else None
            if file is not None and not is_pure(file):
                yield f"{found.line} a core module must not import the shell {file}"

    check(rule)


def file_of(name: str) -> str | None:
    """The file that `import name` or `from name's parent import name` reads, if it is ours."""
    for dotted in (name, name.rpartition(".")[0]):
        candidate = dotted.replace(".", "/") + ".py"
        if (ROOT / candidate).exists():
            return candidate
    return None


@cache
def is_pure(path: str) -> bool:
    """Core, or a module below the core that reaches nothing impure itself or through what it imports."""
    if is_core(path):
        return True
    tree = next(module.tree for module in modules() if module.path == path)
    for found in imports_of(tree):
        if found.top in IMPURE_LIBRARIES | set(OWNERS):
            return False
        file = file_of(found.name) if found.top in ARROWS else None
        if file is not None and file != path and not is_pure(file):
            return False
    return True


def test_every_core_module_that_is_named_exists() -> None:
    assert [] == [pattern for pattern in CORE if not list(ROOT.glob(pattern))]


def test_imports_are_absolute_and_named() -> None:
    def rule(module: Module) -> Iterator[str]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                yield f"{node.lineno} relative import"
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield f"{node.lineno} star import"

    check(rule)


def test_no_import_hides_in_a_function_to_dodge_a_cycle() -> None:
    def rule(module: Module) -> Iterator[str]:
        if module.path.startswith(LAZY_IMPORTS):
            return
        for function in functions_of(module.tree):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield f"{node.lineno} import inside {function.name}"

    check(rule)


def test_a_package_file_holds_a_docstring_only() -> None:
    """Distributions named `events` and `services` exist on the index: nothing may depend on what stands in these files."""

    def rule(module: Module) -> Iterator[str]:
        if module.path.endswith("/__init__.py"):
            yield from (f"{node.lineno} more than a docstring" for node in module.tree.body[1:])
            if ast.get_docstring(module.tree) is None:
                yield "1 no docstring"

    check(rule)


def test_every_module_says_where_it_stands() -> None:
    check(lambda module: iter(() if ast.get_docstring(module.tree) else ("1 no docstring",)))


def test_no_module_is_named_like_something_we_import() -> None:
    imported = {found.top for module in modules() for found in imports_of(module.tree)} - set(ARROWS)

    def rule(module: Module) -> Iterator[str]:
        file = Path(module.path)
        name = file.parent.name if file.stem == "__init__" else file.stem
        if name in imported | BINS:
            yield f"1 a module named {name}"

    check(rule)


def test_functions_stay_short() -> None:
    def rule(module: Module) -> Iterator[str]:
        for function in functions_of(module.tree):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{function.lineno} {function.name} has {length} lines, {FUNCTION_LINES_MAX} are allowed"

    check(rule)


def test_files_stay_readable_in_one_sitting() -> None:
    check(lambda module: iter([f"1 {module.lines} lines"] if module.lines > FILE_LINES_MAX else []))


def test_after_five_arguments_the_rest_is_named() -> None:
    def rule(module: Module) -> Iterator[str]:
        for function in functions_of(module.tree):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args) if argument.arg not in {"self", "cls"}]
            is_command = any(
                "click" in ast.unparse(decorator) or "command" in ast.unparse(decorator) for decorator in function.decorator_list
            )
            if len(names) > POSITIONAL_MAX and not is_command:
                yield f"{function.lineno} {function.name} takes {len(names)} positional arguments"

    check(rule)


@cache
def event_classes_in_source() -> dict[str, ast.ClassDef]:
    """Every class in events/ that derives from Event, also through a parent that only shares fields (which has `tag=False`), by name."""
    classes = [node for module in modules() if module.package == "events" for node in module.tree.body if isinstance(node, ast.ClassDef)]
    family = {"Event"}
    for _ in range(3):
        family |= {node.name for node in classes if family & {ast.unparse(parent) for parent in node.bases}}
    return {node.name: node for node in classes if node.name in family - {"Event"} and keywords_of(node).get("tag") != "False"}


def keywords_of(node: ast.ClassDef) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_every_event_class_is_in_the_union() -> None:
    assert sorted(event_classes_in_source()) == sorted(cls.__name__ for cls in codec.EVENT_CLASSES)
    assert len(codec.EVENT_CLASSES) == len(set(codec.EVENT_CLASSES))


@pytest.mark.parametrize("cls", codec.EVENT_CLASSES, ids=lambda cls: cls.__name__)
def test_every_event_class_is_frozen_and_repeats_kw_only(cls: type[Event]) -> None:
    assert "True" == keywords_of(event_classes_in_source()[cls.__name__]).get("kw_only"), "kw_only is not inherited"
    assert cls.__struct_config__.frozen
    assert cls.__name__ == cls.__struct_config__.tag


def test_every_event_class_is_in_the_subject_table() -> None:
    assert set(codec.EVENT_CLASSES) == set(subjects.PUBLISHERS)


def test_every_event_class_has_a_golden_file() -> None:
    golden = {file.stem.split(".")[0] for file in (ROOT / "tests" / "golden").iterdir()}
    assert [] == sorted({cls.__name__ for cls in codec.EVENT_CLASSES} - golden)


HEAVY = ("nats", "web3", "fastapi", "docker", "rich")


def test_asking_for_help_loads_no_heavy_library() -> None:
    program = f"""
import sys
from buyer_cli import cli
sys.argv = ["bazaar", "--help"]
try:
    cli.main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stderr
    assert "Usage" in done.stdout
    assert "[]" == done.stdout.splitlines()[-1]
