# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import torch
from collections.abc import Sequence
from functools import partial
from torch import Tensor
from .core import ClassLoss, check_range, is_zero
from .blocks import Scores, class_loss, gather, safe_nll

__all__ = ['smooth_soft_labels', 'soft_label_cross_entropy_with_logits', 'SoftLabelCrossEntropy', 'soft_label_cross_entropy']
def level(y, share): ...
def smooth_soft_labels(labels: Tensor, alpha: float = 0.1, axis: int = 1) -> Tensor: ...
def soft_label_cross_entropy_with_logits(logits: Tensor, target: Tensor, alpha: float = 0.0, reduction: str = 'mean', *, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
class SoftLabelCrossEntropy(ClassLoss):
    alpha: float
    weight: Tensor | None
    axis: int
    reduction: str
    ignore_index: int
    def __init__(self, alpha: float = 0.0, weight: Tensor | Sequence | None = None, axis: int = 1, reduction: str = 'mean', ignore_index: int = -100) -> None: ...
    formula: str
def soft_label_cross_entropy(probs: Tensor, target: Tensor, alpha: float = 0.0, reduction: str = 'mean', *, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
def prob_scores(probs): ...
