"What is measured of a loss, against what is known of it"
import pytest, torch, torch.nn.functional as F
from functools import partial
from math import inf
from torch import nn
from lossbook.catalog import catalog
from lossbook.check import loss_classes
from lossbook.core import BinaryLoss, ClassLoss, assert_same
from lossbook.properties import is_bounded, is_convex, is_lipschitz, is_margin_like, is_proper
from lossbook.properties import is_shift_invariant, properties
from lossbook.properties import PerLabel, label_margins, minimise, pair_scores, some_distributions, supremum, unreduced

def prob(z, y): return z.softmax(1).gather(1, y[:,None])[:,0]
def onehot(z, y): return F.one_hot(y, z.shape[1])
ce = F.cross_entropy
def mae(z, y): return (z.softmax(1) - onehot(z, y)).abs().sum(1)
def brier(z, y): return (z.softmax(1) - onehot(z, y)).square().sum(1)
def focal(z, y, gamma=2.): return -(1-prob(z, y))**gamma*prob(z, y).log()
def gce(z, y, q=.7): return (1 - prob(z, y)**q)/q
def square(z, y): return (z - onehot(z, y)).square().sum(1)
def zero_one(z, y): return (z.argmax(1)!=y).double()
def hinge(z, y):
    other = z.scatter(1, y[:,None], -inf).amax(1)
    return (1 + other - z.gather(1, y[:,None])[:,0]).clamp(min=0)
def unhinged(z, y): return 1 - (2*y-1)*z
def brier2(z, y): return (z.sigmoid()-y)**2
def hinge2(z, y): return (1-(2*y-1)*z).clamp(min=0)
def sigmoid_loss(z, y): return (z.sigmoid()-y).abs()
smoothed = nn.CrossEntropyLoss(label_smoothing=.1)
LOSSES = dict(ce=ce, smoothed=smoothed, brier=brier, focal=focal, mae=mae, gce=gce, hinge=hinge, square=square, zero_one=zero_one)

# ---- losses on probabilities, and those whose probabilities are not the softmax

def bce_of_probs(p, y): return -(torch.xlogy(y, p)+torch.special.xlog1py(1-y, -p))
def brier_of_probs(p, y): return (p - onehot(p, y)).square().sum(1)
def nll_of_probs(p, y): return -p.gather(1, y[:,None])[:,0].log()

@pytest.mark.parametrize('loss', [loss_classes()['BCELoss'](), nn.BCELoss(), bce_of_probs], ids=lambda o: type(o).__module__)
def test_bce_of_probabilities_is_bce(loss):
    "Not bounded and not bent, though the sigmoid is 1 in float64 from 37 on"
    p = properties(loss)
    assert p.convex and p.proper and not p.bounded and not p.symmetric and not p.margin
    assert p.bounds[1]==inf and abs(p.bounds[0])<1e-6 and abs(p.lipschitz-1)<1e-6

def test_probabilities_of_classes():
    assert properties(brier_of_probs, scores='probs').summary()==properties(brier).summary()
    p = properties(nll_of_probs)
    assert p.convex and p.proper and p.shift_invariant and not p.bounded

def test_own_activation():
    "The tempered softmax, and no other, makes the bi-tempered loss proper"
    cls = loss_classes()['BiTemperedLoss']
    assert is_proper(cls()) and is_proper(cls(.5, 2.)) and not is_proper(lambda z,y: cls(reduction='none')(z, y))

def test_log_probabilities():
    p = properties(loss_classes()['NLLLoss']())
    assert p.convex and p.proper and not p.bounded

@pytest.mark.parametrize('name', loss_classes())
def test_every_loss_of_the_book(name):
    "Those over classes or labels are measured, the others are refused with the list"
    loss = loss_classes()[name]()
    if isinstance(loss, (ClassLoss,BinaryLoss)): assert properties(loss).name==name
    else:
        with pytest.raises(ValueError, match="measured for the tasks classes and binary, got '"): properties(loss)

@pytest.mark.parametrize('loss,task', [(nn.BCEWithLogitsLoss(),'binary'), (brier2,'binary'), (ce,'classes')], ids=lambda o: str(o).split(' at 0x')[0])
def test_task_is_found(loss, task): assert PerLabel(loss).binary==(task=='binary')

def test_classes_follow_weights():
    assert PerLabel(nn.CrossEntropyLoss(weight=torch.tensor([1.,2.,5.,1.]))).n_labels==4

