"Span losses against explicit loops, at extremes, and where values cannot be read"
import pickle, pytest, torch, warnings, torch.nn.functional as F
from math import log
from torch import nn, tensor
from lossbook.span import DistanceLoss, SpanLoss, best_span, distance_loss
from lossbook.span import span_exact_match, span_f1, span_jaccard, span_loss

torch.manual_seed(0)
X = torch.randn(3, 2, 10)
Y = tensor([[1,8],[1,1],[2,8]])
MODULES = [DistanceLoss(), SpanLoss(.5, unit=7., label_smoothing=.1)]
both = pytest.mark.parametrize('f', MODULES, ids=lambda f: type(f).__name__)
SPANLOSS = pytest.mark.parametrize('loss', [distance_loss, span_loss], ids=lambda f: f.__name__)

def same(a, b, atol=1e-6, rtol=1e-5):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=rtol)
def grad(v, *xs): return torch.autograd.grad(v.sum(), xs)
def one_hot(y): return F.one_hot(y, 10).float()

def loop(a, b, start, end, lengths=None, unit=None):
    "The distance loss, row by row and position by position"
    out = []
    for i in range(len(a)):
        m = a.shape[1] if lengths is None else int(lengths[i])
        p,q = a[i,:m].double().softmax(0),b[i,:m].double().softmax(0)
        got = sum(j*float(q[j]-p[j]) for j in range(m))
        d,c = abs(float(end[i]-start[i])-got)/(unit or m),1-2**-10
        out.append(-log(1-d) if d<=c else -log(1-c)+(d-c)/(1-c))
    return tensor(out, dtype=torch.double)

@pytest.mark.parametrize('dtype', [torch.double, torch.float, torch.half, torch.bfloat16])
@pytest.mark.parametrize('kwargs', [{}, dict(lengths=True), dict(unit=40.)], ids=lambda o: str(o).split(' at 0x')[0])
def test_loop(dtype, kwargs):
    torch.manual_seed(0)
    a,b = torch.randn(2, 50, 12, dtype=torch.double)*4
    start,end = torch.randint(4, (50,2)).sort(1).values.T
    n = torch.randint(4, 13, (50,))
    if 'lengths' in kwargs: kwargs = dict(lengths=n)
    args = a.to(dtype),b.to(dtype),start,end
    got = distance_loss(*args, reduction='none', **kwargs)
    assert got.dtype==(torch.double if dtype==torch.double else torch.float)
    same(got.double(), loop(*args, **kwargs), *((1e-9,1e-9) if dtype==torch.double else (1e-2,1e-4)))

@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('scale', [0., 1., 3.])
def test_sum_of_parts(smoothing, scale):
    "Without a mask it is PyTorch's cross entropy, twice, and the distance"
    a,b = X.unbind(1)
    ce = sum(F.cross_entropy(x, y, label_smoothing=smoothing, reduction='none') for x,y in zip((a,b), Y.T))
    got = span_loss(a, b, *Y.T, scale, reduction='none', label_smoothing=smoothing)
    same(got, ce+scale*loop(a, b, *Y.T).float())

@SPANLOSS
@pytest.mark.parametrize('kwargs', [{}, dict(label_smoothing=.2)], ids=lambda o: str(o).split(' at 0x')[0])
def test_mask_is_subset(loss, kwargs):
    "A masked row is the row without what is masked, wherever the holes are, and those may hold anything"
    if loss is distance_loss: kwargs = {}
    torch.manual_seed(1)
    a,b = torch.randn(2, 1, 9, dtype=torch.double)*2
    m = tensor([[0,1,1,0,1,1,1,0,1]]).bool()
    want = loss(a[m][None], b[m][None], tensor([1]), tensor([3]), **kwargs)
    for o in (m, m.long(), m.int()): same(loss(a, b, tensor([2]), tensor([5]), mask=o, **kwargs), want, 1e-12, 0)
    hole = torch.where(m, a, torch.nan).requires_grad_()
    v = loss(hole, b, tensor([2]), tensor([5]), mask=m, **kwargs)
    same(v, want, 1e-12, 0)
    assert not grad(v, hole)[0][~m].any()

