"""Keeps a cancellation that a TaskGroup of Python 3.11 and 3.12 loses.

When a group is cancelled from outside while one of its tasks fails, it raises the failures alone, and nobody says any
more that its owner was told to end (CPython issue 116720, fixed in 3.13). Who handles such failures and goes on, asks.

The same versions also count a cancellation too many when a task fails while the `async with` block itself is over and
only waits: who asks must keep the block of every such group busy.
"""

import asyncio


def propagate_cancellation() -> None:
    """Raises CancelledError when the current task was told to end and has not ended yet: call it after `except*`."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
