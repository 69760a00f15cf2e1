"fastai's data blocks, metrics and callbacks on spans and soft labels"
import pytest, torch
from fastai.basics import Callback, DataBlock, DataLoaders, Learner, RandomSplitter, TransformBlock
from fastai.basics import accuracy, defaults, nn, set_seed
from fastai.callback.all import MixUp, ProgressCallback
from torch import tensor
from lossbook.distillation import DistillationLoss
from lossbook.learner import AskTeacher, CheckBatch, RecordParts, SoftLabelBlock, SpanExactMatch, SpanF1, SpanJaccard
from lossbook.soft_labels import SoftLabelCrossEntropy
from lossbook.span import SpanLoss, best_span, span_f1, span_jaccard

@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

@pytest.fixture
def spans():
    set_seed(42)
    y = torch.randint(60, (120,2)).sort(1).values
    inside = (torch.arange(60)>=y[:,:1]) & (torch.arange(60)<=y[:,1:])
    return (inside+.4*torch.randn(120,60))[:,None],y

def learner(data, loss, *cbs, **kwargs):
    rows = list(zip(*data))
    model = nn.Conv1d(1, 2, 9, padding=4)
    return Learner(DataLoaders.from_dsets(rows[:80], rows[80:], bs=20, device='cpu'), model, loss, cbs=cbs, **kwargs)

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit(*args, **kwargs)

def test_parts(spans):
    "One value of each part per training batch, from the last fit alone"
    rec = RecordParts()
    learn = learner(spans, SpanLoss(), rec, CheckBatch())
    fit(learn, 1)
    fit(learn, 2)
    learn.validate()
    vals = rec.values()
    assert list(vals)==['start','end','distance'] and all(len(v)==8 for v in vals.values())

def test_decodes(spans):
    "Decoded predictions are the most probable spans, and a metric measures those"
    learn = learner(spans, SpanLoss(), metrics=[SpanJaccard(), SpanF1(), SpanExactMatch()])
    fit(learn, 1)
    preds,targs,dec = learn.get_preds(with_decoded=True)
    assert dec.equal(best_span(*preds.log().unbind(1)))
    _,jac,f1,_ = learn.validate()
    torch.testing.assert_close(tensor([jac,f1]), torch.stack([f(dec, targs).mean() for f in (span_jaccard,span_f1)]))

@pytest.mark.parametrize('two', [False,True])
def test_metric_of_padded(two):
    "A metric takes a mask or lengths after the target, as the loss does"
    x = torch.randn(4, 2, 9)
    x[...,5:] = 9
    y,n = tensor([[0,1],[1,3],[0,4],[2,2]]),tensor([5]*4)
    target = tuple(y.unbind(1)) if two else (y,)
    want = span_jaccard(best_span(*x[...,:5].unbind(1)), y).mean()
    mask = torch.arange(9)<n[:,None]
    for more in (n, mask): torch.testing.assert_close(SpanJaccard().func(x, *target, more), want)

def test_mixup(spans):
    learn = learner(spans, SpanLoss(), RecordParts(), CheckBatch())
    fit(learn, 1, cbs=MixUp())
    assert isinstance(learn.loss_func, SpanLoss)

@pytest.mark.parametrize('cb,text', [(CheckBatch,'CheckBatch needs a loss of lossbook, got CrossEntropyLoss'),
    (RecordParts,'RecordParts needs a loss with parts, such as SpanLoss, got CrossEntropyLoss')])
def test_refuses_loss(spans, cb, text):
    with pytest.raises(TypeError, match=text): fit(learner(spans, nn.CrossEntropyLoss(), cb()), 1)

def test_soft_labels():
    labels = tensor([[.9,.1,0.],[0.,.3,.7],[0.,1.,0.],[.5,.5,0.]])
    block = DataBlock((TransformBlock, SoftLabelBlock(['cat','dog','fox'])), get_x=lambda i: labels[i%4]*3,
        get_y=lambda i: labels[i%4], splitter=RandomSplitter(seed=0))
    dls = block.dataloaders(range(80), bs=16)
    learn = Learner(dls, nn.Linear(3,3), SoftLabelCrossEntropy(), cbs=CheckBatch())
    fit(learn, 3, 1e-1)
    assert dls.c==3
    probs,targs,dec = learn.get_preds(with_decoded=True)
    assert probs.shape==targs.shape==(16,3) and dec.shape==(16,)
    show = block.type_tfms[1][-1]
    assert show.decode(show(labels[1]))=='dog 30%, fox 70%' and show.decode(type(show(labels[1]))(tensor(2)))=='fox'
    with pytest.raises(ValueError, match='a soft label must have 3 probabilities, got 2'): show([.5,.5])

@pytest.mark.parametrize('mix', [False,True])
@pytest.mark.parametrize('wrapped', [False,True])
def test_ask_teacher(mix, wrapped):
    "The teacher sees what the student saw; metrics, get_preds and the Learner's loss stay as they were"
    set_seed(0)
    x,teacher = torch.randn(60, 4),nn.Sequential(nn.Linear(4, 3), nn.Dropout(.5))
    y,rows = torch.randint(3, (60,)),[]
    dls = DataLoaders.from_dsets(*[list(zip(x[i], y[i])) for i in (slice(40),slice(40,60))], bs=20, device='cpu')
    loss = DistillationLoss(2., .7)
    asked = Learner(dls, teacher, loss) if wrapped else teacher
    learn = Learner(dls, nn.Linear(4, 3), loss, cbs=AskTeacher(asked), metrics=accuracy)
    class Watch(Callback):
        order = 5
        def after_loss(self): rows.append((self.x, self.learn.ask_teacher.asked.answer, len(self.learn.yb)))
    fit(learn, 2, cbs=[MixUp()]*mix+[CheckBatch(), Watch()])
    assert not teacher.training and learn.loss_func is loss and loss.reduction=='mean' and len(rows)==6
    for xb,answer,n in rows: torch.testing.assert_close(answer, teacher(xb))
    assert {n for *_,n in rows}=={1}
    preds,targs,dec,losses = learn.get_preds(with_loss=True, with_decoded=True)
    t = teacher(x[40:])
    torch.testing.assert_close(losses, DistillationLoss(2., .7, reduction='none')(preds.log(), t, targs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learn.validate()[0], losses.mean().item(), atol=1e-5, rtol=1e-5)
    assert dec.equal(preds.argmax(1)) and targs.equal(y[40:]) and loss.reduction=='mean' and learn.loss_func is loss

def test_ask_teacher_after_a_failed_fit():
    "A fit that breaks off leaves its loss behind, and the next one finds the right one in it"
    x,y = torch.randn(8, 4),torch.zeros(8).long()
    dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=4, device='cpu')
    learn = Learner(dls, nn.Linear(4, 3), DistillationLoss(), cbs=AskTeacher(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match='teacher_logits must have the shape'): fit(learn, 1)
    learn.ask_teacher.teacher = nn.Linear(4, 3)
    fit(learn, 1)
    assert isinstance(learn.loss_func, DistillationLoss)