def test_padding_has_no_gradient():
    pad = torch.cat([X, torch.full((3,2,5), 99.)], 2).requires_grad_()
    v = DistanceLoss()(pad, Y, tensor([10,10,10]))
    same(v, DistanceLoss()(X, Y), 0, 0)
    g, = grad(v, pad)
    assert not g[...,10:].any() and g[...,:10].any()

def test_places():
    from lossbook.span import places, span_mask, two_ends
    at,n = places(torch.zeros(2,5), tensor([[1,1,1,0,0],[0,1,1,0,1]]).bool())
    assert at.tolist()==[[0,1,2,2,2],[0,0,1,1,2]] and n.tolist()==[3,3]
    assert span_mask(torch.zeros(3,5), lengths=tensor([5,2,3])).sum(1).tolist()==[5,2,3]
    for shape in ((4,2,10), (4,10,2)): assert [o.shape for o in two_ends(torch.zeros(shape))]==[(4,10)]*2

# what is left out

@both
@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
@pytest.mark.parametrize('how', ['weight', 'index', 'end index', 'bools', 'soft'])
def test_left_out(f, bad, how):
    "Whatever a row holds that is left out, it reaches neither value nor gradient"
    x,y,kwargs = X.clone(),Y.clone(),{}
    x[1] = bad
    if how=='index': y[1] = -100
    elif how=='end index': y[1,1] = -100
    else: kwargs = dict(sample_weight=tensor([1,0,1])>0 if how=='bools' else tensor([1.,0.,1.]))
    if how=='soft':
        y = one_hot(y)
        y[1] = bad
    x.requires_grad_()
    v = f(x, y, **kwargs)
    g, = grad(v, x)
    rest = X[::2].clone().requires_grad_()
    w = f(rest, Y[::2])
    same(v, w)
    same(g[::2], grad(w, rest)[0])
    assert not g[1].any()

@both
def test_labels_of_left_out(f):
    "A label that is no span is refused, but not in a row without weight"
    y = Y.clone()
    y[1] = tensor([5,40])
    with pytest.raises(ValueError, match='end must be in 0..9, got 40 in row 1'): f(X, y)
    same(f(X, y, sample_weight=tensor([1.,0.,1.])), f(X[::2], Y[::2]))

@both
def test_learned_sample_weight(f):
    "A weight that is learned gets its example's loss, also where it is 0"
    w = tensor([1.,0.,2.], requires_grad=True)
    def with_reduction(reduction): return type(f)(**f.params() | dict(reduction=reduction))
    def weighted(reduction): return with_reduction(reduction)(X, Y, sample_weight=w)
    each = with_reduction('none')(X, Y)
    same(grad(weighted('sum'), w)[0], each)
    same(grad(weighted('mean'), w)[0], (each - (each*w.detach()).sum()/3)/3)

# parameters that are learned

@pytest.mark.parametrize('cls,name,value', [(DistanceLoss,'scale',1.5), (DistanceLoss,'unit',7.), (SpanLoss,'scale',1.5),
    (SpanLoss,'unit',7.), (SpanLoss,'label_smoothing',.2)])
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('soft', [False, True])
def test_learned_parameter(cls, name, value, padded, soft):
    "A parameter that requires a gradient gets the one of a finite difference"
    x = torch.randn(40, 2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = torch.arange(40)[:,None] + tensor([0,3])
    kwargs = dict(lengths=torch.arange(40)+200) if padded else {}
    t = F.one_hot(y, 300).double() if soft else y
    p = nn.Parameter(tensor(value, dtype=torch.double))
    f = cls(**{name: p})
    assert dict(f.named_parameters())=={name: p}
    def at(v): return cls(**{name: v})(x, t, **kwargs)
    same(f(x, t, **kwargs), at(value), 1e-12, 1e-12)
    same(grad(f(x, t, **kwargs), p)[0], (at(value+1e-6)-at(value-1e-6))/2e-6, 1e-6, 1e-6)

# where values cannot be read

def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **kwargs)

