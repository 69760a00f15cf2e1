"Regression losses against explicit loops, PyTorch and its own sample inputs, at extremes, and in what a Learner gives"
import math, pickle, pytest, sys, types, unittest, warnings
import torch, torch.nn.functional as F
from collections import Counter
from torch import nn, tensor
from lossbook import regression as R
from lossbook.check import check_loss
from lossbook.core import assert_same, check_batch
from lossbook.focal import OHEM
from lossbook.regression import * # noqa

torch.manual_seed(0)
DTYPES = torch.double, torch.float, torch.half, torch.bfloat16
POINTS = [MSELoss(), L1Loss(), SmoothL1Loss(beta=.7), HuberLoss(delta=.7), LogCoshLoss(), CharbonnierLoss(.3),
    BarronLoss(1.3, .7), BarronLoss(-3., 2.), AdaptiveBarronLoss(.8, .5), QuantileLoss(.3), ExpectileLoss(.7)]
HEADS = [QuantileLoss(), ExpectileLoss(), GaussianNLLLoss(), BetaNLLLoss(), NegativeBinomialNLLLoss()]
COUNTS = [PoissonNLLLoss(), PoissonNLLLoss(full=True), NegativeBinomialNLLLoss(.5), NegativeBinomialNLLLoss(full=True)]
def name(f): return type(f).__name__ if isinstance(f, nn.Module) else str(f)
def each(losses): return pytest.mark.parametrize('f', losses, ids=name)
def grad(v, *xs, **kwargs): return torch.autograd.grad(v.sum(), xs, **kwargs)

# values

def phi(d, alpha, scale):
    u,b = (d/scale)**2,abs(alpha-2)
    return b/alpha*((u/b+1)**(alpha/2)-1)

SLOW = [(MSELoss(), lambda d: d*d), (L1Loss(), abs), (LogCoshLoss(), lambda d: math.log(math.cosh(d))),
    (HuberLoss(delta=.7), lambda d: d*d/2 if abs(d)<.7 else .7*(abs(d)-.35)),
    (SmoothL1Loss(beta=.7), lambda d: d*d/1.4 if abs(d)<.7 else abs(d)-.35), (SmoothL1Loss(beta=0), abs),
    (CharbonnierLoss(.3), lambda d: math.sqrt(d*d+.09)), (BarronLoss(1.3, .7), lambda d: phi(d, 1.3, .7)),
    (BarronLoss(-3., 2.), lambda d: phi(d, -3., 2.)), (BarronLoss(2., 2.), lambda d: d*d/8),
    (BarronLoss(0., .5), lambda d: math.log1p(2*d*d)),
    (QuantileLoss(.3), lambda d: -.3*d if d<0 else .7*d), (ExpectileLoss(.7), lambda d: (.7 if d<0 else .3)*d*d)]

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('f,slow', SLOW, ids=[name(o[0]) for o in SLOW])
def test_loop(f, slow, dtype):
    "Item by item, in Python"
    x,y = (torch.randn(2, 40, 3)*3).to(dtype)
    v = f.reduced('none', x, y)
    assert v.dtype==(torch.double if dtype==torch.double else torch.float)
    want = tensor([[slow(a-b) for a,b in zip(*o)] for o in zip(x.tolist(), y.tolist())])
    assert_same(v.float(), want, 1e-5, 1e-5)

def test_levels_are_averaged():
    x,y,q = torch.randn(20, 2, 3),torch.randn(20, 2),(.1,.5,.9)
    for f in (quantile_loss, expectile_loss):
        want = torch.stack([f(x[...,i], y, p, 'none') for i,p in enumerate(q)]).mean(0)
        assert_same(f(x, y, q, 'none'), want)
        assert_same(f(x.movedim(-1, 1), y, q, 'none', axis=1), want)
        assert_same(f(x, y, tensor(q).double(), 'none'), want)
        assert_same(f(x[:,:1], y[:,:1], q), f(x[:,0], y[:,0], q))
        assert_same(f(x[:,0], y[:,:1], q), f(x[:,0], y[:,0], q)) # (N, Q) beside (N, 1)
        assert_same(f(x[...,:1], y, (.3,)), f(x[...,0], y, .3))

