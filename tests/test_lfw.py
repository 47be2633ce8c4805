"""LFW View 2: the pairs are read strictly, a fold never chooses its own threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from common.lfw import LfwPair, best_threshold, lfw_result, read_pairs

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pair_lines() -> list[str]:
    lines = ["10\t300"]
    for fold in range(10):
        lines += [f"P{fold}_{n}\t1\t2" for n in range(300)]
        lines += [f"P{fold}_{n}\t1\tQ{fold}_{n}\t3" for n in range(300)]
    return lines


def write(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_pairs_are_read_in_order_with_their_folds(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, pair_lines()))
    assert len(pairs) == 6000
    assert pairs[0] == LfwPair("P0_0_0001", "P0_0_0002", mated=True, fold=0)
    assert pairs[300] == LfwPair("P0_0_0001", "Q0_0_0003", mated=False, fold=0)
    assert pairs[-1].fold == 9 and not pairs[-1].mated


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (1, "10", "line 1: not the head of View 2"),
        (1, "500", "line 1: not the head of View 2"),
        (2, "P0_0\t1\tQ\t2", "line 2: 'name n1 n2' expected"),
        (2, "P0_0\t1\t1", "line 2: 'name n1 n2' expected"),
        (4, "P0_0\t1\tx", "line 4: image numbers start at 1"),
        (4, "P0_0\t0\t1", "line 4: image numbers start at 1"),
        (302, "P0_0\t1\t2", "line 302: 'name1 n1 name2 n2' expected"),
        (302, "P0_0\t1\tP0_0\t2", "line 302: 'name1 n1 name2 n2' expected"),
        (6001, "", "line 6001: 'name1 n1 name2 n2' expected"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: int, text: str, words: str) -> None:
    lines = pair_lines()
    lines[line - 1] = text
    with pytest.raises(InputError, match=words):
        read_pairs(write(tmp_path, lines))


def test_a_cut_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 6000 lines, View 2 has 6001"):
        read_pairs(write(tmp_path, pair_lines()[:-1]))
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "nothing.txt")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(binary)


def test_the_real_pairs_are_read() -> None:
    path = SHARED / "data" / "lfw" / "pairs.txt"
    if not path.exists():
        pytest.skip("LFW is not there")
    pairs = read_pairs(path)
    assert sum(pair.mated for pair in pairs) == 3000
    assert pairs[0] == LfwPair("Abel_Pacheco_0001", "Abel_Pacheco_0004", mated=True, fold=0)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30),
)
def test_best_threshold_beats_every_other(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 4 for score, _ in rows])
    mated = np.array([kind for _, kind in rows])
    chosen = np.mean((scores >= best_threshold(scores, mated)) == mated)
    assert all(np.mean((scores >= t) == mated) <= chosen for t in [*scores, np.inf])


def test_separated_kinds_are_cut_in_the_middle_of_the_gap() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.7])
    assert best_threshold(scores, scores > 0.5) == pytest.approx(0.4)


def test_each_fold_is_judged_by_the_other_nine(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, pair_lines()))
    # Fold 0 lies two units higher than the rest: its own threshold would be perfect, that of the
    # other nine accepts all of it.
    scores = np.array([(1.0 if p.mated else 0.0) + (2.0 if p.fold == 0 else 0.0) for p in pairs])
    result = lfw_result(scores, pairs)
    assert result.accuracy == pytest.approx((0.5 + 9 * 1.0) / 10)
    assert result.accuracy_std == pytest.approx(np.std([0.5] + [1.0] * 9, ddof=1))


def test_a_perfect_and_a_blind_model(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, pair_lines()))
    perfect = lfw_result(np.array([float(p.mated) for p in pairs]), pairs).to_json()
    assert perfect == {
        "accuracy": 1.0,
        "accuracy_std": 0.0,
        "eer": 0.0,
        "tmr_at_fmr_1e-3": 1.0,
        "threshold": 0.5,
    }
    blind = lfw_result(np.zeros(len(pairs)), pairs)
    assert (blind.accuracy, blind.eer, blind.tmr_at_fmr_1e3) == (0.5, 0.5, 0.0)
