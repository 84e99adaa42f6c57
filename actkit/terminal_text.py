"""Text for a terminal, with control characters of untrusted text escaped."""

import unicodedata

_KEPT = "\n\t"
# control characters, invisible ones such as bidirectional overrides, line separators, lone surrogates
_HARMFUL = {"Cc", "Cf", "Zl", "Zp", "Cs"}
_JOINERS = "\u200c\u200d"  # needed in the spelling of Arabic, Indic scripts and emoji


def printable(text: str) -> str:
    r"""Return the text with control characters written as escapes.

    Examples
    --------
    >>> print(printable("a\x1b[31m\u202eb"))
    a\x1b[31m\u202eb
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _KEPT or character in _JOINERS or unicodedata.category(character) not in _HARMFUL:
        return character
    return character.encode("unicode_escape").decode("ascii")
