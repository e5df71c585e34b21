"""What the parts of a record may say, whoever spoke: ports, endpoints, addresses, drains, moments and words. Pure."""

import ipaddress
from datetime import UTC, datetime

import msgspec

from federation.model import Drain, Endpoint, GatewayAddress, ServicePort
from trust.spiffe import is_dns_label, is_dns_name

MOST_PORTS = 100
"""Ports of one service: each is a cluster in every sidecar, with all the endpoints. An EndpointSlice has as many."""

MOST_DRAINS = 1000
"""Of one member: services that are drained one by one."""

_BROADCAST = ipaddress.ip_address("255.255.255.255")
_PORTS = range(1, 65536)
_DRAIN_WEIGHTS = range(100)
_LONGEST_WORD = 253  # characters, of a name or a place
LONGEST_LABEL = 317  # characters; a Kubernetes label's key is a DNS name, a slash and 63 more


class Malformed(ValueError):
    """A record that cannot be believed: unreadable, or about somebody whom its speaker may not speak for."""


def check_ports(ports: tuple[ServicePort, ...]) -> None:
    """Judges the ports of a service; raises Malformed, as all of these do."""
    if len(ports) > MOST_PORTS:
        raise Malformed(f"{len(ports)} ports are more than the {MOST_PORTS} that a service may have")
    numbers = [port.number for port in ports]
    if not all(number in _PORTS for number in numbers) or len(set(numbers)) < len(numbers):
        raise Malformed(f"ports must be different numbers from 1 to 65535, not {numbers}")
    for port in ports:
        check_text(port.name, "a port's name")


def check_endpoints(endpoints: tuple[Endpoint, ...]) -> list[Endpoint]:
    """Returns the endpoints with each address in its one spelling."""
    found = {}
    for endpoint in endpoints:
        if not is_dns_name(endpoint.pod):
            raise Malformed(f"an endpoint has no valid pod name: {endpoint.pod!r}")
        if not is_dns_name(endpoint.account):
            raise Malformed(f"endpoint {endpoint.pod!r} has no valid service account: {endpoint.account!r}")
        # The zone ends in a response header, all of it in terminals: a line break would be the peer's to place.
        for word in (endpoint.locality.region, endpoint.locality.zone, endpoint.locality.cloud):
            check_text(word, f"the place of endpoint {endpoint.pod!r}")
        for label in endpoint.labels:
            for word in label:
                check_text(word, f"a label of endpoint {endpoint.pod!r}", longest=LONGEST_LABEL)
        address = check_address(endpoint.address, f"endpoint {endpoint.pod!r}")
        same = address == endpoint.address
        found[address] = endpoint if same else msgspec.structs.replace(endpoint, address=address)
    if len(found) < len(endpoints):
        raise Malformed("two endpoints have the same address")
    return list(found.values())


def check_gateways(gateways: tuple[GatewayAddress, ...]) -> tuple[GatewayAddress, ...]:
    """Returns each gateway once, in its one spelling."""
    for gateway in gateways:
        if gateway.port not in _PORTS:
            raise Malformed(f"a gateway's port is out of range: {gateway.port}")
    found = [GatewayAddress(check_address(gateway.address, "a gateway"), gateway.port) for gateway in gateways]
    return tuple(dict.fromkeys(found))  # Envoy wants an address once


def check_drain(drain: Drain) -> Drain:
    """Judges a drain, whoever asked for it, and returns it."""
    if drain.weight not in _DRAIN_WEIGHTS:
        raise Malformed(f"a drain leaves 0 to 99 percent, not {drain.weight}")
    if drain.service is not None and not (is_dns_label(drain.service.namespace) and is_dns_label(drain.service.name)):
        raise Malformed("a drained service's namespace and name must be DNS labels")
    check_moment(drain.since, "a drain's beginning")
    return drain


def check_moment(moment: datetime, what: str) -> None:
    """Judges a moment: it can be told in UTC."""
    if moment.tzinfo is None:
        raise Malformed(f"{what} has no time zone")
    try:
        moment.astimezone(UTC)
    except OverflowError as error:  # in the first or last hours that there are
        raise Malformed(f"{what} cannot be told in UTC") from error


def check_text(text: str, what: str, *, longest: int = _LONGEST_WORD) -> None:
    """Judges a word that ends in terminals: at most `longest` characters, and all of them can be printed."""
    if len(text) > longest or not text.isprintable():
        raise Malformed(f"{what} is longer than {longest} characters or cannot be printed: {text[:32]!r}")


def check_address(text: str, what: str) -> str:
    """Returns an address as Envoy prints it: a gateway finds the pod of a tunnel by that spelling.

    Loopback is let pass: a whole mesh may live on one machine.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise Malformed(f"{what} has no valid IP address: {text[:64]!r}") from error
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise Malformed(f"{what} has an address with a scope, or IPv4 in the form of IPv6: {text[:64]!r}")
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise Malformed(f"{what} has an address that nobody can have: {text}")
    if address.is_link_local:
        raise Malformed(f"{what} has an address that means another machine on every link: {text}")
    return str(address)
