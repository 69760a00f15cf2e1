"Every loss against a slow, plain formula: values, gradients, second derivatives; targets, weights, masks, reductions, dtypes"
import math, pytest, torch, torch.nn.functional as F
from copy import copy
from functools import cache
from fnmatch import fnmatch
from importlib import import_module
from types import SimpleNamespace
from lossbook._modidx import d
from lossbook.check import all_losses, loss_classes
from lossbook.contrastive import barlow_twins, vicreg
from lossbook.core import BinaryLoss, ClassLoss, Loss
from lossbook.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from lossbook.focal import OHEM, FocalLoss
from lossbook.many_classes import (AdaptiveSoftmaxLoss, LinearLoss, NCELoss, NegativeSamplingLoss, SampledSoftmaxLoss,
    nce_loss, negative_sampling_loss, sampled_softmax_loss)
from reference import REFERENCES, as_double, expected, kind_of, losses, n_preds, told, uses

LOSSES = losses()

@cache
def uses_of(name): return uses(LOSSES[name])

def weighs_labels(name):
    "Does the mean divide by the weights of the labels?"
    loss = LOSSES[name]
    return kind_of(loss)=='classes' and loss.weight is not None and not hasattr(loss, 'per_image') and not name.startswith('MultiMargin')
def is_negatives(name): return name in ('NTXentLoss-denominator=negatives','SupConLoss-denominator=negatives')

# what does not hold yet: (which losses, which uses, why). What holds has to leave the list
KNOWN = ((weighs_labels, 'nan_soft', 'a NaN in the label of a row without sample_weight gets into what the mean divides by'),
    (lambda name: name=='BiTemperedLoss-t1=1.0-t2=1.0', 'ruled_out*', 'the derivative of a class that is ruled out has 0 times infinity in it'),
    (is_negatives, '*_labels', 'the derivative divides counts in float32'), (is_negatives, 'bools', 'the derivative divides counts in float32'))
def known(name): return {k for k in chosen(name) if any(these(name) and fnmatch(k, use) for these,use,_ in KNOWN)}
# what the book replaces by a formula with an error that it knows
TOLERANCE = {'BarronLoss-alpha=0.0': 2e-6}

def test_every_loss_has_a_reference():
    "A new loss needs a formula of its own in tests/reference.py"
    exported = set()
    for mod in d['syms']:
        if mod.split('.')[-1] in ('core','all'): continue
        m = import_module(mod)
        exported |= {k for k in getattr(m, '__all__', ()) if isinstance(o := getattr(m, k), type) and issubclass(o, Loss)}
    own = {o.__name__ for o in (LinearLoss, AdaptiveSoftmaxLoss, NCELoss, NegativeSamplingLoss, SampledSoftmaxLoss, OHEM)}
    assert exported-own <= set(REFERENCES) and set(loss_classes()) <= set(REFERENCES)
    assert set(REFERENCES) == {type(o).__name__ for o in LOSSES.values()}

def fresh(args, kwargs, n, dtype=torch.double):
    "Arguments of their own in a dtype, and those that get a gradient"
    learned = []
    def own(o, grad):
        if isinstance(o, (tuple,list)): return tuple(own(p, grad) for p in o)
        if not (isinstance(o, torch.Tensor) and o.is_floating_point()): return o
        grad,o = grad or o.requires_grad,o.detach().to(dtype).clone()
        if grad: learned.append(o.requires_grad_())
        return o
    return tuple(own(o, i<n) for i,o in enumerate(args)),{k: own(o, False) for k,o in kwargs.items()},learned

def derivatives(v, learned, second):
    "The gradient of a value, times factors, and that of the gradient, likewise"
    g = torch.Generator().manual_seed(1)
    def factors(o): return torch.rand(o.shape, generator=g).to(o.dtype)+.5
    def grads(o):
        if not o.requires_grad: return [torch.zeros_like(t) for t in learned]
        return torch.autograd.grad((o*factors(o)).sum(), learned, create_graph=second, allow_unused=True, materialize_grads=True)
    first = grads(v)
    if not second: return first,()
    return first,grads(sum((o*factors(o)).sum() for o in first))

