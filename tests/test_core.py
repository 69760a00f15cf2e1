"The first batch: what `check_batch` finds; and what is said where something else was meant, or is missing"
import inspect, pytest, re, subprocess, sys, torch, torch.nn.functional as F, warnings
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from torch import nn
from lossbook.check import check_loss, loss_classes
from lossbook.core import BinaryLoss, ClassLoss, check_batch
from lossbook.focal import OHEM
fl = pytest.importorskip('fastai.losses')

ours = {k: o for k,o in loss_classes().items()} | dict(OHEM=lambda: OHEM(loss_classes()['FocalLoss']()))
on_logits = 'CrossEntropyLoss KLDivWithLogitsLoss FocalLoss PolyLoss GeneralizedCrossEntropy SoftLabelCrossEntropy OHEM'.split()
binaries = 'BCEWithLogitsLoss BinaryFocalLoss AsymmetricLoss MultiLabelSoftMarginLoss'.split()
others = [nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy, label_smoothing=.1), fl.CrossEntropyLossFlat(),
    fl.FocalLossFlat(), fl.LabelSmoothingCrossEntropy()]
binary_others = [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, fl.BCEWithLogitsLossFlat()]

def name(o): return o if isinstance(o, str) else getattr(o, '__name__', type(o).__name__)
def made(o): return ours[o]() if isinstance(o, str) else o

@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=g),torch.randint(3, (8,), generator=g)

def quiet(*args):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_batch(*args)

@pytest.mark.parametrize('loss', [*ours, *others, *binary_others, nn.MSELoss(), lambda p,y: (p-y).abs().mean()], ids=name)
def test_says_nothing(loss, batch):
    "Nothing is wrong with a batch of scores, whoever's the loss is"
    loss = made(loss)
    if hasattr(loss, 'example'): return quiet(loss, *loss.example(8))
    x,y = batch
    quiet(loss, x, y if loss in others else F.one_hot(y, 3).float())

@pytest.mark.parametrize('loss', [*on_logits, *others], ids=name)
def test_softmax_twice(loss, batch):
    x,y = batch
    with pytest.warns(UserWarning, match='between 0 and 1 and sum to 1 .* the softmax is in the loss'):
        check_batch(made(loss), x.softmax(1), y)
    with pytest.warns(UserWarning): check_batch(made(loss), x.softmax(1).half(), y)
    quiet(made(loss), x.log_softmax(1), y)

@pytest.mark.parametrize('loss', [*binaries, *binary_others], ids=name)
def test_sigmoid_twice(loss, batch):
    x,y = batch[0],F.one_hot(batch[1], 3).float()
    with pytest.warns(UserWarning, match='between 0 and 1, .* the sigmoid is in the loss'): check_batch(made(loss), x.sigmoid(), y)
    # a new network may give small positive scores; what made them is known while it trains
    small = nn.Linear(3, 3)
    small.weight.data.zero_()
    small.bias.data.fill_(.01)
    quiet(made(loss), small(x), y)
    with pytest.warns(UserWarning): check_batch(made(loss), small(x).sigmoid()[:,:], y)
    quiet(made(loss), 0*x, y) # a last layer that starts at 0

def test_takes_probabilities(batch):
    x,y = batch
    quiet(ours['BCELoss'](), x.sigmoid(), F.one_hot(y, 3).float())
    quiet(nn.BCELoss(), x.sigmoid(), F.one_hot(y, 3).float())

@pytest.mark.parametrize('loss', [*ours, *others, *binary_others, nn.MSELoss()], ids=name)
def test_nan_scores(loss, batch):
    "A score that is no number ends the check"
    made_ = made(loss)
    pred,*target = made_.example(8) if hasattr(made_, 'example') else (batch[0],batch[1] if loss in others else F.one_hot(batch[1], 3).float())
    pred = tuple(o.clone() for o in pred) if isinstance(pred, tuple) else pred.clone()
    (pred[0] if isinstance(pred, tuple) else pred).view(8,-1)[0] = torch.nan
    with pytest.raises(ValueError): check_batch(made_, pred, *target)

@pytest.mark.parametrize('loss', ['CrossEntropyLoss', nn.CrossEntropyLoss()], ids=name)
def test_nan_message(loss, batch):
    x,y = batch
    x[0,1] = torch.nan
    with pytest.raises(ValueError, match='nan in 1 of 24'): check_batch(made(loss), x, y)
    y[0] = -100 # what is left out may be anything
    quiet(made(loss), x, y)
    x[1,0] = -torch.inf # a class that is ruled out
    y[1] = 1
    quiet(made(loss), x, y)