@pytest.mark.parametrize('q', [.05,.5,.9])
def test_quantile_of_data(q):
    "No constant is better than the quantile of the data, and none than the expectile's equation says"
    y = torch.randn(501, dtype=torch.double).exp()
    def cost(f, c): return f(torch.full_like(y, c), y, q).item()
    best = y.quantile(q).item()
    for h in (-.05,-.01,.01,.05): assert cost(quantile_loss, best)<=cost(quantile_loss, best+h)
    c = torch.zeros((), dtype=torch.double, requires_grad=True)
    opt = torch.optim.LBFGS([c], max_iter=50)
    def step():
        opt.zero_grad()
        v = expectile_loss(c.expand_as(y), y, q)
        v.backward()
        return v
    opt.step(step)
    over,under = (y-c).clamp(min=0).mean(),(c-y).clamp(min=0).mean()
    assert_same((q*over).detach(), ((1-q)*under).detach(), 1e-5, 1e-4)

@pytest.mark.parametrize('dtype', DTYPES)
def test_gaussian(dtype):
    "Both forms, with and without the constant, against the density"
    m,s,y = torch.randn(3, 30, 2).to(dtype)
    dist = torch.distributions.Normal(m.double(), (s.double()/2).exp())
    want,tol = -dist.log_prob(y.double()),dict(atol=1e-5, rtol=1e-5)
    for preds in (torch.stack([m,s], -1), (m,s), [m,s]):
        v = gaussian_nll_loss(preds, y, None, True, reduction='none')
        assert_same(v.double(), want, **tol)
        assert_same(gaussian_nll_loss(preds, y).double(), want.mean()-.5*math.log(2*math.pi), **tol)
    var = s.double().exp().to(dtype)
    if dtype==torch.double: assert_same(gaussian_nll_loss(m, y, var, True, reduction='none'), want)
    assert_same(gaussian_nll_loss(m.float(), y, var.float()), F.gaussian_nll_loss(m.float(), y.float(), var.float()))

def test_gaussian_below_eps():
    "The value is PyTorch's, which does not move there; the gradient says so, and by its logarithm it leads back"
    v = tensor([1e-8,1e-6,0.,2.], dtype=torch.double, requires_grad=True)
    x,y = torch.zeros(4).double(),torch.ones(4).double()
    ours,theirs = (f(x, y, v, reduction='none') for f in (gaussian_nll_loss, F.gaussian_nll_loss))
    assert_same(ours, theirs)
    assert_same(grad(ours, v)[0][[0,2,3]], [0.,0.,.5*(.5-.25)])
    assert grad(theirs, v)[0][0]<-4e11
    s = torch.linspace(-30, 3, 200).double().requires_grad_()
    g, = grad(gaussian_nll_loss((0*s.detach(), s), torch.full_like(s, .1)), s)
    assert ((g<0)==(s<math.log(.01))).all() and (g[s<math.log(1e-6)].diff().abs()<1e-9).all()

def test_beta_nll():
    p,y = torch.randn(50, 2).double().requires_grad_(),torch.randn(50).double()
    v = p[:,1].exp()
    want = .5*(p[:,1] + (p[:,0]-y)**2/v)*v.detach()**.7
    assert_same(beta_nll_loss(p, y, .7, reduction='none'), want)
    assert_same(grad(beta_nll_loss(p, y, .7), p)[0], grad(want.mean(), p)[0])
    b = nn.Parameter(tensor(.7).double())
    assert_same(grad(beta_nll_loss(p, y, b), b)[0], (want*p[:,1].detach()).mean())

@pytest.mark.parametrize('full', [False,True])
def test_poisson(full):
    x,y = torch.randn(60).requires_grad_(),torch.randint(9, (60,))
    want = F.poisson_nll_loss(x, y, full=full)
    assert_same(poisson_nll_loss(x, y, True, full), want)
    assert_same(grad(poisson_nll_loss(x, y, True, full), x)[0], grad(want, x)[0])
    r = x.detach().exp()
    assert_same(poisson_nll_loss(r, y, False, full, 1e-3), F.poisson_nll_loss(r, y, False, full, eps=1e-3))

