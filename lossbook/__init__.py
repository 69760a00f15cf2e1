"""A literate library of loss functions for PyTorch and fastai

Modules:

- `lossbook.core`: What all losses share: shapes, targets, weights, reductions, checks and the base class
- `lossbook.plot`: Curves of any loss, in one style
- `lossbook.soft_labels`: Cross entropy against labels that are distributions, smoothed or not"""

__version__ = "0.0.1"
