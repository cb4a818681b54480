"""A bundle's folder, opened: manifest, tokenizer, template, defaults, and its memory plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.bundle import generation, template, tokenizer
from edgellm.bundle.generation import GenerationDefaults
from edgellm.bundle.manifest import CONCAT, Graph, Manifest
from edgellm.bundle.open import verify
from edgellm.bundle.template import ChatTemplate
from edgellm.bundle.tokenizer import Tokenizer
from edgellm.device import detect, memory
from edgellm.device.memory import MemoryPlan, Running, WeightBytes
from edgellm.errors import Incompatible, UsageError
from edgellm.runtime.attention import keeps_scores, score_bytes
from edgellm.runtime.decode import CHUNK_TOKENS, LONG_CHUNK_TOKENS
from edgellm.stream import Request


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """Everything of a bundle but its graph."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: GenerationDefaults

    @property
    def native(self) -> Graph:
        """The graph that is run here; Incompatible when the bundle has none."""
        graph = self.manifest.graphs.get("native")
        if graph is None:
            raise Incompatible(f"{self.folder} has no native graph; export the model again")
        return graph

    @property
    def graph(self) -> Path:
        """The native graph's file."""
        return self.folder / self.native.path

    def encode(self, request: Request, prefix: str = "") -> list[int]:
        """The prompt's token ids; UsageError when it is empty or has no template to go through.

        prefix: the answer's beginning, which follows the rendered prompt as the model's own words
        would: encoded by itself, and never read as special tokens, since another model may have
        written it.
        """
        if request.prompt is not None:
            ids = self.tokenizer.encode(request.prompt, wrap=True)
        elif self.chat_template is None:
            raise UsageError(
                f"{self.manifest.name} has no chat template; give the text as it is with --raw"
            )
        else:
            ids = self.tokenizer.encode(self.chat_template.render(request.messages))
        ids += self.tokenizer.encode(prefix, special=False) if prefix else []
        if not ids:
            raise UsageError("the prompt is empty; write at least one character")
        vocabulary = self.manifest.shape.vocab_size
        if max(ids) >= vocabulary:
            raise Incompatible(
                f"the tokenizer gives id {max(ids)}, the model knows {vocabulary}; export it again"
            )
        return ids

    def plan(
        self, context_tokens: int, logit_rows: int = 1, fast_prefill: bool = False
    ) -> MemoryPlan:
        """What a context of that many tokens will take of this machine's memory, with or without
        the weights for long prompts."""
        sizes = self.manifest.weight_bytes
        data_bytes = sum(record.bytes for record in self.manifest.files.values())
        weights = (
            WeightBytes(**sizes)
            if sizes
            else memory.estimate_weights(data_bytes, self.manifest.shape)
        )
        if not fast_prefill:
            weights = replace(weights, prefill=0)
        shape, budget_mb = self.manifest.shape, detect.available_memory_mb()
        chunk = LONG_CHUNK_TOKENS if fast_prefill else CHUNK_TOKENS
        if self.native.cache == CONCAT:
            running = Running(chunk, logit_rows, memory.CONCAT_CACHES)
        else:
            scores = score_bytes(shape, chunk) if keeps_scores(shape) else 0
            running = Running(chunk, logit_rows, score_bytes=scores)
        return memory.plan(shape, weights, context_tokens, running, budget_mb)

    @property
    def prefill_graph(self) -> Path | None:
        """The file of the graph for long prompts; None when it was exported without."""
        graph = self.manifest.graphs.get("prefill")
        return None if graph is None else self.folder / graph.path


def open_folder(folder: Path) -> OpenedBundle:
    """The bundle in `folder`, verified; Corrupt or Incompatible says what is wrong with it."""
    return OpenedBundle(
        folder=folder,
        manifest=verify(folder),
        tokenizer=tokenizer.read(folder),
        chat_template=template.read(folder),
        defaults=generation.read(folder),
    )
