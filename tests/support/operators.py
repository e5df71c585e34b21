"""The operators of a mesh in tests: each has a directory, and they hand each other requests, grants and documents."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.files import tree
from tests.support.trust import DOMAIN
from trust.custody import FileCustody
from trust.enrolment import Enrolment, Membership
from trust.joining import GatewayAddress, Introduction, JoinRequest
from trust.refusals import Refusal
from trust.root import Root
from trust.spiffe import ClusterName


def about(name: ClusterName, *, port: int = 15443, region: str = "eu") -> Introduction:
    gateways = (GatewayAddress(address="127.101.0.3", port=port),)
    return Introduction(name=name, network=name, region=region, gateways=gateways)


def refused(directory: Path, step: Callable[[], object], match: str) -> Refusal:
    """Checks that a step is refused, with a hint, and has changed nothing on disk; returns what was said."""
    before = tree(directory)
    with pytest.raises(Refusal, match=match) as refusal:
        step()
    assert tree(directory) == before
    assert refusal.value.hint
    return refusal.value


class Crash(BaseException):
    """The process dies here: nobody catches it."""


class CutOff:
    """A custody during whose use the process dies: before or after its `at`th change, counted by halves."""

    def __init__(self, custody: FileCustody, *, at: int) -> None:
        self._custody = custody
        self._left = at

    @property
    def where(self) -> str:
        return self._custody.where

    def names(self) -> tuple[str, ...]:
        return self._custody.names()

    def load(self, name: str) -> ec.EllipticCurvePrivateKey:
        return self._custody.load(name)

    def create(self, name: str) -> ec.EllipticCurvePrivateKey:
        self._pass()
        key = self._custody.create(name)
        self._pass()
        return key

    def destroy(self, name: str) -> None:
        self._pass()
        self._custody.destroy(name)
        self._pass()

    def _pass(self) -> None:
        if self._left == 0:
            raise Crash
        self._left -= 1


class Operator:
    """The operator of one cluster, with its data directory below `folder`."""

    def __init__(self, folder: Path, name: ClusterName, *, now: datetime) -> None:
        self.directory = folder / name
        self.custody = FileCustody(self.directory)
        self.enrolment = Enrolment(self.directory, self.custody)
        self.about = about(name)
        self.name = name
        self.now = now

    @property
    def member(self) -> Membership:
        """What makes the cluster a member, read anew."""
        found = Enrolment(self.directory, self.custody).load()
        assert found is not None
        return found

    def ask(self, *, fresh: bool = False) -> JoinRequest:
        """Asks to join."""
        return self.enrolment.request(self.about, domain=DOMAIN, now=self.now, fresh=fresh)

    def join(self, root: Root) -> Membership:
        """Joins."""
        return self.enrolment.accept(root.grant(self.ask(), now=self.now), now=self.now)

    def ask_again(self) -> JoinRequest:
        """Asks for the next authority."""
        return self.enrolment.renewal(self.about, now=self.now)

    def renew(self, root: Root) -> Membership:
        """Asks for the next authority and gets it."""
        return self.enrolment.accept(root.renew(self.ask_again(), now=self.now), now=self.now)

    def hear(self, root: Root) -> Membership:
        """Takes all documents of the root."""
        return self.enrolment.take(root.documents(), now=self.now)

    def retire(self) -> Membership:
        """Lets the older authorities go."""
        return self.enrolment.retire(now=self.now)


def member(folder: Path, name: ClusterName, root: Root, *, now: datetime) -> Operator:
    """Returns the operator of a cluster that has joined."""
    operator = Operator(folder, name, now=now)
    operator.join(root)
    return operator


def keys_in(directory: Path) -> list[str]:
    """Returns the names of the keys in a directory."""
    return sorted(path.name.removesuffix("-key.pem") for path in directory.glob("*-key.pem"))
