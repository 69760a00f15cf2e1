# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import numpy as np, torch
from collections.abc import Sequence, Set
from torch import Tensor
from .core import BinaryLoss, ClassLoss, binary_batch, can_read, check_axis, check_int
from .core import check_range, check_reduction, check_unit, check_weight
from .core import class_batch, counted, expand_weight, left_out, numbers_of
from .core import reduce, to_float
from .blocks import needs_formula, no_counts, one_hot, shielded

__all__ = ['dice_loss_with_logits', 'DiceLoss', 'binary_dice_loss_with_logits', 'BinaryDiceLoss', 'jaccard_loss_with_logits', 'binary_jaccard_loss_with_logits', 'JaccardLoss', 'BinaryJaccardLoss', 'tversky_loss_with_logits', 'binary_tversky_loss_with_logits', 'TverskyLoss', 'BinaryTverskyLoss', 'focal_tversky_loss_with_logits', 'binary_focal_tversky_loss_with_logits', 'FocalTverskyLoss', 'BinaryFocalTverskyLoss', 'lovasz_loss_with_logits', 'binary_lovasz_loss_with_logits', 'LovaszLoss', 'BinaryLovaszLoss']
def areas(p, y, w=None, squared=False): ...
def dice(both, pred, true, nr, dr): ...
def dice_loss_with_logits(logits: Tensor, target: Tensor, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
class MasksLoss:
    as_given: tuple
    @property
    def check_skips(self): ...
    def per_class(self): ...
class ClassMasksLoss(MasksLoss, ClassLoss): ...
class BinaryMasksLoss(MasksLoss, BinaryLoss):
    def random_scores(self, n): ...
class DiceLoss(ClassMasksLoss):
    smooth_nr: float
    smooth_dr: float
    squared: bool
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
def binary_dice_loss_with_logits(logits: Tensor, target: Tensor, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: float | None = None, axis: int | None = 1) -> Tensor: ...
class BinaryDiceLoss(BinaryMasksLoss):
    smooth_nr: float
    smooth_dr: float
    squared: bool
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: float | None
    axis: int | None
    def __init__(self, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: float | None = None, axis: int | None = 1) -> None: ...
    formula: str
def jaccard(both, pred, true, nr, dr): ...
def jaccard_loss_with_logits(logits: Tensor, target: Tensor, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
def binary_jaccard_loss_with_logits(logits: Tensor, target: Tensor, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: float | None = None, axis: int | None = 1) -> Tensor: ...
class JaccardLoss(ClassMasksLoss):
    smooth_nr: float
    smooth_dr: float
    squared: bool
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
class BinaryJaccardLoss(BinaryMasksLoss):
    smooth_nr: float
    smooth_dr: float
    squared: bool
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: float | None
    axis: int | None
    def __init__(self, smooth_nr: float = 1.0, smooth_dr: float = 1.0, squared: bool = False, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: float | None = None, axis: int | None = 1) -> None: ...
    formula: str
def tversky(both, pred, true, alpha, beta, nr, dr): ...
def tversky_loss_with_logits(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
def binary_tversky_loss_with_logits(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: float | None = None, axis: int | None = 1) -> Tensor: ...
class TverskyLoss(ClassMasksLoss):
    alpha: float
    beta: float
    smooth_nr: float
    smooth_dr: float
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
class BinaryTverskyLoss(BinaryMasksLoss):
    alpha: float
    beta: float
    smooth_nr: float
    smooth_dr: float
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: float | None
    axis: int | None
    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: float | None = None, axis: int | None = 1) -> None: ...
    formula: str
def focal_tversky(both, pred, true, alpha, beta, gamma, nr, dr): ...
def focal_tversky_loss_with_logits(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.3333333333333333, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
def binary_focal_tversky_loss_with_logits(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.3333333333333333, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: float | None = None, axis: int | None = 1) -> Tensor: ...
class FocalTverskyLoss(ClassMasksLoss):
    alpha: float
    beta: float
    gamma: float
    smooth_nr: float
    smooth_dr: float
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.3333333333333333, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
class BinaryFocalTverskyLoss(BinaryMasksLoss):
    alpha: float
    beta: float
    gamma: float
    smooth_nr: float
    smooth_dr: float
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: float | None
    axis: int | None
    def __init__(self, alpha: float = 0.3, beta: float = 0.7, gamma: float = 1.3333333333333333, smooth_nr: float = 1.0, smooth_dr: float = 1.0, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: float | None = None, axis: int | None = 1) -> None: ...
    formula: str
def steps(y, w): ...
def lovasz(errors, y, w=None): ...
def distance(p, y): ...
def hinge(x, y): ...
def lovasz_loss_with_logits(logits: Tensor, target: Tensor, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: int = -100, axis: int = 1) -> Tensor: ...
def binary_lovasz_loss_with_logits(logits: Tensor, target: Tensor, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, sample_weight: Tensor | None = None, ignore_index: float | None = None, axis: int | None = 1) -> Tensor: ...
class LovaszLoss(ClassMasksLoss):
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: int
    axis: int
    def __init__(self, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: int = -100, axis: int = 1) -> None: ...
    formula: str
class BinaryLovaszLoss(BinaryMasksLoss):
    reduction: str
    per_image: bool
    empty: float | str
    classes: Sequence | None
    weight: Tensor | None
    ignore_index: float | None
    axis: int | None
    def __init__(self, reduction: str = 'mean', *, per_image: bool = True, empty: float | str = 'keep', classes: Sequence | None = None, weight: Tensor | Sequence | None = None, ignore_index: float | None = None, axis: int | None = 1) -> None: ...
    formula: str
def softmax(x): ...
def hot(y, x): ...
def over(value, squared=False, **params): ...
def sorted_by(errors, raw=False): ...
def pixels(o): ...
def class_masks(logits, target, value, reduction, *, sample_weight=None, ignore_index=-100, axis=1, **how): ...
def binary_masks(logits, target, value, reduction, *, sample_weight=None, ignore_index=None, axis=1, **how): ...
def masks_loss(value, x, y, w, image, act, reduction, *, per_image, empty, classes, weight): ...
def shares(like, valid, sample_weight, per_image, classes=None): ...
def class_shares(classes, weight, like): ...
def check_empty(empty): ...
def per_class(y, v, like): ...
class SoftmaxAreas(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, w, squared): ...
    @staticmethod
    def backward(ctx, both, pred, _): ...
def largest_first(e): ...
