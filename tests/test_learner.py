"fastai's data blocks, metrics and callbacks on spans and soft labels"
import copy, matplotlib.pyplot as plt, numpy as np, pickle, pytest, re, torch, warnings
from fastai.basics import ColReader, DataBlock, DataLoaders, Learner, RandomSplitter, TransformBlock
from fastai.basics import accuracy, defaults, nn, set_seed
from fastai.callback.all import Callback, CutMix, MixUp, ProgressCallback
from torch import tensor
from lossbook.check import loss_classes
from lossbook.core import ClassLoss
from lossbook.distillation import DistillationLoss
from lossbook.focal import OHEM
from lossbook.learner import AskTeacher, CalibrationError, CheckBatch, RecordParts, SoftAccuracy, SoftBrierScore
from lossbook.learner import SoftInterpretation, SoftLabelBlock, SpanBlock, SpanExactMatch, SpanF1, SpanJaccard, TeacherLabels
from lossbook.soft_labels import SoftLabelCrossEntropy
from lossbook.soft_metrics import brier_score, calibration_error, soft_accuracy, soft_confusion_matrix
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

@pytest.mark.parametrize('cb,text', [(CheckBatch,'got the class CrossEntropyLoss: make one'),
    (RecordParts,'RecordParts needs a loss with parts, such as SpanLoss, got type')])
def test_refuses_loss(spans, cb, text):
    with pytest.raises(TypeError, match=text): fit(learner(spans, nn.CrossEntropyLoss, cb()), 1)

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), SoftLabelCrossEntropy()], ids=lambda o: type(o).__name__)
def test_checks_any_loss(loss):
    "A softmax too many is said, whoever's the loss is, and a wrong class ends the fit"
    model = nn.Sequential(nn.Linear(3,3), nn.Softmax(1))
    rows = list(zip(torch.randn(8,3), torch.arange(8)%3))
    def learn(rows): return Learner(DataLoaders.from_dsets(rows, rows, bs=4, device='cpu'), model, loss, cbs=CheckBatch())
    with pytest.warns(UserWarning, match='the softmax is in the loss'): fit(learn(rows), 1)
    with pytest.raises(ValueError, match='target must be in 0..2'): fit(learn([(x,y+5) for x,y in rows]), 1)

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

# parameters of a loss

from functools import partial
from fastai.basics import Adam, L, OptimWrapper, load_learner, params
from fastai.callback.all import LRFinder
from lossbook.learner import TrainLoss

class Tempered(nn.Module):
    "A loss of somebody else, with a parameter and a weight that is none"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(tensor(1.))
        self.register_buffer('weight', torch.ones(3))
    def forward(self, x, y): return nn.functional.cross_entropy(self.scale*x, y, self.weight)

def classes(loss, *cbs, **kwargs):
    set_seed(0)
    rows = list(zip(torch.randn(48, 4), torch.arange(48)%3))
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    return Learner(DataLoaders.from_dsets(rows[:32], rows[32:], bs=8, device='cpu'), model, loss, cbs=cbs, **kwargs)

def split(m): return L(params(m[0]), params(m[1]))

def test_params_train():
    loss = Tempered()
    learn = classes(loss, TrainLoss(), lr=.1)
    fit(learn, 2)
    assert loss.scale.item()!=1 and len(learn.opt.param_lists)==2 and learn.opt.hypers[0]['wd']==0
    still = Tempered()
    fit(classes(still), 2)
    assert still.scale.item()==1

@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['fastai','torch'])
@pytest.mark.parametrize('splitter', [None,split], ids=['one','two'])
def test_own_learning_rate(opt, splitter):
    "The group comes first and keeps its numbers, with a schedule, weight decay and freezing"
    loss,kwargs = Tempered(),{} if splitter is None else dict(splitter=splitter)
    learn = classes(loss, TrainLoss(.5, .1), opt_func=opt, wd=.3, **kwargs)
    if splitter: learn.freeze()
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    groups,hypers = learn.opt.param_lists,learn.opt.hypers
    assert len(groups)==(2 if splitter is None else 3) and groups[0][0] is loss.scale and len(groups[0])==1
    assert hypers[0]['lr']==.5 and hypers[0]['wd']==.1 and hypers[1]['wd']==.3 and hypers[1]['lr']<1e-3
    assert loss.scale.requires_grad and loss.scale.item()!=1
    if splitter: assert not learn.model[0].weight.requires_grad

