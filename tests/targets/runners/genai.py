"""onnxruntime-genai: what the job's texts, chats and prompts become. Job: file in, JSON out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime_genai as og


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = og.Model(job["bundle"])  # the folder as it is: genai_config.json says the rest
    tokenizer = og.Tokenizer(model)

    def ids(text: str) -> list[int]:
        return [int(i) for i in tokenizer.encode(text)]

    def chat(messages: list[dict[str, str]]) -> list[int]:
        return ids(tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True))

    def greedy(prompt: list[int]) -> list[int]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + job["new_tokens"])
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(i) for i in generator.get_sequence(0)[len(prompt) :]]

    result = {
        "versions": {"onnxruntime-genai": og.__version__},
        "texts": [ids(text) for text in job["texts"]],
        "chats": [chat(messages) for messages in job["chats"]],
        "answers": [greedy(prompt) for prompt in job["prompts"]],
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


main()
