"""The JSON document of `run --json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from edgellm.stream import Completion

# Rates and megabytes to a tenth; shares, probabilities and money need more.
DIGITS = {"weight_share": 4, "p_correct": 4, "logprob": 6, "cost_usd": 6}


def document(completion: Completion, with_logprobs: bool) -> str:
    """One JSON document on one line, with a newline; text, usage, timings and so on.

    Pure ASCII, so that no output encoding can change the text. A figure that is not a number (a
    rate over no time) is null, because JSON has no NaN.
    """
    fields: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "model": completion.model,
        "usage": asdict(completion.usage),
        "timings": asdict(completion.timings),
        "placement": {name: asdict(part) for name, part in completion.placement.items()},
        "memory": asdict(completion.memory) if completion.memory is not None else None,
        # Nothing guesses ahead in this version.
        "speculation": {"proposed": 0, "accepted": 0},
        "route": asdict(completion.route),
    }
    if with_logprobs:
        fields["logprobs"] = [
            {
                "token": token.token,
                "id": token.token_id,
                "logprob": token.logprob,
                "top": [
                    {"token": text, "id": number, "logprob": value}
                    for text, number, value in token.top
                ],
            }
            for token in completion.logprobs
        ]
    return json.dumps(_rounded(fields), allow_nan=False) + "\n"


def _rounded(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item, name) for item in value]
    if isinstance(value, float):
        return round(value, DIGITS.get(name, 1)) if math.isfinite(value) else None
    return value
