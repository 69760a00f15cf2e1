"Every loss against a slow, plain formula, with all targets, weights, masks, reductions and dtypes"
import math, pytest, torch, torch.nn.functional as F
from copy import copy
from functools import cache
from fnmatch import fnmatch
from importlib import import_module
from lossbook._modidx import d
from lossbook.check import loss_classes
from lossbook.contrastive import barlow_twins, vicreg
from lossbook.core import BinaryLoss, ClassLoss, Loss
from lossbook.cross_entropy import CrossEntropyLoss
from lossbook.focal import OHEM, FocalLoss
from lossbook.many_classes import AdaptiveSoftmaxLoss, LinearLoss, NCELoss, NegativeSamplingLoss
from lossbook.many_classes import SampledSoftmaxLoss, nce_loss, negative_sampling_loss
from lossbook.many_classes import sampled_softmax_loss
from reference import REFERENCES, expected, told
from uses import SOME, as_double, kind_of, losses, n_preds, uses

LOSSES = losses()

@cache
def uses_of(name): return uses(LOSSES[name])

def weighs_labels(name):
    "Does the mean divide by the weights of the labels?"
    loss = LOSSES[name]
    return kind_of(loss)=='classes' and loss.weight is not None and not hasattr(loss,
        'per_image') and not name.startswith('MultiMargin')
def is_negatives(name):
    return name in ('NTXentLoss-denominator=negatives','SupConLoss-denominator=negatives')

# what does not hold yet: (which losses, which uses, why). What holds has to leave the list
KNOWN = ((weighs_labels, 'nan_soft',
    'a NaN in the label of a row without sample_weight gets into what the mean divides by'),
    (lambda name: name=='BiTemperedLoss-t1=1.0-t2=1.0', 'ruled_out*',
        'the derivative of a class that is ruled out has 0 times infinity in it'),
    (is_negatives, '*_labels', 'the derivative divides counts in float32'), (is_negatives, 'bools',
        'the derivative divides counts in float32'))
def known(name): return {k for k in chosen(name) if any(these(name) and fnmatch(k,
    use) for these,use,_ in KNOWN)}
# what the book replaces by a formula with an error that it knows
TOLERANCE = {'BarronLoss-alpha=0.0': 2e-6}

def test_every_loss_has_a_reference():
    "A new loss needs a formula of its own in tests/reference.py"
    exported = set()
    for mod in d['syms']:
        if mod.split('.')[-1] in ('core','all'): continue
        m = import_module(mod)
        exported |= {k for k in getattr(m, '__all__', ()) if isinstance(o := getattr(m, k),
            type) and issubclass(o, Loss)}
    own = {o.__name__ for o in (LinearLoss, AdaptiveSoftmaxLoss, NCELoss, NegativeSamplingLoss,
        SampledSoftmaxLoss, OHEM)}
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
    return tuple(own(o, i<n) for i,o in enumerate(args)),{k: own(o,
        False) for k,o in kwargs.items()},learned

def derivatives(v, learned, second):
    "The gradient of a value, times factors, and that of the gradient, likewise"
    g = torch.Generator().manual_seed(1)
    def factors(o): return torch.rand(o.shape, generator=g).to(o.dtype)+.5
    def grads(o):
        if not o.requires_grad: return [torch.zeros_like(t) for t in learned]
        return torch.autograd.grad((o*factors(o)).sum(), learned, create_graph=second,
            allow_unused=True, materialize_grads=True)
    first = grads(v)
    if not second: return first,()
    return first,grads(sum((o*factors(o)).sum() for o in first))

def close(a, b, what, tol):
    "Are two tensors alike, to `tol` of the largest value?"
    a,b = a.detach().double(),b.detach().double()
    size = b[b.isfinite()].abs().max().clamp(min=1).item() if b.isfinite().any() else 1.
    torch.testing.assert_close(a, b, rtol=tol, atol=tol*size, equal_nan=True,
        msg=lambda m: f'{what}: {m}')

