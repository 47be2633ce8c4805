"""A clean Flower and Opacus project, what breaks one rule in it, and what only seems to."""

from __future__ import annotations

from dataclasses import dataclass, field

PYPROJECT = """
[tool.flwr.app.config]
num-server-rounds = 3
noise-multiplier = 1.1
poisson = true
"""

CLIENT = '''
"""A site that keeps its accountant, samples by Poisson and tells nothing but the update."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine
from torch.utils.data import DataLoader

from project.task import build, data, loss_of

app = ClientApp()
STATE = "/site/accountant.pt"
PUBLIC_BATCH = 64


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = build(msg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(accountant="prv", secure_mode=True)
    engine.accountant.load_state_dict(torch.load(STATE, weights_only=True))
    loader = DataLoader(data(), batch_size=64)
    model, optimizer, private = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=context.run_config["noise-multiplier"],
        max_grad_norm=1.0,
    )
    optimizer.expected_batch_size = PUBLIC_BATCH
    for images in private:
        optimizer.zero_grad()
        loss_of(model, images).backward()
        optimizer.step()
    torch.save(engine.accountant.state_dict(), STATE)
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)
'''

TASK = '''
"""Model and loss: each person against public faces."""

import torch
from torch import nn
from torch.nn import functional as F


def build(msg):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.LazyLinear(128))


def data():
    return torch.utils.data.TensorDataset(torch.zeros(8, 2, 3, 32, 32))


def loss_of(model, images, bank=None):
    z = F.normalize(model(images))
    return F.cross_entropy(z @ bank.T, torch.zeros(len(z), dtype=torch.long))
'''

SERVER = '''
"""Coordinates the sites."""

import torch
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    torch.manual_seed(0)  # initial weights, which are public
'''


