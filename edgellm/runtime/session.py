"""One native graph in ONNX Runtime: token ids in, logits of the chosen rows out.

Inputs are bound once and mutated in place: rebinding a decoder's 120 tensors would cost more than
running its small nodes. Shapes: T new tokens, R logit rows, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle.manifest import Shape
from edgellm.errors import Corrupt, EdgellmError, Incompatible, MissingExtra
from edgellm.runtime import providers
from edgellm.runtime.adapter import Adapter, fill
from edgellm.runtime.attention import whole_scores
from edgellm.runtime.cache import KVCache
from edgellm.runtime.options import LoadOptions
from edgellm.stream import Placement

Float32 = NDArray[np.float32]

# ONNX Runtime reads one of these names in one release and the other in the next.
TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
HIDDEN, ROWS = "hidden_states", "logit_rows"
# From here on a prompt goes through the graph for long ones. Loading that takes as long as it saves
# on some 400 tokens (SmolLM2-135M, 2 cores), once.
LONG_PROMPT_TOKENS = 256
# Bindings kept for a cache: decoding, full prefill chunks and the last, shorter chunk.
KEPT_BINDINGS = 3
# Tokens at once when a cache is made again.
TURNED_TOKENS = 128
# What a manifest calls a cache's type, and what ONNX Runtime does.
_CACHE_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int8": "tensor(int8)",
}


def load_onnxruntime() -> ModuleType:
    """The module, imported with its telemetry off; MissingExtra says how to install it."""
    for name in TELEMETRY_OFF:
        os.environ[name] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(
            f"onnxruntime cannot be imported ({error}); pip install 'edgellm[cpu]'"
        ) from error
    module: ModuleType = onnxruntime
    return module


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding and the arrays it points to, which must live as long as it does."""

    binding: Any
    ids: NDArray[np.int64]
    last: NDArray[np.int32]
    total: NDArray[np.int32]
    rows: NDArray[np.int64]
    offset: NDArray[np.int64]
    logits: Float32
    hidden: Float32
    keep: Sequence[object]


