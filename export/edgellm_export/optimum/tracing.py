"""Run alone, with torch, transformers and optimum-onnx: a folder becomes a float32 ONNX graph.

    python -P tracing.py JOB.json

The job names the folder `source` (config and safetensors), the folder `out`, and token `ids`.
`out` gets model.onnx (with model.onnx_data beside it when it is large), logits.npy (T, V) of those
ids by torch, and answer.json: the config's sizes, or why there is no graph. Imports nothing of
edgellm, so that any interpreter with those packages will do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# The oldest opset with every operator that our own nodes are spelled in.
OPSET = 18
TASK = "text-generation-with-past"
# Names of transformers' configs for the longest context; BLOOM and MPT have their own.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    answer = trace(Path(job["source"]), Path(job["out"]), job["ids"])
    (Path(job["out"]) / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def trace(source: Path, out: Path, ids: list[int]) -> dict[str, Any]:
    """The config's sizes, or {"unknown": who does not know the architecture}."""
    import numpy as np
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (KeyError, ValueError) as error:
        return {"unknown": "transformers", "detail": _line(error)}
    if not _supported(config.model_type):
        return {"unknown": "optimum-onnx", "detail": f"model type {config.model_type}"}
    model = AutoModelForCausalLM.from_pretrained(
        source,
        torch_dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()
    limit = next((n for key in CONTEXT_KEYS if (n := getattr(config, key, None))), None)
    ids = ids[:limit]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().numpy()
    np.save(out / "logits.npy", logits)
    onnx_export_from_model(model, output=out, task=TASK, opset=OPSET, do_validation=False)
    return {
        "num_attention_heads": getattr(config, "num_attention_heads", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "context_length": limit,
    }


def _supported(model_type: str) -> bool:
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            model_type, "onnx", library_name="transformers"
        )
    except KeyError:
        return False
    return TASK in tasks


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main(sys.argv[1])
