"""The memory plan: what a model will take at its peak, before anything is loaded.

    peak = process + weights + max(load transient, KV cache + activations + logits)

The constants below were fitted on ONNX Runtime 1.31.1, CPU provider, x86-64 Linux, with graphs of
the 135M (30 layers, width 576) and 0.5B (24 layers, width 896) shapes and random weights. Each
was read from VmHWM, RssAnon and RssFile after import, after load, and after prefill and decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.bundle.manifest import Shape
from edgellm.errors import Incompatible, MemoryShort, UsageError

MB = 1e6
# RSS of `import onnxruntime, numpy, tokenizers, click, jinja2` in CPython 3.11: 58 MB.
INTERPRETER_MB = 58.0
# Pages of ONNX Runtime's own library that a session touches: RssFile grows 9 MB at load.
SESSION_MB = 9.0
# `tokenizers` with a byte-level BPE of 49,152 entries and their merges: 27 MB.
TOKENIZER_BYTES_PER_ENTRY = 550
# MatMulNBits at accuracy level 4 packs each block again beside its scale and its sum (two
# float32), and aligns: anonymous memory is codes + 9 bytes a block for 2, 4 and 8 bits alike.
PACKED_BYTES_PER_BLOCK = 9
# MatMul packs a float32 matrix once and lets the mapped original go: 1.0 to 1.2 times its bytes.
DENSE_COPIES = 1.1
# While loading, the largest tensor is there twice: VmHWM minus VmRSS is its size, both shapes.
LOAD_COPIES_OF_LARGEST = 1.0
# Activations of a prefill chunk, float32 per token: 8 x intermediate + 29 x hidden, fitted on
# 115 kB (135M) and 260 kB (0.5B) a token with chunks of 32 to 256 tokens. Attention adds what it
# keeps of its scores.
ACTIVATION_COPIES_INTERMEDIATE = 8
ACTIVATION_COPIES_HIDDEN = 29
# The output of the graph, the row that is sampled from, and its probabilities.
LOGIT_COPIES = 3
# From this many bytes a parameter on, a file holds floats and not blocks.
DENSE_BYTES_PER_PARAMETER = 1.9
# Blocks of 32 with a float16 scale, when a file does not say: the commonest format.
DEFAULT_BLOCK_SIZE = 32
# A cache that grows by concatenation is there as the old one, the new one, and what ONNX Runtime's
# arena keeps of earlier lengths: a GPT-2 of 124M took 4.0 times its cache, from 512 to 2,048
# tokens, with chunks of 32 and of 128 (without the arena: 5).
CONCAT_CACHES = 4
KV_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """What the weights are made of, in bytes as they are in memory; `blocks` is a count.

    codes    packed integers of block-quantized matrices
    blocks   how many blocks they form
    floats   scales, minima, norms and rotary tables, as float32
    dense    float32 matrices that are multiplied
    largest  the largest single tensor
    prefill  int8 weights for long prompts, which are loaded when the first one comes
    """

    codes: int
    blocks: int
    floats: int
    dense: int
    largest: int
    prefill: int = 0

    @property
    def resident(self) -> float:
        """Bytes that stay in memory after loading: packed copies and the floats beside them."""
        packed = self.codes + PACKED_BYTES_PER_BLOCK * self.blocks
        dense = self.dense + self.prefill
        return packed + self.floats + DENSE_COPIES * dense


@dataclass(frozen=True, slots=True)
class Running:
    """How a graph is run.

    chunk_tokens  tokens of a prefill chunk
    logit_rows    rows of logits at once: the chunk for graphs without row selection
    caches        how often the KV cache is there
    score_bytes   what attention keeps of a chunk for each position of the cache
    """

    chunk_tokens: int
    logit_rows: int = 1
    caches: int = 1
    score_bytes: int = 0

    def bytes_per_position(self, shape: Shape) -> int:
        """What one position of the context takes."""
        return self.caches * kv_bytes_per_token(shape) + self.score_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted peak RSS in megabytes (1e6 bytes), against what is available.

    `workspace_mb` holds the process itself, the tokenizer, activations, logits and what loading
    takes beyond that. `largest_context_tokens` is what would fit, 0 when even loading does not.
    """

    weights_mb: float
    kv_mb: float
    workspace_mb: float
    total_mb: float
    available_mb: float
    context_tokens: int
    largest_context_tokens: int

    @property
    def fits(self) -> bool:
        return self.total_mb <= self.available_mb


