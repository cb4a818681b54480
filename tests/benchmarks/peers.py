"""Other programs' quantizers on the same float weights, and how far they are from their own fp32.

llama.cpp  llama-quantize with and without llama-imatrix; llama-perplexity --kl-divergence measures
genai      the model builder of onnxruntime-genai; its graph runs in plain ONNX Runtime, so that
           `edgellm.bench.quality` measures it like a bundle

What has been made stays in the work folder.
"""

from __future__ import annotations

import re
import subprocess
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

from edgellm.bench.quality import Report, Scope
from edgellm.bundle import tokenizer
from edgellm.runtime.session import load_onnxruntime

TYPES = ("Q4_0", "Q4_K_M")
TIMEOUT_SECONDS = 3600


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

    def base(self, text: Path, scope: Scope) -> Path:
        """The float32 file's logits on `text`."""
        command = [str(self.folder / "llama-perplexity"), "-m", str(self.floats), "-f", str(text)]
        command += ["-c", str(scope.window_tokens), "-b", str(scope.window_tokens)]
        command += ["--chunks", str(2 * scope.tokens // scope.window_tokens)]
        out = self.work / f"{text.stem}-{scope.tokens}.logits"
        return made(out, lambda part: [*command, "--kl-divergence-base", str(part)])

    def measure(self, model: Path, base: Path, scope: Scope) -> Report:
        """Second half of each window as `edgellm eval`, but for its last token's successor."""
        command = [str(self.folder / "llama-perplexity"), "-m", str(model)]
        command += ["-c", str(scope.window_tokens), "-b", str(scope.window_tokens)]
        command += ["--kl-divergence-base", str(base), "--kl-divergence"]
        return read_report(answer(command), scope)


def read_report(words: str, scope: Scope) -> Report:
    """What llama-perplexity prints at its end."""

    def number(label: str) -> float:
        found = re.search(rf"{re.escape(label)}\s*:\s*([0-9.eE+-]+|nan|inf)", words)
        if not found:
            sys.exit(f"llama-perplexity did not say {label!r}")
        return float(found[1])

    windows = 2 * scope.tokens // scope.window_tokens
    return Report(
        perplexity=number("Mean PPL(Q)"),
        kl_mean=number("Mean    KLD"),
        kl_p99=number("99.0%   KLD"),
        top1_agreement=number("Same top p") / 100,
        tokens=windows * (scope.window_tokens // 2 - 1),
    )


def tensor_bytes(model: Path) -> int:
    """Bytes of a GGUF file's tensors, without the vocabulary."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(model).tensors)


def answer(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"{command[0]} failed ({done.returncode}): {last}")
    return done.stdout + done.stderr


def genai_model(model: Path, python: Path, work: Path) -> Path:
    """genai's int4 with its builder's defaults."""
    command = [str(python.absolute()), "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(model), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
    return made(work / "genai-int4", lambda out: [*command, "-o", str(out)])


class PlainModel:
    """A folder with model.onnx and tokenizer.json as a source of logits."""

    def __init__(self, folder: Path) -> None:
        ort = load_onnxruntime()
        self._words = tokenizer.read(folder)
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
                shape = (1, value.shape[1], 0, value.shape[3])
                feed[value.name] = np.zeros(shape, np.float32)
        yield self._session.run(["logits"], feed)[0][0]
