"The losses of the chapter on margins: slow loops, PyTorch's own sample inputs, extremes, what is left out, refusals"
import itertools, math, pickle, pytest, sys, torch, types, unittest, torch.nn.functional as F
from torch import nn, tensor
from torch.autograd import grad, gradgradcheck
from lossbook.core import assert_same as same
from lossbook import margin as m
from lossbook.margin import *

SIGNS = (MarginRankingLoss, SoftMarginLoss, HingeEmbeddingLoss, CosineEmbeddingLoss)
ALL = (*SIGNS, TripletMarginLoss, MultiMarginLoss, MultiLabelMarginLoss, ListNetLoss, LambdaRankLoss)
each = pytest.mark.parametrize('cls', ALL, ids=lambda c: c.__name__)
DTYPES = torch.half,torch.bfloat16,torch.float,torch.double

def batch(cls, n=5, dtype=torch.double, **params):
    "A loss, its predictions and what follows them"
    torch.manual_seed(n)
    f = cls(**params)
    args = f.example(n)
    k = 1 if cls in (MultiMarginLoss,) else getattr(f, 'n_preds', 1)
    return f,[o.to(dtype).requires_grad_() for o in args[:k]],list(args[k:])

# explicit loops

def hinge(v): return max(0., v)

def by_loop(f, preds, rest):
    "The values of a loss, one by one, in Python's numbers"
    xs = [p.tolist() for p in preds]
    y = rest[0].tolist() if rest else [None]*len(xs[0])
    for i,t in enumerate(y):
        x = [o[i] for o in xs]
        if isinstance(f, MarginRankingLoss): yield hinge(f.margin - t*(x[0]-x[1]))
        elif isinstance(f, SoftMarginLoss): yield math.log(1+math.exp(-t*x[0]))
        elif isinstance(f, HingeEmbeddingLoss): yield x[0] if t==1 else hinge(f.margin-x[0])
        elif isinstance(f, CosineEmbeddingLoss):
            dot,a,b = (sum(p*q for p,q in zip(*o)) for o in (x, [x[0]]*2, [x[1]]*2))
            c = dot/math.sqrt(a*b)
            yield 1-c if t==1 else hinge(c-f.margin)
        elif isinstance(f, TripletMarginLoss):
            def d(a, b): return sum(abs(p-q+f.eps)**f.p for p,q in zip(a, b))**(1/f.p)
            far = d(x[0], x[2])
            if f.swap: far = min(far, d(x[1], x[2]))
            yield hinge(f.margin + d(x[0], x[1]) - far)
        elif isinstance(f, MultiMarginLoss):
            w = 1. if f.weight is None else f.weight[t].item()
            z = [hinge(f.margin - x[0][t] + v)**f.p for c,v in enumerate(x[0]) if c!=t]
            yield w*(max(z) if f.hardest else sum(z)/len(x[0]))
        elif isinstance(f, MultiLabelMarginLoss):
            ls = [c for c,o in enumerate(t) if o] if f.multi_hot else list(itertools.takewhile(lambda c: c>=0, t))
            yield sum(hinge(f.margin - x[0][j] + v) for j in ls for c,v in enumerate(x[0]) if c not in ls)/len(t)
        elif isinstance(f, ListNetLoss):
            q,p = ([math.exp(v) for v in o] for o in (t, x[0]))
            yield -sum(a/sum(q)*math.log(b/sum(p)) for a,b in zip(q, p))
        else: yield sum(v for v in lambdas(x[0], t, f))

def dcg(s, r, k=None): # of the order that `s` gives
    order = sorted(range(len(s)), key=lambda i: -s[i])
    return sum((2**r[i]-1)/math.log2(n+2) for n,i in enumerate(order) if k is None or n<k)

def lambdas(s, r, f):
    "The value of each pair, whose weight is found by changing the places of two"
    best = dcg(r, r, f.k)
    for i,j in itertools.permutations(range(len(s)), 2):
        if r[i]<=r[j]: continue
        t = list(s)
        t[i],t[j] = s[j],s[i]
        yield abs(dcg(s, r, f.k)-dcg(t, r, f.k))/best*math.log(1+math.exp(-f.sigma*(s[i]-s[j])))

# ties

def tied_lists(n, L, masked, seed=0):
    "Scores and relevances with ties in both, and which items there are, at least two"
    torch.manual_seed(seed)
    s,r = torch.randint(3, (n,L)).double(),torch.randint(4, (n,L)).double()
    mask = torch.rand(n, L)<(.7 if masked else 2.)
    mask[:,:2] = True
    return s.where(mask, torch.randn(n, L).double()*9),r.where(mask, 7.),mask

def orders(s):
    "All orders of descending scores"
    return [o for o in itertools.permutations(range(len(s))) if all(s[a]>=s[b] for a,b in zip(o, o[1:]))]

