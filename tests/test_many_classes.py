"Losses without logits against the full form, and the estimators against explicit sums"
import itertools, multiprocessing, pickle, pytest, torch, torch.autograd.forward_ad as fwad, torch.nn.functional as F
from copy import deepcopy
from torch import nn
from lossbook.check import check_loss, loss_classes
from lossbook.core import BinaryLoss, ClassLoss, sum_and_norm
from lossbook.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from lossbook.focal import FocalLoss, OHEM
from lossbook.many_classes import AdaptiveSoftmaxLoss, HandsOn, LinearLoss, NCELoss, NegativeSamplingLoss, SampledSoftmaxLoss, hand_on
from lossbook.many_classes import nce_loss, negative_sampling_loss, sampled_softmax_loss
from lossbook.noisy_labels import GeneralizedCrossEntropy

N,D,C = 13,5,7
LOSSES = {k: o for k,o in loss_classes().items() if issubclass(o, (ClassLoss,BinaryLoss))}
W3 = [.5,1.,2.,0.,1.,3.,.2]

@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n)

def layer(dtype=torch.double, *pos):
    "Hidden states, weight and bias"
    torch.manual_seed(0)
    return [torch.randn(*o, dtype=dtype, requires_grad=True) for o in ((*(pos or (N,)),D), (C,D), (C,))]

def chunked(loss, rows=4, **kwargs): return LinearLoss(loss, chunk_bytes=rows*C*8, **kwargs)

def full(loss, reduction=None):
    "The loss of the logits"
    def f(h, W, y, b=None, w=None):
        kwargs = {} if w is None else dict(sample_weight=w)
        z = F.linear(h, W, b)
        return loss.reduced(reduction or loss.reduction, loss.from_logits(z) if hasattr(loss, 'from_logits') else z, y, **kwargs)
    return f

def same(f, g, ts, *args, some=None, **tol):
    "Equal values and gradients by `ts`, with random factors where there are many values"
    a,b = f(*args),g(*args)
    torch.testing.assert_close(a, b, **tol)
    k = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).to(a.dtype)
    for o,p in zip(*[torch.autograd.grad((v*k).sum(), ts) for v in (a,b)]): torch.testing.assert_close(o, p, **tol)

def settings(cls):
    "A loss with its defaults, with class weights, smoothed, and with other numbers"
    yield {}
    ps = cls().params()
    if 'weight' in ps: yield dict(weight=W3)
    for k in ('label_smoothing','alpha','gamma'):
        if isinstance(ps.get(k), float): yield {k: ps[k]/2 or .25}

def targets(cls):
    g = torch.Generator().manual_seed(2)
    if issubclass(cls, BinaryLoss): return [torch.randint(2, (N,C), generator=g).double()]
    y = torch.randint(C, (N,), generator=g)
    return [y, torch.where(torch.arange(N)%4==1, -100, y), torch.randn(N, C, generator=g, dtype=torch.double).softmax(1)]

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('name,kw', [pytest.param(k, kw, id='-'.join([k, *kw]))
    for k,o in LOSSES.items() for kw in settings(o)])
def test_every_loss(name, kw, reduction):
    "Value and all gradients are those of the full form: weights, smoothing, both forms of target, ignored rows"
    loss = LOSSES[name](**kw).double()
    lin,(h,W,b) = chunked(loss),layer()
    w = torch.rand(N, dtype=torch.double)*(torch.arange(N)%5!=0)
    for y in targets(type(loss)):
        if y.dtype==torch.long and (y<0).any() and not hasattr(loss, 'ignore_index'): continue
        for weight in (None, w, w!=0) if not kw else (w,):
            f = lambda *args: lin.reduced(reduction, *args)
            same(f, full(loss, reduction), (h,W,b), h, W, y, b, weight)

@pytest.mark.parametrize('keep,per_example', [(.3,False), (.5,True), (1.,False)])
@pytest.mark.parametrize('inner', [FocalLoss, CrossEntropyLoss])
def test_ohem(inner, keep, per_example):
    h,W,b = layer(torch.double, 3, 4)
    y = torch.randint(C, (3,4))
    y[1,2] = -100
    loss = OHEM(inner(weight=W3).double(), keep, per_example=per_example)
    at_end = OHEM(inner(weight=W3, axis=-1).double(), keep, per_example=per_example)
    for r in ('mean','sum','none'): same(lambda *a: chunked(loss).reduced(r, *a), full(at_end, r), (h,W,b), h, W, y, b)