def compare(f, reference, learned, dtype=torch.double, second=True, tol=1e-8, grad_tol=None):
    "A value and its derivatives by what is learned are those of the reference"
    got,want = f(),reference()
    assert got.dtype==(torch.double if dtype==torch.double
        else torch.float) and got.shape==want.shape
    close(got, want, 'value', tol)
    for what,a,b in zip(('gradient','second derivative'), derivatives(got, learned, second),
        derivatives(want, learned, second)):
        for i,(u,v) in enumerate(zip(a, b)): close(u, v, f'{what} {i}', grad_tol or tol)

def hold(loss, args, kwargs, reduction, dtype=torch.double, **how):
    "A loss gives what its reference gives"
    args,kwargs,learned = fresh(args, kwargs, n_preds(loss), dtype)
    loss = copy(loss) if dtype==torch.double else loss.with_params().float()
    loss.reduction = reduction
    learned += [o for o in loss.parameters() if o.requires_grad]
    compare(lambda: loss(*args, **kwargs), lambda: expected(loss, args, kwargs, reduction), learned,
        dtype, **how)

def failures(cases):
    "What fails of {key: function}, and how"
    bad = {}
    for k,f in cases.items():
        try: f()
        except Exception as e: bad[k] = f'{type(e).__name__}: {str(e)[:400]}'
    return bad

def report(bad, known=()):
    "Raise unless what fails is what is known to fail"
    text = [f'{k}: {v}' for k,v in bad.items()
        if k not in known] + [f'{k} holds now: take it off the list' for k in known if k not in bad]
    assert not text, '\n'.join(text)

def chosen(name): return {k: o for k,o in uses_of(name).items() if name in REFERENCES or k in SOME}

@pytest.mark.parametrize('name', LOSSES)
def test_uses(name):
    "Values and two derivatives, by scores, parameters and what else is learned"
    tol,cases = TOLERANCE.get(name, 1e-8),{}
    def case(use, r): return lambda: hold(*use, r, second=r=='none', tol=tol)
    for k,use in chosen(name).items():
        for r in ('mean','none',*(['sum'] if k in SOME else [])): cases[f'{k} {r}'] = case(use, r)
    bad = failures(cases)
    old = known(name)
    report({k: v for k,v in bad.items() if k.split()[0] not in old}
        | {k: '' for k in old if any(o.split()[0]==k for o in bad)}, old)

# ---- dtypes

DTYPES = {torch.half: (1e-5,2e-3), torch.bfloat16: (1e-5,1.6e-2), torch.float: (1e-5,2e-5)}
IN_DTYPES = 'indices soft everything everything_soft floats dense_each tuple views far'.split()

@pytest.mark.parametrize('dtype', DTYPES, ids=lambda t: str(t)[6:])
@pytest.mark.parametrize('name', LOSSES)
def test_dtypes(name, dtype):
    "The value is that of the rounded scores, in float32; the gradient is as exact as the dtype"
    tol,grad_tol = DTYPES[dtype]
    def case(use): return lambda: hold(*use, 'none', dtype, second=False, tol=tol,
        grad_tol=grad_tol)
    report(failures({k: case(use) for k,use in uses_of(name).items() if k in IN_DTYPES}))

# ---- scores of a network that is sure, right or wrong

def extreme(loss, big, dtype):
    "A batch of scores of +-`big`, of which half are right, in a dtype"
    torch.manual_seed(0)
    kind,C = kind_of(loss),loss.per_class()[0] or 3
    # no two alike, whose order would be anybody's
    sign = (torch.randint(2, (6,C))*2.-1)*(1-.1*torch.rand(6,C))
    if kind in ('classes','binary'):
        x = loss.from_logits((big*sign).to(dtype))
        if kind=='binary': return {'binary': (x,torch.randint(2, (6,C)).float()),
            'soft': (x,torch.rand(6,C))}
        return {'indices': (x,torch.arange(6)%C), 'soft': (x,torch.randn(6,C).softmax(1))}
    args = loss.example(6)
    if kind in ('real','signs') or n_preds(loss)==1: args = (big*args[0].sign(),*args[1:])
    return {'batch': tuple(o.to(dtype) if o.is_floating_point() and i<n_preds(loss) else o
        for i,o in enumerate(args))}

