"""Waits for what happens elsewhere: in another process, or in many places of this one."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 60.0  # seconds; deadline of a wait, generous because two noisy cores are shared by many tests


async def eventually(holds: Callable[[], bool], what: str = "", patience: float = PATIENCE) -> None:
    """Returns once `holds()`; fails with `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"never came true: {what or holds}"
        await asyncio.sleep(0.02)
