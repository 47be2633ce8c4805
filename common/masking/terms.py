"""How many sites may be missing, how many may collude, and what follows: thresholds and graph.

n sites take part, at least m = `minimum` of them survive, so d = n - m may be missing, and c =
`colluders` may work with a hostile server; H = n - c are honest. A seed needs t = m shares, and a
set of survivors needs the signatures of m sites. With 2 d < n - c, and on a sparse graph with
degree at least c + 3 d + 1, a hostile server learns one sum at most, over at least m - c honest
sites, whatever it tells whom. The proof is in docs/decisions/0007-secure-aggregation.md, and
tests/test_masking_hostile_server.py attacks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import InputError

SPARSE_FROM: Final = 32
MOST_SITES: Final = 1024


@dataclass(frozen=True)
class Terms:
    """What was agreed for a run: the fewest survivors of a round, and the colluding sites borne.

    At least two honest sites must survive, or the sum would be one site's update: otherwise
    InputError.
    """

    minimum: int
    colluders: int

    def __post_init__(self) -> None:
        if not 0 <= self.colluders <= self.minimum - 2 <= MOST_SITES:
            raise InputError(
                f"of {self.minimum} survivors {self.colluders} may collude: too few are left",
                hint="a sum needs two honest sites or more",
            )

    @property
    def honest(self) -> int:
        """Return how many shares of noise protect every sum that can be learned: m - c."""
        return self.minimum - self.colluders

    def check(self, sites: int) -> None:
        """Raise InputError unless a round of so many sites is within what is proven."""
        missing = sites - self.minimum
        if not 0 <= missing <= MOST_SITES - self.minimum:
            raise InputError(
                f"{sites} sites take part, at least {self.minimum} must survive",
                hint=f"at most {MOST_SITES} sites",
            )
        if 2 * missing >= sites - self.colluders:
            raise InputError(
                f"{missing} of {sites} sites may be missing and {self.colluders} collude: a "
                "hostile server could tell them different stories",
                hint="fewer than half of the honest may be missing: raise the minimum of survivors",
            )

    def degree(self, sites: int) -> int:
        """Return with how many others each site shares a mask: all, or an even number of them."""
        self.check(sites)
        enough = self.colluders + 3 * (sites - self.minimum) + 1
        enough += enough % 2
        return enough if sites >= SPARSE_FROM and enough < sites - 1 else sites - 1

    def neighbours(self, sites: int, site: int) -> tuple[int, ...]:
        """Return the numbers, ascending, of those that share a mask with site number `site`.

        The nearest on a ring: Harary's graph, as in Bell et al. 2020 (eprint 2020/704), which stays
        connected without any degree - 1 of its vertices. They draw it at random, and have a small
        degree fail with a small probability if the missing are not chosen; here nobody's choice of
        the missing and the colluding, made with the graph in hand, can cut it.
        """
        degree = self.degree(sites)
        if degree == sites - 1:
            return tuple(other for other in range(sites) if other != site)
        steps = range(1, degree // 2 + 1)
        ring = {(site + sign * step) % sites for step in steps for sign in (-1, 1)}
        return tuple(sorted(ring))