@pytest.mark.parametrize('k', [None,1,2,4])
@pytest.mark.parametrize('masked', [False,True])
def test_tied_items_have_the_mean_of_their_orders(k, masked):
    "The measure, and the loss that its changes weigh"
    s,r,mask = tied_lists(12, 5, masked)
    got,loss = ndcg(s, r, k, mask=mask),lambda_rank_loss(s, r, 1.5, k, 'none', mask=mask)
    for i in range(12):
        a,b = s[i][mask[i]].tolist(),r[i][mask[i]].tolist()
        ranks = [{j: -n for n,j in enumerate(o)} for o in orders(a)]
        ranks = [[d[j] for j in range(len(a))] for d in ranks] # other scores, without ties, for each order
        best = dcg(b, b, k)
        if best==0:
            assert got[i]==0 and loss[i]==0
            continue
        same(got[i], sum(dcg(o, b, k) for o in ranks)/len(ranks)/best, 1e-12, 1e-12)
        def weights(o): # by the places that an order gives
            for p,q in itertools.permutations(range(len(a)), 2):
                if b[p]<=b[q]: continue
                t = list(o)
                t[p],t[q] = o[q],o[p]
                yield abs(dcg(o, b, k)-dcg(t, b, k))/best*math.log(1+math.exp(-1.5*(a[p]-a[q])))
        same(loss[i], sum(sum(weights(o)) for o in ranks)/len(ranks), 1e-12, 1e-12)

@pytest.mark.parametrize('k', [None,1,3,10])
@pytest.mark.parametrize('L', [2,7,50])
def test_ndcg_of_scikit_learn(k, L):
    metrics = pytest.importorskip('sklearn.metrics')
    for masked in (False,True):
        s,r,mask = tied_lists(20, L, masked, L)
        got = ndcg(s, r, k, mask=mask)
        for i in range(20):
            a,b = s[i][mask[i]],r[i][mask[i]]
            same(got[i], metrics.ndcg_score([2**b.numpy()-1], [a.numpy()], k=k, ignore_ties=False), 1e-12, 1e-12)

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('masked', [False,True])
def test_the_order_of_the_items_says_nothing(dtype, masked):
    s,r,mask = tied_lists(8, 9, masked)
    s,r = s.to(dtype),r.to(dtype)
    i = torch.randperm(9)
    for k in (None,2):
        same(ndcg(s, r, k, mask=mask), ndcg(s[:,i], r[:,i], k, mask=mask[:,i]))
        for f in (LambdaRankLoss(k=k, reduction='none'), ListNetLoss('none')):
            x,z = s.clone().requires_grad_(),s[:,i].clone().requires_grad_()
            v,w = f(x, r, mask),f(z, r[:,i], mask[:,i])
            same(v, w)
            same(grad(v.sum(), x)[0][:,i], grad(w.sum(), z)[0])

def test_ties_at_the_ends():
    "Infinite scores tie as others do, an item ruled out still stands before one that is none, and a NaN has no order"
    y = torch.tensor([[3.,2.,0.]])
    assert 0<ndcg(torch.zeros(1, 3), y)<1 and ndcg(y, y)==1 and ndcg(torch.zeros(1, 3), 0*y+2)<=1
    same(ndcg(torch.full((1, 3), -math.inf), y), ndcg(torch.zeros(1, 3), y))
    same(ndcg(torch.full((1, 3), math.inf), y), ndcg(torch.zeros(1, 3), y))
    mask = tensor([[False,True,True,True]])
    same(ndcg(F.pad(torch.full((1, 3), -math.inf), (1,0)), F.pad(y, (1,0)), mask=mask), ndcg(torch.zeros(1, 3), y))
    assert ndcg(tensor([[1.,math.nan,2.]]), y).isnan() and ndcg(tensor([[1.,2.,math.nan]]), y, mask=tensor([[1,1,0]]))>0
    assert LambdaRankLoss()(torch.zeros(1, 3), y)>0 # a network that gives all the same can move
    x = torch.zeros(1, 3, requires_grad=True)
    assert grad(LambdaRankLoss()(x, y), x)[0].abs().min()>0

@pytest.mark.parametrize('most', [90,128,200,1e4])
def test_relevances_whose_powers_overflow(most):
    "2^200 is infinite in float32; only the best item counts beside it"
    y,s = tensor([[most,1.,0.,most]]),tensor([[0.,3.,2.,1.]])
    same(ndcg(s, y)[0], (.5+1/math.log2(5))/(1+1/math.log2(3)))
    x = s.clone().requires_grad_()
    v = LambdaRankLoss()(x, y)
    assert v.isfinite() and grad(v, x)[0].isfinite().all() and v>0

OTHERS = {MarginRankingLoss: [dict(margin=.7)], HingeEmbeddingLoss: [dict(margin=.3)], SoftMarginLoss: [],
    CosineEmbeddingLoss: [dict(margin=-.2)], ListNetLoss: [], LambdaRankLoss: [dict(sigma=2.,k=2)],
    TripletMarginLoss: [dict(margin=.3,p=1.), dict(p=3.,swap=True), dict(eps=.1)],
    MultiMarginLoss: [dict(p=2,margin=.4), dict(hardest=True), dict(weight=[1.,2.,.5]), dict(p=2,hardest=True)],
    MultiLabelMarginLoss: [dict(margin=.4), dict(multi_hot=True)]}