# ---- the seven properties

def test_bounded():
    for f in (mae,brier): assert_same(torch.tensor(is_bounded(f).value), [0.,2.], atol=1e-6)
    assert is_bounded(ce).value == (0.,inf) and is_bounded(lambda z,y: -ce(z, y, reduction='none')).value == (-inf,0.)
    assert_same(torch.tensor(is_bounded(gce).value), [0., 1/.7])

def test_lipschitz():
    assert_same(is_lipschitz(mae).value, 2**.5/2, atol=1e-4) # 2 p (1-p) sqrt(2) at p = 1/2
    assert_same(is_lipschitz(hinge).value, 2**.5, atol=1e-6)
    assert_same(is_lipschitz(lambda z,y: 1e6*ce(z, y, reduction='none')).value, 1e6*2**.5)
    assert_same(is_lipschitz(nn.BCEWithLogitsLoss()).value, 1., atol=1e-6)
    z = torch.linspace(-8, 8, 1601).double()
    grid = torch.stack(torch.meshgrid(z, z[::40], indexing='ij'), -1).reshape(-1, 2)
    for o in (brier, focal, gce): # a dense grid finds no more, and nearly as much
        top = PerLabel(o).slope(torch.cat([0*grid[:,:1], grid], 1)).norm(dim=2).max().item()
        assert top-1e-6 <= is_lipschitz(o).value <= top*1.001

def test_proper():
    off = [is_proper(partial(focal, gamma=g)).value for g in (0., .5, 1., 2.)]
    assert off==sorted(off) and off[0]<1e-5 and off[1]>.01
    q = some_distributions(3)
    assert_same(is_proper(smoothed).value, (.1*(q-1/3)).abs().max().item(), atol=1e-4) # the smoothed truth
    assert_same(q.sum(1), torch.ones(10).double())
    assert q.min()>=5e-4 and q.shape==some_distributions(3).shape==(10,3)
    assert not is_proper(lambda z,y: 0*z[:,0]) # proper, but not strictly
    def spherical(z, y): return -prob(z, y)/z.softmax(1).norm(dim=1)
    assert is_proper(spherical, 4) and is_bounded(spherical, 4) and not is_convex(spherical, 4)
    def one_vs_rest(z, y): return F.binary_cross_entropy_with_logits(z, onehot(z, y).double(), reduction='none').sum(1)
    assert not is_proper(one_vs_rest) and not is_shift_invariant(one_vs_rest)

def test_margin():
    assert_same(is_margin_like(hinge).value, 1., atol=1e-3)
    assert_same(is_margin_like(nn.MultiMarginLoss(margin=.5)).value, .5, atol=1e-3)
    assert not is_margin_like(partial(focal, gamma=5.)) # a gradient of 1e-40 is one
    squared = PerLabel(nn.MultiMarginLoss(p=2))
    assert is_convex(squared) and is_shift_invariant(squared) and not is_lipschitz(squared)

def test_all_together():
    table = {k: properties(o).summary() for k,o in LOSSES.items()}
    yes = {k: ' '.join(p for p,v in t.items() if v=='yes') for k,t in table.items()}
    assert yes == dict(ce='convex proper shift invariant', smoothed='convex shift invariant', brier='proper shift invariant',
        focal='shift invariant', mae='symmetric shift invariant', gce='shift invariant',
        hinge='convex shift invariant margin-like', square='convex', zero_one='symmetric shift invariant')

def test_binary():
    p = properties(brier2)
    assert p.proper and p.bounded and not p.convex and not p.symmetric
    p = properties(hinge2)
    assert p.convex and p.margin and not p.proper and abs(p.measures['margin-like'].value-1)<1e-3
    p = properties(sigmoid_loss)
    assert p.symmetric and p.bounded and not p.proper
    def exponential(z, y): return (-(2*y-1)*z/2).exp()
    assert is_proper(exponential) and not is_lipschitz(exponential) and not is_margin_like(exponential)

def test_other_libraries():
    from fastai.losses import BCEWithLogitsLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy
    assert properties(smoothed).summary()==properties(LabelSmoothingCrossEntropy(.1)).summary()
    assert properties(FocalLossFlat()).summary()==properties(focal).summary()
    assert properties(BCEWithLogitsLossFlat()).proper

