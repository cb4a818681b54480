"""How sure is the model of each word it says? python logprobs.py [MODEL]"""

import math
import sys

import edgellm


def main(reference: str) -> None:
    question = edgellm.Message("user", "What is the capital of France? Answer with one word.")
    request = edgellm.Request(
        messages=(question,), max_tokens=8, logprobs=2, sampling=edgellm.Sampling(temperature=0)
    )
    with edgellm.load(reference) as model:
        answer = edgellm.complete(model.stream(request))
    for token in answer.logprobs:
        rivals = ", ".join(f"{text!r} {math.exp(logprob):.0%}" for text, _, logprob in token.top)
        print(f"{token.token!r:14} {math.exp(token.logprob):4.0%}   likeliest: {rivals}")
    if answer.logprobs:
        mean = sum(token.logprob for token in answer.logprobs) / len(answer.logprobs)
        print(f"confidence {math.exp(mean):.2f} (geometric mean of the token probabilities)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
