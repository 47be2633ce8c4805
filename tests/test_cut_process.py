"""A picture that kills, floods or breaks what reads it costs nobody but itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from client.preparation import PublicPart
from common.app_bundle import app_hash
from common.cut_all import WORTH_A_POOL
from common.dataset import load_chips
from common.detection import YuNetDetector
from common.errors import InputError, StorageError
from common.face import ChipSpec
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from tests.deadly_rig import DEADLY, DeadlyDetector
from tests.site_rig import assert_answers_with_noise

SPEC = ChipSpec(24, "dlib")


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))


def save(path: Path, colour: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 60), colour).save(path)
    return path


def test_a_deadly_picture_is_skipped_and_all_others_are_read(tmp_path: Path) -> None:
    for count, workers, apart in ((6, None, True), (WORTH_A_POOL, 2, False)):
        paths = [save(tmp_path / f"{n}.png", (n, n, n)) for n in range(count)]
        for at, colour in zip((0, 2, 5), DEADLY.values(), strict=True):
            save(paths[at], colour)
        loaded = load_chips(
            paths, spec=SPEC, detector=DeadlyDetector(), workers=workers, apart=apart
        )
        assert list(loaded.paths) == [path for at, path in enumerate(paths) if at not in (0, 2, 5)]
        reasons = {skip.path: skip.reason for skip in loaded.skipped}
        assert "died" in reasons[paths[0]]
        assert "MemoryError" in reasons[paths[2]]
        assert "RuntimeError" in reasons[paths[5]]
        assert loaded.chips[:, 12, 12, 0].tolist() == [int(p.stem) for p in loaded.paths]


def test_a_detector_that_cannot_work_is_no_fault_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "wrong.onnx").write_bytes(b"not a network")
    picture = save(tmp_path / "a.png", (9, 9, 9))
    with pytest.raises(InputError, match="not a YuNet model"):
        load_chips(
            [picture], spec=SPEC, detector=YuNetDetector(tmp_path / "wrong.onnx"), apart=True
        )


@pytest.mark.parametrize("fault", [*DEADLY, "the cache", "the embedding"])
def test_whatever_goes_wrong_at_a_site_its_answer_is_noise_and_its_log_says_why(
    tmp_path: Path,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """A worker that died told the server `internal`, and training stopped: somebody was there."""
    data = tmp_path / "data"
    save(data / "Ann" / "a.png", DEADLY.get(fault, (9, 9, 9)))
    monkeypatch.setattr("client.folder.DlibDetector", DeadlyDetector)
    federation = build(experiment, "r", tmp_path / "unused", gather(experiment)).federation
    part = PublicPart(federation.contract, federation.state, federation.public_inputs)
    policy = SitePolicy(("lenet",), 9.0, 1e-4, 9.0, 100, ("local",), 0, 0, (app_hash(),))

    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    def broken(_: object, chips: torch.Tensor) -> torch.Tensor:
        if len(chips):
            raise RuntimeError("out of memory")
        return torch.zeros(0, *part.inputs.shape[1:])

    if fault == "the cache":
        monkeypatch.setattr("client.folder.ChipCache.write", full)
    elif fault == "the embedding":
        monkeypatch.setattr("client.folder.Rows.of", broken)
    opened = open_folder(FolderConfig(data, tmp_path / "s", cache=tmp_path / "c"), policy)
    assert len(opened.persons(part)) == (fault == "the cache")
    assert_answers_with_noise(opened, part, federation.initial)
    words = {"kills": "died", "floods": "MemoryError", "breaks": "RuntimeError",
             "the cache": "the disk is full", "the embedding": "out of memory"}  # fmt: skip
    assert words[fault] in caplog.text