settings = pytest.mark.parametrize('cls,params', [(c,p) for c in ALL for p in ({}, *OTHERS[c])], ids=lambda o: str(o).split(' at 0x')[0])

@settings
def test_loop(cls, params):
    f,preds,rest = batch(cls, 7, **params)
    want = torch.tensor(list(by_loop(f, preds, rest)), dtype=torch.double)
    same(f.reduced('none', *preds, *rest).detach(), want, 1e-9, 1e-9)
    same(f(*preds, *rest).detach(), want.mean(), 1e-9, 1e-9)
    same(f.reduced('sum', *preds, *rest).detach(), want.sum(), 1e-9, 1e-9)

@settings
def test_second_derivative(cls, params):
    f,preds,rest = batch(cls, 3, **params)
    assert gradgradcheck(lambda *xs: f(*xs, *rest), preds)

# PyTorch's own sample inputs

def samples():
    "(name, operator, sample), from the tables by which PyTorch tests itself"
    sys.modules.setdefault('expecttest', types.SimpleNamespace(TestCase=unittest.TestCase)) # which the tables do not use
    from torch.testing._internal.common_methods_invocations import op_db
    ours = ('hinge_embedding_loss margin_ranking_loss triplet_margin_loss soft_margin_loss multilabel_margin_loss '
        'multi_margin_loss cosine_embedding_loss triplet_margin_with_distance_loss').split()
    for op in op_db:
        name = op.name.split('.')[-1]
        if name not in ours: continue
        torch.manual_seed(0)
        for i,s in enumerate(op.sample_inputs('cpu', torch.double, requires_grad=True)): yield name,op,s,i

SAMPLES = list(samples())

# what the page says is refused, and why
def refusal(name, args, weight=None):
    x,*_,y = args
    if weight is not None and (weight<0).any(): return 'weight must be >= 0'
    if x.ndim==0: return r'must have shape \(N, '
    if name.startswith(('multi','cosine')) and x.ndim==1: return r'must have shape \(N, '
    if name in ('soft_margin_loss','margin_ranking_loss') and not ((y==1)|(y==-1)).all(): return 'target must be 1 or -1'

def same_as_torch(name, op, args, kwargs):
    kwargs,torchs = dict(kwargs),dict(kwargs)
    if name=='triplet_margin_with_distance_loss':
        kwargs['distance'],name = kwargs.pop('distance_function'),'triplet_margin_loss'
    xs = [o for o in args if o.is_floating_point() and o.requires_grad]
    v,w = getattr(m, name)(*args, **kwargs),op.op(*args, **torchs)
    same(v, w, 1e-12, 1e-12)
    gs = [grad(o.sum(), xs, create_graph=True) for o in (v,w)]
    for g,h in zip(*gs): same(g, h, 1e-12, 1e-12)
    def second(gs):
        gs = [g for g in gs if g.requires_grad]
        return grad(sum(g.square().sum() for g in gs), xs, allow_unused=True, materialize_grads=True) if gs else [torch.zeros_like(x) for x in xs]
    ours = second(gs[0])
    if name.startswith('multi'): return # PyTorch has none
    for g,h in zip(ours, second(gs[1])): same(g, h, 1e-10, 1e-10)

@pytest.mark.parametrize('name,op,sample', [pytest.param(n, o, s, id=f'{n}-{i}') for n,o,s,i in SAMPLES])
def test_sample_of_torch(name, op, sample):
    "Equal in value, gradient and second derivative, or refused as the page says"
    args = [sample.input,*sample.args]
    if name not in ('multi_margin_loss','multilabel_margin_loss') and 'triplet' not in name: args[-1] = args[-1].detach()
    why,weight = refusal(name, args, sample.kwargs.get('weight')),sample.kwargs.get('weight')
    if why is None: return same_as_torch(name, op, args, sample.kwargs)
    with pytest.raises(ValueError, match=why): getattr(m, name)(*args, **sample.kwargs)
    if args[0].ndim and name in ('soft_margin_loss','margin_ranking_loss'): # the same sample with proper targets
        same_as_torch(name, op, [*args[:-1], args[-1].sign()], sample.kwargs)
    if weight is not None: same_as_torch(name, op, args, sample.kwargs | dict(weight=weight.abs().detach()))

def test_there_are_samples(): assert len({n for n,*_ in SAMPLES})==8 and len(SAMPLES)>60

@pytest.mark.parametrize('ours,torchs,args', [
    (margin_ranking_loss, F.margin_ranking_loss, lambda: (torch.zeros(3), torch.zeros(3), tensor([1.,-1.,1.]))),
    (hinge_embedding_loss, F.hinge_embedding_loss, lambda: (tensor([1.,1.,0.]), tensor([-1.,1.,1.]))),
    (cosine_embedding_loss, F.cosine_embedding_loss, lambda: (torch.eye(2), torch.eye(2).flip(0), tensor([-1.,1.]))),
    (multi_margin_loss, F.multi_margin_loss, lambda: (tensor([[1.,0.,0.]]), tensor([0]))),
    (multilabel_margin_loss, F.multilabel_margin_loss, lambda: (tensor([[1.,0.,0.]]), tensor([[0,-1,1]]))),
    (triplet_margin_loss, F.triplet_margin_loss, lambda: (tensor([[0.,0.]]), tensor([[0.,1.]]), tensor([[2.,0.]])))],
    ids=lambda o: getattr(o, '__name__', ''))
