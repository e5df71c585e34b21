"""A model of the client side of Envoy's ADS stream: what it does with upstreams, endpoints, routes and listeners.

It stands for Envoy where a thousand schedules are tried; the same rules are seen with the real one in
`tests/federation/test_xds_envoy.py`. Bodies are JSON text (of upstreams: inside `alt_stat_name`), see `body`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.xds.resources import Resource, TypeUrl, make_resource

NAMED, UNNAMED = "named", "unnamed"
"""How a bad upstream is refused: by name, or the whole response without naming it."""


def body(type_url: TypeUrl, name: str, **content: Any) -> Resource:
    """Makes a resource that the model understands. `bad` makes it refuse.

    Routes `use` upstreams, listeners routes; the extensions that listeners have stand in `rules`.
    """
    text = json.dumps(content, sort_keys=True)
    if type_url is TypeUrl.CLUSTER:
        return make_resource(name, Cluster(name=name, alt_stat_name=text).SerializeToString(deterministic=True))
    return make_resource(name, text.encode())


def content(type_url: TypeUrl, value: bytes) -> dict[str, Any]:
    """Returns what `body` was made of."""
    text = Cluster.FromString(value).alt_stat_name if type_url is TypeUrl.CLUSTER else value.decode()
    made_of: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return made_of


class ModelEnvoy:
    """One Envoy over several streams. `applied` is in force: type to name to content."""

    def __init__(self) -> None:
        self.applied: dict[TypeUrl, dict[str, dict[str, Any]]] = {type_url: {} for type_url in TypeUrl}
        self.warming: set[str] = set()
        self.unrecorded: set[tuple[TypeUrl, str]] = set()
        """What was taken from a response that was refused as a whole: a later stream hears of the state before."""
        self.outbox: list[DeltaDiscoveryRequest] = []
        self._versions: dict[TypeUrl, dict[str, str]] = {type_url: {} for type_url in TypeUrl}
        self._wanted: dict[TypeUrl, set[str]] = {
            type_url: set() for type_url in (TypeUrl.ENDPOINTS, TypeUrl.ROUTES, TypeUrl.EXTENSION)
        }
        self._asked: set[TypeUrl] = set()
        self._held_back: list[DeltaDiscoveryRequest] = []

    def connect(self) -> None:
        """Opens a new stream. While an upstream warms, upstreams are not asked for (envoy#36951)."""
        self.outbox, self._held_back, self._asked = [], [], set()
        order = (TypeUrl.CLUSTER, TypeUrl.ENDPOINTS, TypeUrl.LISTENER, TypeUrl.ROUTES, TypeUrl.EXTENSION)
        for type_url in order:
            wanted = self._wanted.get(type_url)
            if wanted is None or wanted:
                self._ask(type_url, wanted or ())

    def receive(self, response: DeltaDiscoveryResponse) -> None:
        """Takes or refuses one response and writes the answer, and what follows from it, to the outbox."""
        type_url = TypeUrl(response.type_url)
        contents = {one.name: content(type_url, one.resource.value) for one in response.resources}
        bad = {name: one["bad"] for name, one in contents.items() if one.get("bad")}
        answer = DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
        if bad:
            answer.error_detail.code = 13
            answer.error_detail.message = "Proto constraint validation failed"
            if type_url is TypeUrl.ENDPOINTS:
                self.warming.clear()  # every watch fails, and a failed one no longer holds its upstream back
            if UNNAMED not in bad.values() and type_url in (TypeUrl.CLUSTER, TypeUrl.LISTENER):
                named = ", ".join(f"{name}: unknown reason" for name in bad)
                answer.error_detail.message = f"Error adding/updating things(s) {named}"
                self._apply(type_url, {name: one for name, one in contents.items() if name not in bad})
                self.unrecorded |= {(type_url, name) for name in contents}
        else:
            self._apply(type_url, contents)
            self.unrecorded -= {(type_url, name) for name in (*contents, *response.removed_resources)}
            self._versions[type_url].update({one.name: one.version for one in response.resources})
            self._remove(type_url, response.removed_resources)
        if type_url is TypeUrl.CLUSTER:
            self._held_back.append(answer)
        else:
            self.outbox.append(answer)
        self._release()

    def _apply(self, type_url: TypeUrl, contents: Mapping[str, dict[str, Any]]) -> None:
        changed = {name for name, one in contents.items() if self.applied[type_url].get(name) != one}
        self.applied[type_url].update(contents)
        match type_url:
            case TypeUrl.CLUSTER:
                self.warming |= changed
                self._watch(TypeUrl.ENDPOINTS, changed)
            case TypeUrl.ENDPOINTS:
                self.warming -= contents.keys()
            case TypeUrl.LISTENER:
                self._watch(TypeUrl.ROUTES, {name for one in contents.values() for name in one["use"]})
                self._watch(TypeUrl.EXTENSION, {name for one in contents.values() for name in one["rules"]})

    def _remove(self, type_url: TypeUrl, names: Iterable[str]) -> None:
        match type_url:
            case TypeUrl.CLUSTER:
                gone = {name for name in names if self.applied[type_url].pop(name, None) is not None}
                self.warming -= gone
                for name in gone:
                    self._versions[type_url].pop(name, None)
                    self.applied[TypeUrl.ENDPOINTS].pop(name, None)
                    self._versions[TypeUrl.ENDPOINTS].pop(name, None)
                gone &= self._wanted[TypeUrl.ENDPOINTS]
                self._wanted[TypeUrl.ENDPOINTS] -= gone
                if gone:
                    self.outbox.append(
                        DeltaDiscoveryRequest(type_url=TypeUrl.ENDPOINTS, resource_names_unsubscribe=sorted(gone))
                    )
            case TypeUrl.ENDPOINTS:
                self.warming -= set(names)
            case TypeUrl.LISTENER:
                for name in names:
                    self.applied[type_url].pop(name, None)
                    self._versions[type_url].pop(name, None)

    def _watch(self, type_url: TypeUrl, names: set[str]) -> None:
        new = names - self._wanted[type_url]
        self._wanted[type_url] |= new
        if new:
            self._ask(type_url, new)

    def _ask(self, type_url: TypeUrl, names: Iterable[str]) -> None:
        request = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=sorted(names))
        if type_url not in self._asked:
            request.initial_resource_versions.update(self._versions[type_url])
        self._asked.add(type_url)
        if type_url is TypeUrl.CLUSTER:
            self._held_back.append(request)
            self._release()
        else:
            self.outbox.append(request)

    def _release(self) -> None:
        if not self.warming:
            self.outbox += self._held_back
            self._held_back = []
