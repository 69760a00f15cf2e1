"The first batch: what `check_batch` finds"
import pytest, torch, torch.nn.functional as F, warnings
from functools import partial
from torch import nn
from lossbook.check import loss_classes
from lossbook.core import check_batch
from lossbook.focal import OHEM
fl = pytest.importorskip('fastai.losses')

ours = {k: o for k,o in loss_classes().items()} | dict(OHEM=lambda: OHEM(loss_classes()['FocalLoss']()))
on_logits = 'CrossEntropyLoss KLDivWithLogitsLoss FocalLoss PolyLoss GeneralizedCrossEntropy SoftLabelCrossEntropy OHEM'.split()
binaries = 'BCEWithLogitsLoss BinaryFocalLoss AsymmetricLoss MultiLabelSoftMarginLoss'.split()
others = [nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy, label_smoothing=.1), fl.CrossEntropyLossFlat(),
    fl.FocalLossFlat(), fl.LabelSmoothingCrossEntropy()]
binary_others = [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, fl.BCEWithLogitsLossFlat()]

def name(o): return o if isinstance(o, str) else getattr(o, '__name__', type(o).__name__)
def made(o): return ours[o]() if isinstance(o, str) else o

@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=g),torch.randint(3, (8,), generator=g)

def quiet(*args):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_batch(*args)

@pytest.mark.parametrize('loss', [*ours, *others, *binary_others, nn.MSELoss(), lambda p,y: (p-y).abs().mean()], ids=name)
def test_says_nothing(loss, batch):
    "Nothing is wrong with a batch of scores, whoever's the loss is"
    loss = made(loss)
    if hasattr(loss, 'example'): return quiet(loss, *loss.example(8))
    x,y = batch
    quiet(loss, x, y if loss in others else F.one_hot(y, 3).float())

@pytest.mark.parametrize('loss', [*on_logits, *others], ids=name)
def test_softmax_twice(loss, batch):
    x,y = batch
    with pytest.warns(UserWarning, match='between 0 and 1 and sum to 1 .* the softmax is in the loss'):
        check_batch(made(loss), x.softmax(1), y)
    with pytest.warns(UserWarning): check_batch(made(loss), x.softmax(1).half(), y)
    quiet(made(loss), x.log_softmax(1), y)

@pytest.mark.parametrize('loss', [*binaries, *binary_others], ids=name)
def test_sigmoid_twice(loss, batch):
    x,y = batch[0],F.one_hot(batch[1], 3).float()
    with pytest.warns(UserWarning, match='between 0 and 1, .* the sigmoid is in the loss'): check_batch(made(loss), x.sigmoid(), y)
    # a new network may give small positive scores; what made them is known while it trains
    small = nn.Linear(3, 3)
    small.weight.data.zero_()
    small.bias.data.fill_(.01)
    quiet(made(loss), small(x), y)
    with pytest.warns(UserWarning): check_batch(made(loss), small(x).sigmoid()[:,:], y)
    quiet(made(loss), 0*x, y) # a last layer that starts at 0

def test_takes_probabilities(batch):
    x,y = batch
    quiet(ours['BCELoss'](), x.sigmoid(), F.one_hot(y, 3).float())
    quiet(nn.BCELoss(), x.sigmoid(), F.one_hot(y, 3).float())

@pytest.mark.parametrize('loss', [*ours, *others, *binary_others, nn.MSELoss()], ids=name)
def test_nan_scores(loss, batch):
    "A score that is no number ends the check"
    made_ = made(loss)
    pred,*target = made_.example(8) if hasattr(made_, 'example') else (batch[0],batch[1] if loss in others else F.one_hot(batch[1], 3).float())
    pred = tuple(o.clone() for o in pred) if isinstance(pred, tuple) else pred.clone()
    (pred[0] if isinstance(pred, tuple) else pred).view(8,-1)[0] = torch.nan
    with pytest.raises(ValueError): check_batch(made_, pred, *target)

@pytest.mark.parametrize('loss', ['CrossEntropyLoss', nn.CrossEntropyLoss()], ids=name)
def test_nan_message(loss, batch):
    x,y = batch
    x[0,1] = torch.nan
    with pytest.raises(ValueError, match='nan in 1 of 24'): check_batch(made(loss), x, y)
    y[0] = -100 # what is left out may be anything
    quiet(made(loss), x, y)
    x[1,0] = -torch.inf # a class that is ruled out
    y[1] = 1
    quiet(made(loss), x, y)

def test_language_model(batch):
    x,y = torch.randn(2,5,3),torch.randint(3, (2,5))
    ce = ours['CrossEntropyLoss']
    with pytest.raises(ValueError, match='axis=-1 would fit'): check_batch(ce(), x, y)
    with pytest.raises(ValueError, match='axis=1 would fit'): check_batch(ce(axis=-1), x.mT, y)
    with pytest.raises(ValueError, match='got .2, 4.$'): check_batch(ce(), x, y[:,:4])
    for loss in (ce(), nn.CrossEntropyLoss()):
        with pytest.warns(UserWarning, match='axis 1 and the last axis .* axis=-1'): check_batch(loss, x[:,:3], y[:,:3])
    quiet(ce(axis=-1), x[:,:3], y[:,:3])
    quiet(ce(), x[:,:3].softmax(1).log(), x[:,:3].softmax(1))

def test_values_of_others(batch):
    "Values are looked at before a loss of others runs, which on an accelerator might not survive them"
    x,y = batch
    for loss in others[:4]:
        with pytest.raises(ValueError, match='target must be in 0..2'): check_batch(loss, x, y+1)
    with pytest.raises(ValueError, match='target must sum to 1'): check_batch(nn.CrossEntropyLoss(), x, x.exp())
    with pytest.raises(ValueError, match='target must be in .0, 1.'): check_batch(nn.BCEWithLogitsLoss(), x, 2*F.one_hot(y, 3).float())

def test_values_that_are_no_tensor(batch):
    "A loss may give anything, such as a pair"
    quiet(lambda p,y: (F.cross_entropy(p, y),len(y)), *batch)