def test_layouts():
    "(N, L, D), a layer as it is, none of the bias, a tuple as a model gives it, keywords"
    h,W,b = layer(torch.double, 3, 4)
    y = torch.randint(C, (3,4))
    loss,end = chunked(FocalLoss()),FocalLoss(axis=-1)
    same(loss, full(end), (h,W,b), h, W, y, b)
    same(loss, full(end), (h,W), h, W, y)
    assert loss.reduced('none', h, W, y).shape==(3,4)
    lin = nn.Linear(D, C).double()
    want = end(lin(h), y)
    torch.testing.assert_close(loss(h, lin, y), want)
    torch.testing.assert_close(loss((h,lin.weight,lin.bias), y), want)
    torch.testing.assert_close(loss(lin(h), y), want)
    w = torch.rand(3, 4)
    torch.testing.assert_close(loss((h,lin.weight,lin.bias), y, w), end(lin(h), y, w))
    torch.testing.assert_close(loss(h, lin, y, sample_weight=w), end(lin(h), y, w))
    torch.testing.assert_close(loss(h, lin, y, sample_weight=w[:,0]), end(lin(h), y, w[:,0]))

def test_tied_weights():
    "The weight is the table of embeddings as well"
    E,y = nn.Embedding(C, D).double(),torch.arange(6)
    def grad(f):
        E.zero_grad()
        f(E(y), E.weight, (y+1)%C).backward()
        return E.weight.grad
    torch.testing.assert_close(grad(chunked(FocalLoss(), 2)), grad(full(FocalLoss())))

def test_a_few_classes_of_a_teacher():
    "Values and indices stand for a distribution that is 0 elsewhere"
    h,W,b = layer()
    p,i = torch.randn(N, C, dtype=torch.double).softmax(1).topk(3)
    y = torch.zeros(N, C, dtype=torch.double).scatter(1, i, p)
    for loss in (CrossEntropyLoss(), GeneralizedCrossEntropy()): same(lambda *a: chunked(loss)(h, W, (p,i), b), lambda *a: full(loss)(h, W, y, b), (h,W,b))
    p.requires_grad_()
    same(lambda: chunked(FocalLoss())(h, W, (p,i), b), lambda: full(FocalLoss())(h, W, torch.zeros(N, C).double().scatter(1, i, p), b), (h,W,b,p))

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_z_loss(reduction):
    h,W,b = layer()
    y,w = targets(CrossEntropyLoss)[1],torch.rand(N, dtype=torch.double)
    def want(h, W, y, b, w):
        z = F.linear(h, W, b)
        v = F.cross_entropy(z, y, reduction='none') + .1*z.logsumexp(1)**2*(y>=0)
        n = w*(y>=0)
        return dict(none=v*w, sum=(v*w).sum(), mean=(v*w).sum()/n.sum())[reduction]
    loss = chunked(CrossEntropyLoss(reduction=reduction), z_loss=.1)
    same(loss, want, (h,W,b), h, W, y, b, w)
    if reduction!='none':
        plain = chunked(CrossEntropyLoss(reduction=reduction))
        torch.testing.assert_close(loss.parts['loss'], plain(h, W, y, b, w).detach())
        torch.testing.assert_close(sum(loss.parts.values()), loss(h, W, y, b, w).detach())
        assert not plain.parts and not chunked(CrossEntropyLoss(), z_loss=0.).parts # off is off

