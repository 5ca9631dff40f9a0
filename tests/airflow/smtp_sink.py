"""An SMTP server that keeps the subjects of what it is sent."""

from __future__ import annotations

import json
import threading
from email import message_from_bytes
from email.header import decode_header, make_header
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import cast


class Mailbox(ThreadingTCPServer):
    """Listens on loopback from `with` on; each mail's subject is in `subjects`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.subjects: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def connection(self) -> str:
        """The Connection of Airflow that leads here."""
        host, port = self.server_address[:2]
        plain = {"disable_ssl": True, "disable_tls": True}
        return json.dumps({"conn_type": "smtp", "host": host, "port": port, "extra": plain})


class _Session(StreamRequestHandler):
    def handle(self) -> None:
        self._say(220)
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self._say(354)
                self._keep()
            self._say(221 if verb == b"QUIT" else 250)
            if verb == b"QUIT":
                return

    def _keep(self) -> None:
        lines = iter(self.rfile.readline, b".\r\n")
        subject = message_from_bytes(b"".join(lines))["subject"]
        cast("Mailbox", self.server).subjects.append(str(make_header(decode_header(subject))))

    def _say(self, code: int) -> None:
        self.wfile.write(f"{code} ok\r\n".encode())
