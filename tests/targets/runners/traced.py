"""Tiny seeded models by transformers' own code, and what it answers; or a bundle in optimum.

python traced.py JOB.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# `import optimum` must not find the file of that name beside this one.
sys.path.remove(str(Path(__file__).parent))

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    if "bundle" in job:
        from optimum.onnxruntime import ORTModelForCausalLM

        model = ORTModelForCausalLM.from_pretrained(
            job["bundle"], subfolder="onnx", file_name=job["file"]
        )
    else:
        model = made(job)
        model.save_pretrained(job["folder"])
    answers = [greedy(model, prompt, job["new_tokens"]) for prompt in job["prompts"]]
    logits = []
    if "bundle" not in job:
        with torch.no_grad():
            logits = [model(torch.tensor([p])).logits[0].tolist() for p in job["prompts"]]
    result = {"answers": answers, "logits": logits}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def made(job: dict[str, Any]) -> Any:
    """A random model whose logits differ enough for a greedy choice to mean something."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(job["kind"], bos_token_id=1, eos_token_id=2, **job["config"])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.dim() > 1:
                values.mul_(4)
            elif "bias" in name:
                values.normal_(0, 0.1)
    return model


def greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(i) for i in found[0, len(prompt) :]]


main()
