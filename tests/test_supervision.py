"""The supervisor as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import InputError
from common.supervision import is_running, only_one
from tests.process_rig import until

_BECOME = """
import sys
from pathlib import Path
from common.supervision import Part, Supervision, become_supervisor, only_one

sleeper = Part("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"), secret="hush")
with only_one(Path(sys.argv.pop())) as lock:
    become_supervisor(Supervision((sleeper,), lock, "", True))
"""


_HOLD = """
import os, sys, time
from pathlib import Path
from common.supervision import only_one

with only_one(Path(sys.argv.pop())) as lock:
    os.set_inheritable(lock, True)
    if os.fork() == 0:
        time.sleep(float(sys.argv.pop()))
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


def test_whoever_follows_a_killed_supervisor_waits_for_its_parts_to_end(tmp_path: Path) -> None:
    """A large part takes a moment to be gone, and holds the lock that long."""
    command = [sys.executable, "-P", "-c", _HOLD, "1.5", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_running(tmp_path)
        with pytest.raises(InputError, match=f"another process, {process.pid}"), only_one(tmp_path):
            pass
        process.kill()
        process.wait()
        assert not is_running(tmp_path), "what is left of it does no work"
        with only_one(tmp_path):
            assert is_running(tmp_path)
    assert not is_running(tmp_path)


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
