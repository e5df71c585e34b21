"""What a mesh believes and what its proxies were told, in a form in which two moments can be compared.

Left out is what differs between two moments of a healthy mesh: versions, times, over which gateway a peer is heard,
and secrets (a certificate may have been renewed).
"""

from collections.abc import Iterator, Mapping
from typing import Any

Picture = Mapping[str, Any]
"""By the name of what is pictured: `east/control-1 services`, `east/gateway-1 listener mesh`."""

_MOMENTS = frozenset({"since", "heard", "via", "listensSince", "resolved", "version_info", "last_updated"})
_KINDS = {
    "dynamic_active_clusters": ("cluster", "cluster"),
    "dynamic_route_configs": ("route", "route_config"),
    "dynamic_endpoint_configs": ("endpoints", "endpoint_config"),
}


def timeless(value: Any) -> Any:
    """Returns the value without what moments differ in."""
    match value:
        case dict():
            return {key: timeless(each) for key, each in value.items() if key not in _MOMENTS}
        case list():
            return [timeless(each) for each in value]
        case _:
            return value


def told(dump: Any) -> Iterator[tuple[str, Any]]:
    """Yields what an Envoy was told, by kind and name, from its `/config_dump?include_eds`."""
    for part in dump["configs"]:
        for field, (kind, inner) in _KINDS.items():
            for each in part.get(field, ()):
                resource = each[inner]
                name = resource.get("name") or resource.get("cluster_name", "")
                yield f"{kind} {name}", timeless(resource)
        for each in part.get("dynamic_listeners", ()):
            if "active_state" in each:
                yield f"listener {each['name']}", timeless(each["active_state"]["listener"])


def differences(one: Picture, other: Picture) -> list[str]:
    """Returns what is not the same in two pictures: names, and the values where both have one."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return [f"{name}: {_shorten(one.get(name))} became {_shorten(other.get(name))}" for name in names]


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) < 600 else text[:600] + "..."