@both
def test_jit_trace(f):
    "A trace of a batch in which all rows count holds for one in which they do not"
    traced = quiet(torch.jit.trace, lambda x,y: f(x, y), (X, Y), check_trace=False)
    y = Y.clone()
    y[1] = -100
    x = X.clone()
    x[2,:,9] = -torch.inf
    for a,b in ((X, Y), (X.flip(2), Y), (X, y), (x, Y)): same(traced(a, b), f(a, b))

@both
@pytest.mark.parametrize('kwargs', [{}, dict(lengths=tensor([9,9,10])), dict(sample_weight=tensor([1.,0.,1.]))], ids=lambda o: str(o).split(' at 0x')[0])
def test_make_fx(f, kwargs):
    from torch.fx.experimental.proxy_tensor import make_fx
    for mode in ('real','fake','symbolic'):
        traced = make_fx(lambda x,y: f(x, y, **kwargs), tracing_mode=mode, _allow_non_fake_inputs=True)(X, Y)
        same(traced(X, Y), f(X, Y, **kwargs))

@both
def test_fake_and_meta(f):
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.randn(3, 2, 10, requires_grad=True)
        assert f(x, torch.zeros(3, 2, dtype=torch.long), lengths=torch.ones(3, dtype=torch.long)).shape==()
    meta = [o.to('meta') for o in (X, Y, tensor([9,9,10]))]
    assert f(*meta).device.type=='meta'
    assert best_span(*meta[0].unbind(1), lengths=meta[2]).shape==(3,2)

def test_no_parts_of_a_transform():
    f = SpanLoss()
    torch.func.vmap(lambda x,y: f(x[None], y[None]))(X, Y)
    torch.compile(torch.func.vmap(lambda x,y: f(x[None], y[None])), backend='aot_eager')(X, Y)
    quiet(torch.jit.trace, lambda x,y: f(x, y), (X, Y), check_trace=False)
    assert not f.parts
    f(X, Y)
    assert all(type(o) is torch.Tensor for o in f.parts.values())
    same(sum(f.parts.values()), f(X, Y))

@both
def test_compiled(f):
    c = torch.compile(f, backend='aot_eager', fullgraph=True)
    y = Y.clone()
    y[1] = -100
    for kwargs in ({}, dict(lengths=tensor([9,9,10])), dict(sample_weight=tensor([1.,0.,1.]))):
        for t in (Y, one_hot(Y), y): same(c(X, t, **kwargs), f(X, t, **kwargs))

@pytest.mark.parametrize('name,values', [('scale',(.5,1.5,.7)), ('unit',(5.,7.,20.)), ('label_smoothing',(.25,.5,.75))])
def test_compiled_numbers(name, values):
    "A second value makes the number symbolic"
    def f(x, y, v): return span_loss(*x.unbind(1), *y.unbind(1), **{name: v})
    torch._dynamo.reset()
    c = torch.compile(f, dynamic=True)
    for v in values: same(c(X, Y, v), f(X, Y, v))

# numerics and forms

@both
@pytest.mark.parametrize('dtype,big', [(torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)])
def test_extremes(f, dtype, big):
    "Finite value and gradient when the network is right, wrong, or has the span reversed"
    pred = torch.stack([F.one_hot(Y[:,0], 10), F.one_hot(Y[:,1], 10)], 1)
    for p in (pred, -pred, pred.flip(1), pred.flip(2)):
        for kwargs in ({}, dict(lengths=tensor([9,9,10]))):
            x = ((p>0)*2-1).mul(big).to(dtype).requires_grad_()
            v = f(x, Y, **kwargs)
            g, = grad(v, x)
            assert v.isfinite() and g.isfinite().all() and g.dtype==dtype

@both
def test_second_derivative(f):
    torch.manual_seed(4)
    x = torch.randn(2, 2, 4, dtype=torch.double, requires_grad=True)
    soft,y = torch.rand(2, 2, 4, dtype=torch.double).softmax(-1),tensor([[0,2],[1,1]])
    for args,kwargs in (((soft,), {}), ((y,tensor([3,4])), dict(sample_weight=tensor([1.,2.])))):
        assert torch.autograd.gradgradcheck(lambda x: f(x, *args, **kwargs), x)

