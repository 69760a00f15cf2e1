# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import torch
from collections.abc import Sequence
from functools import partial
from torch import Tensor
from .core import ClassLoss, can_read, check_range, to_float
from .blocks import Scores, class_loss, derivative_of
from .noisy_labels import gce
from .soft_labels import smooth_soft_labels

__all__ = ['tempered_softmax', 'bi_tempered_loss_with_logits', 'BiTemperedLoss']
def newton(level, z, s): ...
def tempered_softmax(logits: Tensor, t: float = 1.2, axis: int = 1) -> Tensor: ...
def divergence(nll, y, t1): ...
def bi_tempered(z, y, t1, t2): ...
def bi_tempered_loss_with_logits(logits: Tensor, target: Tensor, t1: float = 0.8, t2: float = 1.2, reduction: str = 'mean', *, label_smoothing: float = 0.0, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
class BiTemperedLoss(ClassLoss):
    t1: float
    t2: float
    reduction: str
    label_smoothing: float
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, t1: float = 0.8, t2: float = 1.2, reduction: str = 'mean', *, label_smoothing: float = 0.0, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
    def activation(self, x): ...
raw: Scores
def tempered_nll(z, t, last=2): ...
def bi_tempered_slope(z, _, y, t1, t2): ...
