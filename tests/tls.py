"""TLS in front of the servers of the tests, with certificates made on the spot.

The servers that come as wheels are built without TLS. So a small proxy ends it before them, on
the loopback: it shows a certificate, may ask for one, and hands the plain bytes on. To a client
that is a server with TLS, except that the server itself (pg_stat_ssl) knows nothing of it.
"""

from __future__ import annotations

import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

# How a Postgres client begins: eight bytes, the length of the message and one of these.
_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102


@dataclass(frozen=True)
class Certificates:
    """Files in PEM. The server's certificate is for `localhost`, hence not for 127.0.0.1."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    client_cert: Path
    client_key: Path
    other_ca_file: Path  # of an authority that signed none of them


def certificates(folder: Path) -> Certificates:
    """Make an authority, certificates of a server and of a client, and a foreign authority."""
    ours = trustme.CA()
    made = Certificates(
        **{name: folder / f"{name}.pem" for name in Certificates.__dataclass_fields__}
    )
    ours.cert_pem.write_to_path(made.ca_file)
    trustme.CA().cert_pem.write_to_path(made.other_ca_file)
    for leaf, cert_file, key_file in (
        (ours.issue_cert("localhost"), made.cert_file, made.key_file),
        (ours.issue_cert("etl@searchflow.example"), made.client_cert, made.client_key),
    ):
        leaf.cert_chain_pems[0].write_to_path(cert_file)
        key_file.touch(mode=0o600)  # libpq takes no key that others may read
        leaf.private_key_pem.write_to_path(key_file)
    return made


@contextmanager
def tls_proxy(
    target_port: int,
    certificates: Certificates,
    *,
    postgres: bool = False,
    ask_client: bool = False,
) -> Iterator[int]:
    """Serve TLS on the port that is handed out, in front of a plain server on another.

    Args:
        target_port: of the plain server, on 127.0.0.1.
        certificates: the server's, and the authority that a client's must come from.
        postgres: begin as Postgres does, where the client asks in plain whether there is TLS.
        ask_client: turn away whoever shows no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.cert_file, certificates.key_file)
    if ask_client:
        context.load_verify_locations(certificates.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # Whoever hangs up, or shows a bad certificate, has ended it.
            with suppress(OSError):
                _serve(self.request, target_port, context, postgres=postgres)

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


def _serve(
    client: socket.socket, target_port: int, context: ssl.SSLContext, *, postgres: bool
) -> None:
    with socket.create_connection(("127.0.0.1", target_port)) as server:
        if postgres and not _wants_tls(client, server):
            return
        with context.wrap_socket(client, server_side=True) as encrypted:
            _forward(encrypted, server)


def _wants_tls(client: socket.socket, server: socket.socket) -> bool:
    """Answer a Postgres client's request for TLS; a cancel comes in plain, and has no answer."""
    head = client.recv(8, socket.MSG_WAITALL)
    if len(head) < 8:
        return False
    code = int.from_bytes(head[4:], "big")
    if code == _CANCEL_REQUEST:
        server.sendall(head + client.recv(8, socket.MSG_WAITALL))
        server.recv(1)  # it hangs up when it has dealt with it
    elif code == _SSL_REQUEST:
        client.sendall(b"S")
    return code == _SSL_REQUEST


def _forward(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Carry bytes both ways until one side hangs up."""
    other = {client: server, server: client}
    while True:
        for source in select.select([client, server], [], [])[0]:
            # More than a TLS record holds: nothing stays behind where select does not see it.
            data = source.recv(65_536)
            if not data:
                return
            other[source].sendall(data)
