"""Properties have no deadline: how long an example takes says nothing about whether it holds."""

from hypothesis import settings

settings.register_profile("isthmus", deadline=None)
settings.load_profile("isthmus")
