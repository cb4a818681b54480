"""Opening a bundle: what is whole opens, everything else is one line of Corrupt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgellm.bundle import external, manifest, stamp
from edgellm.bundle import open as bundle_open
from edgellm.bundle.manifest import FileRecord, Graph, Manifest, Shape, Source
from edgellm.bundle.open import verify
from edgellm.errors import Corrupt, EdgellmError, Incompatible, StorageFailed

GRAPH, DATA = "onnx/edgellm.onnx", "onnx/model.onnx_data"
WEIGHTS = np.eye(4, dtype=np.float32)
SHAPE = Shape("llama", 1, 1, 1, 4, 4, 8, 16, 16)
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
FLOAT = TensorProto.FLOAT


def kept_outside(location: str = "model.onnx_data", **more: str) -> TensorProto:
    """A 4 x 4 tensor in another file; `more` are further entries of its external data."""
    tensor = TensorProto(name="w", dims=[4, 4], data_type=FLOAT, data_location=1)
    for key, value in {"location": location, "offset": "0", "length": "64", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def multiply(*nodes: Any, **more: Any) -> onnx.GraphProto:
    x = helper.make_tensor_value_info("x", FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", FLOAT, [1, 4])
    return helper.make_graph([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
                             [x], [y], **more)  # fmt: skip


def model(graph: onnx.GraphProto, **more: Any) -> bytes:
    made = helper.make_model(graph, opset_imports=OPSETS, ir_version=10, **more)
    return bytes(made.SerializeToString())


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def in_initializer(tensor: TensorProto) -> bytes:
    return model(multiply(initializer=[tensor]))


def in_attribute(tensor: TensorProto) -> bytes:
    return model(multiply(constant(tensor)))


def in_tensor_list(tensor: TensorProto) -> bytes:
    return model(multiply(helper.make_node("Any", [], ["w"], domain="own", tensors=[tensor])))


def in_subgraph(tensor: TensorProto) -> bytes:
    inner = multiply(initializer=[tensor])
    return model(multiply(helper.make_node("If", ["c"], ["w"], then_branch=inner)))


def in_subgraph_list(tensor: TensorProto) -> bytes:
    inner = multiply(constant(tensor))
    return model(multiply(helper.make_node("Any", [], ["w"], domain="own", graphs=[inner])))


def in_sparse_initializer(tensor: TensorProto) -> bytes:
    sparse = onnx.SparseTensorProto(values=tensor, dims=[16])
    return model(multiply(sparse_initializer=[sparse]))


def in_sparse_attribute(tensor: TensorProto) -> bytes:
    node = constant(tensor)
    node.attribute[0].CopyFrom(
        onnx.AttributeProto(
            name="sparse_value", sparse_tensor=onnx.SparseTensorProto(values=tensor)
        )
    )
    return model(multiply(node))


def in_sparse_attribute_list(tensor: TensorProto) -> bytes:
    node = constant(tensor)
    sparse = onnx.SparseTensorProto(indices=tensor)
    node.attribute[0].CopyFrom(onnx.AttributeProto(name="any", sparse_tensors=[sparse]))
    return model(multiply(node))


def in_function(tensor: TensorProto) -> bytes:
    body = [constant(tensor), helper.make_node("MatMul", ["x", "w"], ["y"])]
    function = helper.make_function("own", "F", ["x"], ["y"], body, OPSETS)
    return model(multiply(), functions=[function])


def in_function_default(tensor: TensorProto) -> bytes:
    function = helper.make_function("own", "F", ["x"], ["y"], [], OPSETS)
    function.attribute_proto.append(helper.make_attribute("w", tensor))
    return model(multiply(), functions=[function])


def in_training(tensor: TensorProto) -> bytes:
    training = onnx.TrainingInfoProto(algorithm=multiply(initializer=[tensor]))
    made = helper.make_model(multiply(), opset_imports=OPSETS)
    made.training_info.append(training)
    return bytes(made.SerializeToString())


PLACES = [
    in_initializer,
    in_attribute,
    in_tensor_list,
    in_subgraph,
    in_subgraph_list,
    in_sparse_initializer,
    in_sparse_attribute,
    in_sparse_attribute_list,
    in_function,
    in_function_default,
    in_training,
]


def write_manifest(folder: Path, **changes: Any) -> Manifest:
    """Lists what is in the folder, as an exporter would; `changes` replace fields."""
    listed = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (manifest.MANIFEST_NAME, stamp.FILE_NAME)
    ]
    fields: dict[str, Any] = {
        "name": "tiny",
        "producer": "test",
        "source": Source("test"),
        "shape": SHAPE,
        "graphs": {"native": Graph("native", GRAPH, DATA)},
        "files": {path.relative_to(folder).as_posix(): record(path) for path in listed},
    }
    made = Manifest(**(fields | changes))
    (folder / manifest.MANIFEST_NAME).write_text(made.to_json())
    return made


def record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def make(folder: Path, graph: bytes | None = None) -> Path:
    (folder / "onnx").mkdir(parents=True)
    (folder / GRAPH).write_bytes(in_initializer(kept_outside()) if graph is None else graph)
    (folder / DATA).write_bytes(WEIGHTS.tobytes())
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once, so that the first look leaves a stamp."""
    monkeypatch.setattr(stamp, "CLOCK_TICK_NS", -(10**12))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed, in order."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noting(file: Any, algorithm: Any) -> Any:
        names.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", noting)
    return names