class Session:
    """A loaded graph. One caller at a time; `notice` says what differs from what was asked for."""

    def __init__(
        self,
        graph: Path,
        shape: Shape,
        options: LoadOptions,
        adapter: Adapter | None = None,
        prefill_graph: Path | None = None,
    ) -> None:
        self._options, self._prefill_graph = options, prefill_graph
        self._filler: Session | None = None
        self._ort = load_onnxruntime()
        chosen = providers.choose(
            options.provider, options.require_provider, self._ort.get_available_providers()
        )
        self.shape = shape
        self.notice = chosen.notice
        with whole_scores(shape):
            self._session = _open(self._ort, graph, chosen.provider, options.threads)
        _check_cache_type(self._session, graph, shape)
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._adapter = fill(inputs, adapter)
        # False: the bundle was exported before graphs had this output.
        outputs = {value.name for value in self._session.get_outputs()}
        self.shows_hidden = HIDDEN in outputs
        self._names = inputs.keys() | outputs
        self._bound: dict[tuple[int, int, int, int, bool], _Bound] = {}

    def placement(self) -> dict[str, Placement]:
        """What each execution provider carries."""
        return providers.placement(self._session)

    def new_cache(self, capacity_tokens: int) -> KVCache:
        """An empty cache of the kind that this graph uses."""
        return KVCache(self.shape, capacity_tokens)

    @property
    def has_filler(self) -> bool:
        """Whether the graph for long prompts is in memory."""
        return self._filler is not None

    def fills_apart(self, tokens: int) -> bool:
        """Whether a prompt of that many tokens has a graph of its own."""
        return self._prefill_graph is not None and tokens >= LONG_PROMPT_TOKENS

    def filler(self, tokens: int) -> Session | None:
        """The session for all but the last of a prompt's `tokens`; None: this one.

        The first prompt that is long enough loads it.
        """
        if self._prefill_graph is None or not self.fills_apart(tokens):
            return None
        if self._filler is None:
            self._filler = Session(self._prefill_graph, self.shape, self._options)
            # Fewer than here: of the last layer it has only what leads to the cache.
            self._filler._adapter = {name: self._adapter[name] for name in self._filler._adapter}
        return self._filler

    def forward(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache) -> Float32:
        """Logits (R, V) after the `rows` of the new `ids`, which join the cache.

        The array is overwritten by the next call.
        """
        return self._run(ids, rows, cache, False).logits[0, : len(rows)]

    def forward_hidden(
        self, ids: Sequence[int], rows: Sequence[int], cache: KVCache
    ) -> tuple[Float32, Float32]:
        """As `forward`, and the hidden states (T, D) of the probe layer, overwritten likewise."""
        if not self.shows_hidden:
            raise Incompatible("this bundle shows no hidden states; export it again")
        bound = self._run(ids, rows, cache, True)
        return bound.logits[0, : len(rows)], bound.hidden[0]

    def _run(self, ids: Sequence[int], rows: Sequence[int], cache: KVCache, hidden: bool) -> _Bound:
        self._turn(cache, len(cache) + len(ids))
        return self._pass(ids, rows, cache, hidden)

    def _turn(self, cache: KVCache, total: int) -> None:
        """Makes the cache again where long-rope turns its tokens at another speed from now on.

        As transformers does when a text outgrows the original window, and back when it is cut.
        """
        switch = self.shape.rope_switch
        offset = switch if switch is not None and total > switch else 0
        if offset == cache.rope_offset:
            return
        cache.rope_offset = offset
        ids = cache.tokens[:]
        cache.tokens.clear()
        for start in range(0, len(ids), TURNED_TOKENS):
            self._pass(ids[start : start + TURNED_TOKENS], [], cache, False)

    def _pass(
        self, ids: Sequence[int], rows: Sequence[int], cache: KVCache, hidden: bool
    ) -> _Bound:
        new = len(ids)
        cache.reserve(len(cache) + new)
        # One row at least: ONNX Runtime's ReduceSum loses an axis of an empty tensor.
        bound = self._bind(new, max(len(rows), 1), cache, hidden)
        bound.ids[0] = ids
        bound.rows[:] = rows or 0
        bound.last[0] = len(cache) + new - 1
        bound.total[...] = len(cache) + new
        bound.offset[...] = cache.rope_offset
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:
            raise cannot_run(error) from error
        cache.tokens.extend(ids)
        return bound

    def _bind(self, new: int, rows: int, cache: KVCache, hidden: bool) -> _Bound:
        key = (new, rows, id(cache), cache.generation, hidden)
        bound = self._bound.pop(key, None)
        if bound is None:
            # A binding keeps its buffers alive: not those that the cache has moved away from.
            for old in [k for k in self._bound if k[2] == key[2] and k[3] != key[3]]:
                del self._bound[old]
            bound = self._make_binding(new, rows, cache, hidden)
        self._bound[key] = bound  # now the youngest
        while len(self._bound) > KEPT_BINDINGS:
            del self._bound[next(iter(self._bound))]
        return bound

    def _make_binding(self, new: int, rows: int, cache: KVCache, hidden: bool) -> _Bound:
        binding = self._session.io_binding()
        keep: list[object] = [cache]

        def bind(name: str, array: NDArray[Any], output: str | None = None) -> None:
            value = self._ort.OrtValue.ortvalue_from_numpy(array)
            keep.extend((value, array))
            binding.bind_ortvalue_input(name, value)
            if output is not None:
                binding.bind_ortvalue_output(output, value)

        ids = np.zeros((1, new), np.int64)
        last, total = np.zeros(1, np.int32), np.zeros((), np.int32)
        chosen = np.zeros(rows, np.int64)
        logits = np.zeros((1, rows, self.shape.vocab_size), np.float32)
        bind("input_ids", ids)
        bind("last_position", last)
        bind("total_positions", total)
        if ROWS in self._names:
            bind(ROWS, chosen)
        offset = np.zeros((), np.int64)
        if self.shape.rope_switch is not None:
            bind("rope_offset", offset)
        for name, array in self._adapter.items():
            bind(name, array)
        for i, buffer in enumerate(cache.buffers):
            name = f"{i // 2}.{('key', 'value')[i % 2]}"
            bind(f"past_key_values.{name}", buffer, f"present.{name}")

        def bind_output(name: str, array: Float32) -> None:
            value = self._ort.OrtValue.ortvalue_from_numpy(array)
            keep.extend((value, array))
            binding.bind_ortvalue_output(name, value)

        if "logits" in self._names:
            bind_output("logits", logits)
        # An output that is not bound is not fetched: it costs nothing then.
        states = np.zeros((1, new * hidden, self.shape.hidden_size), np.float32)
        if hidden:
            bind_output(HIDDEN, states)
        return _Bound(binding, ids, last, total, chosen, offset, logits, states, keep)


def _open(ort: ModuleType, graph: Path, provider: str, threads: int | None) -> Any:
    """The ONNX Runtime session; Corrupt when the files are not what they should be."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # our errors carry the message; nothing else on the terminal
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Threads that wait busily after a pass would take the cores from the next session's: a prompt
    # of 513 tokens in two graphs took 8 % longer. Decoding is as fast without.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        settings.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(graph), settings, providers=[provider])
    except Exception as error:
        raise Corrupt(
            f"{graph} cannot be loaded: {_one_line(error)}; remove the model and pull it again"
        ) from error
    # Without this an error on an accelerator is retried on the CPU, silently.
    session.disable_fallback()
    return session


def _check_cache_type(session: Any, graph: Path, shape: Shape) -> None:
    """Incompatible unless the graph's cache is what the manifest says: buffers are made of that."""
    wanted = _CACHE_TYPES.get(shape.kv_dtype)
    if wanted is None:
        known = ", ".join(_CACHE_TYPES)
        raise Incompatible(f"unknown KV cache type {shape.kv_dtype!r}; known are {known}")
    found = {value.type for value in session.get_inputs() if value.name.startswith("past")}
    if found - {wanted}:
        raise Incompatible(
            f"{graph} keeps {', '.join(sorted(found))} in its cache, the manifest says {wanted}; "
            "export the model again"
        )


def cannot_run(error: Exception) -> EdgellmError:
    """What a run that failed is to the caller."""
    return EdgellmError(f"the model could not be run: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
