"""Folders of persons in, chip sets out: every bad folder and file has one clear word."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.chip_cache import ChipCache
from common.cut_all import WORTH_A_POOL
from common.dataset import ChipSet, images_of, list_subjects, load_chips
from common.decoding import DecodeLimits
from common.detection import DlibDetector
from common.errors import InputError
from common.face import ChipSpec
from simulations.people import generate

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw"
SPEC = ChipSpec(150, "dlib")
SMALL = ChipSpec(24, "dlib")


def save(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def plain(shade: int, side: int = 24) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((side, side, 3), shade, np.uint8)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two people with two photographs each, whose faces are found."""
    root = tmp_path_factory.mktemp("faces")
    people = generate(4, 4, 5, SPEC)
    found = 0
    for subject in range(4):
        photos = [
            np.pad(chip, ((60, 60), (60, 60), (0, 0)), mode="edge")
            for chip, owner in zip(people.chips, people.subjects, strict=True)
            if owner == subject
        ]
        good = [photo for photo in photos if DlibDetector().detect(photo)]
        if len(good) >= 2 and found < 2:
            for number, photo in enumerate(good[:2]):
                save(root / f"person{found}" / f"{number}.png", photo)
            found += 1
    assert found == 2
    return root


def load(
    paths: tuple[Path, ...], cache: ChipCache | None = None, *, centre_fallback: bool = False
) -> ChipSet:
    return load_chips(
        paths,
        spec=SPEC,
        detector=DlibDetector(),
        cache=cache,
        centre_fallback=centre_fallback,
    )


def test_persons_and_images_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("zoe/2.JPG", "zoe/10.jpeg", "Ann/b.webp", "Ann/a.pgm"):
        save(tmp_path / name, plain(9)[..., 0] if name.endswith("pgm") else plain(9))
    subjects = list_subjects(tmp_path)
    assert [subject.name for subject in subjects] == ["Ann", "zoe"]
    assert [path.name for path in images_of(subjects)] == ["a.pgm", "b.webp", "10.jpeg", "2.JPG"]


def test_an_lfw_root_means_its_images_folder(tmp_path: Path) -> None:
    save(tmp_path / "images" / "Ann" / "Ann_0001.png", plain(1))
    (tmp_path / "pairs.txt").write_text("10\t300\n")
    (tmp_path / "other").mkdir()
    assert [subject.name for subject in list_subjects(tmp_path)] == ["Ann"]


def test_hidden_files_are_ignored_and_what_is_no_image_is_listed(tmp_path: Path) -> None:
    save(tmp_path / "Ann" / "a.png", plain(1))
    (tmp_path / "Ann" / ".DS_Store").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / "Ann" / "notes.txt").write_text("x")
    (tmp_path / "Ann" / "deeper").mkdir()
    (tmp_path / "Ann" / "gone.png").symlink_to(tmp_path / "Ann" / "nowhere.png")
    os.mkfifo(tmp_path / "Ann" / "pipe.png")
    (ann,) = list_subjects(tmp_path)
    assert [path.name for path in ann.images] == ["a.png"]
    assert [(skip.path.name, skip.reason) for skip in ann.skipped] == [
        ("deeper", "not a file"),
        ("gone.png", "a broken link"),
        ("notes.txt", "not an image by its suffix"),
        ("pipe.png", "not a file"),
    ]


def test_links_may_stay_inside_but_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = save(tmp_path / "secret" / "a.png", plain(1))
    save(root / "Ann" / "a.png", plain(1))
    (root / "Ann" / "again.png").symlink_to("a.png")
    assert len(list_subjects(root)[0].images) == 2
    (root / "Ann" / "b.png").symlink_to(outside)
    with pytest.raises(InputError, match=r"b\.png is a link that leads out"):
        list_subjects(root)
    (root / "Ann" / "b.png").unlink()
    (root / "Bob").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="Bob is a link that leads out"):
        list_subjects(root)