def test_poisson_on_the_tangent():
    for dtype,top in ((torch.half,11.), (torch.float,70.), (torch.bfloat16,70.), (torch.double,560.)):
        x = tensor([top-1,top,top+2], dtype=dtype, requires_grad=True)
        v = poisson_nll_loss(x, torch.zeros(3), reduction='none')
        g, = grad(v.double(), x)
        assert g.dtype==dtype and g.isfinite().all() and g[1]==g[2]
        if dtype!=torch.bfloat16: assert_same(v.double()/math.exp(top), [math.exp(-1),1.,3.], 0, 1e-3)

@pytest.mark.parametrize('dtype', [torch.double,torch.float])
@pytest.mark.parametrize('c', [-12.,-5.,-2.8,-2.7,0.,3.])
def test_negative_binomial(dtype, c):
    "Against PyTorch's distribution in float64, with one dispersion and with one each"
    x,y = torch.randn(50)*2,torch.randint(40, (50,)).double()
    r = math.exp(-c)
    total = torch.full((50,), r, dtype=torch.double)
    dist = torch.distributions.NegativeBinomial(total, logits=x.double()+c)
    want,x = -dist.log_prob(y),x.to(dtype)
    tol = dict(atol=1e-8, rtol=1e-8) if dtype==torch.double else dict(atol=1e-3, rtol=1e-5)
    one = negative_binomial_nll_loss(x, y, math.exp(c), True, 'none')
    both = negative_binomial_nll_loss((x, torch.full_like(x, c)), y, full=True, reduction='none')
    assert one.dtype==dtype
    for v in (one,both): assert_same(v.double(), want, **tol)

def test_log_rising():
    from scipy.special import gammaln
    y = torch.arange(0, 60.).double()
    for r in (1e-3,.5,15.,15.999,16.,16.001,40.,1e3):
        want = tensor(gammaln(y.numpy()+r)-gammaln(r)) - y*math.log(r)
        assert_same(R.log_rising(y, torch.full_like(y, r)), want, 1e-9, 1e-9)
    for r in (1e5,1e9,1e13): # where lgamma has no digits left: y(y-1)/2r
        assert_same(R.log_rising(y.float(), torch.full((60,), r)).double(), y*(y-1)/2/r, 3e-5, 1e-2)

@pytest.mark.parametrize('alpha', [0.,.01,.3,1.,1.7,2.])
def test_log_partition(alpha):
    from scipy.integrate import quad
    def f(t): return math.exp(-R.barron(tensor(math.sinh(t)).double(), 0., alpha, 1.).item())*math.cosh(t)
    want = math.log(2*quad(f, 0, 40, limit=400, epsabs=1e-10)[0])
    assert abs(R.log_partition(alpha)-want)<1e-6
    assert abs(R.log_partition(tensor(alpha))-want)<1e-5

# PyTorch

PAIRS = [(mse_loss, F.mse_loss, {}), (l1_loss, F.l1_loss, {}), (huber_loss, F.huber_loss, dict(delta=.5)),
    (smooth_l1_loss, F.smooth_l1_loss, dict(beta=.5)), (smooth_l1_loss, F.smooth_l1_loss, dict(beta=0.)),
    (poisson_nll_loss, F.poisson_nll_loss, {})]

@pytest.mark.parametrize('ours,theirs,kwargs', PAIRS)
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_torch(ours, theirs, kwargs, reduction):
    "Value, first and second derivative by both arguments, an error of 0 included"
    x = tensor([0.,.4,-.4,2.,-1.,3.,.25], dtype=torch.double, requires_grad=True)
    y = tensor([0.,0.,0.,2.,0.,1.,.25], dtype=torch.double, requires_grad=True)
    def all_of(f):
        v = f(x, y, reduction=reduction, **kwargs)
        g = torch.autograd.grad((v*torch.arange(1., 8)).sum(), (x,y), create_graph=True)
        z = sum(o.square().sum() for o in g)
        h = torch.autograd.grad(z, (x,y), allow_unused=True, materialize_grads=True) if z.requires_grad else ()
        return v,*g,*h
    ours,theirs = all_of(ours),all_of(theirs)
    for a,b in zip(ours, theirs): assert_same(a, b, 1e-12, 1e-12)

