"""Rules about whom epsilon is about: one person, or one of the person's images."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from server.lint.people import person_folders
from server.lint.project import Hit, Project, rule

_BY_IMAGE = ("make_private", "make_private_with_epsilon", "GradSampleModule")
_BY_PERSON = re.compile(r"(?i)(person|people|subject|identit|user|group)")
_GROUPING = re.compile(r"(Dataset|Sampler|Loader)$")


def _image_unit(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        images = at.settings.images_per_person
        if at.settings.privacy_unit == "image" and images > 1:
            yield Hit(at.where, f"epsilon is of one image, and a person has up to {images}")
    if any(_groups(source.tree) for source in project.at_sites):
        return
    if any(source.called(_BY_IMAGE) for source in project.at_sites):
        for source in project.at_sites:
            for call in person_folders(source):
                name = source.name(call.func).rpartition(".")[2]
                yield Hit(source.at(call), f"{name} gives images, and each is protected by itself")


def _groups(tree: ast.Module) -> bool:
    """Whether a project makes a data set, sampler or loader of persons of its own."""
    for node in ast.walk(tree):
        name = node.name if isinstance(node, ast.ClassDef) else ""
        if _BY_PERSON.search(name) and _GROUPING.search(name):
            return True
    return False


IMAGE_UNIT = rule(
    "image-unit",
    "one image is protected, where a person has several",
    why="Per-example clipping bounds what one image changes. A person with K images changes K "
    "times as much: what holds for the person is K epsilon, with a delta that grows faster still "
    "(group privacy: Dwork and Roth 2014, theorem 2.2), and recognition trains on several images "
    "a person.",
    mend="Make the person the example: one mean gradient over a person's images, clipped once "
    "(docs/engines.md); or state the epsilon of the person.",
)(_image_unit)
