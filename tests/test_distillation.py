"The losses of the chapter on distillation: slow loops, PyTorch and other libraries, extremes, what is left out, refusals"
import itertools, math, pickle, pytest, torch, torch.nn.functional as F
from concurrent.futures import ThreadPoolExecutor
from math import inf
from torch import nn, tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from lossbook.check import check_loss
from lossbook.core import ClassLoss, assert_same, check_batch
from lossbook.cross_entropy import cross_entropy_with_logits
from lossbook.distillation import *
from lossbook.distillation import decoupled, forward_kl, jensen_shannon, reverse_kl
from lossbook.focal import OHEM
from lossbook.soft_labels import SoftLabelCrossEntropy

DTYPES = torch.double,torch.float,torch.half,torch.bfloat16
WAYS = 'forward','reverse','jensen-shannon'
LOSSES = [*(DistillationLoss(3., .7, o) for o in WAYS), DistillationLoss(weight=[1.,2.,.5,3.,1.]),
    *(TopKDistillationLoss(2., .7, o) for o in WAYS), TopKDistillationLoss(weight=[1.,2.,.5,3.,1.]),
    DecoupledDistillationLoss(), DecoupledDistillationLoss(2., .5, 2., .3), DecoupledDistillationLoss(weight=[1.,2.,.5,3.,1.])]
def name(f): return f'{type(f).__name__}-{getattr(f, "divergence", "")}-{f.temperature:g}' + '-weight'*(f.weight is not None)
each = pytest.mark.parametrize('f', LOSSES, ids=name)

def batch(f, n=6, *more, dtype=torch.double, seed=0):
    "Logits, what a teacher gives to this loss, and labels, five classes"
    torch.manual_seed(seed)
    x,t = torch.randn(2, n, 5, *more, dtype=torch.double)*2
    y = torch.randint(5, (n,*more))
    teacher = top_k_teacher(t, 3, f.temperature) if isinstance(f, TopKDistillationLoss) else (t,)
    return x.to(dtype).requires_grad_(),*(o.to(dtype) if o.is_floating_point() else o for o in teacher),y

# explicit loops, in Python's numbers

def softmax(x):
    e = [math.exp(v-max(x)) for v in x]
    return [v/sum(e) for v in e]

def kl(p, q): return sum(a*math.log(a/b) for a,b in zip(p, q) if a>0)

def apart(p, q, way='forward'):
    "The divergence of a student `p` from a teacher `q`"
    m = [(a+b)/2 for a,b in zip(p, q)]
    return kl(q, p) if way=='forward' else kl(p, q) if way=='reverse' else .5*kl(p, m)+.5*kl(q, m)

def by_loop(f, x, *rest):
    *teacher,y = (o.tolist() for o in rest)
    T = f.temperature
    for i,(v,c) in enumerate(zip(x.tolist(), y)):
        p,t = softmax([o/T for o in v]),[o[i] for o in teacher]
        w,hard = 1 if f.weight is None else f.weight[c].item(),-math.log(softmax(v)[c])
        if isinstance(f, DecoupledDistillationLoss):
            q = softmax([o/T for o in t[0]])
            def others(p): return [o/(1-p[c]) for j,o in enumerate(p) if j!=c]
            soft = f.alpha*kl([q[c],1-q[c]], [p[c],1-p[c]]) + f.beta*kl(others(q), others(p))
            yield w,f.label_weight*hard + T*T*soft
            continue
        if len(t)==2: # the others are one class
            q,index = t
            p,q = [*(p[j] for j in index), sum(o for j,o in enumerate(p) if j not in index)],[*q, 1-sum(q)]
        else: q = softmax([o/T for o in t[0]])
        yield w,(1-f.alpha)*hard + f.alpha*T*T*apart(p, q, f.divergence)

