"""A person who is two, or two who are one: copies, names in two forms, litter, a tempting name."""

from __future__ import annotations

import dataclasses
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from client.preparation import PublicPart
from common.app_bundle import app_hash
from common.dataset import list_subjects
from common.errors import InputError
from common.same_person import copies, merged, refuse_copies, united
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from simulations.run_folder import RunFolder
from simulations.simulate import simulate
from tests.simulation_rig import progress, run


def save(path: Path, shade: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade, 0, 0)).save(path)
    return path


def test_a_name_in_two_unicode_forms_is_one_person_with_all_images(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    assert composed != apart
    save(tmp_path / composed / "a.png", 1)
    save(tmp_path / apart / "b.png", 2)
    save(tmp_path / "Zoe" / "c.png", 3)
    for strict in (True, False):
        found = list_subjects(tmp_path, strict=strict)
        assert [(one.name, len(one.images)) for one in found] == [(composed, 2), ("Zoe", 1)]


def test_what_systems_put_beside_people_is_nobody(tmp_path: Path) -> None:
    save(tmp_path / "Ann" / "a.png")
    for name in ("#recycle", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"):
        save(tmp_path / name / "a.png")
        save(tmp_path / "Ann" / name / "b.png")
    for strict in (True, False):
        (ann,) = list_subjects(tmp_path, strict=strict)
        assert (ann.name, len(ann.images), ann.skipped) == ("Ann", 1, ())


def test_a_person_named_images_makes_nobody_else_drop_out(tmp_path: Path) -> None:
    """Beside a pairs.txt all others were gone, which moved the sum by the clip of each."""
    save(tmp_path / "Ann" / "a.png")
    (tmp_path / "pairs.txt").write_text("10\t300\n")
    for content in ("images/a.png", "images/more/b.png"):
        before = {one.name for one in list_subjects(tmp_path, strict=False)}
        save(tmp_path / content)
        after = {one.name for one in list_subjects(tmp_path, strict=False)}
        assert before <= after <= before | {"images"}
        assert {one.name for one in list_subjects(tmp_path)} == {"Ann", "images"}


def test_copies_are_found_by_their_bytes_and_through_third_persons(tmp_path: Path) -> None:
    for name, shades in (("Ann", (1, 2)), ("Bob", (2, 3)), ("Cy", (3,)), ("Di", (4,)), ("Ed", ())):
        for shade in shades:
            save(tmp_path / name / f"{shade}.png", shade)
    save(tmp_path / "Ed" / "4.png", 5)  # the same name and size, other pixels
    subjects = list_subjects(tmp_path)
    assert copies(subjects) == (("Ann", "Bob", "Cy"),)
    with pytest.raises(InputError, match=r"3 person folders hold the same files.*'Ann' = 'Bob'"):
        refuse_copies(subjects)
    assert [(one.name, len(one.images)) for one in merged(subjects)] == [
        ("Ann", 5), ("Di", 1), ("Ed", 1)
    ]  # fmt: skip
    assert dict(united([(b"1", "b"), (b"2", "c"), (b"1", "a"), (b"2", "b")])) == {
        "a": "a", "b": "a", "c": "a"
    }  # fmt: skip


@pytest.fixture
def doubled(experiment: Experiment, tmp_path: Path) -> Experiment:
    """An experiment on a folder in which one person stands twice, bit by bit."""
    assert experiment.data is not None
    data = shutil.copytree(experiment.data, tmp_path / "faces")
    first = sorted(data.iterdir())[0]
    shutil.copytree(first, data / f"{first.name} copy")
    return dataclasses.replace(experiment, data=data)


def test_a_run_with_a_person_who_is_two_does_not_begin(doubled: Experiment) -> None:
    with pytest.raises(InputError, match="same files as another"):
        gather(doubled)
    assert gather(dataclasses.replace(doubled, allow_duplicates=True)).declared == doubled.persons


@pytest.mark.parametrize("allowed", [False, True])
def test_copies_that_are_found_later_are_one_person_at_the_site(
    doubled: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture, allowed: bool
) -> None:
    known = dataclasses.replace(doubled, allow_duplicates=True)
    federation = build(known, "r", tmp_path / "unused", gather(known)).federation
    part = PublicPart(federation.contract, federation.state, federation.public_inputs)
    policy = SitePolicy(("lenet",), 9.0, 1e-4, 9.0, 100, ("local",), 0, 0, (app_hash(),))
    assert doubled.data is not None
    config = FolderConfig(
        doubled.data, tmp_path / "s", aligned=True, allow_duplicates=allowed
    )  # fmt: skip
    persons = open_folder(config, policy).persons(part)
    folders = len(list_subjects(doubled.data))
    assert len(persons) == folders - (not allowed)
    assert ("taken for the same" in caplog.text) == (not allowed)


def test_a_run_does_not_go_on_with_other_people_or_other_pictures(
    experiment: Experiment, tmp_path: Path
) -> None:
    """Private persons moved to other sites, into the public bank and the test set."""
    assert experiment.data is not None
    data = shutil.copytree(experiment.data, tmp_path / "faces")
    experiment = dataclasses.replace(experiment, data=data)
    out = tmp_path / "run"
    run(experiment, out)
    first, second = sorted(data.iterdir())[:2]

    def resumed() -> None:
        with progress() as live:
            simulate(experiment, RunFolder.resume(out, experiment), gather(experiment), live)

    resumed()
    away = tmp_path / "away"
    picture = sorted(second.iterdir())[0]
    pixels = picture.read_bytes()
    changes: tuple[tuple[Callable[[], object], Callable[[], object]], ...] = (
        (lambda: first.rename(data / "Zoe"), lambda: (data / "Zoe").rename(first)),
        (lambda: shutil.move(first, away), lambda: shutil.move(away, first)),
        (
            lambda: shutil.copy(sorted(first.iterdir())[0], picture),
            lambda: picture.write_bytes(pixels),
        ),
    )
    for change, back in changes:
        change()
        changed = dataclasses.replace(experiment, allow_duplicates=True)
        with pytest.raises(InputError, match="started with other"), progress() as live:
            simulate(changed, RunFolder(out, "x"), gather(changed), live)
        back()
    resumed()
