"""TLS for the server: what an operator gives, and the `ssl` context and identities made of it."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INSECURE: Final[Mapping[str, Sequence[bytes]]] = {
    "transport_security_type": [b"insecure"],
    "security_level": [b"TSI_SECURITY_NONE"],
}

Current: TypeAlias = "Callable[[], ssl.SSLContext]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """A server's identity and whom it trusts, all as PEM."""

    private_key: bytes = field(repr=False)
    """The server's private key."""
    certificate_chain: bytes
    """The server's certificate, followed by the intermediate ones."""
    client_ca: bytes | None = None
    """Who may sign client certificates. None: clients are not asked for one."""
    require_client_certificate: bool = True
    """Whether a client without a certificate is turned away; only with `client_ca`."""

    def context(self) -> ssl.SSLContext:
        """The `ssl` context of a server that speaks h2 and nothing else (TLS 1.2 or newer; RFC 9113, section 9.2)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        # A resumed session would skip the check of the client's certificate, and gRPC's connections live long anyway.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["h2"])
        with tempfile.TemporaryDirectory() as folder:  # `ssl` loads certificates from files only
            chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
            chain.write_bytes(self.certificate_chain)
            key.touch(mode=0o600)
            key.write_bytes(self.private_key)
            context.load_cert_chain(chain, key)
        if self.client_ca is not None:
            context.load_verify_locations(cadata=self.client_ca.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED if self.require_client_certificate else ssl.CERT_OPTIONAL
        return context


def following(current: Current, identity: TlsOptions) -> ssl.SSLContext:
    """A context that hands each new connection to the one that `current` gives then.

    `identity` says whether clients need a certificate, which cannot change; everything else may.
    """
    context = identity.context()

    def greet(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = current()

    context.sni_callback = greet  # called whether or not the client names a server
    return context


def auth_context(peer_certificate: Mapping[str, Any] | None, pem: bytes | None) -> Mapping[str, Sequence[bytes]]:
    """What gRPC calls the auth context, of a TLS peer; `peer_certificate` is as `SSLObject.getpeercert` gives it."""
    context: dict[str, Sequence[bytes]] = {
        "transport_security_type": [b"ssl"],
        "security_level": [b"TSI_PRIVACY_AND_INTEGRITY"],
    }
    if not peer_certificate:
        return context
    common_names = [
        value.encode()
        for relative_name in peer_certificate.get("subject", ())
        for key, value in relative_name
        if key == "commonName"
    ]
    alternative_names = [value.encode() for _, value in peer_certificate.get("subjectAltName", ())]
    if common_names:
        context["x509_common_name"] = common_names
    if pem is not None:
        context["x509_pem_cert"] = [pem]
    if alternative_names:
        context["x509_subject_alternative_name"] = alternative_names
    key = "x509_subject_alternative_name" if alternative_names else "x509_common_name"
    if key in context:
        context["peer_identity_property_name"] = [key.encode()]
    return context
