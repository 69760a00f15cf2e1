"""Every loss on a device that is none: values and gradients of the CPU, no wait, and no float64.

PyTorch keeps a backend for the rest of a process, so what is done here is done in one of its own: a
test hands over a function, and the process gives back what did not hold."""
import pytest, sys, torch, torch.nn.functional as F
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from fnmatch import fnmatch
from multiprocessing import get_context
from accelerator import NAME, Pretend, register, watched
from lossbook.contrastive import barlow_twins, vicreg
from lossbook.core import ClassLoss, check_batch
from lossbook.focal import OHEM
from lossbook.many_classes import AdaptiveSoftmaxLoss, LinearLoss, NCELoss
from lossbook.many_classes import NegativeSamplingLoss, SampledSoftmaxLoss
from reference import REFERENCES
from uses import SOME, kind_of, losses, n_preds, uses

LOSSES = losses()

NO_LOOK = 'the derivative leaves no class out, and a device is not asked whether one is'
NOISE = 'the probabilities of the noise are counted in float64'
LOOKS = "PyTorch's layer looks for the rows of a cluster"
CAST = 'autocast is turned off for the CPU and for CUDA alone'
DOUBLE = 'values are looked at in float64'
LOOKED_AT_DOUBLE = '''TopKDistillationLoss* MSELoss L1Loss HuberLoss* SmoothL1Loss* LogCoshLoss
    CharbonnierLoss* BarronLoss* AdaptiveBarronLoss* QuantileLoss* ExpectileLoss*
    GaussianNLLLoss* BetaNLLLoss* PoissonNLLLoss* NegativeBinomialNLLLoss*'''.split()

def sums_all(name):
    "Does the derivative of a loss take the logarithms of all classes?"
    ends = getattr(LOSSES[name], 'active', None) in ('ce','nce')
    return ends or name.startswith('NormalizedCrossEntropy')
def takes_rows(name):
    "May a target be a distribution, of which the sum is looked at?"
    return kind_of(LOSSES[name]) in ('classes','teacher','span') and 'soft' in uses(LOSSES[name])

# what does not hold yet: (test, loss, use, what is wrong, why). What holds has to leave the list
KNOWN = [
    *((test, name, 'ruled_out*', 'value', NO_LOOK) for test in ('uses','autocast')
        for name in LOSSES if sums_all(name)),
    ('sampled', 'AdaptiveSoftmaxLoss', '*', 'nonzero', LOOKS),
    ('sampled', 'NCELoss', '*training', 'float64', NOISE),
    ('sampled', 'SampledSoftmaxLoss', '*training', 'float64', NOISE),
    ('sampled', 'NegativeSamplingLoss', '*evaluation', 'float64', NOISE),
    ('others', 'autocast', 'barlow_twins', 'value', CAST),
    ('others', 'autocast', 'vicreg', 'value', CAST),
    *(('check_batch', name, '*', 'float64', DOUBLE) for name in LOOKED_AT_DOUBLE),
    *(('check_batch', name, 'soft', 'float64', DOUBLE) for name in LOSSES if takes_rows(name))]

@pytest.fixture(scope='module')
def away():
    "A process that has the device, in which a function is called"
    with ProcessPoolExecutor(1, get_context('spawn'), start) as pool:
        yield lambda f, *args: pool.submit(f, *args).result()

def report(test, name, bad):
    "Raise unless what fails is what is known to fail"
    known = {o[2:4] for o in KNOWN if o[0]==test and (name==o[1] or fnmatch(name, o[1]))}
    def is_known(k, use, wrong, text): return fnmatch(k, use) and wrong in text
    new = [f'{k}: {v}' for k,v in bad.items() if not any(is_known(k, *o, v) for o in known)]
    old = [o for o in known if not any(is_known(k, *o, v) for k,v in bad.items())]
    assert not new, '\n'.join(new)
    assert not old, f'holds now, so it has to leave the list: {old}'

# ---- in the other process

def start():
    register()
    # with fastai's MixUp there, a loss gives its values a class of their own, which those of this
    # device have already
    sys.modules.pop('fastai.callback.mixup', None)

