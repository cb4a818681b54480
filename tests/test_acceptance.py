"""The promises of the main job on the real SmolLM2-135M weights. A minute or two on two cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgellm.runtime.cache import KVCache
from edgellm.runtime.decode import decode, prefill
from edgellm.runtime.opened import OpenedBundle, open_folder
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.session import Session
from edgellm.stream import Request
from edgellm_export import reference
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.weights import Float32, to_float32, unpack

pytestmark = pytest.mark.weights

PARAMETERS = 134_515_008
HEADS = {"attn_q": 9, "attn_k": 3}
TOKENS = 64
PROMPTS = [
    Request.user("What is the capital of France?"),
    Request.user("Why is the sky blue?", system="You are a physicist."),
    Request.user("Write a haiku about the sea."),
    Request.user("List three prime numbers and explain why they are prime."),
    Request.user("Übersetze ins Englische: Guten Morgen, wie geht es dir?"),
    Request(prompt="Once upon a time, in a village by the river, there lived"),
    Request(prompt="def fibonacci(n):\n    "),
    Request(prompt="The three laws of thermodynamics are"),
    Request(prompt="1, 2, 3, 4, 5,"),
    Request(prompt="😀 🇫🇷"),
]


# Between this large process and the measured one: Linux counts the memory of the process that a
# process was started from as its own.
MEASURED = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(child.returncode)
"""


@dataclass(frozen=True)
class Exported:
    folder: Path
    peak_rss_bytes: int


