"""The process that renders chat templates: run as a script by `template`, never imported.

A template comes from strangers. Jinja's sandbox keeps it from Python's internals, but neither
from looping for ever nor from building a string of any size, in C code that nothing inside the
process can interrupt. Hence a process of its own, limited from inside by the kernel and from
outside by the clock.

One JSON object a line, both ways: settings first, answered by {"ready": true}; then requests
{"template", "variables"}, each answered by {"text"} or by {"refused"} or {"broken"} with a reason.
"""

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any


def main() -> None:
    requests = iter(sys.stdin.readline, "")
    settings = json.loads(next(requests))
    sys.path.extend(settings["paths"])
    # Before the limits: what is imported now needs no memory and no time later.
    environment()
    answer({"ready": True, "limited": limit_memory(settings["memory_bytes"])})
    for line in requests:
        limit_time(settings["seconds"])
        answer(serve(json.loads(line), settings["characters"]))
        limit_time(0)


def answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def limit_memory(memory_bytes: int) -> bool:
    """Whether the kernel will hold this process to `memory_bytes` more than it has now."""
    try:
        import resource

        # Linux only: elsewhere RLIMIT_AS is missing or not enforced.
        with open("/proc/self/statm") as statm:
            now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + memory_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    except (ImportError, OSError, ValueError):
        return False
    return True


def limit_time(seconds: float) -> None:
    # The parent kills us long before; this is for a parent that was itself killed meanwhile.
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds * 2)


def serve(request: dict[str, Any], characters: int) -> dict[str, Any]:
    from jinja2.exceptions import TemplateError

    try:
        return {"text": collect(request["template"], request["variables"], characters)}
    except Refusal as refusal:
        return {"refused": brief(refusal)}
    except MemoryError:
        return {"broken": "it needs too much memory"}
    except TemplateError as error:
        return {"broken": brief(error)}
    except Exception as error:
        # A template can raise anything that an expression in it can raise.
        return {"broken": f"{type(error).__name__}: {brief(error)}"}


def collect(template: str, variables: dict[str, Any], characters: int) -> str:
    parts, total = [], 0
    for part in compiled(template).generate(variables):
        total += len(part)
        if total > characters:
            raise MemoryError
        parts.append(part)
    return "".join(parts)


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Refusal(Exception):
    """The template itself says no, through raise_exception."""


@lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    return environment().from_string(template)


@lru_cache(maxsize=1)
def environment() -> Any:
    """The environment that templates are written for.

    Source: `_cached_compile_jinja_template` in transformers/utils/chat_template_utils.py.
    """
    from jinja2 import ext, nodes, sandbox, utils
    from jinja2.exceptions import SecurityError

    class Generation(ext.Extension):
        """{% generation %} marks the assistant's words for training; here it only shows them."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace has no name {name!r}")
            super().__setitem__(name, value)

    env = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals.update(
        namespace=Namespace, raise_exception=raise_exception, strftime_now=strftime_now
    )
    return env


def raise_exception(message: object) -> None:
    raise Refusal(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


if __name__ == "__main__":
    main()
