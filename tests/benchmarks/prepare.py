"""What the contenders need, made from one GGUF file: bundles, requantized files, genai's model.

Bundles are made anew each time, because the exporter is what changes. What other programs make
stays in the work folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkout  # noqa: F401 - puts this checkout's packages on the path
from dequantize import write_folder

from edgellm.bundle.manifest import Source
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.recipe import Recipe


def bundle(gguf: Path, made_by: Recipe, out: Path, fast_prefill: bool = False) -> Path:
    """`out`, now the folder of a new bundle."""
    say(f"making {out}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    job = Job(gguf, made_by, Source(gguf.name), gguf.stem, fast_prefill=fast_prefill)
    export_bundle(job, out)
    return out


def q4_0(gguf: Path, quantize: Path, work: Path, embedding: str | None) -> Path:
    """The file with all matrices in Q4_0, but the embedding in `embedding` when that is given."""
    name = f"{gguf.stem}-pure-q4_0{f'-{embedding}' if embedding else ''}.gguf"
    extra = ["--token-embedding-type", embedding] if embedding else []
    command = [str(quantize), "--allow-requantize", "--pure", *extra, str(gguf)]
    return made(work / name, lambda out: [*command, str(out), "Q4_0"])


def genai_model(gguf: Path, python: Path, work: Path) -> Path:
    """genai's int4 export with its builder's defaults, from the dequantized weights."""
    folder = work / f"{gguf.stem}-float32"
    if not (folder / "model.safetensors").is_file():
        say(f"writing {folder}")
        write_folder(gguf, folder)
    command = [str(python.absolute()), "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(folder), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
    return made(work / f"{gguf.stem}-genai-int4", lambda out: [*command, "-o", str(out)])


def made(out: Path, command: Callable[[Path], list[str]]) -> Path:
    """`out`, by running `command(part)` when it is not there; it is there whole or not at all."""
    if out.exists():
        return out
    say(f"making {out}")
    part = out.with_name(f"part-{out.name}")
    if part.is_dir():
        shutil.rmtree(part)
    done = subprocess.run(command(part), capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"{out.name} could not be made: {words}")
    return part.rename(out)


def say(line: str) -> None:
    print(line, file=sys.stderr)
