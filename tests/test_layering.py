"""The house's floors: imports go downward, and each heavy package has one owner.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"edgellm": ROOT / "edgellm", "edgellm_export": ROOT / "export" / "edgellm_export"}

# The longest matching prefix decides. A module may import lower floors, and its own package.
FLOORS = {
    "edgellm.errors": 0,
    "edgellm.version": 0,
    "edgellm.stream": 1,
    "edgellm.settings": 1,
    "edgellm.bundle": 2,
    "edgellm.runtime": 3,
    "edgellm.device": 3,
    "edgellm.hub": 4,
    "edgellm.runtime.local": 5,  # above the hub: load() takes a reference
    "edgellm.runtime.opened": 5,  # above the device: a bundle knows its memory plan
    "edgellm.routing": 6,
    "edgellm.server": 7,
    "edgellm.batch": 7,
    "edgellm.bench": 7,
    "edgellm": 8,  # the facade: names that load on first use
    "edgellm.cli": 9,
    "edgellm.__main__": 10,
}

# What the exporter may take from the runtime: vocabulary, never behaviour.
EXPORT_MAY_IMPORT = (
    "edgellm.errors",
    "edgellm.version",
    "edgellm.bundle.manifest",
    "edgellm.device.profiles",
)
# The exceptions: the self-check must run the session that users run, not one like it; calibration
# needs activations, and text that the model writes itself; trimming has to know what a text is made
# of; a KV cache is measured in use; what another format computes is compared with what users run.
EXPORT_EXCEPTIONS = {
    "edgellm_export.prefill": ("edgellm.runtime.options", "edgellm.runtime.session"),
    "edgellm_export.quantize.capture": ("edgellm.runtime.session",),
    "edgellm_export.quantize.kv": (
        "edgellm.runtime.cache",
        "edgellm.runtime.options",
        "edgellm.runtime.session",
    ),
    "edgellm_export.quantize.selftext": (
        "edgellm.bundle",
        "edgellm.runtime.session",
        "edgellm.stream",
    ),
    "edgellm_export.conversation": ("edgellm.bundle", "edgellm.stream"),
    "edgellm_export.shrink.vocabulary": ("edgellm.bundle",),
    "edgellm_export.targets.ort": (
        "edgellm.runtime.cache",
        "edgellm.runtime.options",
        "edgellm.runtime.session",
    ),
    "edgellm_export.targets.qnn": (
        "edgellm.runtime.cache",
        "edgellm.runtime.options",
        "edgellm.runtime.session",
    ),
    "edgellm_export.verify": (
        "edgellm.bundle",
        "edgellm.runtime.concat",
        "edgellm.runtime.options",
        "edgellm.runtime.session",
        "edgellm.stream",
    ),
}
# Who may reach the exporter; only inside a function, so that it stays optional.
EXPORT_DOORS = ("edgellm.cli", "edgellm.hub")

OWNERS = {
    "onnxruntime": ("edgellm.runtime.session", "edgellm.runtime.providers"),
    "click": ("edgellm.cli",),
    "prompt_toolkit": ("edgellm.cli",),
    "tqdm": ("edgellm.cli", "edgellm.hub"),
    "onnx": ("edgellm_export",),
    "onnx_ir": ("edgellm_export",),
    "gguf": ("edgellm_export",),
    "torch": ("edgellm_export.optimum.tracing",),
    "transformers": ("edgellm_export.optimum.tracing",),
    "optimum": ("edgellm_export.optimum.tracing",),
    "huggingface_hub": ("edgellm.hub",),
    "ray": ("edgellm.batch",),
    **dict.fromkeys(
        (
            "httpcore",
            "httpx",
            "httpx2",
            "requests",
            "aiohttp",
            "urllib3",
            "urllib.request",
            "http.client",
        ),
        ("edgellm.routing.remote", "edgellm.hub"),
    ),
}


@dataclass(frozen=True)
class Import:
    source: str
    target: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join((package, *parts)).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Every module of the project by name."""
    return {
        module_name(package, path): path
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    }


