"""`evaluate` and `export` end to end: results on stdout alone, every fault in one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from common.backbones.registry import create
from common.backbones.split import rejoin, split
from common.backbones.weights import model_id, save_model
from common.config import to_json
from common.contract import Contract, Privacy
from common.errors import InputError, WeightsError
from common.intervals import verification
from common.metrics import unit_norm
from server.evaluate_cli import evaluate
from server.export_cli import export
from tests.test_backbones import public

Run = Callable[..., Any]
PEOPLE, EACH = 20, 4


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command on aligned chips with LeNet, and return its JSON object."""

    def of(*options: object, as_json: bool = True) -> Any:
        base = ["--aligned", "--cache", tmp_path / "cache"]
        if "--backbone" not in options and "--model" not in options:
            base += ["--backbone", "lenet"]
        arguments = [str(option) for option in (*base, *options)]
        evaluate.main(arguments + ["--json"] * as_json, standalone_mode=False)
        printed = capsys.readouterr()
        return json.loads(printed.out) if as_json else printed.out

    return of


def save(path: Path, pixels: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def draw(folder: Path, people: int = PEOPLE, each: int = EACH) -> Path:
    """A folder of persons, each a random picture that changes a little between images."""
    rng = np.random.default_rng(0)
    size = create("lenet").chip.size
    for person in range(people):
        picture = rng.uniform(0, 255, (size, size, 3))
        for image in range(1, each + 1):
            noisy = picture + rng.normal(0, 60, picture.shape)
            save(folder / f"p{person:02d}" / f"p{person:02d}_{image:04d}.png", noisy)
    return folder


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("persons"))


def chips_of(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])


