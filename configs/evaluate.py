"""The paper's evaluations of a pretrained encoder, each on the data set that it was pretrained on."""

from __future__ import annotations

from reproduce.protocols.alignment import AlignmentUniformity
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.linear import LinearEvaluation
from reproduce.spec import Evaluate, Pretrain


def linear(encoder: Pretrain) -> Evaluate:
    """A linear classifier on frozen features (section 8.1; htdt/self-supervised eval/sgd.py): `top1`, `top5`."""
    return Evaluate(encoder=encoder, protocol=LinearEvaluation(), dataset=encoder.dataset)


def knn5(encoder: Pretrain) -> Evaluate:
    """A majority vote of the 5 nearest neighbours (Table 1; htdt/self-supervised eval/knn.py): `top1`."""
    return Evaluate(encoder=encoder, protocol=NearestNeighbours(k=5), dataset=encoder.dataset)


def alignment(encoder: Pretrain) -> Evaluate:
    """Wang and Isola's two losses on projections (Table 12; ssnl/align_uniform): `alignment`, `uniformity`; on features: `..._features`."""
    return Evaluate(encoder=encoder, protocol=AlignmentUniformity(), dataset=encoder.dataset)