@each
@pytest.mark.parametrize('dtype', DTYPES)
def test_loop(f, dtype):
    args = batch(f, 9, dtype=dtype)
    w,v = torch.tensor(list(by_loop(f, *(o.detach() for o in args))), dtype=torch.double).T
    tol = dict(atol=1e-9, rtol=1e-9) if dtype==torch.double else dict(atol=2e-5, rtol=2e-5)
    got = f.reduced('none', *args).detach()
    assert got.dtype==(torch.double if dtype==torch.double else torch.float)
    assert_same(got.double(), w*v, **tol)
    assert_same(f(*args).detach().double(), (w*v).sum()/w.sum(), **tol)
    assert_same(f.reduced('sum', *args).detach().double(), (w*v).sum(), **tol)

@each
def test_second_derivative(f):
    x,*rest = batch(f, 3)
    assert gradcheck(lambda x: f(x, *rest), [x]) and gradgradcheck(lambda x: f(x, *rest), [x])

@pytest.mark.parametrize('g', [forward_kl, reverse_kl, jensen_shannon], ids=lambda g: g.__name__)
def test_values_alone(g):
    "Gradients by both arguments, and 0 where they are equal"
    z,t = torch.randn(2, 4, 5, dtype=torch.double).requires_grad_()
    z,t = z.detach().requires_grad_(),t.detach().requires_grad_()
    assert gradcheck(g, [z, t]) and gradgradcheck(g, [z, t])
    assert_same(g(z, z).detach(), torch.zeros(4).double(), 1e-12)
    assert (g(z, t)>0).all()

# the promises that need labels in the second place: with a fixed teacher, every loss is one over classes

def fixed_teacher(loss):
    "`loss` as a function of logits and labels, by a teacher that gives all classes alike"
    def f(logits, target, temperature=1., alpha=.2, reduction='mean', *, weight=None, sample_weight=None, ignore_index=-100, axis=1):
        rest = dict(weight=weight, sample_weight=sample_weight, ignore_index=ignore_index, axis=axis)
        teacher = torch.zeros_like(logits.detach())
        if loss is top_k_distillation_loss_with_logits:
            q = teacher.narrow(axis, 0, 2) + 1/logits.shape[axis]
            index = torch.arange(2, device=q.device).reshape([-1 if i==axis%q.ndim else 1 for i in range(q.ndim)]).expand(q.shape)
            teacher = q,index
        else: teacher = teacher,
        if loss is decoupled_distillation_loss_with_logits: return loss(logits, *teacher, target, temperature, alpha, alpha, 1., reduction, **rest)
        return loss(logits, *teacher, target, temperature, alpha, 'forward', reduction, **rest)
    class Fixed(ClassLoss, of=f): "A loss over classes"
    return Fixed

FUNCTIONS = distillation_loss_with_logits,top_k_distillation_loss_with_logits,decoupled_distillation_loss_with_logits

@pytest.mark.parametrize('f', FUNCTIONS, ids=lambda f: f.__name__)
def test_as_a_loss_over_classes(f):
    "One-hot rows, dense maps, another axis, ignored positions, class weights, MixUp: the whole contract"
    skip = ['pickles','falls'] + ['one_hot','weighted_one_hot']*(f is decoupled_distillation_loss_with_logits)
    check_loss(fixed_teacher(f)(), skip=skip, groups=('values','numerics','learner'), strict=True)

@each
def test_dense_and_axis(f):
    x,*teacher,y = batch(f, 4, 2, 3)
    want = f.reduced('none', x, *teacher, y)
    flat = [o.movedim(1, -1).flatten(0, 2) for o in (x, *teacher)]
    assert want.shape==y.shape
    assert_same(f.reduced('none', *flat, y.flatten()), want.flatten())
    g = type(f)(**{**f.params(), 'axis': -1})
    assert_same(g.reduced('none', *(o.movedim(1, -1) for o in (x, *teacher)), y), want)
    assert_same(g(*(o.movedim(1, -1) for o in (x, *teacher)), y), f(x, *teacher, y))

