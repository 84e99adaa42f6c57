"""Chats: lists of turns, each with a role and a content."""

from typing import Any

from .labels import text_fault

ROLES = ("system", "user", "assistant", "tool", "developer")
Message = dict[str, Any]


def chat_fault(value: Any) -> str:
    """Return the fault of a value that must be a chat; ``""`` if there is none."""
    if value is None or value == []:
        return "is empty"
    if not isinstance(value, list):
        return f"holds a {type(value).__name__}, where other rows hold chats"
    for number, turn in enumerate(value, start=1):
        if what := _turn_fault(turn):
            return f"turn {number} {what}"
    return "is empty" if not any(message["content"].strip() for message in messages_of(value)) else ""


def _turn_fault(turn: Any) -> str:
    if not isinstance(turn, dict):
        return f"is a {type(turn).__name__}, not an object with `role` and `content`"
    missing = [name for name in ("role", "content") if turn.get(name) is None]
    if missing:
        names = ", ".join(f"`{name}`" for name in turn if turn[name] is not None)
        return f"has no `{missing[0]}`; it has {names or 'nothing'}"
    if turn["role"] not in ROLES:
        return f"has the role {turn['role']!r}; chat templates know {', '.join(ROLES)}"
    content = turn["content"]
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            return f"has a content of type {kind!r}; only text can be read"
        what = text_fault(part.get("text"))
        if what and what != "is empty":
            return what
    return ""


def messages_of(chat: list[Any]) -> list[Message]:
    """Return the turns of a valid chat, each content as one string, without keys that have no value."""
    return [
        {name: value for name, value in turn.items() if value is not None}
        | {"content": _joined(turn["content"])}
        for turn in chat
    ]


def has_system(chat: list[Any]) -> bool:
    """Return whether a valid chat contains a system prompt."""
    return any(turn["role"] in ("system", "developer") for turn in chat)


def readable(value: Any) -> str:
    r"""Return a text unchanged, and a valid chat as text: a single turn, or lines of ``role: content``.

    Examples
    --------
    >>> readable([{"role": "user", "content": "Hi"}])
    'Hi'
    >>> readable([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    'user: Hi\nassistant: Hello'
    """
    if isinstance(value, str):
        return value
    messages = messages_of(value)
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] or "" for part in content)
