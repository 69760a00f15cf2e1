"Exact means over several batches, MixUp and processes, schedules of a loss, and the losses that fit some data"
import inspect, pytest, torch, torch.distributed as dist, torch.nn.functional as F
from fastai.basics import Callback, DataLoaders, Learner, SGD, defaults, nn, set_seed
from fastai.callback.all import CutMix, GradientAccumulation, GradientClip, MixUp, ProgressCallback, SchedCos, SchedLin
from fastai.callback.core import GatherPredsCallback
from fastai.callback.mixup import MixHandler, reduce_loss
from fastai.losses import CrossEntropyLossFlat
from torch import multiprocessing, tensor
from torch.nn.parallel import DistributedDataParallel
from lossbook.check import all_losses
from lossbook.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from lossbook.focal import OHEM, FocalLoss
from lossbook.learner import CheckBatch, RecordParts
from lossbook.training import ExactAccumulation, ScheduleLoss, losses_for

LOSSES = all_losses()

@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

class Heads(nn.Module):
    "One linear layer for each prediction of an example"
    def __init__(self, preds):
        super().__init__()
        self.shapes = [o.shape[1:] for o in preds]
        self.lin = nn.ModuleList(nn.Linear(16, o.numel()) for o in self.shapes)
    def forward(self, x):
        preds = tuple(f(x.flatten(1)).reshape(-1, *o) for f,o in zip(self.lin, self.shapes))
        return preds if len(preds)>1 else preds[0]

class Scored(Heads):
    "Whose outputs are what a loss on probabilities wants"
    def __init__(self, preds, score):
        super().__init__(preds)
        self.score = score
    def forward(self, x): return self.score(super().forward(x))

def batch_of(loss, n=8):
    "A model and rows for a loss"
    set_seed(0)
    args = loss.example(n)
    k = getattr(loss, 'n_preds', None) or 1
    preds,ys = args[:k],list(args[k:]) or [torch.zeros(n)]
    return Scored(preds, loss.from_logits),[torch.randn(n,1,4,4),*ys]

def learner(model, data, loss, bs, *cbs, **kwargs):
    rows = list(zip(*data))
    dls = DataLoaders.from_dsets(rows, rows, bs=bs, shuffle=False, drop_last=False, num_workers=0, device='cpu')
    dls.n_inp = 1
    return Learner(dls, model, loss, opt_func=SGD, cbs=cbs, **kwargs)

def step(loss, bs, *cbs, data=None, n=8):
    "What the first step follows: the gradient by every parameter"
    model,rows = batch_of(loss, n)
    learn = learner(model, data or rows, loss, bs, *cbs)
    before = [p.detach().clone() for p in model.parameters()]
    set_seed(3)
    with learn.no_logging(): learn.fit(1, 1.)
    return [b-p.detach() for b,p in zip(before, model.parameters())]

def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

def fitted(loss, bs, data, *cbs, model=linear):
    "The parameters after a step of size 1"
    set_seed(0)
    learn = learner(model(), data, loss, bs, *cbs)
    with learn.no_logging(): learn.fit(1, 1.)
    return [p.detach() for p in learn.model.parameters()]

def same(a, b, tol=2e-6):
    for g,h in zip(a, b): torch.testing.assert_close(g, h, atol=tol, rtol=1e-5)

# ---- one big batch

@pytest.mark.parametrize('name', [k for k,o in LOSSES.items() if 'accumulates' not in getattr(o, 'check_skips', {})])
def test_equal_to_one_big_batch(name):
    "Batches of 3, 3 and 2 examples, for every loss of the book that adds up"
    cb = ExactAccumulation(8)
    got,want = step(LOSSES[name], 3, cb),step(LOSSES[name], 8)
    same(got, want)
    model,(x,*ys) = batch_of(LOSSES[name])
    torch.testing.assert_close(cb.mean, LOSSES[name](model(x), *ys).detach())

def images(y): return torch.randn(8, 1, 4, 4, generator=torch.manual_seed(5)),*y
HARD = tensor([0,2,-100,1,-100,-100,2,0])
MASKS = torch.arange(24).reshape(8,3)%4-1