def refused(folder: Path, *words: str) -> str:
    """The message of the refusal, which is one line and holds `words`."""
    with pytest.raises(Corrupt) as caught:
        verify(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def flip(path: Path, position: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


# What is whole


@pytest.mark.parametrize("graph", PLACES)
def test_a_whole_bundle_opens_wherever_its_graph_names_the_data(
    tmp_path: Path, graph: Callable[[TensorProto], bytes]
) -> None:
    folder = make(tmp_path / "tiny", graph(kept_outside()))
    assert verify(folder) == manifest.read(folder)


def test_what_verify_lets_through_runs(bundle: Path) -> None:
    import onnxruntime

    verify(bundle)
    session = onnxruntime.InferenceSession(bundle / GRAPH, providers=["CPUExecutionProvider"])
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_the_folder_itself_may_be_reached_through_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(bundle, target_is_directory=True)
    assert verify(tmp_path / "alias").name == "tiny"


# Files


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / DATA).unlink()
    refused(bundle, "model.onnx_data is missing", "edgellm rm tiny", "pull it again")


def test_a_missing_folder_is_a_missing_file(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle / "other")
    (bundle / "onnx").write_text("a file")
    refused(bundle, "edgellm.onnx is missing")


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is not a bundle", "edgellm.json")
    refused(tmp_path / "nowhere", "is not a bundle")


@pytest.mark.parametrize("size", [0, 63, 65, 1000])
def test_a_file_of_another_size_is_refused_with_both_numbers(bundle: Path, size: int) -> None:
    os.truncate(bundle / DATA, size)
    refused(bundle, f"has {size} bytes, the manifest says 64", "edgellm rm tiny")


@pytest.mark.parametrize("path", [GRAPH, DATA, "tokenizer.json"])
def test_a_changed_byte_is_refused_with_both_hashes(bundle: Path, path: str) -> None:
    expected = record(bundle / path).sha256
    flip(bundle / path)
    found = record(bundle / path).sha256
    refused(bundle, Path(path).name, expected[:12], found[:12], "edgellm rm tiny")


@pytest.mark.parametrize("path", [GRAPH, DATA, "tokenizer.json", manifest.MANIFEST_NAME])
def test_a_symbolic_link_is_refused_whatever_it_points_to(bundle: Path, path: str) -> None:
    moved = bundle.parent / "elsewhere"
    (bundle / path).rename(moved)
    (bundle / path).symlink_to(moved)
    refused(bundle, Path(path).name, "symbolic link", "copy")


def test_a_linked_folder_is_refused(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "onnx")
    (bundle / "onnx").symlink_to(bundle.parent / "onnx", target_is_directory=True)
    refused(bundle, "onnx is a symbolic link")


@pytest.mark.parametrize("path", [GRAPH, DATA, "tokenizer.json", manifest.MANIFEST_NAME])
def test_a_hard_link_is_refused_whatever_it_points_to(bundle: Path, path: str) -> None:
    os.link(bundle / path, bundle.parent / "secret")
    refused(bundle, Path(path).name, "2 names (hard links)", "put a copy of the file")


@pytest.mark.parametrize("path", [DATA, "tokenizer.json", manifest.MANIFEST_NAME])
def test_a_pipe_or_a_folder_is_no_file_and_nobody_waits_for_it(bundle: Path, path: str) -> None:
    (bundle / path).unlink()
    os.mkfifo(bundle / path)
    refused(bundle, "not a regular file")
    (bundle / path).unlink()
    (bundle / path).mkdir()
    refused(bundle, "not a regular file")


@pytest.mark.parametrize("name", bundle_open.READ_BY_NAME)
@pytest.mark.parametrize("link", [False, True])
def test_a_file_the_runtime_would_read_must_be_listed(bundle: Path, name: str, link: bool) -> None:
    files = {path: record(bundle / path) for path in (GRAPH, DATA)}
    write_manifest(bundle, files=files)
    (bundle / "tokenizer.json").unlink()
    verify(bundle)
    if link:
        (bundle / name).symlink_to("nowhere")
    else:
        (bundle / name).write_text("{{ messages }}")
    refused(bundle, name, "was added", "remove that file")


@pytest.mark.parametrize("path", [GRAPH, DATA])
def test_a_graph_and_its_data_must_be_listed(bundle: Path, path: str) -> None:
    files = dict(manifest.read(bundle).files)
    del files[path]
    write_manifest(bundle, files=files)
    refused(bundle, Path(path).name, "no hash in the manifest")


def test_files_nobody_reads_are_left_alone(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    os.link(bundle / "notes.txt", bundle / "notes2.txt")
    assert verify(bundle).name == "tiny"


@pytest.mark.parametrize("name", ["../tiny/x", "/etc/passwd", "a\\b", "C:x", "nul\0byte", "\ud800"])
def test_a_listed_path_that_cannot_be_a_file_of_the_bundle_is_refused(
    bundle: Path, name: str
) -> None:
    made = write_manifest(bundle)
    changed = Manifest(**{f: getattr(made, f) for f in made.__slots__} | {
        "files": {**made.files, name: FileRecord(1, "0")}})  # fmt: skip
    text = changed.to_json().encode(errors="backslashreplace")
    (bundle / manifest.MANIFEST_NAME).write_bytes(text)
    refused(bundle)


def test_what_the_system_cannot_read_is_no_lie_of_the_bundle(bundle: Path) -> None:
    files = {**manifest.read(bundle).files, "x" * 300: FileRecord(1, "0")}
    write_manifest(bundle, files=files)
    with pytest.raises(StorageFailed, match="File name too long; check"):
        verify(bundle)


def test_another_format_is_incompatible(bundle: Path) -> None:
    write_manifest(bundle, format=99)
    with pytest.raises(Incompatible, match="99"):
        verify(bundle)


# Weights outside the graph


@pytest.mark.parametrize("graph", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "sub/../../secret",
        "/etc/passwd",
        "C:\\secret",
        "edgellm.onnx",
        "../tokenizer.json",
        "./model.onnx_data",
        "model.onnx_data\0",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "日本",
    ],
)
def test_a_graph_may_read_its_own_data_file_only(
    tmp_path: Path, graph: Callable[[TensorProto], bytes], location: str
) -> None:
    folder = make(tmp_path / "tiny", graph(kept_outside(location)))
    refused(folder, "edgellm.onnx", "reads weights 'w' from", repr(location), "outside its bundle")


@pytest.mark.parametrize(
    ("offset", "length"),
    [("64", "1"), ("1", "64"), ("0", "65"), ("4096", "0"), ("0", str(1 << 40))],
)
def test_a_graph_may_read_inside_its_data_file_only(
    tmp_path: Path, offset: str, length: str
) -> None:
    folder = make(tmp_path / "tiny", in_initializer(kept_outside(offset=offset, length=length)))
    end = int(offset) + int(length)
    refused(folder, "model.onnx_data", f"up to byte {end}", "has 64 bytes")


@pytest.mark.parametrize("offset", ["-4", "1e3", "0x10", " 1", "٣", "9" * 20, ""])
def test_an_offset_that_is_no_number_is_refused(tmp_path: Path, offset: str) -> None:
    folder = make(tmp_path / "tiny", in_initializer(kept_outside(offset=offset)))
    refused(folder, "offset", "not a number of bytes")


def test_a_second_location_of_one_tensor_is_refused(tmp_path: Path) -> None:
    tensor = kept_outside()
    tensor.external_data.add(key="location", value="../secret")
    refused(make(tmp_path / "tiny", in_initializer(tensor)), "'location' twice")


def test_a_second_value_of_one_entry_is_refused(tmp_path: Path) -> None:
    # Protobuf takes the last of several values.
    entry = field(1, b"location") + field(2, b"model.onnx_data") + field(2, b"../secret")
    graph = field(7, field(5, field(13, entry)))
    refused(make(tmp_path / "tiny", graph), "not one key and one value")


@pytest.mark.parametrize(
    ("graph", "data"),
    [("onnx/model.ort", DATA), ("onnx/model", DATA), ("model.onnx", DATA), (GRAPH, "data")],
)
def test_a_graph_is_an_onnx_file_beside_its_data(bundle: Path, graph: str, data: str) -> None:
    for old, new in ((GRAPH, graph), (DATA, data)):
        (bundle / old).rename(bundle / new)
    write_manifest(bundle, graphs={"native": Graph("native", graph, data)})
    refused(bundle, Path(graph).name, "not an .onnx file beside its weights")


def test_a_bundle_from_before_hidden_states_opens_and_has_none(bundle: Path) -> None:
    raw = json.loads((bundle / manifest.MANIFEST_NAME).read_text())
    assert "hidden_layer" not in raw["graphs"]["native"]
    assert verify(bundle).graphs["native"].hidden_layer is None


@pytest.mark.parametrize("layer", [0, -1, "2", 1.0, True])
def test_a_probe_layer_that_cannot_be_is_refused(bundle: Path, layer: Any) -> None:
    write_manifest(bundle, graphs={"native": Graph("native", GRAPH, DATA, layer)})
    refused(bundle, "hidden_layer must be a number of layers")


def test_a_graph_too_large_to_look_through_is_refused(bundle: Path) -> None:
    os.truncate(bundle / GRAPH, bundle_open.GRAPH_LIMIT_BYTES + 1)
    write_manifest(bundle)
    refused(bundle, f"it has {bundle_open.GRAPH_LIMIT_BYTES + 1} bytes")


# Bytes that are no graph


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def nested(levels: int) -> bytes:
    """An `If` in an `If` in an `If`, with a file name in the innermost."""
    graph = field(5, kept_outside().SerializeToString())
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


HIDDEN = kept_outside("../secret").SerializeToString()
NO_GRAPHS = {
    "a web page": b"<!doctype html><title>404</title>",
    "noise": np.random.default_rng(7).bytes(4096),
    "a number without end": b"\xff" * 4096,
    "a number of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x00",
    "a length past the end": b"\x3a\xff\xff\xff\xff\x07location",
    "a length of 2^63": b"\x3a" + varint(1 << 63) + b"location",
    "a tag at the very end": b"\x3a",
    "half of a fixed number": b"\x09\x00\x00",
    "a group": b"\x0b\x0c",
    "a field number that wraps to 7": varint((1 << 32) + (7 << 3 | 2)) + field(5, HIDDEN)[1:],
    "a name that is not UTF-8": field(7, field(5, field(13, field(1, b"location\xff")))),
    "deep nesting": nested(3000),
    "nesting that protobuf refuses": nested(34),
}


@pytest.mark.parametrize("graph", NO_GRAPHS.values(), ids=NO_GRAPHS.keys())
def test_what_is_no_graph_is_one_line_of_corrupt(tmp_path: Path, graph: bytes) -> None:
    refused(make(tmp_path / "tiny", graph), "graph ", "edgellm.onnx", "edgellm rm tiny")


def test_honest_nesting_is_followed_to_its_end() -> None:
    found = list(external.references(nested(30)))
    assert [reference.location for reference in found] == ["model.onnx_data"]


def test_two_graphs_in_one_file_are_both_looked_at() -> None:
    # Protobuf merges them.
    graph = in_initializer(kept_outside()) + field(7, field(5, HIDDEN))
    assert {r.location for r in external.references(graph)} == {"model.onnx_data", "../secret"}


def locations(message: Any) -> Iterator[str]:
    """What protobuf itself sees: the location of every tensor, wherever it is."""
    if isinstance(message, TensorProto):
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for child in value if descriptor.is_repeated else [value]:
                yield from locations(child)


def seeds() -> list[bytes]:
    tensor = kept_outside()
    return [place(tensor) for place in PLACES] + [nested(2)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A graph with bytes changed, taken out and doubled."""
    graph = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(graph) - 1))
        match draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                graph[at] = draw(st.integers(0, 255))
            case "cut":
                del graph[at : at + draw(st.integers(1, 3))]
            case _:
                graph[at:at] = draw(st.binary(min_size=1, max_size=12))
    return bytes(graph)


@settings(max_examples=1500, deadline=None)
@given(damaged())
def test_no_file_name_that_protobuf_sees_is_missed(graph: bytes) -> None:
    try:
        found = {reference.location for reference in external.references(graph)}
    except Corrupt:
        return
    try:
        read = onnx.ModelProto.FromString(graph)
    except Exception:  # protobuf's DecodeError has no public home
        return
    assert set(locations(read)) <= found


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield here
    inside = value.items() if isinstance(value, dict) else []
    for key, child in inside:
        yield from places(child, (*here, key))


ODD = [None, True, -1, 1 << 80, 1.5, float("nan"), "", "..", "\ud800", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_manifest_with_any_value_exchanged_raises_only_our_errors(bundle: Path, odd: Any) -> None:
    path = bundle / manifest.MANIFEST_NAME
    original = path.read_text()
    for *above, last in filter(None, places(json.loads(original))):
        changed = json.loads(original)
        parent = changed
        for key in above:
            parent = parent[key]
        parent[last] = odd
        path.write_text(json.dumps(changed))
        with contextlib.suppress(EdgellmError):
            verify(bundle)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 5000), value=st.integers(0, 255))
def test_a_manifest_with_any_byte_changed_raises_only_our_errors(position: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = make(Path(home) / "tiny")
        path = folder / manifest.MANIFEST_NAME
        raw = bytearray(path.read_bytes())
        raw[position % len(raw)] = value
        path.write_bytes(raw)
        with contextlib.suppress(EdgellmError):
            verify(folder)


# The stamp


@pytest.mark.usefixtures("settled")
def test_an_unchanged_bundle_is_hashed_once(bundle: Path, hashed: list[str]) -> None:
    first = verify(bundle)
    assert sorted(hashed) == ["edgellm.onnx", "model.onnx_data", "tokenizer.json"]
    hashed.clear()
    assert verify(bundle) == first
    assert hashed == []


@pytest.mark.usefixtures("settled")
def test_a_changed_byte_is_found_though_size_and_time_were_put_back(bundle: Path) -> None:
    verify(bundle)
    before = (bundle / DATA).stat()
    time.sleep(0.05)  # longer than a tick of the kernel's clock
    flip(bundle / DATA)
    os.utime(bundle / DATA, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (bundle / DATA).stat().st_mtime_ns == before.st_mtime_ns
    refused(bundle, "model.onnx_data has sha256")


@pytest.mark.usefixtures("settled")
def test_a_file_put_in_the_place_of_another_is_found(bundle: Path) -> None:
    verify(bundle)
    other = bundle.parent / "other"
    other.write_bytes(bytes(64))
    before = (bundle / DATA).stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(bundle / DATA)
    refused(bundle, "model.onnx_data has sha256")


@pytest.mark.usefixtures("settled")
def test_another_manifest_is_another_bundle(bundle: Path, hashed: list[str]) -> None:
    verify(bundle)
    hashed.clear()
    write_manifest(bundle, graphs={"native": Graph("native", GRAPH, "tokenizer.json")})
    refused(bundle, "not an .onnx file beside its weights")
    assert hashed


@pytest.mark.usefixtures("settled")
def test_the_stamp_spares_the_hash_and_nothing_else(bundle: Path) -> None:
    verify(bundle)
    os.link(bundle / DATA, bundle.parent / "secret")
    refused(bundle, "hard links")
    (bundle.parent / "secret").unlink()
    (bundle / "chat_template.jinja").write_text("x")
    refused(bundle, "was added")
    (bundle / "chat_template.jinja").unlink()
    assert verify(bundle).name == "tiny"


def test_files_younger_than_the_clock_can_tell_leave_no_stamp(bundle: Path) -> None:
    verify(bundle)
    assert not (bundle / stamp.FILE_NAME).exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"", b"0" * 64, b"\xff\x00" * 5000])
def test_a_damaged_stamp_is_ignored_and_replaced(
    bundle: Path, hashed: list[str], content: bytes
) -> None:
    verify(bundle)
    (bundle / stamp.FILE_NAME).write_bytes(content)
    hashed.clear()
    verify(bundle)
    assert hashed
    hashed.clear()
    verify(bundle)
    assert hashed == []


@pytest.mark.usefixtures("settled")
def test_a_stamp_that_cannot_be_written_is_done_without(bundle: Path, hashed: list[str]) -> None:
    (bundle / stamp.FILE_NAME).mkdir()
    for _ in range(2):
        hashed.clear()
        verify(bundle)
        assert hashed
    assert [path.name for path in bundle.iterdir() if path.name.startswith(".v")] == [".verified"]


@pytest.mark.usefixtures("settled")
def test_a_pipe_in_the_place_of_the_stamp_keeps_nobody_waiting(bundle: Path) -> None:
    os.mkfifo(bundle / stamp.FILE_NAME)
    assert verify(bundle).name == "tiny"
    assert (bundle / stamp.FILE_NAME).is_file()


@pytest.mark.usefixtures("settled")
def test_a_stamp_does_not_travel_with_a_copy(bundle: Path, hashed: list[str]) -> None:
    verify(bundle)
    shutil.copytree(bundle, bundle.parent / "copy")
    hashed.clear()
    verify(bundle.parent / "copy")
    assert hashed