def test_language_model(batch):
    x,y = torch.randn(2,5,3),torch.randint(3, (2,5))
    ce = ours['CrossEntropyLoss']
    with pytest.raises(ValueError, match='axis=-1 would fit'): check_batch(ce(), x, y)
    with pytest.raises(ValueError, match='axis=1 would fit'): check_batch(ce(axis=-1), x.mT, y)
    with pytest.raises(ValueError, match='got .2, 4.$'): check_batch(ce(), x, y[:,:4])
    for loss in (ce(), nn.CrossEntropyLoss()):
        with pytest.warns(UserWarning, match='axis 1 and the last axis .* axis=-1'): check_batch(loss, x[:,:3], y[:,:3])
    quiet(ce(axis=-1), x[:,:3], y[:,:3])
    quiet(ce(), x[:,:3].softmax(1).log(), x[:,:3].softmax(1))

def test_values_of_others(batch):
    "Values are looked at before a loss of others runs, which on an accelerator might not survive them"
    x,y = batch
    for loss in others[:4]:
        with pytest.raises(ValueError, match='target must be in 0..2'): check_batch(loss, x, y+1)
    with pytest.raises(ValueError, match='target must sum to 1'): check_batch(nn.CrossEntropyLoss(), x, x.exp())
    with pytest.raises(ValueError, match='target must be in .0, 1.'): check_batch(nn.BCEWithLogitsLoss(), x, 2*F.one_hot(y, 3).float())

def test_values_that_are_no_tensor(batch):
    "A loss may give anything, such as a pair"
    quiet(lambda p,y: (F.cross_entropy(p, y),len(y)), *batch)

# labels that are unknown

def nans(name): return {k: o for k,o in loss_classes().items() if (p := inspect.signature(o).parameters.get(name)) and p.default is None}
marking = pytest.mark.parametrize('name', nans('ignore_index'))

def labels(shape, dtype=torch.double):
    g = torch.Generator().manual_seed(1)
    x,y = torch.randn(shape, generator=g).to(dtype),torch.randint(2, shape, generator=g).to(dtype)
    out = torch.rand(shape, generator=g)<.3
    out[1] = True # of one example nothing is known
    return x,y,out

def scored(f, x): return (x.sigmoid() if 'BCELoss' in type(f).__name__ else x).detach().requires_grad_()

def test_losses_mark_labels(): assert len(nans('ignore_index'))>=9

@marking
@pytest.mark.parametrize('dtype', [torch.half,torch.bfloat16,torch.float,torch.double])
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('shape', [(5,3),(5,3,2,2)], ids=str)
def test_labels_that_are_nan(name, dtype, reduction, shape):
    "NaN is left out as a number is: from value, mean, weights and gradient"
    x,y,out = labels(shape, dtype)
    for params in ({}, dict(weight=[1.,2.,.5])):
        f,g = (ours[name](reduction=reduction, ignore_index=i, **params) for i in (float('nan'),-1.))
        for w in (None, torch.tensor([1.,2.,0.,.5,1.])):
            xs,kw = [scored(f, x) for _ in range(2)],{} if w is None else dict(sample_weight=w)
            a,b = f(xs[0], y.masked_fill(out, torch.nan), **kw),g(xs[1], y.masked_fill(out, -1), **kw)
            assert a.isfinite().all() and a.equal(b)
            ga,gb = (torch.autograd.grad(v.sum(), z)[0] for v,z in zip((a,b), xs))
            assert ga.isfinite().all() and ga.equal(gb) and not ga[out].any()
            if reduction=='none': assert not a[1].any()
        check_batch(f, xs[0], y.masked_fill(out, torch.nan))
        assert f(xs[0], y*torch.nan).eq(0).all() # nothing counts

@marking
def test_contract_with_nan(name):
    f = ours[name](ignore_index=float('nan'))
    assert 'ignore_index=nan' in repr(f)
    rep = check_loss(f, skip=dict(recompiles='slow'))
    assert rep.ok, rep

