"""Runs a Python program from the standard input without network and with little memory (`python -I sandbox.py`)."""

import ctypes
import platform
import resource
import struct
import sys


# The exit status if this system can't keep a program from the network.
UNAVAILABLE = 113
# Bytes of memory and of a file.
MEMORY, FILE = 4 * 2**30, 2**26
# Numbers of the system calls `socket` and `io_uring_setup`, one of which every connection begins with.
NETWORK_CALLS = {"x86_64": (41, 425), "aarch64": (198, 425)}
# See prctl(2) and seccomp(2).
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, PERMISSION_DENIED = 0x7FFF0000, 0x50000 | 13


class Filter(ctypes.Structure):
    """The struct `sock_fprog`: a number of instructions and their address."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def deny_network() -> None:
    """Deny the system calls that reach the network to this process and its children; raise `OSError` if it fails."""
    calls = NETWORK_CALLS.get(platform.machine(), ()) if sys.platform == "linux" else ()
    steps = [(LOAD, 0, 0, 0)]
    # Jumps skip the remaining comparisons and the permission.
    steps += [(JUMP_IF_EQUAL, len(calls) - index, 0, number) for index, number in enumerate(calls)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, PERMISSION_DENIED)]
    program = Filter(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if (
        not calls
        or prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))
    ):
        raise OSError(ctypes.get_errno(), "the network can't be denied")


def main() -> None:
    """Apply the limits, and run the program."""
    program = sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    try:
        deny_network()
    except OSError:
        sys.exit(UNAVAILABLE)
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
