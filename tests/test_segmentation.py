"What the chapter on segmentation promises, on random and extreme input"
import math, os, pickle, pytest, torch, torch.nn.functional as F
from copy import deepcopy
from torch import tensor
from lossbook.check import CHECKS, Case, run_check
from lossbook.core import check_batch
from lossbook.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from lossbook.segmentation import *

# inductor compiles for seconds where aot_eager traces the same graph in a tenth of one
BACKEND = 'inductor' if os.environ.get('LOSSBOOK_FULL') else 'aot_eager'
CLASS = DiceLoss,JaccardLoss,TverskyLoss,FocalTverskyLoss,LovaszLoss
BINARY = BinaryDiceLoss,BinaryJaccardLoss,BinaryTverskyLoss,BinaryFocalTverskyLoss,BinaryLovaszLoss
def same(a, b, atol=None, rtol=None): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=rtol)
def close(a, b): same(a, b, 1e-11, 1e-9)
def grad(v, x): return torch.autograd.grad(v.sum(), x)[0]

def scene(n=3, C=3, size=(4,5), dtype=torch.double, seed=0):
    "Scores and indices of images, in which the last class is absent from the first"
    torch.manual_seed(seed)
    x,y = torch.randn(n, C, *size, dtype=dtype)*2,torch.randint(C, (n,*size))
    if n: y[0] = y[0]%(C-1)
    return x.requires_grad_(),y

def masks(n=3, C=2, size=(4,5), dtype=torch.double):
    x,_ = scene(n, C, size, dtype)
    y = (torch.rand(n, C, *size)<.4).to(dtype)
    if n: y[0,0] = 0
    return x,y

# the formulas, pixel by pixel, in Python's numbers

def value_by_loop(cls, p, y, w, params):
    "The loss of one class from lists of probabilities (scores for the hinge), labels and weights"
    nr,dr = params.get('smooth_nr', 1.),params.get('smooth_dr', 1.)
    kind = cls.__name__.removeprefix('Binary').removesuffix('Loss')
    if kind=='Lovasz':
        err = [abs(b-a) if cls is LovaszLoss else max(0, 1-(2*b-1)*a) for a,b in zip(p, y)]
        order = sorted(range(len(p)), key=lambda i: -err[i])
        total,last,res = sum(a*b for a,b in zip(w, y)),0.,0.
        for k,i in enumerate(order):
            wrong = order[:k+1]
            W,fp = sum(w[j] for j in wrong),sum(w[j]*(1-y[j]) for j in wrong)
            now = W/(total+fp) if W else 0.
            res,last = res + err[i]*(now-last),now
        return res
    power = 2 if params.get('squared') else 1
    B = sum(c*a*b for a,b,c in zip(p, y, w))
    P,T = (sum(c*a**power for a,c in zip(o, w)) for o in (p, y))
    if kind=='Dice': return 1-(2*B+nr)/(P+T+dr)
    if kind=='Jaccard': return 1-(2*B+nr)/(2*(P+T-B)+dr)
    a,b = params.get('alpha', .3),params.get('beta', .7)
    t = 1-(B+nr)/(B+a*(P-B)+b*(T-B)+dr)
    return t if kind=='Tversky' else t**(1/params.get('gamma', 4/3))

def by_loop(cls, x, y, params, per_image=True, empty='keep', weight=None, w=None, images=None):
    "The mean over images, from scores and masks (N, C, P), weights of pixels (N, C, P) and of images"
    p = x if cls is BinaryLovaszLoss else x.sigmoid() if cls in BINARY else x.softmax(1)
    N,C,_ = p.shape
    w = torch.ones_like(p) if w is None else w
    images = [1.]*N if images is None else images
    weight = [1.]*C if weight is None else weight
    def lists(i, c):
        if per_image: return [o[i,c].tolist() for o in (p, y, w)]
        return [[a for o in t[:,c] for a in o.tolist()] for t in (p, y, w*tensor(images).reshape(-1,1,1))]
    res = []
    for i in range(N):
        vals = []
        for c in range(C):
            q,t,u = lists(i, c)
            there = sum(a*b for a,b in zip(t, u))>0
            if there or empty!='skip': vals.append((weight[c], value_by_loop(cls, q, t, u, params) if there or empty=='keep' else empty))
        norm = sum(a for a,_ in vals)
        if norm and w[i].any(): res.append((images[i], sum(a*b for a,b in vals)/norm))
    n = sum(a for a,_ in res)
    return sum(a*b for a,b in res)/n if n else 0.

