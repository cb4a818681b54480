"""Text from tokens against the naive way: decode everything, then look for the stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text import StopGate, Token, deltas
from edgellm.stream import Delta


class Bytes:
    """A TextStream in which token i is the i-th piece of a byte string, cut anywhere."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self.decode(self.pieces[token_id])

    def finish(self) -> str:
        return self.decode(b"", True)


class Tokens:
    """A token generator that remembers how far it was pulled and that it was closed."""

    def __init__(self, count: int) -> None:
        self.count, self.pulled, self.closed = count, 0, False

    def run(self, logprobs: bool = True) -> Generator[Token, None, None]:
        try:
            for i in range(self.count):
                self.pulled += 1
                yield Token(i, -float(i) if logprobs else None, ((i, -0.5),) if logprobs else ())
        finally:
            self.closed = True


def read(
    tokens: Generator[Token, None, None], pieces: Sequence[bytes], stop: Sequence[str] = ()
) -> Generator[Delta, None, str | None]:
    return deltas(tokens, Bytes(pieces), stop, lambda i: pieces[i].decode(errors="replace"))


def collect(stream: Generator[Delta, None, str | None]) -> tuple[list[Delta], str | None]:
    found = []
    while True:
        try:
            found.append(next(stream))
        except StopIteration as end:
            return found, end.value


def naive(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, the longest of equals."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


# Few characters of one to four bytes, so that stop strings overlap themselves and each other.
alphabet = st.sampled_from("aab€😀")
texts = st.text(alphabet, max_size=30)
stops = st.lists(st.text(alphabet, min_size=1, max_size=5), max_size=4, unique=True)


@st.composite
def cut_bytes(draw: st.DrawFn) -> list[bytes]:
    data = draw(texts).encode()
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]  # the end of a character may be missing
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=20))
    return [data[a:b] for a, b in pairwise(sorted([0, *cuts, len(data)]))]


@given(cut_bytes(), stops)
def test_deltas_joined_are_the_naive_text_cut_at_the_stop_string(
    pieces: list[bytes], stop: list[str]
) -> None:
    whole = b"".join(pieces).decode(errors="replace")
    found, matched = collect(read(Tokens(len(pieces)).run(False), pieces, stop))
    assert ("".join(delta.text for delta in found), matched) == naive(whole, stop)
    assert all(delta.text for delta in found)


@given(cut_bytes(), stops)
def test_logprobs_leave_in_order_with_the_first_character_of_their_token(
    pieces: list[bytes], stop: list[str]
) -> None:
    source, reader = Tokens(len(pieces)), Bytes(pieces)
    starts, seen = [], 0
    for i in range(len(pieces)):
        starts.append(seen)
        seen += len(reader.push(i))
    found, matched = collect(read(source.run(), pieces, stop))
    passed = 0
    reported = []
    for delta in found:
        ids = [token.token_id for token in delta.logprobs]
        last = delta is found[-1] and matched is None
        passed += len(delta.text)
        assert all(starts[i] < passed or last for i in ids)
        reported += ids
    expected = [i for i in range(source.pulled) if matched is None or starts[i] < passed]
    assert reported == expected


@given(texts, stops)
def test_held_text_is_no_longer_than_a_stop_string_can_need(text: str, stop: list[str]) -> None:
    gate = StopGate(stop)
    for character in text:
        gate.push(character)
        beginnings = [s[:n] for s in stop for n in range(len(s))]
        held = gate.seen - gate.passed
        if gate.matched is None:
            seen = text[: gate.seen]
            assert held == max((len(b) for b in beginnings if seen.endswith(b)), default=0)


def test_text_leaves_as_soon_as_it_cannot_be_a_stop_string() -> None:
    gate = StopGate(("\n\nUser:",))
    left = [gate.push(text) for text in ("Hi", "\n", "\nUs", "e", " it")]
    assert left == ["Hi", "", "", "", "\n\nUse it"]
    assert [gate.push(t) for t in ("\n\nUse", "r", ": no")] == ["", "", ""]
    assert gate.matched == "\n\nUser:"
    assert gate.push("more") == gate.release() == ""


@pytest.mark.parametrize(
    ("text", "stop", "before", "matched"),
    [
        ("xaaab", ["aab"], "xa", "aab"),  # the match begins inside a failed one
        ("xabcd", ["cd", "bcd", "abce"], "xa", "bcd"),  # two end together: the longest
        ("xabcd", ["abcd", "bc"], "xa", "bc"),  # the one that is complete first
    ],
)
def test_which_stop_string_wins(text: str, stop: list[str], before: str, matched: str) -> None:
    for gate, pieces in ((StopGate(stop), [text]), (StopGate(stop), list(text))):
        assert "".join(gate.push(piece) for piece in pieces) == before
        assert gate.matched == matched


def test_held_text_is_flushed_when_the_tokens_end() -> None:
    found, matched = collect(read(Tokens(2).run(), [b"ab", b"\nU"], ["\nUser"]))
    assert [delta.text for delta in found] == ["ab", "\nU"]
    assert [token.token_id for delta in found for token in delta.logprobs] == [0, 1]
    assert matched is None


def test_tokens_without_text_at_the_end_still_report_their_logprobs() -> None:
    found, _ = collect(read(Tokens(2).run(), [b"a", b""]))
    assert [(d.text, [t.token_id for t in d.logprobs]) for d in found] == [("a", [0]), ("", [1])]


def test_half_a_character_at_the_end_is_shown_as_a_replacement() -> None:
    found, _ = collect(read(Tokens(2).run(False), [b"a", "é".encode()[:1]]))
    assert "".join(delta.text for delta in found) == "a\ufffd"


def test_nothing_is_pulled_after_a_stop_string_and_the_tokens_are_closed() -> None:
    source = Tokens(9)
    pieces = [b"a", b"b<", b"/s>c", *[b"d"] * 6]
    tokens = source.run()
    found, matched = collect(read(tokens, pieces, ["</s>"]))
    assert (matched, source.pulled, source.closed) == ("</s>", 3, True)
    assert [delta.text for delta in found] == ["a", "b"]
    assert [token.token_id for delta in found for token in delta.logprobs] == [0, 1]


def test_nothing_is_pulled_before_it_is_asked_for_and_closing_closes_the_tokens() -> None:
    source = Tokens(9)
    tokens = source.run()  # a name of its own, so that only `deltas` can have closed it
    stream = read(tokens, [b"x"] * 9)
    assert source.pulled == 0
    next(stream)
    assert (source.pulled, source.closed) == (1, False)
    stream.close()
    assert source.closed


def test_an_error_of_the_token_loop_passes_through_after_its_text() -> None:
    def broken() -> Generator[Token, None, None]:
        yield Token(0)
        raise RuntimeError("device lost")

    stream = read(broken(), [b"x"])
    assert next(stream) == Delta("x")
    with pytest.raises(RuntimeError, match="device lost"):
        next(stream)


def test_logprobs_carry_the_spelling_of_the_token_and_its_rivals() -> None:
    tokens = (Token(i, -0.25, ((1, -0.25), (0, -2.0))) for i in [1])
    found, _ = collect(read(tokens, [b"x", b"y"]))
    (token,) = found[0].logprobs
    assert (token.token, token.token_id, token.logprob) == ("y", 1, -0.25)
    assert token.top == (("y", 1, -0.25), ("x", 0, -2.0))
