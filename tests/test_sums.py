"Losses that are added, each times a number"
import numpy as np, pickle, pytest, torch, torch.nn.functional as F
from copy import deepcopy
from torch import nn, tensor
from lossbook.check import all_losses, check_loss
from lossbook.core import Loss, SumLoss, check_batch, reduce
from lossbook.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from lossbook.focal import OHEM, BinaryFocalLoss, FocalLoss
from lossbook.span import SpanLoss

def same(a, b): torch.testing.assert_close(a, b)

def images(n=4):
    torch.manual_seed(0)
    return torch.randn(n, 3, 2, 5),torch.randint(3, (n,2,5))

def per_image(logits, target, reduction='mean', *, sample_weight=None):
    "A loss with one value per image"
    return reduce(logits.flatten(1).square().mean(1) + 0*target.sum(), reduction, sample_weight)
class PerImage(Loss, of=per_image):
    y_int = True
    def example(self, n=4): return images(n)

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('name', all_losses())
def test_twice_and_once_is_three_times(name, reduction):
    loss = all_losses()[name]
    torch.manual_seed(0)
    b = loss.example(5)
    same((2*loss+loss).reduced(reduction, *b), 3*loss.reduced(reduction, *b))

@pytest.mark.parametrize('loss', [2*FocalLoss()+CrossEntropyLoss(),
    BinaryFocalLoss()*.5+BCEWithLogitsLoss(), SpanLoss()+.1*SpanLoss(2.)])
def test_contract(loss):
    report = check_loss(loss)
    assert report.ok, report.failed

def test_by_hand():
    x,y = images()
    loss = 2*FocalLoss(weight=[1.,2.,5.])+CrossEntropyLoss(ignore_index=1)
    want = 2*loss.losses[0](x, y), loss.losses[1](x, y)
    same(loss(x, y), sum(want))
    assert list(loss.parts)==['2*FocalLoss','CrossEntropyLoss']
    for a,b in zip(loss.parts.values(), want): same(a, b)
    w = tensor([1.,0.,2.,3.])
    same(loss(x, y, sample_weight=w), 2*loss.losses[0](x, y, w)+loss.losses[1](x, y, w))
    assert loss.y_int and loss.decodes(loss.activation(x)).shape==y.shape
    loss.reduction = 'none'
    same(loss(x, y), 2*loss.losses[0].reduced('none', x, y)+loss.losses[1].reduced('none', x, y))
    assert loss.parts['2*FocalLoss'].shape==y.shape

def test_values_per_image_beside_values_per_position():
    x,y = images()
    a,b = PerImage(),CrossEntropyLoss(ignore_index=1)
    loss = a+.5*b
    y[1] = 1 # an image in which nothing counts
    ce,n = b.reduced('none', x, y).flatten(1).sum(1),(y!=1).flatten(1).sum(1)
    want = a.reduced('none', x, y) + .5*ce/n.clamp(min=1)
    same(loss.reduced('none', x, y), want)
    same(loss.reduced('sum', x, y), want.sum())
    same(loss(x, y), a(x, y)+.5*b(x, y))
    hard = OHEM(loss, keep=.5)
    same(hard(x, y), want[[0,2,3]].topk(2).values.mean())
    assert loss.reduced('none', x[:0], y[:0]).shape==(0,) and loss(x[:0], y[:0])==0

def test_sums_of_sums():
    a,b = FocalLoss(),CrossEntropyLoss()
    s = 2*(a+3*b)+a
    assert s.factors==(2,6,1) and [type(o) for o in s.losses]==[FocalLoss,CrossEntropyLoss,FocalLoss]
    x,y = images()
    s(x, y)
    assert list(s.parts)==['2*FocalLoss','6*CrossEntropyLoss','FocalLoss']
    assert list(kept(a+a, x, y))==['FocalLoss','FocalLoss 2']
    same(sum(s.parts.values()), s(x, y))
    same(sum([a,b,b])(x, y), a(x, y)+2*b(x, y))
    same((np.float64(.5)*a)(x, y), .5*a(x, y))
    same((a+(-1)*b)(x, y), a(x, y)-b(x, y))