def test_positional_order():
    "That of PyTorch, without what it has deprecated"
    from inspect import signature
    for k in ('MSELoss','L1Loss','SmoothL1Loss','HuberLoss','GaussianNLLLoss','PoissonNLLLoss'):
        theirs = [(n,p.kind) for n,p in signature(getattr(nn, k)).parameters.items() if n not in ('size_average','reduce')]
        ours = [(n,p.kind) for n,p in signature(getattr(R, k)).parameters.items()]
        assert ours[:len(theirs)]==theirs and all(kind.name=='KEYWORD_ONLY' for _,kind in ours[len(theirs):])

def sample_inputs(name):
    "PyTorch's own sample inputs of a loss"
    if 'expecttest' not in sys.modules: # PyTorch's tests want it, these do not
        m = sys.modules['expecttest'] = types.ModuleType('expecttest')
        m.TestCase = unittest.TestCase
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from torch.testing._internal.common_methods_invocations import op_db
        op = next(o for o in op_db if o.name==f'nn.functional.{name}')
        return list(op.sample_inputs('cpu', torch.double, requires_grad=True))

# how many are equal, and how many are refused and why
SAMPLES = dict(mse_loss=(5,1), l1_loss=(5,1), smooth_l1_loss=(7,1), huber_loss=(9,0), gaussian_nll_loss=(None,None),
    poisson_nll_loss=(72,0))

@pytest.mark.parametrize('loss', SAMPLES)
def test_samples_of_torch(loss):
    "Equal value, gradient and second derivative, or a refusal that the page lists"
    seen = Counter()
    for s in sample_inputs(loss):
        def all_of(f):
            ts = [t for t in (s.input, *s.args) if torch.is_tensor(t) and t.requires_grad]
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                v = f(s.input, *s.args, **s.kwargs)
            g = torch.autograd.grad(v.sum(), ts, create_graph=True)
            z = sum(o.square().sum() for o in g)
            h = torch.autograd.grad(z, ts, allow_unused=True, materialize_grads=True) if z.requires_grad else ()
            return v,*g,*h
        shapes = [tuple(t.shape) for t in (s.input, *s.args) if torch.is_tensor(t)]
        try: got = all_of(getattr(R, loss))
        except ValueError as e:
            why = 'no batch' if shapes[0]==() else 'broadcasts'
            assert (why=='no batch' and 'preds must have shape (N, *)' in str(e)) or len(set(shapes))>1
            seen[why] += 1
            continue
        for a,b in zip(got, all_of(getattr(F, loss))): assert_same(a, b, 1e-9, 1e-9)
        seen['equal'] += 1
    equal,refused = SAMPLES[loss]
    if equal is not None: assert (seen['equal'],seen['no batch'])==(equal,refused) and not seen['broadcasts']
    else: assert seen['equal']>=36 and seen['broadcasts']>200 and not seen['no batch'], seen

# numerics

@each(POINTS+COUNTS[2:3])
@pytest.mark.parametrize('dtype,big', [(torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)])
def test_extremes(f, dtype, big):
    for s in (big,-big):
        x = torch.full((4,), s).to(dtype).requires_grad_()
        v = f(x, tensor([0.,1.,2.,3.]))
        g, = grad(v, x)
        assert v.isfinite() and g.isfinite().all() and g.dtype==dtype

@each(HEADS)
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float,torch.double])
def test_extreme_heads(f, dtype):
    p,y = f.example(4)
    for signs in (1,-1):
        x = (p.sign()*signs*1e4).to(dtype).requires_grad_()
        v = f(x, y)
        assert v.isfinite() and grad(v, x)[0].isfinite().all()

@each(POINTS+HEADS+COUNTS)
def test_second_derivative(f):
    if isinstance(f, BetaNLLLoss): return # it has no value to differentiate twice
    p,y = f.example(3)
    p = (p.double()+.0123).requires_grad_()
    f = pickle.loads(pickle.dumps(f)).double()
    assert torch.autograd.gradcheck(lambda p: f(p, y.double()), p)
    assert torch.autograd.gradgradcheck(lambda p: f(p, y.double()), p)

@each(POINTS)
def test_gradient_of_the_target(f):
    "Consistency losses train both sides"
    x,y = torch.randn(2, 30, dtype=torch.double, requires_grad=True)
    f = pickle.loads(pickle.dumps(f)).double()
    a,b = grad(f(x, y), x, y)
    assert_same(a, -b, 1e-12, 1e-9)

