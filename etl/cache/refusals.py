"""What a Redis server's error means, in words of ours: its own may repeat what it was sent.

A server's words are only searched, and which of ours they choose does not depend on the password:
a text with parts blanked out, or left out, would tell that the password is an ordinary word of it.
"""

from __future__ import annotations

import re

# By the error's code, which is the first word that a server says.
_BY_CODE = {
    "ASK": "ASK",
    "BUSY": "BUSY, a script is running",
    "CLUSTERDOWN": "CLUSTERDOWN, the cluster does not serve all its slots",
    "CROSSSLOT": "CROSSSLOT, keys of one command are in several slots",
    "DENIED": "DENIED, the server runs in protected mode",
    "LOADING": "LOADING, the server is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN, the replica has lost its primary",
    "MISCONF": "MISCONF, the server is set to save to its disk and cannot",
    "MOVED": "MOVED",
    "NOAUTH": "the login was refused",
    "NOPERM": "NOPERM, the user may not use a command or a key",
    "NOREPLICAS": "NOREPLICAS, not enough replicas are in step",
    "OOM": "OOM, more memory is used than maxmemory allows",
    "READONLY": "READONLY, it is a replica that takes no keys",
    "TRYAGAIN": "TRYAGAIN, slots are being moved",
    "UNBLOCKED": "UNBLOCKED, the server changes its role",
    "WRONGPASS": "the login was refused",
    "WRONGTYPE": "WRONGTYPE, a key holds something else than a text",
}

# By what else a server says, where the code is `ERR` or another.
_BY_WORDS = {
    r"un(known|supported) command": "unknown command",
    r"DB index": "DB index is out of range",
    r"SELECT is not allowed in cluster mode": "SELECT is not allowed in cluster mode",
    r"max number of clients": "max number of clients reached",
    r"numkeys": "invalid numkeys",
    r"invalid password|AUTH.*called without|Client sent AUTH": "the login was refused",
    r"wrong number of arguments": "wrong number of arguments",
}

UNKNOWN = "an error, whose words are not repeated"


def told(text: str) -> str:
    """Return what may be told of an error's text."""
    known = _BY_CODE.get(text.partition(" ")[0])
    by_words = (ours for theirs, ours in _BY_WORDS.items() if re.search(theirs, text, re.I))
    return known or next(by_words, UNKNOWN)
