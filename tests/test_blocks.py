"The machinery of blocks: threads, modes, forks, means of many rows, what is left out"
import os, pytest, threading, torch, torch.nn.functional as F
from functools import partial
from lossbook.blocks import binary_loss, class_loss, run_blocks
from lossbook.core import assert_same, reduce

def squares(x, y): return ((x.softmax(1)-y)**2).sum(1)
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(1000,700, generator=g)*3,torch.randn(1000,700, generator=g).softmax(1)

@pytest.fixture
def two_threads():
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n)

def derived(x, y): return run_blocks(squares, x, [y], 1, False, True)
def right(res, ref): return all(torch.allclose(a, b, atol=1e-6) for a,b in zip(res, ref))

def test_modes(two_threads):
    "Modes belong to a thread, and the threads of the pool see those that matter"
    x,y = batch()
    xg = x.clone().requires_grad_()
    v = squares(xg, y)
    ref = v.detach(),torch.autograd.grad(v.sum(), xg)[0]
    assert right(derived(x, y), ref) and torch.get_num_threads()==2
    with torch.no_grad(): assert right(derived(x, y), ref)
    with torch.inference_mode():
        v,_ = run_blocks(squares, x, [y], 1, False)
        assert v.is_inference() and torch.allclose(v, ref[0])
    with torch.autocast('cpu', dtype=torch.bfloat16): assert right(derived(x, y), ref)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(1) or t, lambda t: t):
        assert right(derived(x, y), ref) and not seen
    assert len({run_blocks(squares, x, [y], 1, True, True)[0].item() for _ in range(10)})==1
    def bad(x, y): raise ValueError('from a block')
    with pytest.raises(ValueError, match='from a block'): run_blocks(bad, x, [y], 1, False, True)

def test_many_callers(two_threads):
    x,y = batch()
    ref,res = derived(x, y),[]
    ts = [threading.Thread(target=lambda: res.append(right(derived(x, y), ref))) for _ in range(8)]
    for o in ts: o.start()
    for o in ts: o.join()
    assert res==[True]*8 and torch.get_num_threads()==2

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i):
        x,y = batch()
        return derived(x, y)[0].sum()

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_forked_workers(two_threads):
    "A pool that exists before the fork does not hang the child"
    x,y = batch()
    want = derived(x, y)[0].sum()
    loader = torch.utils.data.DataLoader(Rows(), num_workers=2, timeout=60, multiprocessing_context='fork')
    for b in loader: assert_same(b[0], want, rtol=1e-5, atol=1e-3)

@pytest.mark.parametrize('kind', ('plain','weight','sample_weight','ignored'))
def test_means_of_many_rows(kind):
    "Five million rows in float32 against float64"
    n = 5_000_000
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(n,1, generator=g),(torch.rand(n,1, generator=g)<.3).float()
    kw = dict(plain={}, weight=dict(weight=[.7]), sample_weight=dict(sample_weight=torch.rand(n, generator=g)),
        ignored=dict(ignore_index=1.))[kind]
    def value(x, y): return F.binary_cross_entropy_with_logits(x, y, reduction='none')
    v = binary_loss(x, y, value, **kw)
    want = binary_loss(x.double(), y.double(), value, **kw)
    assert_same(v.double(), want, rtol=2e-6, atol=0.)
    two = torch.cat([x, -x], 1)
    kw = dict(plain={}, weight=dict(weight=[.7,.1]), sample_weight=kw, ignored=dict(ignore_index=1))[kind]
    t = y[:,0].long()
    assert_same(class_loss(two, t, **kw).double(), class_loss(two.double(), t, **kw), rtol=2e-6, atol=0.)
    if kind=='weight': # the same weights for all columns, expanded
        cols,w = torch.randn(n//5, 5, generator=g),[.1,.2,.3,.4,.5]
        assert_same(binary_loss(cols, cols.sigmoid(), value, weight=w).double(),
            binary_loss(cols.double(), cols.sigmoid().double(), value, weight=w), rtol=2e-6, atol=0.)

def test_a_mean_over_no_weight_is_zero():
    x,y = torch.randn(1000,3, requires_grad=True),torch.zeros(1000).long()
    v = class_loss(x, y, weight=[0.,1.,1.], label_smoothing=.1)
    assert_same(v, 0.)
    assert_same(torch.autograd.grad(v, x)[0], torch.zeros_like(x))

def gce(nll, q): return -torch.expm1(-q*nll)/q

@pytest.mark.parametrize('soft', (False,True))
@pytest.mark.parametrize('size', (4,3000))
def test_left_out(size, soft):
    "A NaN in what is left out reaches neither value nor gradient; a learned weight gets its example's loss"
    torch.manual_seed(0)
    x,y = torch.randn(size,6),torch.randint(6, (size,))
    if soft: y = F.one_hot(y, 6).float()
    w = torch.ones(size)
    x[1],w[1] = torch.nan,0.
    for f in (partial(class_loss, value=partial(gce, q=.7)), class_loss,
        lambda x,y,**kw: binary_loss(x, y if soft else F.one_hot(y, 6), lambda x,y: (x.sigmoid()-y)**2, **kw)):
        xg = x.clone().requires_grad_()
        v = f(xg, y, sample_weight=w)
        g, = torch.autograd.grad(v, xg)
        assert v.isfinite() and g.isfinite().all() and (g[1]==0).all() and (g[0]!=0).any()
        clean = x.nan_to_num(.3)
        lw = w.clone().requires_grad_()
        gw, = torch.autograd.grad(f(clean, y, reduction='sum', sample_weight=lw), lw)
        each = f(clean, y, reduction='none')
        assert_same(gw, each if each.ndim==1 else each.sum(1), rtol=1e-5, atol=1e-6)

def test_expanded_norm():
    "A norm that is expanded is added up as exactly as any other"
    loss,w = torch.rand(1_000_000, 5),torch.tensor([.1,.2,.3,.4,.5])
    got = reduce(loss*w, norm=w.expand_as(loss))
    assert_same(got.double(), (loss.double()*w.double()).sum()/w.double().sum()/len(loss), rtol=1e-6, atol=0.)

def test_closures_are_seen():
    "A tensor that a value closes over gets its gradient, in large input too"
    x,y = torch.randn(3000,6),torch.randn(3000,6).softmax(1)
    q = torch.tensor(.7, requires_grad=True)
    for f in (lambda nll: gce(nll, q), partial(gce, q=q)):
        g, = torch.autograd.grad(class_loss(x.requires_grad_(), y, f), q)
        assert g!=0

@pytest.mark.parametrize('shape,axis', [((4,3),1), ((4,3,2,5),1), ((4,2,3),-1)])
def test_index_with_an_axis_of_one(shape, axis):
    "Integers with a 1 where the scores have their classes are the indices that they look like"
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(x[...,0].numel() if axis==-1 else x[:,0].numel()).remainder(3).reshape(x.select(axis, 0).shape)
    y[0] = -100
    assert_same(class_loss(x, y.unsqueeze(axis), axis=axis), class_loss(x, y, axis=axis))
    assert class_loss(x, y.unsqueeze(axis), axis=axis, reduction='none').shape==y.shape
    with pytest.raises(TypeError, match='to be a distribution'):
        class_loss(x.narrow(axis, 0, 1), 0*y.unsqueeze(axis), axis=axis)
    with pytest.raises(ValueError, match='target must have shape'): class_loss(x, y.unsqueeze(axis).float(), axis=axis)
    with pytest.raises(TypeError, match='target must be integer or floating point'): class_loss(x, y.unsqueeze(axis)==1, axis=axis)
