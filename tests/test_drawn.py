"""Random numbers that stored runs depend on: parameters of views, one view, initial weights.

    PYTHONPATH=. python tests/test_drawn.py    # renews tests/golden/drawn.json: every run changes

The golden values are also compared with a hash in whole numbers, with torchvision's view and with the
distributions of the initial weights. Floats are rounded and compared with a tolerance: the last bits of
logarithms and products depend on the processor.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from toys import PRETRAIN

from reproduce.data import draws, views
from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.methods.msbreg import MSBReg
from reproduce.nn import seeds
from reproduce.nn.heads import Heads
from reproduce.train import build_network

GOLDEN = Path(__file__).parent / "golden" / "drawn.json"
AUGMENTATION = Augmentation(crop_scale=(0.2, 1.0), grey=0.4, blur=0.5, solarize=0.4, saturation=0.3)
SIZES = np.array([[20, 30], [96, 96], [40, 15], [7, 90]])
IMAGES = np.array([0, 1, 500, 1_281_166])
"""Numbers of images; the crops of the last one fall back to the centre."""
LATER = ("photometric", "bits", "sharpness", "threshold")
"""Parameters of operations that no stored run has; `test_photometric.py` checks them."""
KEYS = [
    {"seed": seed, "epoch": epoch, "view": view} for seed, epoch, view in ((0, 0, 0), (0, 1, 3), (1, 0, 1))
]
VIEW = {"seed": 1, "epoch": 22, "view": 3}
"""A view with every operation: the first image is blurred, the second grey; both are jittered."""
NETWORK = PRETRAIN.replace("method", MSBReg(heads=Heads(hidden=32, output=8)))


# What the suite draws.


def drawn(key: dict[str, int]) -> list[dict[str, Any]]:
    """Return the parameters of one view of each image."""
    found = draws.draw(AUGMENTATION, SIZES, IMAGES, **key)
    names = [name for name in found.__dataclass_fields__ if name not in LATER]
    return [
        {name: rounded(getattr(found, name)[row].tolist()) for name in names} for row in range(len(IMAGES))
    ]


def pixels() -> torch.Tensor:
    """Return two smooth images of 12 pixels, (2, 3, 12, 12) uint8, from whole numbers."""
    values = [
        [[[(20 * y + 9 * x * (c + 1) + 40 * c + 90 * i) % 256 for x in range(12)] for y in range(12)]
         for c in range(3)]
        for i in range(2)
    ]  # fmt: skip
    return torch.tensor(values, dtype=torch.uint8)


def view() -> torch.Tensor:
    """Return one view of both images, large enough for a blur: every third pixel of 22, (2, 3, 8, 8)."""
    sizes, images = torch.full((2, 2), 12), torch.tensor([5, 77])
    return views.sample(pixels(), sizes, images, augmentation=AUGMENTATION, size=22, **VIEW)[..., ::3, ::3]


def initial(seed: int) -> dict[str, torch.Tensor]:
    """Return the initial weights of a small network by name."""
    return dict(build_network(NETWORK.replace("seed", seed)).online.named_parameters())


def summary(value: torch.Tensor) -> list[float]:
    """Return the first and the last value, and two sums that each value enters with a weight of its own."""
    x = value.detach().double().flatten()
    weights = torch.arange(1, len(x) + 1).double()
    return [round(v.item(), 5) for v in (x[0], x[-1], (x * weights.cos()).sum(), (x * weights.sin()).sum())]


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 10) if isinstance(value, float) else value


def everything() -> dict[str, Any]:
    """Return the content of the golden file."""
    return {
        "draws": [drawn(key) for key in KEYS],
        "view": [round(value, 4) for value in view().flatten().tolist()],
        "weights": [
            {name: summary(value) for name, value in initial(seed).items()} for seed in range(2)
        ],
    }  # fmt: skip


# Comparison with the golden file, and of the golden file with something else.


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_drawn_parameters_are_those_of_stored_runs(golden: Any, number: int) -> None:
    for found, expected in zip(drawn(KEYS[number]), golden["draws"][number], strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_the_stored_parameters_follow_from_a_hash_in_whole_numbers(golden: Any, number: int) -> None:
    for row, expected in enumerate(golden["draws"][number]):
        height, width = SIZES[row].tolist()
        found = by_hand(height, width, int(IMAGES[row]), **KEYS[number])
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value == pytest.approx(expected[name], abs=1e-9), name


def test_stored_parameters_contain_both_answers_to_each_question(golden: Any) -> None:
    found = [one for many in golden["draws"] for one in many]
    for name in ("flip", "jitter", "grey", "blur", "solarize"):
        assert {one[name] for one in found} == {False, True}, name
    assert [many[3]["box"] for many in golden["draws"]] == [[0, 40, 7, 9]] * 3, "the central crop"


def test_a_view_is_that_of_stored_runs(golden: Any) -> None:
    expected = torch.tensor(golden["view"]).view(2, 3, 8, 8)
    torch.testing.assert_close(view(), expected, atol=1 / 1000, rtol=0)


def test_the_stored_view_is_torchvisions(golden: Any) -> None:
    parameters = draws.draw(AUGMENTATION, np.full((2, 2), 12), np.array([5, 77]), **VIEW)
    assert parameters.jitter.any()
    assert parameters.blur.any()
    for row, expected in enumerate(torch.tensor(golden["view"]).view(2, 3, 8, 8)):
        by_torchvision = with_torchvision(pixels()[row], parameters, row)[..., ::3, ::3]
        torch.testing.assert_close(by_torchvision, expected, atol=1 / 1000, rtol=0)


def with_torchvision(image: torch.Tensor, drawn: draws.Draws, row: int) -> torch.Tensor:
    """Return a view of 22 pixels, whose blur has three taps, by torchvision's functions in BYOL's order."""
    box = drawn.box[row].tolist()
    x = tv.resized_crop(image.float() / 255, *box, [22, 22], InterpolationMode.BICUBIC, antialias=True)
    x = x.clamp(0, 1)
    x = tv.horizontal_flip(x) if drawn.flip[row] else x
    strengths = [*drawn.factors[row].tolist(), float(drawn.hue[row])]
    parts = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for part in drawn.order[row] if drawn.jitter[row] else ():
        x = parts[part](x, strengths[part])
    x = tv.rgb_to_grayscale(x, 3) if drawn.grey[row] else x
    x = tv.gaussian_blur(x, [3, 3], [float(drawn.sigma[row])]) if drawn.blur[row] else x
    solarized: torch.Tensor = tv.solarize(x, 0.5) if drawn.solarize[row] else x
    return solarized


@pytest.mark.parametrize("seed", range(2))
def test_initial_weights_are_those_of_stored_runs(golden: Any, seed: int) -> None:
    found, expected = initial(seed), golden["weights"][seed]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert summary(value) == pytest.approx(expected[name], abs=1e-3, rel=1e-4), name


@pytest.mark.parametrize("seed", range(2))
def test_initial_weights_have_torchvisions_distributions(seed: int) -> None:
    """Convolutions are normal with variance 2 / fan-out, linear layers uniform to 1 / sqrt(inputs)."""
    found = initial(seed)
    for name, value in found.items():
        n = value.numel()
        if value.ndim == 4:
            std = math.sqrt(2 / (value.shape[0] * value.shape[2] * value.shape[3]))
            assert abs(value.mean()) < 5 * std / math.sqrt(n), name
            assert value.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name
        elif f"{name.rpartition('.')[0]}.weight" in found and found[_weight_of(name)].ndim == 2:
            bound = found[_weight_of(name)].shape[1] ** -0.5
            assert 0.5 * bound < value.abs().max() <= bound, name
        else:
            assert set(value.tolist()) == {float(name.endswith("weight"))}, name


def _weight_of(name: str) -> str:
    return f"{name.rpartition('.')[0]}.weight"


@pytest.mark.parametrize(
    ("purpose", "counters", "text"),
    [("weights", (0,), "weights 0"), ("order", (3, 11), "order 3 11"), ("noise", (1, 0), "noise 1 0")],
)
def test_a_stream_is_the_hash_of_its_purpose_and_its_counters(
    purpose: str, counters: tuple[int, ...], text: str
) -> None:
    first = hashlib.blake2b(text.encode(), digest_size=4).digest()
    expected = sum(byte << 8 * place for place, byte in enumerate(first))
    assert seeds.seed(purpose, *counters) == expected
    generator = torch.Generator().manual_seed(expected)
    assert torch.equal(
        torch.randperm(50, generator=seeds.generator(purpose, *counters)),
        torch.randperm(50, generator=generator),
    )


def test_small_crops_draw_from_the_same_numbers() -> None:
    small = Augmentation(small=SmallCrops(size=8)).of_view(2)
    key = {"seed": 0, "epoch": 0, "view": 2}
    assert draws.draw(small, SIZES, IMAGES, **key).hue.tolist() == pytest.approx(
        [by_hand(20, 30, int(image), **key)["hue"] for image in IMAGES]
    )


# A view's parameters in plain Python.


def split_mix(state: int, counter: int) -> int:
    """Return output number `counter` of the generator SplitMix64 with this state."""
    z = (state + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def by_hand(height: int, width: int, image: int, *, seed: int, epoch: int, view: int) -> dict[str, Any]:
    """Return the parameters of one view of one image, from numbers of 53 bits in fixed slots."""
    state = 0
    for part in (seed, epoch, view, image):
        state = split_mix(state, part)
    u = [(split_mix(state, slot) >> 11) / 2**53 for slot in range(48)]
    a = AUGMENTATION
    return {
        "box": box_by_hand(height, width, u[16:26], u[32:42], u[1], u[2]),
        "flip": u[0] < a.flip,
        "jitter": u[3] < a.jitter,
        "order": list(list(itertools.permutations(range(4)))[int(24 * u[4])]),
        "factors": [
            1 - strength + 2 * strength * u[5 + part]
            for part, strength in enumerate((a.brightness, a.contrast, a.saturation))
        ],
        "hue": a.hue * (2 * u[8] - 1),
        "grey": u[9] < a.grey,
        "blur": u[10] < a.blur,
        "sigma": 0.1 + 1.9 * u[11],
        "solarize": u[12] < a.solarize,
    }


def box_by_hand(
    height: int, width: int, areas: list[float], ratios: list[float], top: float, left: float
) -> list[int]:
    """Return torchvision's crop: the first of ten that fits, or the largest in the centre."""
    (least, most), (narrow, wide) = AUGMENTATION.crop_scale, AUGMENTATION.crop_ratio
    for share, place in zip(areas, ratios, strict=True):
        area = height * width * (least + (most - least) * share)
        ratio = narrow * (wide / narrow) ** place
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
    w = round(height * wide) if width / height > wide else width
    h = round(width / narrow) if width / height < narrow else height
    return [(height - h) // 2, (width - w) // 2, h, w]


if __name__ == "__main__":
    text = json.dumps(everything(), separators=(",", ":"))
    GOLDEN.write_text(text.replace("},", "},\n") + "\n")
