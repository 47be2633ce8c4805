"""Masked rounds through the real ClientApp over a grid on which anyone can be killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.common.constant import PARTITION_ID_KEY
from numpy.typing import NDArray

from client.app import OpenSite, make_app
from client.gradients import choose_engine
from client.masked_site import Identity, MaskedSite
from client.site import Site
from client.trainer import RoundKeys, train_round
from common.contract import Contract, Masking
from common.layout import Layout
from common.parameters import flatten, layout_of
from common.persons import Persons
from common.plan import PrivacyPlan
from common.roster import RosterStore
from server.checkpoint import Checkpoint, RoundRecord
from server.masked_rounds import Parties
from server.optimizer import OptimizerConfig
from server.rounds import Federation, RoundFailed, run_rounds
from simulations.inprocess import InProcessGrid
from tests.masking_rig import key, names_of, roster, signing_key
from tests.test_site import CONTRACT, Head

RUN = "run"
OPERATOR = signing_key("the operator")


class Killed(BaseException):
    """Stands for a kill -9: nothing that handles errors may catch it."""


@dataclass(frozen=True)
class Kill:
    """A site that dies when it gets a question of a kind, before or after it has answered.

    It answers nothing from then on, until the server is started again.
    """

    site: int
    kind: str
    answered: bool


def contract(minimum: int, colluders: int = 0, rounds: int = 2) -> Contract:
    """A contract without noise, whose steps take all images, so that sums can be compared.

    A site's round key is secret all the same: its masks come from it, so that one which was lost
    in a crash shows.
    """
    dimension = layout_of(Head()).dimension
    return dataclasses.replace(
        CONTRACT,
        run_id=RUN,
        rounds=rounds,
        public_negatives=len(public_inputs()),
        privacy=dataclasses.replace(CONTRACT.privacy, epsilon=None, noise_multiplier=0.0),
        masking=Masking(minimum, colluders, dimension, 0.0),
    )


def persons_of(index: int) -> Persons:
    """Four persons, other ones at each site."""
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(index))
    return Persons.group(rows, [p for p in range(4) for _ in range(3)], list(range(4)))


@lru_cache(maxsize=1)
def start() -> NDArray[np.float32]:
    torch.manual_seed(0)
    return flatten(Head()).numpy()


@lru_cache(maxsize=1)
def public_inputs() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(99))


PLAN = PrivacyPlan(1.0, CONTRACT.privacy.delta, allow_not_private=True)


def anything(contract: Contract) -> None:
    """Every contract is agreed to."""


@dataclass
class Rig:
    """Sites on a disk, with fresh processes whenever the server is started again."""

    folder: Path
    count: int
    agreed: Contract
    document: bytes = b""
    consent: Callable[[Contract], None] = anything
    on_reply: Callable[[Message], None] = lambda reply: None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.document = self.document or roster(names_of(self.count)).signed(OPERATOR)

    def open_site(self) -> Callable[[Context], OpenSite]:
        """Open sites as they are after a restart: nothing but their disks."""
        opened: dict[int, OpenSite] = {}

        def of(context: Context) -> OpenSite:
            index = int(context.node_config[PARTITION_ID_KEY])
            if index not in opened:
                name = names_of(self.count)[index]
                state = self.folder / name
                site = Site.open(state, PLAN)
                rosters = RosterStore(state / "roster", OPERATOR.public_key())
                identity = Identity(name, signing_key(name), rosters)
                opened[index] = OpenSite(
                    site=site,
                    public_directory=state / "public",
                    model=lambda part: Head(),
                    persons=lambda part: persons_of(index),
                    consent=self.consent,
                    masking=MaskedSite(identity, site),
                )
            return opened[index]

        return of

    def run(self, *kills: Kill, server: Callable[[Message], None] = lambda m: None) -> Checkpoint:
        """Start the server and the sites, and run to the end or to what stops it."""
        grid = KillingGrid(self, kills, server)
        return run_rounds(
            grid,
            Federation(
                contract=self.agreed,
                layout=Layout(("layer.weight",), ((4, 6),)),
                state={},
                public_inputs=public_inputs(),
                initial=start(),
                optimizer=OptimizerConfig("sgd", 1.0, momentum=0.0),
                aggregator="mean",
                minimum_sites=self.agreed.masking.minimum if self.agreed.masking else 1,
                timeout=0.0,
                weights={},
            ),
            self.folder / "checkpoint.safetensors",
            lambda round_, parameters: {},
            Quiet(),
            self.parties,
        )

    @property
    def parties(self) -> Parties:
        names = names_of(self.count)
        return Parties(lambda node: names[node - 1], lambda: self.document, OPERATOR.public_key())

    def finish(self, *kills: Kill) -> Checkpoint:
        """Run, and start everything again, all alive, until the run is through."""
        try:
            return self.run(*kills)
        except (RoundFailed, Killed):
            pass
        for _ in range(4):
            try:
                return self.run()
            except RoundFailed:
                continue
        raise AssertionError("the run never ends")


class Quiet:
    def round_started(self, round_: int, nodes: Collection[int]) -> None: ...

    def round_finished(self, record: RoundRecord) -> None: ...


class KillingGrid(InProcessGrid):
    """Delivers to the sites that live; `server` may raise Killed at any message."""

    def __init__(
        self, rig: Rig, kills: tuple[Kill, ...], server: Callable[[Message], None]
    ) -> None:
        super().__init__(make_app(rig.open_site()), rig.count, rig.on_reply)
        self._kills, self._server = kills, server
        self._dead: set[int] = set()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return list(self._answers(messages))

    def _answers(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self._server(message)
            if node in self._dead:
                continue
            dies = [k for k in self._kills if k.site == node - 1 and k.kind == kind]
            if dies:
                self._dead.add(node)
                if not dies[0].answered:
                    continue
            replies: dict[str, Message] = {}
            try:
                name = self._deliver(message, replies)
            except Killed:
                self._dead.add(node)
                continue
            if not dies:
                yield replies[name]


def plain(parameters: NDArray[np.float32], index: int, agreed: Contract) -> NDArray[np.float64]:
    """Return one site's noiseless delta at `parameters`, by the loop of local trust."""
    bare = dataclasses.replace(agreed, masking=None)
    model = Head()
    keys = RoundKeys.derive(key("round"), private=False)
    engine = choose_engine(model, agreed.train_set)
    found = train_round(model, parameters, persons_of(index), public_inputs(), bare, keys, engine)
    return found.astype(np.float64)


def check_sums(done: Checkpoint, rig: Rig) -> tuple[int, ...]:
    """Return how many sites are in each round, after checking that the model is exactly that.

    Replays the run: of all sets of as many sites as were accepted, one gives the model that came.
    """
    possible: list[NDArray[np.float64]] = [start().astype(np.float64)]
    for record in done.history:
        following = []
        for parameters in possible:
            each = [plain(parameters.astype(np.float32), i, rig.agreed) for i in range(rig.count)]
            if not record.accepted:
                following.append(parameters)
                continue
            for chosen in combinations(each, record.accepted):
                following.append(parameters + np.mean(chosen, axis=0))
        possible = following
    found = [p for p in possible if np.abs(p - done.state.parameters).max() < 2e-4]
    assert len(found) == 1, "the model is the sum of no set of sites"
    return tuple(record.accepted for record in done.history)
