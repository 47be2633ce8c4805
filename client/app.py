"""The site's ClientApp: unpack the request, ask the site, pack the whitelisted answer.

Nothing but an `Update` (or a message of `common.masking`) and a one-word `Refusal` is ever put into
a reply: no exception text, no metric, no count. What went wrong is in the site's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor, nn

from client.masked_site import MaskedSite, Question
from client.preparation import PublicPart, Unprepared, load_public, store_public
from client.site import Prepared, Site
from client.telling import tell_round
from common.config import digest, from_json
from common.contract import Contract
from common.errors import (
    BudgetExceeded,
    InputError,
    LedgerError,
    Refused,
    StorageError,
    VeilfaceError,
)
from common.masking import RoundRequest
from common.npy import from_npy, to_npy
from common.parameters import layout_of
from common.persons import Persons
from common.update import FORMAT, Refusal

log = logging.getLogger("veilface.site")


@dataclass(frozen=True)
class OpenSite:
    """What the app needs of a site: its state, where public parts lie, and its private data.

    Attributes:
        site: state directory, budget and key source.
        public_directory: where the public part of a run is kept.
        model: builds the trainable part and checks the frozen part's digest.
        persons: the private persons, frozen features computed; may be kept between rounds.
        consent: raises Refused on a run that the site does not agree to.
        masking: its part in secure aggregation; None where it has no identity on a roster.
    """

    site: Site
    public_directory: Path
    model: Callable[[PublicPart], nn.Module]
    persons: Callable[[PublicPart], Persons]
    consent: Callable[[Contract], None]
    masking: MaskedSite | None = None


def make_app(open_site: Callable[[Context], OpenSite]) -> ClientApp:
    """Return a ClientApp for the sites that `open_site` finds from a node's context."""
    app = ClientApp()

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _prepare(message, open_site(context)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _train(message, open_site(context)))

    @app.train("mask")
    def mask(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _mask(message, open_site(context)))

    @app.query("confirm")
    def confirm(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _stage(message, open_site(context), MaskedSite.confirm))

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _stage(message, open_site(context), MaskedSite.unmask))

    @app.query("end")
    def end(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _end(message, open_site(context)))

    return app


def _prepare(message: Message, opened: OpenSite) -> RecordDict:
    contract = _contract(message)
    opened.consent(contract)
    opened.site.check_room(contract)
    state = {name: _tensor(array) for name, array in message.content.array_records["state"].items()}
    inputs = _tensor(message.content.array_records["public"]["inputs"])
    answer = RecordDict({"header": ConfigRecord({"format": FORMAT, "ready": digest(contract)})})
    if contract.masking is not None:
        roster = _bytes(message.content.config_records["masking"]["roster"])
        advertisement = _masking(opened).advertise(contract, roster).to_bytes()
        answer["masking"] = ConfigRecord({"message": advertisement})
    store_public(opened.public_directory, PublicPart(contract, state, inputs))
    return answer


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(from_npy(array.data).copy())


def _train(message: Message, opened: OpenSite) -> RecordDict:
    asked = message.content.config_records["request"]
    part, vector = _agreed(message, opened), _parameters(message)

    @cache  # for its layout here, and for training where the round is no replay
    def model() -> nn.Module:
        return opened.model(part)

    if layout_of(model()).dimension != len(vector):
        raise InputError("the server's parameters do not fit the agreed model")

    def prepared() -> Prepared:
        return Prepared(part.contract, model(), part.inputs, opened.persons(part))

    update = opened.site.train(
        prepared, part.contract, int(str(asked["round"])), torch.from_numpy(vector), part.id
    )
    tell_round(opened.site, part.contract, update.round)
    arrays = update.arrays(layout_of(model()))
    return RecordDict(
        {
            "header": ConfigRecord({**update.header()}),
            "update": ArrayRecord({name: Array(*to_npy(value)) for name, value in arrays.items()}),
        }
    )


def _mask(message: Message, opened: OpenSite) -> RecordDict:
    part, vector = _agreed(message, opened), _parameters(message)

    def prepared() -> Prepared:
        return Prepared(part.contract, opened.model(part), part.inputs, opened.persons(part))

    question = _question(message)
    update = _masking(opened).mask(prepared, part.contract, vector, part.id, question)
    tell_round(opened.site, part.contract, question.request.round)
    return _masked(message, update)


def _stage(
    message: Message,
    opened: OpenSite,
    answer: Callable[[MaskedSite, Contract, Question, bytes], bytes],
) -> RecordDict:
    part, question = _agreed(message, opened), _question(message)
    asked = _bytes(message.content.config_records["masking"]["asked"])
    return _masked(message, answer(_masking(opened), part.contract, question, asked))


def _end(message: Message, opened: OpenSite) -> RecordDict:
    contract = _agreed(message, opened).contract
    _masking(opened).end(contract)
    return RecordDict({"header": ConfigRecord({"format": FORMAT, "ended": digest(contract)})})


def _masked(message: Message, answer: bytes) -> RecordDict:
    header = ConfigRecord({"format": FORMAT, "stage": message.metadata.message_type})
    return RecordDict({"header": header, "masking": ConfigRecord({"message": answer})})


def _masking(opened: OpenSite) -> MaskedSite:
    if opened.masking is None:
        raise Refused(
            "this site has no signing key on a roster, so it takes no part in secure aggregation",
            hint="veilface site up --bundle",
        )
    return opened.masking


def _agreed(message: Message, opened: OpenSite) -> PublicPart:
    """Return the public part of the run that a message is of, if the site still agrees to it."""
    name = str(message.content.config_records["request"]["contract_digest"])
    part = load_public(opened.public_directory, name)
    opened.consent(part.contract)
    return part


def _parameters(message: Message) -> NDArray[np.float32]:
    vector = from_npy(message.content.array_records["parameters"]["vector"].data)
    if vector.dtype != np.float32 or vector.ndim != 1 or not np.isfinite(vector).all():
        raise InputError("the server's parameters are not a finite float32 vector")
    return vector.astype(np.float32)


def _question(message: Message) -> Question:
    asked = message.content.config_records["masking"]
    advertisements = asked["advertisements"]
    if not isinstance(advertisements, list):
        raise InputError("the server's advertisements are no list")
    return Question(
        RoundRequest.from_bytes(_bytes(asked["request"])), tuple(map(_bytes, advertisements))
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise InputError("the server sent something else where bytes belong")
    return value


def _contract(message: Message) -> Contract:
    text = message.content.config_records["request"]["contract"]
    return from_json(Contract, str(text), where="contract")


_REASONS: Mapping[type[VeilfaceError], Refusal] = {
    Unprepared: "unprepared",
    BudgetExceeded: "budget",
    LedgerError: "ledger",
    Refused: "contract",
    StorageError: "storage",
    InputError: "data",
}


def _guarded(message: Message, answer: Callable[[], RecordDict]) -> Message:
    """Answer, or refuse with one word: an exception's text could name a person or a file."""
    try:
        content = answer()
    except VeilfaceError as error:
        log.error("%s refused: %s", message.metadata.message_type, error)
        reason = next((word for kind, word in _REASONS.items() if isinstance(error, kind)), None)
        content = _refusal(reason or "internal")
    except Exception:  # the boundary: whatever it is, its text must stay at the site
        log.exception("%s failed", message.metadata.message_type)
        content = _refusal("internal")
    return Message(content, reply_to=message)


def _refusal(reason: Refusal) -> RecordDict:
    return RecordDict({"header": ConfigRecord({"format": FORMAT, "refusal": reason})})
