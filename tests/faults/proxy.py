"""A TCP proxy on loopback that can fail in every way a network does."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVarTuple

_Given = TypeVarTuple("_Given")

_PIECE = 65_536
_RST = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends a RST


@dataclass
class _Trigger:
    """What to do when these byte strings have passed in this order on one side."""

    side: str
    left: list[bytes]
    action: Callable[[], None]
    deliver: bool  # hand the last piece on before the action
    tail: bytes = b""

    def heard(self, side: str, piece: bytes) -> bool:
        """Whether this piece brings the last of the byte strings."""
        if side != self.side or not self.left:
            return False
        text = self.tail + piece
        while self.left and (at := text.find(self.left[0])) >= 0:
            text = text[at + len(self.left.pop(0)) :]
        self.tail = text[-64:]  # a byte string may come in two pieces
        return not self.left


class Proxy:
    """Hands everything on to a port of 127.0.0.1, until it is told otherwise.

    `cut` and `reset` end the connections there are, `refuse` also turns new ones away, `stall`
    keeps them all and lets nothing through; `restore` ends all of that.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.RLock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._triggers: list[_Trigger] = []
        self._open = threading.Event()  # clear: stalled
        self._open.set()
        self._closed = False
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> Proxy:
        self._spawn(self._accept, self._listener)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self.refuse()
        self._open.set()

    def when(self, side: str, *passed: bytes, do: Callable[[], None], deliver: bool = True) -> None:
        """Do this once, when the `client` or the `server` has sent these byte strings in order.

        The piece that completes them is dropped unless `deliver`.
        """
        with self._lock:
            self._triggers.append(_Trigger(side, list(passed), do, deliver))

    def when_answered(self, asked: bytes, answer: bytes, do: Callable[[], None]) -> None:
        """Do this once in place of the answer to what the client asked."""
        self.when("client", asked, do=lambda: self.when("server", answer, do=do, deliver=False))

    def cut(self) -> None:
        """Close every connection, as a server does that goes away."""
        self._end(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Break every connection off with a RST, as a host does that knows it no longer."""
        self._end(socket.SHUT_RD)

    def refuse(self) -> None:
        """Cut, and turn away whoever comes."""
        with self._lock:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()

    def stall(self) -> None:
        """Let nothing through from now on; nobody is told."""
        self._open.clear()

    def restore(self) -> None:
        """Let everything through again."""
        with self._lock:
            if self._listener.fileno() < 0 and not self._closed:
                self._listener = self._listen(self.port)
                self._spawn(self._accept, self._listener)
        self._open.set()

    def _end(self, how: int) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                if how == socket.SHUT_RD:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                # A thread that waits in recv would keep the socket open.
                end.shutdown(how)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                self._spawn(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs.append((client, server))
        self._spawn(self._pass_on, "client", client, server)
        self._spawn(self._pass_on, "server", server, client)

    def _pass_on(self, side: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._open.wait()
                fired = self._fired(side, piece)
                if fired is None or fired.deliver:
                    sink.sendall(piece)
                if fired is not None:
                    fired.action()
            with self._lock:
                if any(source in pair for pair in self._pairs):
                    sink.shutdown(socket.SHUT_WR)

    def _fired(self, side: str, piece: bytes) -> _Trigger | None:
        with self._lock:
            fired = [one for one in self._triggers if one.heard(side, piece)]
            self._triggers = [one for one in self._triggers if one not in fired]
            return fired[0] if fired else None

    @staticmethod
    def _listen(port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", port), backlog=128)

    @staticmethod
    def _spawn(work: Callable[[*_Given], object], *arguments: *_Given) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()