@pytest.mark.parametrize('way', ['add_cb','fit'])
def test_callback_later(way):
    loss = Tempered()
    learn = classes(loss)
    fit(learn, 1)
    assert loss.scale.item()==1
    if way=='fit': fit(learn, 1, .1, cbs=TrainLoss())
    else: fit(learn.add_cb(TrainLoss()), 1, .1)
    assert loss.scale.item()!=1 and [h['lr'] for h in learn.opt.hypers]==[.1,.1]

def test_same_as_by_hand():
    "The Learner does what a loop over both does"
    loss,byhand = Tempered(),Tempered()
    learn,twin = classes(loss, TrainLoss(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD)),classes(byhand)
    twin.model.load_state_dict({k: v for k,v in learn.model.state_dict().items() if 'loss_func' not in k})
    opt = torch.optim.SGD([*twin.model.parameters(), *byhand.parameters()], lr=.1)
    learn.dls.train.shuffle = False
    fit(learn, 1, .1)
    for x,y in torch.utils.data.DataLoader(twin.dls.train_ds, 8):
        byhand(twin.model(x), y).backward()
        opt.step()
        opt.zero_grad()
    for p,q in zip([loss.scale,*learn.model.parameters()], [byhand.scale,*twin.model.parameters()]):
        torch.testing.assert_close(p, q)

@pytest.mark.parametrize('with_opt', [True,False])
def test_saves_and_loads(tmp_path, with_opt):
    loss,other = Tempered(),Tempered()
    learn = classes(loss, TrainLoss(), path=tmp_path, lr=.1)
    fit(learn, 2)
    learn.save('best', with_opt=with_opt)
    again = classes(other, TrainLoss(), path=tmp_path)
    again.load('best', with_opt=with_opt)
    assert other.scale==loss.scale!=1
    for a,b in zip(learn.model.parameters(), again.model.parameters()): assert a.equal(b)
    if with_opt: # it goes on as if nothing had been
        for o,lr in ((learn,None), (again,.1)):
            o.dls.train.shuffle = False
            fit(o, 1, lr)
        torch.testing.assert_close(loss.scale, other.scale)
    with pytest.raises(RuntimeError, match='Unexpected key.*loss_func.scale'):
        classes(Tempered(), path=tmp_path).load('best', with_opt=False)
    plain_one = classes(Tempered(), path=tmp_path)
    plain_one.save('plain', with_opt=False)
    with pytest.raises(RuntimeError, match='Missing key.*loss_func.scale'): again.load('plain', with_opt=False)
    again.load('plain', with_opt=False, strict=False)

def test_exports(tmp_path):
    loss = Tempered()
    block = DataBlock((TransformBlock, TransformBlock), get_x=lambda i: torch.ones(4)*i/24, get_y=lambda i: tensor(i%3))
    learn = Learner(block.dataloaders(range(24), bs=8), nn.Linear(4, 3), loss, cbs=TrainLoss(), path=tmp_path, lr=.1)
    fit(learn, 1)
    learn.export()
    fit(learn, 1)
    with pytest.warns(UserWarning, match='insecure pickle'): back = load_learner(tmp_path/'export.pkl')
    now = back.loss_func.scale.item()
    assert now not in (1., loss.scale.item())
    back.dls = learn.dls
    fit(back, 1)
    assert back.loss_func.scale.item()!=now

def test_lr_find_restores(tmp_path):
    "It trains and puts everything back, the loss too"
    loss = Tempered()
    learn = classes(loss, TrainLoss(), path=tmp_path)
    fit(learn, 1, cbs=LRFinder(num_it=5))
    assert loss.scale.item()==1

def test_two_losses_in_turn(tmp_path):
    "A model that has another loss later saves that one"
    first = classes(Tempered(), TrainLoss(), path=tmp_path)
    loss = Tempered()
    second = Learner(first.dls, first.model, loss, cbs=TrainLoss(), path=tmp_path, lr=.1)
    fit(second, 1)
    second.save('second')
    assert torch.load(tmp_path/'models'/'second.pth', weights_only=False)['model']['loss_func.scale']==loss.scale