def test_weights():
    p = properties(ce, n_classes=5)
    assert p.proper and p.convex and abs(p.lipschitz-2**.5)<1e-6
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.,2.,5.]))
    assert not is_proper(weighted) and abs(is_lipschitz(weighted).value-5*2**.5)<1e-6
    assert p.to_frame().shape==(7,3) and repr(p).count('\n')==7 and p._repr_markdown_().count('\n')==8

def test_random_state_stays():
    state = torch.get_rng_state()
    with torch.no_grad(): properties(ce)
    assert torch.equal(torch.get_rng_state(), state)

# ---- the tools

def test_one_value_per_row():
    z,y = torch.randn(3,3, dtype=torch.double, generator=torch.manual_seed(0)),torch.tensor([0,1,1])
    mod = nn.CrossEntropyLoss(weight=torch.tensor([1.,1.,1.]))
    for o in (ce, mod, partial(ce, reduction='sum'), lambda z,y: ce(z, y)):
        assert_same(unreduced(o, z, y)(z, y).double(), F.cross_entropy(z, y, reduction='none'), atol=1e-6)
    assert mod.reduction=='mean' and mod.weight.dtype==torch.float

def test_per_label():
    z = torch.randn(5,3, dtype=torch.double, generator=torch.manual_seed(0))
    assert_same(PerLabel(ce)(z), -z.log_softmax(1))
    assert_same(PerLabel(ce).slope(z), z.softmax(1)[:,None]-torch.eye(3))
    assert_same(label_margins(z)[:,0], z[:,0]-z[:,1:].amax(1))
    assert_same(label_margins(z[:,:1]), torch.cat([-z[:,:1], z[:,:1]], 1))
    assert_same(pair_scores(z[:,:1]).softmax(1)[:,1], z[:,0].sigmoid())

def hill(x): return 2 - (x - torch.tensor([3.,-1.])).norm(dim=1)

def test_supremum():
    assert_same(supremum(hill, 2), 2., atol=1e-4)
    assert supremum(lambda x: (1+x.norm(dim=1)).log(), 2)==inf and supremum(lambda x: x[:,0]*torch.nan, 2)==-inf
    assert_same(supremum(lambda x: x[:,0].sigmoid(), 1), 1.)

def test_minimise():
    goal = torch.tensor([[1.,2.],[-3.,5.],[0.,0.]]).double()
    z,v = minimise(lambda z: ((z-goal)**2*torch.tensor([1.,1e4])).sum(-1), torch.zeros(3,2).double())
    assert_same(z, goal, atol=1e-6)
    z,v = minimise(lambda z: (z-goal).abs().sum(-1), torch.ones(3,2).double())
    assert_same(z, goal, atol=1e-6)
    rosen = lambda z: (1-z[...,0])**2 + 100*(z[...,1]-z[...,0]**2)**2
    z,v = minimise(rosen, torch.tensor([[-1.2,1.],[2.,2.]]).double(), 200)
    assert_same(z, torch.ones(2,2).double(), atol=1e-5)

# ---- the words for a task, and the catalogue

@pytest.mark.parametrize('f', [partial(properties, ce), lambda task: catalog(task=task)])
def test_unknown_task_names_the_list(f):
    with pytest.raises(ValueError, match="task must be one of classes, binary, real, pairs, triplets, span, got 'classification'"):
        f(task='classification')

def test_catalog():
    names = [o.name for o in catalog()]
    assert names == list(loss_classes()) == list(catalog().to_frame().index)
    for task,base in (('classes',ClassLoss), ('binary',BinaryLoss)):
        assert [o.name for o in catalog(task=task)] == [k for k,o in loss_classes().items() if issubclass(o, base)]
    assert {o.name for o in catalog(task='span')} == {'DistanceLoss','SpanLoss'}
    tasks = {o.task for o in catalog()}
    assert sum(len(catalog(task=k)) for k in tasks) == len(names)
    with pytest.raises(ValueError, match='task must be one of'): catalog(task='poetry')
    rows = {o.name: o for o in catalog()}
    assert rows['BiTemperedLoss'].proper and not rows['BCELoss'].bounded and rows['BCELoss'].convex
    a,b = [[getattr(rows[k], c) for c in rows[k]._fields[8:]] for k in ('BCELoss','BCEWithLogitsLoss')]
    assert a==pytest.approx(b)

def test_no_is_not_unmeasured():
    lines = {o.split('](')[0][3:]: o for o in catalog()._repr_markdown_().split('\n')[2:]}
    assert lines['SpanLoss'].endswith('| not measured '*6 + '|') and lines['FocalLoss'].count(' no ')>=3
