"""Runs coroutines that wait for nothing but time: their waiting takes none."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next moment for which somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        # A timer that was cancelled is nobody's moment: the real loop would then wait for the next one in real time.
        moments = [timer._when for timer in self._scheduled if not timer._cancelled]  # type: ignore[attr-defined]
        if not self._ready and moments:  # type: ignore[attr-defined]
            self._now = max(self._now, min(moments))
        super()._run_once()  # type: ignore[misc]


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine to its end. Nothing in it may wait for a network or a thread."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(coroutine)
