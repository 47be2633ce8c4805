"""Whose faces an experiment trains, tests and chooses on, and which cameras see them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.face import ChipSpec
from common.vocabulary import BankShift, Shift
from simulations.experiment import Experiment
from simulations.faces import Faces
from simulations.material import MOST_IMAGES, Material, gather
from simulations.people import generate
from simulations.splitting import PersonSplit, divide_test, split_persons

SIDE: Final = 112
ELSEWHERE: Final = 40


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 other persons with 2 aligned chips each."""
    root = tmp_path_factory.mktemp("elsewhere")
    people = generate(ELSEWHERE, 2, 77, ChipSpec(SIDE, "arcface"))
    for row, subject in enumerate(people.subjects.tolist()):
        folder = root / f"other_{subject:03d}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(people.chips[row])).save(folder / f"{row}.png")
    return root


def parts_of(material: Material) -> list[set[str]]:
    split = material.split
    return [set(split.private), set(split.bank), set(split.test), set(split.judges)]


def of(
    experiment: Experiment,
    *,
    shift: tuple[Shift, ...] = ("none",),
    bank_shift: BankShift = "same",
    public: Path | None = None,
    test: Path | None = None,
    persons: int | None = 12,
) -> Material:
    return gather(
        dataclasses.replace(
            experiment,
            shift=shift,
            bank_shift=bank_shift,
            public=public,
            test=test,
            persons=persons,
        )
    )


def test_the_persons_of_a_folder_are_in_one_part_and_faces_are_of_their_part(
    experiment: Experiment,
) -> None:
    material = of(experiment)
    private, bank, test, judges = parts_of(material)
    assert sum(map(len, (private, bank, test, judges))) == 24
    assert len(private | bank | test | judges) == 24
    assert material.test.subjects == material.split.test
    assert [faces.subjects for faces in material.sites] == list(material.split.sites)
    assert not judges, "8 persons are too few to spare any"
    assert material.judges.chips.shape == (0, SIDE, SIDE, 3)


def test_a_bank_and_a_test_set_from_elsewhere_leave_all_of_the_data_to_be_private(
    experiment: Experiment, elsewhere: Path, people_folder: Path
) -> None:
    there = of(experiment, test=elsewhere, persons=None)
    private, bank, test, judges = parts_of(there)
    assert len(private) == 20, "24 but for a fifth in the bank"
    assert len(test) == 30
    assert len(judges) == 10
    assert all(name.startswith("other") for name in test | judges)
    public = of(experiment, public=elsewhere, persons=None)
    private, bank, test, judges = parts_of(public)
    assert all(name.startswith("other") for name in bank)
    assert len(bank) == ELSEWHERE
    assert len(private) == 17, "seven tenths of 24"
    assert len(test) == 7


def test_a_person_of_the_data_is_left_out_of_public_folders_by_name_and_by_picture(
    experiment: Experiment, elsewhere: Path, people_folder: Path, tmp_path: Path
) -> None:
    theirs = sorted(people_folder.iterdir())
    public, test = tmp_path / "public", tmp_path / "test"
    others = sorted(elsewhere.iterdir())
    for root, some, renamed in ((public, others[:20], "ann"), (test, others[20:], "ben")):
        for person in some:
            shutil.copytree(person, root / person.name)
        shutil.copytree(theirs[0], root / theirs[0].name)  # under their own name
        shutil.copytree(theirs[1], root / renamed)  # under another
    material = of(experiment, public=public, test=test, persons=None)
    private, bank, tested, judges = parts_of(material)
    assert len(private) == 24
    assert bank == {person.name for person in others[:20]}
    assert tested | judges == {person.name for person in others[20:]}
    left_out = {entry.path.parent.name for entry in material.skipped}
    assert left_out == {"ann", "ben"}, "who is left out by a picture is told"


def test_who_is_tested_on_is_not_in_the_public_bank(
    experiment: Experiment, elsewhere: Path, tmp_path: Path
) -> None:
    people = sorted(elsewhere.iterdir())
    for root, some in ((tmp_path / "test", people[:20]), (tmp_path / "public", people[10:])):
        for person in some:
            shutil.copytree(person, root / person.name)
    shutil.copytree(people[0], tmp_path / "public" / "renamed")
    material = of(experiment, public=tmp_path / "public", test=tmp_path / "test")
    _, bank, test, judges = parts_of(material)
    assert test | judges == {person.name for person in people[:20]}
    assert bank == {person.name for person in people[20:]}


