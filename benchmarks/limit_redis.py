"""The limit for Redis: ready-made `SET ... EX` bytes to the socket while replies are drained.

usage: limit_redis.py PORT FILE REPLIES
"""

import socket
import sys
import threading

port, path, replies = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
REPLY = b"+OK\r\n"
refused = []


def drain(connection: socket.socket) -> None:
    """Read the replies; every command answers with the same five bytes."""
    left = replies * len(REPLY)
    while left > 0:
        received = connection.recv(1 << 20)
        if not received or b"-" in received:
            refused.append(received[:100])
            connection.shutdown(socket.SHUT_RDWR)  # so that the sender ends as well
            return
        left -= len(received)


with socket.create_connection(("127.0.0.1", port)) as server, open(path, "rb") as commands:
    reader = threading.Thread(target=drain, args=(server,))
    reader.start()
    try:
        server.sendfile(commands)
    finally:
        reader.join()
if refused:
    sys.exit(f"lost or refused: {refused[0]!r}")