# a logit of 1e4 times a scale of 30 has two digits behind the point in float32
COARSE = {'LDAMLoss': 1e-2}
BIG = {torch.float: 1e4, torch.bfloat16: 1e4, torch.half: 3e4}
# scores that multiply embeddings go over their dtype by themselves; half precision cannot hold the
# slope of a square
def is_extreme(name, dtype):
    loss = LOSSES[name]
    # nothing is asked of embeddings, whose length is not what a network is sure by
    if n_preds(loss)>1 or kind_of(loss)=='embeddings' or hasattr(loss, 'proxies'): return False
    return dtype!=torch.half or 'large_float16' not in getattr(loss, 'check_skips', {})

@pytest.mark.parametrize('name,dtype', [pytest.param(k, t,
    id=f'{k}-{str(t)[6:]}') for k in LOSSES for t in BIG if is_extreme(k, t)])
def test_extremes(name, dtype):
    "Values and gradients are finite, and right"
    loss = LOSSES[name].with_params().float()
    tol,grad_tol = 2e-5,max(DTYPES[dtype][1], COARSE.get(type(loss).__name__, 2e-4))
    def case(args, r):
        def f():
            hold(loss, args, {}, r, dtype, second=False, tol=tol, grad_tol=grad_tol)
            ins,_,learned = fresh(args, {}, n_preds(loss), dtype)
            v = loss(*ins)
            v.sum().backward()
            assert v.isfinite().all() and all(o.grad.isfinite().all() for o in learned)
        return f
    report(failures({f'{k} {r}': case(args, r) for k,args in extreme(loss, BIG[dtype],
        dtype).items() for r in ('mean','none')}))

# ---- more than a block, a slice or the cache takes

