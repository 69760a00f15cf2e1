"What the chapter on soft labels promises, on random and extreme input"
import pickle, pytest, torch, torch.nn.functional as F
from copy import deepcopy
from fastcore.test import expect_fail
from torch import nn
from lossbook.core import assert_same
from lossbook.soft_labels import *

logits = torch.tensor([[6.,1.,3.,1.,2.], [5.,8.,1.,1.,2.], [1.,3.,4.,2.,0.]])
y_soft = torch.tensor([[.9,.1,0.,0.,0.], [.35,.65,0.,0.,0.], [0.,.1,.2,.7,0.]])
y_index = torch.tensor([0,1,3])
y_onehot = F.one_hot(y_index, 5).float()
small = torch.tensor([[.95, .05, 0., 0.]])
weight = torch.tensor([1., 2., 1., 5., 1.])
FORMS = dict(index=y_index, onehot=y_onehot, soft=y_soft)
sl,slp = soft_label_cross_entropy_with_logits,soft_label_cross_entropy

PAGES = dict(onehot=(y_onehot, 0., ([.0784,.0527,2.4519], 2.5830, .8610)),
    soft=(y_soft, 0., ([.5784,1.1027,1.9519], 3.6330, 1.2110)),
    smooth=(y_soft, .2, ([.7584,1.7227,2.1519], 4.6330, 1.5443)),
    index=(y_index, 0., ([.0784,.0527,2.4519], 2.5830, .8610)))
@pytest.mark.parametrize('name', PAGES)
def test_printed_numbers(name):
    y,a,vals = PAGES[name]
    for r,v in zip(('none','sum','mean'), vals):
        assert_same(sl(logits, y, a, r), v, atol=5e-5)
        assert_same(slp(logits.softmax(1), y, a, r), v, atol=5e-5)

def test_smoothed_numbers():
    assert_same(smooth_soft_labels(y_soft, .1), [[.8700, .0700, .0200, .0200, .0200],
        [.3200, .6200, .0200, .0200, .0200], [.0200, .0867, .1867, .6867, .0200]], atol=5e-5)
    assert_same(smooth_soft_labels(small, .2), [[.85, .05, .05, .05]], atol=1e-6)
    assert_same(smooth_soft_labels(y_soft, 0.), y_soft)
    assert_same(smooth_soft_labels(y_onehot, .3), .7*y_onehot + .3/5)
    assert_same(smooth_soft_labels(y_soft, 1.), torch.full((3,5), .2))

@pytest.mark.parametrize('n,C', ((3,5), (20,5), (1,2)))
def test_rule_of_laplace(n, C):
    "Votes that agree: one vote more for each class is a smoothing of C/(n+C)"
    votes = F.one_hot(torch.tensor([0]), C)*float(n)
    assert_same(smooth_soft_labels(votes/n, C/(n+C)), (votes+1)/(n+C))
    if n==20: assert_same((votes+1)/(n+C), [[.84]+[.04]*4])

@pytest.mark.parametrize('alpha', (.1, .2, .7))
def test_smoothing_twice(alpha):
    "The fifth exercise"
    once = smooth_soft_labels(y_onehot, alpha)
    assert_same(smooth_soft_labels(once, alpha), once)

def some_labels():
    torch.manual_seed(1)
    return torch.distributions.Dirichlet(torch.full((7,), .2)).sample((50,))

def test_smoothing_against_a_loop():
    def slow_smooth(row, alpha): # take from the classes until nothing is missing
        row,give = row.clone(),torch.zeros_like(row)
        while alpha-give.sum() > 1e-7:
            rich = row-give>1e-9
            part = (alpha-give.sum())/rich.sum()
            give += torch.where(rich, (row-give).clamp(max=part), 0.)
        return row-give+alpha/len(row)
    y = some_labels()
    for a in (.01, .3, .77, 1): assert_same(smooth_soft_labels(y, a).sum(1), torch.ones(50))
    assert (smooth_soft_labels(y, .3)>0).all()
    assert_same(smooth_soft_labels(y, .3), torch.stack([slow_smooth(o, .3) for o in y]), atol=1e-6)
    assert_same(smooth_soft_labels(y.T[None], .3), smooth_soft_labels(y, .3).T[None])

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype,big', ((torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)))
def test_extreme_logits(form, dtype, big):
    x,y = (torch.eye(5)[:3]*2-1).mul(big).to(dtype).requires_grad_(),FORMS[form]
    v = SoftLabelCrossEntropy(.2)(x, y.to(dtype) if form=='soft' else y)
    g, = torch.autograd.grad(v, x)
    assert v.isfinite() and g.isfinite().all() and g.dtype==dtype

