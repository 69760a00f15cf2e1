"What the chapter on cross entropy promises, on random and extreme input"
import pickle, pytest, torch, torch.nn.functional as F, warnings
from copy import deepcopy
from fastcore.test import expect_fail
from functools import partial
from math import inf
from torch import nn
from lossbook.core import assert_same, check_batch
from lossbook.cross_entropy import *
from lossbook.cross_entropy import bce

logits = torch.tensor([[.8145, .0557], [.2166, .4648], [.0403, .8233], [.3373, .3691], [.7504, .2432]])
target = torch.tensor([1, 0, 1, 1, 0])
q = torch.tensor([[.9, .1], [.5, .5], [.2, .8], [1., 0.], [.3, .7]])
x3,y3 = torch.tensor([.5827, .7705, .4685]),torch.tensor([0., 1., 1.])
five,y5 = torch.tensor([.2316, .4442, .0177, .3277, .0546]),torch.tensor([1., 0., 1., 0., 0.])
scores = torch.tensor([[-.4089, -1.2471, .5907], [-.4897, -.8267, -.7349], [.5241, -.1246, -.4751]])
labels = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 1]])
far,zero,no_yes = torch.tensor([.58, -500.]),torch.zeros(2),torch.tensor([0., 1.])
w3 = torch.tensor([1., 2., 5.])
CLASSES = CrossEntropyLoss,NLLLoss,KLDivWithLogitsLoss
BINARY = BCEWithLogitsLoss,BCELoss,MultiLabelSoftMarginLoss
REDUCTIONS = 'mean','sum','none'

def near(actual, expected, atol=2e-4): assert_same(actual, expected, atol=atol) # four decimals, rounded twice
def grad(f, x): return torch.autograd.grad(f(x := x.clone().requires_grad_()).sum(), x)[0]
def alike(f, g, x, **tol):
    "Two functions agree in value and gradient"
    for a,b in zip((f(x), grad(f, x)), (g(x), grad(g, x))): assert_same(a, b, **tol)
def second(f, at): return torch.autograd.gradcheck(f, at) and torch.autograd.gradgradcheck(f, at)
def double():
    torch.manual_seed(0)
    y = torch.rand(6,3, dtype=torch.double)
    return torch.randn(6,3, dtype=torch.double)*3,y,torch.tensor([.5,0.,4.], dtype=torch.double)
def classes():
    "Two batches, flat and dense, with a position to ignore in each"
    torch.manual_seed(0)
    dense = torch.randint(3, (2,4,5))
    dense[0,0] = -100
    return (torch.randn(6,3),torch.tensor([0, 2, 1, 2, -100, 0])),(torch.randn(2,3,4,5),dense)

# the numbers of the page, and of its sources

def test_sigmoid():
    near(x3.sigmoid(), [.6417, .6836, .6150])
    near(grad(torch.sigmoid, x3), [.2299, .2163, .2368], 5e-5)
    near(F.logsigmoid(x3), [-.4436, -.3803, -.4861])
    assert_same(x3 - torch.log(1+x3.exp()), F.logsigmoid(x3))
    assert_same(grad(F.logsigmoid, x3), 1-x3.sigmoid())
    assert_same(grad(lambda x: F.logsigmoid(-x), x3), -x3.sigmoid())
    near(torch.sigmoid(far).log(), [-.4446, -inf])
    assert_same(torch.sigmoid(far)+torch.sigmoid(-far), torch.ones(2))
    assert_same((-far).clamp(min=0), [0., 500.])
    assert_same(far.clamp(min=0), [.58, 0.])
    near(F.logsigmoid(torch.tensor(0.)), -.6931, 5e-5)
    assert torch.sigmoid(torch.tensor(400.))==1 and torch.sigmoid(torch.tensor(-300.))==0
    assert F.logsigmoid(torch.tensor(-300.))==-300

def test_numbers_of_the_questions():
    near(torch.tensor([1.2/torch.tensor(2.).log(), torch.tensor(1.2).exp()]), [1.73, 3.32], 5e-3)
    assert torch.tensor(11.).half().exp().isfinite() and torch.tensor(11.5).half().exp().isinf()
    assert torch.tensor(88.).exp().isfinite() and torch.tensor(89.).exp().isinf()

