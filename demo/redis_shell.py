"""`python -m demo.redis_shell`: commands of Redis in, replies out; the wheel brings no client."""

from __future__ import annotations

import os
import shlex
import sys

import redis


def main() -> None:
    """Read commands until end of file or Ctrl-C; the server is that of REDIS_HOST, REDIS_PORT."""
    host, port = os.environ.get("REDIS_HOST", "127.0.0.1"), os.environ.get("REDIS_PORT", "6379")
    with redis.Redis(host, int(port), decode_responses=True) as client:
        while True:
            try:
                words = shlex.split(input(f"{host}:{port}> " if sys.stdin.isatty() else ""))
                reply = client.execute_command(*words) if words else ""
            except (EOFError, KeyboardInterrupt):
                return
            except (redis.RedisError, ValueError) as error:
                reply = f"error: {error}"
            for line in reply if isinstance(reply, list) else [reply]:
                print(line)  # noqa: T201


if __name__ == "__main__":
    main()
