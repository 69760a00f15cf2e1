"""A literate library of loss functions for PyTorch and fastai

Modules:

- `lossbook.all`: `from lossbook.all import *` for a notebook, `import lossbook as lb` for a program
- `lossbook.bi_tempered`: A loss that is bounded and a softmax with heavy tails, for labels that are wrong
- `lossbook.blocks`: From the value of one class to a loss, and how it stays quick
- `lossbook.catalog`: Every loss of the book in one table: formula, shape, parameters, and what was measured about it
- `lossbook.check`: One call that tells what a loss keeps of the promises that training code relies on
- `lossbook.contrastive`: Pull together what belongs together, and push away the rest of the batch: InfoNCE, SupCon, CLIP, SigLIP, ArcFace
- `lossbook.core`: What all losses share: targets, weights, reductions, errors and the base class
- `lossbook.cross_entropy`: How surprised a model should be, from likelihood to PyTorch's losses, derived step by step and ready for a Learner
- `lossbook.distillation`: A small network learns from the answers of a large one: what it takes for nearly right, and not only what is right
- `lossbook.focal`: Cross entropy that turns away from what the model already knows, and other ways to attend to the hard ones
- `lossbook.imbalance`: Weights from counts, the prior in the logits, margins for the rare, and a correction that trains nothing
- `lossbook.learner`: Data blocks for spans and soft labels, span metrics, and callbacks that watch a loss or train its parameters
- `lossbook.many_classes`: Any loss of the book without the logits, and the ways round the softmax
- `lossbook.margin`: Hinges for pairs, triplets, classes and ranked lists: right is not enough, it has to be right by a margin
- `lossbook.moving`: Sliders that work on a page without a kernel, and prove that they draw what the losses compute
- `lossbook.noisy_labels`: Losses that forgive wrong labels: the mean absolute error and its family
- `lossbook.plot`: Curves and maps of any loss, in one style
- `lossbook.properties`: Is a loss bounded, convex, robust, proper? A search for the worst logits says so, with a number
- `lossbook.regression`: From the mean to the median, to any quantile, and to a variance that trains
- `lossbook.segmentation`: Losses on areas: how much of a mask is right, and not how many pixels are
- `lossbook.skill`: Choose a loss function for PyTorch or fastai, call it with the right shapes, and check it, or any other loss. Read this before writing, choosing or debugging a loss.
- `lossbook.soft_labels`: From votes to a label that is a distribution, and the cross entropy against it, smoothed or not
- `lossbook.soft_metrics`: Accuracy, Brier score, calibration and confusion, counted in votes
- `lossbook.span`: Losses that find the first and the last position of a span, and know how long it should be
- `lossbook.training`: Small batches, MixUp and several devices as one big batch; schedules for a loss; the losses that fit the data"""

__version__ = "0.0.1"

# nbdev writes what stands above and leaves the rest of this file alone
import sys
from functools import cache
from importlib import import_module

@cache
def _names():
    "{name: module} of all that the chapters export, read from their sources, since importing them takes seconds"
    import ast, re
    from pkgutil import get_data
    from ._modidx import d
    mods = sorted((o.partition('.')[2] for o in d['syms']), key=lambda o: o!='core')
    res = {}
    for m in mods:
        names = re.search(r'^__all__ = (\[.*?\])', get_data(__name__, f'{m}.py').decode(), re.M|re.S)
        if names and m!='all': res = {**dict.fromkeys(ast.literal_eval(names[1]), m), **res}
    return {**res, **dict(zip(mods, mods))} # `lossbook.catalog` is the module, though it has a function of its name

def __getattr__(name):
    m = None if name.startswith('_') else _names().get(name)
    if m is None: raise AttributeError(f'module {__name__!r} has no attribute {name!r}', name=name, obj=sys.modules[__name__])
    mod = import_module(f'{__name__}.{m}')
    return mod if m==name else getattr(mod, name)

def __dir__(): return sorted({*_names(), *(o for o in globals() if o.startswith('__'))})