@pytest.mark.parametrize('inner', [CrossEntropyLoss(weight=W3), BCEWithLogitsLoss()])
def test_the_sum_and_the_norm(inner, monkeypatch):
    "Both come from one pass over the chunks, and their quotient is the mean"
    h,W,b = layer()
    y,w,inner = targets(type(inner))[-1],torch.rand(N, dtype=torch.double),inner.double()
    loss,calls = chunked(inner, z_loss=.1 if isinstance(inner, ClassLoss) else 0.),[]
    mean = loss(h, W, y, b, w)
    monkeypatch.setattr('lossbook.many_classes.RowValues.apply', lambda *o: calls.append(o))
    total,norm = loss.reduced(sum_and_norm, h, W, y, b, w)
    torch.testing.assert_close(total/norm, mean)
    torch.testing.assert_close(norm, inner.reduced(sum_and_norm, F.linear(h, W, b), y, sample_weight=w)[1])
    for o,p in zip(*(torch.autograd.grad(v, (h,W,b)) for v in (total/norm, mean))): torch.testing.assert_close(o, p)
    assert not calls and not norm.requires_grad

def test_learned():
    "What of the loss, the weights or the target requires a gradient gets it"
    h,W,b = layer()
    y,soft = torch.randint(C, (N,)),torch.rand(N, C, dtype=torch.double).softmax(1).requires_grad_()
    gamma = torch.tensor(1.5, dtype=torch.double, requires_grad=True)
    w,cw = [torch.rand(n, dtype=torch.double).requires_grad_() for n in (N,C)]
    for r in ('mean','sum','none'):
        loss = FocalLoss(gamma, weight=cw, reduction=r)
        same(chunked(loss), full(loss), (h,W,b,w,cw,gamma), h, W, y, b, w)
        same(chunked(loss), full(loss), (h,W,b,w,cw,soft), h, W, soft, b, w)

@pytest.mark.parametrize('who', range(1, 8))
def test_some_are_frozen(who):
    ts = [o.detach().requires_grad_(bool(who & 1<<i)) for i,o in enumerate(layer())]
    y = torch.randint(C, (N,))
    some = [o for o in ts if o.requires_grad]
    for r in ('mean','none'): same(lambda: chunked(FocalLoss(reduction=r))(*ts[:2], y, ts[2]), lambda: full(FocalLoss(reduction=r))(*ts[:2], y, ts[2]), some)

def test_without_a_gradient():
    h,W,b = layer()
    y = torch.randint(C, (N,))
    want = full(FocalLoss())(h, W, y, b).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(): torch.testing.assert_close(chunked(FocalLoss())(h, W, y, b), want)
    assert not chunked(FocalLoss())(h.detach(), W.detach(), y).requires_grad

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('name', ['CrossEntropyLoss','FocalLoss','GeneralizedCrossEntropy','NormalizedCrossEntropy','BCEWithLogitsLoss'])
def test_half_precision(name, dtype):
    "No further from float64 than the full form in the same dtype, and one unit"
    loss,(h,W,b),y = LOSSES[name](),layer(torch.float, 64),targets(LOSSES[name])[0]
    y = y[torch.arange(64)%N]
    ts = [o.detach().to(dtype) for o in (h,W,b)]
    def grads(f, dtype):
        xs = [o.to(dtype).requires_grad_() for o in ts]
        v = f(*xs[:2], y, xs[2])
        return [o.double() for o in (v.detach(), *torch.autograd.grad(v, xs))]
    for want,theirs,ours in zip(grads(full(loss), torch.double), grads(full(loss), dtype), grads(chunked(loss, 16), dtype)):
        unit = torch.finfo(dtype).eps*want.abs().max()
        assert (ours-want).abs().max() <= (theirs-want).abs().max()+unit

def test_autocast():
    h,W,b = layer(torch.float)
    y = torch.randint(C, (N,))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        same(chunked(FocalLoss()), full(FocalLoss()), (h,W,b), h, W, y, b, rtol=2e-2, atol=1e-3)
        v = chunked(FocalLoss())(h, W, y, b)
    assert v.dtype==torch.float
    v.backward()
    assert h.grad.dtype==W.grad.dtype==torch.float

def test_scaled_loss_in_float16():
    "A loss that is scaled before the backward pass loses no small gradients"
    h,W,b = [o.detach().half().requires_grad_() for o in layer(torch.float, 4096)]
    y = torch.randint(C, (4096,))
    g, = torch.autograd.grad(LinearLoss(FocalLoss(), chunk_bytes=2**12)(h, W, y, b)*2**14, h)
    hd = h.detach().double().requires_grad_()
    want, = torch.autograd.grad(full(FocalLoss())(hd, W.double(), y, b.double())*2**14, hd)
    assert (g.double()-want).abs().max()<5e-3*want.abs().max()