def kept(loss, *batch):
    "The parts of a call"
    loss(*batch)
    return loss.parts

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_arithmetic(reduction):
    "Signs, differences and quotients are those of the values, nested ones too"
    x,y = images()
    a,b = FocalLoss(),CrossEntropyLoss(weight=[1.,2.,5.])
    u,v = a.reduced(reduction, x, y),b.reduced(reduction, x, y)
    for s,want in ((-a, -u), (a/4, u/4), (a-b, u-v), (-(a-2*b)/3+a, -(u-2*v)/3+u), (a-(b-a), u-(v-u)), (0+a-b, u-v), (a-b-b, u-2*v)):
        same(s.reduced(reduction, x, y), want)
    assert (a/4).factors==(.25,) and (-a).factors==(-1,) and (a-(b-a)).factors==(1,-1,1)
    s = a-b/2
    s -= b
    s /= 2
    same(s.reduced(reduction, x, y), (u-1.5*v)/2)

def test_names_say_the_factor():
    x,y = images()
    s = 2*FocalLoss()-.5*CrossEntropyLoss()+FocalLoss()/3+2*FocalLoss()+nn.CrossEntropyLoss()+half_square
    assert list(kept(s, x, y))==['2*FocalLoss','-0.5*CrossEntropyLoss','0.333333*FocalLoss','2*FocalLoss 2','CrossEntropyLoss','half_square']
    same(sum(s.parts.values()), s(x, y))
    same(s.parts['2*FocalLoss'], 2*FocalLoss()(x, y))

# losses from elsewhere

def half_square(pred, target): return .5*pred.square().mean()
FOREIGN = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=1), nn.CrossEntropyLoss(tensor([1.,2.,5.]), ignore_index=0), F.cross_entropy]

@pytest.mark.parametrize('other', FOREIGN, ids=['','ignored','weighted','function'])
@pytest.mark.parametrize('reduction', ['mean','sum','none'])
def test_loss_from_elsewhere(other, reduction):
    "The sum with a foreign loss is the sum with its counterpart here, on both sides, for every reduction, and under OHEM"
    x,y = images()
    twin = CrossEntropyLoss(*[getattr(other, k, d) for k,d in (('weight',None),('ignore_index',-100))])
    a = FocalLoss()
    for s,t in ((a+other, a+twin), (other+a, twin+a), (2*(a-other)+a, 2*(a-twin)+a), (other-a, twin-a)):
        same(s.reduced(reduction, x, y), t.reduced(reduction, x, y))
        same(s(x, y), t(x, y))
        same(s.activation(x), x.softmax(1))
        assert s.y_int and s.task=='classes'
    if other is FOREIGN[1] or other is FOREIGN[2]: return # the norms of the two are not the same
    same(OHEM(a+other, keep=.3).reduced(reduction, x, y), OHEM(a+twin, keep=.3).reduced(reduction, x, y))

def test_values_of_another_shape():
    "A foreign loss with one value per position beside one per image"
    x,y = images()
    a,b = PerImage(),CrossEntropyLoss(ignore_index=1)
    for r in ('none','sum'): same((a+nn.CrossEntropyLoss(ignore_index=1)).reduced(r, x, y), (a+b).reduced(r, x, y))

def test_binary_and_fastai_losses():
    x,y = torch.randn(5, 3),torch.randint(2, (5,3)).float()
    for r in ('mean','sum','none'): same((BinaryFocalLoss()+nn.BCEWithLogitsLoss()).reduced(r, x, y), (BinaryFocalLoss()+BCEWithLogitsLoss()).reduced(r, x, y))
    fl = pytest.importorskip('fastai.losses')
    x,y = images()
    s = FocalLoss()+fl.CrossEntropyLossFlat(axis=1)
    for r in ('mean','none'): same(s.reduced(r, x, y), (FocalLoss()+CrossEntropyLoss()).reduced(r, x, y))
    assert s.losses[1].loss.reduction=='mean' # nothing of it is changed

def test_function_as_a_term():
    x,y = images()
    for s in (CrossEntropyLoss()+half_square, half_square+CrossEntropyLoss()):
        same(s(x, y), CrossEntropyLoss()(x, y)+half_square(x, y))
        for o in (pickle.loads(pickle.dumps(s)), deepcopy(s)): same(o(x, y), s(x, y))
    assert 'half_square' in repr(s)
    g, = torch.autograd.grad((CrossEntropyLoss()-half_square)(x.requires_grad_(), y), x)
    same(g, torch.autograd.grad(CrossEntropyLoss()(x, y)-half_square(x, y), x)[0])

