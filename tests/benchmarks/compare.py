"""edgellm, llama-bench and onnxruntime-genai in turn, in one run, on the same weights.

    python tests/benchmarks/compare.py --gguf model.gguf --llama-bench PATH --genai-python PATH

Each round runs every contender once (A B C A B C …), so that a machine that warms up or gets busy
meets them all. Verdicts are ratios of medians over the rounds. Exit code: 0 all targets met,
1 one was missed, 3 the machine is busy. See README.md for how to get the other two programs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import contenders
import platformdirs
import prepare
import quiet
import verdicts
from checkout import ROOT
from contenders import Contender, Key, Load

from edgellm.device import detect
from edgellm_export.recipe import recipe

MISSED, BUSY = 1, 3
# The 4-bit recipe that is made for speed.
INT4 = "int4_block128"


@dataclass(frozen=True, slots=True)
class Setup:
    """What to compare; a program that is None is left out. Bundles are made when not given."""

    gguf: Path
    work: Path
    llama_bench: Path | None
    llama_quantize: Path | None
    genai_python: Path | None
    genai_model: Path | None
    exact: Path | None
    int4: Path | None
    plain: bool
    threads: int
    rounds: int
    json: Path | None
    force: bool


@dataclass(frozen=True, slots=True)
class Run:
    """All samples of all rounds; `busy_percent` is of the second before each round."""

    samples: dict[str, dict[Key, list[float]]]
    versions: dict[str, str]
    busy_percent: list[float]


def main() -> int:
    setup = arguments()
    reason = quiet.ask()
    if reason and not setup.force:
        print(f"this machine is busy: {reason}; stop what runs or give --force", file=sys.stderr)
        return BUSY
    entered = list(enter(setup))
    found = compare(entered, setup.rounds)
    decided = [verdicts.verdict(target, found.samples) for target in verdicts.TARGETS]
    facts = circumstances(setup, found)
    print("\n".join(report(found, decided, facts)))
    if setup.json is not None:
        setup.json.write_text(json.dumps(document(found, decided, facts), indent=2) + "\n")
    return MISSED if any(verdict.word == "MISSED" for verdict in decided) else 0


def arguments() -> Setup:
    """The Setup of the command line; programs not named are looked for on PATH."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="a Q4_1 file")
    parser.add_argument("--work", type=Path, help="folder for what is made of it")
    parser.add_argument("--llama-bench", type=Path, default=which("llama-bench"))
    parser.add_argument("--llama-quantize", type=Path, help="default: beside llama-bench")
    parser.add_argument("--genai-python", type=Path, help="Python that has onnxruntime-genai")
    parser.add_argument("--genai-model", type=Path, help="its int4 export; default: make it")
    parser.add_argument("--exact", type=Path, help="bundle of the exact import; default: make it")
    parser.add_argument("--int4", type=Path, help="bundle of int4_block128; default: make it")
    parser.add_argument("--plain", action="store_true", help="also both without --fast-prefill")
    parser.add_argument("--threads", type=int, default=detect.usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine")
    values = vars(parser.parse_args())
    for name in ("gguf", "llama_bench", "llama_quantize", "genai_python"):
        if values[name] is not None and not values[name].exists():
            parser.error(f"there is no {values[name]}")
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = value.absolute()  # the contenders run elsewhere
    if values["rounds"] < 1 or values["threads"] < 1:
        parser.error("--rounds and --threads must be 1 or more")
    if values["work"] is None:
        values["work"] = platformdirs.user_cache_path("edgellm-benchmarks", appauthor=False)
    if values["llama_quantize"] is None and values["llama_bench"] is not None:
        beside = values["llama_bench"].with_name("llama-quantize")
        values["llama_quantize"] = beside if beside.exists() else which("llama-quantize")
    return Setup(**values)


def which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def enter(setup: Setup) -> Iterator[Contender]:
    """Every contender that can take part, in the order of a round; others are named on stderr."""
    setup.work.mkdir(parents=True, exist_ok=True)
    load = Load(threads=setup.threads)
    exact, int4 = (
        given or prepare.bundle(setup.gguf, recipe(name), setup.work / f"bundle-{name}", True)
        for name, given in (("exact", setup.exact), (INT4, setup.int4))
    )
    if setup.plain:
        for name, precision in ((verdicts.EXACT_PLAIN, "exact"), (verdicts.INT4_PLAIN, INT4)):
            out = setup.work / f"bundle-{precision}-plain"
            bundle = prepare.bundle(setup.gguf, recipe(precision), out)
            yield contenders.edgellm(name, bundle, load)
    yield contenders.edgellm(verdicts.EXACT, exact, load)
    if setup.llama_bench is None:
        prepare.say("without llama-bench: give --llama-bench PATH")
    else:
        yield contenders.llama_bench(verdicts.LLAMA_Q4_1, setup.llama_bench, setup.gguf, load)
    yield contenders.edgellm(verdicts.INT4, int4, load)
    if setup.llama_bench is not None and setup.llama_quantize is not None:
        for name, embedding in ((verdicts.LLAMA_Q4_0, None), (verdicts.LLAMA_Q4_0_Q8, "q8_0")):
            gguf = prepare.q4_0(setup.gguf, setup.llama_quantize, setup.work, embedding)
            yield contenders.llama_bench(name, setup.llama_bench, gguf, load)
    if setup.genai_python is None:
        prepare.say("without onnxruntime-genai: give --genai-python PATH")
        return
    model = setup.genai_model or prepare.genai_model(setup.gguf, setup.genai_python, setup.work)
    yield contenders.genai(verdicts.GENAI, setup.genai_python, model, load)


def compare(entered: Sequence[Contender], rounds: int) -> Run:
    """The samples of `rounds` rounds."""
    found = Run({contender.name: {} for contender in entered}, {}, [])
    for number in range(1, rounds + 1):
        found.busy_percent.append(quiet.busy_percent(1.0))
        for contender in entered:
            prepare.say(f"round {number} of {rounds}: {contender.name}")
            answer = contender.run()
            found.versions[contender.name] = answer.version
            for key, samples in answer.samples.items():
                found.samples[contender.name].setdefault(key, []).extend(samples)
    return found


def circumstances(setup: Setup, found: Run) -> dict[str, Any]:
    """Date, machine and versions, as they will be asked for later."""
    machine = detect.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**asdict(machine), "cpu_features": sorted(machine.cpu_features)},
        "threads": setup.threads,
        "rounds": setup.rounds,
        "weights": setup.gguf.name,
        "edgellm": revision(),
        "versions": found.versions,
        "busy_percent": found.busy_percent,
    }


