from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import PrivacyBlocked, UsageError
from edgellm.routing.privacy import Guard, PrivacyOptions
from edgellm.routing.privacy.detectors import find
from edgellm.routing.privacy.mask import Mask
from edgellm.routing.remote import RemoteBackend, RemoteOptions
from edgellm.stream import Delta, Done, Event, Message, Replace, Request, Start, Timings, Usage

CARD = "4111 1111 1111 1111"
DONE = Done("stop", Usage(1, 1), Timings(0, 0, 0, 0))


class Recording(RemoteBackend):
    """A remote that keeps what it is asked and answers with pieces."""

    def __init__(self, pieces: tuple[str, ...] = ("ok",)) -> None:
        super().__init__(RemoteOptions("https://remote.example/v1", "big"))
        self.asked: list[Request] = []
        self.pieces = pieces

    def stream(self, request: Request, prefix: str = "") -> Iterator[Event]:  # type: ignore[override]
        self.asked.append(request)
        return iter([Start("big", 1), *(Delta(piece) for piece in self.pieces), DONE])


def text_of(events: Iterator[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_request_without_findings_leaves_as_it_is() -> None:
    remote, request = Recording(), Request.user("What is a monad?")
    guard = Guard()
    assert guard.judge(request).kind == "allow"
    assert text_of(iter(guard.stream(remote, request))) == "ok"
    assert remote.asked == [request]


@pytest.mark.parametrize("mode", ["pin-local", "ask", "block"])
def test_a_finding_keeps_the_request_here_and_the_reason_does_not_repeat_it(mode: str) -> None:
    remote, request = Recording(), Request.user(f"Is {CARD} valid?")
    guard = Guard(PrivacyOptions(mode=mode))  # type: ignore[arg-type]
    verdict = guard.judge(request)
    assert (verdict.kind, verdict.why) == (mode, "found 1 card")
    with pytest.raises(PrivacyBlocked, match="nothing was sent: found 1 card") as caught:
        guard.stream(remote, request)
    assert CARD not in str(caught.value)
    assert remote.asked == []


def test_masked_text_leaves_without_the_finding_and_the_answer_has_it_again() -> None:
    remote = Recording(("Your card [CA", "RD_1] and ", "[EMAIL_1", "] are [fine], [CARD_9]"))
    request = Request.user(f"Check {CARD} of a@b.org; {CARD} again")
    events = Guard(PrivacyOptions(mode="mask")).stream(remote, request)
    assert text_of(iter(events)) == f"Your card {CARD} and a@b.org are [fine], [CARD_9]"
    sent = remote.asked[0].messages[-1].content
    assert sent == "Check [CARD_1] of [EMAIL_1]; [CARD_1] again"


def test_a_placeholder_that_the_user_wrote_is_not_taken_for_ours() -> None:
    remote = Recording(("[CARD_1] is not [CARD_2]",))
    request = Request.user(f"[CARD_1] or {CARD}?")
    events = Guard(PrivacyOptions(mode="mask")).stream(remote, request)
    assert text_of(iter(events)) == f"[CARD_1] is not {CARD}"


def test_earlier_turns_and_system_messages_are_judged_too() -> None:
    messages = (Message("system", "Card: " + CARD), Message("user", "hi"))
    assert Guard().judge(Request(messages=messages)).kind == "pin-local"


def test_a_conversation_stays_tainted_when_the_turn_is_edited_away() -> None:
    guard = Guard()
    first = Message("user", "Tell me about banks")
    guard.judge(Request(messages=(first, Message("assistant", "ok"), Message("user", CARD))))
    verdict = guard.judge(
        Request(messages=(first, Message("assistant", "ok"), Message("user", "and loans?")))
    )
    assert verdict.kind == "pin-local"
    assert "earlier in this conversation" in verdict.why
    other = Request.user("Tell me about rivers", "You are kind.")
    assert guard.judge(other).kind == "allow"


def test_what_the_user_let_leave_is_not_asked_for_again() -> None:
    guard, request = Guard(PrivacyOptions(mode="ask")), Request.user(f"Is {CARD} valid?")
    assert guard.judge(request).kind == "ask"
    guard.allow(request)
    assert guard.judge(request).kind == "allow"
    more = Request(messages=(*request.messages, Message("assistant", "Yes"), Message("user", "?")))
    assert guard.judge(more).kind == "allow"
    assert guard.judge(Request.user(f"{CARD} and a@b.org")).why == "found 1 email"


def test_denied_text_never_leaves_whatever_the_mode() -> None:
    for mode in ("off", "mask", "pin-local"):
        guard = Guard(PrivacyOptions(mode=mode, deny=(r"project\s+falcon",)))  # type: ignore[arg-type]
        verdict = guard.judge(Request.user("About Project  Falcon"))
        assert (verdict.kind, "falcon" in verdict.why.lower()) == ("block", False)


def test_text_goes_to_allowed_hosts_only() -> None:
    guard = Guard(PrivacyOptions(hosts=frozenset({"elsewhere.example"})))
    with pytest.raises(PrivacyBlocked, match=r"remote\.example is not among the hosts"):
        guard.stream(Recording(), Request.user("hi"))


def test_the_preview_is_what_would_be_sent() -> None:
    guard = Guard(PrivacyOptions(mode="mask"))
    body = guard.preview(Recording(), Request.user(f"Check {CARD}"))
    assert b"[CARD_1]" in body
    assert CARD.encode() not in body


def test_text_to_go_on_from_is_judged_and_masked_like_the_rest() -> None:
    request = Request.user("Who?")
    with pytest.raises(PrivacyBlocked):
        Guard().stream(Recording(), request, "The card " + CARD)


def test_wrong_settings_are_refused_where_they_are_made() -> None:
    with pytest.raises(UsageError, match="unknown privacy mode 'maybe'"):
        PrivacyOptions(mode="maybe")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no regular expression"):
        PrivacyOptions(deny=("(",))
    with pytest.raises(UsageError, match="unknown kind 'names'"):
        PrivacyOptions(kinds=frozenset({"names"}))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=30), st.text(max_size=30))
