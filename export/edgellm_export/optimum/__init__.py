"""Architectures without a builder of ours, through Hugging Face's optimum-onnx.

    folder ── tracing (torch, a process of its own) ──▶ float graph ── our quantizer ──▶ bundle

tracing    the only module that imports torch, transformers and optimum; runs alone
trace      shows it a folder with config and safetensors only, and reads what it made
model      the float graph: which products have which weights
checkpoint those weights by the names of their modules
draw       the same graph over our data file, quantized products in the place of float ones
pipeline   all of it, in order

No code of a checkpoint is ever run: transformers sees neither its Python files nor its pickles.
"""

from __future__ import annotations

from pathlib import Path

from edgellm_export import arch
from edgellm_export.checkpoint.folder import inside, read_object
from edgellm_export.checkpoint.safetensors import INDEX, SINGLE


def serves(source: Path) -> bool:
    """Is this a Hugging Face folder with safetensors whose model_type has no builder of ours?"""
    if not source.is_dir() or not any(inside(source, name).exists() for name in (SINGLE, INDEX)):
        return False
    if not inside(source, "config.json").exists():
        return False
    kind = read_object(source, "config.json").get("model_type")
    return isinstance(kind, str) and kind not in arch.names()