@pytest.mark.parametrize('later', [False,True])
def test_mode_of_the_model(later):
    "A loss that samples in training is exact in validation, as the model drops nothing there"
    from lossbook.many_classes import SampledSoftmaxLoss
    set_seed(0)
    loss,rows = SampledSoftmaxLoss(4, 50, 5),list(zip(torch.randn(24, 4), torch.arange(24)))
    modes = []
    class Look(Callback):
        def after_loss(self): modes.append((self.model.training, loss.training))
    learn = Learner(DataLoaders.from_dsets(rows[:16], rows[16:], bs=8, device='cpu'), nn.Linear(4, 4), loss, cbs=[Look()])
    if later: learn.add_cb(TrainLoss())
    else: learn.add_cbs(TrainLoss())
    fit(learn, 2)
    assert modes==2*[(True,True),(True,True),(False,False)]
    assert learn.validate()==learn.validate()
    loss.train()
    preds,y,values = learn.get_preds(with_loss=True)
    logits = loss.scores(learn.model(torch.stack([x for x,_ in rows[16:]])))
    torch.testing.assert_close(values, nn.functional.cross_entropy(logits, y, reduction='none').detach())

def test_params_refused():
    with pytest.raises(TypeError, match='TrainLoss needs a loss with parameters that require grad, got MSELoss'):
        classes(nn.MSELoss(), TrainLoss())
    built = OptimWrapper(opt=torch.optim.SGD(nn.Linear(4, 3).parameters(), .1))
    with pytest.raises(ValueError, match='pass a function as opt_func'): fit(classes(Tempered(), TrainLoss(), opt_func=built), 1)

def test_warns_once():
    "A loss of this book says that its parameter does not train"
    def loss(): return SoftLabelCrossEntropy(alpha=nn.Parameter(tensor(.1)))
    learn = classes(loss())
    with pytest.warns(UserWarning, match='SoftLabelCrossEntropy: alpha will not train') as told: fit(learn, 3)
    assert len(told)==1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(learn, 1)
        learn.validate()
        fit(classes(loss(), TrainLoss()), 2)
        fit(classes(SoftLabelCrossEntropy()), 1)
        loss()(torch.randn(2, 3), tensor([0,1])).backward()
    with pytest.warns(UserWarning, match='alpha will not train'): fit(classes(loss()), 1, cbs=MixUp())

# fastai's own data, losses and callbacks

@pytest.fixture(scope='module')
def table():
    "fastai's tabular data, whose integer targets are (N, 1)"
    pd = pytest.importorskip('pandas')
    from fastai.tabular.data import CategoryBlock, Categorify, Normalize, TabularDataLoaders
    set_seed(42)
    df = pd.DataFrame(dict(size=torch.randn(60).numpy(), kind=['a','b','b']*20, label=['p','q','r','p']*15))
    return df,TabularDataLoaders.from_df(df, procs=[Categorify,Normalize], cat_names=['kind'], cont_names=['size'],
        y_names='label', y_block=CategoryBlock, bs=16, device='cpu')

class_losses = {k: o for k,o in loss_classes().items() if issubclass(o, ClassLoss)} | dict(OHEM=lambda: OHEM(loss_classes()['FocalLoss']()))

@pytest.mark.parametrize('name', class_losses)
def test_tabular(table, name):
    "Targets (N, 1) are the class indices that they look like: in a fit, in metrics and in predictions"
    from fastai.metrics import accuracy
    from fastai.tabular.learner import tabular_learner
    (df,dls),loss = table,class_losses[name]()
    learn = tabular_learner(dls, layers=[8], loss_func=loss, metrics=accuracy)
    fit(learn, 1)
    *x,y = dls.one_batch()
    assert y.shape==(16,1) and not y.is_floating_point()
    with torch.no_grad(): pred = learn.model(*x)
    torch.testing.assert_close(loss(pred, y), loss(pred, y[:,0]))
    probs,targs,losses = learn.get_preds(with_loss=True)
    assert probs.shape==(12,3) and targs.shape==(12,1) and losses.shape==(12,)
    assert learn.predict(df.iloc[0])[2].shape==(3,)

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

class Kept(Callback):
    "The last training batch, what it was mixed with, and its loss"
    run_valid = False
    def after_loss(self):
        mix = next(o for o in self.learn.cbs if isinstance(o, (MixUp,CutMix)))
        self.batch = self.pred.detach(),self.y,mix.yb1[0],mix.lam,self.learn.loss_grad.item()

def dense(loss, *cbs, size=16, n_out=3, target=None):
    "A learner of masks as wide as a batch is long"
    set_seed(42)
    y = torch.randint(3, (32,16,size)) if target is None else target
    rows = list(zip(torch.randn(32,2,16,size), y))
    return Learner(DataLoaders.from_dsets(rows, rows[:16], bs=16, device='cpu'), nn.Conv2d(2,n_out,1), loss, cbs=cbs)

