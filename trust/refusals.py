"""The one shape of a refusal: what is wrong and what to do next, for people."""

import contextlib
from collections.abc import Iterator


class Refusal(Exception):
    """Something asked for that may not be had; nothing was changed. Each module refuses with a subclass of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class AuthorityRefused(Refusal):
    """A directory that holds no authority, or one already, or one that is not in the state for what is asked of it."""


@contextlib.contextmanager
def told_as(kind: type[Refusal], *others: type[Refusal]) -> Iterator[None]:
    """Raises what is refused as one of `others` as a `kind`, in the same words."""
    try:
        yield
    except others as error:
        raise kind(error.message, error.hint) from error