def test_at_the_kink(ours, torchs, args):
    "The slope exactly at the margin is PyTorch's"
    x,*rest = args()
    kwargs = dict(eps=0.) if ours is triplet_margin_loss else {}
    x.requires_grad_()
    gs = [grad(f(x, *rest, **kwargs), x)[0] for f in (ours,torchs)]
    same(*gs)

def test_positional_order():
    import inspect
    for cls in (*SIGNS, TripletMarginLoss, MultiMarginLoss, MultiLabelMarginLoss):
        theirs = [k for k in inspect.signature(getattr(nn, cls.__name__)).parameters if k not in ('size_average','reduce')]
        assert list(inspect.signature(cls).parameters)[:len(theirs)]==theirs, cls
    for k in ('hinge_embedding','margin_ranking','triplet_margin','soft_margin','multilabel_margin','multi_margin','cosine_embedding'):
        ours,theirs = (list(inspect.signature(getattr(o, f'{k}_loss')).parameters.values()) for o in (m,F))
        theirs = [p.name for p in theirs if p.name not in ('size_average','reduce','input','logits')]
        mine = [p.name for p in ours if p.kind==p.POSITIONAL_OR_KEYWORD and p.name not in ('logits','distance')]
        assert mine==theirs, k

# numerics

def extremes(cls, dtype, big):
    "Batches far out: right and wrong answers, equal and zero predictions"
    f,preds,rest = batch(cls, 4, dtype)
    for s in (big, -big, 0.): yield f,[p.detach().sign()*s for p in preds],rest
    yield f,[preds[0].detach().sign()*big for _ in preds],rest
    yield f,[preds[0].detach().sign()*big*(-1)**i for i,_ in enumerate(preds)],rest
    yield f,[preds[0].detach()*(i>0) for i,_ in enumerate(preds)],rest

@each
@pytest.mark.parametrize('dtype,big', [(torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)])
def test_extremes(cls, dtype, big):
    for f,preds,rest in extremes(cls, dtype, big):
        for o in preds: o.requires_grad_()
        v = f(*preds, *rest)
        assert v.isfinite() and all(g.isfinite().all() and g.dtype==dtype for g in grad(v, preds))

def test_soft_margin_far_out():
    x = tensor([-1e4, 1e4, -30., 30.], dtype=torch.float, requires_grad=True)
    v = soft_margin_loss(x, torch.ones(4), 'none')
    same(v.detach(), [1e4, 0., 30., math.exp(-30)], rtol=1e-6, atol=0.)
    same(grad(v.sum(), x)[0], [-1., 0., -1., -math.exp(-30)], rtol=1e-6, atol=0.)
    assert F.soft_margin_loss(tensor([-89.]), torch.ones(1)).isinf()

@pytest.mark.parametrize('dtype', DTYPES)
def test_zero_vectors(dtype):
    for t,want in ((1.,1.), (-1.,0.)):
        x = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
        v = cosine_embedding_loss(x, torch.ones(1, 4, dtype=dtype), tensor([t]))
        assert v.item()==want and grad(v, x)[0].isfinite().all()
    same(cosine_embedding_loss(x, x, tensor([1.])).float(), 1.)

@pytest.mark.parametrize('length', [1e-3,1.,1e5,1e15,1e20,1e30])
def test_cosine_of_any_length(length):
    a,b = torch.randn(2, 6, 5)
    y = torch.ones(6)
    same(cosine_embedding_loss(a*length, b*length, y), cosine_embedding_loss(a.double(), b.double(), y).float(), atol=1e-5)

@pytest.mark.parametrize('p', [1.,1.5,2.,3.,math.inf])
@pytest.mark.parametrize('eps', [0.,1e-6])
def test_equal_embeddings(p, eps):
    "Distance 0 has a slope of 0 without eps, and derivatives of all orders are numbers"
    a,n = torch.ones(2, 3, dtype=torch.double, requires_grad=True),torch.zeros(2, 3, dtype=torch.double)
    v = triplet_margin_loss(a, a.detach(), n, 20., p, eps)
    g, = grad(v, a, create_graph=True)
    h, = grad(g.square().sum(), a)
    assert g.isfinite().all() and h.isfinite().all()
    if eps: return
    same(g, -grad(torch.linalg.vector_norm(a, p, 1).mean(), a)[0])

def scaled_norm(d, p):
    "In float64, of differences of any size"
    big = d.abs().amax(-1, keepdim=True)
    return torch.linalg.vector_norm(d/big, p, -1)*big[...,0]