@dataclass(frozen=True)
class Case:
    """Edits of the clean project: (old, new) in a file's text, and files beside it."""

    edits: tuple[tuple[str, str], ...] = ()
    beside: dict[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        files = {
            "pyproject.toml": PYPROJECT,
            "project/client_app.py": CLIENT,
            "project/task.py": TASK,
            "project/server_app.py": SERVER,
        }
        for old, new in self.edits:
            (name,) = [name for name, text in files.items() if old in text]
            files[name] = files[name].replace(old, new)
        return files | self.beside


def client(old: str, new: str) -> Case:
    return Case(((old, new),))


def beside(text: str) -> Case:
    return Case(beside={"project/more.py": text})


_LOAD = "    engine.accountant.load_state_dict(torch.load(STATE, weights_only=True))\n"
_CLIP = "max_grad_norm=1.0,"
_RECORD = 'MetricRecord({"num-examples": 1})'
_LEGACY = """
from flwr.client import NumPyClient

class Site(NumPyClient):
    def {method}(self, parameters, config):
        return {reply}
"""
_COUNT = "{'num-examples': len(rows)}"

_IDENTITY_HEADS = (
    "from torchvision.models import resnet18\n"
    "def build(data):\n    return resnet18(num_classes=len(data.classes), norm_layer=group)\n",
    "from torch import nn\nimport os\npeople = len(os.listdir('faces'))\n"
    "head = nn.Linear(512, people)\n",
    "import torch\ndef build(rows):\n    n = len(set(rows.labels))\n"
    "    return torch.nn.LazyLinear(n)\n",
    "import timm\ndef build(data):\n"
    "    return timm.create_model('vit', num_classes=data.n_people)\n",
    "from project.task import FaceNet\ndef build(persons):\n"
    "    return FaceNet(128, len(persons))\n",
    "import torch\nfrom torch import nn\nclass Cosine(nn.Module):\n"
    "    def __init__(self, d, folder):\n"
    "        self.rows = nn.Parameter(torch.empty(len(list(folder.iterdir())), d))\n",
)
_NO_IDENTITY_HEADS = (
    "from torch import nn\nhead = nn.Linear(512, 128)\n",
    "from torchvision.datasets import CIFAR10\nfrom torch import nn\ndata = CIFAR10('here')\n"
    "head = nn.Linear(512, len(data.classes))\n",
    "from torchmetrics import Accuracy\ndef judge(data):\n"
    "    return Accuracy(task='multiclass', num_classes=len(data.classes))\n",
    "def told(persons):\n    return f'{len(persons)} persons', range(len(persons))\n",
    "from torch import nn\ndef bias(batch):\n    return nn.Linear(len(batch), 4)\n",
)
_IMAGE_UNITS = (
    "from torchvision.datasets import ImageFolder\nrows = ImageFolder('faces')\n",
    "from torchvision import datasets as d\ndef load(p):\n    return d.LFWPeople(p)\n",
    "from datasets import load_dataset\nrows = load_dataset('logasja/lfw')\n",
)
_NO_IMAGE_UNITS = (
    "from torchvision.datasets import CIFAR10\nrows = CIFAR10('here')\n",
    "from datasets import load_dataset\nrows = load_dataset('ylecun/mnist')\n",
    "from torchvision.datasets import ImageFolder\nclass PersonDataset:\n"
    "    def __init__(self, root):\n        self.inner = ImageFolder(root)\n",
)
_IN_MODULE = (
    ('    engine = PrivacyEngine(accountant="prv", secure_mode=True)\n', ""),
    ("PUBLIC_BATCH = 64\n", "PUBLIC_BATCH = 64\nengine = PrivacyEngine(secure_mode=True)\n"),
)
_ENGINE = "from opacus import PrivacyEngine\n"
_SITE = """
from flwr.client import NumPyClient, start_client
class Site(NumPyClient):
    def __init__(self):
        self.engine = {made}
    def fit(self, parameters, config):
        return [], 1, {{}}
"""
_FRESH = (
    _ENGINE
    + _SITE.format(made="PrivacyEngine(secure_mode=True)")
    + "def client_fn(context):\n    return Site().to_client()\n",
    _ENGINE
    + _SITE.format(made="None").replace("[], 1", "step(), 1")
    + "def step():\n    return engine()\n"
    "def engine():\n    return PrivacyEngine(secure_mode=True)\n"
    "start_client(client=Site())\n",
)
_MADE_ONCE = (
    _ENGINE
    + _SITE.format(made="PrivacyEngine(secure_mode=True)")
    + "def main():\n    start_client(client=Site().to_client())\n",
    _ENGINE
    + _SITE.format(made="None")
    + "engine = PrivacyEngine(secure_mode=True)\nstart_client(client=Site())\n",
    _ENGINE + "def main():\n    engine = PrivacyEngine(secure_mode=True)\n",
    _ENGINE
    + "def central():\n    return PrivacyEngine(secure_mode=True)\n"
    + "if __name__ == '__main__':\n    central()\n",
    "import functools\n"
    + _ENGINE
    + _SITE.format(made="engine()")
    + "@functools.cache\ndef engine():\n    return PrivacyEngine(secure_mode=True)\n"
    "start_client(client=Site())\n",
)

BROKEN: tuple[tuple[str, Case], ...] = (
    ("unreadable", beside("def broken(:\n")),
    ("unreadable", beside("x = " + "(" * 5000 + ")" * 5000)),
    ("no-noise", client('context.run_config["noise-multiplier"]', "0.0")),
    ("no-noise", client("noise-multiplier = 1.1", "noise-multiplier = 0")),
    (
        "seeded-noise",
        client(_CLIP, _CLIP + " noise_generator=torch.Generator().manual_seed(7),"),
    ),
    ("seeded-noise", client(_CLIP, _CLIP + " noise_generator=torch.Generator(),")),
    ("fresh-accountant", client(_LOAD, "")),
    ("gdp-accountant", client('"prv"', '"gdp"')),
    (
        "gdp-accountant",
        beside("from opacus.accountants import GaussianAccountant as G\na = G()\na.history = []"),
    ),
    ("shuffle-as-poisson", client(_CLIP, _CLIP + " poisson_sampling=False,")),
    (
        "shuffle-as-poisson",
        Case(
            (
                (_CLIP, _CLIP + " poisson_sampling=context.run_config['poisson'],"),
                ("poisson = true", "poisson = false"),
            )
        ),
    ),
    (
        "shuffle-as-poisson",
        beside(
            "from torch.utils.data import DataLoader\n"
            "def run(accountant, rows):\n"
            "    for batch in DataLoader(rows, batch_size=32, shuffle=True):\n"
            "        accountant.step(noise_multiplier=1.0, sample_rate=0.01)\n"
        ),
    ),
    ("loader-unused", client("for images in private:", "for images in loader:")),
    (
        "loader-unused",
        Case((("optimizer, private =", "optimizer, _ ="), ("in private:", "in loader:"))),
    ),
    ("data-normaliser", client("    optimizer.expected_batch_size = PUBLIC_BATCH\n", "")),
    ("data-normaliser", client("= PUBLIC_BATCH\n", "= len(loader.dataset)\n")),
    (
        "data-normaliser",
        beside(
            "from opacus.optimizers import DPOptimizer\n"
            "def wrap(inner, rows):\n"
            "    q = 32 / len(rows)\n"
            "    return DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=1.0,"
            " expected_batch_size=int(q * len(rows)), secure_mode=True)\n"
        ),
    ),
    ("counts-leave", client(_RECORD, "MetricRecord({'num-examples': len(loader.dataset)})")),
    ("counts-leave", beside(_LEGACY.format(method="fit", reply="[], len(self.rows), {}"))),
    (
        "counts-leave",
        beside("from flwr.common import FitRes\nres = FitRes(status, weights, len(rows), {})\n"),
    ),
    (
        "metrics-leave",
        beside("from flwr.common import EvaluateRes\nres = EvaluateRes(ok, measured, 1, {})\n"),
    ),
    ("metrics-leave", client(_RECORD, "MetricRecord({'train_loss': total, 'num-examples': 1})")),
    ("metrics-leave", client(_RECORD, "MetricRecord(measured(model))")),
    ("metrics-leave", beside(_LEGACY.format(method="evaluate", reply="self.loss(), 1, {}"))),
    ("coupled-loss", client("z @ bank.T", "z @ z.T")),
    ("coupled-loss", client("z @ bank.T", "torch.mm(z, z.t())")),
    (
        "coupled-loss",
        beside("from pytorch_metric_learning.losses import SupConLoss\nloss = SupConLoss(0.1)\n"),
    ),
    ("identity-head", beside("class ArcFace: ...\nhead = ArcFace(512, 1000)\n")),
    *(("identity-head", beside(text)) for text in _IDENTITY_HEADS),
    *(("image-unit", beside(text)) for text in _IMAGE_UNITS),
    ("fresh-accountant", Case(((_LOAD, ""), *_IN_MODULE))),
    *(("fresh-accountant", beside(text)) for text in _FRESH),
    ("batch-norm", client("nn.GroupNorm(2, 8)", "nn.BatchNorm2d(8)")),
    ("batch-norm", beside("from torchvision.models import resnet18\nmodel = resnet18()\n")),
    (
        "flower-local-dp",
        beside(
            "from flwr.clientapp.mod import LocalDpMod\nmod = LocalDpMod(1.0, 1.0, 8.0, 1e-5)\n"
        ),
    ),
    (
        "flower-clipping",
        beside("from flwr.client.mod import fixedclipping_mod\nmods = [fixedclipping_mod]\n"),
    ),
    (
        "flower-clipping",
        beside(
            "from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as D\n"
            "strategy = D(inner, 1.0, 1.0, 10)\n"
        ),
    ),
    (
        "flower-secagg",
        beside("from flwr.client.mod import secaggplus_mod\nmods = [secaggplus_mod]\n"),
    ),
)

# What looks like a broken rule and is none.
NEAR_MISSES: tuple[tuple[str, Case], ...] = (
    ("no-noise", client("1.1", "0.01")),
    (
        "seeded-noise",
        client("    model = build(msg)", "    torch.manual_seed(0)\n    model = build(msg)"),
    ),
    ("seeded-noise", beside("def split(rows):\n    return rows.train_test_split(seed=42)\n")),
    (
        "seeded-noise",
        beside("import torch\ndef split(rows):\n    g = torch.Generator().manual_seed(0)\n"),
    ),
    (
        "fresh-accountant",
        client(_LOAD, "    engine.load_checkpoint(path=STATE, module=model)\n"),
    ),
    ("gdp-accountant", client('"prv"', '"rdp"')),
    (
        "gdp-accountant",
        beside("class GaussianAccountant: ...\nmine = GaussianAccountant()\n"),
    ),
    (
        "shuffle-as-poisson",
        Case(
            (
                (_CLIP, _CLIP + " poisson_sampling=False,"),
                ("DataLoader(data(), batch_size=64)", "DataLoader(rows, batch_size=len(rows))"),
            )
        ),
    ),
    (
        "shuffle-as-poisson",
        client(_CLIP, _CLIP + " poisson_sampling=context.run_config['poisson'],"),
    ),
    (
        "loader-unused",
        Case((("optimizer, private =", "optimizer, loader ="), ("in private:", "in loader:"))),
    ),
    ("data-normaliser", client("= PUBLIC_BATCH\n", "= 100\n")),
    ("counts-leave", client(_RECORD, "MetricRecord({'num-examples': PUBLIC_BATCH})")),
    ("counts-leave", beside("def size(rows):\n    return [], len(rows), {}\n")),
    ("metrics-leave", client(_RECORD, "MetricRecord({'epsilon': engine.get_epsilon(1e-5)})")),
    ("metrics-leave", beside(_LEGACY.format(method="fit", reply="[], 1, {}"))),
    (
        "coupled-loss",
        beside("import torch\n@torch.no_grad()\ndef scores(z):\n    return (z @ z.T).exp()\n"),
    ),
    ("coupled-loss", client("z @ bank.T", "(z @ z.mT).flatten(1) @ bank.T")),
    ("coupled-loss", beside("from torch import nn\nloss = nn.TripletMarginLoss()\n")),
    ("identity-head", beside("names = ['ArcFace']\ndef arcface_weights(): ...\n")),
    *(("identity-head", beside(text)) for text in _NO_IDENTITY_HEADS),
    *(("image-unit", beside(text)) for text in _NO_IMAGE_UNITS),
    *(("fresh-accountant", beside(text)) for text in _MADE_ONCE),
    (
        "batch-norm",
        beside("from torchvision.models import resnet18\nm = resnet18(norm_layer=group)\n"),
    ),
    ("flower-local-dp", beside("class LocalDpMod: ...\nmod = LocalDpMod()\n")),
    ("flower-clipping", beside("def fixedclipping_mod(): ...\nfixedclipping_mod()\n")),
    (
        "flower-secagg",
        beside("def secagg_mod(): ...\n'''secaggplus_mod of flwr'''\nsecagg_mod()\n"),
    ),
)