@pytest.mark.parametrize('loss,y', [(CrossEntropyLoss(),(HARD,)), (CrossEntropyLoss(weight=[1.,3.,9.]),(HARD,)),
    (FocalLoss(label_smoothing=.1, weight=[1.,3.,9.]),(HARD,)), (CrossEntropyLoss(),(HARD.clamp(min=0),torch.arange(8)%3*.7)),
    (BCEWithLogitsLoss(ignore_index=-1, weight=[1.,4.,2.]),(MASKS.clamp(max=1).float(),)),
    (CrossEntropyLoss(weight=[1.,3.,9.]),(torch.eye(3)[HARD.clamp(min=0)]*.7+.1,))], ids=range(6))
@pytest.mark.parametrize('bs', [1,2,3,5])
def test_weights_and_ignored(loss, y, bs):
    same(step(loss, bs, ExactAccumulation(8), data=images(y)), step(loss, 8, data=images(y)))

def test_fastai_is_off():
    loss,data = CrossEntropyLoss(),images((HARD,))
    want,off = step(loss, 8, data=data),step(loss, 2, GradientAccumulation(8), data=data)
    assert (off[0]-want[0]).norm()>.1*want[0].norm()

def test_dense_with_ignored_pixels():
    loss = CrossEntropyLoss(weight=[1.,2.,5.])
    data = images((torch.arange(8*16).reshape(8,4,4)%5-1,))
    data[1][data[1]<0],data[1][data[1]>2] = -100,-100
    def conv(): return nn.Conv2d(1, 3, 3, padding=1)
    same(fitted(loss, 3, data, ExactAccumulation(8), model=conv), fitted(loss, 8, data, model=conv))

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(weight=tensor([1.,3.,9.])), CrossEntropyLossFlat(ignore_index=0),
    nn.CrossEntropyLoss(weight=tensor([1.,3.,9.]), label_smoothing=.1), F.cross_entropy], ids=range(4))
def test_losses_of_others(loss):
    data = images((HARD.clamp(min=0),))
    same(fitted(loss, 3, data, ExactAccumulation(8)), fitted(loss, 8, data))

def test_hardest_values_are_those_of_each_part():
    loss,data = OHEM(CrossEntropyLoss(), .5),images((HARD.clamp(min=0),))
    want,got = fitted(loss, 8, data),fitted(loss, 2, data, ExactAccumulation(8))
    assert (got[0]-want[0]).norm()>1e-3

def test_all_ignored_moves_nothing():
    data = images((torch.full((8,), -100),))
    assert all((g==0).all() for g in step(CrossEntropyLoss(), 2, ExactAccumulation(4), data=data))

class CountSteps(Callback):
    order = 70
    def before_fit(self): self.n = 0
    def after_step(self): self.n += 1

@pytest.mark.parametrize('n_acc,epochs', [(2,1), (4,2), (6,3), (8,1)])
def test_steps_are_those_of_fastai(n_acc, epochs):
    "As many, with what is left over carried to the next epoch; and equal where nothing has a weight"
    found = []
    for cb in (ExactAccumulation(n_acc),GradientAccumulation(n_acc)):
        model,data = batch_of(CrossEntropyLoss())
        learn = learner(model, data, CrossEntropyLoss(), 2, cb, CountSteps())
        with learn.no_logging(): learn.fit(epochs, .1)
        found.append((learn.count_steps.n, *(p.detach() for p in model.parameters())))
    assert found[0][0]==found[1][0]
    same(found[0][1:], found[1][1:])

def test_what_is_left_over_stays_in_its_fit():
    model,data = batch_of(CrossEntropyLoss())
    learn = learner(model, data, CrossEntropyLoss(), 2, ExactAccumulation(6))
    with learn.no_logging(): learn.fit(1, 0.)
    assert any((p.grad!=0).any() for p in model.parameters())
    learn.exact_accumulation.before_fit()
    assert all((p.grad==0).all() for p in model.parameters())

