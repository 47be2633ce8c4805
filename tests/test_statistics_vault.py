"""A vault with two-covariance scores: enrolled, verified, searched and calibrated as any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.calibration import for_identification, for_verification
from client.picture import Picture
from client.recognition import Recogniser, network_id
from client.vault import Vault
from common.backbones.adapter import PublicStatistics
from common.backbones.registry import create
from common.backbones.split import rejoin
from common.backbones.statistics import HeadParts, PublicMoments, StatisticsHead
from common.dataset import images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.network import Network
from common.parameters import assign
from common.recipe import moments_for
from common.scoring import plain
from common.sealing import KeyFileLock
from server.setup import PublicBank, cut

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"
pytestmark = pytest.mark.skipif(not LFW.is_dir(), reason="LFW is not in ../shared")
ENROLLED = ("Ariel_Sharon", "Colin_Powell", "Gerhard_Schroeder", "Serena_Williams")


def pictures(person: str, first: int, count: int) -> list[Picture]:
    names = [f"{person}_{number:04d}.jpg" for number in range(first, first + count)]
    return [Picture(name, (LFW / person / name).read_bytes()) for name in names]


@pytest.fixture(scope="module")
def public() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Chips of 160 other persons with two images each."""
    folders = [s for s in list_subjects(LFW) if len(s.images) >= 2 and s.name not in ENROLLED]
    folders = [replace(each, images=each.images[:2]) for each in folders[::10][:160]]
    loaded = load_chips(
        images_of(folders), spec=create("dlib-resnet").chip, detector=DlibDetector(), cache=None
    )
    return loaded.chips, np.asarray(loaded.labels(folders), dtype=np.int64)


@pytest.fixture(scope="module")
def network(public: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Network:
    """A network whose scores are likelihood ratios beside cosines, with moments told to it."""
    backbone = create("dlib-resnet")
    chips, persons = torch.from_numpy(public[0]), public[1]
    rows, bank = cut(backbone, "statistics", PublicBank(chips, persons), mirror=True)
    assert bank.views is not None
    directions = [each[:, backbone.features :] for each in (bank.faces, *bank.views)]
    moments = PublicMoments.of(*directions)
    assert moments is not None
    shape = moments_for(len(moments.prior), persons=1000, numbers=1000)
    state = PublicStatistics.in_state(rows.split.trainable.state_dict())
    parts = HeadParts(state, moments, shape)
    head = StatisticsHead(backbone.projection, parts).eval()
    told = head.told()
    generator = torch.Generator().manual_seed(0)
    told += 0.02 * torch.randn(told.shape, generator=generator, dtype=told.dtype)
    named = {name: part.clone() for name, part in head.shape.parts(told).items()}
    named["persons"][:], named["pairs"][:] = 1.0, 1.0
    assign(head, head.shape.joined(named).float())
    whole = replace(rows.split, trainable=head, condense=head.condense)
    return Network("statistics", backbone, rejoin(whole).eval())


@pytest.fixture
def engine(
    network: Network, public: tuple[NDArray[np.uint8], NDArray[np.int64]], tmp_path: Path
) -> Iterator[Recogniser]:
    lock, name = KeyFileLock.create(tmp_path / "key"), network_id(network)
    where = str(tmp_path / "vault" / "site.db")
    with Vault.create(where, lock, model_id=name, dim=network.dim) as vault:
        found = Recogniser(vault, network, DlibDetector())
        faces = plain(found.embed(public[0]), found.probe_order)
        found.use(for_verification(faces, public[1], 1e-3, model_id=name, source="lfw"))
        found.use(for_identification(faces, public[1], 0.05, 4, model_id=name, source="lfw"))
        for person in ENROLLED:
            found.enrol(person, pictures(person, 1, 2), force=True)
        yield found


def test_scores_of_the_vault_are_those_of_the_model(engine: Recogniser, network: Network) -> None:
    (probe,) = pictures("Colin_Powell", 5, 1)
    chips = [engine._portrait(each, engine.model_id).chip for each in
             (probe, *pictures("Colin_Powell", 1, 2))]  # fmt: skip
    rows = engine.embed(np.stack(chips))
    expected = max(float(network.probes(rows[:1])[0] @ row) for row in rows[1:])
    crossed = max(float(rows[0] @ row) for row in rows[1:])
    decision = engine.verify("Colin_Powell", probe)
    assert decision.score == pytest.approx(expected, abs=1e-5)
    assert abs(expected - crossed) > 1e-3  # a plain cosine of templates is another number
    ranked = engine.identify(probe).candidates
    assert ranked[0].score == pytest.approx(expected, abs=1e-5)


def test_people_are_known_as_themselves_and_not_as_others(engine: Recogniser) -> None:
    for person in ENROLLED:
        (probe,) = pictures(person, 4, 1)
        accepted = [name for name in ENROLLED if engine.verify(name, probe).accepted]
        assert accepted == [person]
        found = engine.identify(probe)
        assert found.accepted is not None
        assert found.accepted.pseudonym == engine.vault.pseudonym(person)


def test_a_known_face_under_another_name_is_found_and_other_faces_are_not_added(
    engine: Recogniser,
) -> None:
    twin = engine.enrol("Somebody_Else", pictures("Colin_Powell", 6, 1), force=True)
    name = engine.vault.pseudonym("Colin_Powell")
    assert [word for word in twin.warnings if name in word]
    with pytest.raises(Exception, match="does not look like"):
        engine.enrol("Serena_Williams", pictures("Ariel_Sharon", 5, 1))
    same = engine.enrol("Colin_Powell", pictures("Colin_Powell", 1, 1))
    assert same.templates == 0
