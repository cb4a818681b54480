"""The turns of a chat: a line is a command or a question, an answer joins the conversation.

The conversation changes only when an answer has been given, so a refusal or an interrupt before
the first word leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edgellm.cli import Terminated
from edgellm.cli.answer import Playback, answering, begin, cut_short
from edgellm.cli.consent import settle
from edgellm.cli.conversation import Conversation
from edgellm.cli.options import utf8
from edgellm.cli.routed import Routed
from edgellm.cli.terminal import Screen, statistics
from edgellm.errors import ContextFull, EdgellmError, UsageError
from edgellm.routing.options import Policy
from edgellm.stream import Done, Message

BLOCK = '"""'


class Chat:
    """A model, a conversation with it, and a screen."""

    def __init__(self, model: Routed, conversation: Conversation, stats: bool) -> None:
        self.model = model
        self.conversation = conversation
        self.defaults = conversation
        self.screen = Screen()
        self.stats = stats
        self.last: Done | None = None

    def handle(self, line: str) -> None:
        """One input of the user; EOFError when it says goodbye."""
        if line.startswith("/"):
            from edgellm.cli.slash import obey

            obey(self, line)
            return
        text = unquoted(line)
        if text.strip():
            question = Message("user", self.conversation.attached + utf8(text, "the question"))
            self.answer((*self.conversation.messages, question), attached="")

    def again(self, policy: Policy | None = None) -> None:
        """Answers the last question once more, in place of its answer; `policy` for this once."""
        messages = self.conversation.messages
        if not messages:
            raise UsageError("there is no answer yet to make again; ask something first")
        self.answer(messages[:-1], self.conversation.attached, policy)

    def answer(
        self, messages: Sequence[Message], attached: str, policy: Policy | None = None
    ) -> None:
        """Streams the answer to the last message and remembers it, also a stopped one.

        `attached` is what waits for the next question afterwards.
        """
        request = self.conversation.request(messages)
        model = self.model if policy is None else self.model.under(policy)
        playback = Playback(self.screen)
        try:
            settle(model, request, self.screen)
            with answering(model, request) as events:
                begin(events, self.screen)
                done = playback.play(events)
        except KeyboardInterrupt:
            if playback.text:
                self._remember(messages, playback.text, attached)
                self.screen.note("stopped; what was said stays, /regen answers again")
            else:
                self.screen.note("stopped before the first word; the question is taken back")
            raise
        self._remember(messages, playback.text, attached)
        self.last = done
        for remark in model.remarks(done):
            self.screen.note(remark)
        if done.finish_reason == "length":
            self.screen.note(
                cut_short(done, request.max_tokens, "/set max_tokens", "/clear, or a larger --ctx,")
            )
        if self.stats:
            self.screen.note(statistics(done))

    def _remember(self, messages: Sequence[Message], answer: str, attached: str) -> None:
        turns = (*messages, Message("assistant", answer))
        self.conversation = replace(self.conversation, messages=turns, attached=attached)


def talk(chat: Chat, read: Callable[[], str]) -> None:
    """A conversation with a person: an error or a Ctrl-C ends the answer, not the chat."""
    hinted = False
    while True:
        try:
            line = read()
        except EOFError:
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            if hinted:
                return
            hinted = True
            chat.screen.note("Ctrl-C once more, or Ctrl-D, leaves; /help lists the commands")
            continue
        hinted = False
        try:
            chat.handle(line)
        except EOFError:
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            chat.screen.end_line()
        except EdgellmError as error:
            chat.screen.complain(str(error))
            if isinstance(error, ContextFull):
                chat.screen.note("the conversation is as it was; /clear makes room")


def recite(chat: Chat, read: Callable[[], str]) -> None:
    """A conversation with a script: the first error ends it, and is raised."""
    while True:
        try:
            chat.handle(read())
        except EOFError:
            return


def is_open(text: str) -> bool:
    """Whether a block that began with three quotes waits for the closing ones."""
    text = text.strip()
    return text.startswith(BLOCK) and not (len(text) >= 2 * len(BLOCK) and text.endswith(BLOCK))


def unquoted(text: str) -> str:
    """The text inside a block; any other text as it is."""
    bare = text.strip()
    if bare.startswith(BLOCK) and not is_open(bare):
        return bare[len(BLOCK) : -len(BLOCK)].strip("\r\n")
    return text
