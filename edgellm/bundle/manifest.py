"""The manifest `edgellm.json`: what a bundle is, what it holds, and how it was checked.

    Manifest
    ├── Source      where the weights came from, revision, sha256, licence
    ├── Shape       what the runtime must know of the model: layers, kv heads, head width, …
    ├── Graph       name → onnx file, its data file, the kind of inputs it takes
    ├── FileRecord  path → bytes and sha256
    ├── weight_bytes  what the weights take in memory, see device.memory.WeightBytes
    └── self_check  the report of the comparison made at export

The runtime never asks which model it runs: all it needs is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgellm.errors import Corrupt, Incompatible

T = TypeVar("T")

FORMAT = 1
SHARED, CONCAT = "shared", "concat"
MANIFEST_NAME = "edgellm.json"
# A manifest is a few kB; a larger one is not ours and is not worth parsing.
MANIFEST_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Source:
    reference: str
    revision: str | None = None
    sha256: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes a session needs. Cache layout is BNSH: (batch, K kv heads, S positions, N width)."""

    architecture: str
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    parameters: int
    kv_dtype: str = "float32"
    # Long-rope: beyond that many positions all of them turn at other speeds, cached ones too.
    rope_switch: int | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """`kind` is "portable" (standard inputs) or "native" (row-selected logits, see runtime).

    `hidden_layer`: after how many layers the output hidden_states is taken; None: there is none.
    `cache` is SHARED where the graph writes keys and values into the caller's memory, CONCAT where
    it returns longer ones.
    """

    kind: str
    path: str
    data: str
    hidden_layer: int | None = None
    cache: str = SHARED


@dataclass(frozen=True, slots=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    producer: str
    source: Source
    shape: Shape
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileRecord]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    self_check: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        raw = asdict(self)
        # Left out where they say nothing new: a version without these fields reads those bundles,
        # and refuses the others for what it does not know.
        _drop(raw["shape"], rope_switch=None)
        for graph in raw["graphs"].values():
            _drop(graph, hidden_layer=None, cache=SHARED)
        return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def _drop(raw: dict[str, Any], **defaults: Any) -> None:
    for name, default in defaults.items():
        if raw[name] == default:
            del raw[name]


def read(folder: Path) -> Manifest:
    """The manifest of a bundle folder; Corrupt names the field that is missing or wrong."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise Corrupt(f"{folder} is not a bundle: it has no {MANIFEST_NAME}; export it again")
    if path.stat().st_size > MANIFEST_LIMIT_BYTES:
        raise Corrupt(f"{path} is larger than {MANIFEST_LIMIT_BYTES} bytes; export it again")
    try:
        return parse(json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}; export it again") from error
    except Corrupt as error:
        raise type(error)(f"{path}: {error}") from error


def parse(raw: Any) -> Manifest:
    """A checked Manifest from decoded JSON. Paths that leave the folder are refused here."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise Incompatible(f"bundle format is {found!r}, this version reads {FORMAT}; export again")
    try:
        return Manifest(
            name=_typed(raw, "name", str),
            producer=_typed(raw, "producer", str),
            source=Source(**_typed(raw, "source", dict)),
            shape=_shape(_typed(raw, "shape", dict)),
            graphs={k: _graph(v) for k, v in _typed(raw, "graphs", dict).items()},
            files={inside(k): _file(v) for k, v in _typed(raw, "files", dict).items()},
            recipe=_typed(raw, "recipe", dict),
            self_check=_typed(raw, "self_check", dict),
            weight_bytes=_sizes(_typed({"weight_bytes": {}, **raw}, "weight_bytes", dict)),
        )
    except TypeError as error:
        raise Corrupt(f"a field is missing or unknown: {error}") from error


def inside(path: str) -> str:
    """`path` if it is relative, with forward slashes, and stays in its folder; else Corrupt."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith(("/", "~")) or "\\" in path or ":" in path or ".." in parts:
        raise Corrupt(f"path {path!r} leaves the bundle's folder; refuse this file")
    return path


def _typed(raw: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = raw.get(key)
    if not isinstance(value, kind):
        raise Corrupt(f"field {key!r} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _shape(raw: dict[str, Any]) -> Shape:
    shape = Shape(**raw)
    for key, value in asdict(shape).items():
        if value is None and key == "rope_switch":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise Corrupt(f"shape.{key} must be a number or a name, got {value!r}")
        if isinstance(value, int) and not 0 < value < 1 << 48:
            raise Corrupt(f"shape.{key} is {value}, which no model has")
    return shape


def _sizes(raw: dict[str, Any]) -> dict[str, int]:
    names = {"codes", "blocks", "floats", "dense", "largest"}
    if raw and (
        raw.keys() - {"prefill"} != names or any(type(v) is not int or v < 0 for v in raw.values())
    ):
        raise Corrupt(f"weight_bytes must give {', '.join(sorted(names))} in bytes, got {raw!r}")
    return raw


def _graph(raw: Any) -> Graph:
    graph = Graph(**raw)
    inside(graph.path)
    inside(graph.data)
    layer = graph.hidden_layer
    if layer is not None and (type(layer) is not int or layer < 1):
        raise Corrupt(f"hidden_layer must be a number of layers, got {layer!r}")
    if graph.cache not in (SHARED, CONCAT):
        raise Incompatible(f"cache kind {graph.cache!r} is not known to this version; update it")
    return graph


def _file(raw: Any) -> FileRecord:
    record = FileRecord(**raw)
    if not isinstance(record.bytes, int) or not isinstance(record.sha256, str):
        raise Corrupt(f"file record {raw!r} needs bytes (a number) and sha256 (a string)")
    return record
