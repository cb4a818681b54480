"""Bad input over the real command line: one line, the right exit code, no hang, nothing on stdout.

The bundle that is damaged here is a real one: a random Llama of two layers, exported once by
`edgellm pull` itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parents[1]
# Far above the slowest case (5 s): a busy machine may let a process wait, a hang never ends.
LIMIT_SECONDS = 120
USAGE, REFUSED, NOT_FOUND, CORRUPT = 2, 3, 4, 5
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 258,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Said:
    code: int
    out: bytes
    err: str


def call(folder: Path, home: Path, arguments: Sequence[str | bytes], stdin: bytes = b"") -> Said:
    """What one process of the command line, standing in `folder`, said."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "export"))),
        "EDGELLM_HOME": str(home),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", *arguments],
        input=stdin, env=environment, cwd=folder, capture_output=True, timeout=LIMIT_SECONDS,
        check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr.decode())


# A checkpoint small enough to export in a second


def tensors() -> dict[str, Any]:
    random = np.random.default_rng(0)
    width, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 16
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], width)}
    shapes |= {"model.norm.weight": (width,)}
    for number in range(2):
        shapes |= {f"model.layers.{number}.{name}.weight": s for name, s in layer.items()}
    return {
        name: np.float32(0.2) * random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def safetensors(arrays: dict[str, Any]) -> bytes:
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tokenizer() -> str:
    """Bytes as tokens, and two special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return made.to_str()


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors(tensors()))
    (folder / "tokenizer.json").write_text(tokenizer())
    settings = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle; tests damage a copy."""
    base = tmp_path_factory.mktemp("whole")
    checkpoint(base / "source")
    said = call(base, base / "home", ["pull", "./source", "--json"])
    assert said.code == 0, said.err
    return Path(json.loads(said.out)["path"])


def relist(folder: Path, path: str) -> None:
    """Makes the manifest agree with a changed file, as somebody who means harm would."""
    listed = json.loads((folder / "edgellm.json").read_text())
    raw = (folder / path).read_bytes()
    listed["files"][path] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "edgellm.json").write_text(json.dumps(listed))


def data_file(folder: Path) -> Path:
    (path,) = folder.glob("onnx/*.onnx_data")
    return path


def native_graph(folder: Path) -> Path:
    (path,) = folder.glob("onnx/edgellm*.onnx")
    return path


# Ways to damage a bundle


def change_a_byte(folder: Path) -> None:
    with data_file(folder).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def cut_the_weights(folder: Path) -> None:
    os.truncate(data_file(folder), 1000)


def drop_the_weights(folder: Path) -> None:
    data_file(folder).unlink()


def link_the_weights(folder: Path) -> None:
    path = data_file(folder)
    path.rename(folder.parent / "secret")
    path.symlink_to(folder.parent / "secret")


def name_the_weights_twice(folder: Path) -> None:
    os.link(data_file(folder), folder.parent / "secret")