# NLLLoss takes no scores, and MultiMarginLoss one target per example
dense_losses = {k: o for k,o in class_losses.items() if k not in ('NLLLoss','MultiMarginLoss')}

@pytest.mark.parametrize('size', [16,12])
@pytest.mark.parametrize('name', dense_losses)
def test_dense_mixup(name, size):
    "fastai's MixUp mixes the loss of each example with its own factor, also where a mask is as wide as a batch is long"
    loss = dense_losses[name]()
    learn = dense(loss, MixUp(.4), kept := Kept(), size=size)
    fit(learn, 1)
    pred,y,y1,lam,got = kept.batch
    assert lam.shape==(16,) and lam.unique().numel()>1
    each = [loss.reduced('none', pred, o).reshape(16, -1).mean(1) for o in (y1,y)] # per pixel or per mask
    torch.testing.assert_close(got, torch.lerp(*each, lam).mean().item(), rtol=1e-4, atol=1e-5)
    assert loss.reduction=='mean' and learn.get_preds(with_loss=True)[2].shape==(16,)

def test_dense_soft_mixup():
    "Soft masks are mixed by the same factors"
    y = torch.rand(32,3,16,16).softmax(1)
    loss = SoftLabelCrossEntropy()
    fit(dense(loss, MixUp(.4), kept := Kept(), target=y), 1)
    pred,y,y1,lam,got = kept.batch
    want = loss(pred, torch.lerp(y1, y, lam[:,None,None,None]))
    torch.testing.assert_close(got, want.item(), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('name', ['FocalLoss','SoftLabelCrossEntropy','OHEM'])
def test_dense_cutmix(name):
    "CutMix gives both labels to every pixel, so masks are refused"
    with pytest.raises(ValueError, match='CutMix .* mask'): fit(dense(class_losses[name](), CutMix()), 1)

def test_dense_cutmix_of_labels():
    "fastai blurs the masks of a binary loss before any loss sees them; CheckBatch sees that"
    y = torch.randint(2, (32,1,16,16)).float()
    loss = loss_classes()['BinaryFocalLoss']()
    with pytest.raises(ValueError, match='CutMix .* mask'): fit(dense(loss, CutMix(), CheckBatch(), n_out=1, target=y), 1)
    fit(dense(loss, MixUp(), CheckBatch(), n_out=1, target=y), 1)

def test_cutmix_of_images():
    "One label per image is mixed by the share of the patch"
    set_seed(42)
    rows = list(zip(torch.randn(32,2,16,16), torch.randint(3, (32,))))
    model = nn.Sequential(nn.Flatten(), nn.Linear(512,3))
    loss,kept = SoftLabelCrossEntropy(),Kept()
    fit(Learner(DataLoaders.from_dsets(rows, rows, bs=16, device='cpu'), model, loss, cbs=[CutMix(), kept, CheckBatch()]), 1)
    pred,y,y1,lam,got = kept.batch
    torch.testing.assert_close(got, torch.lerp(loss(pred, y1), loss(pred, y), lam).item(), rtol=1e-4, atol=1e-5)

def test_own_mean_of_positions():
    "A loss that is set to 'none' gives values that are tensors in every other way"
    loss = loss_classes()['FocalLoss']()
    loss.reduction = 'none'
    x,y = torch.randn(4,3,5,5, requires_grad=True),torch.randint(3, (4,5,5))
    v = loss(x, y)
    torch.testing.assert_close(v.detach().as_subclass(torch.Tensor), loss.reduced('none', x, y).detach())
    mask = torch.rand(4,5,5)>.5
    assert type((v*mask).mean()) is torch.Tensor and v[mask].shape==(int(mask.sum()),)
    (v*mask).mean().backward()
    assert pickle.loads(pickle.dumps(v.detach())).equal(v) and copy.deepcopy(v.detach()).equal(v)
    assert torch.lerp(v, v, .5).allclose(v) and torch.stack([v,v]).shape==(2,4,5,5)

# soft labels: where they come from, and what measures them

NAMES = ['cat','dog','fox']

def label(o, **kwargs): return SoftLabelBlock(NAMES, **kwargs).type_tfms[0](o)

@pytest.mark.parametrize('o,want', [([3,1,0],[.75,.25,0.]), ((0,0,7),[0.,0.,1.]), (tensor([1,1,2]),[.25,.25,.5]),
    ([90,10,0],[.9,.1,0.]), ([.9,.1,0.],[.9,.1,0.]), ([.33,.33,.33],[1/3]*3), ([1.,0.,0.],[1.,0.,0.])])
def test_counts(o, want):
    "Counts of votes become the distribution that they are, and rounded probabilities sum to 1"
    torch.testing.assert_close(torch.Tensor(label(o)), tensor(want))

@pytest.mark.parametrize('o,text', [([.9,.5,0.],'must sum to 1, or count votes'), ([0,0,0],'needs at least one vote'), ([2,-1,0],'must be >= 0'),
    ([.5,float('nan'),.5],'must be >= 0'), ([float('inf'),0,0],'must be finite'), ([.5,.5],'must have 3 probabilities, got 2')])
def test_no_soft_label(o, text):
    with pytest.raises(ValueError, match=text): label(o)

def test_votes():
    "One label per annotator; who did not vote counts nothing"
    pd = pytest.importorskip('pandas')
    want = tensor([2/3,0.,1/3])
    for o in (['cat','fox','cat'], ('cat','fox','cat',None), ['cat','','cat',float('nan'),'fox'], pd.Series(['cat',pd.NA,'fox','cat'])):
        torch.testing.assert_close(torch.Tensor(label(o, votes=True)), want)
    digits = SoftLabelBlock(range(3), votes=True).type_tfms[0]
    torch.testing.assert_close(torch.Tensor(digits([2., 0., 2., float('nan')])), tensor([1/3,0.,2/3]))
    with pytest.raises(ValueError, match="a vote must be one of cat, dog, fox, got 'cow'"): label(['cow'], votes=True)
    with pytest.raises(ValueError, match='needs at least one vote'): label([None,''], votes=True)

@pytest.fixture
def people():
    "A data frame of votes, counts and probabilities of 80 items"
    pd = pytest.importorskip('pandas')
    set_seed(42)
    votes = torch.randint(3, (80,4))
    counts = torch.nn.functional.one_hot(votes, 3).sum(1)
    df = pd.DataFrame({f'person {i}': [NAMES[j] for j in votes[:,i]] for i in range(4)})
    for i,k in enumerate(NAMES): df[k],df[f'p {k}'] = counts[:,i].numpy(),(counts[:,i]/4).numpy()
    return df,counts/4

def of_frame(df, block, y, **kwargs):
    block = DataBlock((TransformBlock, block), get_x=lambda r: tensor([float(r[k]) for k in NAMES]), get_y=y,
        splitter=RandomSplitter(seed=0))
    return block.dataloaders(df, bs=16, device='cpu', **kwargs)

@pytest.mark.parametrize('columns,votes', [(NAMES,False), ([f'p {k}' for k in NAMES],False), ([f'person {i}' for i in range(4)],True)])
def test_from_columns(people, columns, votes):
    "Counts, probabilities and votes from the columns of a data frame are the same labels; no loss has to be named"
    df,want = people
    dls = of_frame(df, SoftLabelBlock(NAMES, votes=votes), ColReader(columns))
    y = torch.stack([torch.Tensor(o) for _,o in dls.train_ds])
    torch.testing.assert_close(y, want[list(dls.train_ds.splits[0])])
    learn = Learner(dls, nn.Linear(3,3), metrics=[SoftAccuracy(), SoftBrierScore(), CalibrationError()])
    assert isinstance(learn.loss_func, SoftLabelCrossEntropy)
    fit(learn, 1)
    assert learn.validate()[0]<2.5 # three times as much with counts

def test_default_loss_of_spans(spans):
    x,y = spans
    block = DataBlock((TransformBlock, SpanBlock), get_x=lambda i: x[i], get_y=lambda i: y[i].tolist(), splitter=RandomSplitter(seed=0))
    dls = block.dataloaders(range(120), bs=20, device='cpu')
    a,b = (Learner(dls, nn.Conv1d(1, 2, 9, padding=4)) for _ in range(2))
    assert isinstance(a.loss_func, SpanLoss) and a.loss_func is not b.loss_func
    fit(a, 1)

def test_teacher(people):
    "What a trained Learner says becomes the labels of another one"
    df,_ = people
    dls = of_frame(df, SoftLabelBlock(NAMES), ColReader(NAMES))
    teacher = Learner(dls, nn.Linear(3,3))
    fit(teacher, 1)
    for temperature in (1., 4.):
        get_y = TeacherLabels(teacher, df, temperature)
        student = of_frame(df, SoftLabelBlock(NAMES), get_y)
        i = student.train_ds.splits[0][3]
        with torch.no_grad(): want = (teacher.model(tensor([float(df.iloc[i][k]) for k in NAMES]))/temperature).softmax(0)
        torch.testing.assert_close(torch.Tensor(student.train_ds[3][1]), want, atol=1e-5, rtol=1e-4)
    fit(Learner(student, nn.Linear(3,3)), 1)
    with pytest.raises(ValueError, match='temperature must be > 0'): TeacherLabels(teacher, df, 0)

def test_teacher_of_a_list():
    block = DataBlock((TransformBlock, SoftLabelBlock(NAMES)), get_x=lambda i: tensor([i,1.,2.]), get_y=lambda i: [1,2,3], splitter=RandomSplitter(seed=0))
    teacher = Learner(block.dataloaders(range(40), bs=8, device='cpu'), nn.Linear(3,3))
    labels = TeacherLabels(teacher, range(40))
    with torch.no_grad(): torch.testing.assert_close(labels(7), teacher.model(tensor([7.,1.,2.])).softmax(0))
    with pytest.raises(KeyError, match='50 is no item that the teacher was asked for'): labels(50)

@pytest.mark.parametrize('loss', [SoftLabelCrossEntropy(), SoftLabelCrossEntropy(alpha=.1), nn.CrossEntropyLoss()], ids=repr)
def test_soft_metrics(people, loss):
    "Over batches of different size they are what the functions give on the whole set, from scores or with an activation"
    df,_ = people
    dls = of_frame(df, SoftLabelBlock(NAMES), ColReader(NAMES))
    learn = Learner(dls, nn.Linear(3,3), loss, metrics=[SoftAccuracy(), SoftBrierScore(), CalibrationError(7)])
    fit(learn, 1)
    dl = dls.valid.new(bs=5)
    got = learn.validate(dl=dl)[1:]
    preds,targs = learn.get_preds(dl=dl, act=lambda x: x)
    probs = preds.softmax(1)
    want = soft_accuracy(probs, targs),brier_score(probs, targs),calibration_error(probs, targs, 7)
    torch.testing.assert_close(tensor(list(got)), torch.stack(want), rtol=1e-4, atol=1e-5)
    assert [o.name for o in learn.metrics]==['soft_accuracy','brier_score','calibration_error']

def test_metrics_of_indices(table):
    "On fastai's own targets (N, 1) soft accuracy is accuracy"
    from fastai.metrics import accuracy
    from fastai.tabular.learner import tabular_learner
    learn = tabular_learner(table[1], layers=[8], metrics=[accuracy, SoftAccuracy(), SoftBrierScore()])
    fit(learn, 1)
    _,a,b,c = learn.validate()
    assert a==pytest.approx(b) and 0<c<2

def test_interpretation(people):
    "fastai's ClassificationInterpretation, by votes"
    df,_ = people
    dls = of_frame(df, SoftLabelBlock(NAMES), ColReader(NAMES))
    learn = Learner(dls, nn.Linear(3,3))
    fit(learn, 1)
    interp = SoftInterpretation.from_learner(learn)
    probs,targs = learn.get_preds()
    cm = interp.confusion_matrix()
    np.testing.assert_allclose(cm, soft_confusion_matrix(probs, targs), rtol=1e-5)
    assert cm.sum()==pytest.approx(16)
    pairs = interp.most_confused(.1)
    assert all(a!=b and n>=.1 for a,b,n in pairs) and [o[2] for o in pairs]==sorted([o[2] for o in pairs])[::-1]
    ax = interp.plot_confusion_matrix(normalize=True)
    assert [o.get_text() for o in ax.get_yticklabels()]==NAMES
    assert interp.plot_reliability(5).lines
    assert len(interp.top_losses(3)[0])==3
    plt.close('all')

def test_classification_report(people, capsys):
    df,_ = people
    learn = Learner(of_frame(df, SoftLabelBlock(NAMES), ColReader(NAMES)), nn.Linear(3,3))
    SoftInterpretation.from_learner(learn).print_classification_report()
    out = capsys.readouterr().out
    assert all(k in out for k in NAMES) and re.search(r'accuracy .* 16\.0', out)
