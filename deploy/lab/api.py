"""The API of a running lab: JSON over HTTP on a Unix socket in a private folder. `client.py` is its other end."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from deploy.failures import CommandFailed
from deploy.lab.reports import ActionRequest, LinkRequest, Refusal
from deploy.lab.supervisor import Lab

_Handler = Callable[[web.Request], Awaitable[msgspec.Struct]]


async def serve(lab: Lab, socket: Path, *, opened: Callable[[], None]) -> None:
    """Serves until cancelled; calls `opened` when the socket takes requests."""
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/status", _answer(lambda request: _status(lab, request))),
            web.get("/v1/environment", _answer(lambda request: _environment(lab, request))),
            web.post("/v1/actions", _answer(lambda request: _act(lab, request))),
            web.post("/v1/links", _answer(lambda request: _set_link(lab, request))),
            web.post("/v1/down", _answer(lambda request: _down(lab, request))),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        opened()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _status(lab: Lab, request: web.Request) -> msgspec.Struct:
    return await lab.report(with_memory="memory" in request.query)


async def _environment(lab: Lab, request: web.Request) -> msgspec.Struct:
    return lab.environment(request.query["target"])


async def _act(lab: Lab, request: web.Request) -> msgspec.Struct:
    asked = msgspec.json.decode(await request.read(), type=ActionRequest)
    return await lab.act(asked.action, asked.target)


async def _set_link(lab: Lab, request: web.Request) -> msgspec.Struct:
    asked = msgspec.json.decode(await request.read(), type=LinkRequest)
    return await lab.set_link(*asked.between, asked.state)


async def _down(lab: Lab, request: web.Request) -> msgspec.Struct:
    report = await lab.report()
    lab.end()
    return report


def _answer(handler: _Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Turns a value into a JSON answer, and what a user did wrong into status 409 with message and hint."""

    async def respond(request: web.Request) -> web.Response:
        try:
            value: msgspec.Struct = await handler(request)
            status = 200
        except CommandFailed as error:
            value, status = Refusal(error.message, error.hint), 409
        return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")

    return respond
