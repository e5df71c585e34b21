"""TLS between proxies: TLS 1.3, certificates and roots by SDS, the other side known by its SPIFFE id. Pure."""

from collections.abc import Collection, Iterable

from envoy.config.core.v3 import base_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.rbac.principals.mtls_authenticated.v3 import mtls_authenticated_pb2
from envoy.extensions.transport_sockets.internal_upstream.v3 import internal_upstream_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.metadata.v3 import metadata_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue

from federation.names import TRUST_BUNDLE_SECRET, WORKLOAD_SECRET
from federation.xds.builders import ads, any_of, extension
from trust.bundle import Revocation
from trust.spiffe import (
    ClusterName,
    Identity,
    MeshDomain,
    Namespace,
    ServiceAccount,
    SpiffeId,
    any_cluster_pattern,
    any_identity_pattern,
    cluster_slice,
    foreign_letter_pattern,
    spiffe_id,
)


def upstream_tls(sni: str, identities: Iterable[SpiffeId], *, alpn: str) -> base_pb2.TransportSocket:
    """Returns mutual TLS to a peer that must be one of `identities`, at least one. An empty `alpn` offers none."""
    matchers = [_uri_matcher(string_pb2.StringMatcher(exact=identity)) for identity in identities]
    if not matchers:
        raise ValueError(f"nobody to expect behind {sni}: Envoy takes an empty list for anybody")
    context = tls_pb2.UpstreamTlsContext(sni=sni, common_tls_context=_common(matchers, alpn))
    return _transport_socket("envoy.transport_sockets.tls", context)


def downstream_tls(domain: MeshDomain, *, alpn: str, only: ClusterName | None = None) -> base_pb2.TransportSocket:
    """Returns mutual TLS from a peer that must be some identity of the mesh, or of the cluster `only`.

    Session resumption is off: `mtls_authenticated` knows no peer on a resumed session and answers 403.
    """
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_common([identity_matcher(domain, only)], alpn),
        require_client_certificate=BoolValue(value=True),
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return _transport_socket("envoy.transport_sockets.tls", context)


def through_tunnel(inner: base_pb2.TransportSocket, metadata_key: str) -> base_pb2.TransportSocket:
    """Wraps a transport socket for hosts behind an internal listener, which gets the host's metadata of that key."""
    passed = internal_upstream_pb2.InternalUpstreamTransport.MetadataValueSource(
        kind=metadata_pb2.MetadataKind(host=metadata_pb2.MetadataKind.Host()), name=metadata_key
    )
    outer = internal_upstream_pb2.InternalUpstreamTransport(passthrough_metadata=[passed], transport_socket=inner)
    return _transport_socket("envoy.transport_sockets.internal_upstream", outer)


def members_only(
    domain: MeshDomain, among: Collection[ClusterName] | None = None, *, revoked: Iterable[Revocation] = ()
) -> rbac_pb2.RBAC:
    """Allows whoever proved by certificate to be an identity of the mesh, or of one `among` these clusters; no other.

    `mtls_authenticated` and never `authenticated`: that one takes a DNS name or a subject for a SPIFFE id. One good
    name among several is not enough: x-forwarded-client-cert tells the app all URIs, unquoted, so that a `;` or `,` in
    one of them would begin what looks like another caller, of any cluster. Likewise one revoked name among several is
    enough to be refused.
    """
    dressed_up = string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=foreign_letter_pattern()))
    refused = [dressed_up, *(revoked_matcher(one, domain) for one in sorted(revoked, key=lambda one: one.subject))]
    is_refused = rbac_pb2.Principal(
        or_ids=rbac_pb2.Principal.Set(ids=[_principal(_uri_matcher(matcher)) for matcher in refused])
    )
    members = [_principal(identity_matcher(domain, one)) for one in ([None] if among is None else sorted(among))]
    if not members:
        raise ValueError("nobody to allow: Envoy takes no empty list")
    is_member = rbac_pb2.Principal(or_ids=rbac_pb2.Principal.Set(ids=members)) if len(members) > 1 else members[0]
    principal = rbac_pb2.Principal(
        and_ids=rbac_pb2.Principal.Set(ids=[is_member, rbac_pb2.Principal(not_id=is_refused)])
    )
    policy = rbac_pb2.Policy(permissions=[rbac_pb2.Permission(any=True)], principals=[principal])
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW, policies={"members": policy})


def revoked_matcher(revocation: Revocation, domain: MeshDomain) -> string_pb2.StringMatcher:
    """Matches the SPIFFE ids that a revocation is about: a cluster's whole slice, or an account, here or everywhere."""
    cluster = ClusterName(revocation.cluster)
    namespace, account = Namespace(revocation.namespace), ServiceAccount(revocation.account)
    if not account:
        return string_pb2.StringMatcher(prefix=f"spiffe://{cluster_slice(cluster, domain)}/")
    if cluster:
        return string_pb2.StringMatcher(exact=spiffe_id(Identity(cluster, namespace, account), domain))
    pattern = any_cluster_pattern(domain, namespace, account)
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=pattern))


def _principal(matcher: common_pb2.SubjectAltNameMatcher) -> rbac_pb2.Principal:
    config = mtls_authenticated_pb2.Config(san_matcher=matcher)
    return rbac_pb2.Principal(custom=extension("envoy.rbac.principals.mtls_authenticated", config))


def identity_matcher(domain: MeshDomain, only: ClusterName | None = None) -> common_pb2.SubjectAltNameMatcher:
    """Matches any SPIFFE id of the mesh, or of the cluster `only`, as a URI."""
    pattern = regex_pb2.RegexMatcher(regex=any_identity_pattern(domain, only))
    return _uri_matcher(string_pb2.StringMatcher(safe_regex=pattern))


def workload_secret(chain_pem: bytes, key_pem: bytes) -> secret_pb2.Secret:
    """Returns a proxy's own certificate, leaf first, and its key."""
    return secret_pb2.Secret(
        name=WORKLOAD_SECRET,
        tls_certificate=common_pb2.TlsCertificate(
            certificate_chain=base_pb2.DataSource(inline_bytes=chain_pem),
            private_key=base_pb2.DataSource(inline_bytes=key_pem),
        ),
    )


def trust_bundle_secret(bundle_pem: bytes) -> secret_pb2.Secret:
    """Returns the roots that a proxy trusts."""
    return secret_pb2.Secret(
        name=TRUST_BUNDLE_SECRET,
        validation_context=common_pb2.CertificateValidationContext(
            trusted_ca=base_pb2.DataSource(inline_bytes=bundle_pem)
        ),
    )


def _common(matchers: Iterable[common_pb2.SubjectAltNameMatcher], alpn: str) -> tls_pb2.CommonTlsContext:
    return tls_pb2.CommonTlsContext(
        # An upstream tops out at TLS 1.2 unless told otherwise.
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
        ),
        tls_certificate_sds_secret_configs=[_sds(WORKLOAD_SECRET)],
        combined_validation_context=tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=common_pb2.CertificateValidationContext(match_typed_subject_alt_names=matchers),
            validation_context_sds_secret_config=_sds(TRUST_BUNDLE_SECRET),
        ),
        alpn_protocols=[alpn] if alpn else [],
    )


def _sds(name: str) -> secret_pb2.SdsSecretConfig:
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ads())


def _uri_matcher(matcher: string_pb2.StringMatcher) -> common_pb2.SubjectAltNameMatcher:
    return common_pb2.SubjectAltNameMatcher(san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=matcher)


def _transport_socket(name: str, context: Message) -> base_pb2.TransportSocket:
    return base_pb2.TransportSocket(name=name, typed_config=any_of(context))
