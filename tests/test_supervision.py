"""The supervisor as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.process_rig import until

_BECOME = """
import sys
from pathlib import Path
from common.supervision import Part, Supervision, become_supervisor, only_one

sleeper = Part("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"), secret="hush")
with only_one(Path(sys.argv.pop())) as lock:
    become_supervisor(Supervision((sleeper,), lock, "", True))
"""


def test_a_supervisor_is_listed_under_the_command_that_it_was_and_no_secret(tmp_path: Path) -> None:
    words = ["site", "up", "--bundle", "fed-north.tar.gz"]
    process = subprocess.Popen(
        [sys.executable, "-c", _BECOME, *words, str(tmp_path)], stderr=subprocess.PIPE
    )
    try:
        listed = Path(f"/proc/{process.pid}/cmdline")
        until(lambda: b"common.supervisor" in listed.read_bytes(), "it is the supervisor")
        found = listed.read_bytes().decode().split("\0")
        assert found[-6:-1] == ["veilface", *words] and "hush" not in found
        assert process.stderr is not None and b"all parts are up" in process.stderr.readline()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
