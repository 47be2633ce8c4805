"""`veilface sweep` refuses at once what none of its runs could do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import InputError
from simulations.sweep_cli import sweep


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epsilons", "nan"), "--epsilon must be positive"),
        (("--epsilons", "-1"), "--epsilon must be positive"),
        (("--epsilons", "4,1e9"), "--epsilon 1e+09 promises nothing"),
        (("--epsilons", "4", "--delta", "nan"), "--delta must lie"),
        (("--epsilons", "4", "--seeds", "-1"), "--seed"),
        (("--epsilons", "4", "--", "--nonsense"), "veilface simulate --help"),
        (("--epsilons", "4", "--", "--backbone", "facenet"), "unknown backbone"),
        (("--epsilons", "4", "--persons", "3"), "10 sites but only 3"),
        (("--epsilons", "4", "--public", "nowhere"), "nowhere does not exist"),
        (("--epsilons", "4", "--test", "nowhere"), "nowhere does not exist"),
        (("--epsilons", "4", "--detector", "yunet"), "go together"),
        (("--epsilons", "4", "--shift", "hd"), "'hd' is not one of"),
        (("--epsilons", "4", "--shift", "cctv,mask"), "2 cameras but only 1 sites"),
        (("--epsilons", "4", "--bank-shift", "hd"), "'hd' is not one of"),
    ],
)
def test_what_no_run_can_do_is_refused_before_there_is_a_folder(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = CliRunner().invoke(
        sweep, ["--data", "synthetic", "--out", str(tmp_path / "s"), *options]
    )
    said = done.exception if isinstance(done.exception, InputError) else done.stderr
    assert done.exit_code != 0
    assert words in str(said)
    assert not (tmp_path / "s").exists()