def test_a_folder_of_nobody_else_is_refused(
    experiment: Experiment, people_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(people_folder, tmp_path / "copy")
    for part in ("public", "test"):
        with pytest.raises(InputError, match="0 of them are not in another part"):
            gather(dataclasses.replace(experiment, **{part: tmp_path / "copy"}))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"--{part} is the folder of --data"):
            dataclasses.replace(experiment, **{part: people_folder}).check()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--public is the folder of --test"):
        dataclasses.replace(experiment, public=tmp_path, test=tmp_path).check()


def test_synthetic_people_meet_a_public_bank_from_a_folder(
    experiment: Experiment, elsewhere: Path
) -> None:
    synthetic = dataclasses.replace(experiment, data=None)
    material = of(synthetic, public=elsewhere, bank_shift="none")
    assert material.bank.subjects[0].startswith("other")
    alone = gather(dataclasses.replace(synthetic, data=elsewhere, persons=8))
    picture = material.bank.chips[material.bank.index == 0]
    name = material.bank.subjects[0]
    place = [f for f in (*alone.sites, alone.bank, alone.test, alone.judges) if name in f.subjects]
    same = place[0].chips[place[0].index == place[0].subjects.index(name)]
    assert torch.equal(picture, same)


def test_a_much_photographed_public_person_counts_for_four_images(
    experiment: Experiment, elsewhere: Path, tmp_path: Path
) -> None:
    shutil.copytree(elsewhere, tmp_path / "public")
    for person in sorted((tmp_path / "public").iterdir())[:4]:
        for number in range(6):
            picture = Image.fromarray(np.full((SIDE, SIDE, 3), 9 * number, np.uint8))
            picture.save(person / f"more{person.name}{number}.png")
            with (person / f"more{person.name}{number}.png").open("ab") as file:
                file.write(person.name.encode())  # another file
    bank = of(experiment, public=tmp_path / "public").bank
    assert max(np.bincount(bank.index)) == MOST_IMAGES


@pytest.mark.parametrize(
    ("persons", "cameras", "judges"),
    [(11, 1, 0), (15, 1, 0), (16, 1, 4), (19, 1, 4), (100, 1, 25), (23, 3, 0), (24, 3, 6)],
)
def test_a_quarter_of_the_test_persons_judge_unless_too_few_are_left(
    persons: int, cameras: int, judges: int
) -> None:
    names = [f"p{number}" for number in range(persons)]
    tested, chosen = divide_test(names, 0, cameras)
    assert len(chosen) == judges
    assert sorted((*tested, *chosen)) == sorted(names)
    if judges:
        assert divide_test(names, 0, cameras) == (tested, chosen)
        assert set(divide_test(names, 1, cameras)[1]) != set(chosen)


def test_a_person_in_two_parts_is_refused() -> None:
    parts: tuple[dict[str, tuple[str, ...]], ...] = (
        {"bank": ("a",)},
        {"test": ("a",)},
        {"judges": ("a",)},
    )
    for part in parts:
        with pytest.raises(InputError, match="a is in two parts"):
            PersonSplit(**({"sites": (("a",),), "bank": ("b",), "test": ("c",)} | part))  # type: ignore[arg-type]


def test_too_few_persons_are_told_how_many_are_needed() -> None:
    three = dict.fromkeys("abc", 2)
    with pytest.raises(InputError, match="only 3 persons"):
        split_persons(three, sites=1, persons=None, seed=0)
    split = split_persons(three, sites=1, persons=None, seed=0, bank=False, test=False)
    assert len(split.private) == 3
    with pytest.raises(InputError, match="only 3 persons with two or more images are left") as told:
        split_persons(three, sites=1, persons=4, seed=0, bank=False, test=False)
    assert told.value.hint == "ask for at most 3"


TWO: Final[tuple[Shift, ...]] = ("none", "mask")


