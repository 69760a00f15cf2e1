"""A literate library of loss functions for PyTorch and fastai

Modules:

- `lossbook.all`: `from lossbook.all import *` for a notebook, or for trying things out
- `lossbook.blocks`: From the value of one class to a loss, and how it stays quick
- `lossbook.catalog`: Every loss of the book in one table, with what was measured about it
- `lossbook.check`: One call that tells what a loss keeps of the promises that training code relies on
- `lossbook.core`: What all losses share: targets, weights, reductions, errors and the base class
- `lossbook.cross_entropy`: Sigmoid, softmax and PyTorch's losses on them, derived step by step and ready for a Learner
- `lossbook.focal`: Cross entropy that turns away from what the model already knows, and other ways to attend to the hard ones
- `lossbook.learner`: Data blocks for spans and soft labels, span metrics, and callbacks that watch a loss
- `lossbook.noisy_labels`: Losses that forgive wrong labels: the mean absolute error and its family
- `lossbook.plot`: Curves and maps of any loss, in one style
- `lossbook.soft_labels`: Cross entropy against labels that are distributions, smoothed or not
- `lossbook.span`: Losses that find the first and the last position of a span, and know how long it should be"""

__version__ = "0.0.1"