def moved(o, device, learned=None):
    "A copy on a device; float64 becomes float32, what is learned is put on the list"
    if isinstance(o, (tuple,list)): return tuple(moved(p, device, learned) for p in o)
    if not isinstance(o, torch.Tensor): return o
    res = o.detach().float() if o.is_floating_point() else o.detach()
    res = res.to(device) if device else res.clone()
    if learned is None and not o.requires_grad or not o.is_floating_point(): return res
    res.requires_grad_()
    if learned is not None: learned.append(res)
    return res

def back(o): return o.held if isinstance(o, Pretend) else o

def result(f, args, kwargs, n, device, around=nullcontext):
    "The value of a loss and its gradients, and the log of the device"
    learned = []
    ins = [moved(o, device, learned if i<n else None) for i,o in enumerate(args)]
    more = {k: moved(o, device) for k,o in kwargs.items()}
    learned += [o for o in (*ins[n:],*more.values()) if isinstance(o,
        torch.Tensor) and o.requires_grad]
    if isinstance(f, torch.nn.Module): learned += [o for o in f.parameters() if o.requires_grad]
    with watched() as log:
        with around(): v = f(*ins, **more)
        grads = torch.autograd.grad(v.sum(), learned, allow_unused=True,
            materialize_grads=True) if v.requires_grad else []
    return back(v.detach()),[back(o) for o in grads],log

def differs(f, g, args, kwargs, n, around=nullcontext, here=nullcontext, tol=2e-5):
    "What a loss `g` on the device does that `f` on the CPU does not, in words; '' if nothing"
    (v,a,_),(w,b,log) = result(f, args, kwargs, n, None, here),result(g, args, kwargs, n, NAME,
        around)
    text = [f'waits: {o}' for o in log.waits]+[f'float64: {o}' for o in log.doubles]
    for what,p,q in (('value',w,v), *(('gradient',p,q) for p,q in zip(b, a, strict=True))):
        size = q[q.isfinite()].abs().max().clamp(min=1).item() if q.isfinite().any() else 1.
        try: torch.testing.assert_close(p, q, rtol=tol, atol=tol*size, equal_nan=True)
        except AssertionError as e: text.append(f'{what}: {e}')
    return '; '.join(text)

def failures(cases):
    "What does not hold of {key: function}"
    bad = {}
    for k,f in cases.items():
        try: text = f()
        except Exception as e: text = f'{type(e).__name__}: {e}'
        if text: bad[k] = text[:600]
    return bad

def lower(): return torch.autocast(NAME, dtype=torch.bfloat16)
def lower_here(): return torch.autocast('cpu', dtype=torch.bfloat16)
# a layer is a product, which autocast rounds on both
def rounded(autocast): return dict(around=lower, here=lower_here, tol=2e-2) if autocast else {}

FEW = '''soft ignored nan_soft everything everything_soft ruled_out labels views tuple floats each
    mask negatives_weighted'''.split()
def holds_uses(name, autocast):
    def case(loss, args, kwargs, r):
        def f():
            here = loss.with_params().float()
            there = here.with_params().float().to(NAME)
            here.reduction = there.reduction = r
            return differs(here, there, args, kwargs, n_preds(loss),
                lower if autocast else nullcontext)
        return f
    own = name==type(LOSSES[name]).__name__
    return failures({f'{k} {r}': case(*use,
        r) for k,use in uses(LOSSES[name]).items() for r in ('mean','none')
        if (k in (SOME if own else FEW) or r=='mean' and own and not autocast) and (own
            or r=='mean')})

LOOKED_AT = 'indices soft ignored floats labels views tuple far var mask'.split()
def holds_check_batch(name):
    "It looks at values, and so waits; but it must not make what a device does not have"
    def case(loss, args):
        def f():
            there = loss.with_params().float().to(NAME)
            batch = [moved(o, NAME) for o in args]
            with watched() as log: check_batch(there, *batch)
            return '; '.join(f'float64: {o}' for o in log.doubles)
        return f
    return failures({k: case(o, args) for k,(o,args,kwargs) in uses(LOSSES[name]).items()
        if k in LOOKED_AT and not kwargs})

LAYERED = '''CrossEntropyLoss-weight FocalLoss NormalizedCrossEntropy SoftLabelCrossEntropy-alpha
    NLLLoss BCEWithLogitsLoss BinaryFocalLoss-weight MultiMarginLoss ActivePassiveLoss-weight
    BCELoss'''.split()
