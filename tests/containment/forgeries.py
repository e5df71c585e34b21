"""All that somebody can sign who stole the key of a cluster's intermediate, aimed at being somebody else."""

from tests.containment.chains import chains, profiles
from tests.containment.names import encodings, hosts, names
from tests.containment.thief import Forgery, Thief


def forgeries(thief: Thief) -> tuple[Forgery, ...]:
    """Returns all forgeries, each with a name of its own."""
    found = (*names(thief), *hosts(thief), *encodings(thief), *chains(thief), *profiles(thief))
    assert len({one.name for one in found}) == len(found), "two forgeries of one name"
    return found