def test_a_link_makes_nobody_two_persons(tmp_path: Path) -> None:
    """Their influence would be twice the clip."""
    save(tmp_path / "Ann" / "a.png", plain(1))
    save(tmp_path / ".store" / "b.png", plain(2))
    (tmp_path / "Bob").symlink_to(".store")
    assert [len(folder.images) for folder in list_subjects(tmp_path)] == [1, 1]
    for name, target in (("Cy", "Bob"), ("Cy", ".store/on"), ("Cy", str(tmp_path / "Bob"))):
        (tmp_path / ".store" / "on").unlink(missing_ok=True)
        (tmp_path / ".store" / "on").symlink_to("../Bob")  # itself a link to a hidden folder
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match="Cy is a link to another person's folder"):
            list_subjects(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / ".store" / "on").unlink()
    (tmp_path / "Cy").symlink_to("Ann")
    (tmp_path / "Di").mkdir()
    (tmp_path / "Di" / "c.png").symlink_to("../Ann/a.png")
    with pytest.raises(InputError, match="Cy is a link to another person's folder"):
        list_subjects(tmp_path)
    found = list_subjects(tmp_path, strict=False)
    assert [(folder.name, len(folder.images)) for folder in found] == [
        ("Ann", 1), ("Bob", 1), ("Cy", 0), ("Di", 0)
    ]  # fmt: skip


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    save(tmp_path / "flat" / "a.png", plain(1))
    (tmp_path / "bare" / "Ann").mkdir(parents=True)
    save(tmp_path / "one" / "Ann" / "a.png", plain(1))
    (tmp_path / "one" / "Bob").mkdir()
    for name, words in (
        ("missing", "does not exist"),
        ("file", "is not a folder"),
        ("empty", "is empty"),
        ("flat", "no person folder"),
        ("bare", "no person folder with an image"),
    ):
        with pytest.raises(InputError, match=words):
            list_subjects(tmp_path / name)
    with pytest.raises(InputError, match="holds 1 person, at least 2"):
        list_subjects(tmp_path / "one", at_least=2)
    assert len(list_subjects(tmp_path / "one")) == 2


