"""A quantized embedding gives the same rows as one operator, and spelled in standard ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgellm_export.data import DataFile
from edgellm_export.graph import FLOAT, INT64, Graph
from edgellm_export.linear import embedding
from edgellm_export.matrices import store_matrix
from edgellm_export.weights import Blocks, Float32, pack

ROWS, BLOCK = 12, 32
IDS = np.array([[3, 0, 11, 3]], np.int64)


def table(bits: int, kind: str, count: int) -> Blocks:
    """Random blocks, `count` to a row."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (ROWS, count * BLOCK)).astype(np.uint8)
    scales = rng.uniform(0.5, 1.5, (ROWS, count)).astype(np.float16)
    zeros = rng.integers(0, 1 << bits, (ROWS, count)).astype(np.uint8)
    return Blocks(
        bits,
        BLOCK,
        pack(codes, bits, BLOCK),
        scales,
        zeros if kind == "zeros" else None,
        scales * np.float16(2) if kind == "minima" else None,
    )


def looked_up(folder: Path, weight: Blocks, spelled: bool) -> tuple[Float32, str]:
    """The rows of IDS, and the text of the graph."""
    folder.mkdir()
    with DataFile(folder / "w.onnx_data") as data:
        matrix = store_matrix(data, "table", weight)
    g = Graph("rows", data.path.name)
    g.spell_embedding = spelled
    ids = g.input("ids", INT64, ("batch_size", "sequence_length"))
    shape = ("batch_size", "sequence_length", weight.shape[1])
    g.output("rows", embedding(g, ids, matrix), FLOAT, shape)
    g.save(folder / "rows.onnx")
    session = ort.InferenceSession(str(folder / "rows.onnx"), providers=["CPUExecutionProvider"])
    found: Float32 = session.run(["rows"], {"ids": IDS})[0]
    return found, (folder / "rows.onnx").read_bytes().decode("latin-1")


# An odd number of blocks leaves half a byte of zero points unused.
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["middle", "zeros", "minima"])
def test_both_spellings_give_the_dequantized_rows(
    tmp_path: Path, kind: str, bits: int, count: int
) -> None:
    weight = table(bits, kind, count)
    fused, operators = looked_up(tmp_path / "fused", weight, spelled=False)
    spelled, standard = looked_up(tmp_path / "spelled", weight, spelled=True)
    assert "GatherBlockQuantized" in operators
    assert "GatherBlockQuantized" not in standard
    assert np.array_equal(spelled, fused)
    np.testing.assert_allclose(spelled, weight.dequantize()[IDS], atol=1e-5)