def test_rows_of_known_labels():
    "The multi-label soft margin of a row is that of its known labels, and PyTorch's where all are known"
    cls = ours['MultiLabelSoftMarginLoss']
    x,y,out = labels((5,3))
    f = cls(reduction='none', ignore_index=float('nan'))
    want = [F.binary_cross_entropy_with_logits(a[~o], b[~o]) if (~o).any() else a.sum()*0 for a,b,o in zip(x, y, out)]
    got = f(x, y.masked_fill(out, torch.nan))
    torch.testing.assert_close(got, torch.stack(want))
    torch.testing.assert_close(cls(ignore_index=float('nan'))(x, y.masked_fill(out, torch.nan)), got[(~out).any(1)].mean())
    torch.testing.assert_close(f(x, y), F.multilabel_soft_margin_loss(x, y, reduction='none'))
    assert [*inspect.signature(cls).parameters][:2]==[*inspect.signature(nn.MultiLabelSoftMarginLoss).parameters][:1]+['reduction']
    assert inspect.signature(cls).parameters['ignore_index'].kind==inspect.Parameter.KEYWORD_ONLY

@pytest.mark.parametrize('name', [k for k,o in loss_classes().items() if isinstance(getattr(o(), 'ignore_index', None), int)])
def test_classes_are_never_nan(name):
    with pytest.raises(TypeError, match='ignore_index must be an integer, got nan; an unknown class is marked by an index, such as -100'):
        ours[name](ignore_index=float('nan'))

def with_nan(t):
    t = t.detach().clone().float() if not t.is_floating_point() else t.detach().clone()
    t.flatten()[:2] = torch.nan
    return t

@pytest.mark.parametrize('name', loss_classes())
def test_nan_in_a_target_is_named(name):
    "How many, and what leaves them out, which it does"
    torch.manual_seed(0)
    f = ours[name]()
    b = f.example(6)
    n = getattr(f, 'n_preds', None) or 1
    if type(f).__name__ in ('CLIPLoss','InfoNCELoss','SigLIPLoss','TripletMarginLoss'): n = len(b)
    for i in range(n, len(b)):
        if not b[i].is_floating_point(): continue
        bad = [with_nan(o) if i==j else o for j,o in enumerate(b)]
        cure = "ignore_index=float('nan') leaves" if 'ignore_index' in f.names and isinstance(f, BinaryLoss) else 'a sample_weight of 0 leaves'
        with pytest.raises(ValueError, match=re.escape(f'must be numbers, got nan in 2 of {b[i].numel()}; {cure} them out')): check_batch(f, *bad)
        if 'ignore_index' in cure: check_batch(f.with_params(ignore_index=float('nan')), *bad)
        w = (~bad[i].isnan().flatten(1).any(1)).float() if bad[i].ndim>1 else (~bad[i].isnan()).float()
        xs = [o.detach().requires_grad_() for o in bad[:n]]
        v = f(*xs, *bad[n:], sample_weight=w)
        assert v.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(v, xs))

@pytest.mark.parametrize('loss', [nn.MSELoss(), F.l1_loss, nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()], ids=name)
def test_nan_in_a_target_of_others(loss):
    with pytest.raises(ValueError, match='target must be numbers, got nan in 2 of 12; leave them out'):
        check_batch(loss, torch.zeros(3, 4), with_nan(torch.full((3,4), .25)))

def test_nan_in_wrapped_losses():
    bce = ours['BCEWithLogitsLoss']
    x,y,out = labels((5,3))
    y = y.masked_fill(out, torch.nan)
    for f in (OHEM(bce()), 2*bce()+bce()):
        with pytest.raises(ValueError, match=rf"target must be numbers, got nan in {out.sum()} of 15; ignore_index=float\('nan'\) leaves"): check_batch(f, x, y)
        with pytest.raises(ValueError, match='logits must be numbers, got nan in 15 of 15; look for nan in the inputs'): check_batch(f, x*torch.nan, y)
    for make in (OHEM, lambda f: 2*f+f): check_batch(make(bce(ignore_index=float('nan'))), x, y)
    with pytest.raises(ValueError, match='logits must have|target must have the shape'): check_batch(bce(), x, y[:,:2]) # the shape comes first

def test_check_batch_of_a_learner_names_nan():
    from fastai.basics import DataLoaders, Learner
    from lossbook.learner import CheckBatch
    rows = [(torch.randn(3), torch.tensor([1.,float('nan'),0.])) for _ in range(4)]
    learn = Learner(DataLoaders.from_dsets(rows, rows, bs=4, device='cpu'), nn.Linear(3,3), ours['BCEWithLogitsLoss'](), cbs=CheckBatch())
    with learn.no_logging(), pytest.raises(ValueError, match="target must be numbers, got nan in 4 of 12; ignore_index"): learn.fit(1)
    learn.loss_func = ours['BCEWithLogitsLoss'](ignore_index=float('nan'))
    with learn.no_logging(): learn.fit(1)

