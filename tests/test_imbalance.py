"What the chapter on rare classes promises, on random and extreme input"
import math, numpy as np, pickle, pytest, torch, torch.nn.functional as F
from concurrent.futures import ThreadPoolExecutor
from fastcore.test import expect_fail
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from lossbook.check import check_loss
from lossbook.core import assert_same
from lossbook.imbalance import *
from lossbook.imbalance import others

counts = torch.tensor([200., 30., 1., 7.])
LOSSES = dict(adjusted=LogitAdjustedLoss(counts, .7), balanced=BalancedSoftmaxLoss(counts),
    ldam=LDAMLoss(counts), small=LDAMLoss(counts, .3, 2.))

def batch(n=50, C=4, dtype=torch.double):
    torch.manual_seed(0)
    x = torch.randn(n, C, dtype=dtype).mul(3)
    return x.requires_grad_(),torch.randint(C, (n,)),torch.rand(n, C, dtype=dtype).softmax(1)

def slow(name, x, c, n=counts):
    "The loss of one row `x` (C,) with the label `c`, by an explicit loop over Python's numbers"
    x,n = x.tolist(),n.tolist()
    if name=='adjusted': z = [v + .7*math.log(k/sum(n)) for v,k in zip(x, n)]
    elif name=='balanced': z = [v + math.log(k) for v,k in zip(x, n)]
    else:
        top,scale = (.5,30.) if name=='ldam' else (.3,2.)
        raw = [1/k**.25 for k in n]
        margin = [top*m/max(raw) for m in raw]
        z = [scale*(v - margin[i]*(i==c)) for i,v in enumerate(x)]
    best = max(z)
    return math.log(sum(math.exp(v-best) for v in z)) + best - z[c]