def estimate_weights(file_bytes: int, shape: Shape) -> WeightBytes:
    """The likely make-up of a weights file of which only the size is known; errs to the high side.

    The exporter knows better: pass its figures where the bundle has them.
    """
    largest = shape.vocab_size * shape.hidden_size
    if file_bytes > DENSE_BYTES_PER_PARAMETER * shape.parameters:
        return WeightBytes(0, 0, 0, dense=4 * shape.parameters, largest=4 * largest)
    blocks = shape.parameters // DEFAULT_BLOCK_SIZE
    codes = max(0, file_bytes - 2 * blocks)
    return WeightBytes(codes, blocks, floats=4 * blocks, dense=0, largest=min(largest, file_bytes))


def kv_bytes_per_token(shape: Shape) -> int:
    """Keys and values of one position in all layers."""
    if shape.kv_dtype not in KV_BYTES:
        raise Incompatible(
            f"unknown cache type {shape.kv_dtype!r}; known are {', '.join(KV_BYTES)}"
        )
    width = shape.num_key_value_heads * shape.head_dim
    return 2 * shape.num_hidden_layers * width * KV_BYTES[shape.kv_dtype]


def plan(
    shape: Shape, weights: WeightBytes, context_tokens: int, running: Running, budget_mb: float
) -> MemoryPlan:
    """The plan for one session."""
    if context_tokens < 1 or running.chunk_tokens < 1:
        raise UsageError(f"context and chunk must be 1 or more, got {context_tokens} tokens")
    chunk = min(running.chunk_tokens, context_tokens)
    working = _activations(shape, chunk) + _logits(shape, min(running.logit_rows, chunk))
    working += context_tokens * running.score_bytes
    kv = running.caches * context_tokens * kv_bytes_per_token(shape)
    transient = LOAD_COPIES_OF_LARGEST * weights.largest
    workspace_mb = _process_mb(shape) + (working + max(0.0, transient - kv - working)) / MB
    weights_mb = weights.resident / MB
    return MemoryPlan(
        weights_mb=weights_mb,
        kv_mb=kv / MB,
        workspace_mb=workspace_mb,
        total_mb=weights_mb + kv / MB + workspace_mb,
        available_mb=budget_mb,
        context_tokens=context_tokens,
        largest_context_tokens=largest_context(shape, weights, running, budget_mb),
    )


def largest_context(shape: Shape, weights: WeightBytes, running: Running, budget_mb: float) -> int:
    """The most tokens whose plan stays within the budget, at most the model's own; 0 for none."""
    rest = (budget_mb - _process_mb(shape)) * MB - weights.resident
    if rest < LOAD_COPIES_OF_LARGEST * weights.largest:
        return 0
    chunk = running.chunk_tokens
    rest -= _logits(shape, min(running.logit_rows, chunk))
    per_token = running.bytes_per_position(shape)
    fits = int((rest - _activations(shape, chunk)) / per_token)
    if fits < chunk:
        # A context shorter than the chunk needs activations for its own length only.
        fits = int(rest / (per_token + _activations(shape, 1)))
    return max(0, min(fits, shape.context_length))


def check(found: MemoryPlan) -> None:
    """Nothing when the plan fits; MemoryShort with the numbers and the largest context if not."""
    if found.fits:
        return
    largest = found.largest_context_tokens
    advice = (
        f"the largest context that fits is {largest} tokens, try --ctx {largest}"
        if largest
        else "no context fits: take a smaller model or close other programs"
    )
    raise MemoryShort(
        f"a context of {found.context_tokens} tokens needs {found.total_mb:.0f} MB "
        f"(weights {found.weights_mb:.0f}, KV cache {found.kv_mb:.0f}, "
        f"workspace {found.workspace_mb:.0f}), {found.available_mb:.0f} MB are available; {advice}"
    )


def _process_mb(shape: Shape) -> float:
    return INTERPRETER_MB + SESSION_MB + TOKENIZER_BYTES_PER_ENTRY * shape.vocab_size / MB


def _logits(shape: Shape, rows: int) -> float:
    return 4.0 * LOGIT_COPIES * rows * shape.vocab_size


def _activations(shape: Shape, tokens: int) -> float:
    """Bytes of a prefill chunk."""
    floats = (
        ACTIVATION_COPIES_INTERMEDIATE * _intermediate(shape)
        + ACTIVATION_COPIES_HIDDEN * shape.hidden_size
    )
    return 4.0 * tokens * floats


def _intermediate(shape: Shape) -> float:
    """The MLP's width, which the manifest does not carry: what the parameter count leaves for it.

    Assumes a gated MLP and a tied embedding; an untied one makes the result larger, which is safe.
    """
    heads = 2 * shape.num_attention_heads + 2 * shape.num_key_value_heads
    attention = shape.hidden_size * shape.head_dim * heads
    layer = (shape.parameters - shape.vocab_size * shape.hidden_size) / shape.num_hidden_layers
    return max(float(shape.hidden_size), (layer - attention) / (3 * shape.hidden_size))
