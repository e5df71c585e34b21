"""Small pieces of Envoy configuration that every kind of proxy needs. Pure.

In this module `cluster` is Envoy's.
"""

from collections.abc import Mapping

from federation.xds.resources import Resource, ResourceSet, TypeUrl


def merge(*sets: ResourceSet) -> ResourceSet:
    """Puts the parts of one receiver's configuration together; a later part wins where both name a resource."""
    merged: dict[TypeUrl, Mapping[str, Resource]] = {}
    for part in sets:
        for type_url, resources in part.items():
            merged[type_url] = {**merged.get(type_url, {}), **resources}
    return merged