@both
def test_vmap_and_strides(f):
    soft = torch.rand(3, 2, 10).softmax(-1)
    for y in ((Y,), (soft,), (Y,tensor([9,9,10]))):
        x = X.clone().requires_grad_()
        g, = grad(f(x, *y), x)
        rows = torch.func.vmap(torch.func.grad(lambda x,*y: f(x[None], *[o[None] for o in y])))(X, *y)
        same(rows/3, g)
        same(f(X.movedim(1,2).contiguous().movedim(1,2), *y), f(X, *y))

@both
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_one_hot_and_ignored(f, reduction):
    x = X.clone().requires_grad_()
    v,w = f.reduced(reduction, x, Y),f.reduced(reduction, x, one_hot(Y))
    same(v, w, 0, 0)
    same(grad(v, x)[0], grad(w, x)[0], 1e-6, 1e-6)
    y,keep = Y.clone(),tensor([True,False,True])
    y[1,0] = -100
    want = f.reduced(reduction, X[keep], Y[keep])
    for got in (f.reduced(reduction, X, y), f.reduced(reduction, X, Y, sample_weight=keep)):
        same(got[keep] if reduction=='none' else got, want)

@both
def test_nothing_counts(f):
    same(f(X[:0], Y[:0]), 0.)
    x = X.clone().requires_grad_()
    v = f(x, torch.full_like(Y, -100))
    same(v, 0.)
    assert not grad(v, x)[0].any()

@both
def test_axis_of_two_by_two(f):
    x,y = X[...,:2],Y.clamp(max=1)
    for axis in (1,2,-1): type(f)(axis=axis)
    with pytest.raises(ValueError, match='can be read in two ways'): f(x, y)
    same(type(f)(axis=1)(x.movedim(1,2), y), type(f)(axis=2)(x, y))

@both
def test_other_reductions(f):
    "A reduction of one's own sees rows, and nothing of the module changes"
    from lossbook.focal import OHEM
    each = f.reduced('none', X, Y)
    assert f.reduction=='mean'
    same(f.reduced(lambda loss,norm: loss.max(), X, Y), each.max())
    same(OHEM(f, .5)(X, Y), each.topk(2).values.mean())
    own = type(f)(**f.params())
    own.reduction = lambda loss,norm: loss.max()
    same(own(X, Y), each.max())

def test_constructor():
    import inspect
    ps = inspect.signature(SpanLoss).parameters
    assert list(ps)==['scale','unit','reduction','label_smoothing','ignore_index','axis']
    assert all(ps[k].kind==ps[k].KEYWORD_ONLY for k in ('label_smoothing','ignore_index','axis'))
    assert repr(SpanLoss(2., 7.))==repr(pickle.loads(pickle.dumps(SpanLoss(2., 7.))))
    assert isinstance(SpanLoss(), DistanceLoss)

# spans and measures

def table(a, b, max_len=None):
    i,j = torch.arange(len(a))[:,None],torch.arange(len(a))
    return (a[:,None]+b).where((i<=j) & (j-i<(max_len or len(a))), -torch.inf)

@pytest.mark.parametrize('L', [1,2,7,20])
@pytest.mark.parametrize('max_len', [None,1,2,5,100])
@pytest.mark.parametrize('masked', [False,True])
def test_best_span(L, max_len, masked):
    "It agrees with the table of all pairs"
    torch.manual_seed(2)
    x,m = torch.randn(100, 2, L)*3,torch.rand(100, L)<.7
    m[~m.any(1),0] = True
    got = best_span(x[:,0], x[:,1], max_len, m if masked else None)
    for k in range(len(x)):
        t = table(*x[k], max_len)
        if masked: t = t.masked_fill(~(m[k][:,None] & m[k]), -torch.inf)
        assert got[k].tolist()==list(divmod(t.argmax().item(), L))

def test_best_span_where_nothing_is_possible():
    "Still a valid span"
    assert best_span(torch.zeros(0,3), torch.zeros(0,3)).shape==(0,2)
    none = torch.full((1,3), -torch.inf)
    assert best_span(none, none)[0,0]<=2
    ruled = torch.full((2,4), -torch.inf)
    ruled[0,3],ruled[1,0] = 0,0
    i,j = best_span(ruled[:1], ruled[1:])[0]
    assert 0<=i<=j<4

