"""Where a source tells of private persons: folders of their images, and how many there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from server.lint.source import Source

# A folder a person, or a set of faces with a person's name for a label.
_FOLDERS = frozenset({"ImageFolder", "DatasetFolder", "LFWPeople", "CelebA", "fetch_lfw_people"})
_LOADERS = ("load_dataset", "FederatedDataset")
_FACES = re.compile(r"(?i)(lfw|celeb|vgg-?_?face|casia|webface|ms1m|glint|face|cfp|agedb|umd)")
_CLASSES = frozenset({"classes", "class_to_idx", "class_names", "imgs_by_person", "identities"})
_COUNTS = re.compile(r"(?i)^(num|n)_?(ident\w*|ids|people|persons?|subjects?|classes)$")
_PERSONS = re.compile(r"(?i)(ident|person|people|subject|enrol)")
_OF_FOLDERS = frozenset({"listdir", "scandir", "iterdir", "glob"})
_OF_DATA = re.compile(r"(?i)(data|train|set|folder)")


def person_folders(source: Source) -> Iterator[ast.Call]:
    """Yield where images of persons are loaded, one row an image."""
    yield from source.calls(_FOLDERS)
    for call in source.calls(_LOADERS):
        texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
        if any(isinstance(text, str) and _FACES.search(text) for text in texts):
            yield call


def counts_persons(source: Source, node: ast.expr) -> bool:
    """Whether an expression is, or is computed from, how many persons the data have."""
    parts = [*ast.walk(node), *ast.walk(source.meaning(node))]
    return any(_counts(source, part) for part in parts)


def _counts(source: Source, part: ast.AST) -> bool:
    match part:
        case ast.Call(func=ast.Name(id="len"), args=[counted]):
            return _are_persons(source, counted)
        case ast.Attribute(value=data, attr=name) if _COUNTS.match(name):
            return bool(_OF_DATA.search(source.name(data))) and not _public(source, data)
    return False


def _are_persons(source: Source, counted: ast.expr) -> bool:
    """Whether each of what is counted is a person: classes of a data set, folders, names."""
    meant = source.meaning(counted)
    for node in (*ast.walk(counted), *ast.walk(meant)):
        if isinstance(node, ast.Attribute) and node.attr in _CLASSES:
            return not _public(source, node.value)
        if isinstance(node, ast.Call):
            name = source.name(node.func).rpartition(".")[2]
            if name in _OF_FOLDERS or (name in ("set", "unique") and node.args):
                return True
    return isinstance(counted, ast.Name) and bool(_PERSONS.search(counted.id))


def _public(source: Source, data: ast.expr) -> bool:
    """Whether data are a set whose classes are things and known to all, such as CIFAR10."""
    made = source.meaning(data)
    if not isinstance(made, ast.Call):
        return False
    package, _, name = source.name(made.func).rpartition(".")
    return package.startswith("torchvision.datasets") and name not in _FOLDERS