# what is left out

@each
@pytest.mark.parametrize('how', ['ignored','weight 0','both'])
def test_left_out(f, how):
    "Whatever stands where nothing counts, NaN in student and teacher, reaches neither value nor gradient"
    x,*teacher,y = batch(f, 6)
    keep,w = torch.arange(6)%3!=0,None
    some = [o[keep] for o in (x.detach(), *teacher, y)]
    x = torch.where(keep[:,None], x.detach(), torch.nan).requires_grad_()
    teacher = [torch.where(keep[:,None], o, torch.nan if o.is_floating_point() else -7) for o in teacher]
    if how!='weight 0': y = torch.where(keep, y, f.ignore_index)
    if how!='ignored': w = keep
    for r in ('mean','sum'):
        v = f.reduced(r, x, *teacher, y, sample_weight=w)
        part = some[0].clone().requires_grad_()
        want = f.reduced(r, part, *some[1:])
        assert_same(v.detach(), want.detach())
        g,h = grad(v, x)[0],grad(want, part)[0]
        assert_same(g[keep], h)
        assert (g[~keep]==0).all()
    check_batch(f, x, *teacher, y, *[w]*(w is not None))

@each
def test_nothing(f):
    "Over an empty batch, and where all is left out, the mean is 0 with a gradient of 0"
    x,*teacher,y = batch(f, 4)
    for args,w in ((tuple(o[:0] for o in (x, *teacher, y)),None), ((x, *teacher, y),torch.zeros(4)), ((x, *teacher, y*0-100),None)):
        v = f(*args, sample_weight=w)
        assert v==0 and (grad(v, x, allow_unused=True, materialize_grads=True)[0]==0).all()

@each
def test_sample_weight_is_learned(f):
    x,*teacher,y = batch(f, 5)
    w = torch.rand(5, dtype=torch.double).requires_grad_()
    v = f.reduced('none', x, *teacher, y).detach()
    g, = grad(f.reduced('sum', x, *teacher, y, sample_weight=w), w)
    assert_same(g, v)
    assert gradcheck(lambda x, w: f(x, *teacher, y, sample_weight=w), [x, w])

# extremes

@each
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('big', [1e2,3e4])
def test_extremes(f, dtype, big):
    "Both sure, of the same class and of different ones, right and wrong: value and gradient are finite"
    one = torch.eye(5).to(dtype)
    for s,i,c in itertools.product((1,-1), range(2), range(2)):
        x = (s*big*one[[i,2]]).requires_grad_()
        t = big*one[[0,1]]
        teacher = top_k_teacher(t, 3, f.temperature) if isinstance(f, TopKDistillationLoss) else (t,)
        v = f.reduced('sum', x, *teacher, tensor([c,2]))
        g, = grad(v, x)
        assert v.isfinite() and g.isfinite().all() and v>=-1e-6

@pytest.mark.parametrize('way', WAYS)
def test_ruled_out(way):
    "A logit of -inf without mass on the other side costs nothing; where both rule a class out, it is not there"
    f = DistillationLoss(2., 1., way)
    x,t = torch.randn(2, 4, 6, dtype=torch.double)
    want = f.reduced('none', x[:,:5], t[:,:5])
    x[:,5] = t[:,5] = -inf
    x.requires_grad_()
    v = f.reduced('none', x, t)
    assert_same(v.detach(), want.detach())
    g, = grad(v.sum(), x, create_graph=True)
    assert g.isfinite().all() and grad(g.square().sum(), x)[0].isfinite().all()
    one = torch.zeros(1, 3).double()
    out = tensor([[0.,0.,-inf]]).double()
    res = {(a,b): DistillationLoss(1., 1., way)(*o) for (a,b),o in {('out','in'): (out, one), ('in','out'): (one, out)}.items()}
    if way=='forward': assert res['out','in']==inf and res['in','out'].isfinite()
    elif way=='reverse': assert res['in','out']==inf and res['out','in'].isfinite()
    else: assert all(o.isfinite() for o in res.values())

