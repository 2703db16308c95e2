"""The loop of a chat: read a message or a command, answer it, show how fast that was.

Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..spec.sizes import format_seconds
from . import backend, parts
from .chat_history import Conversation, Message
from .chat_input import ReadLine, StopKey, line_reader, read_message
from .chat_progress import (
    FirstTokenTimes,
    first_token_eta_s,
    format_answering,
    format_tokens_per_s,
    format_waiting,
    waiting_share,
)
from .printing import note
from .progress import ProgressTracker
from .terminal import StatusLine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model import StreamedModel
    from .chat_answer import ChatAnswer

_COMMAND = re.compile(r"(/\w+)(?: +(.*))?")
_HELP = """/reset         forget the conversation; the system message stays
/system TEXT   set the system message from here on; without a text, take it away
/save FILE     write the conversation to a new JSON file
/exit          leave, as Ctrl-D does
A line that ends with \\ goes on; so does everything between two lines of \"\"\".
Ctrl-C ends an answer, or clears the line; at the prompt, a second one leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How a chat answers.

    Attributes:
        max_new_tokens: the maximum number of tokens of an answer.
        prompt_tokens: the most that the conversation may have before it.
        request: the other settings of every `GenerationRequest`.
        quiet: print only answers and errors.
    """

    max_new_tokens: int
    prompt_tokens: int
    request: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False


class Chat:
    """A conversation with a streamed model, on a terminal or over pipes."""

    def __init__(
        self,
        streamed: StreamedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings,
        *,
        system: str | None = None,
    ) -> None:
        """Set up; `run` begins."""
        self._streamed, self._tokenizer, self._settings = streamed, tokenizer, settings
        self._conversation = Conversation(system)
        self._times = FirstTokenTimes(streamed.plan.cost, settings.prompt_tokens)
        self._is_interactive = sys.stdin.isatty()
        self._stop_key = StopKey()
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/save": self._save,
            "/help": lambda _: note(_HELP),
        }

    def run(self) -> None:
        """Answer until the input ends.

        Raises:
            PlanError: a message or a command is invalid, and nobody is there to repeat it.
        """
        read_line = line_reader()
        if not self._is_interactive:
            while (text := read_message(read_line)) is not None and text.strip() != "/exit":
                self._react(text)
            return
        with self._stop_key:
            while (text := self._next_message(read_line)) is not None and text.strip() != "/exit":
                try:
                    self._react(text)
                except PlanError as error:
                    note(f"error: {' '.join(str(error).split())}")

    def _next_message(self, read_line: ReadLine) -> str | None:
        """Return the next message of a terminal; None when the user leaves."""
        has_cleared = False
        while True:
            try:
                with self._stop_key.reading():
                    text = read_message(read_line)
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                if has_cleared:
                    return None
                has_cleared = True
                note("Ctrl-C again, or Ctrl-D, leaves")
                continue
            if text is None:
                sys.stderr.write("\n")
            return text

    def _react(self, text: str) -> None:
        command = _COMMAND.fullmatch(text.rstrip())
        if command is not None:
            self._obey(command[1], command[2] or "")
        elif text.strip():
            self._converse(text)

    def _obey(self, name: str, argument: str) -> None:
        if name not in self._commands:
            raise PlanError(
                f"there is no command {name}: /help lists them. Put a space before the slash of a message"
            )
        self._commands[name](argument)

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._say("the conversation starts afresh")

    def _set_system(self, text: str) -> None:
        if text:
            check_system(self._tokenizer, text)
        self._conversation.system = text or None
        self._say("the system message is set" if text else "there is no system message now")

    def _save(self, name: str) -> None:
        if not name:
            raise PlanError("/save needs the name of a file, as in /save talk.json")
        self._conversation.save(Path(name))
        self._say(f"saved {len(self._conversation.messages)} messages to {name}")

    def _say(self, text: str) -> None:
        if not self._settings.quiet:
            note(text)

    def _converse(self, text: str) -> None:
        """Answer a message, and keep both in the conversation."""
        conversation, settings = self._conversation, self._settings
        conversation.ask(text)
        try:
            num_left_out = conversation.fit(self._count_tokens, settings.prompt_tokens)
            prompt = backend.encode_messages(self._tokenizer, conversation.sent)
        except PlanError:
            conversation.take_back()
            raise
        if num_left_out:
            turns = "the oldest turn is" if num_left_out == 1 else f"the {num_left_out} oldest turns are"
            self._say(f"the context is full: {turns} left out from here on")
        answer = self._answer(prompt)
        if answer.is_stopped and not answer.text:
            conversation.take_back()
            self._say("stopped before the first word: the message is not kept")
            return
        conversation.answer(answer.text)
        if answer.first_token_s is not None:
            self._times.measure(len(prompt), answer.first_token_s)
        self._say(_explain(answer))

    def _count_tokens(self, messages: Sequence[Message]) -> int:
        return len(backend.encode_messages(self._tokenizer, messages))

    def _answer(self, prompt: list[int]) -> ChatAnswer:
        settings, streamed = self._settings, self._streamed
        request = parts.GenerationRequest(
            prompt=prompt, max_new_tokens=settings.max_new_tokens, **settings.request
        )
        progress = _AnswerProgress(streamed, request.max_new_tokens, self._times.expect(len(prompt)))
        unsubscribe = streamed.timeline.subscribe(progress.tracker.observe)
        try:
            with StatusLine(
                self._line_of(progress), shown=self._is_interactive and not settings.quiet
            ) as status:
                try:
                    return backend.answer_in_chat(
                        streamed,
                        self._tokenizer,
                        request,
                        write=status.write,
                        on_tokens=progress.count_tokens,
                        is_stopped=lambda: self._stop_key.is_pressed,
                    )
                finally:
                    status.write("\n")
        finally:
            unsubscribe()

    def _line_of(self, progress: _AnswerProgress) -> Callable[[], str]:
        def line() -> str:
            if self._stop_key.is_pressed:
                return "stopping; Ctrl-C again ends the program"
            return progress.line(time.perf_counter())

        return line


class _AnswerProgress:
    """The progress of one answer as a line."""

    def __init__(self, streamed: StreamedModel, max_new_tokens: int, expected_s: float) -> None:
        self.tracker = ProgressTracker(num_units=len(streamed.plan.units), max_new_tokens=max_new_tokens)
        self._expected_s = expected_s
        self._start_s = time.perf_counter()
        self._first_token_at_s: float | None = None

    def count_tokens(self, num_tokens: int) -> None:
        if self._first_token_at_s is None:
            self._first_token_at_s = time.perf_counter()
        self.tracker.count_tokens(num_tokens)

    def line(self, now_s: float) -> str:
        state = self.tracker.state(now_s)
        if self._first_token_at_s is not None:
            return format_answering(state, now_s - self._first_token_at_s)
        eta_s = first_token_eta_s(self._expected_s, now_s - self._start_s, waiting_share(state))
        return format_waiting(state, eta_s)


def _explain(answer: ChatAnswer) -> str:
    """Return the figures of an answer as one line for people."""
    figures = [f"{answer.new_tokens} tokens" if answer.new_tokens != 1 else "1 token"]
    if answer.first_token_s is not None:
        later_s = answer.elapsed_s - answer.first_token_s
        if answer.new_tokens > 1 and later_s > 0:
            figures.append(format_tokens_per_s((answer.new_tokens - 1) / later_s))
        figures.append(f"the first after {format_seconds(answer.first_token_s)}")
    return " · ".join([*figures, *(["stopped"] if answer.is_stopped else [])])


def check_system(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Refuse a system message that the checkpoint's chat template does not take.

    Raises:
        PlanError: the template refuses or ignores it.
    """
    backend.encode_prompt(tokenizer, "hello", chat=True, system=text)