def test_foreign_weights_follow():
    s = FocalLoss()+nn.CrossEntropyLoss(tensor([1.,2.,5.]))
    assert 'losses.1.loss.weight' in s.state_dict() and s.to('meta').losses[1].loss.weight.is_meta
    x,y = images()
    f = torch.compile(FocalLoss()+nn.CrossEntropyLoss(), fullgraph=True, backend='aot_eager')
    same(f(x, y), FocalLoss()(x, y)+CrossEntropyLoss()(x, y))
    torch.compiler.reset()

# factors that are tensors

def test_learned_factor():
    x,y = images()
    w,a,b = nn.Parameter(tensor(.5)),FocalLoss(),CrossEntropyLoss()
    s = w*a+b
    assert [*dict(s.named_parameters())]==['factor_0'] and s.factors[0] is w
    s(x, y).backward()
    same(w.grad, a(x, y))
    assert list(s.parts)==['factor*FocalLoss','CrossEntropyLoss']
    same(s(x, y), .5*a(x, y)+b(x, y))
    w.data.fill_(3.)
    same(s(x, y), 3*a(x, y)+b(x, y))
    for r in ('sum','none'): same(s.reduced(r, x, y), 3*a.reduced(r, x, y)+b.reduced(r, x, y))
    for o in (pickle.loads(pickle.dumps(s)), deepcopy(s), s.with_params(), SumLoss(**s.params())):
        same(o(x, y), s(x, y))
        assert len([*o.parameters()])==1
    assert deepcopy(s).factor_0 is not w and 'factors=(3.0, 1)' in repr(s)
    other = nn.Parameter(tensor(1.))*a+b
    other.load_state_dict(s.state_dict())
    same(other(x, y), s(x, y))

def test_learned_factor_of_a_sum():
    "It stays one parameter, whatever is done with the sum"
    x,y = images()
    w,u,a,b = nn.Parameter(tensor(.5)),nn.Parameter(tensor(2.)),FocalLoss(),CrossEntropyLoss()
    cases = [(w*(a+b), lambda: w*(a(x,y)+b(x,y))), (-(w*a+b)/2, lambda: -(w*a(x,y)+b(x,y))/2)]
    cases += [(3*(u*(w*a-b)), lambda: 3*u*(w*a(x,y)-b(x,y))), (w*(w*a), lambda: w*w*a(x,y))]
    for s,want in cases:
        same(s(x, y), want())
        ps = [*s.parameters()]
        assert {id(p) for p in ps}<={id(w),id(u)}
        for g,h in zip(torch.autograd.grad(s(x, y), ps), torch.autograd.grad(want(), ps)): same(g, h)
        for o in (deepcopy(s), s.with_params(), pickle.loads(pickle.dumps(s))):
            same(o(x, y), s(x, y))
            assert len([*o.parameters()])==len(ps)

def test_factor_that_is_a_buffer():
    x,y = images()
    s = FocalLoss()*tensor(2.)+CrossEntropyLoss()
    same(s(x, y), 2*FocalLoss()(x, y)+CrossEntropyLoss()(x, y))
    assert 'factor_0' in dict(s.named_buffers()) and s.to('meta').factors[0].is_meta

def test_learned_factor_trains():
    from fastai.basics import DataLoaders, Learner
    from lossbook.learner import RecordParts, TrainLoss
    torch.manual_seed(0)
    rows = list(zip(torch.randn(16,4), torch.arange(16)%3))
    dls = DataLoaders.from_dsets(rows, rows, bs=8, device='cpu')
    s = nn.Parameter(tensor(1.))*FocalLoss()+CrossEntropyLoss()
    with pytest.warns(UserWarning, match='factor_0 will not train'):
        with (learn := Learner(dls, nn.Linear(4,3), s)).no_logging(): learn.fit(1)
    assert s.factor_0==1
    rec = RecordParts()
    with (learn := Learner(dls, nn.Linear(4,3), s, cbs=[TrainLoss(lr=1e-2),rec])).no_logging(): learn.fit(2)
    assert s.factor_0<1 and list(rec.values())==['factor*FocalLoss','CrossEntropyLoss'] and len(rec.values()['factor*FocalLoss'])==4