@pytest.mark.parametrize('p', [1.,1.5,2.,3.,50.,400.,math.inf])
@pytest.mark.parametrize('size', [1e-40,1e-30,1e-20,1e-3,1.,10.,1e10,1e30])
def test_norm_of_any_size(p, size):
    "No power leaves the range of float32: value, gradient and what a second difference of the gradient says"
    torch.manual_seed(0)
    a,b = torch.randn(2, 6, 5)*size
    a.requires_grad_()
    v = m.p_norm(a, b, p, 0.)
    g, = grad(v.sum(), a, create_graph=True)
    A = a.detach().double().requires_grad_()
    w = scaled_norm(A-b.double(), p)
    h, = grad(w.sum(), A, create_graph=True)
    same(v.detach(), w.detach().float(), rtol=1e-5, atol=0.)
    same(g.detach(), h.detach().float(), atol=1e-6*max(p, 10.) if p<math.inf else 1e-6)
    if p==math.inf or not 1e-20<=size<=1e10: return
    ones = torch.randn(6, 5)
    second = [grad((o*ones.to(o.dtype)).sum(), x)[0] for o,x in ((g,a), (h,A))]
    same(second[0]*size, (second[1]*size).float(), atol=1e-4*p, rtol=1e-3)

@pytest.mark.parametrize('p', [3.,50.])
@pytest.mark.parametrize('size', [1e-30,10.,1e10])
@pytest.mark.parametrize('swap', [False,True])
def test_triplets_of_any_size(p, size, swap):
    torch.manual_seed(0)
    three = [o.requires_grad_() for o in torch.randn(3, 6, 4)*size]
    wide = [o.detach().double().requires_grad_() for o in three]
    v,w = (triplet_margin_loss(*xs, size, p, 0., swap, 'none') for xs in (three, wide))
    same(v.detach(), w.detach().float(), rtol=1e-4, atol=1e-5*size)
    assert v.any()
    for g,h in zip(grad(v.sum(), three), grad(w.sum(), wide)): same(g, h.float(), atol=1e-4)
    d = scaled_norm(wide[0]-wide[1], p) # the formula itself
    same((size + d - torch.minimum(*(scaled_norm(o-wide[2], p) for o in (wide[0], wide[swap])))).clamp(min=0).detach(), w.detach())

def test_mined_triplets_of_a_high_power():
    "Near pairs beside far ones: powers of their distances have no common range"
    torch.manual_seed(0)
    x = torch.cat([torch.randn(6, 4)*1e-3, torch.randn(6, 4)*100])
    y = torch.arange(12)%3
    for p in (1., 2., 50., math.inf):
        d = m.distances(x, y, m.measure(None, p, 0.))[0]
        u = x.double()
        same(d, torch.stack([torch.linalg.vector_norm(u-o, p, -1) for o in u]).float(), rtol=1e-5, atol=0.)
    for k in ('hard','semihard'): assert all(a.equal(b) for a,b in zip(mine_triplets(x, y, k, p=50.), mine_triplets(x.double(), y, k, p=50.)))
    assert m.distances(torch.randn(700, 8), torch.zeros(700), m.measure(None))[0].shape==(700,700) # more than one block

def test_half_is_float():
    for cls in ALL:
        f,preds,rest = batch(cls, 6, torch.half)
        same(f(*preds, *rest), f(*[o.float() for o in preds], *rest), 1e-6, 1e-6)

# nothing, and what is left out

@each
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_left_out(cls, reduction):
    "A weight of 0 leaves out predictions and targets, whatever they are"
    f,preds,rest = batch(cls, 6)
    keep = torch.arange(6)%3!=1
    want = f.reduced(reduction, *[o[keep] for o in preds], *[o[keep] for o in rest])
    gs = grad(want.sum(), preds)
    bad = [torch.where(keep.reshape(-1, *[1]*(o.ndim-1)), o, math.nan) for o in preds]
    ys = [o.clone() for o in rest]
    for o in ys:
        if o.is_floating_point(): o[~keep] = math.nan
        elif cls is MultiLabelMarginLoss: o[~keep] = 77
    for w in (keep, keep.double(), keep*2):
        bad = [o.detach().requires_grad_() for o in bad]
        got = f.reduced(reduction, *bad, *ys, sample_weight=w)
        if reduction=='none': assert not got[~keep].any()
        many = 2. if w.max()==2 and reduction!='mean' else 1.
        same(got[keep] if reduction=='none' else got, want*many)
        for g,h in zip(grad(got.sum(), bad), gs):
            same(g[keep], h[keep]*many)
            assert not g[~keep].any()

@each
def test_nothing_counts(cls):
    f,preds,rest = batch(cls, 4)
    for n,w in ((0,None), (4,torch.zeros(4))):
        xs = [o[:n].detach().requires_grad_() for o in preds]
        kwargs = {} if w is None else dict(sample_weight=w)
        v = f(*xs, *[o[:n] for o in rest], **kwargs)
        assert v==0 and not any(g.any() for g in grad(v, xs))

@each
def test_learned_weight(cls):
    f,preds,rest = batch(cls, 4)
    w = torch.rand(4, dtype=torch.double, requires_grad=True)
    each_ = f.reduced('none', *preds, *rest)
    same(grad(f.reduced('sum', *preds, *rest, sample_weight=w), w)[0], each_.detach())

