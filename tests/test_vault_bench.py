"""`veilface bench vault` measures what it says, at a size that a test can wait for."""

from __future__ import annotations

from pathlib import Path

from simulations.bench.vault import vault


def test_a_small_gallery_opens_and_is_compared(tmp_path: Path) -> None:
    (case,) = vault(2, templates=5000, folder=tmp_path)
    assert case.name == "open-5k/aes-gcm"
    assert case.ours > 0 and case.peer > 0
    assert list(tmp_path.iterdir()) == [], "nothing stays on the disk"