PARAMS = dict(Dice=dict(smooth_nr=.3, smooth_dr=.7, squared=True), Jaccard=dict(smooth_nr=.2, smooth_dr=2., squared=True),
    Tversky=dict(alpha=.6, beta=.1, smooth_nr=.5, smooth_dr=2.), FocalTversky=dict(alpha=.6, beta=1., gamma=2.5, smooth_dr=3.), Lovasz={})
def params_of(cls): return PARAMS[cls.__name__.removeprefix('Binary').removesuffix('Loss')]
HOW = dict(plain={}, batch=dict(per_image=False), skip=dict(empty='skip'), number=dict(empty=.25), weights=dict(weight=[1.,.5,3.]),
    all=dict(per_image=False, empty='skip', weight=[1.,0.,3.]))

@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('own', [False,True])
@pytest.mark.parametrize('cls', CLASS+BINARY)
def test_against_loops(cls, own, how):
    kw,params = HOW[how],params_of(cls) if own else {}
    if cls in BINARY:
        x,t = masks(C=3)
        y = t
    else:
        x,t = scene()
        y = F.one_hot(t, 3).movedim(-1, 1)
    f = cls(**params, **kw)
    def loop(**more): return by_loop(cls, x.flatten(2), y.flatten(2).double(), params, **kw, **more)
    close(f(x, t), loop())
    images = [1.,0.,2.5]
    close(f(x, t, tensor(images)), loop(images=images))
    torch.manual_seed(1)
    w = torch.rand(t.shape).double()*(torch.rand(t.shape)<.7)
    w[1] = 0
    close(f(x, t, w), loop(w=(w if cls in BINARY else w[:,None].expand_as(x)).flatten(2)))

@pytest.mark.parametrize('cls', CLASS)
def test_forms_of_target(cls):
    x,y = scene()
    rows = F.one_hot(y, 3).movedim(-1, 1).double()
    for kw in HOW.values():
        for r in ('mean','sum','none'):
            f = cls(reduction=r, **kw)
            a,b = f(x, y),f(x, rows)
            close(a, b)
            close(grad(a, x), grad(b, x))
    last = cls(axis=-1)
    close(last(x.movedim(1, -1), y), cls()(x, y))
    close(last(x.movedim(1, -1), rows.movedim(1, -1)), cls()(x, y))
    middle = cls(axis=2)
    close(middle(x.movedim(1, 2), y), cls()(x, y))

@pytest.mark.parametrize('cls', CLASS+BINARY)
@pytest.mark.parametrize('kw', HOW.values(), ids=HOW)
def test_left_out(cls, kw):
    "Pixels and images that are left out are as if they were not there, whatever stands in them"
    skip = -1 if cls in BINARY else 9
    x,y = masks(C=3) if cls in BINARY else scene()
    f = cls(ignore_index=skip, **kw)
    want = f(x[:,:,:,1:], y[...,1:])
    g = grad(want, x)
    bad,t = x.detach().clone(),y.clone()
    bad[:,:,:,0],t[...,0] = math.nan,skip
    bad.requires_grad_()
    got = f(bad, t)
    close(got, want)
    close(grad(got, bad), g)
    mask = torch.ones(t.shape, dtype=torch.bool)
    mask[...,0] = False
    if y.is_floating_point(): t[...,0] = math.nan
    for w in (mask, mask.double()):
        got = f(bad, t, w)
        close(got, want)
        close(grad(got, bad), g)
    # an image
    want = f(x[[0,2]], y[[0,2]])
    bad,t = x.detach().clone(),y.clone()
    bad[1],t[1] = math.nan,skip
    bad.requires_grad_()
    for v in (f(bad, t), f(bad, t, tensor([1.,0.,1.]))):
        close(v, want)
        g = grad(v, bad)
        assert not g[1].any() and g.isfinite().all()
    assert f.reduced('none', bad, t)[1]==0 and f.reduced('none', bad, t).shape==(3,)