def imports(source: str, text: str, is_package: bool, known: set[str]) -> Iterator[Import]:
    """All imports of a module: statements, and import_module with a literal name."""
    tree = ast.parse(text)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inner = {
        id(child) for node in ast.walk(tree) if isinstance(node, functions)
        for child in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        for target in targets(node, source, is_package, known):
            yield Import(source, target, getattr(node, "lineno", 0), id(node) in inner)


def targets(node: ast.AST, source: str, is_package: bool, known: set[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            parent = source.split(".")
            if level:
                base = parent[: len(parent) - level + is_package]
                module = ".".join([*base, module] if module else base)
            full = [f"{module}.{alias.name}" for alias in names]
            # `from package import name`: the name is a module, or something inside the package.
            return [name if name in known or name in OWNERS else str(module) for name in full]
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            return [name] if called in ("import_module", "__import__") else []
    return []


def within(name: str, owner: str) -> bool:
    return name == owner or name.startswith(owner + ".")


def floor(module: str) -> int:
    prefixes = [prefix for prefix in FLOORS if within(module, prefix)]
    return FLOORS[max(prefixes, key=len)]


def room(module: str) -> str:
    """The part of the house a module is in: edgellm.runtime.session is in edgellm.runtime."""
    return ".".join(module.split(".")[:2])


def all_imports() -> list[Import]:
    known = modules()
    return [
        found
        for name, path in known.items()
        for found in imports(name, path.read_text(), path.name == "__init__.py", set(known))
    ]


def broken(found: Import) -> str | None:
    """Why this import may not be, or None."""
    owner = next((name for name in OWNERS if within(found.target, name)), None)
    if owner is not None:
        if not any(within(found.source, home) for home in OWNERS[owner]):
            return f"{found}, which belongs to {' and '.join(OWNERS[owner])}"
        return None
    if within(found.source, "edgellm_export"):
        outside = within(found.target, "edgellm")
        allowed = EXPORT_MAY_IMPORT + EXPORT_EXCEPTIONS.get(found.source, ())
        if outside and not any(within(found.target, name) for name in allowed):
            return f"{found}; it may import only {', '.join(allowed)}"
        return None
    if within(found.target, "edgellm_export"):
        if not any(within(found.source, door) for door in EXPORT_DOORS):
            return f"{found}; only {' and '.join(EXPORT_DOORS)} may"
        return None if found.in_function else f"{found} at module level; import it in a function"
    return _upward(found) if within(found.target, "edgellm") else None


def _upward(found: Import) -> str | None:
    above, below = floor(found.source), floor(found.target)
    same_room = room(found.source) == room(found.target) != "edgellm" and above == below
    # A package's __init__ names what is inside it, whatever floor that is on.
    own_package = found.source != "edgellm" and within(found.target, found.source)
    if below < above or same_room or own_package:
        return None
    return f"{found}: floor {above} may not import floor {below}"


def test_imports_go_downward_and_heavy_packages_have_one_owner() -> None:
    problems = [problem for found in all_imports() if (problem := broken(found))]
    assert not problems, "\n".join(problems)


def test_every_module_has_a_floor() -> None:
    rooms = {room(name) for name in modules() if within(name, "edgellm")}
    assert rooms <= set(FLOORS), f"add to FLOORS: {sorted(rooms - set(FLOORS))}"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("edgellm", "from edgellm.cli import main"),
        ("edgellm.stream", "from edgellm.runtime import session"),
        ("edgellm.errors", "import edgellm.stream"),
        ("edgellm.runtime.session", "from edgellm.runtime.local import Local"),
        ("edgellm.runtime.session", "from .local import Local"),
        ("edgellm.hub.store", "from edgellm import runtime\nfrom edgellm.runtime import local"),
        ("edgellm.bench.speed", "def f():\n    from edgellm.cli import main"),
        ("edgellm.routing.policy", "import edgellm"),
        ("edgellm.cli.run", "import onnxruntime"),
        ("edgellm.runtime.cache", "from onnxruntime.capi import x"),
        ("edgellm.bundle.manifest", "def f():\n    import_module('onnx_ir')"),
        ("edgellm.cli.export", "import edgellm_export"),
        ("edgellm.hub.fetch", "from edgellm_export.recipe import Recipe"),
        ("edgellm.bench.speed", "def f():\n    import edgellm_export"),
        ("edgellm_export.pipeline", "from edgellm.runtime import session"),
        ("edgellm_export.verify", "from edgellm.runtime import local"),
        ("edgellm_export.verify", "import onnxruntime"),
        ("edgellm_export.graph", "import torch"),
        ("edgellm_export.optimum.trace", "import torch"),
        ("edgellm.batch.jobs", "from urllib import request"),
    ],
)
def test_a_forbidden_import_is_found(source: str, text: str) -> None:
    known = {*modules(), "edgellm.runtime.local", "edgellm.runtime.session", "edgellm.cli"}
    assert [found for found in imports(source, text, False, known) if broken(found)]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("edgellm.stream", "from edgellm.errors import UsageError"),
        ("edgellm.runtime.session", "import onnxruntime"),
        ("edgellm.runtime.local", "from edgellm.runtime import session"),
        ("edgellm.runtime.local", "from edgellm.device import memory"),
        ("edgellm.cli.run", "import click\nimport edgellm"),
        ("edgellm.cli.export", "def f():\n    import edgellm_export"),
        ("edgellm_export.write", "from edgellm.bundle import manifest"),
        ("edgellm_export.verify", "from edgellm.runtime import session"),
        ("edgellm_export.optimum.tracing", "import torch"),
    ],
)
def test_an_honest_import_passes(source: str, text: str) -> None:
    known = {*modules(), "edgellm.runtime.session", "edgellm.device.memory"}
    assert [problem for i in imports(source, text, False, known) if (problem := broken(i))] == []