def test_empty_and_left_out():
    h,W,b = layer()
    for r in ('mean','sum'):
        loss = chunked(FocalLoss(reduction=r))
        for y in (torch.full((N,), -100), torch.full((0,), 1)):
            v = loss(h[:len(y)], W, y, b)
            assert v==0 and all((g==0).all() for g in torch.autograd.grad(v, (h,W,b)))
    assert chunked(FocalLoss(reduction='none'))(h[:0], W, torch.zeros(0, dtype=torch.long)).shape==(0,)

def test_nan_in_what_is_left_out():
    h,W,b = [o.detach() for o in layer()]
    h[3] = torch.nan
    for t in (h,W,b): t.requires_grad_()
    y = torch.randint(C, (N,))
    y[3] = -100
    for r,z in itertools.product(('mean','none'), (0.,.1)):
        gs = torch.autograd.grad(chunked(FocalLoss(reduction=r), z_loss=z)(h, W, y, b).sum(), (h,W,b))
        assert all(g.isfinite().all() for g in gs)
    y[3] = 0
    assert chunked(FocalLoss())(h, W, y, b).isnan()

def test_twice():
    "Another backward pass asks for retain_graph, and adds the same again"
    h,W,b = layer()
    y = torch.randint(C, (N,))
    v = chunked(FocalLoss())(h, W, y, b)
    v.backward(retain_graph=True)
    once = W.grad.clone()
    v.backward()
    torch.testing.assert_close(W.grad, 2*once)
    with pytest.raises(RuntimeError, match='retain_graph=True'): v.backward()

def test_no_second_derivative():
    h,W,b = layer()
    y = torch.randint(C, (N,))
    for r in ('mean','none'):
        v = chunked(FocalLoss(reduction=r))(h, W, y, b).sum()
        with pytest.raises(RuntimeError, match='has no second derivative'): torch.autograd.grad(v, h, create_graph=True)
        with fwad.dual_level(), pytest.raises(NotImplementedError, match='none in forward mode'):
            chunked(FocalLoss(reduction=r))(fwad.make_dual(h, torch.ones_like(h)), W, y)

def test_transforms_take_the_plain_form():
    h,W,b = [o.detach() for o in layer()]
    y,loss = torch.randint(C, (N,)),chunked(FocalLoss())
    want = torch.func.grad(lambda W: full(FocalLoss())(h, W, y))(W)
    torch.testing.assert_close(torch.func.grad(lambda W: loss(h, W, y))(W), want)
    torch.testing.assert_close(torch.func.jvp(lambda W: loss(h, W, y), (W,), (want,))[1], (want*want).sum())
    f = torch.compile(lambda W: loss(h, W, y), fullgraph=True, backend='aot_eager')
    W.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(f(W), W)[0], want)
    assert loss(*(o.to('meta') for o in (h,W,y))).shape==()

def test_refused():
    h,W,b = [o.detach() for o in layer()]
    y,loss = torch.randint(C, (N,)),chunked(FocalLoss())
    bad = y.clone()
    bad[-1] = C # in the last chunk
    for args,what in (((h,W,bad), 'target must be in 0..6, or ignore_index=-100, got 7'), ((h,W[:,:3],y), r'linear_weight must have shape \(C, 5\)'),
        ((h,W,y,b[:3]), r'linear_bias must have shape \(7,\)'), ((h[0],W,y), 'hidden must have shape'), ((h,W,y[:,None]), 'target must have shape'),
        ((h,W,(torch.rand(N,9),torch.zeros(N,9).long())), 'at most 7 classes'), ((h,W,(torch.rand(N,2),torch.full((N,2), C))), 'target must be in'),
        ((h,W,(torch.rand(N,2),torch.zeros(N,3).long())), 'values and indices must have'), ((h,W,y,b,torch.rand(3)), 'sample_weight must have shape')):
        with pytest.raises(ValueError, match=what): loss(*args)
    with pytest.raises(TypeError, match='linear_weight must have the dtype of hidden'): loss(h, W.float(), y)
    with pytest.raises(TypeError, match='loss must be a loss of this book'): LinearLoss(nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match='z_loss is for losses over classes'): LinearLoss(BCEWithLogitsLoss(), z_loss=.1)
    with pytest.raises(ValueError, match='z_loss must be >= 0'): LinearLoss(FocalLoss(), z_loss=-1)
    with pytest.raises(ValueError, match='reduction must be'): LinearLoss(FocalLoss(), reduction='avg')