def test_log_sigmoid_with_a_wrong_sign():
    "The fourth exercise"
    def log_sigmoid(x, sign=-1):
        t = (-x).clamp(min=0)
        return -t - ((sign*t).exp() + (-x-t).exp()).log()
    assert_same(F.logsigmoid(far), [-4.4462e-01, -5.0000e+02], atol=5e-5)
    alike(log_sigmoid, F.logsigmoid, far)
    near(grad(log_sigmoid, far), [.3589, 1.], 5e-5)
    near(log_sigmoid(far, 1), [-.4446, -inf])
    near(log_sigmoid(x3, 1), [-.4436, -.3803, -.4861])

def test_logistic_regression():
    theta,f = torch.tensor([.5, -1., 2.]),torch.tensor([1., .2, .3])
    score = theta@f
    near(torch.stack([score.sigmoid(), (-score).sigmoid()]), [.7109, .2891], 5e-5)
    for t in (0., 1.):
        y = torch.tensor([t])
        def ours(theta): return bce_loss_with_logits((theta@f)[None], y)
        alike(ours, lambda theta: F.binary_cross_entropy_with_logits((theta@f)[None], y), theta)
        assert_same(grad(ours, theta), (score.sigmoid()-t)*f)
    near(ours(theta), .3412, 5e-5)
    near(grad(ours, theta), [-.2891, -.0578, -.0867], 5e-5)

@pytest.mark.parametrize('x,f', [(x3, bce_loss_with_logits), (x3, lambda x, y: bce_loss(x.sigmoid(), y))])
def test_binary_numbers(x, f):
    near(f(x3, y3), .6309)
    near(grad(lambda x: f(x, y3), x3), [.2139, -.1055, -.1283], 5e-5)
    alike(lambda x: f(x, y3), lambda x: F.binary_cross_entropy(x.sigmoid(), y3), x3)
    near(f(five, y5), .7599)
    near(f(five, torch.tensor([1., 0., 1., 1., 0.])), .6943)

def test_five_scores():
    near(five.sigmoid(), [.5576, .6093, .5044, .5812, .5136])
    near(F.logsigmoid(five), [-.5840, -.4955, -.6843, -.5426, -.6662])
    for o in (F.logsigmoid(-five), (-five).sigmoid().log(), (1-five.sigmoid()).log()):
        near(o, [-.8156, -.9397, -.7020, -.8704, -.7208])
    near(F.binary_cross_entropy_with_logits(five, y5), .7599)
    near(grad(lambda x: bce_loss_with_logits(x, y5), five)[:4], [-.0885, .1219, -.0991, .1162], 5e-5)
    near(bce_loss_with_logits(five, y5, pos_weight=3.), 1.2672, 5e-5)
    near(grad(lambda x: bce_loss_with_logits(x, y5, pos_weight=3.), five)[:4], [-.2654, .1219, -.2973, .1162], 5e-5)

def test_kink_and_digits():
    def max_trick(x, y): return x.clamp(min=0) - x*y + (-x.abs()).exp().log1p()
    assert_same(max_trick(far, torch.ones(2)), [4.4462e-01, 5.0000e+02], rtol=1e-5, atol=1e-5)
    assert_same(grad(lambda x: max_trick(x, no_yes), zero), [1., 0.])
    sure,yes_no = torch.tensor([16., -16.]),torch.tensor([1., 0.])
    assert F.binary_cross_entropy_with_logits(sure, yes_no, reduction='none')[1]==0
    for f in (bce, partial(bce_loss_with_logits, reduction='none')):
        assert_same(grad(lambda x: f(x, no_yes), zero), [.5, -.5])
        assert_same(f(sure, yes_no), [1.1254e-7]*2, atol=1e-11)

