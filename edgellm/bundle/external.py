"""Which bytes of which file a graph reads as weights, found without loading the graph.

The scanner knows the part of onnx.proto3 that leads to `TensorProto.external_data` and passes over
the rest. It keeps its own stack, so that nesting cannot exhaust Python's, and it reads no length
that leaves its message. What it does not understand is Corrupt, never skipped: ONNX Runtime must
not see a file name that this scanner missed.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3 (field numbers) and
https://protobuf.dev/programming-guides/encoding (tags, varints, lengths).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgellm.errors import Corrupt

# What protobuf's own reader allows: https://protobuf.dev/programming-guides/proto-limits
MAX_DEPTH = 100
# A file name is given under this key. Messages without these bytes cannot hold one; that spares
# reading most of a graph.
KEY = b"location"

# message → field number → message, for every path to a tensor
CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
TENSOR_NAME, TENSOR_EXTERNAL_DATA = 8, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Reference:
    """A tensor kept outside its graph. `length` 0: the graph leaves it to the tensor's shape."""

    tensor: str
    location: str
    offset: int
    length: int


def references(graph: bytes) -> Iterator[Reference]:
    """Every reference of a serialized ModelProto to another file; Corrupt when it is none."""
    todo = [("Model", 0, len(graph), 1)]
    while todo:
        message, start, end, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise Corrupt(f"it is nested deeper than {MAX_DEPTH} messages, which no model is")
        if message == "Tensor":
            yield from _tensor(graph, start, end)
            continue
        children = CHILDREN[message]
        for number, first, last in _fields(graph, start, end):
            if number in children and graph.find(KEY, first, last) >= 0:
                todo.append((children[number], first, last, depth + 1))


def _tensor(graph: bytes, start: int, end: int) -> Iterator[Reference]:
    name, entries = "", dict[str, str]()
    for number, first, last in _fields(graph, start, end):
        if number == TENSOR_NAME:
            name = _text(graph, first, last)
        elif number == TENSOR_EXTERNAL_DATA:
            key, value = _entry(graph, first, last)
            if key in entries:
                raise Corrupt(f"weights {name!r:.80} name their {key!r:.40} twice")
            entries[key] = value
    if "location" in entries:
        yield Reference(name, entries["location"], _number(entries, "offset"),
                        _number(entries, "length"))  # fmt: skip


def _entry(graph: bytes, start: int, end: int) -> tuple[str, str]:
    found = [(number, _text(graph, *span)) for number, *span in _fields(graph, start, end)]
    if sorted(number for number, _ in found) != [ENTRY_KEY, ENTRY_VALUE]:
        raise Corrupt("an entry of its external data is not one key and one value")
    entry = dict(found)
    return entry[ENTRY_KEY], entry[ENTRY_VALUE]


def _number(entries: dict[str, str], key: str) -> int:
    text = entries.get(key, "0")
    # 19 digits hold every 64-bit offset.
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Corrupt(f"the {key} of external data is {text!r:.40}, not a number of bytes")
    return int(text)


def _text(graph: bytes, start: int, end: int) -> str:
    try:
        return graph[start:end].decode()
    except UnicodeDecodeError as error:
        raise Corrupt("a name in it is not UTF-8") from error


def _fields(graph: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field that is bytes, text or a message."""
    while at < end:
        # Nearly every tag and length is one byte; a call for each would double the time.
        if (tag := graph[at]) < 0x80:
            at += 1
        else:
            tag, at = _varint(graph, at, end)
        # Readers in C++ drop the upper bits of a longer tag and would see another field.
        if tag >= 1 << 32:
            raise Corrupt(f"a field has the number {tag >> 3}, which protobuf does not allow")
        kind = tag & 7
        if kind == BYTES:
            if at < end and (length := graph[at]) < 0x80:
                at += 1
            else:
                length, at = _varint(graph, at, end)
            if length > end - at:
                raise Corrupt(f"a field of {length} bytes starts {end - at} bytes before its end")
            yield tag >> 3, at, at + length
            at += length
        elif kind == VARINT:
            _, at = _varint(graph, at, end)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise Corrupt(f"a field is of kind {kind}, which ONNX does not use")
    if at > end:
        raise Corrupt("it ends in the middle of a number")


def _varint(graph: bytes, at: int, end: int) -> tuple[int, int]:
    """The unsigned number at `at` and where it ends."""
    value = 0
    # Ten groups of seven bits hold 64 bits.
    for shift, position in enumerate(range(at, min(end, at + 10))):
        byte = graph[position]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + 1
    raise Corrupt("it holds a number that does not end")