# what is left out, and weights

@each(POINTS+HEADS+COUNTS)
@pytest.mark.parametrize('bad', [torch.nan,torch.inf])
@pytest.mark.parametrize('weight', ['floats','bools','items'])
def test_left_out(f, bad, weight):
    "Whatever is left out reaches neither value nor gradient"
    p,y = f.example(5)
    rest,keep = [0,2,3,4],torch.arange(5)!=1
    x,t = p.clone(),y.clone()
    x[1],t[1] = bad,bad
    w = dict(floats=keep.float(), bools=keep, items=keep.float().reshape(-1, *[1]*(y.ndim-1)).expand_as(y))[weight]
    x.requires_grad_()
    v = f(x, t, sample_weight=w)
    z = p[rest].clone().requires_grad_()
    want = f(z, y[rest])
    assert_same(v, want)
    g,h = grad(v, x)[0],grad(want, z)[0]
    assert_same(g[rest], h)
    assert not g[1].any()

def test_left_out_in_a_tuple():
    m,s,y,w = torch.randn(4),torch.randn(4),torch.randn(4),tensor([1.,0.,2.,1.])
    for o in (m,s): o[1] = torch.nan
    m.requires_grad_(),s.requires_grad_()
    v = GaussianNLLLoss()((m,s), y, sample_weight=w)
    assert v.isfinite() and all(g.isfinite().all() and g[1]==0 for g in grad(v, m, s))
    var = s.detach().exp().requires_grad_()
    v = GaussianNLLLoss()(m, y, var, w)
    assert v.isfinite() and all(g.isfinite().all() and g[1]==0 for g in grad(v, m, var))

@each(POINTS+HEADS+COUNTS)
def test_learned_sample_weight(f):
    "A weight that is learned gets its example's loss, also where it is 0"
    p,y = f.example(3)
    w = tensor([1.,0.,2.], requires_grad=True)
    v = f.reduced('none', p, y).reshape(3, -1).sum(1).detach()
    assert_same(grad(f.reduced('sum', p, y, sample_weight=w), w)[0], v)

@each(POINTS+HEADS+COUNTS)
def test_nothing_counts(f):
    p,y = f.example(4)
    for args,kwargs in (((p[:0],y[:0]),{}), ((p,y),dict(sample_weight=torch.zeros(4)))):
        x = args[0].clone().requires_grad_()
        v = f(x, args[1], **kwargs)
        assert v==0 and not grad(v, x)[0].any()

# parameters

@pytest.mark.parametrize('make,k,v', [(HuberLoss,'delta',.7), (SmoothL1Loss,'beta',.7), (CharbonnierLoss,'eps',.3),
    (BarronLoss,'alpha',1.3), (BarronLoss,'scale',.7), (NegativeBinomialNLLLoss,'dispersion',.4), (PoissonNLLLoss,'eps',.1),
    (GaussianNLLLoss,'eps',.5), (BetaNLLLoss,'beta',.4), (QuantileLoss,'quantiles',.4)])
@pytest.mark.parametrize('n', [3,5000])
def test_learned_parameter(make, k, v, n):
    "A number that requires a gradient gets the one of a difference, in small batches and in large ones"
    p = nn.Parameter(tensor(v, dtype=torch.double))
    other = dict(log_input=False) if make is PoissonNLLLoss else {}
    if make is BarronLoss: other['full'] = True
    f = make(**{k: p}, **other)
    x,y = (o.double() for o in f.example(n))
    if make is GaussianNLLLoss: x,y,third = x[...,0],y,(x[...,1].exp(),)
    else: third = ()
    def at(v): return make(**{k: v}, **other)(x, y, *third)
    want = (at(v+1e-6)-at(v-1e-6))/2e-6
    assert dict(f.named_parameters()).keys()=={k}
    assert_same(f(x, y, *third).detach(), at(v), 1e-9, 1e-9)
    assert_same(grad(f(x, y, *third), p)[0], want, 1e-6, 1e-5)