def test_top_k_of_all():
    "With all classes kept nothing is left for the rest, whatever rounding says"
    for dtype,way in itertools.product(DTYPES, WAYS):
        x,t = (torch.randn(2, 50, 7)*4).to(dtype)
        f,g = TopKDistillationLoss(2., .7, way),DistillationLoss(2., .7, way)
        x.requires_grad_()
        y = torch.randint(7, (50,))
        q,i = top_k_teacher(t.float(), 7, 2.)
        v,w = f(x, q, i, y),g(x, t, y)
        assert_same(v, w, atol=1e-5, rtol=1e-4)
        assert_same(grad(v, x)[0], grad(w, x)[0], **(dict(atol=1e-6, rtol=1e-4) if dtype in (torch.double,torch.float) else dict(atol=1e-3, rtol=1e-2)))

# neighbours

@pytest.mark.parametrize('T', [1.,2.,4.,20.])
def test_torch(T):
    x,t = torch.randn(2, 8, 10, dtype=torch.double)*3
    y = torch.randint(10, (8,))
    a,b = (o.div(T).log_softmax(1) for o in (x, t))
    want = dict(forward=F.kl_div(a, b, reduction='batchmean', log_target=True),
        reverse=F.kl_div(b, a, reduction='batchmean', log_target=True))
    for k,v in want.items():
        assert_same(DistillationLoss(T, 1., k)(x, t), T*T*v)
        assert_same(DistillationLoss(T, .3, k)(x, t, y), .3*T*T*v + .7*F.cross_entropy(x, y))

def test_generalised_jensen_shannon():
    "The form that language models are distilled with, at its middle (Agarwal et al. 2024)"
    x,t = torch.randn(2, 8, 10, dtype=torch.double)*3
    a,b = x.log_softmax(1),t.log_softmax(1)
    m = torch.logsumexp(torch.stack([a+math.log(.5), b+math.log(.5)]), 0)
    v = .5*F.kl_div(m, b, reduction='batchmean', log_target=True) + .5*F.kl_div(m, a, reduction='batchmean', log_target=True)
    assert_same(DistillationLoss(1., 1., 'jensen-shannon')(x, t), v)
    far = DistillationLoss(1., 1., 'jensen-shannon')(1e3*torch.eye(3), 1e3*torch.eye(3).roll(1, 0))
    assert_same(far, math.log(2))

def test_published_decoupled():
    "The loss of the paper's authors, written as they wrote it, on probabilities and masks"
    torch.manual_seed(0)
    x,t = torch.randn(2, 16, 10)*2
    y,T,alpha,beta = torch.randint(10, (16,)),4.,1.,8.
    own = F.one_hot(y, 10).bool()
    p,q = (x/T).softmax(1),(t/T).softmax(1)
    def two(p): return torch.stack([(p*own).sum(1), (p*~own).sum(1)], 1)
    target = F.kl_div(two(p).log(), two(q), reduction='sum')*T**2/16
    p2,q2 = (x/T - 1000.*own).log_softmax(1),(t/T - 1000.*own).softmax(1)
    others = F.kl_div(p2, q2, reduction='sum')*T**2/16
    want = F.cross_entropy(x, y) + alpha*target + beta*others
    assert_same(DecoupledDistillationLoss()(x, t, y), want)

@pytest.mark.parametrize('T', [1.,4.])
def test_decoupled_is_distillation(T):
    "With beta = 1 - q_t, example by example, the parts add up to the divergence (eq. 6 of the paper)"
    z,t = torch.randn(2, 9, 10, dtype=torch.double)*3/T
    i = torch.randint(10, (9,1))
    beta = 1-t.softmax(1).gather(1, i)[:,0]
    assert_same(decoupled(z, t, i, 1., beta), forward_kl(z, t))