MANY = 2**17+2**12
def large(loss):
    "Batches of more than 2**17 scores, with a part that is left out"
    torch.manual_seed(0)
    kind,C = kind_of(loss),loss.per_class()[0] or 12
    shape = (2,C,MANY//C//8,4) if hasattr(loss, 'per_image') else (MANY//C+1,C)
    if kind=='classes':
        x = loss.from_logits(2*torch.randn(shape))
        y = torch.randint(C, (shape[0],*shape[2:]))
        some,w = y.masked_fill(torch.rand(y.shape)<.1,
            -100),torch.rand(shape[0])*(torch.rand(shape[0])<.8)
        return dict(soft=((x,torch.randn(shape).softmax(1)),{}),
            ignored=((x,some),dict(sample_weight=w)))
    if kind=='binary':
        x,y = loss.from_logits(2*torch.randn(shape)),torch.randint(2, shape).float()
        return dict(items=((x,y),{}),
            weighted=((x,y),dict(sample_weight=torch.rand(shape[0])*(torch.rand(shape[0])<.8))))
    if kind in ('real','signs','pairs','triplets','teacher'):
        args = loss.example(MANY//(sum(o.numel() for o in loss.example(2)[:1])//2)+1)
        return dict(items=(args,{}), weighted=(args,dict(sample_weight=torch.rand(len(args[-1])))))
    if kind!='embeddings' and not hasattr(loss, 'proxies'): return {}
    # the larger has more scores than those whose gradient is made on the way
    sizes = (600,2100) if type(loss).__name__ in ('InfoNCELoss','CLIPLoss') else (600,)
    return {n: (loss.example(n),{}) for n in sizes}

def case_large(loss, use, r):
    return lambda: hold(loss, *use, r, torch.float, second=False, tol=2e-5, grad_tol=1e-4)

@pytest.mark.parametrize('name', [k for k,o in LOSSES.items() if k in REFERENCES and large(o)])
def test_large(name):
    "Large batches are the small ones, whatever they are cut into"
    loss = LOSSES[name].with_params().float()
    report(failures({k: case_large(loss, use, 'mean') for k,use in large(loss).items()}))

@pytest.mark.parametrize('name', ['CrossEntropyLoss','FocalLoss','NormalizedCrossEntropy',
    'BinaryFocalLoss','HuberLoss','SigLIPLoss'])
def test_large_in_two_threads(name):
    "The same where PyTorch has threads"
    loss,was = LOSSES[name].with_params().float(),torch.get_num_threads()
    torch.set_num_threads(2)
    try: report(failures({k: case_large(loss, use, 'none') for k,use in large(loss).items()}))
    finally: torch.set_num_threads(was)

# ---- losses of a last layer

def layer_reference(layer, h, W, b, target, sample_weight=None):
    "The loss inside on all logits, row by row, and its z-loss"
    inner,pos,C = layer.loss,h.shape[:-1],len(W)
    if isinstance(target, tuple):
        values,index = target
        target = torch.zeros(*pos, C).double().scatter_add(-1, index, values.double())
    w = None if sample_weight is None else sample_weight.reshape(*sample_weight.shape,
        *[1]*(len(pos)-sample_weight.ndim)).expand(pos).flatten()
    y = target.reshape(-1, *target.shape[len(pos):])
    keep = torch.ones(len(y), dtype=torch.bool) if w is None else w!=0
    if isinstance(inner, ClassLoss) and y.ndim==1: keep = keep & (y!=inner.ignore_index)
    x = torch.where(keep[:,None], h.double().reshape(-1, h.shape[-1]),
        0.)@W.double().T + (0. if b is None else b.double())
    p = told(inner)
    p.axis = 1
    v,n = REFERENCES[type(inner).__name__](p, inner.from_logits(x), y, w)
    if layer.z_loss: v = v + layer.z_loss*n*x.logsumexp(1)**2
    return v.reshape(*pos, *v.shape[1:]),n.reshape(*pos, *n.shape[1:])

def reduced(v, n, reduction):
    if reduction=='none': return v
    return v.sum() if reduction=='sum' or not n.sum() else v.sum()/n.sum()

def fits_layer(o):
    try: LinearLoss(o)
    except (TypeError, ValueError): return False
    return True
# scores of a layer have the classes last
LAYERS = [k for k,o in LOSSES.items() if k.removesuffix('-weight') in REFERENCES and isinstance(o,
    (ClassLoss,BinaryLoss)) and fits_layer(o)]

def layer_uses(loss):
    torch.manual_seed(0)
    C,binary = loss.per_class()[0] or 4,isinstance(loss, BinaryLoss)
    def y(*shape): return torch.randint(2, (*shape,C)).double() if binary else torch.randint(C,
        shape)
    def soft(*shape): return torch.rand(*shape, C).double() if binary else torch.randn(*shape,
        C).double().softmax(-1)
    h,W,b = torch.randn(7,5),torch.randn(C,5),torch.randn(C)
    w = torch.tensor([1.,0.,2.,0.,1.,3.,1.])
    res = dict(flat=((h,W,b,y(7)),{}), no_bias=((h,W,None,y(7)),{}), soft=((h,W,b,soft(7)),{}),
        sequence=((torch.randn(3,4,5),W,b,y(3,4)),{}),
        masked=((spoilt(h, w),W,b,soft(7)),dict(sample_weight=w if not binary
            else w[:,None].expand(7,C))), learned=((h,W,b,soft(7).requires_grad_()),{}),
        empty=((h[:0],W,b,y(0)),{}), no_weight=((h,W,b,y(7)),dict(sample_weight=torch.zeros(7))))
    if binary: res['masked'] = (spoilt(h, w),W,b,y(7)),dict(sample_weight=w)
    else: res |= dict(ignored=((spoilt(h, torch.arange(7)%2),W,b,torch.where(torch.arange(7)%2==0,
        -100, y(7))),{}),
        few=((h,W,b,(torch.tensor([[.5,.5],[.25,.75]]).double()[torch.arange(7)%2],
            torch.arange(14).reshape(7,2)%C)),{}),
        each=((torch.randn(3,4,5),W,b,soft(3,4)),dict(sample_weight=torch.rand(3,
            4)*(torch.rand(3,4)<.7))))
    return {k: (tuple(map(as_double, a)),{n: as_double(v) for n,v in kw.items()})
        for k,(a,kw) in res.items()}
def spoilt(h, w): return torch.where((w==0)[:,None], torch.nan, h)

@pytest.mark.parametrize('name', LAYERS)
def test_linear_loss(name):
    "A loss on hidden states, a few rows at a time, is the loss on the logits"
    loss = LOSSES[name].with_params().double()
    def case(args, kwargs, r, z_loss):
        def f():
            ins,more,_ = fresh(args, kwargs, 3)
            learned = [o for o in ins if isinstance(o, torch.Tensor) and o.requires_grad]
            layer = LinearLoss(loss, z_loss, chunk_bytes=100)
            h,W,b,y = ins
            compare(lambda: layer.reduced(r, h, W, y, b, **more),
                lambda: reduced(*layer_reference(layer, *ins, **more), r), learned, second=False)
        return f
    zs = (0.,) if isinstance(loss, BinaryLoss) else (0.,.1)
    bad = failures({f'{k} {r} z_loss={z}': case(*use, r,
        z) for k,use in layer_uses(loss).items() for r in ('mean','none') for z in zs
        if z==0 or k in ('flat','masked','ignored')})
    # what does not hold yet: a row that is left out and is no number spoils the gradient where
    # labels count one by one, since its
    # factors are not looked at, and where probabilities are made of it on the way
    items = isinstance(loss, BinaryLoss) and not hasattr(loss,
        'per_image') and not name.startswith('MultiLabel')
    of_probs = not (loss.from_logits(torch.zeros(1, 3))==0).all()
    old = {'masked'} if items or of_probs else set()
    if of_probs and isinstance(loss, ClassLoss): old.add('ignored')
    report({k: v for k,v in bad.items() if k.split()[0] not in old}
        | {k: '' for k in old if any(o.split()[0]==k for o in bad)}, old)

SAMPLED = {nce_loss: True, negative_sampling_loss: False, sampled_softmax_loss: True}
@pytest.mark.parametrize('f', SAMPLED, ids=lambda f: f.__name__)
@pytest.mark.parametrize('each', [False,True], ids=['for all','for each'])
@pytest.mark.parametrize('remove', [False,True], ids=['hits','no hits'])
def test_sampled(f, each, remove):
    "The score of the target and those of samples, less log(kq) where the noise is known"
    torch.manual_seed(0)
    h,W,b,y = torch.randn(6,5).double(),torch.randn(8,
        5).double(),torch.randn(8).double(),torch.tensor([0,3,7,-100,2,5])
    s,logq = torch.randint(8, (6,4) if each else (4,)),torch.randn(8).double().log_softmax(0)
    w = torch.tensor([1.,2.,0.,1.,3.,1.]).double()
    h[2] = torch.nan
    def reference(h, W, b):
        total = 0.
        for i in (0,1,4,5): # row by row
            some = [j for j in (s[i] if each else s).tolist() if not (remove and j==y[i])]
            shift = logq+math.log(4) if SAMPLED[f] else torch.zeros(8).double()
            def score(j, less=True): return h[i]@W[j]+b[j]-(shift[j] if less else 0.)
            own = score(y[i], f is nce_loss)
            if f is sampled_softmax_loss:
                v = torch.stack([own,*(score(j) for j in some)]).logsumexp(0)-own
            else: v = F.softplus(-own)+sum(F.softplus(score(j)) for j in some)
            total = total+w[i]*v
        return total/w[[0,1,4,5]].sum()
    learned = [o.requires_grad_() for o in (h,W,b)]
    args = (h,W,y,s,logq) if SAMPLED[f] else (h,W,y,s)
    compare(lambda: f(*args, linear_bias=b, remove_hits=remove, sample_weight=w),
        lambda: reference(*learned), learned)

@pytest.mark.parametrize('cls', [NCELoss,NegativeSamplingLoss,SampledSoftmaxLoss])
def test_sampled_in_evaluation(cls):
    "Exact cross entropy of what was learned"
    torch.manual_seed(0)
    loss,h,y = cls(5, 8, 4).eval(),torch.randn(6,5),torch.randint(8, (6,))
    compare(lambda: loss(h, y), lambda: F.cross_entropy(loss.scores(h).double(), y), [loss.weight],
        torch.float, second=False, tol=1e-5)

@pytest.mark.parametrize('counts', [None,[1.,9.,3.,7.,2.,8.,4.,6.,5.,0.]],
    ids=['in order','counts'])
def test_adaptive_softmax(counts):
    "Two steps: a class of the head, or a cluster and a class in it"
    torch.manual_seed(0)
    loss = AdaptiveSoftmaxLoss(16, 10, [3,6], counts, div_value=2., head_bias=True).double()
    h,y,w = torch.randn(6,16).double(),torch.tensor([0,4,9,-100,2,7]),torch.tensor([1.,2.,0.,1.,3.,
        1.]).double()
    place = torch.tensor(counts or list(range(10, 0, -1))).argsort(descending=True).argsort()
    def reference():
        head,total = h@loss.layer.head.weight.T+loss.layer.head.bias,0.
        for i in (0,1,4,5):
            c = int(place[y[i]])
            k = -1 if c<3 else 0 if c<6 else 1
            v = head[i].log_softmax(0)[c if k<0 else 3+k]
            if k>=0:
                a,b = loss.layer.tail[k]
                v = v+(h[i]@a.weight.T@b.weight.T).log_softmax(0)[c-(3,6)[k]]
            total = total-w[i]*v
        return total/w[[0,1,4,5]].sum()
    learned = [h.requires_grad_(), *loss.parameters()]
    compare(lambda: loss(h, y, w), reference, learned)

# ---- what picks rows, and what has no rows

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('per_example', [False,True], ids=['of the batch','of each'])
def test_ohem(reduction, per_example):
    "The hardest of what counts, by sorting"
    torch.manual_seed(0)
    inner = FocalLoss(weight=[1.,2.,5.]).double()
    x,y = torch.randn(4,3,5).double().requires_grad_(),torch.where(torch.rand(4,5)<.2, -100,
        torch.randint(3, (4,5)))
    loss = OHEM(inner, .4, per_example=per_example, reduction=reduction)
    v,n = REFERENCES['FocalLoss'](told(inner), x, y)
    kept = torch.zeros_like(v)
    for rows in ([[i] for i in range(4)] if per_example else [range(4)]):
        at = [(i,j) for i in rows for j in range(5) if n[i,j]>0]
        for i,j in sorted(at, key=lambda o: -v[o].item())[:math.ceil(.4*len(at)-1e-3)]: kept[i,
            j] = 1.
    compare(lambda: loss(x, y), lambda: reduced(v*kept, n*kept, reduction), [x])

@pytest.mark.parametrize('dtype', [torch.double,*DTYPES], ids=lambda t: str(t)[6:])
def test_two_views(dtype):
    torch.manual_seed(0)
    a,b = (torch.randn(8,3).to(dtype).requires_grad_() for _ in range(2))
    def barlow():
        c = [(o-o.mean(0))/(o.var(0, correction=0)+1e-5).sqrt() for o in (a.double(),b.double())]
        m = c[0].T@c[1]/8
        eye = torch.eye(3).double()
        return ((m-1)**2*eye).sum()+.005*((m**2)*(1-eye)).sum()
    def regularised():
        x,y = a.double(),b.double()
        def parts(o):
            return (1-(o.var(0)+1e-4).sqrt()).relu().mean(),(o.T.cov()**2*(1-torch.eye(3))).sum()/3
        (v,c),(u,e) = parts(x),parts(y)
        return 25*((x-y)**2).mean()+25*(v+u)/2+(c+e)
    tol,grad_tol = DTYPES.get(dtype, (1e-8,1e-8))
    for f,g in ((barlow_twins,barlow), (vicreg,regularised)):
        compare(lambda: f(a, b), g, [a,b], dtype, second=dtype==torch.double, tol=tol,
            grad_tol=grad_tol)

def test_sum_of_losses():
    "Each has its own mean"
    torch.manual_seed(0)
    x,y = torch.randn(6,3).double().requires_grad_(),torch.randint(3, (6,))
    a,b = CrossEntropyLoss([1.,2.,5.]).double(),FocalLoss().double()
    compare(lambda: (a+2*b)(x, y), lambda: expected(a, (x,y))+2*expected(b, (x,y)), [x])
