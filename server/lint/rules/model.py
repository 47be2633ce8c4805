"""Rules about losses and layers that let one person change another's gradient."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from server.lint.people import counts_persons
from server.lint.project import Hit, Project, rule
from server.lint.source import Source, argument

_COUPLED = re.compile(
    r"(?i)^(sup_?con\w*|nt_?xent\w*|info_?nce\w*|n_?pairs?_?loss|circle_?loss|center_?loss"
    r"|multi_?similarity_?loss|lifted_?structure_?loss|batch_?(hard|all|semi_?hard)\w*"
    r"|multiple_?negatives\w*|barlow_?twins_?loss|vicreg_?loss)$"
)
_HEADS = re.compile(
    r"(?i)^(arc|cos|ada|sphere|mag|curricular|part_?fc)\w*(face|margin|product|fc)\w*$"
)
_ROWS = frozenset(
    {
        *("num_classes", "n_classes", "classnum", "class_num", "classes_num", "num_class"),
        *("out_features", "num_labels", "n_labels", "num_identities", "num_embeddings"),
    }
)
_LAYERS = {"Linear": 1, "LazyLinear": 0, "Embedding": 0}  # where their rows are given
_NETWORKS = re.compile(r"^[A-Z]\w*(Net|Network|Model|Head|Classifier|Module|ViT)\w*$|^(Net|Head)$")
_OF_LOSSES = frozenset(
    {"cross_entropy", "CrossEntropyLoss", "log_softmax", "softmax", "logsumexp", "exp", "backward"}
)
_NO_GRADIENT = ("no_grad", "inference_mode")
_BATCH_NORM = frozenset({*(f"BatchNorm{d}d" for d in (1, 2, 3)), "SyncBatchNorm"})
_WITH_BATCH_NORM = re.compile(
    r"^(resnet\d+|resnext\w+|wide_resnet\w+|mobilenet_v\d\w*|densenet\d+|efficientnet\w+"
    r"|googlenet|inception_v3|shufflenet\w+|mnasnet\w+|regnet\w+|vgg\d+_bn|InceptionResnetV1)$"
)
_MENDED = ("fix", "get_compatible_module", "fuse_conv_bn_eval", "convert_batchnorm_modules")


def _coupled_loss(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.loss_sees == "batch":
            yield Hit(at.where, "the loss looks at the other persons of the batch")
    for source in project.at_sites:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                name = source.name(node.func).rpartition(".")[2]
                if _COUPLED.match(name):
                    yield Hit(source.at(node), f"{name} compares the examples of a batch")
            gram = _compared(source, node)
            if gram and source.imports("torch") and not source.under(node, _NO_GRADIENT):
                what = f"{gram} times its own transpose compares a batch"
                yield Hit(source.at(node), what, "error" if _in_loss(source, node) else "warning")


def _compared(source: Source, node: ast.AST) -> str:
    """The name of what is multiplied by its own transpose; "" for anything else."""
    match node:
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            pair = (left, right)
        case ast.Call(args=[left, right]) if source.name(node.func) in (
            *("torch.matmul", "torch.mm", "torch.cdist"),
        ):
            pair = (left, right)
        case _:
            return ""
    plain, turned = source.name(pair[0]), source.name(pair[1])
    # .mT and .transpose(1, 2) of [P, K, D] compare the images of one person, which is allowed.
    turned = turned.removesuffix(".T").removesuffix(".t()")
    return plain if plain and plain == turned else ""


def _in_loss(source: Source, node: ast.AST) -> bool:
    around = source.function(node) or source.tree
    calls = (source.name(n.func) for n in ast.walk(around) if isinstance(n, ast.Call))
    return any(name.rpartition(".")[2] in _OF_LOSSES for name in calls)


COUPLED_LOSS = rule(
    "coupled-loss",
    "a loss that compares private persons",
    why="With in-batch negatives a person is in the gradients of all others, so clipping each does "
    "not bound what one changes: 1.46 clips measured for a SupCon-like loss, 2.56 with a crafted "
    "person, where the noise was scaled to one.",
    mend="Take negatives from a public bank (loss 'public-negatives' or 'triplet' of Veilface).",
)(_coupled_loss)


def _identity_head(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.head == "private-identities":
            yield Hit(at.where, "a trained layer has a row for each private person")
    for source in project.at_sites:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                name = source.name(node.func).rpartition(".")[2]
                rows = [given for given in _sizes(source, node) if counts_persons(source, given)]
                if _HEADS.match(name) or rows:
                    yield Hit(source.at(node), f"{name} has a row for each identity")


def _sizes(source: Source, call: ast.Call) -> Iterator[ast.expr]:
    """The arguments of a call that say how many rows a layer has, or a network classes."""
    package, _, name = source.name(call.func).rpartition(".")
    if package.startswith(("torchmetrics", "sklearn")):
        return
    yield from (keyword.value for keyword in call.keywords if keyword.arg in _ROWS)
    place = _LAYERS.get(name)
    if place is not None and place < len(call.args):
        yield call.args[place]
    if package.startswith(("torchvision.models", "timm")) or _NETWORKS.search(name):
        yield from call.args
    if name == "Parameter":
        made = [node for each in call.args for node in ast.walk(each) if isinstance(node, ast.Call)]
        yield from (size for inner in made for size in inner.args)


IDENTITY_HEAD = rule(
    "identity-head",
    "a trainable row for each private identity",
    why="The rows say who is enrolled, and the softmax over them couples persons (1.09 clips "
    "measured).",
    mend="Use a fixed public codebook, or a loss without classes.",
)(_identity_head)


def _batch_norm(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.norm_layers == "batch":
            yield Hit(at.where, "layers normalise by the batch")
    if any(source.called(_MENDED) for source in project.private):
        return
    for source in project.at_sites:
        for call in source.calls(_BATCH_NORM, "torch"):
            yield Hit(source.at(call), source.name(call.func).rpartition(".")[2])
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call) or argument(node, "norm_layer") is not None:
                continue
            package, _, name = source.name(node.func).rpartition(".")
            if package.startswith(("torchvision", "facenet_pytorch")) and _WITH_BATCH_NORM.match(
                name
            ):
                yield Hit(source.at(node), f"{name} has BatchNorm layers")


BATCH_NORM = rule(
    "batch-norm",
    "BatchNorm in a trained part",
    why="It mixes the examples of a batch, so no gradient belongs to one person, and its running "
    "statistics leave without noise.",
    mend="Use GroupNorm (ModuleValidator.fix), or freeze BatchNorm and fold it into the "
    "convolutions.",
)(_batch_norm)
