"""Settings of all tests: properties have no deadline of their own, since machines differ and are shared."""

from hypothesis import settings

settings.register_profile("isthmus", deadline=None)
settings.load_profile("isthmus")