@pytest.mark.parametrize('f', [NegativeBinomialNLLLoss(.5), QuantileLoss(.3), QuantileLoss((.2,.8), axis=1), SmoothL1Loss(beta=0.),
    BarronLoss(0.), BarronLoss(2., full=True), PoissonNLLLoss(False), GaussianNLLLoss(full=True, axis=1),
    MSELoss(y_range=(0,1))], ids=repr)
def test_contract(f):
    "With parameters that the contract tests do not try"
    rates,skip = isinstance(f, PoissonNLLLoss),()
    example = (lambda n: (torch.rand(n, 2)+.1,torch.randint(5, (n,2)).float())) if rates else None
    if rates: skip = 'large_float32','large_float16','large_bfloat16','mixup','cutmix','get_preds' # negative rates
    if isinstance(f, BarronLoss): skip = ('learned_numbers',) # its slope in alpha has no bound at 2
    check_loss(f, example, skip=skip, strict=True)

def test_three_arguments():
    "check_loss of PyTorch's form, and what the third argument is"
    def example(n): return torch.randn(n, 2),torch.randn(n, 2),torch.rand(n, 2)+.1
    check_loss(GaussianNLLLoss(), example, task='real', groups=('values','numerics','engineering'), strict=True)
    f,p,y,w = GaussianNLLLoss(),torch.randn(5, 2),torch.randn(5),torch.rand(5)
    assert_same(f(p, y, w), f(p, y, sample_weight=w)) # a Learner passes weights third
    assert_same(f(p, y[:,None], w), f(p, y, sample_weight=w))
    assert_same(f(p[:,:1], y, w[:,None]), f(p[:,0], y, w))

# shapes and dtypes

@each(POINTS+COUNTS[:3])
def test_nothing_broadcasts(f):
    x,y = torch.rand(4),torch.randint(3, (4,)).float()
    assert_same(f(x[:,None], y), f(x, y), 0, 0)
    assert f.reduced('none', x[:,None], y).shape==(4,) and f.reduced('none', x[:,None], y[:,None]).shape==(4,1)
    for a,b in ((x,y[:,None]), (x[:,None],y[None]), (x.reshape(2,2),y), (x.reshape(4,1,1),y), (x,y[:1]), (x,y[0]), (x[0],y)):
        with pytest.raises(ValueError, match='preds|target'): f(a, b)
    with pytest.raises(TypeError, match='preds must be a tensor, got list'): f([1.], y)
    with pytest.raises(TypeError, match='preds must be a floating point'): f(y.long(), y)
    with pytest.raises(ValueError, match='sample_weight must have shape'): f(x, y, torch.ones(4,1))

@each(HEADS)
def test_heads_do_not_broadcast(f):
    p,y = f.example(4)
    for a,b in ((p,y[:,:1]), (p[...,:1],y), (p,y[:1]), (p[0],y), (p.flatten(1),y), (p,y[...,None])):
        with pytest.raises(ValueError, match='preds must have . numbers on axis -1'): f(a, b)
    with pytest.raises(ValueError, match='axis -5'): type(f)(axis=-5)(p, y)
    with pytest.raises(TypeError, match='axis must be an integer'): type(f)(axis=.5)

def test_tuples_of_one_shape():
    y = torch.randn(4)
    with pytest.raises(ValueError, match='preds must be 2 tensors of one shape'): gaussian_nll_loss((y,y[:,None]), y)
    with pytest.raises(ValueError, match='preds must be 2 tensors of one shape'): gaussian_nll_loss((y,y,y), y)
    with pytest.raises(ValueError, match='target must have the shape of preds'): gaussian_nll_loss((y,y), y[:2])

def test_integer_and_wider_targets():
    x = torch.randn(5)
    for t in (torch.arange(5), torch.arange(5).double(), torch.arange(5).int(), tensor([0,1,1,0,1]).bool()):
        assert_same(mse_loss(x, t), F.mse_loss(x, t.float()))
    assert mse_loss(x.half(), x.double()).dtype==torch.float and mse_loss(x.double(), x.half()).dtype==torch.double

@each(POINTS+HEADS+COUNTS)
def test_half_precision_has_float32_values(f):
    p,y = f.example(6)
    assert f(p.half(), y).dtype==torch.float
    assert_same(f(p.half(), y), f(p.half().float(), y), 1e-4, 1e-4)

# compilers, transforms, threads, other reductions

