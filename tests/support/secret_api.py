"""An API server that keeps one Secret in memory, with the conflicts of the real one."""

import threading

from trust.secret_custody import SecretConflict, SecretContent, SecretUnavailable


class MemorySecret:
    """One Secret. POST of one that exists, and PUT of an old or removed one, is a conflict, as with the real server."""

    def __init__(self) -> None:
        self.content = SecretContent()
        self.is_reachable = True
        self.writes = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "isthmus-system/ca"

    def read(self) -> SecretContent:
        self._check()
        with self._lock:
            return self.content

    def write(self, content: SecretContent) -> None:
        self._check()
        with self._lock:
            if content.version != self.content.version:
                raise SecretConflict("the object has been modified", "read it again")
            self.writes += 1
            self.content = SecretContent(dict(content.entries), str(1000 + self.writes))

    def _check(self) -> None:
        if not self.is_reachable:
            raise SecretUnavailable("the API server cannot be reached", "check the network")
