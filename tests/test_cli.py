"""The root command: help, exit codes, and a standard output that takes nothing more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import main

COMMAND = (sys.executable, "-m", "common.cli")


@pytest.mark.parametrize("group", ["ledger", "audit", "template", "template token", "site"])
def test_a_group_without_a_command_shows_its_help_as_a_page(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(group.split())
    shown = capsys.readouterr()
    assert exit_.value.code == 2
    assert not shown.out
    assert shown.err.startswith(f"Usage: veilface {group} ")
    assert "\n\nCommands:\n" in shown.err


def test_a_full_device_as_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.strip() == "veilface: No space left on device"


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    """As in `veilface ... | head -1`."""
    process = subprocess.Popen(
        [*COMMAND, "site", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert not said
