"""Whom a round waits for, whom it asks again, and whom it gives up."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.deployment.grid import Asked

NORTH, SOUTH = 11, 22


class Post:
    """Takes questions, and remembers whom they were for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._names = count()

    def __call__(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.asked += [message.metadata.dst_node_id for message in sent]
        return [f"q{next(self._names)}" for _ in sent]


@pytest.fixture
def post() -> Post:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    return Post()


def asking(post: Post, living: dict[int, str]) -> Asked:
    asked = Asked(living, post)
    content = RecordDict({"request": ConfigRecord({"round": 1})})
    asked.ask([Message(content, node, "train") for node in living])
    return asked


def test_a_site_whose_heartbeat_is_late_is_waited_for_and_not_asked_twice(post: Post) -> None:
    living = {NORTH: "t0", SOUTH: "t0"}
    asked = asking(post, living)
    for _ in range(5):
        assert asked.recount({NORTH: "t0"}) == []
        assert asked.recount(living) == []
    assert post.asked == [NORTH, SOUTH]
    assert len(asked.out) == 2


def test_a_site_that_is_missing_twice_running_is_given_up(post: Post) -> None:
    asked = asking(post, {NORTH: "t0", SOUTH: "t0"})
    assert asked.recount({NORTH: "t0"}) == []
    assert asked.recount({NORTH: "t0"}) == [SOUTH]
    assert len(asked.out) == 1
    assert asked.recount({NORTH: "t0", SOUTH: "t0"}) == []
    assert post.asked == [NORTH, SOUTH]


def test_a_site_that_began_a_new_life_is_asked_again_once(post: Post) -> None:
    asked = asking(post, {NORTH: "t0", SOUTH: "t0"})
    for _ in range(3):
        assert asked.recount({NORTH: "t0", SOUTH: "t1"}) == []
    assert post.asked == [NORTH, SOUTH, SOUTH]
    assert len(asked.out) == 2


def test_nobody_is_waited_for_once_all_are_gone(post: Post) -> None:
    asked = asking(post, {NORTH: "t0"})
    asked.recount({})
    assert asked.open
    assert asked.recount({}) == [NORTH]
    assert not asked.open