def test_measures():
    torch.manual_seed(3)
    p,t = torch.randint(9, (2,300,2))
    t = t.sort(1).values
    for i,(a,b) in enumerate(zip(p.tolist(), t.tolist())):
        u,v = set(range(a[0], a[1]+1)),set(range(b[0], b[1]+1))
        same(span_jaccard(p, t)[i], len(u&v)/len(u|v))
        same(span_f1(p, t)[i], 2*len(u&v)/(len(u)+len(v)))
        same(span_exact_match(p, t)[i], float(a==b))
    with pytest.raises(ValueError, match=r'pred must be integer of shape \(N, 2\)'): span_f1(torch.zeros(3,2), t)
    with pytest.raises(ValueError, match=r'target must have shape \(300, 2\), got \(1, 2\)'): span_f1(p, t[:1])

# refusals

@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'scale must be >= 0, got -1', lambda: SpanLoss(scale=-1.)),
    (ValueError, 'label_smoothing must be in [0, 1]', lambda: SpanLoss(label_smoothing=2.)),
    (ValueError, 'unit must be > 0', lambda: DistanceLoss(unit=0.)),
    (ValueError, 'reduction must be', lambda: DistanceLoss(reduction='average')),
    (TypeError, 'ignore_index must be an integer', lambda: DistanceLoss(ignore_index=None)),
    (TypeError, 'SpanLoss: got an unexpected keyword', lambda: SpanLoss(gamma=2)),
    (ValueError, 'pass mask or lengths, not both',
        lambda: SpanLoss()(X, Y, mask=torch.ones(3,10).bool(), lengths=tensor([9,9,9]))),
    (TypeError, 'mask must be bool or integer', lambda: SpanLoss()(X, Y, mask=torch.ones(3,10))),
    (TypeError, 'mask must be a tensor, got list', lambda: SpanLoss()(X, Y, mask=[[1]*10]*3)),
    (ValueError, 'mask must have shape (3, 10), got (3, 9)', lambda: SpanLoss()(X, Y, mask=torch.ones(3,9).bool())),
    (ValueError, 'target must be integer (N, 2)', lambda: SpanLoss()(X, Y.float())),
    (ValueError, 'max_len must be >= 1', lambda: best_span(*X.unbind(1), 0)),
    (TypeError, 'max_len must be an integer', lambda: best_span(*X.unbind(1), 2.5)),
    (TypeError, 'start_logits must be a floating point tensor', lambda: distance_loss(*X.long().unbind(1), *Y.T)),
    (ValueError, 'start_logits must have shape (N, L), got (3,)', lambda: distance_loss(X[:,0,0], X[:,1,0], *Y.T)),
    (ValueError, 'sample_weight must have shape (3,), got (3, 1)', lambda: SpanLoss()(X, Y, sample_weight=torch.ones(3,1))),
    (ValueError, 'sample_weight must be >= 0', lambda: DistanceLoss().check_values(X, Y, sample_weight=-torch.ones(3))),
    (ValueError, 'target must sum to 1', lambda: DistanceLoss().check_values(X, one_hot(Y)/2))],
    ids=lambda o: o if isinstance(o, str) else '')
def test_refuses(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)

def test_check_values_of_left_out():
    y = one_hot(Y)
    y[1] = torch.nan
    DistanceLoss().check_values(X, y, sample_weight=tensor([1.,0.,1.]))

# a Learner

def test_mixup():
    from fastai.basics import DataLoaders, Learner
    from fastai.callback.all import MixUp, ProgressCallback
    data = list(zip(X.repeat(8,1,1), Y.repeat(8,1)))
    model = nn.Conv1d(2, 2, 3, padding=1)
    learn = Learner(DataLoaders.from_dsets(data, data, bs=8, device='cpu'), model, SpanLoss())
    learn.remove_cbs([o for o in learn.cbs if isinstance(o, ProgressCallback)])
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=MixUp())
    assert learn.loss_func.reduction=='mean'
