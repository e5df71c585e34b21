"""The contexts file: where the control planes of a mesh are, by cluster. A lab writes one, commands read it.

{"east": {"admin": "http://127.20.1.1:15014", "token_file": ".../admin-token"}}
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploy.failures import CommandFailed


class Context(msgspec.Struct, frozen=True):
    """Where a control plane listens and the file with its admin token; `others` are more replicas of the cluster."""

    admin: str
    token_file: str = ""
    others: tuple[str, ...] = ()


def read_contexts(file: Path) -> Mapping[str, Context]:
    """Reads a contexts file; raises CommandFailed when there is none or it is not one."""
    try:
        contexts = msgspec.json.decode(file.read_bytes(), type=dict[str, Context])
    except FileNotFoundError as error:
        raise CommandFailed(
            f"no control plane to ask: {file} does not exist",
            "start a lab with `isthmus lab up`, or name a control plane with --admin and --admin-token-file",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandFailed(f"{file} is no contexts file: {error}", "name another one with --contexts") from error
    if not contexts:
        raise CommandFailed(f"{file} names no cluster", "start the lab again with `isthmus lab up`")
    return contexts