@pytest.mark.parametrize('eps', [0.,.1,.7])
def test_smoothing_is_a_uniform_teacher(eps):
    "The same gradient, and values that differ by the entropy of the uniform distribution"
    x = torch.randn(8, 10, dtype=torch.double).requires_grad_()
    y,t = torch.randint(10, (8,)),torch.zeros(8, 10).double()
    v = DistillationLoss(1., eps)(x, t, y)
    w = cross_entropy_with_logits(x, y, label_smoothing=eps)
    assert_same(grad(v, x)[0], grad(w, x)[0])
    assert_same((w-v).detach(), eps*math.log(10))

def test_soft_labels_at_temperature_1():
    x,t = torch.randn(2, 8, 10, dtype=torch.double)*2
    x.requires_grad_()
    x = x.detach().requires_grad_()
    y = torch.randint(10, (8,))
    mixed = .9*t.softmax(1) + .1*F.one_hot(y, 10)
    a,b = grad(DistillationLoss(1., .9)(x, t, y), x)[0],grad(SoftLabelCrossEntropy()(x, mixed), x)[0]
    assert_same(a, b)

@pytest.mark.parametrize('way,factor', [('forward',.5), ('reverse',.5), ('jensen-shannon',.125)])
def test_high_temperature(way, factor):
    "T^2 times the divergence tends to the variance of the differences of the logits"
    x,t = torch.randn(2, 8, 10, dtype=torch.double)
    v = DistillationLoss(1e4, 1., way, 'none')(x, t)
    assert_same(v, factor*(x-t).var(1, unbiased=False), 0, 1e-3)

def test_merging_never_adds():
    "Merged classes are told apart less well (data processing inequality)"
    x,t = torch.randn(2, 200, 10, dtype=torch.double)*3
    full = {o: DistillationLoss(1., 1., o, 'none')(x, t) for o in WAYS}
    for k,way in itertools.product((1,3,9,10), WAYS):
        v = TopKDistillationLoss(1., 1., way, 'none')(x, *top_k_teacher(t, k))
        assert (v<=full[way]+1e-9).all()
        if k==10: assert_same(v, full[way])

def test_teacher_gets_no_gradient():
    for f in LOSSES[:1]+LOSSES[-2:]:
        x,t,y = batch(f)
        t.requires_grad_()
        f(x, t, y).backward()
        assert t.grad is None and x.grad is not None

def test_ends_of_alpha():
    x,t,y = batch(LOSSES[0])
    assert_same(DistillationLoss(alpha=0.)(x, t, y), F.cross_entropy(x, y), 0, 0)
    assert_same(DistillationLoss(alpha=0.)(x, t*torch.nan, y), F.cross_entropy(x, y), 0, 0)
    assert_same(DistillationLoss(alpha=1.)(x, t, y), DistillationLoss(alpha=1.)(x, t))
    assert_same(TopKDistillationLoss(alpha=0.)(x, *top_k_teacher(t, 2), y), F.cross_entropy(x, y), 0, 0)

def test_without_labels():
    x,t,y = batch(LOSSES[0])
    f,w = DistillationLoss(alpha=1.),tensor([1.,0.,2.,0.,0.,1.]).double()
    v = f.reduced('none', x, t)
    assert_same(f(x, t, sample_weight=w), (v*w).sum()/w.sum())
    assert_same(f(x, t, None, w), (v*w).sum()/w.sum())
    check_batch(f, x, t)
    mixed = .5*F.one_hot(y, 5) + .1
    assert_same(DistillationLoss(alpha=.5)(x, t, mixed), .5*DistillationLoss(alpha=1.)(x, t) + .5*F.cross_entropy(x, mixed))