def test_contract_of_a_learned_factor():
    report = check_loss(nn.Parameter(tensor(.5))*FocalLoss()+CrossEntropyLoss(), skip=dict(recompiles='slow'))
    assert report.ok, report.failed

def test_copies():
    x,y = images()
    s = 2*FocalLoss(weight=[1.,2.,5.])+CrossEntropyLoss()
    for o in (pickle.loads(pickle.dumps(s)), deepcopy(s), SumLoss(**s.params())): same(o(x, y), s(x, y))
    assert repr(pickle.loads(pickle.dumps(s)))==repr(s) and 'factors=(2, 1)' in repr(s)
    assert s.to('meta').losses[0].weight.is_meta

def test_in_transforms():
    x,y = images()
    s = 2*FocalLoss()+CrossEntropyLoss()
    torch.func.grad(s)(x, y)
    assert not s.parts
    f = torch.compile(s, fullgraph=True, backend='aot_eager')
    same(f(x, y), 2*FocalLoss()(x, y)+CrossEntropyLoss()(x, y))
    torch.compiler.reset()

def test_check_batch():
    x,y = images()
    with pytest.raises(ValueError, match='target must be in 0..2'): check_batch(FocalLoss()+CrossEntropyLoss(), x, y+1)

@pytest.mark.parametrize('error,text,f', [
    (ValueError, 'must have one axis, got 1 and -1', lambda: FocalLoss()+CrossEntropyLoss(axis=-1)),
    (ValueError, 'must have one y_int, got True and False', lambda: FocalLoss()+BinaryFocalLoss()),
    (ValueError, 'must have one thresh, got 0.5 and 0.3', lambda: BinaryFocalLoss()+BCEWithLogitsLoss(thresh=.3)),
    (ValueError, "must have one reduction, got 'mean' and 'sum'", lambda: FocalLoss()+2*CrossEntropyLoss(reduction='sum')),
    (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'", lambda: SumLoss([FocalLoss()], reduction='avg')),
    (TypeError, "factor must be a number, got 'two'", lambda: 'two'*FocalLoss()),
    (TypeError, 'factor must be a number, got array', lambda: np.ones(2)*FocalLoss()),
    (ValueError, 'factor must be one number, got shape (2,)', lambda: torch.ones(2)*FocalLoss()),
    (ValueError, 'a tensor of its own, such as an nn.Parameter, got one that was computed, by ExpBackward0',
        lambda: nn.Parameter(tensor(1.)).exp()*FocalLoss()),
    (ValueError, 'divisor must not be 0', lambda: FocalLoss()/0),
    (TypeError, 'divisor must be a number, got', lambda: FocalLoss()/FocalLoss()),
    (TypeError, 'a loss is divided by a number, got a tensor', lambda: FocalLoss()/tensor(2.)),
    (TypeError, 'factor must be a number, got', lambda: FocalLoss()*CrossEntropyLoss()),
    (TypeError, 'got the class CrossEntropyLoss: make one', lambda: FocalLoss()+nn.CrossEntropyLoss),
    (TypeError, 'a loss can be added to a loss, a module or a function of predictions and targets, got tensor', lambda: tensor(1.)+FocalLoss()),
    (TypeError, 'got None', lambda: FocalLoss()-None),
    (TypeError, "got 'ce'", lambda: 'ce'+FocalLoss()),
    (ValueError, "must have one reduction, got 'mean' and 'sum'", lambda: FocalLoss()+nn.CrossEntropyLoss(reduction='sum')),
    (TypeError, 'MSELoss takes no sample_weight, and so a sum with it takes none',
        lambda: (FocalLoss()+nn.MSELoss())(*images(), sample_weight=torch.ones(4))),
    (TypeError, 'loss must have a reduction to set, or take one', lambda: (FocalLoss()+(lambda x,y: x.mean())).reduced('none', *images())),
    (ValueError, 'factor must be', lambda: float('inf')*FocalLoss()),
    (ValueError, 'factor must be', lambda: float('nan')*FocalLoss()),
    (TypeError, 'a loss can be added to a loss, a module or a function of predictions and targets, got 1', lambda: 1-FocalLoss()),
    (TypeError, 'a loss can be added to a loss, a module or a function of predictions and targets, got 1', lambda: FocalLoss()+1)], ids=lambda o: o if isinstance(o, str) else '')
def test_refuses(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