@pytest.mark.parametrize('cls,name', [(MarginRankingLoss,'margin'), (HingeEmbeddingLoss,'margin'), (CosineEmbeddingLoss,'margin'),
    (TripletMarginLoss,'margin'), (TripletMarginLoss,'eps'), (MultiMarginLoss,'margin'), (MultiLabelMarginLoss,'margin'), (LambdaRankLoss,'sigma')])
def test_learned_parameter(cls, name):
    p = torch.tensor(.3, dtype=torch.double, requires_grad=True)
    def loss(v):
        f,preds,rest = batch(cls, 8)
        if cls is MultiMarginLoss: rest = [F.one_hot(rest[0], 3).double()]
        return f.func(*preds, *rest, **{name: v})
    got, = grad(loss(p), p)
    same(got, (loss(.3+1e-6)-loss(.3-1e-6)).detach()/2e-6, 1e-5, 1e-5)

# labels

@pytest.mark.parametrize('cls', SIGNS)
def test_other_labels(cls):
    "1 and 0 are 1 and -1 by another name, for any dtype that can hold them"
    f,preds,(y,) = batch(cls, 6)
    g = cls(negative=0)
    for dtype in (torch.float,torch.double,torch.long,torch.uint8,torch.bool,torch.half):
        same(g(*preds, (y>0).to(dtype)), f(*preds, y), 0, 0)
    same(f(*preds, y.long()), f(*preds, y), 0, 0)
    with pytest.raises(ValueError, match='target must be 1 or -1, got 0; for 1 and 0 pass negative=0'): f(*preds, (y>0).float())
    with pytest.raises(ValueError, match='target must be 1 or 0, got -1; for 1 and -1 pass negative=-1'): g(*preds, y)
    with pytest.raises(ValueError, match='target must be 1 or -1, got nan'): f(*preds, y*math.nan)
    f.check_values(*preds, y)
    w = torch.arange(6)>0
    bad = torch.where(w, y, 7.)
    f.check_values(*preds, bad, sample_weight=w)
    same(f(*preds, bad, sample_weight=w), f(*[o[1:] for o in preds], y[1:]))
    with pytest.raises(ValueError, match='got 7'): f.check_values(*preds, bad)

def test_pairs_as_one():
    for cls in (MarginRankingLoss, CosineEmbeddingLoss):
        f,(a,b),(y,) = batch(cls)
        same(f((a,b), y), f(a, b, y), 0, 0)
    f,three,_ = batch(TripletMarginLoss)
    same(f(tuple(three)), f(*three), 0, 0)
    same(f(three, tensor([1,2,3])), f(*three), 0, 0) # as a Learner calls it

def test_soft_margin_decodes():
    x = tensor([-2., 3.])
    for k in (-1,0):
        f = SoftMarginLoss(negative=k)
        assert f.decodes(f.activation(x)).tolist()==[k,1]

# classes

@pytest.mark.parametrize('params', [{}, *OTHERS[MultiMarginLoss]], ids=lambda o: str(o).split(' at 0x')[0])
def test_distributions(params):
    "One-hot rows, and the average of the losses of the classes"
    torch.manual_seed(0)
    x,f = torch.randn(6, 3, 2, dtype=torch.double),MultiMarginLoss(reduction='none', **params)
    y = torch.randint(3, (6,2))
    same(f(x, F.one_hot(y, 3).movedim(-1, 1).double()), f(x, y), 1e-12, 1e-12)
    q = torch.rand(6, 3, 2, dtype=torch.double).softmax(1)
    same(f(x, q), sum(q[:,c]*f(x, torch.full((6,2), c)) for c in range(3)), 1e-12, 1e-12)
    same(MultiMarginLoss(axis=-1, **params)(x.movedim(1, -1), y), MultiMarginLoss(**params)(x, y), 1e-12, 1e-12)

@pytest.mark.parametrize('p', [1,2])
@pytest.mark.parametrize('hardest', [False,True])
def test_classes_that_are_ruled_out(p, hardest):
    x = tensor([[1., -math.inf, -math.inf, .5]], requires_grad=True)
    f = MultiMarginLoss(p, hardest=hardest)
    for y in (tensor([0]), tensor([[1., 0., 0., 0.]])):
        v = f(x, y)
        same(v.detach(), .5**p/(1 if hardest else 4))
        assert grad(v, x)[0].isfinite().all()

def test_label_forms():
    torch.manual_seed(1)
    hot = (torch.rand(50, 6)<.4).long()
    lists = m.index_lists(hot)
    x = torch.randn(50, 6, dtype=torch.double, requires_grad=True)
    a,b = multilabel_margin_loss(x, lists),multilabel_margin_loss(x, hot.bool(), multi_hot=True)
    same(a, b, 0, 0)
    same(grad(a, x)[0], grad(b, x)[0], 0, 0)
    same(a, F.multilabel_margin_loss(x, lists), 1e-12, 1e-12)
    twice = tensor([[0,0,-1,2]])
    same(multilabel_margin_loss(x[:1,:4], twice), F.multilabel_margin_loss(x[:1,:4], twice), 1e-12, 1e-12)

# mining

