"""Templates around texts: a user-defined template, or the chat template of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...errors import Fault, InputError

# placeholders for the text and the system prompt, which no template contains or changes
_PLACEHOLDER, _SYSTEM = "actkitstandsin", "actkitsystemstandsin"
# templates that write the current date would give other tokens every day; this is the default date of Llama's
FIXED_DATE = datetime(2024, 7, 26)

_CHANGES_TEMPLATE = "changes the output of the chat template around it: rephrase it"

Message = dict[str, Any]
Render = Callable[[list[Message]], str]


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as a string, and the spans of its text (in a chat, of each turn)."""

    string: str
    spans: tuple[tuple[int, int], ...]

    @property
    def has_template(self) -> bool:
        """Whether the string contains anything other than text."""
        return sum(stop - start for start, stop in self.spans) < len(self.string)

    def shifted(self, offset: int) -> "RenderedPrompt":
        """Return the prompt with its spans moved by a number of characters."""
        return RenderedPrompt(
            self.string, tuple((start + offset, stop + offset) for start, stop in self.spans)
        )


@dataclass(frozen=True)
class Frame:
    """A template as the fixed strings before and after every text."""

    before: str = ""
    after: str = ""

    def wrap(self, text: str) -> RenderedPrompt | str:
        """Return the text inside the template, or an error message."""
        start = len(self.before)
        return RenderedPrompt(self.before + text + self.after, ((start, start + len(text)),))

    def __str__(self) -> str:
        return f"{self.before}{{text}}{self.after}"


@dataclass(frozen=True)
class Chat(Frame):
    """The chat template of a model.

    Parameters
    ----------
    render
        Function that applies the template to messages.
    system
        System prompt.
    parts
        Whether the content of a message is a list of parts, rather than a string.
    image
        Whether an image precedes each text.
    """

    render: Render = str
    system: str | None = None
    parts: bool = False
    image: bool = False

    def wrap(self, text: str) -> RenderedPrompt | str:
        """Return the text as rendered by the template, or an error message."""
        try:
            string = self.render(self.messages(text))
        except InputError:  # not caused by this text
            raise
        except Exception as error:  # templates raise any exception
            return f"is rejected by the chat template: {reason_of(error)}"
        start, stop = len(self.before), len(string) - len(self.after)
        if not (string.startswith(self.before) and string.endswith(self.after) and start <= stop):
            return _CHANGES_TEMPLATE
        if string[start:stop].strip() != text.strip():
            return "is modified by the chat template: rephrase it"
        return RenderedPrompt(string, ((start, stop),))

    def wrap_turns(self, turns: Sequence[Message]) -> RenderedPrompt | str:
        """Return a chat as rendered by the template, or an error message.

        The content of turns is text, whatever their role; everything that the template adds is not.

        Parameters
        ----------
        turns
            Result of :func:`~actkit.chats.messages_of`.
        """
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        contents = [turn["content"] for turn in turns]
        # templates may omit empty turns, so these have no placeholder
        marks = [f"{_PLACEHOLDER}{at}x" if text.strip() else text for at, text in enumerate(contents)]
        marked = [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            string, pattern = (self.render(self._to_parts([*system, *chat])) for chat in (turns, marked))
        except InputError:  # not caused by this text
            raise
        except Exception as error:  # templates raise any exception
            return f"is rejected by the chat template: {reason_of(error)}"
        spans, at = [], 0
        before, rest = "", pattern
        for number, (text, mark) in enumerate(zip(contents, marks, strict=True), start=1):
            if not text.strip():
                continue
            if pattern.count(mark) != 1:
                return f"turn {number} is omitted or repeated by the chat template"
            before, _, rest = rest.partition(mark)
            if not string.startswith(before, at):
                return _CHANGES_TEMPLATE
            start = at + len(before)
            after = rest.partition(_PLACEHOLDER)[0]
            # most templates strip the content of turns
            variants = (text, text.strip(), text.lstrip(), text.rstrip())
            rendered = next((v for v in variants if string.startswith(v + after, start)), None)
            if rendered is None:
                return f"turn {number} is modified by the chat template: rephrase it"
            at = start + len(rendered)
            spans.append((start, at))
        if string[at:] != rest:
            return _CHANGES_TEMPLATE
        return RenderedPrompt(string, tuple(spans))

    def _to_parts(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the kind of content that the template takes."""
        if not self.parts:
            return list(messages)
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages
        ]

    def messages(self, text: str) -> list[Message]:
        """Return the chat that contains the text."""
        content = [{"type": "image"}] if self.image else []
        user: Any = [*content, {"type": "text", "text": text}] if self.parts else text
        if self.system is None:
            return [{"role": "user", "content": user}]
        system: Any = [{"type": "text", "text": self.system}] if self.parts else self.system
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def custom_frame(template: str) -> Frame:
    """Return a user-defined template, split at ``{text}``."""
    before, _, after = template.partition("{text}")
    return Frame(before, after)


def chat_frame(
    render: Render, *, system: str | None = None, image: bool = False
) -> tuple[Chat | None, list[Fault]]:
    """Determine the strings that a chat template writes before and after a text.

    Parameters
    ----------
    render
        Function that applies the template to messages, with the prompt for the answer.
    system
        System prompt.
    image
        Whether an image precedes each text.

    Returns
    -------
    chat : Chat or None
    faults : list of Fault
        Template that fails, omits or repeats the text, or rejects or drops the system prompt.
    """
    # templates of vision-language models take parts, most others take strings, many take both
    variants = (True,) if image else (False, True)
    chats = [Chat(render=render, parts=parts, image=image) for parts in variants]
    working = _first_working(chats, _PLACEHOLDER)
    if isinstance(working, Fault):
        return None, [working]
    chat, string = working
    if system is not None:
        hint = "leave out system, or include its content in the texts"
        try:
            dropped = _SYSTEM not in render(Chat(system=_SYSTEM, parts=chat.parts, image=image).messages(""))
            chat = Chat(render=render, system=system, parts=chat.parts, image=image)
            string = render(chat.messages(_PLACEHOLDER))
        except Exception as error:
            return None, [Fault("system", f"the chat template rejects it: {reason_of(error)}", hint)]
        if dropped or system.strip() not in string or string.count(_PLACEHOLDER) != 1:
            return None, [Fault("system", "the chat template omits it", hint)]
    before, _, after = string.partition(_PLACEHOLDER)
    return Chat(before, after, render, system, chat.parts, image), []


def with_fixed_date(template: str) -> str:
    """Return a template that writes :data:`FIXED_DATE` instead of the current date."""
    if "strftime_now" not in template:
        return template
    # variables are passed to the template process as plain data, so only the template itself can define a
    # function; the template drops the line break after the macro's end tag
    codes = [f"%{flag}{code}" for flag in ("", "-") for code in "aAwdbBmyYHIpMSfzZjUWcxX"]
    replaced = "".join(f".replace({code!r}, {FIXED_DATE.strftime(code)!r})" for code in codes)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def _first_working(chats: Sequence[Chat], text: str) -> tuple[Chat, str] | Fault:
    fault = None
    for chat in chats:
        try:
            string = chat.render(chat.messages(text))
        except Exception as error:
            fault = fault or Fault(
                "chat", f"the chat template fails: {reason_of(error)}", "correct the template"
            )
            continue
        if string.count(text) == 1:
            return chat, string
    repeated = Fault("chat", "the chat template does not write the text exactly once", "correct the template")
    return fault or repeated


def reason_of(error: Exception) -> str:
    """Return the first line of an error message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
