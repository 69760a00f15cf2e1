"What the chapter on focal loss promises, on random and extreme input"
import math, pickle, pytest, threading, torch, torch.nn.functional as F
from copy import deepcopy
from fastcore.test import expect_fail
from torch import nn
from lossbook.core import assert_same
from lossbook.focal import *

scores = torch.tensor([[2., 0., -1.], [.5, .6, .2], [-1., 3., 0.]])
labels = torch.tensor([0, 2, 1])
many = (scores>.4).float()
weight = torch.tensor([1., 2., 5.])
logits = torch.tensor([[.2316], [.4442], [.0177], [.3277], [.0546]])
y = torch.tensor([[1.], [0.], [1.], [0.], [0.]])

def two_terms(z, y, gamma=2):
    return -F.logsigmoid(z)*z.neg().sigmoid()**gamma*y - F.logsigmoid(-z)*z.sigmoid()**gamma*(1-y)

def one_term(z, y, gamma=2):
    most = (-z).clamp(min=0)
    ce = z - z*y + most + ((-most).exp() + (-z-most).exp()).log()
    return (gamma*F.logsigmoid(-z*(2*y-1))).exp()*ce

def plain_softmax(x, y, g):
    lp = F.log_softmax(x, 1)
    return -(y*(1-lp.exp())**g*lp).sum(1)

def test_printed_numbers():
    flat,w = torch.tensor([0., 0., 1., 0., 0.]),torch.tensor([1., 0., 1., 1., 0.])
    assert_same(two_terms(logits, y).mean(), .2231, atol=5e-5)
    assert_same(binary_focal_loss_with_logits(logits, y), .2231, atol=5e-5)
    assert_same(two_terms(logits, flat).mean(), .2269, atol=5e-5)
    assert_same(two_terms(logits, w).mean(), .1745, atol=5e-5)
    assert_same(one_term(logits, w).sum(1).mean(), .8726, atol=5e-5) # the second form, summed over the false axis
    assert_same(two_terms(logits, y), one_term(logits, y))

def kept(f, x, *args):
    "Tensors as large as `x` that autograd keeps besides the inputs"
    seen = {}
    def pack(t):
        if t.numel()>=x.numel(): seen[t.data_ptr()] = t
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): f(x, *args)
    return len(set(seen)-{t.data_ptr() for t in (x,*args)})

def wide():
    torch.manual_seed(0)
    x = torch.randn(300,40, dtype=torch.double).mul(4).requires_grad_()
    share,index = torch.rand(300,40).double(),torch.randint(40, (300,))
    return x,share,share/share.sum(1, keepdim=True),index

@pytest.mark.parametrize('g', (.5,1,1.5,2,3))
@pytest.mark.parametrize('kind', ('binary','softmax'))
def test_blocks_against_formula(kind, g):
    x,share,dist,_ = wide()
    f,plain,t = (binary_focal_loss_with_logits,two_terms,share) if kind=='binary' else (focal_loss_with_logits,plain_softmax,dist)
    assert kept(lambda x,y: f(x, y), x, t)<=1
    vals = f(x, t, g),plain(x, t, g).mean()
    grads = [torch.autograd.grad(v, x, create_graph=True)[0] for v in vals]
    assert_same(*vals)
    assert_same(*grads, rtol=1e-6, atol=1e-12)
    assert_same(torch.autograd.grad(f(x, t, g), x)[0], grads[1].detach(), rtol=1e-6, atol=1e-12)
    assert_same(*[torch.autograd.grad(o.square().sum(), x)[0] for o in grads], rtol=1e-5, atol=1e-12)

@pytest.mark.parametrize('r', ('mean','sum','none'))
@pytest.mark.parametrize('g', (0,.5,2))
def test_indices_are_one_hot_rows(g, r):
    x,share,_,index = wide()
    kw = dict(gamma=g, reduction=r, weight=share[0], alpha=share[1])
    rows = F.one_hot(index, 40).double()
    assert_same(focal_loss_with_logits(x, index, **kw), focal_loss_with_logits(x, rows, **kw), rtol=1e-12, atol=0.)

FAR = ((torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4), (torch.float,3e38), (torch.bfloat16,3e38))
def rows_of(x): return F.one_hot(labels, 3).to(x.dtype)
LOSSES = dict(softmax=lambda x,g: focal_loss_with_logits(x, labels, g),
    rows=lambda x,g: focal_loss_with_logits(x, rows_of(x), g),
    binary=lambda x,g: binary_focal_loss_with_logits(x, many, g, .25),
    asymmetric=lambda x,g: asymmetric_loss_with_logits(x, many, g, g),
    no_margin=lambda x,g: asymmetric_loss_with_logits(x, many, g, g, 0.))