def test_softmax_numbers():
    seen = [[.6811, .3189], [.4383, .5617], [.3137, .6863], [.4921, .5079], [.6242, .3758]]
    near(logits.softmax(1), seen)
    near(logits.log_softmax(1)[0], [-.3841, -1.1429], 5e-5)
    for v in (-logits.softmax(1)[range(5),target].log().mean(), nll_loss(logits.log_softmax(1), target),
        F.cross_entropy(logits, target), cross_entropy_with_logits(logits, target),
        bce_loss_with_logits(logits[:,1]-logits[:,0], target)): near(v, .6986)
    near(F.binary_cross_entropy(logits.softmax(1)[:,1], target.float()), .6986)
    near(grad(lambda z: cross_entropy_with_logits(z, target), logits)[:2], [[.1362, -.1362], [-.1123, .1123]], 5e-5)
    near(nll_loss(logits.softmax(1), target), -.5151, 5e-5)
    alike(lambda z: nll_loss(z, target), lambda z: F.nll_loss(z, target), logits.log_softmax(1))

def test_several_labels_numbers():
    right = torch.where(labels==1, scores.sigmoid(), (-scores).sigmoid()).log()
    near(scores.sigmoid(), [[.3992,.2232,.6435],[.3800,.3044,.3241],[.6281,.4689,.3834]])
    near(right, [[-.5095,-1.4997,-.4408],[-.4780,-.3630,-1.1267],[-.4651,-.6328,-.9587]])
    near(-right.mean(1), [.8167, .6559, .6855])
    m = multi_label_soft_margin_loss_with_logits
    near(m(scores, labels, 'none'), [.8167, .6559, .6855])
    near(grad(lambda x: m(x, labels, 'none'), scores)[0], [.1331, -.2589, -.1188], 5e-5)
    for v in (m(scores, labels), bce_loss_with_logits(scores, labels), F.multilabel_soft_margin_loss(scores, labels.float()),
        F.binary_cross_entropy_with_logits(scores, labels.float())): near(v, .7193)

def test_divergence_numbers():
    near(kl_div_with_logits(logits, q), .2200, 5e-5)
    near(grad(lambda z: kl_div_with_logits(z, q), logits)[:2], [[-.0438, .0438], [-.0123, .0123]], 5e-5)
    g = grad(lambda y: kl_div_with_logits(logits[3:4], y), q[3:4])
    assert_same(g, [[1.7092, -43.9909]], atol=5e-5)
    assert_same(cross_entropy_with_logits(logits, q), torch.special.entr(q).sum(1).mean() + kl_div_with_logits(logits, q))

# against PyTorch

@pytest.mark.parametrize('r', REDUCTIONS)
@pytest.mark.parametrize('w', (None, w3))
def test_classes_against_torch(r, w):
    for z,y in classes():
        for eps in (0., .1, 1.):
            alike(lambda z: CrossEntropyLoss(w, -100, r, eps)(z, y), lambda z: F.cross_entropy(z, y, w,
                ignore_index=-100, reduction=r, label_smoothing=eps), z)
        alike(lambda z: NLLLoss(w, reduction=r)(z, y), lambda z: F.nll_loss(z, y, w, reduction=r), z.log_softmax(1))

@pytest.mark.parametrize('r', REDUCTIONS)
def test_distributions_against_torch(r):
    z,y = classes()[0][0],torch.rand(6,3).softmax(1)
    alike(lambda z: CrossEntropyLoss(reduction=r, label_smoothing=.1)(z, y),
        lambda z: F.cross_entropy(z, y, reduction=r, label_smoothing=.1), z)
    def torch_kl(z):
        v = F.kl_div(F.log_softmax(z, 1), y, reduction='none').sum(1)
        return dict(mean=v.mean, sum=v.sum, none=lambda: v)[r]()
    alike(lambda z: kl_div_with_logits(z, y, r), torch_kl, z)
    if r!='mean': return
    with warnings.catch_warnings(action='ignore'): # PyTorch warns of its own 'mean'
        alike(lambda z: kl_div_with_logits(z, y)/3, lambda z: F.kl_div(F.log_softmax(z, 1), y, reduction='mean'), z)

