"""Clean recorded settings, what breaks one rule in them, and what only seems to."""

from __future__ import annotations

SETTINGS: dict[str, object] = {
    "privacy_unit": "person",
    "adjacency": "add-remove-one",
    "clip_unit": "person",
    "images_per_person": 4,
    "max_grad_norm": 0.5,
    "sensitivity": 0.5,
    "noise_source": "cryptographic",
    "non_finite": "zeroed",
    "sampler": "poisson",
    "accounted_as": "poisson",
    "normaliser": "public-constant",
    "weighting": "public",
    "accountant": "prv",
    "accountant_state": "persistent",
    "rounds": 3,
    "loss_sees": "public",
    "head": "none",
    "norm_layers": "group",
    "delta": 1e-5,
    "epsilon": 2.0,
    "persons": 500,
    "releases": [{"noise_multiplier": 1.1, "sample_rate": 0.02, "steps": 100}],
    "metrics": [{"name": "public loss", "private_data": False, "noised": False}],
}

BROKEN_SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    (
        "no-noise",
        {
            "epsilon": None,
            "releases": [{"noise_multiplier": 0.0, "sample_rate": 0.02, "steps": 1}],
        },
    ),
    ("seeded-noise", {"noise_source": "seeded"}),
    ("framework-noise", {"noise_source": "framework"}),
    ("low-sensitivity", {"sensitivity": 0.25}),
    ("low-sensitivity", {"clip_unit": "image"}),
    ("low-sensitivity", {"adjacency": "replace-one"}),
    ("image-unit", {"clip_unit": "image", "privacy_unit": "image"}),
    ("non-finite", {"non_finite": "kept"}),
    ("fresh-accountant", {"accountant_state": "per-round"}),
    (
        "gdp-accountant",
        {
            "accountant": "gdp",
            "releases": [
                {"noise_multiplier": 1.1, "sample_rate": 0.02, "steps": 50},
                {"noise_multiplier": 1.2, "sample_rate": 0.02, "steps": 50},
            ],
        },
    ),
    ("claim-below-truth", {"epsilon": 0.5}),
    ("delta-too-large", {"persons": 100_000}),
    ("shuffle-as-poisson", {"sampler": "shuffle"}),
    ("shuffle-as-poisson", {"sampler": "full-batch"}),
    ("data-normaliser", {"normaliser": "data-size"}),
    ("counts-leave", {"weighting": "num-examples"}),
    ("metrics-leave", {"metrics": [{"name": "loss", "private_data": True, "noised": False}]}),
    ("coupled-loss", {"loss_sees": "batch"}),
    ("identity-head", {"head": "private-identities"}),
    ("batch-norm", {"norm_layers": "batch"}),
)

NEAR_SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    ("low-sensitivity", {"clip_unit": "image", "sensitivity": 2.0}),
    (
        "image-unit",
        {"clip_unit": "image", "privacy_unit": "image", "images_per_person": 1},
    ),
    ("low-sensitivity", {"adjacency": "replace-one", "sensitivity": 1.0}),
    ("fresh-accountant", {"accountant_state": "per-round", "rounds": 1}),
    ("shuffle-as-poisson", {"sampler": "shuffle", "accounted_as": "full-batch"}),
    ("metrics-leave", {"metrics": [{"name": "loss", "private_data": True, "noised": True}]}),
    ("delta-too-large", {"persons": None}),
    ("batch-norm", {"norm_layers": "frozen-batch"}),
)