@pytest.mark.parametrize('cls', CLASS+BINARY)
@pytest.mark.parametrize('per_image', [True,False])
def test_nothing(cls, per_image):
    f = cls(per_image=per_image)
    make = masks if cls in BINARY else scene
    for n,size in ((0,(4,5)), (2,(0,5)), (0,())):
        x,y = make(n, 2, size)
        for r in ('mean','sum'):
            v = f.reduced(r, x, y)
            assert v==0 and grad(v, x).shape==x.shape
        assert f.reduced('none', x, y).shape==(n,)
    x,y = make()
    v = f(x, y, torch.zeros(3))
    assert v==0 and not grad(v, x).any()
    v = cls(per_image=per_image, weight=[0.]*x.shape[1])(x, y)
    assert v==0 and not grad(v, x).any()

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float, torch.double])
@pytest.mark.parametrize('cls', CLASS+BINARY)
def test_extremes(cls, dtype):
    "Finite value and gradient on large scores, right and wrong, with smooth 1 and 0"
    x,y = masks(dtype=torch.float) if cls in BINARY else scene(dtype=torch.float)
    up = 2*y-1 if cls in BINARY else 2*F.one_hot(y, 3).movedim(-1, 1)-1
    zero = {} if 'Lovasz' in cls.__name__ else dict(smooth_nr=0., smooth_dr=0.)
    for kw in ({}, zero, dict(per_image=False), dict(empty='skip')):
        f = cls(**kw)
        for big in (1e2, 3e4):
            for s in (big, -big):
                z = (s*up).to(dtype).requires_grad_()
                v = f(z, y)
                assert v.isfinite() and grad(v, z).isfinite().all()
                if s>0 and kw!=zero: assert v<=1e-8
    # more pixels than float16 can count
    z,t = torch.zeros(1, 2, 300, 300, dtype=dtype, requires_grad=True),torch.zeros(1, 300, 300).long()
    t = torch.stack([t, t], 1).to(dtype) if cls in BINARY else t
    v = cls()(z, t)
    assert v.isfinite() and grad(v, z).isfinite().all()

@pytest.mark.parametrize('kw', HOW.values(), ids=HOW)
@pytest.mark.parametrize('cls', CLASS+BINARY)
def test_derivatives(cls, kw):
    "First and second, of the scores; the Lovász extension has kinks, but not here"
    x,y = masks(2, 3, (2,3)) if cls in BINARY else scene(2, 3, (2,3))
    f = cls(**params_of(cls), **kw)
    assert torch.autograd.gradcheck(lambda x: f(x, y), x)
    assert torch.autograd.gradgradcheck(lambda x: f(x, y)+x.square().sum(), x)
    assert torch.autograd.gradcheck(lambda x: f.reduced('none', x, y), x)

@pytest.mark.parametrize('cls', CLASS+BINARY)
@pytest.mark.parametrize('per_image', [True,False])
def test_learned_weights(cls, per_image):
    x,y = masks() if cls in BINARY else scene()
    f = cls(per_image=per_image)
    for w in (torch.rand(3).double()+.1, torch.rand(y.shape).double()+.1):
        w.requires_grad_()
        assert torch.autograd.gradcheck(lambda w: f(x.detach(), y, w), w)

# checks on images, where the contract tests have one pixel

@pytest.mark.parametrize('check', [k for k,f in CHECKS.items() if f.group in ('values','numerics','engineering') and k not in ('recompiles','bad_shape')])
@pytest.mark.parametrize('loss', [o() for o in CLASS+BINARY]+[DiceLoss(per_image=False), LovaszLoss(empty='skip', weight=[1.,2.,5.]),
    BinaryTverskyLoss(per_image=False, empty='skip'), BinaryDiceLoss(axis=None)], ids=lambda o: type(o).__name__)
