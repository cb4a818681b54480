"""What a job changes of its checkpoint before storing it, and what adapters may change later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgellm.errors import Incompatible
from edgellm_export.checkpoint import Checkpoint
from edgellm_export.checkpoint.lora import (
    CONFIG,
    REQUANTIZED,
    WEIGHTS,
    Adapter,
    LoraCheckpoint,
    known_stems,
)
from edgellm_export.checkpoint.open import open_checkpoint
from edgellm_export.linear import Matrix
from edgellm_export.progress import Notice
from edgellm_export.recipe import Integer, Keep, Recipe, Treatment, describe
from edgellm_export.shrink import Shrunk, apply
from edgellm_export.shrink.wrapped import instead_of
from edgellm_export.store import Place

if TYPE_CHECKING:
    from edgellm_export.pipeline import Job
    from edgellm_export.quantize.calibrate import Calibration


def opened(job: Job, notice: Notice) -> Shrunk:
    """The job's checkpoint with its adapter merged, without what is left out."""
    checkpoint = open_checkpoint(job.source)
    if job.merged is not None:
        checkpoint = LoraCheckpoint(checkpoint, job.merged)
    return apply(checkpoint, job.shrink, notice)


def slots(job: Job, checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the weights that an adapter at run time may change: those that `lora` changes."""
    if job.lora is None or not job.lora_at_run_time:
        return frozenset()
    adapter = Adapter(job.lora)
    stems = known_stems(adapter, checkpoint)
    for name, stem in stems.items():
        adapter.check(stem, checkpoint.weight(name).shape)
    return frozenset(stems)


def check_slots(wanted: Collection[str], places: Mapping[str, Place]) -> None:
    """Incompatible names a weight that has no room for an adapter, such as an expert's."""
    for name in wanted:
        stored = places[name].stored
        if not isinstance(stored, Matrix) or not stored.slots:
            raise Incompatible(f"{name} takes no adapter at run time; use --lora-mode merge")


def instead(checkpoint: Checkpoint, chosen: Recipe, notice: Notice) -> Mapping[str, Treatment]:
    """What becomes of changed weights when the recipe keeps all others."""
    found = instead_of(checkpoint) if chosen.linear == Keep() else {}
    count = sum(isinstance(treatment, Integer) for treatment in found.values())
    if count:
        notice(f"{count} changed layers become {describe(REQUANTIZED)}; the others stay exact")
    return found


def own_cache(job: Job, wanted: Calibration, shrunk: Mapping[str, Any]) -> Calibration:
    """The same calibration; what is known of the checkpoint as it lies there does not hold for a
    changed one, whose statistics are kept apart."""
    if job.merged is None and not shrunk:
        return wanted
    changes = hashlib.sha256(json.dumps(shrunk, sort_keys=True).encode())
    if job.merged is not None:
        for name in (CONFIG, WEIGHTS):
            changes.update((job.merged / name).read_bytes())
    return replace(wanted, cache=wanted.cache / f"changed-{changes.hexdigest()[:32]}")
