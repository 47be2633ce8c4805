"""Recognition on real faces with a real vault: who is who, who is nobody, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.calibration import Threshold, for_identification, for_verification
from client.picture import Picture
from client.recognition import Recogniser, network_id
from client.vault import Gallery, Vault
from common.dataset import images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.errors import ImageError, InputError, Refused
from common.network import Network, public_network
from common.scoring import Choice, Scorer, plain
from common.sealing import KeyFileLock

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"
pytestmark = pytest.mark.skipif(not LFW.is_dir(), reason="LFW is not in ../shared")
ENROLLED = ("Ariel_Sharon", "Colin_Powell", "Gerhard_Schroeder", "Serena_Williams")
STRANGERS = ("Hugo_Chavez", "Jennifer_Capriati", "Tony_Blair")


def pictures(person: str, first: int, count: int) -> list[Picture]:
    names = [f"{person}_{number:04d}.jpg" for number in range(first, first + count)]
    return [Picture(name, (LFW / person / name).read_bytes()) for name in names]


@pytest.fixture(scope="module")
def network() -> Network:
    return public_network("dlib-resnet", None)


@pytest.fixture(scope="module")
def public(network: Network) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings of 120 other persons with two images each, to calibrate on."""
    used = {*ENROLLED, *STRANGERS}
    folders = [s for s in list_subjects(LFW) if len(s.images) >= 2 and s.name not in used][::14]
    folders = [dataclasses.replace(folder, images=folder.images[:2]) for folder in folders[:120]]
    loaded = load_chips(
        images_of(folders), spec=network.backbone.chip, detector=DlibDetector(), cache=None
    )
    labels = np.asarray(loaded.labels(folders), dtype=np.int64)
    return Recogniser.embedding_of(network, loaded.chips), labels


@pytest.fixture
def engine(network: Network, tmp_path: Path) -> Iterator[Recogniser]:
    lock = KeyFileLock.create(tmp_path / "key")
    where = str(tmp_path / "vault" / "site.db")
    with Vault.create(where, lock, model_id=network_id(network), dim=128) as vault:
        yield Recogniser(vault, network, DlibDetector())


def calibrated(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]], gallery: int = 4
) -> Recogniser:
    known = (engine.model_id, "lfw")
    engine.use(
        for_verification(plain(public[0]), public[1], 1e-3, model_id=known[0], source=known[1])
    )
    engine.use(
        for_identification(
            plain(public[0]), public[1], 0.05, gallery, model_id=known[0], source=known[1]
        )
    )
    return engine


def filled(engine: Recogniser) -> Recogniser:
    for person in ENROLLED:
        engine.enrol(person, pictures(person, 1, 2), force=True)
    return engine


def test_people_are_accepted_as_themselves_and_not_as_others(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public))
    for person in ENROLLED:
        (probe,) = pictures(person, 4, 1)
        accepted = {name: engine.verify(name, probe).accepted for name in ENROLLED}
        assert accepted == {name: name == person for name in ENROLLED}


def test_identification_ranks_the_right_person_first_and_takes_no_stranger(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public))
    for person in ENROLLED:
        found = engine.identify(pictures(person, 5, 1)[0], 3)
        assert found.accepted is not None
        assert found.accepted.pseudonym == engine.vault.pseudonym(person)
        assert len(found.candidates) == 3
        assert list(found.candidates) == sorted(found.candidates, key=lambda c: -c.score)
    for person in STRANGERS:
        assert engine.identify(pictures(person, 1, 1)[0]).accepted is None


def test_without_a_threshold_nobody_is_accepted_or_rejected(engine: Recogniser) -> None:
    filled(engine)
    (probe,) = pictures(ENROLLED[0], 4, 1)
    with pytest.raises(Refused, match="no threshold to verify"):
        engine.verify(ENROLLED[0], probe)
    with pytest.raises(Refused, match="no threshold to identify"):
        engine.identify(probe)


def test_a_vault_of_another_model_is_refused(engine: Recogniser) -> None:
    with pytest.raises(Refused, match="templates of model"):
        Recogniser(engine.vault, public_network("lenet", None), DlibDetector())


def test_one_bad_picture_enrols_none(engine: Recogniser) -> None:
    good, bad = pictures(ENROLLED[0], 1, 1)[0], Picture("noise.png", b"not an image")
    for wrong in (bad, Picture("empty.jpg", b"")):
        with pytest.raises(ImageError):
            engine.enrol(ENROLLED[0], [good, wrong], force=True)
    assert engine.vault.info.templates == 0
    with pytest.raises(InputError, match="no picture"):
        engine.enrol(ENROLLED[0], [])