def close(a, b, what, tol):
    "Are two tensors alike, to `tol` of the largest value?"
    a,b = a.detach().double(),b.detach().double()
    size = b[b.isfinite()].abs().max().clamp(min=1).item() if b.isfinite().any() else 1.
    torch.testing.assert_close(a, b, rtol=tol, atol=tol*size, equal_nan=True, msg=lambda m: f'{what}: {m}')

def compare(f, reference, learned, dtype=torch.double, second=True, tol=1e-8, grad_tol=None):
    "A value and its derivatives by what is learned are those of the reference"
    got,want = f(),reference()
    assert got.dtype==(torch.double if dtype==torch.double else torch.float) and got.shape==want.shape
    close(got, want, 'value', tol)
    for what,a,b in zip(('gradient','second derivative'), derivatives(got, learned, second), derivatives(want, learned, second)):
        for i,(u,v) in enumerate(zip(a, b)): close(u, v, f'{what} {i}', grad_tol or tol)

def hold(loss, args, kwargs, reduction, dtype=torch.double, **how):
    "A loss gives what its reference gives"
    args,kwargs,learned = fresh(args, kwargs, n_preds(loss), dtype)
    loss = copy(loss) if dtype==torch.double else loss.with_params().float()
    loss.reduction = reduction
    learned += [o for o in loss.parameters() if o.requires_grad]
    compare(lambda: loss(*args, **kwargs), lambda: expected(loss, args, kwargs, reduction), learned, dtype, **how)

def failures(cases):
    "What fails of {key: function}, and how"
    bad = {}
    for k,f in cases.items():
        try: f()
        except Exception as e: bad[k] = f'{type(e).__name__}: {str(e)[:400]}'
    return bad

def report(bad, known=()):
    "Raise unless what fails is what is known to fail"
    text = [f'{k}: {v}' for k,v in bad.items() if k not in known] + [f'{k} holds now: take it off the list' for k in known if k not in bad]
    assert not text, '\n'.join(text)

# of a loss with other numbers: what these could change
SOME = ('indices','soft','dense_soft_each','last_soft','nan_soft','nan_masked','everything','everything_soft','learned_weight','learned_soft',
    'ruled_out','ruled_out_soft','empty','one_hot','smoothed_soft','floats','each','ignored','mask','weighted','dense','last','dense_each',
    'tuple','views','labels','many_labels','bools','negatives_weighted','no_labels','no_pixels','dense_mask')
def chosen(name): return {k: o for k,o in uses_of(name).items() if name in REFERENCES or k in SOME}

@pytest.mark.parametrize('name', LOSSES)
def test_uses(name):
    "All forms of target, weights and masks, with each reduction; derivatives by scores, parameters and what else is learned"
    tol = TOLERANCE.get(name, 1e-8)
    def case(use, r): return lambda: hold(*use, r, second=r=='none', tol=tol)
    bad = failures({f'{k} {r}': case(use, r) for k,use in chosen(name).items() for r in ('mean','sum','none')})
    old = known(name)
    report({k: v for k,v in bad.items() if k.split()[0] not in old} | {k: '' for k in old if any(o.split()[0]==k for o in bad)}, old)

# ---- dtypes

DTYPES = {torch.half: (1e-5,2e-3), torch.bfloat16: (1e-5,1.6e-2), torch.float: (1e-5,2e-5)}
IN_DTYPES = 'indices','soft','everything','everything_soft','floats','dense_each','tuple','views','far','var'

@pytest.mark.parametrize('dtype', DTYPES, ids=lambda t: str(t)[6:])
@pytest.mark.parametrize('name', LOSSES)
def test_dtypes(name, dtype):
    "The value is that of the rounded scores, in float32; the gradient is as exact as the dtype"
    tol,grad_tol = DTYPES[dtype]
    def case(use): return lambda: hold(*use, 'none', dtype, second=False, tol=tol, grad_tol=grad_tol)
    report(failures({k: case(use) for k,use in uses_of(name).items() if k in IN_DTYPES}))