def mined_by_loop(x, y, kind, margin):
    d = lambda i,j: (x[i]-x[j]).norm().item()
    n = range(len(x))
    pairs = [(a,p) for a in n for p in n if a!=p and y[a]==y[p]]
    others = {a: [k for k in n if y[k]!=y[a]] for a in n}
    if kind=='all': return [(a,p,k) for a,p in pairs for k in others[a]]
    if kind=='hard':
        return [(a, max((p for b,p in pairs if b==a), key=lambda p: d(a,p)), min(others[a], key=lambda k: d(a,k)))
            for a in n if others[a] and any(b==a for b,_ in pairs)]
    fits = [(a,p,[k for k in others[a] if d(a,p)<d(a,k)<d(a,p)+margin]) for a,p in pairs]
    return [(a, p, min(ks, key=lambda k: d(a,k))) for a,p,ks in fits if ks]

@pytest.mark.parametrize('kind', ['all','hard','semihard'])
@pytest.mark.parametrize('seed', range(5))
def test_mining(kind, seed):
    torch.manual_seed(seed)
    x,y = torch.randn(12, 3),torch.randint(4, (12,))
    got = torch.stack(mine_triplets(x, y, kind, .5), 1).tolist()
    assert sorted(map(tuple, got))==sorted(mined_by_loop(x, y, kind, .5))

@pytest.mark.parametrize('kind', ['all','hard','semihard'])
def test_mining_nothing(kind):
    for y in (tensor([]), tensor([1,1,1]), tensor([0,1,2])):
        found = mine_triplets(torch.randn(len(y), 2), y, kind)
        assert [len(o) for o in found]==[0,0,0]
        same(triplet_margin_loss(*[torch.randn(3, 2)[o] for o in found]), 0.)

def test_mining_by_other_distances():
    torch.manual_seed(0)
    x,y = torch.randn(10, 3),torch.arange(10)%3
    unit = F.normalize(x)
    for kind in ('hard','all'): # the order by cosine is that of chords
        for a,b in zip(mine_triplets(x, y, kind, distance='cosine'), mine_triplets(unit, y, kind)): same(a, b, 0, 0)
    def l1(a, b): return (a-b).abs().sum(1)
    for a,b in zip(mine_triplets(x, y, distance=l1), mine_triplets(x, y, p=1.)): same(a, b, 0, 0)
    g = mine_triplets(x.clone().requires_grad_(), y)
    assert not any(o.requires_grad for o in g)

# lists

def lists(n=7, L=6):
    torch.manual_seed(2)
    s,r = torch.randn(n, L, dtype=torch.double, requires_grad=True),torch.randint(4, (n,L))
    mask = torch.arange(L)<tensor([6,3,1,5,0,2,6])[:n,None]
    return s,r,mask

@pytest.mark.parametrize('f', [ListNetLoss(), LambdaRankLoss(), LambdaRankLoss(.5, 2)], ids=repr)
def test_masks(f):
    "A mask is a shorter list; an empty list does not count"
    s,r,mask = lists()
    want = [f(s[i:i+1,:n], r[i:i+1,:n]) for i,n in enumerate(mask.sum(1).tolist()) if n]
    nan = torch.where(mask, s, math.nan).detach().requires_grad_()
    rel = torch.where(mask, r.double(), math.nan)
    got = f(nan, rel, mask)
    same(got, torch.stack(want).mean(), 1e-12, 1e-12)
    g,h = grad(got, nan)[0],grad(torch.stack(want).mean(), s)[0]
    same(g, h, 1e-12, 1e-12)
    assert not g[~mask].any() and f.reduced('none', nan, rel, mask)[4]==0
    same(f(s, r, mask.long()), got, 1e-12, 1e-12)
    f.check_values(nan, rel, mask)

@pytest.mark.parametrize('k', [None,1,3,10])
def test_ndcg(k):
    from sklearn.metrics import ndcg_score
    s,r,mask = lists()
    got = ndcg(s, r, k)
    for i in range(len(s)): same(got[i].item(), ndcg_score(2**r[i:i+1].numpy()-1, s[i:i+1].detach().numpy(), k=k))
    for i,n in enumerate(mask.sum(1).tolist()):
        want = ndcg(s[i:i+1,:n], r[i:i+1,:n], k)[0] if n else torch.tensor(0.).double()
        same(ndcg(s, r, k, mask=mask)[i], want)
    assert not ndcg(s, r*0, k).any()

def test_lists_without_a_pair():
    s,r,_ = lists()
    for q in (r*0, r*0+2):
        v = LambdaRankLoss()(s, q)
        assert v==0 and not grad(v, s)[0].any()

# engineering

@settings
def test_compiled(cls, params):
    f,preds,rest = batch(cls, 4, torch.float, **params)
    g = torch.compile(f, fullgraph=True, backend='aot_eager')
    try:
        v,w = g(*preds, *rest),f(*preds, *rest)
        same(v, w)
        for a,b in zip(grad(v, preds), grad(w, preds)): same(a, b)
    finally: torch.compiler.reset()

@settings
def test_pickles(cls, params):
    f,preds,rest = batch(cls, 4, **params)
    g = pickle.loads(pickle.dumps(f))
    same(g(*preds, *rest), f(*preds, *rest), 0, 0)
    assert repr(g)==repr(f)

# refusals

