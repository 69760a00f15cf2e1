"""A literate library of loss functions for PyTorch and fastai

Modules:

- `lossbook.check`: One call that tells what a loss keeps of the promises that training code relies on
- `lossbook.core`: What all losses share: shapes, targets, weights, reductions, checks and the base class
- `lossbook.plot`: Curves and maps of any loss, in one style
- `lossbook.soft_labels`: Cross entropy against labels that are distributions, smoothed or not"""

__version__ = "0.0.1"
