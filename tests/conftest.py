"""Settings of all tests."""

import signal

from hypothesis import settings

pytest_plugins = ("tests.faults.terminal",)  # by its own conftest the table would be known in worker processes only

# Properties have no deadline of their own, since machines differ and are shared.
settings.register_profile("isthmus", deadline=None)
settings.load_profile("isthmus")

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
