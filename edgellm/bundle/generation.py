"""What a model's publisher recommends for generation, read from generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import Corrupt, UsageError
from edgellm.stream import Sampling

FILE_NAME = "generation_config.json"
# A few hundred bytes in practice.
FILE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The ids that end an answer, and the publisher's sampling. Both may be empty or neutral."""

    eos_token_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)


def read(folder: Path) -> GenerationDefaults:
    """The defaults of a bundle folder; neutral ones without the file, Corrupt when it lies."""
    path = folder / FILE_NAME
    if not path.is_file():
        return GenerationDefaults()
    if path.stat().st_size > FILE_LIMIT_BYTES:
        raise Corrupt(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; export the model again")
    try:
        return parse(json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}; export the model again") from error
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from error


def parse(raw: Any) -> GenerationDefaults:
    """The defaults in a decoded generation_config.json; Corrupt names the key that is wrong."""
    if not isinstance(raw, dict):
        raise Corrupt(f"generation settings must be an object, got {type(raw).__name__}")
    return GenerationDefaults(_eos(raw.get("eos_token_id")), _sampling(raw))


def _eos(value: Any) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < 1 << 31:
            raise Corrupt(f"eos_token_id must be token ids of 0 or more, got {token_id!r:.80}")
    return frozenset(ids)


def _sampling(raw: Mapping[str, Any]) -> Sampling:
    do_sample = raw.get("do_sample")
    if not (do_sample is None or isinstance(do_sample, bool)):
        raise Corrupt(f"do_sample must be true or false, got {do_sample!r:.80}")
    # Without do_sample a temperature is still what the publisher wants; with it, 1.0 is what
    # Hugging Face's GenerationConfig means when the temperature is left out.
    temperature = _number(raw, "temperature", 1.0 if do_sample else 0.0)
    repeat_penalty = _number(raw, "repetition_penalty", 1.0)
    settings: dict[str, Any] = {"repeat_penalty": repeat_penalty}
    if repeat_penalty != 1.0:
        # Hugging Face penalises over the whole context.
        settings["penalty_window"] = 0
    if do_sample is not False:
        settings |= {
            "temperature": temperature,
            "top_k": _whole(raw, "top_k"),
            "top_p": _number(raw, "top_p", 1.0),
            "min_p": _number(raw, "min_p", 0.0),
        }
    try:
        return Sampling(**settings)
    except UsageError as error:
        raise Corrupt(f"{error}; correct the file or export the model again") from error


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Corrupt(f"{key} must be a number, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError as error:
        raise Corrupt(f"{key} is too large to be a number a model was run with") from error


def _whole(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise Corrupt(f"{key} must be a whole number of 0 or more, got {value!r:.80}")
    return value