def test_nothing_stays_after_an_error():
    "The loss of the Learner is its own after a fit, and after one that raised"
    loss = CrossEntropyLoss()
    model,data = batch_of(loss)
    for rows in (data, [data[0],tensor([0,1,2,0,5,0,0,0])]):
        learn = learner(model, rows, loss, 2, ExactAccumulation(8))
        try:
            with learn.no_logging(): learn.fit(1)
        except ValueError as e: assert 'target must be in 0..2' in str(e)
        assert learn.loss_func is loss

def test_beside_other_callbacks():
    "Clipping sees the gradient of the whole step, `CheckBatch` the batch, validation and `get_preds` the loss itself"
    model,data = batch_of(CrossEntropyLoss())
    loss = CrossEntropyLoss()
    learn = learner(model, data, loss, 2, ExactAccumulation(8), GradientClip(1e-3), CheckBatch())
    before = [p.detach().clone() for p in model.parameters()]
    with learn.no_logging():
        learn.fit(1, 1.)
        moved = torch.cat([(b-p).flatten() for b,p in zip(before, model.parameters())]).norm()
        assert abs(moved-1e-3)<1e-5 and len(learn.get_preds(with_loss=True)[2])==8
        learn.validate()
        learn.lr_find(num_it=5, show_plot=False)

@pytest.mark.parametrize('mix', [False,True])
@pytest.mark.parametrize('name', ['sum','span','z_loss'])
def test_parts_are_recorded(name, mix):
    "`RecordParts` sees what it sees without accumulation"
    from lossbook.many_classes import LinearLoss, hand_on
    from lossbook.span import SpanLoss
    y,found = torch.tensor([0,1,2,1,0,2,2,1]),[]
    for cbs in ([], [ExactAccumulation(4)]):
        set_seed(0)
        two = CrossEntropyLoss(weight=None if mix else [1.,3.,9.])+.5*FocalLoss()
        loss = dict(sum=two, span=SpanLoss(), z_loss=LinearLoss(CrossEntropyLoss(), z_loss=.1))[name]
        target = torch.stack([y, y+1], 1) if name=='span' else y
        model = linear()
        if name=='span': model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Unflatten(1, (2,6)))
        if name=='z_loss': hand_on(model)
        rec = RecordParts()
        learn = learner(model, images((target,)), loss, 2, rec, *cbs, *[MixUp()]*mix)
        with learn.no_logging(): learn.fit(2, 0.)
        assert loss.reduction=='mean' and all(len(v)==8 for v in rec.values().values())
        found.append(rec.values())
    same(*[o.values() for o in found])
    assert list(found[0])==list(found[1])!=[]

# ---- MixUp

@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('dense', [False,True])
def test_mixed_labels(mix, dense):
    "The loss of a mixture is that of the mixed distribution, whose mean divides by the mixed weights"
    loss = CrossEntropyLoss(weight=[1.,3.,9.])
    y = torch.arange(8)%3
    if dense: y = (y[:,None,None]+torch.arange(16).reshape(4,4))%3
    model = nn.Conv2d(1, 3, 3, padding=1) if dense else linear()
    seen = []
    class Look(Callback):
        order,run_valid = 30,False
        def after_loss(self):
            cb = self.learn.mix_up if mix is MixUp else self.learn.cut_mix
            lam = cb.lam.reshape(-1, *[1]*y.ndim)
            a,b = (F.one_hot(o, 3).movedim(-1, 1).float() for o in (cb.yb1[0],self.y))
            seen.append((self.learn.loss.detach(), loss(self.pred, torch.lerp(a, b, lam)).detach()))
    learn = learner(model, images((y,)), loss, 8, mix(), ExactAccumulation(1), Look())
    with learn.no_logging(): learn.fit(3, .1)
    assert len(seen)==3
    for got,want in seen: torch.testing.assert_close(got, want)
    assert learn.loss_func is loss

# ---- two processes

def work(rank, path, losses, out):
    torch.set_num_threads(1)
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    # three and five examples, two batches each of unequal size and norm
    part,bs = (slice(3),2) if rank==0 else (slice(3, 8),3)
    for i,(loss,y) in enumerate(losses):
        for name,size,cbs in (('exact',bs,[ExactAccumulation(4)]), ('plain',8,[])):
            set_seed(0)
            model = DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
            learn = learner(model, [o[part] for o in images(y)], loss, size, *cbs)
            with learn.no_logging(): learn.fit(1, 1.)
            if rank==0: torch.save([p.detach() for p in model.parameters()], f'{out}/{i}-{name}')
    dist.destroy_process_group()