def layers(autocast):
    "LinearLoss around losses of all kinds"
    torch.manual_seed(0)
    h,W,b,w = torch.randn(7,5),torch.randn(3,5),torch.randn(3),torch.tensor([1.,0.,2.,0.,1.,3.,1.])
    y,q = torch.randint(3, (7,)),torch.randn(7,3).softmax(1)
    some,hot = torch.where(torch.arange(7)%3==0, -100, y),torch.randint(2, (7,3)).float()
    res = {}
    for name in LAYERED:
        targets = dict(indices=y, soft=q, ignored=some) if isinstance(LOSSES[name],
            ClassLoss) else dict(labels=hot)
        for k,t in targets.items():
            for r in ('mean','none'):
                for kw in ({},dict(sample_weight=w)):
                    res[f'{name} {k} {r}{" weighted" if kw else ""}'] = name,(h,W,b,t),kw,r,0.
        if isinstance(LOSSES[name], ClassLoss): res[f'{name} z-loss'] = name,(h,W,b,y),{},'mean',.1
    def case(name, args, kwargs, r, z):
        def f():
            here = LOSSES[name].with_params().float()
            pair = [LinearLoss(o, z, chunk_bytes=100,
                reduction=r) for o in (here,here.with_params().to(NAME))]
            calls = [lambda h,W,b,y,o=o,**kw: o(h, W, y, b, **kw) for o in pair]
            return differs(*calls, args, kwargs, 3, **rounded(autocast))
        return f
    return failures({k: case(*o) for k,o in res.items()})

def sampled(cls, autocast):
    "The losses that hold a layer: in training with the same noise, and in evaluation"
    torch.manual_seed(0)
    adaptive = cls is AdaptiveSoftmaxLoss
    here = cls(16, 20, [4,10], div_value=2.) if adaptive else cls(16, 20, 8)
    there = cls(16, 20, [4,10], div_value=2.) if adaptive else cls(16, 20, 8)
    there.load_state_dict(here.state_dict())
    there.to(NAME)
    y = torch.tensor([0,5,19,-100,7,3])
    cases = dict(indices=((torch.randn(6,16),y.clamp(min=0)),{}),
        ignored=((torch.randn(6,16),y),{}), sequence=((torch.randn(2,3,16),
            y.clamp(min=0).reshape(2,3)),{}),
        weighted=((torch.randn(6,16),y),dict(sample_weight=torch.tensor([1.,0.,2.,0.,1.,3.]))))
    def case(use, training):
        def f():
            here.train(training), there.train(training)
            if not adaptive and training:
                noise = torch.randint(20, (8,))
                here.draw,there.draw = lambda: noise,lambda: noise.to(NAME)
            return differs(here, there, *use, 1, **rounded(autocast))
        return f
    return failures({f'{k} {"training" if t else "evaluation"}': case(use,
        t) for k,use in cases.items() for t in (True,False)})

def draws(cls):
    "The noise is drawn on the device"
    torch.manual_seed(0)
    loss = cls(16, 20, 8).to(NAME)
    def f():
        with watched() as log: s = loss.draw()
        return '; '.join(log.waits+log.doubles) or ('' if s.device.type==NAME
            and int(s.held.max())<20 else f'got {s}')
    return failures(dict(draw=f))

def picks(autocast):
    "OHEM, sums of losses, and the losses of two views"
    torch.manual_seed(0)
    x,y,a,b = torch.randn(6,3),torch.randint(3, (6,)),torch.randn(8,4),torch.randn(8,4)
    def ohem(r): return OHEM(LOSSES['FocalLoss'].with_params(), .4, reduction=r)
    def both():
        return LOSSES['CrossEntropyLoss-weight'].with_params()+2*LOSSES['FocalLoss'].with_params()
    how = lower if autocast else nullcontext
    cases = {f'OHEM {r}': (lambda r=r: differs(ohem(r), ohem(r).to(NAME), (x,y), {}, 1,
        how)) for r in ('mean','none')}
    cases['sum'] = lambda: differs(both(), both().to(NAME), (x,y), {}, 1, how)
    for f in (barlow_twins,vicreg): cases[f.__name__] = lambda f=f: differs(f, f, (a,b), {}, 2, how)
    return failures(cases)