@pytest.mark.parametrize('name', LOSSES)
def test_against_a_loop(name):
    x,y,share = batch()
    each = torch.tensor([[slow(name, r, c) for c in range(4)] for r in x], dtype=torch.double)
    f = LOSSES[name]
    want = each[range(50),y],(share*each).sum(1)
    for t,w in zip((y,share), want):
        for r,o in (('none',w), ('sum',w.sum()), ('mean',w.mean())):
            assert_same(f.reduced(r, x, t).detach(), o, rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('name', LOSSES)
def test_both_forms_and_second_derivatives(name):
    x,y,share = batch()
    f,rows = LOSSES[name],F.one_hot(y, 4).double()
    for a,b in zip(*[torch.autograd.grad(f(x, t), x, create_graph=True) for t in (y,rows)]):
        assert_same(a, b, rtol=1e-9, atol=1e-12)
        assert_same(*[torch.autograd.grad(o.square().sum(), x, retain_graph=True)[0] for o in (a,b)], rtol=1e-8, atol=1e-11)
    for t in (y,share):
        assert torch.autograd.gradgradcheck(lambda z: f(z, t[:3]), x[:3].detach().requires_grad_())

@pytest.mark.parametrize('name', ('adjusted','balanced','ldam'))
def test_keeps_the_contract(name): assert not check_loss(LOSSES[name]).failed

@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dt,most', ((torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)))
def test_far(name, dt, most):
    "Value and both derivatives are finite far out, on right and on wrong answers, for both forms"
    x = torch.tensor([[1.,-1.,0.,.5], [-1.,.3,1.,.2], [1e-3,0.,-1e-3,0.]]).mul(most).to(dt).requires_grad_()
    y = torch.tensor([0,1,2])
    for t in (y, F.one_hot(y, 4).to(dt), torch.full((3,4), .25, dtype=dt)):
        v = LOSSES[name](x, t)
        g, = torch.autograd.grad(v, x, create_graph=True)
        assert v.isfinite() and g.isfinite().all() and g.dtype==dt
        assert torch.autograd.grad(g.sum(), x)[0].isfinite().all()

@pytest.mark.parametrize('name', LOSSES)
def test_ruled_out_and_left_out(name):
    f,(x,y,_) = LOSSES[name],batch(6)
    x = x.detach().clone()
    y[:] = 0
    x[:,2] = -torch.inf
    for t in (y, F.one_hot(y, 4).double()):
        g = torch.autograd.grad(f(z := x.clone().requires_grad_(), t), z)[0]
        assert f(x, t).isfinite() and g.isfinite().all() and not g[:,2].any()
    x[0] = torch.nan
    w = torch.tensor([0.,1,1,1,1,2])
    for kw,t in (({},torch.where(torch.arange(6)==0, -100, y)), (dict(sample_weight=w),y)):
        z = x.clone().requires_grad_()
        g = torch.autograd.grad(f(z, t, **kw), z)[0]
        assert g.isfinite().all() and not g[0].any()
    empty = f(x[:0].requires_grad_(), y[:0])
    assert empty==0 and empty.requires_grad and f(x[1:], torch.full((5,), -100))==0

@pytest.mark.parametrize('name', LOSSES)
def test_weights_count_in_the_mean(name):
    x,y,share = batch()
    w,s = torch.tensor([1.,2.,5.,.5]).double(),torch.rand(50).double()
    f = type(LOSSES[name])(**{**LOSSES[name].params(), 'weight': w})
    for t,each in ((y,w[y]), (share,share@w)):
        none = LOSSES[name].reduced('none', x, t)
        v = f.reduced('none', x, t)
        norm = each*s
        if t is y: assert_same(v, none*w[y])
        assert_same(f(x, t, s), (v*s).sum()/norm.sum())

def test_axis():
    torch.manual_seed(0)
    x,y = torch.randn(3,5,6,4),torch.randint(4, (3,5,6))
    for cls in (LogitAdjustedLoss,BalancedSoftmaxLoss,LDAMLoss):
        flat = cls(counts)(x.reshape(-1,4), y.flatten())
        assert_same(cls(counts, axis=-1)(x, y), flat)
        assert_same(cls(counts)(x.movedim(-1,1), y), flat)
    assert_same(adjust_logits(x, counts, axis=-1).movedim(-1,1), adjust_logits(x.movedim(-1,1), counts))

def test_the_two_published_forms_are_equal_at_tau_1():
    x,y,share = batch()
    for t in (y,share):
        pair = LogitAdjustedLoss(counts)(x, t),BalancedSoftmaxLoss(counts)(x, t)
        assert_same(*pair, rtol=1e-12, atol=0.)
        assert_same(*[torch.autograd.grad(o, x)[0] for o in pair], rtol=1e-9, atol=1e-15)

def test_without_counts():
    x,y,share = batch()
    for t in (y,share):
        for f in (LogitAdjustedLoss(), BalancedSoftmaxLoss(), LogitAdjustedLoss(torch.ones(4)), LogitAdjustedLoss(counts, 0.),
            LDAMLoss(max_margin=0., scale=1.), LDAMLoss(counts, 0., 1.)):
            assert_same(f(x, t), F.cross_entropy(x, t))

def test_ldam_is_the_papers_code():
    x,y,_ = batch()
    m = .5*counts.double().pow(-.25)/counts.double().pow(-.25).max()
    published = torch.where(F.one_hot(y, 4).bool(), x-m[y][:,None], x)
    assert_same(LDAMLoss(counts)(x, y), F.cross_entropy(30*published, y))

@pytest.mark.parametrize('scale', (1.,1e2,1e4))
def test_others(scale):
    x = batch()[0].detach()*scale
    x[0] = 1. # a tie
    want = torch.stack([torch.cat([x[:,:c],x[:,c+1:]], 1).logsumexp(1) for c in range(4)], 1)
    assert_same(others(x), want, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('form', ('indices','rows'))
def test_learned_parameters(form):
    "Counts, tau, margin and scale that are tensors get the gradient of finite differences, on large input too"
    x,y,share = batch(4000)
    t = y if form=='indices' else share
    for f,k,v in ((logit_adjusted_loss_with_logits,'tau',.7), (ldam_loss_with_logits,'max_margin',.3), (ldam_loss_with_logits,'scale',2.)):
        def at(p): return f(x, t, counts.double(), **{k: p})
        p = torch.tensor(v).double().requires_grad_()
        g, = torch.autograd.grad(at(p), p)
        assert_same(g, ((at(v+1e-6)-at(v-1e-6))/2e-6).detach(), rtol=1e-5, atol=1e-7)
    for cls in (LogitAdjustedLoss,BalancedSoftmaxLoss,LDAMLoss):
        loss = cls(nn.Parameter(counts.clone()))
        loss(x, t).backward()
        assert loss.counts.grad.abs().sum()>0

@pytest.mark.parametrize('dynamic', (None,True))
def test_compiled(dynamic):
    x,y,share = batch()
    def f(x, t, a, b):
        return logit_adjusted_loss_with_logits(x, t, counts, a) + ldam_loss_with_logits(x, t, counts, a, b)
    for t in (y,share):
        torch.compiler.reset()
        g = torch.compile(f, fullgraph=True, backend='aot_eager', dynamic=dynamic)
        for args in ((.5,30.), (.25,3.), (.7,4.)):
            assert_same(g(x, t, *args), f(x, t, *args))
            assert_same(*[torch.autograd.grad(o(x, t, *args), x)[0] for o in (g,f)])
    torch.compiler.reset()

@pytest.mark.parametrize('name', LOSSES)
def test_vmap_threads_pickle(name):
    x,y,_ = batch()
    f = LOSSES[name]
    want = torch.autograd.grad(f.reduced('sum', x, y), x)[0]
    assert_same(torch.func.vmap(torch.func.grad(lambda x,y: f(x[None], y[None])))(x, y), want)
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda _: f(x, y).detach(), range(40)))
    for o in got: assert_same(o, f(x, y).detach())
    assert_same(pickle.loads(pickle.dumps(f))(x, y), f(x, y))
    assert list(f.state_dict())==['counts']

