"""A server as a child of this process: started, stopped, and never left behind."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.errors import SyncError

START_SECONDS = 30.0  # a recovery after a kill included; 0.1 s is usual
STOP_SECONDS = 10.0  # until the next, harder signal

# Which ports of a range are this process's: of tests side by side each has some of its own, because
# the port of a server that is stopped for a moment would be free for all.
SHARE = slice(None)
_given: set[int] = set()

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

Account = Mapping[str, Any]
"""Popen's arguments to run a program as another user; none for the user of this process."""


@dataclass
class Server:
    """One server on its port; it keeps that port and its data over stop() and start().

    `command` contains the path of `data`, which is how a leftover of an earlier run is told
    from a stranger with the same pid. `signals` end it, the mildest first.
    """

    port: int
    command: list[str]
    data: Path
    pid_file: Path
    account: Account
    signals: Sequence[int]
    is_ready: Callable[[Server], bool]
    process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        """What the server printed since its last start."""
        return self.data.with_suffix(".log")

    def start(self) -> None:
        """Start it unless it runs, also after it was killed, and wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        if self.process is None or self.process.poll() is not None:
            self.process = self._launch()
        while not self.is_ready(self):
            time.sleep(0.01)
            if self.process.poll() is not None:
                output = self.log.read_text(errors="replace")
                # Backends outlive a killed postmaster by a moment: no new one starts till then.
                if "pre-existing shared memory block" not in output:
                    raise SyncError(f"{self.command[0]} did not start: {_complaint(output)}")
                time.sleep(0.1)
                self.process = self._launch()
            if time.monotonic() > deadline:
                raise SyncError(f"{self.command[0]} does not answer, see {self.log}")

    def stop(self) -> None:
        """Stop it in good order, or by force when it does not go; nothing if it is not there."""
        process = self.process
        if process is not None:
            self._end(process.send_signal, lambda: process.poll() is None)

    def kill(self) -> None:
        """End it at once, as a power cut would: no farewell, no saving, no backend survives."""
        if self.process is not None:
            children = _children(self.process.pid)
            self.process.kill()
            self.process.wait()
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def end_leftover(self) -> None:
        """End the server that an earlier run left on this data, and nobody else's process."""
        if not self.pid_file.exists():
            return
        first_line = self.pid_file.read_text().partition("\n")[0]
        pid = int(first_line) if first_line.isdigit() else 0
        self._end(lambda number: os.kill(pid, number), lambda: self._is_mine(pid))
        # Postgres looks for surviving backends by the file of a dead pid, so that one stays;
        # it would not start over a number that is no pid, or by now another process's.
        if pid == 0 or _exists(pid):
            self.pid_file.unlink(missing_ok=True)

    def _end(self, send: Callable[[int], None], lives: Callable[[], bool]) -> None:
        for number in self.signals:
            if lives():
                with suppress(ProcessLookupError):
                    send(number)
                    send(signal.SIGCONT)  # a frozen one would not act on the other
            deadline = time.monotonic() + STOP_SECONDS
            while lives() and time.monotonic() < deadline:
                time.sleep(0.01)

    def _launch(self) -> subprocess.Popen[str]:
        self.log.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            return spawn(self.command, self.account, self.signals[0], stdout=log)

    def _is_mine(self, pid: int) -> bool:
        return f" {self.data} " in _command_line(pid)


def run(command: Sequence[str], account: Account, stdin: str = "") -> None:
    """Run a command to its end.

    Raises:
        SyncError: with the line of its output that says why it failed.
    """
    process = spawn(command, account, signal.SIGKILL, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, _ = process.communicate(stdin)
    if process.returncode:
        raise SyncError(f"{command[0]} failed: {_complaint(output)}")


def spawn(
    command: Sequence[str], account: Account, last_signal: int, **streams: Any
) -> subprocess.Popen[str]:
    """Start a child that Ctrl-C does not reach and that Linux ends when this process dies.

    Linux ties it to the thread that starts it, so from any but the main thread, which may end
    sooner than the process, the tie is left out.
    """
    parent = os.getpid()

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, last_signal)
        if os.getppid() != parent:  # it died before the tie was made
            os._exit(1)

    main = threading.current_thread() is threading.main_thread()
    environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
    return subprocess.Popen(
        command,
        env=environment | {"LC_ALL": "C"},
        start_new_session=True,
        # It runs after the change of user, which would undo the tie.
        preexec_fn=tie if main and sys.platform == "linux" else None,  # noqa: PLW1509
        stderr=subprocess.STDOUT,
        text=True,
        **account,
        **streams,
    )


def free_port(ports: range) -> int:
    """Return a free one of these ports, which no call before returned if there are enough.

    They should all lie below 32768. From there on Linux gives ports to outgoing connections, and a
    client that retries a stopped server on such a port can end up connected to itself.
    """
    while True:
        port = secrets.choice([port for port in ports[SHARE] if port not in _given] or ports[SHARE])
        _given.add(port)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def hand_over(path: Path, account: Account) -> None:
    """Make the account the owner of a file or folder."""
    if account:
        os.chown(path, account["user"], account["group"])


def _complaint(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in lines if "FATAL" in line or "error:" in line), lines[-1])


def _command_line(pid: int) -> str:
    """Return the command line of a process; none for one that is gone or a zombie."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        except OSError:
            return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []  # not Linux, or the process is gone


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
