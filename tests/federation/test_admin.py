"""Who may ask the admin API: strangers get nowhere, whatever they send, and break nothing."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from federation.admin import admin_app
from federation.reports import ErrorReport
from tests.support.addresses import free_address

TOKEN = "the-token-of-this-test"
READS = ("status", "clusters", "services", "proxies", "member", "join-request", "tokens", "trust", "revocations")
READS += ("drains", "load")
CHANGES = ("tokens", "join", "join-request", "trust/documents", "revocations", "drains", "leave", "members")
ASYNC = (
    *("join_request", "join", "tokens", "create_token", "revoke_token"),
    *("take_documents", "revoke", "restore", "drain", "undrain", "leave", "come_back", "forget"),
)


class Backend:
    """Answers everything; whether it is asked is what is tested."""

    is_ready = True

    def __getattr__(self, name: str) -> Any:
        if name in ASYNC:

            async def answer(*given: object, **more: object) -> dict[str, str]:
                if name == "restore":
                    return {"subject": str(given[0]), "asked_by": str(more["asked_by"])}
                return {"secret": name}

            return answer
        return (lambda: b"") if name == "metrics" else (lambda: {"secret": name})


@pytest.fixture
async def url() -> AsyncIterator[str]:
    runner = web.AppRunner(admin_app(Backend(), TOKEN))
    await runner.setup()
    address = free_address()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    try:
        yield f"http://{address}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(url: str, *, method: str = "GET", body: bytes = b"", token: bytes | None = None) -> tuple[int, bytes]:
    headers = {} if token is None else {"authorization": token.decode(errors="surrogateescape")}
    async with (
        ClientSession() as session,
        session.request(method, URL(url, encoded=True), data=io.BytesIO(body), headers=headers) as response,
    ):
        return response.status, await response.read()


@pytest.mark.parametrize("token", [None, b"", b"Bearer", b"Bearer ", b"Bearer x", b"Basic " + TOKEN.encode()])
@pytest.mark.parametrize("path", [f"/v1/{name}" for name in READS])
async def test_nobody_reads_without_the_token(url: str, path: str, token: bytes | None) -> None:
    status, body = await ask(url + path, token=token)
    assert status == 401
    assert msgspec.json.decode(body, type=ErrorReport).error == "the admin token is missing or wrong"
    assert (await ask(url + path, token=f"Bearer {TOKEN}".encode()))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/%76%31/status", "/v1%2fstatus", "//v1/status", "/x/%2e%2e/v1/status", "/v1/./status"),
        *(
            "/V1/drains",
            "/v1/drains/",
            "/;/v1/drains",
            "/v1\t/drains",
            "/healthz/../v1/drains",
            "/healthz%2f..%2fv1/load",
        ),
    ],
)
async def test_no_spelling_of_a_path_leads_around_the_token(url: str, path: str) -> None:
    status, body = await ask(url + path)
    assert status in (401, 404)
    assert b"secret" not in body


@pytest.mark.parametrize("path", [f"/v1/{name}" for name in CHANGES])
async def test_nobody_changes_anything_without_the_token(url: str, path: str) -> None:
    assert (await ask(url + path, method="POST", body=b"{}"))[0] == 401
    assert (await ask(url + path + "/west", method="DELETE"))[0] == 401


@pytest.mark.parametrize(
    ("written", "subject"),
    [
        ("west", "west"),
        ("shop/cart", "shop/cart"),
        ("shop/cart@west", "shop/cart@west"),
        ("shop%2Fcart%40west", "shop/cart@west"),
    ],
)
async def test_a_revocation_is_undone_by_its_subject(url: str, written: str, subject: str) -> None:
    status, body = await ask(f"{url}/v1/revocations/{written}", method="DELETE", token=f"Bearer {TOKEN}".encode())
    answer = msgspec.json.decode(body)
    assert (status, answer["subject"]) == (200, subject)
    assert answer["asked_by"].startswith("admin at 127.")


def test_only_probes_and_metrics_are_open_to_all() -> None:
    routes = {route.resource.canonical for route in admin_app(Backend(), TOKEN).router.routes() if route.resource}
    assert {path for path in routes if not path.startswith("/v1/")} == {
        *("/healthz", "/healthz/etcd", "/readyz", "/metrics")
    }


async def test_a_token_that_is_no_text_is_refused(url: str) -> None:
    where = URL(url)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(
            b"GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 401")
        writer.close()


@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/join", "/v1/trust/documents", "/v1/revocations", "/v1/drains"])
@pytest.mark.parametrize("body", [b"", b"[", b'{"x":' + b"[" * 200_000, b'{"namespace":"\xff"}', b"\xff"])
async def test_a_body_that_makes_no_sense_is_refused(url: str, path: str, body: bytes) -> None:
    status, answer = await ask(url + path, method="POST", body=body, token=f"Bearer {TOKEN}".encode())
    assert status == 400
    assert "the body is no" in msgspec.json.decode(answer, type=ErrorReport).error


async def test_a_body_without_end_is_refused(url: str) -> None:
    body = b" " * (5 << 20)
    assert (await ask(url + "/v1/join", method="POST", body=body, token=f"Bearer {TOKEN}".encode()))[0] == 413
