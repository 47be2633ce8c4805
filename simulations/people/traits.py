"""Who a synthetic person is, and what one photograph is like: numbers, no pixels yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar

import numpy as np

from simulations.people.wardrobe import HAIR, HAIRCUTS, IRIS, SKIN, Colour, mix, palette

T = TypeVar("T")


def _normal(mean: float, sd: float) -> Any:
    """A field drawn from N(mean, sd^2), cut at 2.2 standard deviations."""
    return field(metadata={"normal": (mean, sd)})


def _uniform(low: float, high: float) -> Any:
    """A field drawn uniformly from [low, high)."""
    return field(metadata={"uniform": (low, high)})


_STYLES: Final = tuple(HAIRCUTS)[:10]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays the same in every photograph of one synthetic person.

    Lengths are millimetres on a head whose origin lies between the pupils, x to the right of the
    picture, y down, z towards the camera; angles are radians; ratios and strengths are plain
    numbers; colours are linear RGB in 0..1. The spreads are those of adults, about.
    """

    key: int
    """Names the person's textures, and is mixed into each photograph's randomness."""

    face_width: float = _normal(70, 4.2)
    face_length: float = _normal(113, 6.5)
    head_depth: float = _normal(88, 4)
    forehead: float = _normal(0.95, 0.035)
    jaw: float = _normal(0.82, 0.065)
    chin_width: float = _normal(0.46, 0.09)
    chin_bump: float = _normal(4, 2.6)
    cheekbone: float = _normal(3.5, 2.2)
    cheek: float = _normal(0, 3.2)
    brow_ridge: float = _normal(3, 1.8)
    ear_length: float = _normal(30, 3.5)
    ear_out: float = _normal(7, 3)

    eye_apart: float = _normal(32, 2.3)
    eye_width: float = _normal(14.6, 1.3)
    eye_height: float = _normal(6.1, 0.9)
    eye_tilt: float = _normal(0.07, 0.07)
    eye_depth: float = _normal(7, 2.2)
    eye_fold: float = _uniform(0, 1)
    iris_radius: float = _normal(5.9, 0.3)

    brow_y: float = _normal(-19, 2.8)
    brow_length: float = _normal(20, 2.4)
    brow_thick: float = _normal(3.2, 1.1)
    brow_arch: float = _normal(3.5, 1.7)
    brow_slope: float = _normal(0, 0.09)
    brow_gap: float = _normal(11.5, 2.6)
    brow_dark: float = _normal(0.75, 0.17)

    nose_length: float = _normal(47, 4)
    nose_width: float = _normal(17, 2.7)
    nose_tip: float = _normal(21, 3.6)
    nose_bridge: float = _normal(9, 3)
    nose_bridge_width: float = _normal(9.5, 1.8)
    nose_hump: float = _normal(0, 1.9)
    nose_tip_radius: float = _normal(9.5, 1.8)
    nostril: float = _normal(0.55, 0.25)

    mouth_gap: float = _normal(21, 2.4)
    mouth_width: float = _normal(25, 2.8)
    upper_lip: float = _normal(6.2, 1.9)
    lower_lip: float = _normal(8.8, 2)
    cupid_bow: float = _normal(1.4, 0.9)
    mouth_corner: float = _normal(0, 1.4)
    lip_red: float = _normal(0.5, 0.22)

    asymmetry: float = _normal(0, 1.2)
    oily: float = _uniform(0.05, 0.45)
    mottle: float = _uniform(0.01, 0.06)
    ruddy: float = _uniform(0, 0.14)
    freckles: float = _uniform(-1.2, 0.5)

    skin: Colour = (0.5, 0.35, 0.25)
    hair: Colour = (0.05, 0.03, 0.02)
    iris: Colour = (0.05, 0.03, 0.02)
    age: float = _uniform(18, 78)
    masculine: float = _uniform(0, 1)
    hair_style: str = "short"
    hairline: float = _normal(-49, 6)
    hair_thick: float = _normal(12, 4)
    hair_part: float = _uniform(-1, 1)
    moustache: float = 0
    goatee: float = 0
    beard: float = 0
    wears_glasses: float = 0
    glasses_width: float = _normal(24, 2.5)
    glasses_height: float = _normal(17, 3)
    glasses_round: float = _uniform(2, 5)
    glasses_frame: float = _uniform(0.8, 2.6)
    moles: tuple[tuple[float, float, float], ...] = ()

    @property
    def lips_y(self) -> float:
        """Height of the line between the lips."""
        return self.nose_length + self.mouth_gap

    @property
    def chin_y(self) -> float:
        """Height of the lowest point of the chin."""
        return self.face_length + 5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What differs between two photographs of one person: pose, face, light, camera, dress."""

    yaw: float = _normal(0, 0.24)
    pitch: float = _normal(0.02, 0.12)
    log_distance: float = _uniform(math.log(380), math.log(1800))
    landmark_error: float = _uniform(0.4, 2.2)

    smile: float = _normal(0.3, 0.45)
    mouth_open: float = _normal(-0.1, 0.45)
    lids: float = _normal(0.92, 0.2)
    brow_raise: float = _normal(0, 2.2)
    frown: float = _normal(0, 0.07)
    gaze_x: float = _normal(0, 2.2)
    gaze_y: float = _normal(0.3, 1.0)

    light_x: float = _normal(0, 0.65)
    light_y: float = _normal(-0.45, 0.45)
    ambient: float = _uniform(0.2, 0.8)
    warmth: float = _normal(0, 0.12)
    fill_warmth: float = _normal(0, 0.1)
    shade: float = _uniform(-2.2, 0.9)
    shade_angle: float = _uniform(0, 2 * math.pi)
    shade_at: float = _normal(0, 45)
    shine: float = _uniform(0.3, 1.6)

    exposure: float = _normal(0, 0.33)
    contrast: float = _normal(0.1, 0.3)
    haze: float = _uniform(-0.08, 0.1)
    saturation: float = _normal(0.82, 0.2)
    grey: float = _uniform(0, 1)
    log_pixels: float = _uniform(math.log(0.36), math.log(1.15))
    blur: float = _uniform(-0.4, 1.1)
    motion: float = _uniform(-3, 2.2)
    motion_angle: float = _uniform(0, math.pi)
    log_noise: float = _uniform(math.log(0.004), math.log(0.045))
    jpeg: float = _uniform(35, 96)

    tan: float = _normal(0, 0.08)
    growth: float = _uniform(0, 1)
    hair_change: float = _uniform(0, 1)
    hat: float = _uniform(0, 1)
    in_front: float = _uniform(0, 1)
    glasses: float = _uniform(0, 1)
    dark_glasses: float = _uniform(0, 1)
    lipstick: float = _uniform(-1.4, 1)
    eyeliner: float = _uniform(-1, 1)


def draw(kind: type[T], rng: np.random.Generator, **given: Any) -> T:
    """Draw every distributed field of a dataclass `kind` that is not `given`."""
    values: dict[str, Any] = dict(given)
    for trait in fields(kind):  # type: ignore[arg-type]
        if trait.name in given:
            continue
        if "normal" in trait.metadata:
            mean, sd = trait.metadata["normal"]
            values[trait.name] = mean + sd * min(2.2, max(-2.2, float(rng.standard_normal())))
        elif "uniform" in trait.metadata:
            low, high = trait.metadata["uniform"]
            values[trait.name] = low + (high - low) * float(rng.random())
    return kind(**values)


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw a person: independent traits, then what age, sex and complexion pull together."""
    base = draw(Identity, rng, key=int(rng.integers(2**62)))
    tone, dye, eyes = (float(value) for value in rng.random(3))
    man = base.masculine > 0.5
    firm = base.masculine - 0.5
    years = (base.age - 18) / 60
    hair = palette(HAIR, dye**1.6 * (1.0 if tone < 0.45 else 0.4))
    silver = max(0.0, years - 0.62 + 0.25 * float(rng.standard_normal())) * 2.2
    styles = _STYLES[:7] if man else _STYLES[3:]
    style = styles[int(rng.integers(len(styles)))]
    if man and years < 0.25 and style in ("bald", "receding"):
        style = "short"
    hairy = man and rng.random() < 0.55
    whiskers = rng.random(3) * (rng.random(3) < (0.65, 0.55, 0.45)) if hairy else np.zeros(3)
    places = rng.standard_normal((int(rng.integers(0, 5)), 2)) * (34, 38) + (0, 25)
    return replace(
        base,
        skin=mix(palette(SKIN, tone), (0.5, 0.27, 0.2), 0.25 * float(rng.random())),
        hair=mix(hair, (0.42, 0.41, 0.4), min(silver, 0.95)),
        freckles=base.freckles if tone < 0.45 else 0.0,
        iris=palette(IRIS, eyes * (1.0 if tone < 0.4 else 0.2)),
        face_width=base.face_width + 4 * firm,
        jaw=base.jaw + 0.08 * firm,
        brow_ridge=base.brow_ridge + 3 * firm,
        brow_thick=max(1.3, base.brow_thick + 1.4 * firm),
        brow_y=base.brow_y + 2 * firm,
        eye_height=base.eye_height - 0.9 * firm - 0.6 * years,
        upper_lip=max(2.0, base.upper_lip - 1.4 * firm - 1.5 * years),
        lower_lip=max(3.5, base.lower_lip - 1.2 * firm - years),
        cheek=base.cheek - 2.5 * (years - 0.4),
        ear_length=base.ear_length + 3 * years,
        nose_length=base.nose_length + 2 * years + 2 * firm,
        hair_style=style,
        moustache=float(whiskers[0]),
        goatee=float(whiskers[1]),
        beard=float(whiskers[2]),
        wears_glasses=0.75 if rng.random() < 0.3 else 0.06,
        moles=tuple((float(x), float(y), 0.7 + 1.3 * float(rng.random())) for x, y in places),
    )
