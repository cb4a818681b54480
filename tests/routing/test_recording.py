"""The recorder: a bundle's answers, their signals and their grades, in one small file."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import generate
import items
import record
import recording
import tiny_models as tiny

WIDTH = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    tiny.make_bundle(tiny.write_gguf(folder / "m.gguf", tiny.WIDE_HEADS), folder / "tiny-llama")
    return folder / "tiny-llama"


def line(item: items.Item, seed: int) -> dict[str, object]:
    states = np.random.default_rng(seed).normal(0, 2, (3, WIDTH)).astype(np.float16)
    return {
        "id": item.id,
        "text": f"é{seed}",
        "tokens": [[seed, -0.5, 1.5, 0.25]] * seed,
        "prompt_tokens": 7,
        "finish": "length" if seed % 2 else "stop",
        "strict": False,
        "lenient": seed == 2,
        "hidden": base64.b64encode(states.tobytes()).decode(),
    }


def test_a_recording_gives_back_what_was_answered(tmp_path: Path) -> None:
    known = generate.generate()[:4]
    items.write(tmp_path / "items.jsonl", known)
    written = [line(item, seed) for seed, item in enumerate(known)]
    parts = ("exact.0of2.part.jsonl", "exact.1of2.part.jsonl")
    for name, mine in zip(parts, (written[:3], written[3:]), strict=True):
        text = "\n".join(map(json.dumps, mine))
        (tmp_path / name).write_text(text + '\n{"id": "cut of', encoding="utf-8")
    recording.pack(tmp_path, tmp_path, "exact", {"model": "tiny"})
    with np.load(tmp_path / "exact.npz", allow_pickle=False) as found:
        assert [recording.text_of(found, i) for i in range(4)] == ["é0", "é1", "é2", "é3"]
        assert found["offsets"].tolist() == [0, 0, 1, 3, 6]
        assert found["token_ids"].tolist() == [1, 2, 2, 3, 3, 3]
        assert found["finish"].tolist() == [0, 1, 0, 1]
        assert found["lenient"].tolist() == [False, False, True, False]
        assert found["prompt_last"].shape == (4, WIDTH)
        meta = json.loads(str(found["meta"][0]))
        wanted = np.frombuffer(base64.b64decode(written[3]["hidden"]), np.float16)
        close = found["answer_mean"][3] - wanted.reshape(3, WIDTH)[2]
        assert np.abs(close).max() <= 0.13 * found["answer_mean"].std(axis=0).max()
    assert meta["model"] == "tiny"


def test_an_unfinished_recording_says_how_much_is_missing(tmp_path: Path) -> None:
    known = generate.generate()[:3]
    items.write(tmp_path / "items.jsonl", known)
    (tmp_path / "exact.0of1.part.jsonl").write_text(json.dumps(line(known[1], 1)) + "\n")
    with pytest.raises(SystemExit, match="2 of 3 answers are missing"):
        recording.pack(tmp_path, tmp_path, "exact", {})
    recording.pack(tmp_path, tmp_path / "sofar", "exact", {})
    assert recording.read_items(tmp_path / "sofar") == [known[1]]


def test_a_bundle_is_recorded_and_goes_on_where_it_was_interrupted(
    bundle: Path, tmp_path: Path
) -> None:
    shortest = sorted(generate.generate(), key=lambda item: len(str(item.prompt)))[:3]
    items.write(tmp_path / "items.jsonl", shortest)
    meta = record.about(bundle)
    job = record.Job(bundle, tmp_path, meta["precision"], 0, 1, 1, None)
    job.file.write_text('{"id": "half a li')
    record.record(job, shortest)
    first = list(recording.lines(job.file))
    assert {answer["id"] for answer in first} == {item.id for item in shortest}
    assert list(record.todo(job, shortest)) == []
    job.file.write_text(json.dumps(first[0]) + "\n")
    record.record(job, shortest)
    assert list(recording.lines(job.file)) == first
    for answer in first:
        assert answer["prompt_tokens"] > 0
        assert all(entropy >= 0 for _, _, entropy, _ in answer["tokens"])
        assert len(base64.b64decode(answer["hidden"])) == 3 * 2 * tiny.WIDE_HEADS.hidden