def test_chips_carry_their_path_digest_and_person(faces: Path) -> None:
    subjects = list_subjects(faces, at_least=2)
    chips = load(images_of(subjects))
    assert chips.chips.shape == (4, 150, 150, 3)
    assert chips.paths == images_of(subjects)
    assert chips.labels(subjects).tolist() == [0, 0, 1, 1]
    for path, digest in zip(chips.paths, chips.digests, strict=True):
        assert digest.tobytes() == hashlib.sha256(path.read_bytes()).digest()
    assert not chips.skipped
    assert not chips.centred


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(faces: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(faces, root)
    torn = (faces / "person0" / "0.png").read_bytes()[:5000]
    (root / "person0" / "05.png").write_bytes(torn)
    (root / "person0" / "06.jpg").write_bytes(b"")
    save(root / "person1" / "0wall.png", plain(128, 200))
    (root / "person1" / "big.png").write_bytes(b"\x89PNG" + bytes(2**21))
    (root / "person1" / "away.png").write_bytes(b"x")
    paths = images_of(list_subjects(root))
    (root / "person1" / "away.png").unlink()
    chips = load_chips(
        paths, spec=SPEC, detector=DlibDetector(), limits=DecodeLimits(max_bytes=2**20)
    )
    assert [path.parent.name + path.name for path in chips.paths] == [
        "person00.png",
        "person01.png",
        "person10.png",
        "person11.png",
    ]
    reasons = {skip.path.name: skip.reason for skip in chips.skipped}
    assert list(reasons) == ["05.png", "06.jpg", "0wall.png", "away.png", "big.png"]
    assert reasons["05.png"].startswith("not a readable")
    assert reasons["0wall.png"] == "no face found"
    assert "No such file" in reasons["away.png"]
    assert reasons["big.png"] == "more than 1048576 bytes"
    assert np.array_equal(chips.chips, load(images_of(list_subjects(faces))).chips)


def test_a_warm_cache_gives_the_same_chips_without_detecting(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = save(tmp_path / "wall.png", plain(128, 200))
    paths = (*images_of(list_subjects(faces)), wall)
    with ChipCache.open(tmp_path / "c") as cache:
        cold = load(paths, cache)
        monkeypatch.setattr(DlibDetector, "detect", lambda *_: pytest.fail("detected again"))
        warm = load(paths, cache)
    assert np.array_equal(cold.chips, warm.chips)
    assert np.array_equal(cold.digests, warm.digests)
    assert cold.paths == warm.paths
    assert [skip.path for skip in warm.skipped] == [wall]


def test_a_changed_file_is_not_taken_from_the_cache(faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    first, second = images_of(list_subjects(faces))[::2]
    with ChipCache.open(tmp_path / "c") as cache:
        shutil.copy(first, path)
        before = load((path,), cache)
        shutil.copy(second, path)
        after = load((path,), cache)
    assert not np.array_equal(before.chips, after.chips)
    assert np.array_equal(after.chips, load((second,)).chips)


def test_the_centre_is_taken_only_on_request_and_counted(faces: Path, tmp_path: Path) -> None:
    wall = save(tmp_path / "wall.png", plain(128, 200))
    paths = (*images_of(list_subjects(faces))[:1], wall)
    with ChipCache.open(tmp_path / "c") as cache:
        assert len(load(paths, cache)) == 1
        for _ in range(2):
            chips = load(paths, cache, centre_fallback=True)
            assert chips.paths == paths
            assert chips.centred == (wall,)
        assert len(load(paths, cache).skipped) == 1


def test_aligned_images_are_not_detected_and_grey_is_grey(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    path = save(tmp_path / "a.png", pixels)
    ready = load_chips([path], spec=SMALL, detector=DlibDetector(), aligned=True)
    assert np.array_equal(ready.chips[0], pixels)
    grey = load_chips([path], spec=SMALL, detector=DlibDetector(), aligned=True, grey=True)
    assert np.array_equal(grey.chips[0][..., 0], np.asarray(Image.open(path).convert("L")))
    assert np.ptp(grey.chips, axis=-1).max() == 0


def test_processes_give_the_same_order_and_progress_as_one(tmp_path: Path) -> None:
    count = WORTH_A_POOL + 5
    paths = [save(tmp_path / f"{n}.png", plain(n)) for n in range(count)]
    paths[7].write_bytes(b"broken")
    seen: list[tuple[int, int]] = []

    def load_with(workers: int) -> ChipSet:
        seen.clear()
        return load_chips(
            paths,
            spec=SMALL,
            detector=DlibDetector(),
            aligned=True,
            workers=workers,
            progress=lambda done, total: seen.append((done, total)),
        )

    one, two = load_with(1), load_with(2)
    assert np.array_equal(one.chips, two.chips)
    assert one.paths == two.paths
    assert one.skipped == two.skipped
    assert one.chips[:, 0, 0, 0].tolist() == [n for n in range(count) if n != 7]
    assert seen[-1] == (count, count)
    assert seen == sorted(seen)


@pytest.mark.skipif(not LFW.is_dir(), reason="needs shared/data/lfw")
def test_real_faces_are_found_even_where_the_strict_detector_misses_them() -> None:
    subjects = list_subjects(LFW)
    assert len(images_of(subjects)) == 13_233
    assert not load(images_of(subjects)[::400]).skipped
    hard = tuple(
        LFW / "images" / name / f"{name}_{number:04d}.jpg"
        for name, number in (("Angela_Merkel", 3), ("Ariel_Sharon", 18))
    )
    strict = DlibDetector(tries=((0, 0.0),))
    assert len(load_chips(hard, spec=SPEC, detector=strict)) == 0
    assert load(hard).paths == hard


def test_no_images_give_an_empty_set() -> None:
    empty = load(())
    assert len(empty) == 0
    assert empty.chips.shape == (0, 150, 150, 3)
    assert empty.digests.shape == (0, 32)