def test_rows_that_depend_on_each_other():
    class Batchwise(FocalLoss):
        def reduced(self, reduction, x, y, sample_weight=None):
            return super().reduced(lambda v,n: reduction(v-v.mean(), n) if callable(reduction) else v.mean(), x, y, sample_weight)
    with pytest.raises(TypeError, match='a value of its own'): LinearLoss(Batchwise())

def test_a_module():
    "It prints, pickles, copies and moves, and changes nothing of the loss inside"
    loss = LinearLoss(FocalLoss(weight=W3), z_loss=.1)
    h,W,b = layer(torch.float)
    y = torch.randint(C, (N,))
    want = loss(h, W, y, b)
    for o in (pickle.loads(pickle.dumps(loss)), deepcopy(loss)): torch.testing.assert_close(o(h, W, y, b), want)
    assert 'z_loss=0.1' in repr(loss) and 'FocalLoss' in repr(loss) and loss.loss.axis==1
    assert loss.to('meta').loss.weight.is_meta and loss.y_int
    x = torch.randn(2, 3, C)
    torch.testing.assert_close(loss.activation(x), x.softmax(-1))
    assert loss.decodes(x).shape==(2,3)
    with pytest.raises(ValueError, match='target must be in'): LinearLoss(FocalLoss()).check_values(h, W, torch.full((N,), C))

def test_contract():
    "As a loss of hidden states, with a layer that stands, all checks hold but those of what it refuses, and of a matrix product's own rounding"
    loss,W = LinearLoss(FocalLoss(), chunk_bytes=60),torch.arange(15.).reshape(3,5).sin()
    def f(hidden, target, reduction='mean'): return loss.reduced(reduction, hidden, W.to(hidden), target)
    rep = check_loss(f, lambda n: (torch.randn(n, 5), torch.arange(n)%3), n_preds=1,
        skip=('second_gradient','forward_mode','half_precision','large_float16','autocast'))
    assert rep.ok, rep

def test_hand_on():
    model = hand_on(nn.Sequential(nn.Linear(4, D), nn.ReLU(), nn.Linear(D, C)))
    keys = list(model.state_dict())
    assert keys==['0.weight','0.bias','2.weight','2.bias'] and type(model[0]) is nn.Linear
    x,y = torch.randn(N, 4),torch.randint(C, (N,))
    loss = chunked(FocalLoss())
    a,(h,W,b) = loss(model(x), y),model(x)
    assert h.shape==(N,D) and W is model[2].weight
    model.eval()
    assert model(x).shape==(N,C)
    torch.testing.assert_close(loss(model(x), y), a)
    other = pickle.loads(pickle.dumps(model))
    assert isinstance(other[2], HandsOn)
    with pytest.raises(TypeError, match='layer must be an nn.Linear, got NoneType'): hand_on(nn.ReLU())

def one_process(rank, size, path, queue):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=size)
    h,W,b = layer()
    y = torch.arange(N)%C
    mine = slice(0, 5) if rank==0 else slice(5, N) # unequal shares
    loss = chunked(FocalLoss(weight=W3).double())
    norm = loss.reduced(lambda v,n: n.sum(), h[mine], W, y[mine], b).detach()
    dist.all_reduce(norm)
    (loss.reduced('sum', h[mine], W, y[mine], b)/norm).backward()
    dist.all_reduce(W.grad)
    if rank==0: queue.put(W.grad.numpy())
    dist.barrier()
    dist.destroy_process_group()

