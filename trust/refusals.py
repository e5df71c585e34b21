"""The one shape of a refusal: what is wrong and what to do next, for people."""


class Refusal(Exception):
    """Something asked for that may not be had; nothing was changed. Each module refuses with a subclass of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