@pytest.mark.parametrize('dtype', (torch.half, torch.bfloat16, torch.float, torch.double))
def test_probability_of_zero(dtype):
    x = torch.tensor([[0., 1., 0., 0., 0.]], dtype=dtype, requires_grad=True)
    for y in (torch.tensor([0]), y_onehot[:1].to(dtype)):
        v = slp(x, y)
        g, = torch.autograd.grad(v, x)
        assert v>(10 if dtype==torch.half else 40) and g.isfinite().all() and g[0,0]<0

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('alpha', (0., .2))
def test_derivatives(form, alpha):
    loss,y = SoftLabelCrossEntropy(alpha),FORMS[form]
    x = torch.randn(3,5, dtype=torch.double, requires_grad=True)
    def f(x): return loss(x, y.double() if y.is_floating_point() else y)
    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)
    assert f(torch.where(torch.eye(3,5)==1, torch.nan, x)).isnan()
    per_row = torch.func.vmap(torch.func.grad(lambda x,y: loss(x[None], y[None])))(logits, y)
    z = logits.clone().requires_grad_()
    assert_same(per_row, torch.autograd.grad(loss(z, y)*3, z)[0])
    if form!='index': assert_same(per_row, logits.softmax(1)-smooth_soft_labels(y, alpha)) # the third exercise

@pytest.mark.parametrize('alpha', (0., .2))
def test_forms_of_target(alpha):
    for w in (None, weight): assert_same(sl(logits, y_onehot, alpha, weight=w), sl(logits, y_index, alpha, weight=w))

@pytest.mark.parametrize('dynamic', (None, True))
def test_compiled_alpha(dynamic):
    "The numbers become symbolic with the second value"
    torch._dynamo.reset()
    f = torch.compile(sl, dynamic=dynamic, fullgraph=True)
    for y in FORMS.values():
        for a in (.1, .2, .3):
            x = [logits.clone().requires_grad_() for _ in range(2)]
            v = f(x[0], y, a),sl(x[1], y, a)
            assert_same(*v)
            assert_same(*[torch.autograd.grad(*o)[0] for o in zip(v, x)])

def test_refusals():
    with expect_fail(ValueError, "reduction must be 'mean', 'sum' or 'none'"): sl(logits, y_soft, 0., 'average')
    with expect_fail(ValueError, 'alpha must be in [0, 1], got 2'): sl(logits, y_soft, 2)
    with expect_fail(ValueError, 'alpha must be in [0, 1], got 2'): slp(logits.softmax(1), y_soft, 2)
    with expect_fail(TypeError, 'probs must be a tensor, got list'): slp([[.5, .5]], y_index)
    with expect_fail(TypeError, 'labels must be a floating point tensor, got torch.int64'): smooth_soft_labels(y_index)

def test_positions():
    "The order of the first version, for function and module"
    loss = SoftLabelCrossEntropy(.2, weight, -1, 'sum', 3)
    assert loss.params()==dict(alpha=.2, weight=loss.weight, axis=-1, reduction='sum', ignore_index=3)
    assert_same(loss(logits, y_soft), sl(logits, y_soft, .2, 'sum', weight=weight))

def test_copies():
    loss = SoftLabelCrossEntropy(.1, weight)
    assert repr(pickle.loads(pickle.dumps(loss)))==repr(loss) and deepcopy(loss).reduction=='mean'

# what once was wrong

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('f,x', ((sl, logits), (slp, logits.softmax(1))))
def test_learned_alpha(form, f, x):
    "A share that is a tensor gets a gradient"
    y,a = FORMS[form],torch.tensor(.15, dtype=torch.double, requires_grad=True)
    if y.is_floating_point(): y = y.double()
    g, = torch.autograd.grad(f(x.double(), y, a), a)
    ends = [f(x.double(), y, o) for o in (.15+1e-5, .15-1e-5)]
    assert abs(g-(ends[0]-ends[1])/2e-5) < 1e-6
    loss = SoftLabelCrossEntropy(nn.Parameter(torch.tensor(.1)))
    loss(logits, FORMS[form]).backward()
    assert loss.alpha.grad.isfinite() and list(loss.parameters())==[loss.alpha]

@pytest.mark.parametrize('form', FORMS)
def test_left_out_rows(form):
    x,w = logits.clone(),torch.tensor([1., 0., 2.])
    x[1] = torch.nan
    a,b = x.requires_grad_(),logits.clone().requires_grad_()
    for r in ('mean','sum','none'):
        v = [SoftLabelCrossEntropy(.2, reduction=r)(o, FORMS[form], w) for o in (a,b)]
        assert_same(*v)
        assert_same(*[torch.autograd.grad(t.sum(), o)[0] for t,o in zip(v, (a,b))])

def test_mean_over_no_weight():
    v = SoftLabelCrossEntropy(.1, [0,1,1])(torch.randn(1000,3), torch.zeros(1000, dtype=torch.long))
    assert v==0

def test_mixup():
    from fastai.basics import DataLoaders, Learner, defaults
    from fastai.callback.all import MixUp, ProgressCallback
    if ProgressCallback in defaults.callbacks: defaults.callbacks.remove(ProgressCallback)
    x,y = torch.randn(200,5),torch.randn(200,5).softmax(1)
    for t in (y, y.argmax(1)):
        sets = [list(zip(x[i], t[i])) for i in (slice(150),slice(150,None))]
        learn = Learner(DataLoaders.from_dsets(*sets, bs=50, num_workers=0), nn.Linear(5,5), SoftLabelCrossEntropy(.1))
        with learn.no_logging(): learn.fit(1, 1e-3, cbs=MixUp())
        assert learn.get_preds(with_loss=True)[2].shape==(50,)