def test_two_processes(tmp_path):
    "Rows that are split over processes give the gradient of all"
    ctx = multiprocessing.get_context('fork')
    queue = ctx.Queue()
    ps = [ctx.Process(target=one_process, args=(i, 2, str(tmp_path/'meet'), queue)) for i in range(2)]
    for p in ps: p.start()
    got = torch.from_numpy(queue.get(timeout=60))
    for p in ps: p.join()
    h,W,b = layer()
    loss = FocalLoss(weight=W3).double()
    torch.testing.assert_close(got, torch.autograd.grad(full(loss)(h, W, torch.arange(N)%C, b), W)[0])

SAMPLED = NCELoss,NegativeSamplingLoss,SampledSoftmaxLoss

def with_scores():
    "Hidden states that are the scores themselves, with the layer that passes them on, targets and a noise"
    torch.manual_seed(0)
    s = torch.randn(4, C, dtype=torch.double).log_softmax(1)
    return s,torch.eye(C, dtype=torch.double),torch.tensor([0,2,6,2]),torch.tensor([5,1,2,1,3,4,4])

def exactly(counts, times=1): return torch.arange(C).repeat_interleave(counts*times)

def test_nce_is_the_explicit_sum():
    "Samples in the very proportions of the noise give the expected loss, as its formula says"
    s,W,y,counts = with_scores()
    q,k = counts/counts.sum().double(),counts.sum()
    got = nce_loss(s, W, y, exactly(counts), q.log(), reduction='none')
    for i in range(len(y)):
        want = -F.logsigmoid(s[i,y[i]]-(k*q[y[i]]).log()) - sum(k*q[c]*F.logsigmoid(-(s[i,c]-(k*q[c]).log())) for c in range(C))
        torch.testing.assert_close(got[i], want)

def test_nce_tends_to_maximum_likelihood():
    "With much noise the gradient of NCE is that of cross entropy, at scores that are normalised (Mnih & Teh 2012)"
    s,W,y,counts = with_scores()
    s.requires_grad_()
    q = (counts/counts.sum().double()).log()
    want, = torch.autograd.grad(F.cross_entropy(s, y), s)
    off = []
    for times in (1,10,100,1000):
        g, = torch.autograd.grad(nce_loss(s, W, y, exactly(counts, times), q), s)
        off.append((g-want).abs().max().item())
    assert all(b<a/5 for a,b in zip(off, off[1:])) and off[-1]<1e-4, off

def test_negative_sampling_estimates_a_ratio():
    "Its expected gradient is 0 where the scores are log p - log kq"
    _,W,_,counts = with_scores()
    p,q,k = torch.rand(C, dtype=torch.double),counts/counts.sum().double(),counts.sum()
    p = p/p.sum()
    s = (p.log()-(k*q).log()).requires_grad_()
    v = negative_sampling_loss(s.expand(C, C), W, torch.arange(C), exactly(counts), reduction='none', remove_hits=False)
    g, = torch.autograd.grad((p*v).sum(), s)
    torch.testing.assert_close(g, torch.zeros_like(g))

