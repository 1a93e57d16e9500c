"""Certificates for tests: an authority of its own for each test that wants one."""

from __future__ import annotations

import trustme

from server.transport.http2 import TlsOptions


class Authority:
    """Issues a server's and a client's certificate, for localhost."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._server = self._authority.issue_cert("localhost", "127.0.0.1")
        self._client = self._authority.issue_cert("client.test", common_name="client")

    @property
    def certificate(self) -> bytes:
        return self._authority.cert_pem.bytes()

    @property
    def client_key(self) -> bytes:
        return self._client.private_key_pem.bytes()

    @property
    def client_chain(self) -> bytes:
        return b"".join(blob.bytes() for blob in self._client.cert_chain_pems)

    def server_options(self, *, ask_clients: bool = False, require: bool = True) -> TlsOptions:
        return TlsOptions(
            private_key=self._server.private_key_pem.bytes(),
            certificate_chain=b"".join(blob.bytes() for blob in self._server.cert_chain_pems),
            client_ca=self.certificate if ask_clients else None,
            require_client_certificate=require,
        )
