"""GPUs by name, with the figures of their datasheets: how fast they train, and how large their memory is.

    card = find("h100")
    card.speed                            # operations per second in training
    of_device("NVIDIA H100 80GB HBM3")    # the card by the name that runs record; None if unknown
    of_type("h100")                       # the card by its type in Slurm; None if unknown

Training a ResNet is bound by memory, so `speed` is the roofline of Williams et al. (2009): the peak, or the
bandwidth times the operations that training executes for each byte that it moves. Two measurements agree on
the latter, although they are six years and a factor of five in bandwidth apart. Estimates are rough: within a
factor of two for ResNets in half precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reproduce.messages import NotFoundError, unknown

OPERATIONS_PER_BYTE = 20.0
"""Operations of the backbone for each byte of the card's bandwidth, in training.

V100: 5 816 images/s of ResNet-50 on eight in mixed precision (NVIDIA/DeepLearningExamples, June 2019), each
image 3 x 8.2e9 operations, are 17.9e12 per second on each, 19.9 for a byte of its 900 GB/s. H200: a step of
MSBReg with ResNet-50 at 224 px, K = 4 and 128 images in bfloat16 takes 173.7 ms. Each view is four passes of
8.2e9, so these are 96.7e12 per second, 20.1 for a byte of its 4.8 TB/s. The shares of the peaks differ: .14
and .10.
"""
SPELLING = re.compile(r"[^a-z0-9]|^nvidia|^geforce")
"""Parts of a card's name that do not distinguish it."""
PART = re.compile(r"\bMIG\b|\b\d+g\.\d+gb\b", re.IGNORECASE)
"""Name of a part of a GPU (MIG), which has a part of its memory and of its speed."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as its datasheet describes it."""

    name: str
    """Name for `--on`."""
    title: str
    """Name in texts."""
    peak: float
    """Operations per second of the tensor cores in bfloat16 or float16, without sparsity, accumulated in
    float32."""
    bandwidth: float
    """Bytes of memory per second."""
    memory: float
    """Size of the memory in bytes, in powers of 1000 as in datasheets."""
    device: str
    """Pattern of the names that drivers report."""
    source: str
    """Document that contains these figures."""
    bfloat16: bool = True
    """False if the card computes bfloat16 by emulation only."""
    one_size: bool = True
    """False if cards of this name also exist with another memory."""

    @property
    def speed(self) -> float:
        """Operations of a backbone per second in training."""
        return min(self.peak, OPERATIONS_PER_BYTE * self.bandwidth)


CARDS = (
    Card(
        name="v100",
        title="NVIDIA V100",
        peak=125e12,
        bandwidth=900e9,
        memory=16e9,
        device=r"V100\b(?!.*32GB)",
        source="NVIDIA V100 Tensor Core GPU datasheet (January 2020), SXM2",
        bfloat16=False,
        one_size=False,
    ),
    Card(
        name="a100-40",
        title="NVIDIA A100 40 GB",
        peak=312e12,
        bandwidth=1555e9,
        memory=40e9,
        device=r"A100\b.*40GB",
        source="NVIDIA A100 Tensor Core GPU datasheet (2020), SXM",
    ),
    Card(
        name="a100-80",
        title="NVIDIA A100 80 GB",
        peak=312e12,
        bandwidth=2039e9,
        memory=80e9,
        device=r"A100\b.*80GB",
        source="NVIDIA A100 Tensor Core GPU datasheet (2021), SXM",
    ),
    Card(
        name="h100",
        title="NVIDIA H100",
        peak=989.5e12,
        bandwidth=3.35e12,
        memory=80e9,
        device=r"H100\b.*HBM3\b",
        source="NVIDIA H100 Tensor Core GPU datasheet, SXM; 1 979 TFLOPS with sparsity",
    ),
    Card(
        name="h200",
        title="NVIDIA H200",
        peak=989.5e12,
        bandwidth=4.8e12,
        memory=141e9,
        device=r"\bH200\b(?!.*NVL)",
        source="NVIDIA H200 Tensor Core GPU datasheet, SXM; 1 979 TFLOPS with sparsity",
    ),
    Card(
        name="rtx3090",
        title="NVIDIA RTX 3090",
        peak=71e12,
        bandwidth=936e9,
        memory=24e9,
        device=r"RTX 3090$",
        source="NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A",
    ),
    Card(
        name="rtx4090",
        title="NVIDIA RTX 4090",
        peak=165.2e12,
        bandwidth=1008e9,
        memory=24e9,
        device=r"RTX 4090$",
        source="NVIDIA Ada GPU Architecture whitepaper, appendix A",
    ),
    Card(
        name="a10g",
        title="NVIDIA A10G",
        peak=70e12,
        bandwidth=600e9,
        memory=24e9,
        device=r"A10G\b",
        source="NVIDIA A10G Tensor Core GPU datasheet",
    ),
    Card(
        name="l4",
        title="NVIDIA L4",
        peak=121e12,
        bandwidth=300e9,
        memory=24e9,
        device=r"\bL4$",
        source="NVIDIA L4 Tensor Core GPU datasheet; 242 TFLOPS with sparsity",
    ),
    Card(
        name="t4",
        title="NVIDIA T4",
        peak=65e12,
        bandwidth=320e9,
        memory=16e9,
        device=r"\bT4$",
        source="NVIDIA T4 Tensor Core GPU datasheet (2019)",
        bfloat16=False,
    ),
)
"""Every card that `--on` accepts."""


def find(name: str) -> Card:
    """Return the card of a name in any case, with or without `NVIDIA`, spaces and hyphens.

    Raises:
        NotFoundError: the card is unknown, or exists with several sizes of memory. The message names the
            nearest, and all that are known, or the sizes.
    """
    wanted = _bare(name)
    for card in CARDS:
        if wanted in (_bare(card.name), _bare(card.title), _bare(card.title).removeprefix("rtx")):
            return card
    names = [card.name for card in CARDS]
    sizes = [known for known in names if wanted and _bare(known).startswith(wanted)]
    if len(sizes) > 1:
        raise NotFoundError(f"There are several cards '{name:.80}': give one of {', '.join(sizes)}.")
    raise NotFoundError(unknown("card", name, names))


def of_device(name: str) -> Card | None:
    """Return the card of a device by the name that its driver reports.

    None if the card is unknown, or if the device is a part of a GPU.
    """
    if PART.search(name):
        return None
    return next((card for card in CARDS if re.search(card.device, name)), None)


def of_type(name: str) -> Card | None:
    """Return the card of a type of GPU as clusters name them, such as h100 or nvidia_a100-sxm4-80gb.

    None if the card is unknown, if it exists with several sizes of memory, or if the type is a part of a GPU.
    """
    text = name.upper().replace("_", " ")
    named = [card for card in CARDS if _bare(card.name) == _bare(name)]
    card = of_device(text) or next(iter(named), None)
    return card if card and (card.one_size or "GB" in text) else None


def _bare(name: str) -> str:
    bare = name.lower()
    while (shorter := SPELLING.sub("", bare)) != bare:
        bare = shorter
    return bare