@pytest.mark.parametrize('r', REDUCTIONS)
@pytest.mark.parametrize('eps', (0., .1))
def test_forms_of_target(r, eps):
    z,y = classes()[0]
    y = y.clamp(min=0)
    hot = F.one_hot(y, 3).float()
    f = partial(cross_entropy_with_logits, reduction=r, weight=w3, label_smoothing=eps)
    alike(lambda z: f(z, y), lambda z: f(z, hot), z)
    for g,x in ((partial(nll_loss, reduction=r, weight=w3), z.log_softmax(1)), (partial(kl_div_with_logits, reduction=r), z)):
        alike(lambda z: g(z, y), lambda z: g(z, hot), x)
    alike(lambda z: kl_div_with_logits(z, y, r, weight=w3), lambda z: f(z, y, label_smoothing=0.), z)

@pytest.mark.parametrize('r', REDUCTIONS)
def test_binary_against_torch(r):
    x,y,p = double()
    t = partial(F.binary_cross_entropy_with_logits, reduction=r)
    for pw in (None, p):
        alike(lambda x: bce_loss_with_logits(x, y, r, pos_weight=pw), lambda x: t(x, y, pos_weight=pw), x)
        alike(lambda y: bce_loss_with_logits(x, y, r, pos_weight=pw), lambda y: t(x, y, pos_weight=pw), y)
    alike(lambda p: bce_loss(p, y, r), lambda p: F.binary_cross_entropy(p, y, reduction=r), x.sigmoid())
    torch.manual_seed(0)
    x,y,p = torch.randn(2000,100),torch.randint(2, (2000,100)),torch.arange(100.) # more than a block
    alike(lambda x: bce_loss_with_logits(x, y, r, pos_weight=p), lambda x: t(x, y.float(), pos_weight=p), x,
        rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('r', REDUCTIONS)
def test_several_labels_against_torch(r):
    m,tm = multi_label_soft_margin_loss_with_logits,F.multilabel_soft_margin_loss
    alike(lambda x: m(x, labels, r), lambda x: tm(x, labels.float(), reduction=r), scores)
    w = torch.tensor([1., 5., .5])
    scale = w.mean() if r=='mean' else 1.
    alike(lambda x: m(x, labels, r, weight=w)*scale, lambda x: tm(x, labels.float(), w, reduction=r), scores)
    assert_same(m(scores, labels, weight=w), bce_loss_with_logits(scores, labels, weight=w))
    x,y = torch.randn(2,3,4,5),torch.randint(2, (2,3,4,5))
    assert m(x, y, 'none').shape==(2,4,5)
    assert_same(m(x.movedim(1,-1), y.movedim(1,-1), r, axis=-1, weight=w), m(x, y, r, weight=w))
    for sw in (torch.tensor([1,0,1]), torch.tensor([True,False,True])):
        if r!='none': assert_same(m(scores, labels, r, sample_weight=sw), m(scores[::2], labels[::2], r))
    per = torch.rand(2,4,5)
    assert_same(m(x, y, 'none', sample_weight=per), m(x, y, 'none')*per)
    with expect_fail(ValueError, 'sample_weight must have shape (2,) or (2, 4, 5), got (2, 3, 4, 5)'):
        m(x, y, sample_weight=torch.ones(2,3,4,5))

# derivatives and edges

def test_second_derivatives():
    x,y,p = double()
    soft = y.softmax(1)
    for pw in (None, p):
        f = partial(bce_loss_with_logits, reduction='none', pos_weight=pw, label_smoothing=.1)
        at,t = torch.cat([x, torch.zeros(1,3)]).requires_grad_(),torch.cat([y, y[:1]])
        assert second(f, (at,t.clone().requires_grad_())) and second(lambda x: f(x, t.round()), at)
        f = partial(bce_loss_with_logits, reduction='sum', pos_weight=pw) # at 0 and 1 the target has a gradient, too
        assert_same(grad(lambda t: f(x, t), y.round()), grad(lambda t: f(x, t), y.round()*.5+.25))
    assert second(bce_loss, (x.sigmoid().requires_grad_(),y.clone().requires_grad_()))
    at = x[:4].clone().requires_grad_(),soft[:4].clone().requires_grad_()
    for f in (kl_div_with_logits, cross_entropy_with_logits, nll_loss): assert second(f, at)
    m = multi_label_soft_margin_loss_with_logits
    assert second(lambda x: m(x, labels, weight=w3.double()), scores.double().requires_grad_())

@pytest.mark.parametrize('p', (None, 3.))
@pytest.mark.parametrize('y', (no_yes, no_yes.clone().requires_grad_()), ids=('quick', 'formula'))
def test_infinite_scores(p, y):
    ends = torch.tensor([-inf, inf], requires_grad=True)
    v = bce_loss_with_logits(ends, y, 'none', pos_weight=p)
    assert_same(v, [0., 0.])
    assert_same(torch.autograd.grad(v.sum(), ends)[0], [0., 0.])
    v = bce_loss_with_logits(ends, 1-y, 'none', pos_weight=p)
    assert_same(v, [inf]*2)
    assert_same(torch.autograd.grad(v.sum(), ends)[0], [-(p or 1.), 1.])
    assert bce_loss_with_logits(torch.tensor([torch.nan, 0.]), y, pos_weight=p).isnan()

def test_ruled_out_class():
    ruled,part = torch.tensor([[0., -inf, 1.]]),torch.tensor([[.4, 0., .6]])
    for f in (cross_entropy_with_logits, kl_div_with_logits):
        for y in (part, part.clone().requires_grad_()):
            v = f(x := ruled.clone().requires_grad_(), y)
            assert v.isfinite() and torch.autograd.grad(v, x)[0].isfinite().all()
    assert_same(cross_entropy_with_logits(ruled, part), .7133, atol=5e-5)
    assert_same(kl_div_with_logits(q.log(), q, 'none'), torch.zeros(5), atol=1e-6)

@pytest.mark.parametrize('dtype', (torch.half, torch.bfloat16, torch.float, torch.double))
def test_probabilities_of_zero(dtype):
    p = torch.tensor([0., 1., 0., 1.], dtype=dtype, requires_grad=True)
    v = bce_loss(p, torch.tensor([1, 0, 0, 1]), 'none')
    g, = torch.autograd.grad(v.sum(), p)
    assert v.isfinite().all() and (v[:2]>(10 if dtype==torch.half else 40)).all()
    assert g.isfinite().all() and g[0]<0<g[1]
    assert bce_loss(torch.tensor([torch.nan, .5]), torch.tensor([0, 1])).isnan()

# shapes, refusals, modules

@pytest.mark.parametrize('name', ('weight', 'pos_weight'))
def test_shapes_of_factors(name):
    torch.manual_seed(0)
    x,y,w = torch.randn(2,3,4,5),torch.randint(2, (2,3,4,5)),torch.tensor([.5, 1., 4.])
    full = bce_loss_with_logits(x, y, **{name: w})
    if name=='pos_weight': assert_same(full, F.binary_cross_entropy_with_logits(x, y.float(), pos_weight=w[:,None,None]))
    for o in (w[:,None,None], w[None,:,None,None], w.tolist(), w.numpy()):
        assert_same(bce_loss_with_logits(x, y, **{name: o}), full)
    flat = bce_loss_with_logits(x[...,0,0], y[...,0,0], **{name: w})
    assert_same(bce_loss_with_logits(x[...,0,0], y[...,0,0], **{name: w[None]}), flat)
    assert_same(BCEWithLogitsLoss(**{name: w[None]})(x[...,0,0], y[...,0,0]), flat)
    assert_same(BCEWithLogitsLoss(**{name: w[:,None,None]})(x, y), full)
    moved = [o.movedim(1,-1) for o in (x,y)]
    assert_same(bce_loss_with_logits(*moved, axis=-1, **{name: w}), full)
    for o in (torch.tensor(3.), torch.tensor([3.])):
        assert_same(bce_loss_with_logits(five, y5, **{name: o}), bce_loss_with_logits(five, y5, **{name: 3}))
    BCEWithLogitsLoss(weight=torch.ones(1), pos_weight=torch.ones(3)), BCEWithLogitsLoss(torch.ones(3,1,1), 'sum', w)
    with expect_fail(ValueError, f'{name} must have shape (3,), one per class, got (6, 3)'):
        BCEWithLogitsLoss(**{name: torch.ones(6,3)})
    with expect_fail(ValueError, f'{name} must have shape (3,)'): bce_loss_with_logits(scores, labels, **{name: torch.ones(2)})

def test_refusals():
    with expect_fail(ValueError, 'probs must be in [0, 1], got -0.1'): BCELoss()(five*0-.1, y5)
    with expect_fail(TypeError, 'logits must be a tensor, got list'): bce_loss_with_logits([0.], torch.zeros(1))
    with expect_fail(TypeError, 'logits must be a tensor, got list'): multi_label_soft_margin_loss_with_logits([0.], torch.zeros(1))
    with expect_fail(TypeError, 'logits must be a tensor, got list'): bce_loss_with_logits([0.], y5, pos_weight=w3)
    with expect_fail(TypeError, 'probs must be a tensor, got list'): bce_loss([0.], torch.zeros(1))
    with expect_fail(ValueError, "reduction must be 'mean', 'sum' or 'none'"): MultiLabelSoftMarginLoss(reduction='avg')
    with expect_fail(ValueError, 'axis must name the classes'): MultiLabelSoftMarginLoss(axis=0)
    with expect_fail(ValueError, 'logits must have shape (N, C, *), got (3,)'):
        multi_label_soft_margin_loss_with_logits(scores[0], labels[0])
    with expect_fail(ValueError, 'log_probs must be logarithms of a distribution, got sum 2.7'):
        check_batch(NLLLoss(), logits.softmax(1)*0+.3133, target)
    check_batch(NLLLoss(), logits.log_softmax(1), target)
    with expect_fail(ValueError, 'target must sum to 1'): check_batch(KLDivWithLogitsLoss(), logits, q*2)
    with expect_fail(ValueError, 'target must be in [0, 1], got 2'): check_batch(BCEWithLogitsLoss(), five, y5*2)

@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize('axis', (1, 2, -1, -2))
def test_axis_of_classes(cls, axis): assert cls(axis=axis).axis==axis

def test_positions_of_torch():
    "A call by position means what it means in PyTorch"
    z,y = classes()[0]
    ours,torchs = CrossEntropyLoss(w3, 2, 'sum', .1),nn.CrossEntropyLoss(w3, ignore_index=2, reduction='sum', label_smoothing=.1)
    assert_same(ours(z, y.clamp(min=0)), torchs(z, y.clamp(min=0)))
    assert NLLLoss(w3, 2, 'sum').ignore_index==2 and BCELoss(w3, 'sum').reduction=='sum'
    assert BCEWithLogitsLoss(w3, 'sum', w3).reduction=='sum' and MultiLabelSoftMarginLoss(w3, 'sum').reduction=='sum'
    assert BCEWithLogitsLoss(thresh=.2).decodes(torch.tensor([.3])).item()
    with expect_fail(TypeError, 'BCEWithLogitsLoss: got an unexpected keyword argument'): BCEWithLogitsLoss(wight=w3)

def test_copies():
    for o in (BCEWithLogitsLoss(pos_weight=3, thresh=.3), BCEWithLogitsLoss(pos_weight=torch.ones(1,3)), CrossEntropyLoss(w3),
        MultiLabelSoftMarginLoss(w3, axis=-1), NLLLoss(w3), KLDivWithLogitsLoss(weight=w3), BCELoss(w3)):
        assert repr(pickle.loads(pickle.dumps(o)))==repr(deepcopy(o))==repr(o)

# what once was wrong

@pytest.mark.parametrize('v', (-.1, 1.1))
@pytest.mark.parametrize('f', (bce_loss_with_logits, multi_label_soft_margin_loss_with_logits))
def test_labels_outside(f, v):
    with expect_fail(ValueError, f'target must be in [0, 1], got {v}'): f(scores, torch.full((3,3), v))
    with expect_fail(ValueError, 'target must be in [0, 1], got 255'): f(scores, torch.full((3,3), 255, dtype=torch.uint8))

@pytest.mark.parametrize('cls', (BCEWithLogitsLoss, BCELoss, MultiLabelSoftMarginLoss))
def test_weight_of_items(cls):
    with expect_fail(ValueError, 'weight must have shape (3,), one per class, got (3, 3); factors for items are a sample_weight'):
        cls.func(scores.sigmoid(), labels, weight=torch.rand(3,3))

@pytest.mark.parametrize('r', REDUCTIONS)
@pytest.mark.parametrize('bad', (torch.nan, inf))
def test_left_out_rows(r, bad):
    "What a row without weight holds reaches neither loss nor gradient"
    for cls in (*CLASSES, *BINARY):
        torch.manual_seed(0)
        x,y = cls().example(6)
        x = (torch.rand(6,3) if cls is BCELoss else torch.randn(6,3)).requires_grad_()
        y = torch.randint(3, (6,)) if cls in CLASSES else torch.randint(2, (6,3)).float()
        w = torch.tensor([0., 1., 2., 1., 1., 0.])
        hurt = x.detach().clone()
        hurt[0],hurt[5] = (torch.nan if cls is BCELoss else bad),.5
        hurt.requires_grad_()
        a,b = [cls(reduction=r)(o, y, w) for o in (x,hurt)]
        assert_same(a, b)
        for o in zip(*[torch.autograd.grad(v.sum(), o) for v,o in ((a,x),(b,hurt))]): assert_same(*o)

@pytest.mark.parametrize('cls', (CrossEntropyLoss,))
def test_mean_over_no_weight(cls):
    loss = cls([0,1,1], label_smoothing=.1)
    x = torch.randn(1000,3, requires_grad=True)
    v = loss(x, torch.zeros(1000, dtype=torch.long))
    assert v==0 and not torch.autograd.grad(v, x)[0].any()

@pytest.mark.parametrize('cls', BINARY)
def test_mean_of_many(cls):
    "Five million rows in float32, against float64"
    torch.manual_seed(0)
    x,y,w = torch.randn(5_000_000,2),torch.rand(5_000_000,2).round(),torch.tensor([.3, 3.1])
    if cls is BCELoss: x = x.sigmoid()
    for k in ({}, dict(weight=w), dict(weight=w[:1])):
        got,want = cls(**k)(x, y),cls(**{n: v.double() for n,v in k.items()})(x.double(), y.double())
        assert abs(got.item()-want.item()) < 1e-5

@pytest.mark.parametrize('cls', (CrossEntropyLoss, BCEWithLogitsLoss))
@pytest.mark.parametrize('soft', (False, True))
@pytest.mark.parametrize('eps', (0., .3))
def test_learned_smoothing(cls, soft, eps):
    if cls is BCEWithLogitsLoss: x,y,_ = double()
    else: x,y = double()[0],double()[1].softmax(1) if soft else torch.tensor([0, 2, 1, 2, 1, 0])
    share = torch.tensor(eps, dtype=torch.double, requires_grad=True)
    def f(share): return cls.func(x, y, label_smoothing=share)
    got, = torch.autograd.grad(f(share), share)
    assert_same(got, cls.func(x, y, label_smoothing=1.) - cls.func(x, y)) # it is linear in the share
    if soft: return
    loss = cls(label_smoothing=nn.Parameter(torch.tensor(.1)))
    loss(x.float(), y if cls is CrossEntropyLoss else y.float()).backward()
    assert loss.label_smoothing.grad.abs()>0

@pytest.mark.parametrize('C', (1, 2, 5))
@pytest.mark.parametrize('name,cls', [('weight', o) for o in (*CLASSES, *BINARY)] + [('pos_weight', BCEWithLogitsLoss)])
@pytest.mark.parametrize('soft', (False, True))
def test_learned_factors(C, name, cls, soft):
    if soft and cls in BINARY: return
    torch.manual_seed(0)
    w = nn.Parameter(torch.rand(C)+.5)
    loss = cls(**{name: w})
    x = torch.rand(7,C)
    y = torch.randint(2, (7,C)).float() if cls in BINARY else torch.rand(7,C).softmax(1) if soft else torch.randint(C, (7,))
    loss(x, y).backward()
    step,unit = 1e-3,torch.eye(C)[C-1]
    plain = [cls.func(x.double(), y.double() if y.is_floating_point() else y,
        **{name: (w.detach()+s*unit).double()}) for s in (step,-step)]
    assert abs(w.grad[C-1]-(plain[0]-plain[1])/(2*step)) < 1e-4
    assert list(loss.parameters())==[w]

@pytest.mark.parametrize('cls', (*CLASSES, *BINARY))
def test_learned_sample_weight(cls):
    "A weight of 0 that is learned gets its example's loss"
    x,y = cls().example(6)
    w = torch.zeros(len(x), requires_grad=True)
    g, = torch.autograd.grad(cls(reduction='sum')(x, y, w), w)
    none = cls(reduction='none')(x, y)
    assert_same(g, none.flatten(1).sum(1) if none.ndim>1 else none)

@pytest.mark.parametrize('dynamic', (None, True))
def test_compiled_smoothing(dynamic):
    "The numbers become symbolic with the second value"
    torch._dynamo.reset()
    z,y = classes()[0]
    cases = [(cross_entropy_with_logits, z, y), (cross_entropy_with_logits, z, z.softmax(1)),
        (bce_loss_with_logits, z, (z>0).float())]
    for f,x,t in cases:
        g = torch.compile(lambda x, eps: f(x, t, label_smoothing=eps), dynamic=dynamic)
        for eps in (.1, .2, .3): alike(lambda x: g(x, eps), lambda x: f(x, t, label_smoothing=eps), x)
    g = torch.compile(lambda x, p: bce_loss_with_logits(x, t, pos_weight=p), dynamic=dynamic)
    for p in (.5, 2., 3.): alike(lambda x: g(x, p), lambda x: bce_loss_with_logits(x, t, pos_weight=p), x)

# in a Learner

@pytest.fixture
def digits():
    from fastai.callback.all import ProgressCallback
    from fastai.torch_core import defaults, set_seed
    from sklearn.datasets import load_digits
    if ProgressCallback in defaults.callbacks: defaults.callbacks.remove(ProgressCallback)
    set_seed(42)
    x,y = (torch.tensor(o) for o in load_digits(return_X_y=True))
    return x.float()/16,y

class Pairs(list):
    def new_empty(self): return Pairs() # what export asks of a dataset

def learner(x, y, loss, last=None, **kwargs):
    from fastai.basics import DataLoaders, Learner
    sets = [Pairs(zip(x[i], y[i])) for i in (slice(1400),slice(1400, None))]
    model = nn.Sequential(nn.Linear(64, 10 if y.ndim==1 else y.shape[1]), last or nn.Identity())
    return Learner(DataLoaders.from_dsets(*sets, bs=64, num_workers=0), model, loss, **kwargs)

CASES = [(CrossEntropyLoss(label_smoothing=.1), False, None), (KLDivWithLogitsLoss(), True, None),
    (NLLLoss(torch.ones(10)), False, nn.LogSoftmax(1)), (BCELoss(), True, nn.Sigmoid()),
    (MultiLabelSoftMarginLoss(), True, None)]
@pytest.mark.parametrize('loss,hot,last', CASES, ids=[type(o[0]).__name__ for o in CASES])
def test_learner(digits, loss, hot, last):
    from fastai.callback.all import MixUp
    x,y = digits
    learn = learner(x, F.one_hot(y, 10).float() if hot else y, loss, last)
    with learn.no_logging(): learn.fit(1, 3e-2, cbs=MixUp())
    p,t,dec,ls = learn.get_preds(with_loss=True, with_decoded=True)
    assert len(ls)==len(p)==len(dec)
    if loss.y_int: assert_same(p.sum(1), torch.ones(len(p)), atol=1e-4)
    if not hot: assert (dec==t).float().mean()>.6

def test_export(digits, tmp_path):
    from fastai.learner import load_learner
    w = torch.arange(1., 11.)
    learn = learner(*digits, CrossEntropyLoss(w), path=tmp_path)
    with warnings.catch_warnings(action='ignore'):
        learn.export()
        again = load_learner(tmp_path/'export.pkl')
    assert_same(again.loss_func.weight, w)