def device_itself(what):
    "What the device finds is found"
    x,y = torch.randn(4,3).to(NAME),torch.tensor([0,1,2,0]).to(NAME)
    def put(o, i, v): return o.clone().index_put_((i,), v)
    waits = dict(item=lambda: x.sum().item(), bool=lambda: bool((x>0).all()),
        nonzero=lambda: x.nonzero(), where=lambda: torch.where(x>0), mask=lambda: x[y>0],
        copy=lambda: x.cpu(), equal=lambda: torch.equal(x, x), put=lambda: put(x, y>0, x[0]),
        select=lambda: x.masked_select(x>0), one_hot=lambda: F.one_hot(y),
        repeat=lambda: y.repeat_interleave(y))
    double = dict(dtype=torch.double)
    doubles = dict(to=lambda: x.double(), new=lambda: x.new_ones(3, **double),
        zeros=lambda: torch.zeros(3, device=NAME, **double))
    free = dict(views=lambda: x.t()[1:].unsqueeze(0).expand(2,2,4), half=lambda: x.half()+1,
        arange=lambda: torch.arange(3., device=NAME), eye=lambda: torch.eye(3, device=NAME),
        index=lambda: x[y], number=lambda: x+torch.tensor(1.), put=lambda: put(x, y, x),
        tensor=lambda: torch.tensor([1.,2.], device=NAME)+x[0,:2])
    for k,f in dict(waits=waits, doubles=doubles, free=free)[what].items():
        with watched() as log: f()
        found = dict(waits=bool(log.waits), doubles=bool(log.doubles))
        assert found=={o: o==what for o in found}, (k,log.waits,log.doubles)

def refuses():
    x = torch.randn(4,3).to(NAME)
    for f in (lambda: x+torch.randn(4,3), lambda: x@torch.randn(3,2),
        lambda: x[torch.tensor([0,1])], lambda: torch.where(x>0, x, torch.zeros(3))):
        try: f()
        except RuntimeError as e: assert 'expected all tensors to be on' in str(e)
        else: raise AssertionError('an operand on the CPU was taken')

def counts():
    "Kernels, and bytes as multiples of the logits"
    x,y = torch.randn(64,100).to(NAME).requires_grad_(),torch.randint(100, (64,)).to(NAME)
    with watched() as log: F.cross_entropy(x, y).backward()
    assert log.kernels==5 and abs(log.bytes/(64*100*4)-8)<.2 and torch.is_tensor(x.grad.held)
    with watched() as log: x.detach().t().view(100, 64, 1).expand(100, 64, 2)
    assert not log.ops
    with watched() as log: x.detach().exp().mul_(2)
    assert log.kernels==2 and log.bytes==4*64*100*4
    with torch.autocast(NAME, dtype=torch.bfloat16):
        assert (x@x.T).dtype==torch.bfloat16 and x.bfloat16().sum(1).dtype==torch.float

# ---- tests

@pytest.mark.parametrize('what', ['waits','doubles','free'])
def test_device_finds(what, away): away(device_itself, what)
def test_device_refuses_operands_on_the_cpu(away): away(refuses)
def test_device_counts(away): away(counts)
def test_device_is_elsewhere():
    with pytest.raises(RuntimeError): torch.zeros(1, device=NAME)

@pytest.mark.parametrize('name', LOSSES)
def test_uses(name, away): report('uses', name, away(holds_uses, name, False))
@pytest.mark.parametrize('name', [k for k in LOSSES if k in REFERENCES])
def test_autocast(name, away): report('autocast', name, away(holds_uses, name, True))
@pytest.mark.parametrize('name', LOSSES)
def test_check_batch(name, away): report('check_batch', name, away(holds_check_batch, name))
@pytest.mark.parametrize('autocast', [False,True], ids=['float32','autocast'])
def test_linear_loss(autocast, away): report('layers', 'LinearLoss', away(layers, autocast))
SAMPLED = NCELoss,NegativeSamplingLoss,SampledSoftmaxLoss
@pytest.mark.parametrize('autocast', [False,True], ids=['float32','autocast'])
@pytest.mark.parametrize('cls', [AdaptiveSoftmaxLoss,*SAMPLED])
def test_layers(cls, autocast, away): report('sampled', cls.__name__, away(sampled, cls, autocast))
@pytest.mark.parametrize('cls', SAMPLED)
def test_noise(cls, away): report('noise', cls.__name__, away(draws, cls))
@pytest.mark.parametrize('autocast', [False,True], ids=['float32','autocast'])
def test_other_losses(autocast, away): report('others', 'autocast' if autocast else 'float32',
    away(picks, autocast))