def point_outside(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(data_file(folder).read_bytes())
    path = native_graph(folder)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../secret"
    path.write_bytes(model.SerializeToString())
    relist(folder, path.relative_to(folder).as_posix())


def graph_of_noise(folder: Path) -> None:
    path = native_graph(folder)
    path.write_bytes(b"<!doctype html><title>404</title>")
    relist(folder, path.relative_to(folder).as_posix())


def graph_of_nothing(folder: Path) -> None:
    path = native_graph(folder)
    path.write_bytes(b"")
    relist(folder, path.relative_to(folder).as_posix())


def manifest_of_noise(folder: Path) -> None:
    (folder / "edgellm.json").write_text("{" * 5000)


def manifest_that_leaves(folder: Path) -> None:
    text = (folder / "edgellm.json").read_text()
    (folder / "edgellm.json").write_text(text.replace('"onnx/', '"../onnx/'))


def manifest_of_tomorrow(folder: Path) -> None:
    listed = json.loads((folder / "edgellm.json").read_text())
    (folder / "edgellm.json").write_text(json.dumps(listed | {"format": 99}))


def tokenizer_of_noise(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")
    relist(folder, "tokenizer.json")


def template(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)
        relist(folder, "chat_template.jinja")

    return damage


def add_a_template(folder: Path) -> None:
    listed = json.loads((folder / "edgellm.json").read_text())
    listed["files"].pop("chat_template.jinja", None)
    (folder / "edgellm.json").write_text(json.dumps(listed))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BUNDLES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a changed byte": (change_a_byte, ["sha256", "edgellm rm"]),
    "cut weights": (cut_the_weights, ["has 1000 bytes", "edgellm rm"]),
    "no weights": (drop_the_weights, ["missing", "edgellm rm"]),
    "weights behind a link": (link_the_weights, ["symbolic link", "copy"]),
    "weights with a second name": (name_the_weights_twice, ["hard link", "copy"]),
    "weights outside": (point_outside, ["'../../secret'", "outside"]),
    "a web page as graph": (graph_of_noise, ["graph"]),
    "an empty graph": (graph_of_nothing, ["edgellm"]),
    "a manifest of noise": (manifest_of_noise, ["not valid JSON"]),
    "a manifest that leaves its folder": (manifest_that_leaves, ["leaves the bundle's folder"]),
    "a manifest of tomorrow": (manifest_of_tomorrow, ["99"]),
    "a tokenizer of noise": (tokenizer_of_noise, ["tokenizer"]),
    "a template that was added": (add_a_template, ["chat_template.jinja", "added"]),
    "a template that loops forever": (template(LOOP), ["template"]),
    "a template of 300 MB": (template("{{ 'a' * 300000000 }}"), ["template"]),
    "a template with an error": (template("{{ 1 / 0 }}"), ["template"]),
    "a template that looks around": (template("{{ ''.__class__.mro() }}"), ["template"]),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_damaged_bundle_never_answers(name: str, whole: Path, tmp_path: Path) -> None:
    damage, words = BUNDLES[name]
    shutil.copytree(whole, tmp_path / "bundle", ignore=shutil.ignore_patterns(".verified*"))
    damage(tmp_path / "bundle")
    complains(call(tmp_path, tmp_path / "home", ["run", "./bundle", "hello"]), CORRUPT, words)


def test_the_bundle_that_is_damaged_here_answers(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "bundle")
    said = call(tmp_path, tmp_path / "home", ["run", "./bundle", "hello", "-n", "3", "-t", "0"])
    assert (said.code, said.err.count("Traceback")) == (0, 0)
    assert said.out


def test_a_damaged_bundle_in_the_store_is_removed_as_the_message_says(
    whole: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(whole, home / "models" / "mine")
    change_a_byte(home / "models" / "mine")
    said = call(tmp_path, home, ["run", "mine", "hello"])
    complains(said, CORRUPT, ["edgellm rm mine"])
    assert call(tmp_path, home, ["rm", "mine", "--yes"]).code == 0
    complains(call(tmp_path, home, ["run", "mine", "hello"]), NOT_FOUND, ["mine"])


# Checkpoints


GGUF = b"GGUF" + struct.pack("<I", 3)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


CUT_GGUF = GGUF + struct.pack("<QQ", 1, 1) + text("general.architecture") + struct.pack("<I", 8)
TENSOR = text("a") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 1 << 50)
CHECKPOINTS: dict[str, tuple[bytes, int, list[str]]] = {
    "cut.gguf": (CUT_GGUF, CORRUPT, ["cut.gguf"]),
    "head.gguf": (GGUF[:6], CORRUPT, ["head.gguf", "bytes"]),
    "empty.gguf": (b"", CORRUPT, ["empty.gguf", "0 bytes"]),
    "counts.gguf": (GGUF + struct.pack("<QQ", 1 << 60, 1 << 60), CORRUPT, ["claims", str(1 << 60)]),
    "offsets.gguf": (GGUF + struct.pack("<QQ", 1, 0) + TENSOR, CORRUPT, ["offsets.gguf"]),
    "page.gguf": (b"<!DOCTYPE html><html>404</html>", CORRUPT, ["web page"]),
    "noise.gguf": (np.random.default_rng(1).bytes(9999), CORRUPT, ["not GGUF"]),
    "v1.gguf": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), CORRUPT, ["version 1"]),
    "weights.bin": (b"\x80\x04N.", USAGE, ["pickled", ".gguf"]),
    "notes.md": (b"# notes", USAGE, []),
}
WHOLE = safetensors(tensors())
LYING = {"a": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}}
FOLDERS: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "nothing": ({}, NOT_FOUND, ["edgellm.json", "config.json"]),
    "only_config": ({"config.json": CONFIG}, NOT_FOUND, ["only_config"]),
    "lying_header": (
        {"config.json": CONFIG, "model.safetensors": LYING},
        CORRUPT,
        ["model.safetensors"],
    ),
    "long_header": (
        {"config.json": CONFIG, "model.safetensors": struct.pack("<Q", 1 << 62)},
        CORRUPT,
        ["model.safetensors"],
    ),
    "cut_weights": (
        {"config.json": CONFIG, "model.safetensors": WHOLE[:-100]},
        CORRUPT,
        ["model.safetensors"],
    ),
    "absurd_config": (
        {"config.json": CONFIG | {"num_hidden_layers": 1 << 60}, "model.safetensors": WHOLE},
        CORRUPT,
        ["num_hidden_layers"],
    ),
    "pickles": ({"config.json": CONFIG, "pytorch_model.bin": b"\x80"}, CORRUPT, ["pickle"]),
    "their_code": (
        {"config.json": CONFIG | {"model_type": "mine"}, "model.safetensors": {}, "m.py": b"1/0"},
        CORRUPT,
        ["'mine' has no builder", "edgellm[cpu,optimum]"],
    ),
}


