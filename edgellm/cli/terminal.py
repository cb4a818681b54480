"""What a person sees: the answer on stdout, everything else dim on stderr.

Colour and escape sequences only where a terminal reads them; NO_COLOR switches colour off
(https://no-color.org). Control characters in an answer could steer the terminal, so there they are
shown as symbols; a pipe gets the answer as it is.
"""

from __future__ import annotations

import math
import os
import re
import sys

import click

from edgellm.stream import Done, TokenLogprob

# Unicode has a picture for each C0 control (U+2400..); C1 controls and DEL have none.
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
PICTURES |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)

# An error may quote what the user typed, which may be a whole file; longer than any path.
LINE_LIMIT = 5000


def one_line(text: str) -> str:
    """`text` on one line and harmless to a terminal."""
    return re.sub(r"\s*[\r\n]+\s*", " ", text.strip()).translate(PICTURES)


def colour() -> bool | None:
    """What click.echo takes: False for no colour, None for colour where a terminal reads it."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def complain(text: str) -> None:
    """One line on stderr that starts with edgellm's name."""
    line = one_line(text)
    if len(line) > LINE_LIMIT:
        line = f"{line[: LINE_LIMIT // 2]} … {line[-LINE_LIMIT // 2 :]}"
    click.echo(f"{click.style('edgellm:', fg='red')} {line}", err=True, color=colour())


class Screen:
    """Prints an answer piece by piece and notes beside it, each from the start of a line."""

    def __init__(self) -> None:
        self._shown = bool(sys.stdout is not None and sys.stdout.isatty())
        self._at_line_start = True

    def answer(self, text: str) -> None:
        """A piece of the answer, visible at once."""
        if not text or sys.stdout is None:
            return
        if self._shown:
            text = text.replace("\r\n", "\n").translate(PICTURES)
        # Before the text is out: a Ctrl-C may come right after it.
        self._at_line_start = text.endswith("\n")
        # Not click.echo, which would take escape sequences out of a piped answer.
        sys.stdout.write(text)
        sys.stdout.flush()

    def end_line(self) -> None:
        """The next thing printed starts on a line of its own."""
        if not self._at_line_start:
            self.answer("\n")

    def note(self, text: str) -> None:
        """Lines the user may want to know, dim on a terminal."""
        self.end_line()
        safe = text.translate(PICTURES)
        click.echo(click.style(safe, dim=True), err=True, color=colour())

    def complain(self, text: str) -> None:
        """An error, on a line of its own."""
        self.end_line()
        complain(text)


def statistics(done: Done) -> str:
    """What an answer cost: a line each for tokens, time, placement and memory, where known."""
    usage, timings = done.usage, done.timings
    cached = f" ({usage.cached_tokens} of them cached)" if usage.cached_tokens else ""
    lines = [
        f"tokens   {usage.prompt_tokens} in the prompt{cached}, {usage.completion_tokens} answered",
        f"time     load {timings.load_ms:.0f} ms, first token {timings.first_token_ms:.0f} ms",
        f"speed    prefill {_rate(timings.prefill_tokens_per_s)}, "
        f"decode {_rate(timings.decode_tokens_per_s)}",
    ]
    if done.placement:
        ranked = sorted(done.placement.items(), key=lambda item: -item[1].weight_share)
        shares = [f"{name} {part.weight_share:.0%} of the weights" for name, part in ranked]
        lines.append(f"placed   {', '.join(shares)}")
    if done.memory is not None:
        memory = done.memory
        lines.append(
            f"memory   weights {memory.weights_mb:.0f} MB, KV cache {memory.kv_mb:.0f} MB, "
            f"peak {memory.peak_rss_mb:.0f} MB (predicted {memory.predicted_mb:.0f} MB)"
        )
    return "\n".join(lines)


def _rate(tokens_per_s: float) -> str:
    # One token has no rate: nothing came after the first.
    return f"{tokens_per_s:.1f} tokens/s" if 0 < tokens_per_s < math.inf else "not measurable"


def logprob_table(tokens: list[TokenLogprob]) -> str:
    """One line a token: the token, its natural-log probability, its likeliest rivals."""
    lines = []
    for token in tokens:
        rivals = "  ".join(f"{text!r} {value:.3f}" for text, _, value in token.top)
        lines.append(f"{token.token!r:<16} {token.logprob:8.3f}  {rivals}".rstrip())
    return "\n".join(lines)