@pytest.mark.parametrize('g', (0,.3,.5,2))
@pytest.mark.parametrize('dt,most', FAR)
@pytest.mark.parametrize('name', LOSSES)
def test_far(name, dt, most, g):
    "Value and both derivatives are finite far out; a value that no float can hold may be infinite, never its gradient"
    x = (torch.tensor([[1.,-1.,0.],[-1.,1.,.01],[.003,0.,-.003]])*most).to(dt).requires_grad_()
    v = LOSSES[name](x, g)
    grad, = torch.autograd.grad(v, x, create_graph=True)
    assert (v.isfinite() or most==3e38) and not v.isnan() and grad.isfinite().all() and grad.dtype==dt
    if grad.requires_grad and most<1e5: assert torch.autograd.grad(grad.sum(), x)[0].isfinite().all()

def test_gradient_at_the_largest_floats_is_that_of_cross_entropy():
    x = torch.tensor([[3e38,-3e38,0.]], requires_grad=True)
    ce,focal = [torch.autograd.grad(FocalLoss(g)(x, torch.tensor([1])), x)[0] for g in (0.,2.)]
    assert_same(focal, ce)

def test_alpha_per_column():
    by_column = [binary_focal_loss_with_logits(scores[:,k], many[:,k], alpha=a) for k,a in enumerate((.1,.5,.9))]
    for alpha in ([.1,.5,.9], torch.tensor([.1,.5,.9]), torch.tensor([[.1,.5,.9]])):
        assert_same(BinaryFocalLoss(alpha=alpha)(scores, many), torch.stack(by_column).mean())

@pytest.mark.parametrize('C', (2,3,5))
def test_learned_factors(C):
    "A factor that is a parameter trains, for any number of classes"
    x,t = torch.randn(8,C),torch.randint(C, (8,))
    rows = F.one_hot(t, C).float()
    for cls,target in ((FocalLoss,t), (FocalLoss,rows), (BinaryFocalLoss,rows)):
        for name in ('alpha','weight') if cls is FocalLoss else ('alpha','pos_weight','weight'):
            loss = cls(**{name: nn.Parameter(torch.rand(C))})
            g, = torch.autograd.grad(loss(x, target), [*loss.parameters()])
            assert g.shape==(C,) and g.abs().sum()>0

@pytest.mark.parametrize('size', (4,3000))
def test_learned_numbers(size):
    "A number that is a tensor gets its gradient, on small and on large input"
    torch.manual_seed(0)
    x,rows = torch.randn(size,6),torch.randn(size,6).softmax(1)
    for f,names in ((focal_loss_with_logits,('gamma','alpha','label_smoothing')), (poly_loss_with_logits,('epsilon',)),
        (binary_focal_loss_with_logits,('gamma','alpha','pos_weight','label_smoothing')),
        (asymmetric_loss_with_logits,('gamma_pos','gamma_neg','margin'))):
        for k in names:
            p,e = torch.tensor(.4, dtype=torch.double, requires_grad=True),1e-6
            def at(v): return f(x.double().requires_grad_(), rows.double(), **{k: v})
            g, = torch.autograd.grad(at(p), p)
            assert_same(g, ((at(.4+e)-at(.4-e))/2/e).detach(), rtol=1e-4, atol=1e-7)

def slow_ohem(loss, norm, keep, min_kept, thresh):
    rows = []
    for l,c in zip(loss, norm):
        idx = sorted((i for i in range(len(l)) if c[i]>0), key=lambda i: -l[i])
        n = max(math.ceil(keep*len(idx)-1e-3), min_kept)
        rows.append([i for j,i in enumerate(idx[:n]) if thresh is None or l[i]>=thresh or j<min_kept])
    total = sum(l[i] for l,r in zip(loss, rows) for i in r)
    count = sum(c[i] for c,r in zip(norm, rows) for i in r)
    return total/count if count else torch.tensor(0.)

@pytest.mark.parametrize('k', range(30))
def test_ohem_against_a_loop(k):
    torch.manual_seed(k)
    l,c = torch.rand(3,10),torch.rand(3,10)*(torch.rand(3,10)<.7)
    args = torch.rand(1).item()*.9+.1,k%4,[None,.5][k%2]
    assert_same(ohem(l, *args, True, norm=c), slow_ohem(l, c, *args), rtol=1e-5, atol=1e-6)
    assert_same(ohem(l, *args, norm=c), slow_ohem(l.reshape(1,-1), c.reshape(1,-1), *args), rtol=1e-5, atol=1e-6)

def test_ohem_edges():
    values = torch.tensor([.1, 2., .3, 1., .2, .4, .1, .5])
    assert_same(ohem(values, 1.), values.mean())
    assert_same(ohem(torch.arange(100.), .29, reduction='none').count_nonzero(), torch.tensor(29))
    assert_same(ohem(values, .5, norm=torch.tensor([1.,0,0,3.,1.,0,0,0])), 1.2/4)
    assert_same(ohem(values, norm=torch.zeros(8)), 0.)
    assert ohem(values[:0])==0 and ohem(torch.zeros(0,4), per_example=True)==0
    assert ohem(torch.tensor([1.,torch.nan,3.]), thresh=2.).isnan()
    assert_same(ohem(torch.full((70_000,), .5).half(), 1.), .5) # the sum overflows float16

