"""Why a handshake with a peer fails: what it shows is looked at once more, believing nothing of it.

A refused certificate says no more than "unable to verify" in TLS libraries; whether clocks differ or a root was missed
is what somebody has to know who shall repair it.
"""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from federation.model import GatewayAddress
from trust.spiffe import ClusterName, MeshDomain, control_dns_name

_LIMIT = timedelta(seconds=3)
_MOST_CERTIFICATES = 8  # of a chain; ours have two
_HINT = "`isthmus trust rotate root --root DIR` on the machine with the root hands over what was missed"


async def diagnose(gateway: GatewayAddress, peer: ClusterName, *, domain: MeshDomain, trust_bundle: bytes) -> str:
    """Returns why what a peer shows is not believed here, for people; empty when nothing can be found out."""
    chain = await _shown(gateway, control_dns_name(peer, domain))
    return explain(peer, chain, x509.load_pem_x509_certificates(trust_bundle), now=datetime.now(UTC))


def explain(
    peer: ClusterName, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], *, now: datetime
) -> str:
    """Returns what is wrong with a chain, leaf first; empty when nothing is, or nothing was shown. Pure."""
    for certificate, what in zip(
        chain, (f"{peer} shows a certificate", f"the authority of {peer} has one"), strict=False
    ):
        if now > certificate.not_valid_after_utc:
            ended = f"{what} that expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
            return f"{ended}: it was not renewed, or the clocks differ (here it is {now:%Y-%m-%d %H:%M:%S} UTC)"
        if now < certificate.not_valid_before_utc:
            begins = f"{what} that is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
            return f"{begins}: the clocks differ (here it is {now:%Y-%m-%d %H:%M:%S} UTC)"
    if len(chain) > 1 and not any(_is_issued_by(chain[1], root) for root in roots):
        return (
            f"{peer} shows a certificate of an authority unknown here: the mesh's root may have been rotated while "
            f"this cluster, or {peer}, was away; hint: {_HINT}"
        )
    return ""


async def _shown(gateway: GatewayAddress, server_name: str) -> Sequence[x509.Certificate]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, and what is read is only looked at
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_LIMIT.total_seconds()):
            _, writer = await asyncio.open_connection(
                gateway.address, gateway.port, ssl=context, server_hostname=server_name
            )
    except (OSError, TimeoutError):
        return ()
    try:
        shown = _chain(writer.get_extra_info("ssl_object"))
        return [x509.load_der_x509_certificate(one) for one in shown[:_MOST_CERTIFICATES]]
    except ValueError:
        return ()
    finally:
        writer.transport.abort()


def _chain(connection: ssl.SSLObject) -> Sequence[bytes]:
    """Returns the certificates (DER) that the other side sent; where Python gives no more, the leaf alone."""
    # Public since Python 3.13, as SSLObject.get_unverified_chain; before, it is there under another name.
    get_chain = getattr(getattr(connection, "_sslobj", None), "get_unverified_chain", None)
    if get_chain is not None and (chain := get_chain()):
        return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in chain]
    leaf = connection.getpeercert(binary_form=True)
    return [leaf] if leaf else []


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
