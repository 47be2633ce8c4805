"""Enrol, verify and identify people with the templates of a vault.

Data flow one way: image -> portrait (face, chip, quality) -> checks -> embedding -> the vault's
secret space -> score. A score alone decides nothing: without a calibrated threshold every decision
is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.calibration import Purpose, Threshold
from client.cohort import Scored
from client.enrolment import Rights, must_look_alike, without_repeats
from client.picture import Picture
from client.population import Population
from client.quality import Portrait, QualityLimits, faults, portrait
from client.vault import Gallery, Receipt, Vault
from client.vault.naming import check_new
from common.backbones.weights import model_id
from common.config import from_json, to_json
from common.decoding import decode_image
from common.detection import Detector
from common.embedding import frozen_rows
from common.errors import ImageError, InputError, Outdated, Refused
from common.network import Network
from common.scoring import LEAST_PERSONS, PLAIN, Choice

# Looks at a chip before it is embedded and raises Refused: the place for a defence against printed
# or replayed faces and adversarial patterns. None is built in yet.
ChipCheck = Callable[[NDArray[np.uint8]], None]
_MOST_CANDIDATES: Final = 100
_ALL_RIGHTS: Final = Rights()


@dataclass(frozen=True)
class Enrolment:
    """What an enrolment did: the pseudonym, how many templates it added, and what to know of it."""

    pseudonym: str
    templates: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """A verification: accepted if `score`, a cosine, reaches the calibrated `threshold`.

    `warnings` say what to know of the picture.
    """

    pseudonym: str
    accepted: bool
    score: float
    threshold: float
    fmr: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One person of the gallery and the best score of their templates."""

    pseudonym: str
    score: float


@dataclass(frozen=True)
class Identification:
    """The best candidates, best first; `accepted` is the first if it reaches the threshold."""

    accepted: Candidate | None
    candidates: tuple[Candidate, ...]
    threshold: float
    fpir: float
    warnings: tuple[str, ...]