@each(POINTS+HEADS+COUNTS)
def test_vmap_of_grad(f):
    p,y = f.example(4)
    want = torch.cat([grad(f(q:=p[i:i+1].clone().requires_grad_(), y[i:i+1]), q)[0] for i in range(4)])
    got = torch.func.vmap(torch.func.grad(lambda p,y: f(p[None], y[None])))(p, y)
    assert_same(got, want, 1e-5, 1e-4)

@pytest.mark.parametrize('dynamic', [None,True])
def test_compiled_with_two_numbers(dynamic):
    x,y = torch.randn(50),torch.randint(9, (50,)).float()
    for f,vals in ((lambda v: huber_loss(x, y, delta=v), (.5,.8)), (lambda v: barron_loss(x, y, v, .5, True), (.5,1.3)),
        (lambda v: negative_binomial_nll_loss(x, y, v, True), (.5,.2)), (lambda v: charbonnier_loss(x, y, v), (.5,.2))):
        torch.compiler.reset()
        g = torch.compile(f, fullgraph=True, dynamic=dynamic, backend='aot_eager')
        for v in vals: assert_same(g(v), f(v))
    torch.compiler.reset()

@each(POINTS+HEADS+COUNTS)
def test_other_reductions(f):
    p,y = f.example(4)
    v = f.reduced('none', p, y)
    assert_same(f.reduced(lambda loss,norm: loss.max(), p, y), v.max())
    assert_same(OHEM(f, .5)(p, y), v.flatten().topk(v.numel()//2).values.mean())

@each(POINTS+HEADS+COUNTS)
def test_pickle_and_repr(f):
    g,(p,y) = pickle.loads(pickle.dumps(f)),f.example(4)
    assert_same(g(p, y), f(p, y), 1e-6, 1e-6)
    assert repr(g)==repr(f)

def test_repr_shows_levels_as_given(): assert 'quantiles=(0.1, 0.9)' in repr(QuantileLoss((.1,.9)))

# what a Learner gets

def test_y_range():
    p = tensor([-1.,.5,2.])
    assert_same(MSELoss(y_range=(0,1)).activation(p), [0.,.5,1.])
    assert_same(PoissonNLLLoss(y_range=(0,3)).activation(p), [math.exp(-1),math.exp(.5),3.])
    g = GaussianNLLLoss(y_range=(0,1), coverage=.5)
    low,mid,high = g.decodes(g.activation(tensor([[.5,0.]])))[0]
    assert (low,mid,high)==(0,.5,1)
    for bad in ((1,0), (0,), 3, (0,math.nan), (0,0)):
        with pytest.raises(ValueError, match='y_range'): MSELoss(y_range=bad)

def test_intervals():
    "The interval of a Gaussian covers what it says, and a tuple is activated like one tensor"
    g,(p,y) = GaussianNLLLoss(coverage=.9),(torch.zeros(20000, 2),torch.randn(20000))
    low,_,high = g.decodes(g.activation(p)).T
    assert abs(((low<=y)&(y<=high)).float().mean()-.9)<.01
    assert_same(g.activation((p[:,0],p[:,1])), g.activation(p))
    assert_same(NegativeBinomialNLLLoss().activation((p[:,0],p[:,1])), NegativeBinomialNLLLoss().activation(p))
    with pytest.raises(ValueError, match='coverage must be in'): GaussianNLLLoss(coverage=1.)

def test_decoded_quantiles_are_no_further():
    "Sorting never makes the loss larger (Chernozhukov et al. 2010)"
    f,x,y = QuantileLoss((.1,.3,.5,.9)),torch.randn(500, 4),torch.randn(500)
    v,w = f.reduced('none', x, y),f.reduced('none', f.decodes(x), y)
    assert (w<=v+1e-6).all() and quantiles_cross(x).any() and not quantiles_cross(f.decodes(x)).any()
    assert_same(quantiles_cross(x.T, 0), quantiles_cross(x))

@each([MSELoss(), AdaptiveBarronLoss(), QuantileLoss(), GaussianNLLLoss(), PoissonNLLLoss(), NegativeBinomialNLLLoss()])
@pytest.mark.parametrize('column', [False,True])
@pytest.mark.parametrize('weighted', [False,True])
def test_learner(f, column, weighted):
    "A target (N,) or (N, 1), with weights behind it or not"
    from fastai.basics import DataLoaders, Learner
    x,y = torch.randn(40, 3),torch.randint(5, (40,)).float()
    outputs = f.example(2)[0].shape[-1] if f.example(2)[0].ndim>2 else 1
    class Items(list): n_inp = 1
    items = Items(zip(x, y[:,None] if column else y, *[torch.rand(40)]*weighted))
    dls = DataLoaders.from_dsets(items, items, bs=8, num_workers=0)
    learn = Learner(dls, nn.Linear(3, outputs), f)
    learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
    with learn.no_logging():
        learn.fit(1, 1e-2)
        p,_,decoded,losses = learn.get_preds(with_loss=True, with_decoded=True)
    assert len(p)==len(decoded)==len(losses)==40 and losses.isfinite().all()

def test_tabular_learner():
    import pandas as pd
    from fastai.tabular.all import RegressionBlock, TabularDataLoaders, tabular_learner
    df = pd.DataFrame(torch.randn(100, 3).numpy(), columns=['a','b','y'])
    dls = TabularDataLoaders.from_df(df, cont_names=['a','b'], y_names='y', y_block=RegressionBlock(), bs=20)
    for f,n in ((HuberLoss(),1), (QuantileLoss(),3), (GaussianNLLLoss(),2)):
        learn = tabular_learner(dls, layers=[8], loss_func=f, n_out=n)
        learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
        with learn.no_logging():
            learn.fit(1)
            assert learn.get_preds(with_loss=True)[2].shape[0]==20

def test_check_batch():
    for f in POINTS+HEADS+COUNTS: check_batch(f, *f.example(4))
    x,y = torch.randn(4),tensor([1.,torch.nan,2.,3.])
    with pytest.raises(ValueError, match='target must be numbers, got nan'): check_batch(MSELoss(), x, y)
    check_batch(MSELoss(), x, y, ~y.isnan())
    with pytest.raises(ValueError, match='sample_weight must be >= 0'): check_batch(MSELoss(), x, x, -torch.ones(4))
    check_batch(GaussianNLLLoss(), x, x, x.exp())
    check_batch(GaussianNLLLoss(), torch.stack([x,x], 1), y, (~y.isnan()).float())

# refusals

@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'delta must be > 0, got 0', lambda: HuberLoss(delta=0.)),
    (ValueError, 'beta must be >= 0, got -1', lambda: SmoothL1Loss(beta=-1)),
    (ValueError, 'eps must be >= 1e-12, got 0', lambda: CharbonnierLoss(0.)),
    (ValueError, 'alpha must be <= 2, got 3', lambda: BarronLoss(3.)),
    (ValueError, 'scale must be > 0', lambda: BarronLoss(scale=0.)),
    (ValueError, 'alpha must be in [0, 2], got -1', lambda: AdaptiveBarronLoss(-1.)),
    (ValueError, 'quantiles must be in (0, 1), got 0', lambda: QuantileLoss((0.,.5))),
    (ValueError, 'quantiles must rise, got ()', lambda: QuantileLoss(())),
    (ValueError, 'quantiles must rise, got (0.5, 0.5)', lambda: QuantileLoss((.5,.5))),
    (TypeError, "expectiles must be a number, got 'x'", lambda: ExpectileLoss('x')),
    (ValueError, 'beta must be in [0, 1], got 2', lambda: BetaNLLLoss(2.)),
    (ValueError, 'eps must be > 0', lambda: GaussianNLLLoss(eps=0.)),
    (ValueError, 'dispersion must be > 0', lambda: NegativeBinomialNLLLoss(0.)),
    (ValueError, 'reduction must be', lambda: MSELoss('average')),
    (ValueError, 'reduction must be', lambda: QuantileLoss(reduction='average')),
    (ValueError, 'target must be >= 0, got -1', lambda: NegativeBinomialNLLLoss(.5)(torch.zeros(2), -torch.ones(2))),
    (TypeError, 'preds must be a tensor', lambda: negative_binomial_nll_loss(3, torch.ones(2), .5)),
    (TypeError, 'var must be a tensor, got float', lambda: gaussian_nll_loss(torch.zeros(2), torch.ones(2), 1.))])
def test_refusals(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