def test_ohem_around_losses_of_others():
    from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
    ce = F.cross_entropy(scores, labels, reduction='none')
    ignored = torch.tensor([0,2,-100])
    for o in (nn.CrossEntropyLoss(), CrossEntropyLossFlat(), F.cross_entropy, FocalLoss(0.)):
        h = OHEM(o, .5)
        assert_same(h(scores, labels), ce[:2].mean())
        assert_same(h(scores, ignored), ce[1])
        assert_same(OHEM(o, 1.)(scores, ignored), F.cross_entropy(scores, ignored))
        assert getattr(o, 'reduction', 'mean')=='mean'
        assert_same(pickle.loads(pickle.dumps(h))(scores, labels), deepcopy(h)(scores, labels))
    want = F.cross_entropy(scores, labels, weight) # 2.53
    for o in (nn.CrossEntropyLoss(weight=weight), CrossEntropyLossFlat(weight=weight)):
        assert_same(OHEM(o, keep=1.)(scores, labels), want)
    with expect_fail(ValueError, 'loss must have no weight'):
        OHEM(nn.MultiMarginLoss(weight=weight), keep=1.)(scores, labels)
    assert_same(OHEM(FocalLoss(0.), 1., per_example=True)(torch.stack([scores.T]*2), torch.stack([labels]*2)), ce.mean())
    maps,classes = torch.randn(4,3,5,6),torch.randint(3, (4,5,6))
    classes[0,0] = -100
    want = OHEM(FocalLoss(0.), .3, per_example=True)(maps, classes)
    for o in (nn.CrossEntropyLoss(), CrossEntropyLossFlat(axis=1)):
        assert_same(OHEM(o, .3, per_example=True)(maps, classes), want)
    rows = F.one_hot(labels, 3).float()
    want = OHEM(BinaryFocalLoss(0.), .5, per_example=True)(scores, rows)
    for o in (nn.BCEWithLogitsLoss(), BCEWithLogitsLossFlat()):
        assert_same(OHEM(o, .5, per_example=True)(scores, rows), want)
    assert OHEM(CrossEntropyLossFlat(weight=torch.ones(3))).double().loss.func.weight.dtype==torch.double

def test_ohem_refuses():
    for bad,say in ((3,'got 3'), (nn.CrossEntropyLoss,'got the class CrossEntropyLoss'), (lambda x,y: x,'must have a reduction')):
        with expect_fail(TypeError, say): OHEM(bad)
    with expect_fail(TypeError, 'as F.cross_entropy is; got <lambda>(x, y)'): OHEM(lambda x,y: F.cross_entropy(x, y))
    with expect_fail(ValueError, "reduction must be 'mean', 'sum' or 'none', got 'max'"): OHEM(FocalLoss(), reduction='max')

def test_ohem_traced():
    hard,weighted = OHEM(FocalLoss(1.), .5),OHEM(FocalLoss(0., weight=[1., 2., 5.]), .5)
    x = scores.clone().requires_grad_()
    g, = torch.autograd.grad(hard(x, labels), x)
    assert (g[2]==0).all() and (g[0]!=0).all()
    for o in (hard, weighted, OHEM(FocalLoss(), .3, thresh=.1)):
        assert_same(torch.compile(o, fullgraph=True, backend='aot_eager')(scores, labels), o(scores, labels))
        torch.func.vmap(torch.func.grad(lambda x,y: o(x[None], y[None])))(scores, labels)
    torch.compiler.reset()
    assert_same(hard(scores, labels, torch.tensor([0.,1.,1.])), hard(scores[1:], labels[1:]))

@pytest.mark.parametrize('inner', (FocalLoss(), nn.CrossEntropyLoss()))
def test_ohem_in_four_threads(inner):
    "Nothing is changed in the loss, so threads do not see each other"
    f,x,t = OHEM(inner, .5),torch.randn(64,3),torch.randint(3, (64,))
    want,wrong = f(x, t),[]
    def work():
        for _ in range(200):
            if not torch.equal(f(x, t), want) or inner(x, t).ndim: wrong.append(1)
    ts = [threading.Thread(target=work) for _ in range(4)]
    for o in ts: o.start()
    for o in ts: o.join()
    assert not wrong and inner.reduction=='mean'

@pytest.mark.parametrize('dynamic', (False,True))
def test_compiled_with_three_alphas(dynamic):
    "The second value makes a number symbolic, and the compiler drops `alpha=` of an addition then"
    def f(a): return binary_focal_loss_with_logits(scores, many, alpha=a, label_smoothing=a/5)
    torch.compiler.reset()
    g = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for a in (.25,.5,.75): assert_same(g(a), f(a))
    torch.compiler.reset()