# what was meant otherwise

@pytest.mark.parametrize('name', ours)
def test_class_for_an_instance(name):
    "A class that is called with a batch says that it is one"
    cls = OHEM if name=='OHEM' else ours[name]
    with pytest.raises(TypeError, match=f'{name} was called with predictions and targets, but it is a class'):
        cls(*ours[name]().example(8))
    with pytest.raises(TypeError, match=f'got the class {name}: make one'): check_batch(cls, *ours[name]().example(8))

def test_class_in_a_learner():
    from fastai.basics import DataLoaders, Learner
    rows = list(zip(torch.randn(8,3), torch.arange(8)%3))
    learn = Learner(DataLoaders.from_dsets(rows, rows, bs=4, device='cpu'), nn.Linear(3,3), ours['CrossEntropyLoss'])
    with learn.no_logging(), pytest.raises(TypeError, match='make a loss first, CrossEntropyLoss'): learn.fit(1)

def test_errors_of_constructors_stay():
    with pytest.raises(ValueError, match='gamma must be >= 0'): ours['FocalLoss'](-1.)
    with pytest.raises(TypeError, match='too many positional'): ours['CrossEntropyLoss'](*[None]*9)
    assert str(inspect.signature(OHEM)).startswith('(loss, keep: float = 0.5')
    assert ours['FocalLoss'](torch.tensor(2.), torch.ones(3))(torch.zeros(2,3), torch.tensor([0,1]))>0

weighted = {k: o for k,o in loss_classes().items() if issubclass(o, (ClassLoss,BinaryLoss)) and 'weight' in o().names}

# counts of the classes look like weights, and are what these take there
@pytest.mark.parametrize('name', [k for k,o in weighted.items()
    if k not in ('MultiMarginLoss','ActivePassiveLoss','ReverseCrossEntropy') and 'counts' not in o().names])
def test_weights_as_third_argument(name):
    "PyTorch's functions take weights in the third place; here the message says where they go"
    pred,target = weighted[name]().example(8)
    for w in (torch.ones(3), [1.,2.,1.]):
        with pytest.raises((TypeError,ValueError), match='weights are given by name'): weighted[name].func(pred, target, w)

@pytest.mark.parametrize('name', [k for k,o in weighted.items()
    if k!='MultiLabelSoftMarginLoss' and not o.__module__.endswith('segmentation')])
def test_class_weights_with_a_batch(name):
    pred,target = weighted[name]().example(8)
    with pytest.raises(ValueError, match='factors per class are given to the loss itself, as weight='):
        weighted[name]()(pred, target, torch.ones(3))

def brings(extra):
    "What an extra of settings.ini installs, and what that is known to need"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(Path(__file__).parent.parent/'settings.ini')
    names = set(re.findall(r'[\w-]+(?=>=)', cfg['DEFAULT'][f'{extra}_requirements']))
    return names | ({'pandas'} if 'fastai' in names else set())

without = """
import importlib, sys, torch.nn.functional as F
from unittest.mock import MagicMock
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ('fastai','matplotlib','pandas','ipywidgets'): raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
import lossbook as lb
def fastai(): from lossbook import SpanBlock
def picture(): lb.plot_loss(F.cross_entropy)
def sliders(): lb.explore(lb.FocalLoss, live=True)
def rows(): lb.catalog.Catalog().to_frame()
def report(): lb.check_loss(F.cross_entropy, groups=['learner']).to_frame()
def measured(): lb.properties.Properties('focal', MagicMock()).to_frame()
for f in (fastai, picture, sliders, rows, report, measured):
    try: f()
    except ModuleNotFoundError as e: print(e)
"""

def test_missing_packages():
    "What is not installed is named, with the extra that brings it"
    res = subprocess.run([sys.executable, '-c', without], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert res.returncode==0, res.stderr
    found = [re.fullmatch(r"(\w+)\S* is missing; pip install 'lossbook\[(\w+)\]' brings it", o) for o in res.stdout.splitlines()]
    assert all(found), res.stdout
    assert [o[1] for o in found]==['fastai','matplotlib','ipywidgets','pandas','pandas','pandas']
    for o in found: assert o[1] in brings(o[2])