def test_class_weights():
    y = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0)).clamp(max=2)
    n = y.bincount()
    balanced = compute_class_weight('balanced', classes=np.arange(3), y=y.numpy())
    assert_same(class_weights(n), torch.as_tensor(balanced).float())
    for how,f in (('sqrt',lambda k: k**-.5), ('effective',lambda k: (1-.999)/(1-.999**k))):
        w,want = class_weights(n, how),torch.tensor([f(k) for k in n.tolist()])
        assert_same(w/w[0], want/want[0])
        assert_same((w*n).sum()/n.sum(), 1.)
    assert_same(class_weights(counts, 'effective', 0.), torch.ones(4))
    near = class_weights(counts, 'effective', 1-1e-9)
    assert_same(near, class_weights(counts), rtol=1e-5, atol=0.)
    assert_same(class_weights(range(1,4)), class_weights(torch.tensor([1,2,3])))

def test_prior_bias():
    for prior in (.01, .3, 1-1e-6):
        b = init_prior_bias(nn.Linear(2,3), prior).bias.detach()
        assert_same(b.double().sigmoid(), torch.full((3,), prior).double(), rtol=1e-4, atol=1e-9)
    b = init_prior_bias(nn.Linear(2,3), [.1,.2,.3]).bias.detach()
    assert_same(b.sigmoid(), torch.tensor([.1,.2,.3]))
    layer = nn.Linear(2,4)
    assert init_prior_bias(layer, counts, softmax=True) is layer and layer.bias.requires_grad
    assert_same(layer.bias.detach().softmax(0), counts/counts.sum())

def test_adjust_logits():
    x = batch()[0].detach()
    share = counts/counts.sum()
    assert_same(adjust_logits(x, counts).softmax(1), F.normalize(x.softmax(1)/share, p=1))
    assert_same(adjust_logits(x, counts, to=counts), x)
    assert_same(adjust_logits(x, counts, .5), x - .5*share.log())
    half = x.half()
    assert_same(adjust_logits(half, counts), (half.float()-share.log()).half())

def test_deferred():
    for pos in (0,.79): assert_same(deferred_weights(counts, pos), torch.ones(4))
    for pos in (.8,1.): assert_same(deferred_weights(counts, pos), class_weights(counts, 'effective', .9999))
    assert_same(deferred_weights(counts, .6, .5, 'sqrt'), class_weights(counts, 'sqrt'))

def test_refuses():
    x,y,_ = batch()
    for f in (LogitAdjustedLoss,BalancedSoftmaxLoss,LDAMLoss):
        with expect_fail(ValueError, 'counts must be > 0, got [1.0, 0.0]'): f([1., 0.])(x[:,:2], y%2)
        with expect_fail(ValueError, 'counts must have shape (4,), one per class, got (2,)'): f([1., 2.])(x, y)
        with expect_fail(ValueError, 'one per class, got ()'): f(counts=torch.tensor(3.))
        with expect_fail(TypeError, 'counts must be numbers, one per class'): f(counts='many')
        with expect_fail(TypeError, 'logits must be a floating point tensor'): f(counts)(y, y)
    with expect_fail(ValueError, 'tau must be >= 0, got -1'): LogitAdjustedLoss(counts, -1)
    with expect_fail(ValueError, 'tau must be >= 0, got -1'): adjust_logits(x, counts, -1)
    with expect_fail(ValueError, 'to must have shape (4,)'): adjust_logits(x, counts, to=[1.])
    with expect_fail(ValueError, 'max_margin must be >= 0'): LDAMLoss(counts, -.5)
    with expect_fail(ValueError, 'scale must be > 0'): LDAMLoss(counts, scale=0.)
    with expect_fail(ValueError, "how must be 'inverse', 'sqrt' or 'effective', got 'best'"): class_weights(counts, 'best')
    with expect_fail(ValueError, 'beta must be < 1, got 1'): class_weights(counts, 'effective', 1)
    with expect_fail(ValueError, 'counts must be > 0'): class_weights([3,0])
    with expect_fail(ValueError, 'pos must be in [0, 1], got 2'): deferred_weights(counts, 2)
    with expect_fail(ValueError, 'prior must be < 1'): init_prior_bias(nn.Linear(2,1), 1)
    with expect_fail(ValueError, 'prior must be in (0, 1], got 0'): init_prior_bias(nn.Linear(2,1), 0)
    with expect_fail(ValueError, 'prior must have shape (2,), one per class, got (4,)'):
        init_prior_bias(nn.Linear(2,2), counts, softmax=True)