class Recogniser:
    """Recognises with one vault and its network; safe to call from threads.

    While a vault moves to a new network, `previous` is the old one: it answers for who has not
    moved yet, with its own threshold. Templates are never compared across networks. Raises Refused
    where the network is not the one whose templates the vault holds.
    """

    def __init__(
        self,
        vault: Vault,
        network: Network,
        detector: Detector,
        *,
        previous: Network | None = None,
        limits: QualityLimits | None = None,
        checks: Sequence[ChipCheck] = (),
    ) -> None:
        self.vault = vault
        self.model_id = network_id(network)
        self.detector = detector
        self.chip = network.backbone.chip
        self._networks = {self.model_id: network}
        if previous is not None:
            self._networks[network_id(previous)] = previous
        self._limits, self._checks = limits or QualityLimits(), tuple(checks)
        self._lock = Lock()
        self._open: dict[str, _Open] = {}
        if vault.info.model_id != self.model_id:
            raise Refused(
                f"the vault holds templates of model {vault.info.model_id[:12]}, "
                f"this network is {self.model_id[:12]}",
                hint="open it with its own model, or migrate the vault",
            )

    def enrol(
        self,
        subject: str,
        pictures: Sequence[Picture],
        *,
        force: bool = False,
        rights: Rights = _ALL_RIGHTS,
    ) -> Enrolment:
        """Add a person, or pictures of one who is there; durable when it returns.

        Unless `force`, every picture must pass the quality limits, and look like the person if
        they are there; a bad one enrols none of them. A picture that is there already is not added
        again. Warns who may know of it if someone else in the vault looks like this person.
        """
        if not pictures:
            raise InputError("no picture to enrol", hint="give at least one image")
        known = self.vault.knows(subject)
        rights.check(known=known)
        if not known:
            check_new(subject)
        found = [self._portrait(picture, self.model_id) for picture in pictures]
        for picture, seen in zip(pictures, found, strict=True):
            wrong = faults(seen.quality, self._limits)
            if wrong and not force:
                raise ImageError(
                    f"{picture.name}: {'; '.join(wrong)}", hint="take another picture, or force it"
                )
        chips = np.stack([seen.chip for seen in found])
        embeddings = self.embed(chips)
        rows = self.vault.protect(embeddings)
        if known and not force:
            probes = self._probes(embeddings, self.model_id)
            self._must_look_alike(subject, pictures, probes)
        held = self._own(subject) if known else rows[:0]
        new, warnings = without_repeats(pictures, rows, held)
        alike, pseudonym = self._duplicates(subject, embeddings), self.vault.pseudonym(subject)
        if new:
            kept = chips[new] if self.vault.info.keep_chips else None
            self.vault.enrol(
                subject, embeddings[new], model_id=self.model_id, chips=kept, known=known
            )
        if alike:
            self.vault.record("enrol", pseudonym, "duplicate")
        return Enrolment(pseudonym, len(new), warnings + (alike if rights.identify else ()))

    def verify(self, subject: str, picture: Picture) -> Decision:
        """Is this picture of that person? Needs a threshold for verification."""
        model, templates = self._templates(subject)
        threshold, notes = self._in_use("verify", model)
        seen = self._portrait(picture, model)
        probe = self._probe(seen, model)
        score = float(self._compared(subject, model, probe, templates, threshold.scoring)[0])
        accepted, pseudonym = score >= threshold.value, self.vault.pseudonym(subject)
        self.vault.record("verify", pseudonym, "accepted" if accepted else "rejected")
        return Decision(
            pseudonym,
            accepted,
            score,
            threshold.value,
            threshold.target,
            (*_crowded(seen), *notes),
        )

    def identify(self, picture: Picture, candidates: int = 5) -> Identification:
        """Who of the vault is this, if anyone? Needs a threshold for identification."""
        if not 1 <= candidates <= _MOST_CANDIDATES:
            raise InputError(f"ask for 1 to {_MOST_CANDIDATES} candidates, not {candidates}")
        threshold, notes = self._in_use("identify", self.model_id)
        seen = self._portrait(picture, self.model_id)
        probe = self._probe(seen, self.model_id)
        ranked = self._ranked(probe, candidates, self.model_id, threshold.scoring)
        persons, warnings = self._persons(self.model_id), list[str]()
        for model in list(self._networks)[1:]:
            older = self._older(picture, candidates, model, threshold.value)
            persons += self._persons(model)
            if older is None:
                warnings.append("who has not moved yet was not looked for: no threshold")
            else:
                ranked = tuple(sorted((*ranked, *older), key=lambda c: -c.score)[:candidates])
        best = ranked[0] if ranked and ranked[0].score >= threshold.value else None
        self.vault.record(
            "identify", best.pseudonym if best else None, "accepted" if best else "rejected"
        )
        warnings += (*_crowded(seen), *notes, *_outgrown(threshold, persons))
        return Identification(best, ranked, threshold.value, threshold.target, tuple(warnings))

    def embed(self, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Chips [N, S, S, 3] that pass every check -> unit-norm embeddings [N, D]."""
        return self._embedded(chips, self.model_id)

    @property
    def probe_order(self) -> NDArray[np.int64] | None:
        """The places that bring an embedding of the current model to the probe's side, if any."""
        return self._networks[self.model_id].probe_order

    @staticmethod
    def embedding_of(network: Network, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Chips [N, S, S, 3] -> a network's unit-norm embeddings [N, D], without any check."""
        faces = torch.from_numpy(chips)
        rows = frozen_rows(network.backbone, network.module, faces, alike=False)
        embeddings: NDArray[np.float32] = rows.numpy()
        return embeddings

    def threshold(self, purpose: Purpose, model: str | None = None) -> Threshold:
        """The calibrated threshold of a model (None: the current one); none: Refused."""
        stored = self.vault.recall(_setting(purpose, model or self.model_id))
        if stored is None:
            raise Refused(
                f"no threshold to {purpose} with: there is no default",
                hint="run 'veilface template calibrate' on your own or on public pictures first",
            )
        return from_json(Threshold, stored.decode(), where="stored threshold")

    def use(self, threshold: Threshold) -> None:
        """Keep a calibrated threshold in the vault; of another model: Refused."""
        if threshold.model_id != self.model_id:
            raise Refused("the threshold was calibrated with another model")
        name = _setting(threshold.purpose, self.model_id)
        self.vault.remember(name, to_json(threshold).encode())

    def _embedded(self, chips: NDArray[np.uint8], model: str) -> NDArray[np.float32]:
        for chip in chips:
            for check in self._checks:
                check(chip)
        return self.embedding_of(self._networks[model], chips)

    def _portrait(self, picture: Picture, model: str) -> Portrait:
        image = decode_image(picture.data, name=picture.name)
        spec = self._networks[model].backbone.chip
        return portrait(image, spec, self.detector, name=picture.name)

    def _probe(self, seen: Portrait, model: str) -> NDArray[np.float32]:
        """A face's embedding by a model, in the vault's space, [1, D]."""
        return self._probes(self._embedded(seen.chip[None], model), model)

    def _probes(self, embeddings: NDArray[np.float32], model: str) -> NDArray[np.float32]:
        """Embeddings [N, D] of a model on the probe's side, in the vault's space."""
        return self.vault.protect(self._networks[model].probes(embeddings), model)

    def _templates(self, subject: str) -> tuple[str, NDArray[np.float32]]:
        """A subject's templates [n, D] and their model: the current one if there are any of it."""
        for model in list(self._networks)[1:]:
            try:
                return self.model_id, self.vault.templates(subject, self.model_id)
            except Refused:  # not moved yet
                return model, self.vault.templates(subject, model)
        return self.model_id, self.vault.templates(subject, self.model_id)

    def _older(
        self, picture: Picture, wanted: int, model: str, threshold: float
    ) -> tuple[Candidate, ...] | None:
        """Candidates among who has not moved yet; None without a threshold for the old model.

        Their scores are moved so that the old threshold falls on the new one.
        """
        if self.vault.recall(_setting("identify", model)) is None:
            return None
        older, _ = self._in_use("identify", model)
        ahead = threshold - older.value
        probe = self._probe(self._portrait(picture, model), model)
        ranked = self._ranked(probe, wanted, model, older.scoring)
        return tuple(Candidate(one.pseudonym, one.score + ahead) for one in ranked)

    def _in_use(self, purpose: Purpose, model: str) -> tuple[Threshold, tuple[str, ...]]:
        """A model's threshold as it holds for the vault of today, and what to know of it."""
        threshold = self.threshold(purpose, model)
        if threshold.scoring.plain or threshold.plain is None:
            return threshold, ()
        persons = len(self._opened(model).population.vectors)
        if persons > LEAST_PERSONS:  # the one who is claimed does not count
            return threshold, _changed(threshold, persons)
        note = "the vault holds too few persons by now to take anything off a score: plain cosine"
        return dataclasses.replace(threshold, scoring=PLAIN, value=threshold.plain), (note,)

    def population(self, leave_out: frozenset[str] = frozenset()) -> Population:
        """The vault's persons of the current model, as scores use them, but for some pseudonyms."""
        return Population.of(self._opened(self.model_id).gallery, leave_out)

    def still_current(self) -> None:
        """Raise Outdated once the vault has another key, file or network than this was made for.

        Forgets galleries of before: who was erased elsewhere is not kept until the next question.
        """
        if self.vault.model_id != self.model_id:
            raise Outdated("the vault was moved to another network", hint="start with it again")
        with self._lock:
            now = self.vault.generation
            self._open = {key: one for key, one in self._open.items() if one.generation == now}

    def erase(self, subject: str) -> Receipt:
        """Erase a subject from the vault, and from what is open in memory and rests on them."""
        receipt = self.vault.erase(subject)
        with self._lock:
            self._open.clear()  # opened again, without them, when next needed
        return receipt

    def _persons(self, model: str) -> int:
        return len(self._opened(model).gallery.names)

    def _opened(self, model: str) -> _Open:
        """A model's gallery, opened again when the vault has changed."""
        with self._lock:
            generation = self.vault.generation
            if model not in self._open or self._open[model].generation != generation:
                gallery = self.vault.gallery(model)
                dim = self._networks[model].dim  # an empty gallery does not know it yet
                gallery = dataclasses.replace(gallery, vectors=gallery.vectors.reshape(-1, dim))
                self._open[model] = _Open(generation, gallery, self.vault.info.eight_bit)
            return self._open[model]

    def _scored(self, model: str, scoring: Choice) -> Scored:
        opened = self._opened(model)
        with self._lock:
            return opened.scored(scoring)

    def _compared(
        self,
        subject: str,
        model: str,
        probes: NDArray[np.float32],
        templates: NDArray[np.float32],
        scoring: Choice,
    ) -> NDArray[np.float64]:
        """The best score of each probe [N, D] with a subject's templates [n, D] of a model, [N]."""
        if scoring.plain:  # needs nobody else's templates
            cosines: NDArray[np.float64] = (probes @ templates.T).max(axis=1).astype(np.float64)
            return cosines
        scored, pseudonym = self._scored(model, scoring), self.vault.pseudonym(subject)
        return np.array([scored.score(probe[None], pseudonym) for probe in probes])

    def _ranked(
        self, probe: NDArray[np.float32], wanted: int, model: str, scoring: Choice
    ) -> tuple[Candidate, ...]:
        """The best persons for one probe [1, D]."""
        ranked = self._scored(model, scoring).ranked(probe, wanted)
        return tuple(Candidate(pseudonym, score) for pseudonym, score in ranked)

    def _must_look_alike(
        self, subject: str, pictures: Sequence[Picture], probes: NDArray[np.float32]
    ) -> None:
        """Refuse pictures, `probes` [N, D], of someone else, by the model that has the person."""
        model, held = self._templates(subject)
        try:
            threshold, _ = self._in_use("verify", model)
        except Refused as error:
            raise Refused(
                "this person is enrolled, and no threshold says whether these pictures are of them",
                hint="run 'veilface template calibrate' first; or force it, with the vault's key",
            ) from error
        if model != self.model_id:  # who has not moved yet
            probes = np.concatenate(
                [self._probe(self._portrait(each, model), model) for each in pictures]
            )
        try:
            scores = self._compared(subject, model, probes, held, threshold.scoring)
            must_look_alike(pictures, scores, threshold.value)
        except ImageError:
            self.vault.record("enrol", self.vault.pseudonym(subject), "rejected")
            raise

    def _own(self, subject: str) -> NDArray[np.float32]:
        """A subject's templates [n, D] of the current model; n is 0 for who has not moved yet."""
        try:
            return self.vault.templates(subject, self.model_id)
        except Refused:
            dim = self._networks[self.model_id].dim
            return np.empty((0, dim), dtype=np.float32)

    def _duplicates(self, subject: str, embeddings: NDArray[np.float32]) -> tuple[str, ...]:
        """Who else of the vault scores above the verification threshold, if there is one."""
        if self.vault.recall(_setting("verify", self.model_id)) is None:
            return ()
        threshold, _ = self._in_use("verify", self.model_id)
        own = self.vault.pseudonym(subject)
        alike = {
            other.pseudonym
            for probe in self._probes(embeddings, self.model_id)
            for other in self._ranked(probe[None], 2, self.model_id, threshold.scoring)
            if other.score >= threshold.value and other.pseudonym != own
        }
        return tuple(f"looks like {name}, who is enrolled already" for name in sorted(alike))


class _Open:
    """A gallery in memory, and what is made of it when first asked for."""

    def __init__(self, generation: int, gallery: Gallery, eight_bit: bool) -> None:
        self.generation, self.gallery, self._eight_bit = generation, gallery, eight_bit
        self._by_choice: dict[Choice, Scored] = {}

    @cached_property
    def population(self) -> Population:
        return Population.of(self.gallery)

    def scored(self, scoring: Choice) -> Scored:
        if scoring not in self._by_choice:
            people = Population.nobody(self.gallery) if scoring.plain else self.population
            made = Scored(self.gallery, people, scoring, eight_bit=self._eight_bit)
            self._by_choice[scoring] = made
        return self._by_choice[scoring]


def network_id(network: Network) -> str:
    """The digest that names a network's embeddings, 64 hex digits."""
    return model_id(dict(network.module.state_dict()))


def _crowded(seen: Portrait) -> tuple[str, ...]:
    if seen.quality.faces <= 1:
        return ()
    return (
        f"the picture shows {seen.quality.faces} faces: only the one nearest to its centre was "
        "looked at",
    )


def _changed(threshold: Threshold, persons: int) -> tuple[str, ...]:
    """The nearest of many more persons, or of far fewer, are another crowd than was calibrated."""
    if threshold.population / 2 <= persons <= 2 * threshold.population:
        return ()
    return ("the vault has grown or shrunk by half since it was calibrated: calibrate again",)


def _outgrown(threshold: Threshold, persons: int) -> tuple[str, ...]:
    if persons <= threshold.gallery:
        return ()
    return (
        f"the threshold was calibrated for {threshold.gallery} persons and the vault has "
        f"{persons}: strangers are accepted more often than {threshold.target:g}; calibrate again",
    )


def _setting(purpose: Purpose, model: str) -> str:
    return f"threshold:{purpose}:{model}"


def as_json(result: Enrolment | Decision | Identification | Threshold) -> str:
    """A result as one JSON object."""
    return json.dumps(dataclasses.asdict(result))