def embeddings_of(network: torch.nn.Module, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        pixels = create("lenet").preprocess(torch.from_numpy(chips))
        rows: NDArray[np.float32] = network(pixels).numpy()
    return rows


def test_a_folder_gets_the_rates_of_all_its_pairs(run: Run, persons: Path) -> None:
    found = run("--data", persons)
    labels = np.repeat(np.arange(PEOPLE), EACH)
    expected = verification(embeddings_of(create("lenet"), chips_of(persons)), labels).to_json()
    for key in ("eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3"):
        assert found[key] == pytest.approx(expected[key], abs=1e-6)
    assert set(found["ci"]) == {"eer", "tmr_at_fmr_1e-2", "tmr_at_fmr_1e-3"}
    assert (found["mated"], found["non_mated"]) == (120, 3040)
    assert (found["images"], found["persons"], found["skipped"]) == (80, 20, {})


def test_a_shift_changes_the_images_and_repeats(run: Run, persons: Path) -> None:
    plain, first, second = (run("--data", persons, "--shift", s) for s in ("none", "cctv", "cctv"))
    assert first == second != plain


def test_unusable_images_are_counted_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    folder = draw(tmp_path / "few", people=3)
    (folder / "p00" / "broken.png").write_bytes(b"no image")
    (folder / "p01" / "note.txt").write_text("hello", encoding="utf-8")
    found = run("--data", folder)
    assert found["images"] == 12 and sum(found["skipped"].values()) == 2
    assert any("cannot show an FMR of 0.001" in warning for warning in found["warnings"])


def test_people_without_a_second_image_cannot_be_verified(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mated pairs"):
        run("--data", draw(tmp_path / "singles", people=5, each=1))
    with pytest.raises(InputError, match="at least 2 are needed"):
        run("--data", draw(tmp_path / "one", people=1))


def test_a_folder_without_a_face_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw(tmp_path / "noise", people=2, each=2)
    options = ["--data", folder, "--cache", tmp_path / "cache", "--backbone", "lenet"]
    with pytest.raises(InputError, match=r"no image in .* can be used, the first because: no face"):
        evaluate.main([str(option) for option in options], standalone_mode=False)
    assert capsys.readouterr().out == ""


def lfw_root(folder: Path) -> Path:
    """An LFW root of few images: 6,000 pairs of the persons of `draw`."""
    draw(folder / "images", people=40, each=3)
    lines, rng = ["10\t300"], np.random.default_rng(1)
    for _ in range(10):
        for _ in range(300):
            first, second = rng.choice(3, 2, replace=False) + 1
            lines.append(f"p{rng.integers(40):02d}\t{first}\t{second}")
        for _ in range(300):
            one, other = rng.choice(40, 2, replace=False)
            a, b = rng.integers(1, 4, 2)
            lines.append(f"p{one:02d}\t{a}\tp{other:02d}\t{b}")
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_lfw_counts_every_pair(run: Run, tmp_path: Path) -> None:
    root = lfw_root(tmp_path / "lfw")
    found = run("--data", root, "--protocol", "lfw")
    assert {"accuracy", "accuracy_std", "eer", "tmr_at_fmr_1e-3", "threshold"} < set(found)
    assert 0.6 < found["accuracy"] <= 1 and found["images"] == 120
    text = run("--data", root, "--protocol", "lfw", as_json=False)
    assert "accuracy" in text and f"{found['accuracy']:.4f}" in text
    (root / "images" / "p07" / "p07_0002.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="p07_0002"):
        run("--data", root, "--protocol", "lfw")
    (root / "images" / "p07" / "p07_0002.png").unlink()
    with pytest.raises(InputError, match="lacks 1 of the 120 images"):
        run("--data", root, "--protocol", "lfw")


def group_csv(folder: Path, people: int) -> Path:
    rng, rows = np.random.default_rng(2), ["file,race,gender,age"]
    size = create("lenet").chip.size
    for person in range(people):
        save(folder / "images" / f"{person}.png", rng.uniform(0, 255, (size, size, 3)))
        race, gender = ("A", "B")[person % 2], ("Female", "Male")[person // 2 % 2]
        rows.append(f"{person}.png,{race},{gender},20-29")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "labels.csv"


def test_groups_are_judged_at_the_threshold_of_the_data(
    run: Run, persons: Path, tmp_path: Path
) -> None:
    csv = group_csv(tmp_path / "groups", 24)
    found = run("--data", persons, "--groups", csv)
    groups = found["groups"]
    assert groups["threshold"] == found["threshold_at_fmr_1e-3"]
    assert sorted(row["group"] for row in groups["groups"]) == [
        *("A, Female", "A, Male", "B, Female", "B, Male")
    ]
    network, chips = create("lenet"), chips_of(csv.parent)
    unit = unit_norm(embeddings_of(network, chips))
    names = [path.stem for path in sorted(csv.parent.rglob("*.png"))]
    for row in groups["groups"]:
        race, gender = row["group"].split(", ")
        mine = [
            int(n) % 2 == "AB".index(race) and int(n) // 2 % 2 == (gender == "Male") for n in names
        ]
        members = unit[mine]
        accepted = (members @ members.T)[np.triu_indices(len(members), 1)] >= groups["threshold"]
        assert row["false_matches"] == accepted.sum() and row["pairs"] == len(accepted)
    assert groups["worst"] == groups["groups"][0]["group"]
    assert "FMR by group" in run("--data", persons, "--groups", csv, as_json=False)


def test_groups_alone_set_their_own_threshold(run: Run, tmp_path: Path) -> None:
    csv = group_csv(tmp_path / "groups", 80)
    for data in (csv.parent, csv.parent / "images"):
        found = run("--data", data, "--groups", csv)
        assert found["groups"]["threshold"] == found["threshold_at_fmr_1e-3"]
        assert "eer" not in found and found["images"] == 80


def test_a_listed_image_that_is_not_there_is_named(run: Run, tmp_path: Path, persons: Path) -> None:
    csv = group_csv(tmp_path / "groups", 8)
    (csv.parent / "images" / "5.png").unlink()
    with pytest.raises(InputError, match=r"lists 5\.png, which is not in"):
        run("--data", persons, "--groups", csv)


def trained(path: Path, train_set: Any, *, seed: int = 0) -> torch.nn.Module:
    """Save a model as a run does, moved away from its start; return the whole network."""
    backbone = create("lenet", seed=seed)
    parts = split(backbone, train_set, public(backbone))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parts.trainable.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    contract = Contract(
        run_id="r7",
        backbone="lenet",
        train_set=train_set,
        frozen_id=model_id(parts.frozen.state_dict()),
        images_per_person=4,
        public_negatives=10,
        rounds=2,
        local_steps=1,
        local_learning_rate=1.0,
        local_momentum=0.0,
        privacy=Privacy(1.0, 1e-4, 2.0, 0.5, 1.0, 100.0),
    )
    state, meta = dict(parts.trainable.state_dict()), {"contract": to_json(contract)}
    save_model(path, backbone="lenet", train_set=train_set, state=state, meta=meta)
    return rejoin(parts)


@pytest.mark.parametrize("train_set", ["adapter", "tail", "full"])
def test_the_model_of_a_run_is_put_together_again(
    run: Run, persons: Path, tmp_path: Path, train_set: str
) -> None:
    network = trained(tmp_path / "model.safetensors", train_set)
    found = run("--data", persons, "--model", tmp_path / "model.safetensors")
    labels = np.repeat(np.arange(PEOPLE), EACH)
    expected = verification(embeddings_of(network, chips_of(persons)), labels, ci=False)
    assert found["eer"] == pytest.approx(expected.eer, abs=1e-6)
    assert found["eer"] != run("--data", persons)["eer"]
    assert found["model"] == f"lenet {train_set} of r7"


def test_a_model_on_another_frozen_part_is_refused(run: Run, persons: Path, tmp_path: Path) -> None:
    trained(tmp_path / "model.safetensors", "tail", seed=5)
    with pytest.raises(WeightsError, match="trained on other lenet weights"):
        run("--data", persons, "--model", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backbone", "senet"], "unknown backbone 'senet'"),
        (["--detector", "yunet"], "go together"),
        (["--yunet", "FILE"], "go together"),
        (["--backbone", "lenet", "--model", "FILE"], "leave out --backbone"),
        (["--model", "FILE"], "is not a readable model"),
        (["--backbone", "lenet", "--weights", "FILE"], "not a readable weights file"),
        (["--groups", "FILE"], "line 1|lists no images|cannot be read"),
        (["--protocol", "lfw"], "LFW pairs cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line_of_what_to_do(
    run: Run, persons: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"neither a model nor a table\n")
    with pytest.raises(InputError, match=words) as caught:
        run("--data", persons, *[str(file) if o == "FILE" else o for o in options])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_an_exported_model_gives_the_same_embeddings(
    tmp_path: Path, persons: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = trained(tmp_path / "model.safetensors", "tail")
    out = tmp_path / "model.onnx"
    options = ["--model", tmp_path / "model.safetensors", "--out", out, "--json"]
    export.main([str(option) for option in options], standalone_mode=False)
    facts = json.loads(capfd.readouterr().out)
    chips = chips_of(persons)[:5]
    assert facts["path"] == str(out) and facts["input"][1:] == list(chips.shape[1:])
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"chips": chips})
    assert np.abs(rows - embeddings_of(network, chips)).max() < 1e-5
    with pytest.raises(InputError, match="is not a folder"):
        export.main(["--out", str(tmp_path / "none" / "m.onnx")], standalone_mode=False)
