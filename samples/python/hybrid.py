"""Answer here when sure, elsewhere when not: python hybrid.py MODEL URL REMOTE_MODEL"""

import sys

import edgellm

QUESTIONS = (
    "What is 17 + 25?",
    "Who ruled Burkina Faso in 1985?",
    "Is 4111 1111 1111 1111 a card?",
)


def main(reference: str, url: str, name: str) -> None:
    with edgellm.load(reference) as local:
        router = edgellm.Router(
            local,
            [edgellm.Remote(url, name)],
            policy="cascade",
            confidence=edgellm.confidence_pack(local),
            guard=edgellm.Guard(edgellm.PrivacyOptions(mode="pin-local")),
        )
        for question in QUESTIONS:
            request = edgellm.Request(
                messages=(edgellm.Message("user", question),),
                max_tokens=32,
                sampling=edgellm.Sampling(),
            )
            answer = edgellm.complete(router.stream(request))
            print(f"{question}\n  {answer.text.strip()}")
            print(f"  [{answer.route.source}: {answer.route.reason}]")


if __name__ == "__main__":
    main(*sys.argv[1:4])