def test_two_processes(tmp_path):
    "Unequal batches and norms on two processes give the gradient of one; without the callback they do not"
    losses = [(CrossEntropyLoss(),(HARD,)), (CrossEntropyLoss(weight=[1.,3.,9.]),(HARD,)), (FocalLoss(),(HARD.clamp(min=0),))]
    multiprocessing.spawn(work, (tmp_path/'init', losses, tmp_path), nprocs=2)
    for i,(loss,y) in enumerate(losses):
        want = fitted(loss, 8, images(y))
        exact,off = (torch.load(tmp_path/f'{i}-{k}') for k in ('exact','plain'))
        same(exact, want)
        assert (off[0]-want[0]).norm()>1e-3

# ---- what is relied on in the fastai that is installed

RELIED_ON = [(GradientAccumulation, 'order,run_valid = MixedPrecision.order-4,False'),
    (GradientAccumulation, 'self.learn.loss_grad /= self.n_acc/find_bs(self.learn.yb)'),
    (GradientAccumulation, 'if self.count<self.n_acc: raise CancelBatchException()'),
    (MixHandler, "getattr(self.learn.loss_func, 'y_int', False)"),
    (MixHandler, 'self.old_lf,self.learn.loss_func = self.learn.loss_func,self.lf'),
    (MixHandler, 'with NoneReduce(self.old_lf) as lf'),
    (MixHandler, 'torch.lerp(lf(pred,*self.yb1), lf(pred,*yb), self.lam)'),
    (MixUp, 'self.lam = lam.max(1)[0]'),
    (CutMix, 'self.lam = (1 - ((x2-x1)*(y2-y1))/float(W*H))'),
    (reduce_loss, "loss.mean() if reduction == 'mean'"),
    (Learner._do_one_batch, 'self.loss_grad = self.loss_func(self.pred, *self.yb)'),
    (Learner._do_one_batch, 'self.loss = self.loss_grad.clone()'),
    (Learner._do_grad_opt, "self._with_events(self._step, 'step', CancelStepException)"),
    (Learner._do_grad_opt, 'self.opt.zero_grad()'),
    (Learner.get_preds, "getcallable(self.loss_func, 'activation')"),
    (Learner.get_preds, "getcallable(self.loss_func, 'decodes')"),
    (Learner.get_preds, 'self.loss_not_reduced()'),
    (Learner.loss_not_reduced, "replacing_yield(self.loss_func, 'reduction', 'none')"),
    (GatherPredsCallback.after_batch, 'self.loss.view(bs,-1).mean(1)')]

@pytest.mark.parametrize('i', range(len(RELIED_ON)))
def test_what_we_rely_on_in_fastai(i):
    "Fails when the installed fastai no longer does what callbacks and losses count on: then read again what it does"
    o,text = RELIED_ON[i]
    assert text in inspect.getsource(o), f'{o.__qualname__} has no longer {text!r}'

# ---- schedules

def test_schedule():
    model,data = batch_of(FocalLoss())
    loss = FocalLoss(weight=[1.,2.,5.])
    learn = learner(model, data, loss, 2, ScheduleLoss({'gamma': SchedLin(0, 2), 'label_smoothing': SchedCos(.1, 0)}))
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    hps = learn.recorder.hps
    assert hps['gamma']==pytest.approx([i/4 for i in range(8)]) and {'lr','mom','label_smoothing'} <= set(hps)
    assert loss.gamma==pytest.approx(1.75) and learn.loss_func is loss
    learn.validate()
    assert len(learn.recorder.hps['gamma'])==8
    learn.recorder.plot_sched()

def test_schedule_changes_the_loss():
    "The loss of a batch is that with the number of the moment"
    model,data = batch_of(FocalLoss())
    seen = []
    class Look(Callback):
        run_valid = False
        def after_loss(self): seen.append((self.learn.loss.item(), FocalLoss(4*self.pct_train)(self.pred, self.y).item()))
    learn = learner(model, data, FocalLoss(), 2, ScheduleLoss({'gamma': SchedLin(0, 4)}), Look())
    with learn.no_logging(): learn.fit(2, .1)
    assert seen and all(a==pytest.approx(b) for a,b in seen)

