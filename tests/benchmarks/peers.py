"""Other programs' quantizers on the same float weights, and how far they are from their own fp32.

llama.cpp  llama-quantize with and without llama-imatrix; llama-perplexity writes logits
genai      the model builder of onnxruntime-genai; its graph runs in plain ONNX Runtime, so that
           `edgellm.bench.quality` measures it like a bundle

What has been made stays in the work folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - puts this checkout's packages on the path
import gguf
import gguf_float
import numpy as np
from numpy.typing import NDArray
from prepare import made, say

from edgellm.bench.quality import Divergence, Perplexity, Report, Scope, log_softmax
from edgellm.bundle import tokenizer
from edgellm.runtime.session import load_onnxruntime

TYPES = ("Q4_0", "Q4_K_M")


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's programs in `folder`, working on one float32 GGUF file in `work`."""

    folder: Path
    work: Path

    @property
    def floats(self) -> Path:
        return self.work / "float32.gguf"

    def convert(self, model: Path) -> None:
        """Makes `floats` of a Hugging Face folder."""
        if not self.floats.is_file():
            say(f"making {self.floats}")
            gguf_float.write(model, self.floats)

    def imatrix(self, text: Path, window_tokens: int) -> Path:
        """Of the whole text; control tokens in it are read as such."""
        program = [str(self.folder / "llama-imatrix"), "-m", str(self.floats), "-f", str(text)]
        more = ["-c", str(window_tokens), "--no-ppl", "--parse-special"]
        return made(self.work / "imatrix.gguf", lambda out: [*program, *more, "-o", str(out)])

    def quantize(self, kind: str, imatrix: Path | None) -> Path:
        name = f"{kind}-imatrix.gguf" if imatrix else f"{kind}.gguf"
        program = [str(self.folder / "llama-quantize")]
        if imatrix:
            program += ["--imatrix", str(imatrix)]
        return made(self.work / name, lambda out: [*program, str(self.floats), str(out), kind])

    def logits(self, model: Path, text: Path, scope: Scope) -> Path:
        """A file of what `model` says about `text`: the second half of each window.

        Its summaries go through a log whose thread is often killed before it has said everything.
        """
        command = [str(self.folder / "llama-perplexity"), "-m", str(model), "-f", str(text)]
        command += ["-c", str(scope.window_tokens), "-b", str(scope.window_tokens)]
        command += ["--chunks", str(2 * scope.tokens // scope.window_tokens)]
        out = self.work / f"{model.stem}-{text.stem}-{scope.tokens}.logits"
        return made(out, lambda part: [*command, "--kl-divergence-base", str(part)])

    def measure(self, model: Path, text: Path, scope: Scope) -> Report:
        """As `edgellm eval`, but for each window's last token, against the float32 file."""
        base, found = (self.logits(path, text, scope) for path in (self.floats, model))
        report = compare(base, found)
        if found != base:
            found.unlink()  # as large as the text times the vocabulary
        return report


def compare(base: Path, model: Path) -> Report:
    """The Report of two files of llama-perplexity on one text."""
    perplexity, divergence = Perplexity(), Divergence()
    for (expected, token), (row, _) in zip(read_rows(base), read_rows(model), strict=True):
        logprobs = log_softmax(row)
        perplexity.add(logprobs, token)
        divergence.add(log_softmax(expected), logprobs)
    return Report(
        perplexity.value,
        divergence.mean,
        divergence.p99,
        divergence.top1_agreement,
        perplexity.tokens,
    )


def read_rows(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Log-probabilities (V,) and the token that came, from a file of --kl-divergence-base.

    They are 16-bit steps between the likeliest and 16 nats below (log_softmax and kl_divergence in
    llama.cpp's tools/perplexity/perplexity.cpp).
    """
    with path.open("rb") as file:
        if file.read(8) != b"_logits_":
            sys.exit(f"{path} is no file of llama-perplexity")
        window, vocabulary, count = np.fromfile(file, np.int32, 3).tolist()
        tokens = np.fromfile(file, np.int32, window * count).reshape(count, window)
        width = 2 * ((vocabulary + 1) // 2) + 4
        for ids in tokens:
            for token in ids[window // 2 + 1 :].tolist():
                row = np.fromfile(file, np.uint16, width)
                scale, lowest = row[:4].view(np.float32).tolist()
                steps = row[4 : 4 + vocabulary].astype(np.float32)
                yield steps * np.float32(scale) + np.float32(lowest), token


def tensor_bytes(model: Path) -> int:
    """Bytes of a GGUF file's tensors, without the vocabulary."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(model).tensors)


def genai_model(model: Path, python: Path, work: Path) -> Path:
    """genai's int4 with its builder's defaults."""
    command = [str(python.absolute()), "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(model), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
    return made(work / "genai-int4", lambda out: [*command, "-o", str(out)])


class PlainModel:
    """A folder of onnxruntime-genai as a source of logits."""

    def __init__(self, folder: Path) -> None:
        ort = load_onnxruntime()
        self._words = tokenizer.read(folder)
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self._head_dim = config["model"]["decoder"]["head_size"]
        path, providers = str(folder / "model.onnx"), ["CPUExecutionProvider"]
        self._session = ort.InferenceSession(path, providers=providers)

    def encode(self, text: str) -> list[int]:
        return self._words.encode(text, special=False, wrap=True)

    def logits(self, ids: list[int]) -> Iterator[NDArray[np.float32]]:
        feed: dict[str, NDArray[Any]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
        }
        for value in self._session.get_inputs():
            if value.name.startswith("past"):
                shape = (1, value.shape[1], 0, self._head_dim)
                feed[value.name] = np.zeros(shape, np.float32)
        yield self._session.run(["logits"], feed)[0][0]
