"""How anything in `deploy` says that it could not be done: for people, with what to do next."""


class CommandFailed(Exception):
    """A command could not do what it was asked to, and it is not a bug: shown as `error:` and `hint:`, exit code 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
