"""A text as it grows, in pieces that nothing takes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are not a whole character yet."""


class Pieces:
    """Says what is certain of a growing text; the pieces, one after another, are the whole text.

    Args:
        say: Takes each new piece.
        stop: Strings that end the text before them: their beginnings are held back.
    """

    def __init__(self, say: Callable[[str], None], stop: Sequence[str] = ()) -> None:
        self._say = say
        self._stop = tuple(stop)
        self.said = ""

    def grow(self, text: str, start: int = 0) -> None:
        """Says what is new and certain.

        Args:
            text: All of it up to now.
            start: Where stop strings begin to count.
        """
        text = text.rstrip(UNFINISHED)
        places = [place for each in self._stop if (place := text.find(each, start)) >= 0]
        end = min(places, default=len(text) - held_back(text[start:], self._stop))
        self._add(text[:end])

    def end(self, text: str) -> None:
        """Says the rest of the whole text."""
        self._add(text)

    def _add(self, text: str) -> None:
        # Some tokenizers write a text anew with its next token: its end then says what differs.
        if len(text) > len(self.said) and text.startswith(self.said):
            piece, self.said = text[len(self.said) :], text
            self._say(piece)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Returns how many characters at the end of a text may be the beginning of a stop string."""
    longest = min(len(text), max((len(each) - 1 for each in stop), default=0))
    for size in range(longest, 0, -1):
        if any(len(each) > size and each.startswith(text[-size:]) for each in stop):
            return size
    return 0
