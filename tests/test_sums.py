"Losses that are added, each times a number"
import numpy as np, pickle, pytest, torch
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
    assert list(loss.parts)==['FocalLoss','CrossEntropyLoss']
    for a,b in zip(loss.parts.values(), want): same(a, b)
    w = tensor([1.,0.,2.,3.])
    same(loss(x, y, sample_weight=w), 2*loss.losses[0](x, y, w)+loss.losses[1](x, y, w))
    assert loss.y_int and loss.decodes(loss.activation(x)).shape==y.shape
    loss.reduction = 'none'
    same(loss(x, y), 2*loss.losses[0].reduced('none', x, y)+loss.losses[1].reduced('none', x, y))
    assert loss.parts['FocalLoss'].shape==y.shape

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
    assert list(s.parts)==['FocalLoss','CrossEntropyLoss','FocalLoss 2']
    same(sum(s.parts.values()), s(x, y))
    same(sum([a,b,b])(x, y), a(x, y)+2*b(x, y))
    same((np.float64(.5)*a)(x, y), .5*a(x, y))
    same((a+(-1)*b)(x, y), a(x, y)-b(x, y))

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
    (TypeError, 'factor must be a number, got tensor', lambda: tensor(2.)*FocalLoss()),
    (ValueError, 'factor must be', lambda: float('nan')*FocalLoss()),
    (TypeError, 'unsupported operand', lambda: FocalLoss()+nn.CrossEntropyLoss()),
    (TypeError, 'unsupported operand', lambda: FocalLoss()+1)], ids=lambda o: o if isinstance(o, str) else '')
def test_refuses(error, text, f):
    with pytest.raises(error) as e: f()
    assert text in str(e.value)
