"fastai's data blocks, metrics and callbacks on spans and soft labels"
import pytest, torch, warnings
from fastai.basics import DataBlock, DataLoaders, Learner, RandomSplitter, TransformBlock, defaults, nn, set_seed
from fastai.callback.all import MixUp, ProgressCallback
from torch import tensor
from lossbook.check import loss_classes
from lossbook.core import ClassLoss
from lossbook.focal import OHEM
from lossbook.learner import CheckBatch, RecordParts, SoftLabelBlock, SpanExactMatch, SpanF1, SpanJaccard
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
