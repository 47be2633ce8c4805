"""`veilface audit attack`: what it prints and writes, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from common.errors import InputError
from simulations.attacks.audit import ATTACKS
from simulations.attacks.cli import READ, attack

QUICK = ("--epsilon", "8", "--seed", "4", "--rounds", "1", "--persons", "6", "--steps", "400")


def run(*options: str) -> Result:
    result = CliRunner().invoke(attack, options)
    if isinstance(result.exception, InputError):
        raise result.exception
    return result


def test_the_right_build_exits_0_and_a_broken_one_1() -> None:
    """One JSON object and nothing else on stdout, the bound beside the claim."""
    right = run(*QUICK, "--attack", "gradient", "--json")
    assert right.exit_code == 0
    broken = run(*QUICK, "--attack", "gradient", "--json", "--control", "noise-half")
    assert broken.exit_code == 1
    for result, control in ((right, None), (broken, "noise-half")):
        report = json.loads(result.stdout)
        (found,) = report["attacks"]
        assert report["control"] == control
        above = found["bounds"][0]["epsilon"] > found["claimed"]
        assert report["alarm"] == found["alarm"] == above == (control is not None)
        assert found["claimed"] == pytest.approx(8.0, abs=1e-3)
        assert report["confidence"]["alarm"] == 1 - 1e-6


def test_what_was_found_is_printed_and_a_control_is_named() -> None:
    result = run(*QUICK, "--attack", "gradient", "--control", "noise-off")
    assert "BROKEN BUILD noise-off" in result.stdout
    assert "Control noise-off: caught" in result.stdout
    blind = run(*QUICK, "--attack", "gradient", "--control", "transform-off", "--steps", "10")
    assert blind.exit_code == 0
    assert "NOT CAUGHT" in blind.stdout


def test_every_number_that_is_printed_is_explained() -> None:
    """Under each attack's name: what stands beside what; above all, what the two bounds are."""
    chosen = ("gradient",)
    options = [one for name in chosen for one in ("--attack", name)]
    printed = " ".join(run(*QUICK, "--quick", *options).stdout.split())
    assert set(READ) == set(ATTACKS)
    for name, text in READ.items():
        assert (text in printed) == (name in chosen)
        assert name not in chosen or printed.index(f"{name}: ") < printed.index(text)
    assert "the same lower bound at two confidences" in printed
    assert "alone decides" in printed and "once in twenty" in printed


def test_out_holds_the_record_and_pictures(tmp_path: Path) -> None:
    out = tmp_path / "audit"
    options = ("--attack", "gradient", "--attack", "templates", "--quick", "--out", str(out))
    result = run(*QUICK, *options)
    assert result.exit_code == 0, result.output
    kept = json.loads((out / "attack.json").read_text())
    assert [found["attack"] for found in kept["attacks"]] == ["gradient", "templates"]
    for name in ("roc-gradient.png", "templates.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    with pytest.raises(InputError, match="not empty"):
        run(*QUICK, *options)


def test_a_folder_of_persons_is_audited(people_folder: Path) -> None:
    data = ("--data", str(people_folder), "--aligned")
    result = run(*QUICK, *data, "--attack", "gradient", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attacks"][0]["bounds"][0]["epsilon"] > 1.0


def test_there_is_no_default_claim_and_wrong_options_are_named() -> None:
    assert run("--attack", "gradient").exit_code == 2
    for options, match in (
        (("--quick", "--deep"), "exclude"),
        (("--delta", "1.5"), "delta"),
        (("--data", "/nowhere"), "does not exist"),
    ):
        with pytest.raises(InputError, match=match):
            run("--epsilon", "1", *options)
    with pytest.raises(InputError, match="epsilon"):
        run("--epsilon", "-1")


def test_no_picture_of_a_real_person_is_written(people_folder: Path, tmp_path: Path) -> None:
    """A folder of persons is taken for real ones: pictures are only of rendered people."""
    out = tmp_path / "audit"
    data = ("--data", str(people_folder), "--aligned", "--quick", "--out", str(out))
    result = run(*QUICK, *data, "--attack", "templates")
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.iterdir()] == ["attack.json"]