def revision() -> str:
    """The checkout's commit, marked when files differ from it; "unknown" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def report(found: Run, decided: list[verdicts.Verdict], facts: dict[str, Any]) -> Iterator[str]:
    """Markdown for people."""
    machine = facts["machine"]
    versions = ", ".join(dict.fromkeys(found.versions.values()))
    yield (
        f"{facts['date']}, {machine['cpu_name']} ({machine['architecture']}), "
        f"{facts['threads']} threads, {facts['rounds']} rounds, weights {facts['weights']}; "
        f"edgellm {facts['edgellm']}, {versions}"
    )
    yield ""
    yield verdicts.verdict_table(decided)
    yield ""
    yield verdicts.sample_table(found.samples)
    busy = [percent for percent in found.busy_percent if percent > quiet.BUSY_PERCENT_LIMIT]
    if busy:
        yield ""
        yield (
            f"{len(busy)} of {len(found.busy_percent)} rounds began on a busy machine "
            f"(up to {max(busy):.0f} %): these figures prove nothing"
        )


def document(found: Run, decided: list[verdicts.Verdict], facts: dict[str, Any]) -> dict[str, Any]:
    """The same and every sample, for programs."""
    return {
        "schema_version": 1,
        **facts,
        "verdicts": [{**asdict(verdict), "verdict": verdict.word} for verdict in decided],
        "samples": [
            {"contender": name, "test": test, "depth": depth, "tokens_per_s": samples}
            for name, tests in found.samples.items()
            for (test, depth), samples in tests.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