def test_learned_temperature():
    "Temperature and alpha as parameters get their gradients, from student and teacher"
    x,t,y = batch(LOSSES[0])
    for way in WAYS:
        def f(T, a): return distillation_loss_with_logits(x.detach(), t, y, T, a, way)
        ps = [tensor(v, dtype=torch.double, requires_grad=True) for v in (2.,.6)]
        assert gradcheck(f, ps)
    q,i = top_k_teacher(t, 2)
    assert gradcheck(lambda T: top_k_distillation_loss_with_logits(x.detach(), q, i, y, T), ps[:1])
    assert gradcheck(lambda *o: decoupled_distillation_loss_with_logits(x.detach(), t, y, *o),
        [*ps, *(tensor(v, dtype=torch.double, requires_grad=True) for v in (3.,.5))])

def test_large_matches_small():
    "Block by block, in one and four threads, and by autograd on the whole"
    torch.manual_seed(0)
    x,t = torch.randn(2, 300, 1000)*3
    x.requires_grad_()
    for way,f in zip(WAYS, (forward_kl, reverse_kl, jensen_shannon)):
        v = DistillationLoss(2., 1., way, 'sum')(x, t)
        w = 4*f(x/2, t/2).sum()
        assert_same(v, w, 0, 1e-5)
        assert_same(grad(v, x)[0], grad(w, x)[0], 1e-6, 1e-4)

@each
def test_threads(f):
    args = batch(f, 7)
    want = f(*args)
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda _: f(*args), range(16)))
    for v in got: assert_same(v, want)

@each
def test_pickle_and_ohem(f):
    args = batch(f, 8)
    assert_same(pickle.loads(pickle.dumps(f))(*args), f(*args))
    v = f.reduced('none', *args)
    if f.weight is None: assert_same(OHEM(f, .25)(*args), v.topk(2).values.mean())

