"""What a command refuses."""

from __future__ import annotations


class InputError(Exception):
    """Something that the user gave cannot be used; the message is one sentence that says what and why."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, else its kind."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
