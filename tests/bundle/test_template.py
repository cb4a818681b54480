from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.bundle import template, template_process
from edgellm.bundle.template import ChatTemplate, Renderer
from edgellm.bundle.template_process import Limits
from edgellm.errors import Corrupt, EdgellmError, UsageError
from edgellm.stream import Message

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    "{% endif %}"
)
HELLO = [Message("user", "Hello")]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(Limits(seconds=0.5)) as made:
        yield made


def rendered(text: str, renderer: Renderer, **special: str) -> str:
    return ChatTemplate(text, special).render(HELLO, renderer=renderer)


def test_a_conversation_is_rendered_as_transformers_does(renderer: Renderer) -> None:
    messages = [Message("system", "Be <brief>."), Message("user", "Grüße 😀")]
    assert ChatTemplate(CHATML).render(messages, renderer=renderer) == (
        "<|im_start|>system\nBe <brief>.<|im_end|>\n"
        "<|im_start|>user\nGrüße 😀<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_generation_prompt_can_be_left_out(renderer: Renderer) -> None:
    shown = ChatTemplate(CHATML).render(HELLO, add_generation_prompt=False, renderer=renderer)
    assert shown == "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{ bos_token }}x{{ eos_token }}", "<s>x</s>"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}answer{% endgeneration %}", "answer"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ tools is none }}{{ documents is none }}{{ missing is defined }}", "TrueTrueFalse"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
    ],
)
def test_templates_find_what_transformers_gives_them(
    text: str, shown: str, renderer: Renderer
) -> None:
    assert rendered(text, renderer, bos_token="<s>", eos_token="</s>") == shown


def test_a_template_may_refuse_the_messages(renderer: Renderer) -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}", renderer)


@pytest.mark.parametrize(
    "text",
    [
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_a_broken_or_hostile_template_is_corrupt_in_one_line(text: str, renderer: Renderer) -> None:
    with pytest.raises(Corrupt, match="chat template cannot be used") as caught:
        rendered(text, renderer)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_stopped(text: str, renderer: Renderer) -> None:
    with pytest.raises(Corrupt, match=r"longer than 0\.5 s"):
        rendered(text, renderer)
    assert rendered("next", renderer) == "next"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 300000000 }}",
        "{{ '%300000000d' | format(1) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel limits memory on Linux only")
def test_a_template_that_builds_a_huge_string_is_refused(text: str) -> None:
    with Renderer(Limits(seconds=20)) as made:
        with pytest.raises(Corrupt, match="too much memory"):
            rendered(text, made)
        assert rendered("next", made) == "next"


def test_memory_is_watched_from_outside_where_the_kernel_does_not_limit_it() -> None:
    script = "x = bytearray(400 * 10**6); import time; time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", script]) as process,
        template_process._Watch(process, seconds=50, memory_mb=200) as watch,
    ):
        status = process.wait()
    assert watch.reason == "it needs more than 200 MB"
    assert status != 0


def test_a_worker_killed_between_turns_is_replaced(renderer: Renderer) -> None:
    assert rendered("one", renderer) == "one"
    worker = renderer._living()
    worker._process.kill()
    worker._process.wait()
    assert rendered("two", renderer) == "two"


def test_an_interrupted_turn_does_not_answer_the_next_one(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(template_process.Worker, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rendered("first", renderer)
    assert rendered("second", renderer) == "second"


def test_a_forked_child_starts_its_own_worker(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rendered("parent", renderer) == "parent"
    parents = renderer._living()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert not parents.alive
    assert parents.alive


def test_threads_share_one_worker(renderer: Renderer) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = rendered(f"{number}", renderer)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: str(i) for i in range(8)}


def test_the_worker_sees_no_secrets_of_the_host(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to read another process' environment")
    monkeypatch.setenv("EDGELLM_REMOTE_KEY", "hunter2")
    with Renderer() as made:
        assert rendered("x", made) == "x"
        environment = Path(f"/proc/{made._living()._process.pid}/environ").read_bytes()
    assert b"hunter2" not in environment


def test_rendering_loads_no_template_engine_into_the_host() -> None:
    code = (
        "import sys; from edgellm.bundle import template; from edgellm.stream import Message; "
        "text = template.render('{{ messages[0].content }}', [Message('user', 'hi')]); "
        "assert text == 'hi', text; assert 'jinja2' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_that_is_no_interpreter_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EdgellmError, match="pass Renderer"):
        Renderer().warm()


def test_an_interpreter_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdgellmError, match="cannot start"):
        Renderer(python=str(tmp_path / "nothing")).warm()
    with pytest.raises(EdgellmError), Renderer(python="/bin/false") as made:
        rendered("x", made)


def test_the_jinja_file_goes_before_the_one_in_the_config(tmp_path: Path) -> None:
    config = {"chat_template": "config", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = template.read(tmp_path)
    assert found == ChatTemplate("config", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("file")
    found = template.read(tmp_path)
    assert found is not None
    assert found.text == "file"


def test_named_templates_offer_their_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = template.read(tmp_path)
    assert found is not None
    assert found.text == "d"


def test_a_bundle_may_have_no_template(tmp_path: Path) -> None:
    assert not template.has_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert template.read(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": 7}'),
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"x" * (template.TEMPLATE_LIMIT_BYTES + 1)),
    ],
)
def test_a_damaged_template_file_is_corrupt(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Corrupt, match=name.replace(".", r"\.")):
        template.read(tmp_path)