def test_checks_on_images(loss, check):
    def example(n):
        x,y = scene(n, 3, (2,3), torch.float) if isinstance(loss, CLASS) else masks(n, 2, (2,3), torch.float)
        if isinstance(loss, BINARY) and loss.axis is None: x,y = x[:,1],y[:,1]
        return x.detach(),y
    res = run_check(CHECKS[check], Case(loss, example))
    assert res.status!='failed', f'{res.reason} [{res.example}]'

@pytest.mark.parametrize('cls', [DiceLoss, BinaryFocalTverskyLoss])
def test_compiled_for_other_numbers(cls):
    "One graph for many values of the parameters, on images"
    x,y = masks(dtype=torch.float) if cls in BINARY else scene(dtype=torch.float)
    def call(loss, x, y): return loss(x, y)
    f = torch.compile(call, fullgraph=True, backend='aot_eager', dynamic=True)
    names = [k for k,v in cls().params().items() if isinstance(v, float) and k!='thresh']
    try:
        for s in (1., .5, 1.5):
            loss = cls(**{k: s*v for k,v in cls().params().items() if k in names})
            v,w = f(loss, x, y),loss(x, y)
            same(v, w)
            same(grad(v, x), grad(w, x))
    finally: torch.compiler.reset()

@pytest.mark.parametrize('loss', [DiceLoss(), LovaszLoss(), BinaryLovaszLoss(ignore_index=-1)], ids=lambda o: type(o).__name__)
def test_compiled(loss):
    x,y = scene(dtype=torch.float) if isinstance(loss, CLASS) else masks(dtype=torch.float)
    f = torch.compile(loss, fullgraph=True, backend=BACKEND)
    try:
        v,w = f(x, y),loss(x, y)
        same(v, w)
        same(grad(v, x), grad(w, x))
    finally: torch.compiler.reset()

# what the page says

def test_relations():
    x,y = scene()
    for kw in HOW.values():
        how = dict(reduction='none', classes=[1], **{k: v for k,v in kw.items() if k!='weight'})
        for s in (0., .4, 1.):
            d,j = DiceLoss(s, s, **how)(x, y),JaccardLoss(s, s, **how)(x, y)
            if kw.get('empty')!=.25: close(j, 2*d/(1+d))
            close(TverskyLoss(.5, .5, s/2, s/2, **how)(x, y), d)
            close(TverskyLoss(1., 1., s/2, s/2, **how)(x, y), j)
            close(FocalTverskyLoss(.5, .5, 1., s/2, s/2, **how)(x, y), d)
    close(BinaryDiceLoss(axis=None)(x[:,1]-x[:,0], (y==1).double()), DiceLoss(classes=[1])(x[:,:2], (y==1).long()))
    a,b = BinaryDiceLoss(axis=None)(x[:,1], (y==1)),BinaryDiceLoss()(x[:,1:2], (y==1)[:,None])
    close(a, b)
    close(BinaryDiceLoss(axis=-1)(x.movedim(1, -1), F.one_hot(y, 3)), BinaryDiceLoss()(x, F.one_hot(y, 3).movedim(-1, 1)))

@pytest.mark.parametrize('loss', [LovaszLoss(), BinaryLovaszLoss()])
def test_lovasz_is_the_jaccard_loss_of_hard_masks(loss):
    "On all pairs of masks of five pixels"
    from itertools import product
    bits = tensor([*product([0.,1.], repeat=5)]).double()
    p,y = bits.repeat_interleave(32, 0),bits.repeat(32, 1)
    both,either = (p*y).sum(1),((p+y)>0).sum(1)
    want = torch.where(either==0, 0., 1-both/either.clamp(min=1))
    if isinstance(loss, LovaszLoss):
        x = 400*torch.stack([1-p, p], 1)
        got = LovaszLoss(classes=[1], reduction='none')(x, y.long())
    else: got = BinaryLovaszLoss(axis=None, reduction='none')(2*p-1, y)/2 # a hinge of 2 where wrong
    close(got, want)

def test_steps_keep_their_digits():
    "Of 2**18 pixels, and of fractional weights"
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(2**18, generator=g)<.1).float()
    w = torch.rand(2**18, generator=g)
    from lossbook.segmentation import steps
    for o in (torch.ones_like(w), w):
        a,b = steps(y, o).double(),steps(y.double(), o.double())
        assert ((a-b).abs()<=2e-3*b.abs()+1e-11).all()

