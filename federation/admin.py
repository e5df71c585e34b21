"""The admin API of a control plane: JSON over HTTP, by aiohttp. What it serves is made elsewhere (`AdminBackend`).

    GET  /healthz /readyz /metrics                       open to all: probes and Prometheus
    GET  /healthz/etcd                                   ... and other replicas: does this one serve, and follow etcd
    GET  /v1/status /v1/clusters /v1/services /v1/proxies
    GET  /v1/join-request    POST /v1/join               how a cluster becomes a member
    POST /v1/join-request                                a new request instead of the pending one
    GET  /v1/member                                      how this cluster introduces itself
    GET  /v1/tokens          DELETE /v1/tokens/{id}      the join tokens of proxies, by their ids
    POST /v1/tokens                                      a join token for proxies, told once
    GET  /v1/trust       POST /v1/trust/documents        whom the mesh believes, and news of its root
    GET  /v1/revocations POST /v1/revocations            whom this cluster believes no longer
    DELETE /v1/revocations/SUBJECT                       ... and believes again
    GET  /v1/drains      POST /v1/drains                 which members calls are to leave
    DELETE /v1/drains/CLUSTER[?service=NAMESPACE/NAME]   ... and may come back to
    GET  /v1/load                                        what the proxies of this replica carry, and where to
    POST /v1/leave           DELETE /v1/leave            this cluster leaves the mesh ... and comes back
    DELETE /v1/members/CLUSTER                           this cluster forgets a member

All of /v1 wants `authorization: Bearer <admin token>`. Every refusal is `{"error": ..., "hint": ...}`.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from federation.reports import (
    ClusterReport,
    DrainReport,
    ErrorReport,
    KnownTokenReport,
    LoadReport,
    ProxyReport,
    RevocationReport,
    ServiceReport,
    StatusReport,
    TokenReport,
    TrustReport,
)
from trust import refusals
from trust.attestation import TokenRole
from trust.audit import harmless
from trust.bundle import TrustBundle
from trust.joining import Grant, Introduction, JoinRequest

log = logging.getLogger(__name__)

_Body = TypeVar("_Body")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_MAX_BODY = 4 << 20  # bytes: a grant is some kilobytes, a trust bundle with all that may be revoked 300


class TokenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/tokens."""

    namespace: str
    account: str
    role: TokenRole = TokenRole.SIDECAR
    ttl: int | None = None  # seconds; None: until it is revoked
    once: bool = False  # for one proxy: the first that shows it


class RevocationOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/revocations. `subject` as `trust.bundle.Revocation` prints it."""

    subject: str
    reason: str = ""
    sever: bool = False


class DrainOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/drains: `cluster` keeps `weight` percent, of `service` (`namespace/name`; "": of all)."""

    cluster: str
    weight: int
    service: str = ""
    clients: bool = False
    sever: bool = False


