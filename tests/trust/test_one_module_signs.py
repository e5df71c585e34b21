"""Keys are used in one room, by one module: what has a CA key in its hands can be read in an afternoon."""

import ast
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
ROOMS = ("deploy", "federation", "gateway", "sidecar", "trust")


def callers(method: str) -> set[str]:
    """The modules that call `something.method(...)`."""
    return {str(file.relative_to(HOUSE)) for file, node in attributes() if node.attr == method}


def attributes() -> Iterator[tuple[Path, ast.Attribute]]:
    for room in ROOMS:
        for file in (HOUSE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield file, node.func


def test_one_module_signs_and_one_hands_it_to_a_token() -> None:
    assert callers("sign") == {"trust/certificates.py", "trust/pkcs11.py"}


def test_one_module_turns_keys_into_bytes() -> None:
    assert callers("private_bytes") == {"trust/certificates.py"}
    assert callers("private_numbers") == set()