X,Y = torch.randn(4),tensor([1.,-1.,1.,-1.])
E = torch.randn(4, 3)
@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'negative must be -1 or 0, got 1', lambda: HingeEmbeddingLoss(negative=1)),
    (ValueError, 'target must have the shape of distance, (4,), got (4, 1)', lambda: hinge_embedding_loss(X, Y[:,None])),
    (ValueError, 'target must have the shape of logits, (4, 1), got (4,)', lambda: soft_margin_loss(X[:,None], Y)),
    (ValueError, 'input2 must have the shape of input1, (4,), got (4, 1)', lambda: margin_ranking_loss(X, X[:,None], Y)),
    (ValueError, 'target must have the shape of input1, (4,), got ()', lambda: margin_ranking_loss(X, X, Y[0])),
    (ValueError, 'target must have the shape of the cosines, (4,), got (4, 1)', lambda: cosine_embedding_loss(E, E, Y[:,None])),
    (ValueError, 'input1 must have shape (N, D), got (3,)', lambda: cosine_embedding_loss(E[0], E[0], Y[0])),
    (ValueError, 'positive must have the shape of anchor, (4, 3), got (3,)', lambda: triplet_margin_loss(E, E[0], E)),
    (ValueError, 'anchor must have shape (N, D), got (3,)', lambda: triplet_margin_loss(*E[:3])),
    (TypeError, 'anchor must be a floating point tensor', lambda: triplet_margin_loss(*[E.long()]*3)),
    (TypeError, 'positive must be a tensor, got list', lambda: triplet_margin_loss(E, [1.], E)),
    (ValueError, 'margin must be >= 0, got -1', lambda: TripletMarginLoss(-1.)),
    (ValueError, 'p must be >= 1, got 0.5', lambda: TripletMarginLoss(p=.5)),
    (TypeError, 'p must be a number, got a tensor', lambda: TripletMarginLoss(p=torch.tensor(2.))),
    (ValueError, 'eps must be >= 0', lambda: TripletMarginLoss(eps=-1e-6)),
    (ValueError, "distance must be 'cosine' or a callable, got 'l1'", lambda: TripletMarginLoss(distance='l1')),
    (ValueError, 'distance must give shape (4,), got ()', lambda: triplet_margin_loss(E, E, E, distance=lambda a,b: (a-b).sum())),
    (ValueError, "kind must be 'all', 'hard' or 'semihard', got 'easy'", lambda: mine_triplets(E, Y, 'easy')),
    (ValueError, 'labels must have shape (4,), got (3,)', lambda: mine_triplets(E, Y[:3])),
    (ValueError, 'p must be 1 or 2, got 3', lambda: MultiMarginLoss(3)),
    (ValueError, 'weight must have shape (3,), one per class, got (2,)', lambda: MultiMarginLoss(weight=[1.,2.])(E, tensor([0,1,2,0]))),
    (ValueError, 'weight must be >= 0, got', lambda: MultiMarginLoss(weight=[1.,2.,-1.])),
    (ValueError, 'target must be in 0..2', lambda: multi_margin_loss(E, tensor([0,1,2,3]))),
    (TypeError, 'for rows of 0 and 1 pass multi_hot=True', lambda: multilabel_margin_loss(E, E>0)),
    (ValueError, 'target must be in 0..2, or -1 at the end of a list, got 3', lambda: multilabel_margin_loss(E, torch.full((4,3), 3))),
    (ValueError, 'target must be 0 or 1, got 2', lambda: multilabel_margin_loss(E, torch.full((4,3), 2), multi_hot=True)),
    (ValueError, 'logits must have shape (N, C), got (3,)', lambda: multilabel_margin_loss(E[0], tensor([0,1,-1]))),
    (ValueError, 'target must have the shape of logits, (4, 3), got (4,)', lambda: multilabel_margin_loss(E, tensor([0,1,2,0]))),
    (ValueError, 'scores must have shape (N, L), got (4,)', lambda: list_net_loss(X, Y)),
    (ValueError, 'target must have the shape of scores, (4, 3), got (4,)', lambda: list_net_loss(E, Y)),
    (ValueError, 'mask must have shape (4, 3), got (4,)', lambda: list_net_loss(E, E, mask=Y>0)),
    (TypeError, 'mask must be bool or integer', lambda: list_net_loss(E, E, mask=E)),
    (ValueError, 'sigma must be > 0, got 0', lambda: LambdaRankLoss(0.)),
    (ValueError, 'k must be >= 1, got 0', lambda: LambdaRankLoss(k=0)),
    (TypeError, 'k must be an integer', lambda: ndcg(E, E.abs(), 1.5)),
    (ValueError, 'target must be >= 0, got', lambda: lambda_rank_loss(E, -E.abs())),
    (ValueError, 'sample_weight must have shape (4,), got (3,)', lambda: TripletMarginLoss()(E, E, E, sample_weight=X[:3])),
    (ValueError, 'sample_weight must be >= 0', lambda: TripletMarginLoss().check_values(E, E, E, sample_weight=-torch.ones(4)))],
    ids=lambda o: o if isinstance(o, str) else '')
def test_refuses(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
