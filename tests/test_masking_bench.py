"""The benchmark of secure aggregation runs both sides to a right sum and says what it compared."""

from __future__ import annotations

from simulations.bench.secagg import secagg


def test_a_small_round_of_both_is_timed_and_its_bytes_are_near_those_of_plain_floats() -> None:
    cases = {case.name: case for case in secagg(1, ((5, 40_000),))}
    assert set(cases) == {
        "5x40k/secaggplus",
        "5x40k/secaggplus-site",
        "5x40k/secaggplus-server",
        "5x40k/secaggplus-bytes",
        "5x40k/float32-bytes",
    }
    assert all(case.ours > 0 and case.peer > 0 for case in cases.values())
    assert 1.0 < cases["5x40k/float32-bytes"].ratio < 1.2
    assert cases["5x40k/secaggplus-bytes"].ratio < 1.0