def test_soft_labels():
    y = torch.full((1,1,6,6), .3).double()
    for cls in (BinaryDiceLoss, BinaryJaccardLoss):
        z = y.logit().requires_grad_()
        v = cls(squared=True)(z, y)
        assert v<1e-12 and grad(v, z).abs().max()<1e-9
        assert cls()(z, y)>cls()(z+5, y) # the plain loss wants it all
    z = y.logit().requires_grad_()
    assert LovaszLoss(classes=[1])(torch.cat([-z, z], 1)/2, torch.cat([1-y, y], 1))<1e-7

def test_no_gradient_for_the_lost():
    x = torch.full((1,1,8,8), -20., requires_grad=True)
    y = torch.zeros(1,1,8,8)
    y[...,:2,:2] = 1
    assert grad(BinaryDiceLoss()(x, y), x).abs().max()<1e-8<1e-3<grad(BCEWithLogitsLoss()(x, y), x).abs().max()

def test_sums():
    x,y = scene()
    s = 2*DiceLoss(weight=[1.,2.,5.])+CrossEntropyLoss(ignore_index=2)
    close(s(x, y), 2*s.losses[0](x, y)+s.losses[1](x, y))
    ce,n = s.losses[1].reduced('none', x, y).flatten(1).sum(1),(y!=2).flatten(1).sum(1)
    close(s.reduced('none', x, y), 2*s.losses[0].reduced('none', x, y)+ce/n)
    b = BinaryDiceLoss()+.5*BCEWithLogitsLoss()
    assert not b.y_int and b.parts=={}
    for o in (pickle.loads(pickle.dumps(s)), deepcopy(s)): close(o(x, y), s(x, y))

def test_copies():
    for cls in CLASS+BINARY:
        f = cls(**params_of(cls), classes=[0,2], weight=[1.,2.,3.])
        x,y = masks(C=3) if cls in BINARY else scene()
        g = pickle.loads(pickle.dumps(f))
        close(g(x, y), f(x, y))
        assert repr(g)==repr(f) and 'classes=[0, 2]' in repr(f)
        assert f.double().weight.dtype==torch.double and deepcopy(f).to('meta').weight.is_meta
    assert DiceLoss(classes=[7]).example(2)[0].shape==(2,8) # so that it can be made

# peers

CASES = [(torch.randn(2,4,9,8, generator=torch.Generator().manual_seed(i)).double(),
    torch.randint(4, (2,9,8), generator=torch.Generator().manual_seed(i))) for i in range(3)]

def both(f, g, x, y):
    x = x.clone().requires_grad_()
    a,b = f(x),g(x)
    same(a, b, 1e-6, 1e-6)
    same(grad(a, x), grad(b, x), 1e-6, 1e-5)

@pytest.mark.parametrize('x,y', CASES)
@pytest.mark.parametrize('squared', [False,True])
@pytest.mark.parametrize('batch', [False,True])
def test_monai(x, y, squared, batch):
    m = pytest.importorskip('monai.losses')
    s,w = 1e-5,tensor([1.,2.,5.])
    how,mine = dict(softmax=True, to_onehot_y=True, batch=batch),dict(squared=squared, per_image=not batch)
    t = y[:,None]
    both(lambda x: DiceLoss(s, s, **mine)(x, y), lambda x: m.DiceLoss(**how, squared_pred=squared)(x, t), x, y)
    both(lambda x: DiceLoss(s, s, classes=[1,2,3], **mine)(x, y), lambda x: m.DiceLoss(**how, squared_pred=squared, include_background=False)(x, t), x, y)
    both(lambda x: JaccardLoss(s, s, **mine)(x, y), lambda x: m.DiceLoss(**how, squared_pred=squared, jaccard=True)(x, t), x, y)
    both(lambda x: TverskyLoss(.2, .9, s, s, per_image=not batch)(x, y), lambda x: m.TverskyLoss(alpha=.2, beta=.9, **how)(x, t), x, y)
    # it multiplies by the weights and divides by the number of classes
    theirs = m.DiceLoss(**how, squared_pred=squared, include_background=False, weight=w)
    both(lambda x: DiceLoss(s, s, weight=[0.,*w], **mine)(x, y)*w.mean(), lambda x: theirs(x, t), x, y)
    z,hot = x,F.one_hot(y, 4).movedim(-1, 1).double()
    both(lambda x: BinaryDiceLoss(s, s, **mine)(x, hot), lambda x: m.DiceLoss(sigmoid=True, squared_pred=squared, batch=batch)(x, hot), z, y)

