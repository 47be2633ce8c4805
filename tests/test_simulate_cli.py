"""`veilface simulate` as a person meets it: results on stdout, faults in one line, nothing left."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from common.cli import main
from common.network import trained_network

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]


@pytest.fixture
def run(
    people_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command in this process on the small folder, and return code, stdout and stderr."""

    def of(**options: object) -> Outcome:
        chosen: dict[str, object] = {
            "data": people_folder,
            "backbone": "lenet",
            "aligned": True,
            "sites": 2,
            "rounds": 1,
            "epsilon": 4,
            "out": tmp_path / "run",
            "cache": tmp_path / "cache",
        } | options
        arguments = ["simulate"]
        for name, value in chosen.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                arguments.append(option)
            elif value is not None:
                arguments += [option, str(value)]
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return of


def is_one_clear_line(outcome: Outcome, code: int, words: str) -> bool:
    """No result, the wanted exit code, and one line on stderr with what was wrong."""
    found, out, err = outcome
    line = err.strip().splitlines()
    return found == code and not out and len(line) == 1 and words in line[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0}, "--epsilon must be positive"),
        ({"epsilon": -1}, "--epsilon must be positive"),
        ({"epsilon": "nan"}, "--epsilon must be positive"),
        ({"epsilon": "inf"}, "--epsilon must be positive"),
        ({"epsilon": None}, "--epsilon E, or --no-privacy"),
        ({"no_privacy": True}, "exactly one of them"),
        ({"delta": 1}, "--delta must lie strictly between 0 and 1"),
        ({"delta": 0}, "--delta must lie strictly between 0 and 1"),
        ({"delta": 9e-11}, "--delta 9e-11 is below 1e-10"),
        ({"delta": 0.1, "sample_rate": 0.1}, "--delta 0.1 is not below the sample rate 0.1"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"sites": 0}, "--sites"),
        ({"sites": 13, "persons": 12}, "13 sites but only 12 private persons"),
        ({"sites": 200}, "200 sites but only"),
        ({"persons": 5000}, "ask for at most"),
        ({"backbone": "facenet"}, "unknown backbone 'facenet' (one of"),
        ({"weights": "no-such-file"}, "no-such-file does not exist"),
        ({"data": "no-such-folder"}, "no-such-folder does not exist"),
        ({"loss": "softmax"}, "'softmax' is not one of"),
        ({"trust": "secagg", "sites": 1}, "two honest sites"),
        ({"trust": "secagg", "sites": 9, "minimum_sites": 4}, "fewer than half of the honest"),
        ({"trust": "secagg", "colluders": 1}, "too few are left"),
        ({"trust": "secagg", "local_steps": 2}, "one step of all persons"),
        ({"trust": "secagg", "sample_rate": 0.5}, "one step of all persons"),
        ({"colluders": 1}, "--colluders is for --trust secagg"),
        ({"minimum_sites": 3}, "--minimum-sites must lie in 1 to 2"),
        ({"resume": True}, "--resume needs --out"),
        ({"epsilon": "1e300"}, "promises nothing"),
        ({"rounds": 10**12}, "rounds must lie in 1 to"),
        ({"seed": 2**63}, "--seed must lie in 0 to"),
        ({"data": ""}, "--data is empty"),
        ({"public": "no-such-folder"}, "no-such-folder does not exist"),
        ({"test": "no-such-folder"}, "no-such-folder does not exist"),
        ({"shift": "cctv,hd"}, "'hd' is not one of none, cctv"),
        ({"shift": "cctv,cctv"}, "names each camera once"),
        ({"shift": "none,cctv,mask"}, "3 cameras but only 2 sites"),
        ({"bank_shift": "other"}, "'other' is not one of"),
        ({"detector": "yunet"}, "--detector yunet and --yunet FILE go together"),
        ({"detector": "yunet", "yunet": "no-such-file"}, "no-such-file"),
        ({"yunet": __file__}, "--detector yunet and --yunet FILE go together"),
        ({"data": "synthetic", "persons": 10**12}, "synthetic persons"),
    ],
)
def test_a_wrong_option_is_one_line_exit_2_and_leaves_nothing(
    run: Run, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    assert is_one_clear_line(run(**options), 2, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
def test_a_robust_rule_with_secure_aggregation_is_refused_with_the_reason(
    run: Run, tmp_path: Path, rule: str
) -> None:
    assert is_one_clear_line(run(trust="secagg", aggregator=rule), 3, "nobody sees one")
    assert not (tmp_path / "run").exists()


def empty(root: Path, faces: Path) -> None:
    root.mkdir()


def one_person(root: Path, faces: Path) -> None:
    shutil.copytree(next(faces.iterdir()), root / "Ann")


def one_image_a_person(root: Path, faces: Path) -> None:
    for person in faces.iterdir():
        (root / person.name).mkdir(parents=True)
        shutil.copy(next(person.iterdir()), root / person.name)


def pictures_without_a_face(root: Path, faces: Path) -> None:
    for person in range(8):
        (root / f"p{person}").mkdir(parents=True)
        for number in range(2):
            grey = Image.new("RGB", (120, 120), (person, number, 0))
            grey.save(root / f"p{person}" / f"{number}.png")


@pytest.mark.parametrize(
    ("fill", "aligned", "words"),
    [
        (empty, True, "is empty"),
        (one_person, True, "1 person"),
        (one_image_a_person, True, "two or more images"),
        (pictures_without_a_face, None, "too few persons have an image with a face"),
    ],
)
def test_faces_that_cannot_be_trained_on_are_one_line_and_leave_no_run_folder(
    run: Run,
    people_folder: Path,
    tmp_path: Path,
    fill: Callable[[Path, Path], None],
    aligned: bool | None,
    words: str,
) -> None:
    fill(tmp_path / "data", people_folder)
    assert is_one_clear_line(run(data=tmp_path / "data", aligned=aligned), 2, words)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_left_out_counted_and_the_rest_goes_on(
    run: Run, people_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(people_folder, tmp_path / "data")
    everyone = list((tmp_path / "data").iterdir())
    for person in everyone:
        (person / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture " + person.name.encode())
    code, out, err = run(data=tmp_path / "data", json=True)
    assert code == 0, err
    assert json.loads(out)["privacy"]["adversaries"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    public = len(everyone) - int(record["settings"]["private persons"])
    assert sum(record["skipped"].values()) == public, "how many private images fail is private"


def test_json_is_one_object_on_stdout_with_the_contracted_fields(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(json=True)
    assert code == 0
    result = json.loads(out)
    assert {"run_id", "model", "before", "after", "privacy", "seconds", "peak_mb"} <= set(result)
    for moment in ("before", "after"):
        assert {"eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3", "ci", "mated", "non_mated"} <= set(
            result[moment]
        )
    assert {"unit", "adjacency", "delta", "adversaries", "per_site"} <= set(result["privacy"])
    assert all(0 < epsilon <= 4 for epsilon in result["privacy"]["adversaries"].values())
    for name in ("model.safetensors", "run.json", "index.html", "det.png", "det.svg"):
        assert (tmp_path / "run" / name).is_file(), name


def test_a_run_folder_in_use_is_not_touched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("three years of work")
    assert is_one_clear_line(run(), 2, "already exists and is not empty")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_a_run_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert is_one_clear_line(run(out=tmp_path / "file"), 2, "is a file")
    assert is_one_clear_line(run(out=tmp_path / "file" / "run"), 2, "is a file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_delta_that_may_give_whole_persons_away_is_noted(run: Run) -> None:
    code, out, _ = run(delta=0.5)
    assert code == 0
    assert "more than one over the" in out


def test_a_full_disk_is_named_and_no_file_is_half_written(
    people_folder: Path, tmp_path: Path
) -> None:
    """The kernel lets no file grow beyond 60 kB, which a checkpoint of the model would."""

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    options = f"--data {people_folder} --aligned --backbone lenet --sites 2 --rounds 1 --epsilon 4"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "common.cli", "simulate", *options.split()),
            *("--train", "full", "--out", tmp_path / "run", "--cache", tmp_path / "cache"),
        ],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert not done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("veilface: cannot write "), done.stderr
    assert "free some space" in last
    assert "Traceback" not in done.stderr
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".part")]
    assert "model.safetensors" not in left


def test_the_model_of_a_run_from_random_weights_is_put_together_again(
    run: Run, tmp_path: Path
) -> None:
    assert run(seed=3, train="tail")[0] == 0
    assert "lenet tail" in trained_network(tmp_path / "run" / "model.safetensors", None).name
