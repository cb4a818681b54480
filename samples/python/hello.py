"""Load a model and stream one answer: python hello.py [MODEL]"""

import sys

import edgellm


def main(reference: str) -> None:
    question = edgellm.Message("user", "Why is the sky blue? Answer in one sentence.")
    request = edgellm.Request(messages=(question,), max_tokens=48)
    with edgellm.load(reference) as model:
        for event in model.stream(request):
            if isinstance(event, edgellm.Delta):
                print(event.text, end="", flush=True)
            elif isinstance(event, edgellm.Done):
                speed = event.timings.decode_tokens_per_s
                print(f"\n[{event.usage.completion_tokens} tokens, {speed:.0f} tokens/s]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
