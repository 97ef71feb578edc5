"""What a command refuses, and what no delta is."""

from __future__ import annotations


class InputError(Exception):
    """Something that the user gave cannot be used; the message is one sentence that says what and why."""


class DeltaError(ValueError):
    """A delta, or a file of weights, is damaged, or does not fit what it is to be used with; nothing was changed."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, else its kind."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