def test_sampled_softmax_in_the_limit():
    "In the proportions of the noise it is cross entropy; with samples that are drawn, the bias vanishes; the sign matters"
    s,W,y,counts = with_scores()
    q = (counts/counts.sum().double()).log()
    want = F.cross_entropy(s, y, reduction='none')
    torch.testing.assert_close(sampled_softmax_loss(s, W, y, exactly(counts), q, reduction='none'), want)
    wrong = sampled_softmax_loss(s, W, y, exactly(counts), -q, reduction='none')
    assert (wrong-want).abs().min()>.2
    g = torch.Generator().manual_seed(0)
    def bias(k):
        samples = torch.multinomial(q.exp().expand(20_000//k, C), k, True, generator=g)
        return sum(sampled_softmax_loss(s[:1], W, y[:1], o, q)-want[0] for o in samples)/len(samples)
    few,some,many = [bias(k).abs().item() for k in (2,20,500)]
    assert few>3*some>6*many and many<5e-3, (few,some,many)

def test_hits():
    s,W,y,_ = with_scores()
    for f,args in ((nce_loss, (torch.zeros(C).log_softmax(0),)), (negative_sampling_loss, ()), (sampled_softmax_loss, (torch.zeros(C).log_softmax(0),))):
        hits,none = torch.tensor([2,2,2]),torch.tensor([1,1,1])
        out = f(s, W, y, hits, *args, reduction='none', remove_hits=True)
        one = f(s, W, y, none, *args, reduction='none', remove_hits=True)
        assert (out[[1,3]] < one[[1,3]]).all() # nothing but the target is left
        if f is sampled_softmax_loss: torch.testing.assert_close(out[1], torch.zeros(()).double())

def test_samples_for_each_position():
    s,W,y,counts = with_scores()
    q,each = (counts/counts.sum().double()).log(),torch.randint(C, (2,2,3))
    for f,args in ((nce_loss, (q,)), (negative_sampling_loss, ()), (sampled_softmax_loss, (q,))):
        got = f(s.reshape(2,2,C), W, y.reshape(2,2), each, *args, reduction='none')
        want = [f(s[i:i+1], W, y[i:i+1], each.reshape(4,3)[i], *args) for i in range(4)]
        torch.testing.assert_close(got.flatten(), torch.stack(want))
        a,b = [torch.autograd.grad(f(s, w, y, each.reshape(4,3), *args, sparse=o), w)[0] for o in (True,False) for w in [W.clone().requires_grad_()]]
        torch.testing.assert_close(a.to_dense(), b)

@pytest.mark.parametrize('cls', SAMPLED)
@pytest.mark.parametrize('noise', ['uniform','log_uniform',[5.,1.,2.,1.,3.,4.,4.]])
def test_noise(cls, noise):
    "What is drawn has the probabilities that the correction has, and is the same again for the same seed"
    loss = cls(3, C, 7, noise, generator=torch.Generator().manual_seed(0))
    p = loss.log_noise.exp()
    assert p.sum().sub(1).abs()<1e-6
    if noise=='uniform': torch.testing.assert_close(p, torch.full((C,), 1/C))
    if noise=='log_uniform': torch.testing.assert_close(p, (1/torch.arange(1., C+1)).log1p()/torch.tensor(C+1.).log())
    if isinstance(noise, list):
        want = torch.tensor(noise)**(.75 if cls is NegativeSamplingLoss else 1)
        torch.testing.assert_close(p, want/want.sum())
    drawn = loss.draw(100_000).bincount(minlength=C)/100_000
    assert (drawn-p).abs().max()<.01
    loss.generator.manual_seed(0)
    a = loss.draw(50)
    loss.generator.manual_seed(0)
    assert a.equal(loss.draw(50)) and a.equal(cls(3, C, 7, noise, generator=torch.Generator().manual_seed(0)).draw(50))
    torch.testing.assert_close(loss.to(torch.bfloat16).log_noise.exp(), p)

@pytest.mark.parametrize('cls', SAMPLED)
def test_sampled_contract(cls):
    "With noise that stands still, every check holds"
    class Fixed(cls):
        check_skips = AdaptiveSoftmaxLoss.check_skips | dict(pickles='a class of a test')
        def draw(self, n=None): return torch.tensor([1,4,4,6], device=self.steps.device)
    for loss in (Fixed(5, C, 4), cls(5, C, 4)):
        rep = check_loss(loss)
        assert rep.ok, rep

@pytest.mark.parametrize('cls', SAMPLED)
def test_exact_in_evaluation(cls):
    torch.manual_seed(0)
    loss = cls(5, C, 3, [5.,1.,2.,1.,3.,4.,4.]).eval()
    h,y = torch.randn(2, 6, 5),torch.randint(C, (2,6))
    y[0,1] = -100
    v = loss(h, y)
    torch.testing.assert_close(v, F.cross_entropy(loss.scores(h).flatten(0,1), y.flatten()))
    p = loss.activation(h)
    torch.testing.assert_close(p.sum(-1), torch.ones(2,6))
    assert loss.decodes(p).equal(loss.scores(h).argmax(-1))
    loss.reduction = 'none'
    assert loss(h, y).shape==(2,6) and loss(h, y)[0,1]==0
    assert loss.train()(h, y)[0,1]==0 and loss(h, y)[0,0]>0

@pytest.mark.parametrize('cls', [*SAMPLED, AdaptiveSoftmaxLoss])
def test_left_out(cls):
    "Rows that are ignored or have no weight reach no gradient, NaN included"
    loss = cls(16, C) if cls is AdaptiveSoftmaxLoss else cls(16, C, 3)
    h,y,w = torch.randn(6, 16),torch.randint(C, (6,)),torch.ones(6)
    h[[1,2]] = torch.nan
    y[1],w[2] = -100,0
    h.requires_grad_()
    loss(h, y, w).backward()
    assert h.grad.isfinite().all() and all(p.grad.isfinite().all() for p in loss.parameters()) and (h.grad[[1,2]]==0).all()
    assert loss(h, torch.full((6,), -100))==0 and loss(h[:0], y[:0])==0

def test_adaptive():
    "The loss of torch's layer, probabilities that sum to 1, and classes in any order"
    torch.manual_seed(0)
    h,y = torch.randn(9, 16),torch.randint(C, (9,))
    loss = AdaptiveSoftmaxLoss(16, C, [2,4], div_value=2)
    torch.testing.assert_close(loss(h, y), loss.layer(h, y).loss)
    p = loss.activation(h)
    torch.testing.assert_close(p.sum(1), torch.ones(9))
    torch.testing.assert_close(-p[torch.arange(9),y].log().mean(), loss(h, y))
    assert loss.decodes(p).equal(loss.layer.predict(h))
    counts = torch.tensor([1,50,3,40,2,30,9])
    other = AdaptiveSoftmaxLoss(16, C, [2,4], counts, div_value=2)
    other.layer.load_state_dict(loss.layer.state_dict())
    order = counts.argsort(descending=True) # class order[i] has place i
    torch.testing.assert_close(other(h, order[y]), loss(h, y))
    torch.testing.assert_close(other.activation(h)[:,order], p)
    assert other.decodes(other.activation(h)).equal(order[loss.decodes(p)])

def test_sampled_refused():
    h,y,W = torch.randn(4, 5),torch.randint(C, (4,)),torch.randn(C, 5)
    bad = y.clone()
    bad[-1] = C
    for f,what in ((lambda: NCELoss(5, C, 8), 'n_samples must be at most n_classes, 7, got 8'), (lambda: NCELoss(5, 0), 'n_classes must be >= 1'),
        (lambda: NCELoss(5, C, 3, [1.,2.]), r'noise must have shape \(7,\)'), (lambda: NCELoss(5, C, 3, [0.]+[1.]*6), 'noise must be > 0'),
        (lambda: NCELoss(5, C, 3, 'zipf'), "noise must be 'uniform', 'log_uniform' or counts"), (lambda: NCELoss(5, C, 3, reduction='avg'), 'reduction must be'),
        (lambda: NCELoss(5, C, 3)(h, bad), 'target must be in 0..6'), (lambda: NCELoss(5, C, 3)(h[:,:2], y), r'linear_weight must have shape \(C, 2\)'),
        (lambda: NCELoss(5, C, 3)(h, y[:2]), 'target must have shape'), (lambda: AdaptiveSoftmaxLoss(3, C), 'n_features must be at least'),
        (lambda: AdaptiveSoftmaxLoss(16, C)(h, y), 'hidden must have shape'), (lambda: AdaptiveSoftmaxLoss(16, C)(torch.randn(4, 16), bad), 'target must be in 0..6'),
        (lambda: negative_sampling_loss(h, W, y, torch.tensor([9])), 'samples must be in 0..6, got 9'),
        (lambda: nce_loss(h, W, y, torch.tensor([1]), torch.zeros(3)), r'log_noise must have shape \(7,\)'),
        (lambda: negative_sampling_loss(h, W[:,:4], y, torch.tensor([1])), 'linear_weight must have shape')):
        with pytest.raises(ValueError, match=what): f()
    with pytest.raises(TypeError, match='target must be integer'): NCELoss(5, C, 3)(h, torch.rand(4, C))
    with pytest.raises(TypeError, match='n_samples must be an integer'): NCELoss(5, C, 2.5)
