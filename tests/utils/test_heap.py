import subprocess
import sys

import pytest


# A process of its own, whose heap nothing else has used: 256 MiB in pieces that glibc takes from the heap, of which
# every sixteenth stays, so that the rest are holes between them.
PROGRAM = """
import re
from pathlib import Path
from optimum_ffp.utils.heap import return_free_memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
pieces = [bytearray(2**16) for _ in range(4096)]
pieces = pieces[::16]
before = resident()
return_free_memory()
print(before, resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_heap_memory_is_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before - after > 100
