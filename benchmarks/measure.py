"""Run one command; write its seconds, CPU seconds and peak megabytes as JSON.

A process of its own, and a small one: on Linux a child's peak memory begins with the peak of
the process that started it, and the bench itself is large.
usage: measure.py REPORT COMMAND [ARGUMENT ...]
"""

import json
import os
import sys
import time

report, *command = sys.argv[1:]

begun = time.perf_counter()
process = os.posix_spawn(command[0], command, os.environ)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - begun

figures = {
    "seconds": seconds,
    "cpu": usage.ru_utime + usage.ru_stime,
    "megabytes": usage.ru_maxrss / 1024,
}
with open(report, "w", encoding="utf-8") as file:
    json.dump(figures, file)
sys.exit(os.waitstatus_to_exitcode(status))
