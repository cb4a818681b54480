"""Quality per byte: what our recipes and other programs' quantizers leave of a model.

    python tests/benchmarks/quality_per_byte.py --model small=FOLDER --targets 2.3,2.5,2.9
    python tests/benchmarks/quality_per_byte.py --model smollm2=FOLDER --targets 86,92,106 \\
        --gguf model.gguf --llama-bin build/bin --genai-python venv/bin/python --json out.json

FOLDER is a Hugging Face folder of floats (see small_model.py and dequantize.py); --gguf the file
that it came from, whose blocks `exact` and `compact` keep. All start from the same weights, are
calibrated on the model's own words, and are compared with float32 on the same windows of two texts
that nobody was calibrated on. What is made stays in --work, so a second run measures only what is
new; --speed adds tokens per second, which mean nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - puts this checkout's packages on the path
import numpy as np
import peers
import platformdirs
from numpy.typing import NDArray
from prepare import say

from edgellm.bench.quality import LogitsSource, Report, Scope, Window, default_text, evaluate
from edgellm.bench.quality import text_windows as cut
from edgellm.bundle import tokenizer
from edgellm.bundle.manifest import Source
from edgellm.errors import EdgellmError
from edgellm.runtime.local import open_logits
from edgellm.runtime.options import LoadOptions
from edgellm_export.pipeline import Job, export_bundle
from edgellm_export.quantize.calibrate import Calibration
from edgellm_export.recipe import Integer, Recipe, recipe

GPL3 = Path("/usr/share/common-licenses/GPL-3")
WINDOW_TOKENS = 512
OPTIONS = LoadOptions(context_tokens=WINDOW_TOKENS)
MB = 1e6


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured on what."""

    name: str
    folder: Path
    work: Path
    targets: tuple[float, ...]
    gguf: Path | None
    scope: Scope


@dataclass(frozen=True, slots=True)
class Row:
    """One contender on one text."""

    contender: str
    text: str
    mb: float
    report: Report


class Recorded:
    """A model's logits on some windows, computed once: the reference of all contenders."""

    def __init__(self, model: LogitsSource, windows: list[Window]) -> None:
        self._model = model
        self._kept = {}
        for number, window in enumerate(windows, start=1):
            say(f"reference: window {number} of {len(windows)}")
            rows = np.concatenate(list(model.logits(list(window.ids))))
            self._kept[window.ids] = rows[window.first - 1 :].copy()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def logits(self, ids: list[int]) -> Iterator[NDArray[np.float32]]:
        """Rows that no score needs are zeros."""
        kept = self._kept[tuple(ids)]
        yield np.broadcast_to(np.float32(0), (len(ids) - len(kept), kept.shape[1]))
        yield kept


def main() -> int:
    asked = arguments()
    name, _, folder = asked.model.partition("=")
    work = asked.work or platformdirs.user_cache_path("edgellm-benchmarks", appauthor=False)
    targets = tuple(float(target) for target in asked.targets.split(",") if target)
    setting = Setting(
        name, Path(folder), work / name, targets, asked.gguf, Scope(asked.tokens, WINDOW_TOKENS)
    )
    setting.work.mkdir(parents=True, exist_ok=True)
    ours = dict(bundles(setting))
    rows = list(measured(setting, ours | dict(foreign(setting, asked.genai_python))))
    if asked.llama_bin:
        rows += llama_rows(setting, asked.llama_bin)
    print(table(setting, rows, speeds(ours) if asked.speed else {}))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--targets", default="", metavar="MB,MB", help="sizes for mixed bits")
    parser.add_argument("--gguf", type=Path, help="the file that FOLDER was dequantized from")
    parser.add_argument("--llama-bin", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--genai-python", type=Path, help="Python with onnxruntime-genai")
    parser.add_argument("--work", type=Path, help="folder for what is made")
    parser.add_argument("--tokens", type=int, default=4096, help="score so many a text [4096]")
    parser.add_argument("--speed", action="store_true", help="also `edgellm bench` on bundles")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def texts() -> dict[str, str]:
    """What is measured on; nobody is calibrated on it."""
    return {"pydoc": default_text(), "GPL-3": GPL3.read_text(encoding="utf-8")}


def bundles(setting: Setting) -> Iterator[tuple[str, Path]]:
    """Our bundles by the name of how they were made."""
    cache = setting.work / "calibration"
    yield "fp32", bundle(setting, "fp32", recipe("fp32"))
    plain = {size: Recipe("int4", *2 * [Integer(4, size, True)], "_q4") for size in (32, 64)}
    for size, made_by in plain.items():
        yield f"int4 RTN, blocks of {size}", bundle(setting, f"rtn-{size}", made_by)
    for target in setting.targets:
        label = f"--target-mb {target:g}"
        wanted = Calibration(cache, target_mb=target)
        made_in = bundle(setting, f"target-{target:g}", recipe("int4"), wanted)
        if recovers(made_in):
            yield f"{label} (recovers the 4-bit blocks the floats came from)", made_in
            wanted = replace(wanted, recover=False)  # as for floats that never were blocks
            made_in = bundle(setting, f"target-{target:g}-born", recipe("int4"), wanted)
        yield label, made_in
    for size, made_by in plain.items():
        made_in = bundle(setting, f"gptq-{size}", made_by.calibrated(), Calibration(cache))
        yield f"int4 GPTQ, blocks of {size}", made_in
    if setting.gguf:
        for name in ("exact", "compact"):
            made_in = bundle(setting, name, recipe(name), source=setting.gguf)
            yield f"{name} (keeps the GGUF's own blocks)", made_in


def bundle(
    setting: Setting,
    name: str,
    made_by: Recipe,
    calibration: Calibration | None = None,
    source: Path | None = None,
) -> Path:
    """A bundle in the work folder, made when it is not there; it is there whole or not at all."""
    out = setting.work / f"bundle-{name}"
    if out.is_dir():
        return out
    say(f"making {out}")
    part = out.with_name(f"part-{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    origin = source or setting.folder
    job = Job(origin, made_by, Source(origin.name), setting.name, calibration=calibration)
    export_bundle(job, part, say)
    return part.rename(out)


def recovers(folder: Path) -> bool:
    """Whether matrices of the bundle got back the blocks that their floats once were."""
    words = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    return any("offset" in how for how in words["recipe"].get("matrices", {}).values())


def foreign(setting: Setting, genai_python: Path | None) -> Iterator[tuple[str, Path]]:
    if genai_python:
        made_in = peers.genai_model(setting.folder, genai_python, setting.work)
        yield "onnxruntime-genai int4", made_in


def measured(setting: Setting, folders: dict[str, Path]) -> Iterator[Row]:
    """Every folder on every text."""
    for text_name, text in texts().items():

        @functools.cache
        def reference(text: str = text) -> tuple[list[Window], Recorded]:
            with open_logits(str(folders["fp32"]), OPTIONS) as truth:
                windows = cut(text, setting.scope, [truth])
                return windows, Recorded(truth, windows)

        for name, folder in folders.items():

            def report(folder: Path = folder) -> Report:
                windows, truth = reference()
                with opened(folder) as model:
                    return evaluate(windows, model, truth)

            kept = setting.work / "reports" / f"{folder.name}-{text_name}-{setting.scope.tokens}"
            say(f"measuring {name} on {text_name}")
            yield Row(name, text_name, weight_mb(folder), remembered(kept, report))


def opened(folder: Path) -> AbstractContextManager[LogitsSource]:
    """A bundle, or another program's folder, as a source of logits."""
    if (folder / "edgellm.json").is_file():
        return open_logits(str(folder), OPTIONS)
    return nullcontext(peers.PlainModel(folder))


def remembered(path: Path, make: Callable[[], Report]) -> Report:
    """The report that an earlier run has kept at `path`, or a new one."""
    if path.is_file():
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    report = make()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(report)), encoding="utf-8")
    return report


