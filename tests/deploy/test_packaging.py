"""Isthmus is one distribution, whose five import names are so plain that others could have them too."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("name", ["deploy", "federation", "gateway", "sidecar", "trust"])
def test_an_import_name_is_of_our_distribution_alone(name: str) -> None:
    assert set(packages_distributions()[name]) == {"isthmus"}