class TrustDocuments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/trust/documents: what the root signed, for this cluster or to be passed on."""

    bundles: tuple[TrustBundle, ...] = ()
    grants: tuple[Grant, ...] = ()


class AdminRefused(refusals.Refusal):
    """The control plane will not do what was asked; `status` is the HTTP status."""

    def __init__(self, message: str, hint: str, *, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


class AdminBackend(Protocol):
    """What the admin API asks of the control plane. Those that refuse raise a trust Refusal: answered by 409."""

    @property
    def is_ready(self) -> bool:
        """Says whether proxies are served."""

    @property
    def follows_etcd(self) -> bool:
        """Says whether this replica would serve the proxies of those that are cut from etcd."""

    def status(self) -> StatusReport: ...
    def clusters(self) -> tuple[ClusterReport, ...]: ...
    def services(self) -> tuple[ServiceReport, ...]: ...
    def proxies(self) -> tuple[ProxyReport, ...]: ...
    def member(self) -> Introduction: ...
    def metrics(self) -> bytes: ...
    async def join_request(self, *, fresh: bool) -> JoinRequest: ...
    async def join(self, grant: Grant) -> None: ...
    async def tokens(self) -> tuple[KnownTokenReport, ...]: ...
    async def create_token(self, order: TokenOrder, *, asked_by: str) -> TokenReport: ...
    async def revoke_token(self, token: str, *, asked_by: str) -> KnownTokenReport: ...
    def trust(self) -> TrustReport: ...
    async def take_documents(self, documents: TrustDocuments, *, asked_by: str) -> TrustReport: ...
    def revocations(self) -> tuple[RevocationReport, ...]: ...
    async def revoke(self, order: RevocationOrder, *, asked_by: str) -> RevocationReport: ...
    async def restore(self, subject: str, *, asked_by: str) -> tuple[RevocationReport, ...]: ...
    def drains(self) -> tuple[DrainReport, ...]: ...
    async def drain(self, order: DrainOrder, *, asked_by: str) -> tuple[DrainReport, ...]: ...
    async def undrain(self, cluster: str, service: str, *, asked_by: str) -> tuple[DrainReport, ...]: ...
    def load(self) -> LoadReport: ...
    async def leave(self, *, asked_by: str) -> StatusReport: ...
    async def come_back(self, *, asked_by: str) -> StatusReport: ...
    async def forget(self, cluster: str, *, asked_by: str) -> tuple[ClusterReport, ...]: ...


def admin_app(backend: AdminBackend, token: str) -> web.Application:
    """Makes the application; `token` opens /v1."""
    routes = web.RouteTableDef()

    @routes.get("/healthz")
    async def _(_request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    @routes.get("/readyz")
    async def _(_request: web.Request) -> web.Response:
        return web.Response(text="ready\n") if backend.is_ready else web.Response(status=503, text="not ready\n")

    @routes.get("/healthz/etcd")
    async def _(_request: web.Request) -> web.Response:
        return web.Response(text="followed\n") if backend.follows_etcd else web.Response(status=503, text="not now\n")

    @routes.get("/metrics")
    async def _(_request: web.Request) -> web.Response:
        return web.Response(body=backend.metrics(), headers={"content-type": _PROMETHEUS_TEXT})

    @routes.get("/v1/status")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.status())

    @routes.get("/v1/clusters")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.clusters())

    @routes.get("/v1/services")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.services())

    @routes.get("/v1/proxies")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.proxies())

    @routes.get("/v1/member")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.member())

    @routes.get("/v1/join-request")
    async def _(_request: web.Request) -> web.Response:
        return _json(await backend.join_request(fresh=False))

    @routes.post("/v1/join-request")
    async def _(_request: web.Request) -> web.Response:
        return _json(await backend.join_request(fresh=True))

    @routes.post("/v1/join")
    async def _(request: web.Request) -> web.Response:
        await backend.join(await _body(request, Grant))
        return _json(backend.status())

    @routes.get("/v1/tokens")
    async def _(_request: web.Request) -> web.Response:
        return _json(await backend.tokens())

    @routes.post("/v1/tokens")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.create_token(await _body(request, TokenOrder), asked_by=_asker(request)))

    @routes.delete("/v1/tokens/{id}")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.revoke_token(request.match_info["id"], asked_by=_asker(request)))

    @routes.get("/v1/trust")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.trust())

    @routes.post("/v1/trust/documents")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.take_documents(await _body(request, TrustDocuments), asked_by=_asker(request)))

    @routes.get("/v1/revocations")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.revocations())

    @routes.post("/v1/revocations")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.revoke(await _body(request, RevocationOrder), asked_by=_asker(request)))

    @routes.delete("/v1/revocations/{subject:.+}")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.restore(request.match_info["subject"], asked_by=_asker(request)))

    @routes.get("/v1/drains")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.drains())

    @routes.post("/v1/drains")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.drain(await _body(request, DrainOrder), asked_by=_asker(request)))

    @routes.delete("/v1/drains/{cluster}")
    async def _(request: web.Request) -> web.Response:
        cluster, service = request.match_info["cluster"], request.query.get("service", "")
        return _json(await backend.undrain(cluster, service, asked_by=_asker(request)))

    @routes.get("/v1/load")
    async def _(_request: web.Request) -> web.Response:
        return _json(backend.load())

    @routes.post("/v1/leave")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.leave(asked_by=_asker(request)))

    @routes.delete("/v1/leave")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.come_back(asked_by=_asker(request)))

    @routes.delete("/v1/members/{cluster}")
    async def _(request: web.Request) -> web.Response:
        return _json(await backend.forget(request.match_info["cluster"], asked_by=_asker(request)))

    app = web.Application(middlewares=[_refusals, _only_with(token)], client_max_size=_MAX_BODY)
    app.add_routes(routes)
    return app


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _asker(request: web.Request) -> str:
    """Returns who asks, for the audit trail: all hold the same token, so the address says most."""
    return f"admin at {request.remote}"


async def _body(request: web.Request, expected: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(await request.read(), type=expected)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdminRefused(
            f"the body is no {expected.__name__}: {error}", "see federation/admin.py", status=400
        ) from error


@web.middleware
async def _refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except refusals.Refusal as error:
        log.info("admin request refused", extra={"path": harmless(request.path), "reason": error.message})
        status = error.status if isinstance(error, AdminRefused) else 409
        return _json(ErrorReport(error.message, error.hint), status)
    except web.HTTPException as error:
        return _json(ErrorReport(f"{request.method} {request.path}: {error.reason}"), error.status)


def _only_with(token: str) -> Middleware:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        given = request.headers.get("authorization", "").encode(errors="surrogateescape")  # as the bytes came
        if request.path.startswith("/v1/") and not hmac.compare_digest(given, expected):
            raise AdminRefused(
                "the admin token is missing or wrong",
                "it stands in <data>/admin-token of the control plane: --admin-token-file names the file",
                status=401,
            )
        return await handler(request)

    return check
