"""A conversation prefills only what is new: python chat_reuse.py [MODEL]"""

import sys

import edgellm

QUESTIONS = ("Name a river in Europe.", "Name another one.", "Which of them is longer?")


def main(reference: str) -> None:
    messages = [edgellm.Message("system", "You are a helpful geographer. Answer briefly.")]
    with edgellm.load(reference) as model:
        for question in QUESTIONS:
            messages.append(edgellm.Message("user", question))
            request = edgellm.Request(messages=tuple(messages), max_tokens=32)
            answer = edgellm.complete(model.stream(request))
            messages.append(edgellm.Message("assistant", answer.text))
            print(f"> {question}\n{answer.text}")
            usage = answer.usage
            print(f"[{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} from the cache]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
