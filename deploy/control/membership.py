"""How this cluster becomes a member: its enrolment on disk, awaited, by whichever replica was handed the grant."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from deploy.control.options import ControlOptions
from deploy.control.reports import introduction
from trust.custody import open_custody
from trust.enrolment import Enrolment, Membership
from trust.joining import Grant, JoinRequest

log = logging.getLogger(__name__)

_LOOK = timedelta(seconds=0.5)
"""Between two looks at the directory that the replicas share: another one may have been handed the grant."""


class Joining:
    """The way of one replica into the mesh; the keeper uses its `enrolment` on. Disk and keys are used in threads."""

    def __init__(self, options: ControlOptions) -> None:
        """Opens where the keys are. Blocks; raises CustodyRefused."""
        self._about = introduction(options.settings)
        self._domain = options.settings.domain
        custody = open_custody(options.ca_keys, directory=options.data, passphrase=options.ca_passphrase)
        self.enrolment = Enrolment(options.data, custody)
        self._accepted = asyncio.Event()
        self.membership: Membership | None = None

    def load(self) -> None:
        """Looks whether the cluster has joined already. Blocks; raises a Refusal for a directory in disorder."""
        found = self.enrolment.load()
        if found is not None and self.membership is None:
            self.membership = found
            self._accepted.set()

    async def request(self, *, fresh: bool) -> JoinRequest:
        """Returns the pending request, or a `fresh` one in its place; raises JoinRefused for a member."""
        return await asyncio.to_thread(
            lambda: self.enrolment.request(self._about, domain=self._domain, now=datetime.now(UTC), fresh=fresh)
        )

    async def accept(self, grant: Grant) -> None:
        """Takes a grant; raises JoinRefused and then nothing has changed."""
        await asyncio.to_thread(lambda: self.enrolment.accept(grant, now=datetime.now(UTC)))
        await asyncio.to_thread(self.load)
        log.info("cluster joined", extra={"domain": grant.domain, "introduced_to": len(grant.introductions)})

    async def wait(self) -> Membership:
        """Waits until the cluster is a member."""
        while self.membership is None:
            try:
                async with asyncio.timeout(_LOOK.total_seconds()):
                    await self._accepted.wait()
            except TimeoutError:
                await asyncio.to_thread(self.load)
        return self.membership