def test_restoring_does_not_depend_on_how_the_stream_is_cut(cuts: list[int], tail: str) -> None:
    mask, original = Mask(), f"write a@b.org and {CARD}"
    masked = mask.hide(original, find(original)) + tail
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(masked[at : at + cut])
        at += cut
    pieces.append(masked[at:])
    events: list[Event] = [*(Delta(piece) for piece in pieces), DONE]
    assert text_of(mask.restored(events)) == mask.restore(masked)


def test_a_replaced_answer_does_not_leak_what_was_held_back() -> None:
    events: list[Event] = [Delta("see [CAR"), Replace("again"), Delta("fine"), DONE]
    shown = list(Mask().restored(events))
    assert [e.text for e in shown if isinstance(e, Delta)] == ["see ", "fine"]


def test_a_conversation_is_known_again_though_other_passages_are_sent() -> None:
    guard = Guard()
    whole = Request.user("a long document, and a question")
    assert guard.judge(Request.user("card 4111 1111 1111 1111"), whole).kind == "pin-local"
    later = Request(
        messages=(*whole.messages, Message("assistant", "so"), Message("user", "and more?"))
    )
    verdict = guard.judge(Request.user("other passages"), later)
    assert (verdict.kind, "earlier in this conversation" in verdict.why) == ("pin-local", True)
    assert guard.judge(Request.user("other passages")).kind == "allow"


def test_an_identifier_in_a_stop_word_is_masked_too() -> None:
    guard = Guard(PrivacyOptions("mask"))
    messages = Request.user(f"List my cards: {CARD}").messages
    chat = guard.preview(Recording(), Request(messages=messages, stop=(CARD, "END")))
    raw = guard.preview(Recording(), Request(prompt="List my cards.", stop=(CARD,)))
    assert CARD.encode() not in chat + raw
    assert b"END" in chat
    assert chat.count(b"[CARD_1]") == 2