def encode(name: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw if name.endswith(".safetensors") else raw


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_file_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    content, code, words = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(content)
    fails_and_leaves_nothing(tmp_path, ["run", f"./{name}", "hello"], code, words)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_folder_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    files, code, words = FOLDERS[name]
    (tmp_path / name).mkdir()
    for file, content in files.items():
        (tmp_path / name / file).write_bytes(encode(file, content))
    fails_and_leaves_nothing(tmp_path, ["pull", f"./{name}"], code, words)


@pytest.mark.parametrize("path", ["./pipe.gguf", "./folder.gguf", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    said = call(tmp_path, tmp_path / "home", ["pull", path])
    code = NOT_FOUND if path == "./folder.gguf" else USAGE
    complains(said, code, [path.removeprefix("./")])


def fails_and_leaves_nothing(
    folder: Path, arguments: Sequence[str], code: int, words: Sequence[str]
) -> None:
    home = folder / "home"
    complains(call(folder, home, arguments), code, words)
    assert not list(home.glob("models/*"))
    assert not list(home.glob("tmp/*"))


# Wrong questions; none of them gets as far as a model


ALIAS = "smollm2-135m"
QUESTIONS: dict[str, tuple[list[str | bytes], int, list[str]]] = {
    "an empty prompt": (["run", ALIAS, ""], USAGE, ["prompt is empty"]),
    "a blank prompt": (["run", ALIAS, " \n\t"], USAGE, ["prompt is empty"]),
    "no prompt in the pipe": (["run", ALIAS], USAGE, ["prompt is empty"]),
    "-n 0": (["run", ALIAS, "hi", "-n", "0"], USAGE, ["max_tokens", "0"]),
    "-n -5": (["run", ALIAS, "hi", "-n", "-5"], USAGE, ["max_tokens", "-5"]),
    "-n many": (["run", ALIAS, "hi", "-n", "many"], USAGE, ["many"]),
    "--top-p 7": (["run", ALIAS, "hi", "--top-p", "7"], USAGE, ["top_p", "7"]),
    "-t nan": (["run", ALIAS, "hi", "-t", "nan"], USAGE, ["temperature", "nan"]),
    "-t 1e999": (["run", ALIAS, "hi", "-t", "1e999"], USAGE, ["temperature", "inf"]),
    "--seed 2^64": (["run", ALIAS, "hi", "--seed", str(1 << 64)], USAGE, ["seed"]),
    "--ctx 0": (["run", ALIAS, "hi", "--ctx", "0"], USAGE, ["context"]),
    "an empty stop": (["run", ALIAS, "hi", "--stop", ""], USAGE, ["stop"]),
    "an unknown option": (["run", ALIAS, "hi", "--nope"], USAGE, ["--nope"]),
    "an unknown command": (["rnu", ALIAS], USAGE, ["rnu"]),
    "bytes that are no UTF-8": (["run", ALIAS, b"caf\xe9"], USAGE, ["not valid UTF-8"]),
    "no model at all": (["pull", ""], USAGE, ["names no model"]),
    "a wrong reference": (["run", "hf:x", "hi"], USAGE, ["hf:ORG/NAME"]),
    "a name that climbs": (["rm", "../../etc", "--yes"], NOT_FOUND, ["../../etc"]),
    "an alias misspelt": (["run", "smolm2-135m", "hi"], NOT_FOUND, [ALIAS]),
    "offline, an alias misspelt": (["run", "smolm2-135m", "hi", "--offline"], NOT_FOUND, [ALIAS]),
    "offline, not there": (["run", ALIAS, "hi", "--offline"], REFUSED, ["offline", "pull"]),
    "no such file": (["run", "./nowhere.gguf", "hi"], NOT_FOUND, ["nowhere.gguf"]),
    "no such folder": (["pull", "/no/such/folder"], NOT_FOUND, ["/no/such/folder"]),
    "show what is not there": (["show", ALIAS], NOT_FOUND, ["edgellm pull"]),
    "rm what is not there": (["rm", ALIAS, "--yes"], NOT_FOUND, [ALIAS]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_wrong_question_is_answered_in_one_line(name: str, tmp_path: Path) -> None:
    arguments, code, words = QUESTIONS[name]
    complains(call(tmp_path, tmp_path / "home", arguments), code, words)
    assert not list(tmp_path.glob("home/models/*"))


@pytest.mark.parametrize("stdin", [b"caf\xe9", b"\xff\xfeh\0i\0", b"half a character \xf0\x9f\x98"])
def test_a_pipe_that_is_not_utf8_is_refused_with_the_place(stdin: bytes, tmp_path: Path) -> None:
    said = call(tmp_path, tmp_path / "home", ["run", ALIAS], stdin)
    complains(said, USAGE, ["stdin is not valid UTF-8 at byte"])


def test_a_pipe_without_end_is_refused(tmp_path: Path) -> None:
    said = call(tmp_path, tmp_path / "home", ["run", ALIAS], b"a" * (17 << 20))
    complains(said, USAGE, ["stdin has more than", "bytes"])


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    whole: Path, tmp_path: Path
) -> None:
    said = call(tmp_path, tmp_path / "home", ["run", str(whole), "x" * 500])
    complains(said, REFUSED, ["500", "128"])


def complains(said: Said, code: int, words: Sequence[str]) -> None:
    """One line of edgellm's on stderr, nothing on stdout, and this exit code."""
    assert said.code == code, said.err
    assert said.out == b""
    assert "Traceback" not in said.err
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("edgellm: ")
    for word in words:
        assert word in lines[0]