def llama_rows(setting: Setting, programs: Path) -> Iterator[Row]:
    """llama.cpp against its own float32; calibrated on the text that our bundles were."""
    llama = peers.LlamaCpp(programs, setting.work)
    llama.convert(setting.folder)
    imatrix = llama.imatrix(own_words(setting), WINDOW_TOKENS)
    for text_name, text in texts().items():
        file = setting.work / f"{text_name}.txt"
        file.write_text(text, encoding="utf-8")
        count = len(tokenizer.read(setting.folder).encode(text, special=False))
        windows = min(2 * setting.scope.tokens // WINDOW_TOKENS, count // WINDOW_TOKENS)
        scope = Scope(windows * WINDOW_TOKENS // 2, WINDOW_TOKENS)
        for kind in peers.TYPES:
            for label, matrix in ((kind, None), (f"{kind} with imatrix", imatrix)):
                say(f"measuring llama.cpp {label} on {text_name}")
                model = llama.quantize(kind, matrix)
                kept = setting.work / "reports" / f"{model.name}-{text_name}-{scope.tokens}"
                report = remembered(kept, functools.partial(llama.measure, model, file, scope))
                yield Row(f"llama.cpp {label}", text_name, peers.tensor_bytes(model) / MB, report)


def own_words(setting: Setting) -> Path:
    """The text our bundles were calibrated on."""
    (ids,) = (setting.work / "calibration").glob("*/ids.npy")
    words = tokenizer.read(setting.folder)
    text = "".join(words.decode(row.tolist()) for row in np.load(ids, allow_pickle=False))
    out = setting.work / "own-words.txt"
    out.write_text(text, encoding="utf-8")
    return out


def weight_mb(folder: Path) -> float:
    """10^6 bytes of the weights file."""
    found = [*folder.glob("onnx/*.onnx_data"), *folder.glob("*.onnx.data")]
    return sum(path.stat().st_size for path in found) / MB


def speeds(ours: dict[str, Path]) -> dict[str, float]:
    """Tokens decoded a second by `edgellm bench`, the median of five runs."""
    import contenders

    load = contenders.Load(prompt_tokens=(0,), depths=(0,), repetitions=5)
    return {
        name: float(np.median(contenders.edgellm(name, folder, load).run().samples["tg128", 0]))
        for name, folder in ours.items()
    }


def table(setting: Setting, rows: list[Row], rates: dict[str, float]) -> str:
    """Markdown, by text and size."""
    head = f"| {setting.name} | MB | mean KL | 99 % KL | top-1 | perplexity |"
    lines = []
    for text in texts():
        lines += [f"\n{text}\n", head + (" tokens/s |" if rates else "")]
        lines.append("| --- |" + " ---: |" * (6 if rates else 5))
        for row in sorted((r for r in rows if r.text == text), key=lambda r: -r.mb):
            lines.append(line(row) + (f" {rates.get(row.contender, 0):.0f} |" if rates else ""))
    return "\n".join(lines)


def line(row: Row) -> str:
    report: Any = row.report
    return (
        f"| {row.contender} | {row.mb:#.4g} | {report.kl_mean:.4f} | {report.kl_p99:.3f} "
        f"| {report.top1_agreement:.1%} | {report.perplexity:.2f} |"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgellmError as error:
        sys.exit(str(error))