def test_enrolling_a_known_face_under_another_name_warns(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public))
    twin = engine.enrol("somebody else", pictures("Colin_Powell", 6, 1), force=True)
    assert [engine.vault.pseudonym("Colin_Powell") in w for w in twin.warnings] == [True]
    again = engine.enrol("Ariel_Sharon", pictures("Ariel_Sharon", 6, 1), force=True)
    assert again.warnings == ()


def test_pictures_of_someone_else_are_not_added_to_a_person(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(engine)
    own = pictures("Ariel_Sharon", 6, 2)
    with pytest.raises(Refused, match="no threshold says"):
        engine.enrol("Ariel_Sharon", own)
    calibrated(engine, public)
    before = engine.vault.info.templates
    with pytest.raises(ImageError, match="does not look like the person"):
        engine.enrol("Ariel_Sharon", [own[0], *pictures("Colin_Powell", 6, 1)])
    assert engine.vault.info.templates == before
    last = engine.vault.log()[-1]
    assert (last.operation, last.outcome) == ("enrol", "rejected")
    assert engine.enrol("Ariel_Sharon", own[:1]).templates == 1
    assert not engine.verify("Ariel_Sharon", pictures("Colin_Powell", 6, 1)[0]).accepted


def test_the_same_picture_twice_is_told_and_added_once(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    calibrated(engine, public)
    one, two = pictures("Colin_Powell", 1, 2)
    first = engine.enrol("ann", [one, one, two], force=True)
    assert first.templates == 2 and ["same picture" in w for w in first.warnings] == [True]
    again = engine.enrol("ann", [two, one])
    assert again.templates == 0 and again.pseudonym == first.pseudonym
    assert ["enrolled already" in w for w in again.warnings] == [True, True]
    assert engine.vault.info.templates == 2


def test_a_person_has_a_bounded_number_of_templates(
    engine: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.enrolment.MOST_TEMPLATES", 3)
    engine.enrol("ann", pictures("Colin_Powell", 1, 2), force=True)
    with pytest.raises(InputError, match="at most 3 templates; this one has 2"):
        engine.enrol("ann", pictures("Colin_Powell", 3, 2), force=True)
    assert engine.enrol("ann", pictures("Colin_Powell", 3, 1), force=True).templates == 1


def test_an_erased_person_is_a_stranger_at_once(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public))
    (probe,) = pictures("Colin_Powell", 4, 1)
    assert engine.identify(probe).accepted is not None
    engine.vault.erase("Colin_Powell")
    assert engine.identify(probe).accepted is None
    with pytest.raises(InputError):
        engine.verify("Colin_Powell", probe)


def test_a_vault_that_outgrew_its_calibration_says_so(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public, gallery=3))
    found = engine.identify(pictures("Colin_Powell", 4, 1)[0])
    assert any("calibrated for 3 persons and the vault has 4" in w for w in found.warnings)


def test_a_probe_with_several_people_says_so(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    filled(calibrated(engine, public))
    faces = [pictures(person, 1, 1)[0] for person in (ENROLLED[0], *STRANGERS)][:2]
    side = [np.asarray(Image.open(io.BytesIO(face.data)).convert("RGB")) for face in faces]
    out = io.BytesIO()
    Image.fromarray(np.hstack(side)).save(out, "PNG")
    group = Picture("group.png", out.getvalue())
    for warnings in (
        engine.verify(ENROLLED[0], group).warnings, engine.identify(group).warnings
    ):  # fmt: skip
        assert any("shows 2 faces: only the one nearest" in words for words in warnings)
    assert engine.verify(ENROLLED[0], faces[0]).warnings == ()


def test_a_check_between_face_and_embedding_can_refuse(engine: Recogniser) -> None:
    def printed(chip: NDArray[np.uint8]) -> None:
        raise Refused("this looks like a printed face")

    guarded = Recogniser(
        engine.vault, public_network("dlib-resnet", None), DlibDetector(), checks=(printed,)
    )
    with pytest.raises(Refused, match="printed face"):
        guarded.enrol(ENROLLED[0], pictures(ENROLLED[0], 1, 1), force=True)
    assert engine.vault.info.templates == 0


WEIGHTS = LFW.parents[2] / "weights" / "mobilefacenet_foamliu.pt"


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the MobileFaceNet weights are not in ../shared")
def test_while_a_vault_moves_to_a_new_model_both_answer(
    engine: Recogniser,
    network: Network,
    public: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    filled(calibrated(engine, public))
    newer = public_network("mobilefacenet", WEIGHTS)
    moved = engine.vault.change_model(
        network_id(newer), lambda chips: Recogniser.embedding_of(newer, chips)
    )
    assert len(moved.must_enrol) == len(ENROLLED)
    both = Recogniser(engine.vault, newer, DlibDetector(), previous=network)
    (probe,) = pictures("Colin_Powell", 4, 1)
    with pytest.raises(Refused, match="no threshold to identify"):
        both.identify(probe)
    for made in (
        Threshold("verify", 1e-3, 0.45, 0.0, 1.0, 1, 1, 0, both.model_id, "chosen"),
        Threshold("identify", 0.05, 0.5, 0.0, 1.0, 1, 1, 9, both.model_id, "chosen"),
    ):
        both.use(made)
    with pytest.raises(ImageError, match="does not look like"):  # by the model before
        both.enrol("Ariel_Sharon", pictures("Colin_Powell", 6, 1))
    assert both.enrol("Ariel_Sharon", pictures("Ariel_Sharon", 6, 2)).templates == 2
    for person in ENROLLED:
        (probe,) = pictures(person, 4, 1)
        assert both.verify(person, probe).accepted, person
        assert not both.verify(person, pictures("Hugo_Chavez", 1, 1)[0]).accepted
        found = both.identify(probe)
        assert found.accepted is not None
        assert found.accepted.pseudonym == both.vault.pseudonym(person)
    assert both.identify(pictures("Hugo_Chavez", 1, 1)[0]).accepted is None
    alone = Recogniser(engine.vault, newer, DlibDetector())
    with pytest.raises(Refused, match="no template of the model"):
        alone.verify("Colin_Powell", probe)


def test_scores_rest_on_the_others_of_the_vault_until_it_holds_too_few(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    rows, labels = public
    crowd, rest = [f"crowd {person}" for person in range(24)], labels >= 24
    for person, name in enumerate(crowd):
        engine.vault.enrol(name, rows[labels == person], model_id=engine.model_id)
    claimed = ENROLLED[0]
    engine.enrol(claimed, pictures(claimed, 1, 2), force=True)
    (probe,) = pictures(claimed, 4, 1)
    known = {"model_id": engine.model_id, "source": "lfw"}
    before = for_verification(plain(rows[rest]), labels[rest], 1e-2, **known)
    engine.use(before)
    cosine = engine.verify(claimed, probe).score

    population, scoring = engine.population(), Choice(0.0, 1.0)
    ready = Scorer.of(scoring, population.vectors).faces(engine.vault.protect(rows[rest]))
    threshold = for_verification(ready, labels[rest], 1e-2, **known)
    assert threshold.value < before.value
    engine.use(
        dataclasses.replace(
            threshold,
            scoring=scoring,
            population=len(population.vectors),
            plain=before.value,
        )
    )
    decision = engine.verify(claimed, probe)
    assert decision.accepted and decision.threshold == threshold.value
    assert threshold.value < decision.score < cosine - 1e-3  # the crowd takes something off
    for name in crowd[:3]:
        engine.erase(name)
    fewer = engine.verify(claimed, probe)
    assert fewer.score != decision.score  # who is erased takes nothing off any more
    for name in crowd[3:6]:
        engine.erase(name)
    alone = engine.verify(claimed, probe)
    assert alone.accepted and alone.threshold == before.value
    assert alone.score == pytest.approx(cosine, abs=1e-6)
    assert any("too few persons" in note for note in alone.warnings)
    assert not any("too few persons" in note for note in decision.warnings)


def test_an_erased_person_is_in_no_mean_no_cohort_and_no_memory_any_more(
    engine: Recogniser, public: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> None:
    """Scores are bit for bit those of before the person came, and no other process holds on."""
    rows, labels = public
    for person in range(30):
        engine.vault.enrol(f"other {person}", rows[labels == person], model_id=engine.model_id)
    scoring = Choice(1.0, 1.5)
    known = {"model_id": engine.model_id, "source": "lfw"}
    base = for_verification(plain(rows), labels, 1e-2, **known)
    engine.use(dataclasses.replace(base, scoring=scoring, population=30, plain=base.value))
    probes = [*pictures("Hugo_Chavez", 1, 2), *pictures("Tony_Blair", 1, 2)]

    def scores() -> list[float]:
        return [
            engine.verify(f"other {person}", probe).score for person in (0, 7) for probe in probes
        ]

    before = scores()
    engine.enrol("Tony_Blair", pictures("Tony_Blair", 3, 2), force=True)
    assert scores() != before, "the person is a crowd to others while they are here"
    gone = engine.vault.pseudonym("Tony_Blair")

    def held() -> list[Gallery]:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is Gallery]
        return [each for each in found if gone in each.pseudonyms]

    assert held()
    where, lock = str(tmp_path / "vault" / "site.db"), KeyFileLock(tmp_path / "key")
    with Vault.open(where, lock) as elsewhere:
        elsewhere.erase("Tony_Blair")
    assert held(), "an idle process does not know of it by itself"
    engine.still_current()
    assert not held()
    assert scores() == before
    stored = engine.vault.recall(f"threshold:verify:{engine.model_id}")
    assert stored is not None and len(stored) < 1000
    assert not any(isinstance(value, list) for value in json.loads(stored).values()), "no vector"