@pytest.mark.parametrize('dynamic', [None,True])
@pytest.mark.parametrize('cls', [DistillationLoss, TopKDistillationLoss, DecoupledDistillationLoss], ids=lambda c: c.__name__)
def test_compiled(cls, dynamic):
    "Two temperatures, with an ignored position and a sample weight"
    def call(f, *args): return f(*args)
    g = torch.compile(call, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    try:
        for T in (2.,3.):
            f = cls(temperature=T)
            x,*teacher,y = batch(f, 6, dtype=torch.float)
            y[1] = -100
            args = x,*teacher,y,tensor([1.,1.,0.,2.,1.,1.])
            v,w = g(f, *args),f(*args)
            assert_same(v, w)
            assert_same(grad(v, x)[0], grad(w, x)[0])
    finally: torch.compiler.reset()

# in a Learner

@pytest.mark.parametrize('f', [DistillationLoss(), TopKDistillationLoss(), DecoupledDistillationLoss()], ids=name)
def test_learner(f):
    "The teacher's answers stand in the data, between inputs and labels"
    from fastai.basics import DataLoaders, Learner
    x,t,y = torch.randn(40, 3),torch.randn(40, 5),torch.randint(5, (40,))
    teacher = top_k_teacher(t, 2) if isinstance(f, TopKDistillationLoss) else (t,)
    items = list(zip(x, *teacher, y))
    dls = DataLoaders.from_dsets(items, items, bs=8, num_workers=0)
    dls.n_inp = 1
    learn = Learner(dls, nn.Linear(3, 5), f)
    learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
    with learn.no_logging():
        learn.fit(1, 1e-2)
        p,_,decoded,losses = learn.get_preds(with_loss=True, with_decoded=True)
    assert_same(p.sum(1), torch.ones(40))
    assert len(losses)==40 and losses.isfinite().all() and decoded.equal(p.argmax(1))

# refusals

x5,t5,y5 = torch.randn(4, 5),torch.randn(4, 5),tensor([0,1,2,3])
q5,i5 = top_k_teacher(t5, 2)
@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'temperature must be > 0, got 0', lambda: DistillationLoss(0.)),
    (ValueError, 'alpha must be in [0, 1], got 1.5', lambda: DistillationLoss(alpha=1.5)),
    (ValueError, 'alpha must be in [0, 1], got -1', lambda: TopKDistillationLoss(alpha=-1.)),
    (ValueError, "divergence must be 'forward', 'reverse' or 'jensen-shannon', got 'js'", lambda: DistillationLoss(divergence='js')),
    (ValueError, 'beta must be >= 0, got -1', lambda: DecoupledDistillationLoss(beta=-1.)),
    (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'batchmean'", lambda: DistillationLoss(reduction='batchmean')),
    (ValueError, "reduction must be 'mean'", lambda: DistillationLoss(alpha=1.).reduced('batchmean', x5, t5)),
    (ValueError, 'teacher_logits must have the shape of logits, (4, 5), got (4, 4)', lambda: DistillationLoss()(x5, t5[:,:4], y5)),
    (ValueError, 'teacher_logits must have the shape of logits, (4, 5), got (4,)', lambda: DistillationLoss()(x5, y5)),
    (TypeError, 'teacher_logits must be a floating point tensor', lambda: DistillationLoss()(x5, t5.long(), y5)),
    (TypeError, 'logits must be a tensor, got list', lambda: DistillationLoss()([1.], t5, y5)),
    (ValueError, 'target must be given unless alpha is 1', lambda: DistillationLoss()(x5, t5)),
    (ValueError, 'weight is by label, so it needs a target', lambda: DistillationLoss(alpha=1., weight=[1.]*5)(x5, t5)),
    (ValueError, 'target must be in 0..4', lambda: DistillationLoss()(x5, t5, y5+4)),
    (ValueError, 'target must be in 0..4', lambda: DecoupledDistillationLoss()(x5, t5, y5+4)),
    (ValueError, 'target must have shape (4,)', lambda: DistillationLoss()(x5, t5, y5[:3])),
    (ValueError, 'target must have shape (4,)', lambda: DecoupledDistillationLoss()(x5, t5, y5[:3])),
    (TypeError, 'target must be class indices, got torch.float32', lambda: DecoupledDistillationLoss()(x5, t5, t5.softmax(1))),
    (ValueError, 'teacher_probs must have shape (N, K, *) with K in 1..5 for logits of shape (4, 5), got (4, 6)',
        lambda: TopKDistillationLoss()(x5, torch.rand(4, 6), torch.zeros(4, 6).long(), y5)),
    (ValueError, 'teacher_index must have the shape of teacher_probs, (4, 2), got (4, 1)', lambda: TopKDistillationLoss()(x5, q5, i5[:,:1], y5)),
    (TypeError, 'teacher_index must be integer', lambda: TopKDistillationLoss()(x5, q5, q5, y5)),
    (ValueError, 'teacher_index must be in 0..4, got 9', lambda: TopKDistillationLoss()(x5, q5, i5*0+9, y5)),
    (ValueError, 'k must be in 1..5, got 6', lambda: top_k_teacher(t5, 6)),
    (ValueError, 'teacher_logits must be numbers, got nan', lambda: check_batch(DistillationLoss(), x5, t5*torch.nan, y5)),
    (ValueError, 'target must be in 0..4', lambda: check_batch(DistillationLoss(), x5, t5, y5+4)),
    (ValueError, 'sample_weight must be >= 0', lambda: check_batch(DistillationLoss(), x5, t5, y5, -torch.ones(4))),
    (ValueError, 'teacher_probs must be >= 0', lambda: check_batch(TopKDistillationLoss(), x5, -q5, i5, y5)),
    (ValueError, 'teacher_probs must sum to 1 at most', lambda: check_batch(TopKDistillationLoss(), x5, q5+1, i5, y5)),
    (ValueError, 'teacher_index must not name a class twice', lambda: check_batch(TopKDistillationLoss(), x5, q5, i5*0, y5))])
def test_refused(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