@pytest.mark.parametrize('x,y', CASES)
def test_kornia(x, y):
    k = pytest.importorskip('kornia.losses')
    both(lambda x: DiceLoss(0., 1e-8, empty='skip')(x, y), lambda x: k.dice_loss(x, y, 'macro'), x, y)
    both(lambda x: LovaszLoss()(x, y), lambda x: k.lovasz_softmax_loss(x, y), x, y)
    hot = (y>1).long()
    both(lambda x: BinaryLovaszLoss(axis=None)(x[:,0], hot), lambda x: k.lovasz_hinge_loss(x[:,:1], hot), x, y)

# refusals

X,Y = torch.randn(2,3,4,4),torch.randint(3, (2,4,4))
M = torch.zeros(2,3,4,4)
@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'target must have shape (2, 4, 4) (class indices)', lambda: DiceLoss()(X, Y[:,0])),
    (ValueError, 'target must have the shape of logits, (2, 3, 4, 4), got (2, 4, 4)', lambda: BinaryDiceLoss()(X, Y)),
    (ValueError, 'logits must have shape (N, C, *), got (2,)', lambda: DiceLoss()(X[:,0,0,0], Y[:,0,0])),
    (ValueError, 'logits must have shape (N, C, *), got (2,)', lambda: BinaryDiceLoss()(X[:,0,0,0], M[:,0,0,0])),
    (ValueError, 'axis must name the classes', lambda: BinaryDiceLoss(axis=4)(X, M)),
    (ValueError, "empty must be 'keep', 'skip' or a number >= 0, got 'ignore'", lambda: LovaszLoss(empty='ignore')),
    (ValueError, 'empty must be >= 0, got -1', lambda: DiceLoss(empty=-1)),
    (TypeError, 'empty must be a number, got None', lambda: DiceLoss(empty=None)),
    (ValueError, 'smooth_nr must be >= 0, got -1', lambda: DiceLoss(-1)),
    (ValueError, 'smooth_dr must be >= 0, got -1', lambda: BinaryTverskyLoss(smooth_dr=-1)),
    (ValueError, 'alpha must be >= 0, got -1', lambda: TverskyLoss(-1)),
    (ValueError, 'beta must be finite, got inf', lambda: TverskyLoss(beta=math.inf)),
    (ValueError, 'gamma must be > 0, got 0', lambda: BinaryFocalTverskyLoss(gamma=0)),
    (ValueError, 'classes must be in 0..2, got 3', lambda: DiceLoss(classes=[3])(X, Y)),
    (ValueError, 'classes must be in 0..2, got -1', lambda: DiceLoss(classes=[-1])),
    (TypeError, 'classes must be an integer, got 1.5', lambda: DiceLoss(classes=[1.5])),
    (ValueError, 'weight must have shape (3,), one per class, got (2,)', lambda: DiceLoss(weight=[1.,2.])(X, Y)),
    (ValueError, 'sample_weight must have shape (2,) or (2, 4, 4), got (4, 4)', lambda: DiceLoss()(X, Y, torch.ones(4,4))),
    (ValueError, 'target must be in [0, 1], got 255', lambda: BinaryDiceLoss()(X, M+255)),
    (ValueError, 'target must be in 0..2, or ignore_index=-100, got 255', lambda: DiceLoss()(X, Y*0+255)),
    (ValueError, 'target must sum to 1', lambda: check_batch(DiceLoss(), X, X.sigmoid())),
    (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'average'", lambda: LovaszLoss('average'))],
    ids=lambda o: o if isinstance(o, str) else '')
def test_refuses(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