def test_schedule_of_a_learned_number():
    loss = FocalLoss()
    loss.gamma = nn.Parameter(tensor(1.))
    model,data = batch_of(FocalLoss())
    learn = learner(model, data, loss, 4, ScheduleLoss({'gamma': SchedLin(0, 4)}))
    with learn.no_logging(): learn.fit(1)
    assert isinstance(loss.gamma, nn.Parameter) and loss.gamma.item()==2.

@pytest.mark.parametrize('name', ['gama','loss.gamma'])
def test_schedule_refuses(name):
    model,data = batch_of(FocalLoss())
    with pytest.raises((ValueError,AttributeError), match='gam|loss'): learner(model, data, FocalLoss(), 4, ScheduleLoss({name: SchedLin(0, 1)})).fit(1)

def test_schedule_out_of_range():
    model,data = batch_of(FocalLoss())
    with pytest.raises(ValueError, match='gamma must be >= 0, got -1'): learner(model, data, FocalLoss(), 4, ScheduleLoss({'gamma': SchedLin(-1, 1)})).fit(1)

# ---- refusals

@pytest.mark.parametrize('n_acc', [0,-1,2.5])
def test_n_acc(n_acc):
    with pytest.raises((TypeError,ValueError), match='n_acc must be'): ExactAccumulation(n_acc)

# ---- losses that fit

def loaders(*ys, c=None):
    rows = list(zip(torch.randn(len(ys[0]),4), *ys))
    dls = DataLoaders.from_dsets(rows, rows, bs=8, num_workers=0, device='cpu')
    if c: dls.c = c
    return dls

def fitting(*ys, **kwargs): return {o.name for o in losses_for(loaders(*ys, **kwargs))}

def test_losses_for_classes():
    found = fitting(torch.arange(16)%3)
    assert {'CrossEntropyLoss','FocalLoss','SoftLabelCrossEntropy','MultiMarginLoss'} <= found
    assert not {'MSELoss','BCEWithLogitsLoss','SpanLoss'} & found
    assert found==fitting((torch.arange(16)%3)[:,None,None].expand(16,2,2), c=3)

def test_losses_for_distributions():
    found = fitting(torch.rand(16,3).softmax(1))
    assert {'SoftLabelCrossEntropy','KLDivWithLogitsLoss'} <= found and 'NLLLoss' in found

def test_losses_for_labels():
    found = fitting(torch.randint(2, (16,3)).float())
    assert {'BCEWithLogitsLoss','BinaryFocalLoss'} <= found and 'CrossEntropyLoss' not in found

def test_losses_for_numbers():
    assert {'MSELoss','HuberLoss','PoissonNLLLoss'} <= fitting(torch.randint(5, (16,1)).float())
    assert 'MSELoss' in fitting(torch.randn(16)) and 'PoissonNLLLoss' not in fitting(torch.randn(16)-3)

def test_losses_for_spans():
    assert {'SpanLoss','DistanceLoss'} <= fitting(torch.randint(9, (16,2)).sort(1).values)

def test_one_target():
    with pytest.raises(ValueError, match='dls must have one target, got 2'): losses_for(loaders(torch.zeros(16),torch.zeros(16)))

# ---- as a trainer of Hugging Face calls a loss

@pytest.mark.parametrize('wrap', [lambda x: dict(logits=x), lambda x: (x,'more'), lambda x: x], ids=['dict','tuple','tensor'])
def test_outputs_of_a_model(wrap):
    "Four parts with the number of labels of all are one batch; without a number it is the loss itself"
    loss,x = CrossEntropyLoss(label_smoothing=.1),torch.randn(8, 3)
    n = (HARD>=0).sum()
    parts = [loss.on_outputs(wrap(a), b, num_items_in_batch=n) for a,b in zip(x.split(2), HARD.split(2))]
    torch.testing.assert_close(sum(parts), loss(x, HARD))
    torch.testing.assert_close(loss.on_outputs(wrap(x), HARD), loss(x, HARD))
