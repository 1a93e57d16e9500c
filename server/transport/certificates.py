"""The server's certificate files, read again when they change, for both transports.

Promise: files that make no sense, or not yet, leave the identity that was good before. Connections keep the
identity that they began with.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from server.access.files import FileWatch
from server.transport import http2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Who the server is, and whom it trusts: PEM files."""

    certificate: Path
    """The server's certificate, followed by the intermediate ones."""
    key: Path
    """Its private key."""
    client_ca: Path | None = None
    """Who may sign clients' certificates; clients then need one. None: any client may call."""


class Certificates:
    """What the files said when they last made sense."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises OSError, ValueError or ssl.SSLError for files that cannot be used."""
        self._files = files
        self._watch = FileWatch([path for path in (files.certificate, files.key, files.client_ca) if path is not None])
        self.identity = self._read()
        self.context = self.identity.context()

    def refresh(self) -> None:
        """Look whether the files have changed; blocks on the disk."""
        if not self._watch.changed():
            return
        try:
            identity = self._read()
            context = identity.context()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            log.error("the certificate stays as it was: %s: %s", self._files.certificate, error)  # noqa: TRY400  (half of a pair is usual)
            return
        self.identity, self.context = identity, context
        log.info("new connections get the certificate that %s holds now", self._files.certificate)

    def for_http2(self) -> ssl.SSLContext:
        """For our own transport: a context that each new connection leaves for the current one."""
        return http2.following(lambda: self.context, self.identity)

    def for_grpcio(self) -> grpc.ServerCredentials:
        """For grpcio, which asks at each new connection."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.identity), self._news(), require_client_authentication=self._files.client_ca is not None
        )

    def _news(self) -> Callable[[], Any]:
        told = self.identity

        def fetch() -> Any:  # noqa: ANN401  (None for "as before", which the type stubs do not know)
            nonlocal told
            if told is self.identity:
                return None
            told = self.identity
            return _configuration(told)

        return fetch

    def _read(self) -> http2.TlsOptions:
        files = self._files
        return http2.TlsOptions(
            private_key=files.key.read_bytes(),
            certificate_chain=files.certificate.read_bytes(),
            client_ca=files.client_ca.read_bytes() if files.client_ca else None,
        )


def _configuration(identity: http2.TlsOptions) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.private_key, identity.certificate_chain)], root_certificates=identity.client_ca
    )