def masked(faces: Faces) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each image has a mask: one colour on the chin."""
    chin = faces.chips[:, 90:100, 50:62].float()
    return np.asarray((chin.std(dim=(1, 2)).sum(1) == 0).numpy())


def test_cameras_are_dealt_to_sites_and_to_test_persons_in_turn(
    experiment: Experiment, elsewhere: Path
) -> None:
    material = of(experiment, shift=TWO, test=elsewhere)
    assert material.site_cameras == (0, 1, 0)
    for faces, camera in zip(material.sites, material.site_cameras, strict=True):
        assert set(faces.camera.tolist()) == {camera}
        assert (masked(faces) == (camera == 1)).all()
    for faces in (material.test, material.judges):
        assert np.array_equal(faces.camera, faces.index % 2)
        assert np.array_equal(masked(faces), faces.camera == 1)
    single = of(experiment)
    assert not single.test.camera.any()
    assert single.site_cameras == (0, 0, 0)


@pytest.mark.parametrize("kind", ["none", "same", "randomised"])
def test_the_bank_is_seen_through_what_was_asked_for(
    experiment: Experiment, elsewhere: Path, kind: BankShift
) -> None:
    clean = of(experiment, public=elsewhere, bank_shift="none").bank
    material = of(experiment, shift=TWO, public=elsewhere, bank_shift=kind)
    bank, again = material.bank, of(experiment, shift=TWO, public=elsewhere, bank_shift=kind).bank
    assert torch.equal(bank.chips, again.chips)
    assert bank.subjects == clean.subjects
    changed = (bank.chips != clean.chips).flatten(1).any(1).numpy()
    turn = np.arange(len(changed)) % 2
    if kind == "same":
        assert np.array_equal(bank.camera, turn)
        assert np.array_equal(masked(bank), turn == 1)
        assert np.array_equal(changed, turn == 1)
    else:
        assert not bank.camera.any()
        assert changed.all() == changed.any() == (kind == "randomised")


@pytest.mark.parametrize(
    ("shift", "kind"), [("none", "none"), ("cctv", "same"), ("none", "randomised")]
)
def test_the_bank_is_looked_at_twice_more_with_fresh_noise(
    experiment: Experiment, shift: Shift, kind: BankShift
) -> None:
    material = of(experiment, shift=(shift,), bank_shift=kind)
    first, second = material.bank_views
    assert material.bank_views[0] is first, "once computed"
    for view in (first, second):
        assert view.subjects == material.bank.subjects
        assert np.array_equal(view.index, material.bank.index)
        assert np.array_equal(view.camera, material.bank.camera)
    for one, other in ((first, second), (first, material.bank), (second, material.bank)):
        assert (one.chips != other.chips).flatten(1).any(1).all()
    again = of(experiment, shift=(shift,), bank_shift=kind).bank_views
    assert torch.equal(again[0].chips, first.chips)
    assert torch.equal(again[1].chips, second.chips)


def test_noise_of_the_banks_camera_is_fresh_in_every_view(experiment: Experiment) -> None:
    """Of grey pictures, which no turn changes."""
    bank = of(experiment, shift=("cctv",)).unseen_bank
    grey = dataclasses.replace(bank.clean, chips=np.full_like(bank.clean.chips, 128))
    flat = dataclasses.replace(bank, clean=grey)
    seen = [look.chips[..., 0].float() for look in (flat.seen(), *flat.views())]
    # second differences take the light's ramp away
    rough = [(x[:, 10:] - 2 * x[:, 5:-5] + x[:, :-10]).flatten(1) for x in seen]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        alike = torch.nn.functional.cosine_similarity(rough[one], rough[other]).abs()
        assert alike.mean() < 0.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift": ("cctv", "cctv")}, "names each camera once"),
        ({"shift": ()}, "at least one"),
        ({"shift": ("none", "cctv", "mask"), "sites": 2}, "3 cameras but only 2 sites"),
        ({"shift": ("hd",)}, "unknown camera 'hd'"),
        ({"public": Path("nowhere")}, "nowhere does not exist"),
        ({"test": Path("nowhere")}, "nowhere does not exist"),
        ({"yunet": Path("nowhere")}, "nowhere does not exist"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_at_once(
    experiment: Experiment, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(experiment, **change).check()  # type: ignore[arg-type]


def test_fewer_test_persons_than_two_a_camera_are_refused(
    experiment: Experiment, elsewhere: Path, tmp_path: Path
) -> None:
    for person in sorted(elsewhere.iterdir())[:3]:
        shutil.copytree(person, tmp_path / person.name)
    with pytest.raises(InputError, match="3 persons to test 2 cameras"):
        of(experiment, shift=TWO, test=tmp_path)
