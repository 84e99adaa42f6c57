"""The words around a text: a template of one's own, or the chat template of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...errors import Fault

# stands for a text while the words around it are looked for: no template changes or holds it
_STAND_IN, _SYSTEM = "actkitstandsin", "actkitsystemstandsin"
# templates that write today's date would give other tokens tomorrow; Llama's name this day themselves
TODAY = datetime(2024, 7, 26)

Message = dict[str, Any]
Render = Callable[[list[Message]], str]


@dataclass(frozen=True)
class Framed:
    """A prompt as it is tokenized, and where in it the text stands."""

    string: str
    start: int
    stop: int

    @property
    def is_framed(self) -> bool:
        """Whether there is anything but text."""
        return self.stop - self.start < len(self.string)


@dataclass(frozen=True)
class Frame:
    """What stands before and after every text."""

    before: str = ""
    after: str = ""

    def put(self, text: str) -> Framed | str:
        """Return the text with the words around it, or what is wrong with it."""
        start = len(self.before)
        return Framed(self.before + text + self.after, start, start + len(text))

    def __str__(self) -> str:
        return f"{self.before}{{text}}{self.after}"


@dataclass(frozen=True)
class Chat(Frame):
    """The words that a chat template puts around every text.

    Parameters
    ----------
    render
        Applies the template.
    system
        System prompt.
    parts
        Whether the content of a message is a list of parts, rather than a string.
    image
        Whether an image stands before each text.
    """

    render: Render = str
    system: str | None = None
    parts: bool = False
    image: bool = False

    def put(self, text: str) -> Framed | str:
        """Return the text as the template renders it, or what is wrong with it."""
        try:
            string = self.render(self.messages(text))
        except Exception as error:  # what a template raises is its own choice
            return f"is refused by the chat template: {reason_of(error)}"
        start, stop = len(self.before), len(string) - len(self.after)
        if not (string.startswith(self.before) and string.endswith(self.after) and start <= stop):
            return "changes what the chat template writes around it: put it in other words"
        if string[start:stop].strip() != text.strip():
            return "is changed by the chat template: put it in other words"
        return Framed(string, start, stop)

    def messages(self, text: str) -> list[Message]:
        """Return the chat that holds the text."""
        content = [{"type": "image"}] if self.image else []
        user: Any = [*content, {"type": "text", "text": text}] if self.parts else text
        if self.system is None:
            return [{"role": "user", "content": user}]
        system: Any = [{"type": "text", "text": self.system}] if self.parts else self.system
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def own_frame(template: str) -> Frame:
    """Return the words around ``{text}``."""
    before, _, after = template.partition("{text}")
    return Frame(before, after)


def chat_frame(
    render: Render, *, system: str | None = None, image: bool = False
) -> tuple[Chat | None, list[Fault]]:
    """Find out what a chat template writes around a text.

    Parameters
    ----------
    render
        Applies the template to messages, ready for the answer.
    system
        System prompt.
    image
        Whether an image stands before each text.

    Returns
    -------
    chat : Chat or None
    faults : list of Fault
        The template fails, leaves the text out or repeats it, refuses or drops the system prompt.
    """
    # templates of models that see take parts, most others take strings, many take both
    shapes = (True,) if image else (False, True)
    chats = [Chat(render=render, parts=parts, image=image) for parts in shapes]
    found = _first(chats, _STAND_IN)
    if isinstance(found, Fault):
        return None, [found]
    chat, string = found
    if system is not None:
        mend = "leave out system, or put its words into the texts"
        try:
            dropped = _SYSTEM not in render(Chat(system=_SYSTEM, parts=chat.parts, image=image).messages(""))
            chat = Chat(render=render, system=system, parts=chat.parts, image=image)
            string = render(chat.messages(_STAND_IN))
        except Exception as error:
            return None, [Fault("system", f"the chat template refuses it: {reason_of(error)}", mend)]
        if dropped or system.strip() not in string or string.count(_STAND_IN) != 1:
            return None, [Fault("system", "the chat template leaves it out", mend)]
    before, _, after = string.partition(_STAND_IN)
    return Chat(before, after, render, system, chat.parts, image), []


def undated(template: str) -> str:
    """Return a template that writes :data:`TODAY` where it would write the date of today."""
    if "strftime_now" not in template:
        return template
    # what templates are given is made plain data, so that only they can define a function; the line
    # break belongs to the tag before it
    codes = [f"%{flag}{code}" for flag in ("", "-") for code in "aAwdbBmyYHIpMSfzZjUWcxX"]
    replaced = "".join(f".replace({code!r}, {TODAY.strftime(code)!r})" for code in codes)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def _first(chats: Sequence[Chat], text: str) -> tuple[Chat, str] | Fault:
    fault = None
    for chat in chats:
        try:
            string = chat.render(chat.messages(text))
        except Exception as error:
            fault = fault or Fault(
                "chat", f"the chat template fails: {reason_of(error)}", "mend the template"
            )
            continue
        if string.count(text) == 1:
            return chat, string
    repeated = Fault("chat", "the chat template does not write the text once", "mend the template")
    return fault or repeated


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
