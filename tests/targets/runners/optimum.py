"""optimum's ORTModelForCausalLM: what the job's texts, chats and prompts become."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

# `import optimum` must not find this file.
sys.path.remove(str(Path(__file__).parent))

import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

PACKAGES = ("optimum-onnx", "transformers", "onnxruntime", "torch")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(job["bundle"])
    # A bundle has two graphs; optimum takes any one unless told.
    model = ORTModelForCausalLM.from_pretrained(
        job["bundle"], subfolder="onnx", file_name=job["file"]
    )

    def chat(messages: list[dict[str, str]]) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def greedy(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=job["new_tokens"],
        )
        return [int(i) for i in made[0, len(prompt) :]]

    result = {
        "versions": {name: version(name) for name in PACKAGES},
        "texts": [tokenizer(text)["input_ids"] for text in job["texts"]],
        "inputs": sorted(tokenizer("x").keys()),
        "chats": [chat(messages) for messages in job["chats"]],
        "answers": [greedy(prompt) for prompt in job["prompts"]],
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


main()