def export(source: Path, folder: Path, precision: str) -> Exported:
    """The bundle that `edgellm export` makes in a process of its own, and what it took."""
    if not hasattr(os, "wait4"):
        pytest.skip("this system does not tell the peak memory of a process that has ended")
    command = [sys.executable, "-m", "edgellm", "export", str(source), "-o", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command, "--precision", precision],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Exported(folder, int(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def fp32(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(smollm2_gguf, tmp_path_factory.mktemp("fp32") / "smollm2", "fp32")


def test_greedy_answers_in_float32_are_those_of_the_numpy_forward_pass(
    fp32: Exported, smollm2_gguf: Path
) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    weights = {name: to_float32(checkpoint.weight(name)) for name in checkpoint.names()}
    bundle = open_folder(fp32.folder)
    session = Session(bundle.graph, bundle.manifest.shape, LoadOptions())
    for request in PROMPTS:
        ids, logits = greedy(session, bundle, request)
        # One pass over the whole text: were a single token another than the reference's own
        # greedy choice, its row would show it.
        expected = reference.forward(checkpoint.config, weights.__getitem__, ids[:-1])
        assert np.abs(logits - expected).max() < 1e-3
        assert expected.argmax(axis=-1)[-TOKENS:].tolist() == ids[-TOKENS:]


def greedy(session: Session, bundle: OpenedBundle, request: Request) -> tuple[list[int], Float32]:
    """Prompt and TOKENS greedy ids, past any end of text, and the logits before each but the first.

    The prompt's logits come from one pass, those of the answer from the cached loop.
    """
    prompt = bundle.encode(request)
    shape = bundle.manifest.shape
    rows = session.forward(prompt, range(len(prompt)), KVCache(shape, len(prompt))).copy()
    seen: list[Float32] = []

    def choose(logits: Float32, context: Sequence[int]) -> int:
        seen.append(logits.copy())
        return int(logits.argmax())

    cache = KVCache(shape, 1)
    last = prefill(session, cache, prompt)
    answer = [token.id for token in decode(session, cache, last, choose, frozenset(), TOKENS)]
    return prompt + answer, np.concatenate([rows[:-1], np.stack(seen)])


def test_an_exact_import_carries_every_integer_and_every_value(
    smollm2_bundle: Path, smollm2_gguf: Path
) -> None:
    stored = initializers(smollm2_bundle / "onnx" / "edgellm_q4.onnx")
    seen = 0
    for tensor in gguf.GGUFReader(smollm2_gguf).tensors:
        if len(tensor.shape) != 2:
            continue
        inner, out = (int(size) for size in tensor.shape)
        name, part = stored_name(tensor.name)
        blocks, scales = stored[f"{name}.blocks"], stored[f"{name}.scales"]
        start = part * out if name.endswith("gate_up") else QKV_START.get(part_of(tensor.name), 0)
        rows = slice(start, start + out)
        bits = 4 if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1 else 8
        order = half_split(tensor.name, out)
        raw = tensor.data.reshape(out, inner // 32, -1)[order]
        codes = unpack(blocks.reshape(blocks.shape[0], inner // 32, -1)[rows], bits)
        assert np.array_equal(codes, ggml_codes(raw, bits)), tensor.name
        values = codes.astype(np.float32) * scales[rows].astype(np.float32)[..., None]
        if bits == 4:
            values += stored[f"{name}.minima"][rows].astype(np.float32)[..., None]
        else:
            values -= np.float32(128) * scales[rows].astype(np.float32)[..., None]
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        wanted = wanted.reshape(out, inner // 32, 32)[order]
        spread = np.ptp(wanted, axis=-1, keepdims=True)
        assert (np.abs(values - wanted) <= 1e-6 * spread).all(), tensor.name
        seen += 1
    assert seen == 30 * 7 + 1


QKV_START = {"attn_q": 0, "attn_k": 576, "attn_v": 768}
NAMES = {
    "attn_q": ("qkv", 0),
    "attn_k": ("qkv", 1),
    "attn_v": ("qkv", 2),
    "attn_output": ("out", 0),
    "ffn_gate": ("gate_up", 0),
    "ffn_up": ("gate_up", 1),
    "ffn_down": ("down", 0),
}


def part_of(name: str) -> str:
    return name.split(".")[-2]


def stored_name(name: str) -> tuple[str, int]:
    """The bundle's matrix that holds a GGUF tensor, and which part of it."""
    if name == "token_embd.weight":
        return "embed_tokens", 0
    layer = name.split(".")[1]
    stem, part = NAMES[part_of(name)]
    return f"layers.{layer}.{stem}", part


def initializers(graph: Path) -> dict[str, NDArray[np.generic]]:
    """Everything the graph reads from the data file, by the name it was stored under."""
    found = {}
    for value in ir.load(graph).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            found[str(tensor.name).removesuffix(".2d").removesuffix(".3d")] = tensor.numpy()
    return {name: values.reshape(values.shape[-2:]) if name.endswith((".scales", ".minima"))
            else values for name, values in found.items()}  # fmt: skip


def half_split(name: str, rows: int) -> NDArray[np.intp]:
    """Rows of q and k as Hugging Face has them, by undoing `permute` of convert_hf_to_gguf.py."""
    heads = HEADS.get(part_of(name))
    index = np.arange(rows)
    if heads is None:
        return index
    permuted = index.reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    return np.argsort(permuted)


def ggml_codes(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The unsigned integers of Q4_1 and Q8_0 blocks, as ggml-common.h lays them out."""
    if bits == 8:
        return raw[..., 2:] ^ np.uint8(128)
    return np.concatenate([raw[..., 4:] & 15, raw[..., 4:] >> 4], axis=-1)


@pytest.mark.parametrize("precision", ["exact", "fp32"])
@pytest.mark.parametrize("tokens", [16, 400])
def test_predicted_memory_is_within_15_percent_of_the_peak(
    request: pytest.FixtureRequest, precision: str, tokens: int
) -> None:
    folder = (
        request.getfixturevalue("fp32").folder
        if precision == "fp32"
        else request.getfixturevalue("smollm2_bundle")
    )
    prompt = "Once upon a time. " * (tokens // 8)
    done = run(folder, "--raw", prompt, "-n", str(tokens), "-t", "0", "--json")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert memory["predicted_mb"] == pytest.approx(memory["peak_rss_mb"], rel=0.15)
    assert memory["weights_mb"] + memory["kv_mb"] < memory["predicted_mb"]


def run(
    model: Path | str, *arguments: str, prefix: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "edgellm", "run", str(model), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
    )


def test_export_takes_less_than_twice_the_float32_weights(
    fp32: Exported, smollm2_gguf: Path, tmp_path: Path
) -> None:
    limit = 2 * 4 * PARAMETERS
    assert fp32.peak_rss_bytes < limit
    assert export(smollm2_gguf, tmp_path / "exact", "exact").peak_rss_bytes < limit


def test_a_model_in_the_store_answers_by_its_alias_without_a_network(
    smollm2_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(smollm2_bundle, tmp_path / "home" / "models" / "smollm2-135m")
    denied = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*denied, "true"]).returncode:
        denied = []  # conftest has closed every registry; nothing else is listening either
    arguments = ("Why is the sky blue?", "-t", "0", "-n", "32", "--json")
    home = str(tmp_path / "home")
    answers = [run("smollm2-135m", *arguments, prefix=denied, EDGELLM_HOME=home) for _ in range(2)]
    for done in answers:
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["text"].split()) > 15
    # Greedy is the same from process to process.
    first, second = (json.loads(done.stdout)["text"] for done in answers)
    assert first == second
