"""Runs a command that ends when its parent does: `exec_child.py PARENT_PID COMMAND...`.

The kernel sends SIGTERM on the parent's death, however it came, and the request survives the exec. Only Linux knows
such a request; elsewhere a command outlives a parent that was killed with SIGKILL.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request stood
        raise SystemExit(1)
    os.execvp(command[0], command)  # noqa: S606
