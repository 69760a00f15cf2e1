"""Every loss of the catalogue in every use of a fastai `Learner`, one test for each cell. A loss has one Learner on tiny data
in this process: what trains goes on with it, what only looks shares it. `why_not` says what is left out, and why"""
import matplotlib, numpy as np, os, pandas as pd, pytest, time, torch, torch.distributed as dist, warnings
from fastai.basics import (CategoryBlock, DataBlock, DataLoaders, IndexSplitter, L, Learner, MultiCategoryBlock,
    RegressionBlock, TensorBase, Transform, TransformBlock, defaults, load_learner, nn, set_seed, show_title)
from fastai.callback.all import CutMix, GradientAccumulation, MixUp, ProgressCallback, SchedLin
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.tabular.all import Categorify, TabularDataLoaders, tabular_learner
from fastai.text.all import AWD_LSTM, TextBlock, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, text_classifier_learner
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel
from lossbook.check import loss_classes, task_of
from lossbook.core import plain
from lossbook.learner import CheckBatch, RecordParts, SpanBlock, TrainLoss
from lossbook.training import ExactAccumulation, ScheduleLoss

try: import_module('torchvision')
except RuntimeError: # a build for another PyTorch, which lacks its compiled operators; nothing here needs them
    OPS = torch.library.Library('torchvision', 'DEF')
    for o in ('nms','qnms'): OPS.define(f'{o}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
from fastai.vision.all import ImageBlock, MaskBlock, PILImage, PILMask

matplotlib.use('agg')
N,C,VALID = 16,3,list(range(8,16))
LOSSES = loss_classes()
rng = np.random.default_rng(0)
PICTURES = rng.integers(0, 255, (N,8,8,3), dtype=np.uint8)
MASKS = rng.integers(0, C+1, (N,8,8), dtype=np.uint8) # C is the void
LABELS = 'abc'
SENTENCES = [' '.join(rng.choice(['it','was','a','good','bad','film','that','i','saw'], 12)) for _ in range(N)]

@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    "No bars, no files but in a folder of the test, one thread, pictures closed"
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])
    monkeypatch.chdir(tmp_path)
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    torch.set_num_threads(n)
    matplotlib.pyplot.close('all')

# ---- data for each task

class Net(nn.Module):
    "One linear layer for each prediction, whose outputs are what the loss wants"
    def __init__(self, shapes, score, n_in=192):
        super().__init__()
        self.shapes,self.score = shapes,score
        self.lin = nn.ModuleList(nn.Linear(n_in, s.numel()) for s in shapes)
    def forward(self, x):
        x = x.flatten(1)[:,:self.lin[0].in_features]
        preds = tuple(self.score(f(x).reshape(-1, *s)) for f,s in zip(self.lin, self.shapes))
        return preds if len(preds)>1 else preds[0]

def picture(i): return PILImage.create(PICTURES[i])
def label(i): return LABELS[i%C]
def labels(i): return [o for j,o in enumerate(LABELS) if (i+j)%2]
def span(i): return [i%3,i%3+1+i%2]
class Pixel(TensorBase):
    "Numbers that know how to show themselves; fastai 2.8 shows pictures beside classes alone"
    def show(self, ctx=None, **kwargs): return show_title(f'{self.mean().item():.2f}', ctx=ctx)

def pixels(i): return Pixel(PICTURES[i]/255).permute(2,0,1).float()
def loaders(block, get_y, x=ImageBlock, get_x=picture):
    "From a block of data, whose first eight items are for training"
    return DataBlock((x,block), get_x=get_x, get_y=get_y, splitter=IndexSplitter(VALID)).dataloaders(range(N), bs=4, num_workers=0)

class Values:
    "The numbers of a target, for a `RegressionBlock`"
    def __init__(self, y): self.y = y
    def __call__(self, i): return self.y[i].tolist()

BLOCKS = dict(classes=lambda: loaders(CategoryBlock, label), binary=lambda: loaders(MultiCategoryBlock, labels),
    span=lambda: loaders(SpanBlock, span, TransformBlock, pixels))
BLOCKS = {k: cache(f) for k,f in BLOCKS.items()}

def example(loss, n=N):
    "Predictions and what follows them"
    set_seed(0)
    args,k = loss.example(n),getattr(loss, 'n_preds', None) or 1
    return args[:k],args[k:] or (torch.zeros(n),)

@cache
@cache
def typed(name):
    "Has fastai a data block for the targets?"
    loss = LOSSES[name]()
    preds,ys = example(loss)
    if task_of(loss)=='real': return len(preds)==1 and preds[0].ndim<3 and preds[0].shape==ys[0].shape
    return task_of(loss) in BLOCKS and len(preds)==1 and len(ys)==1 and (task_of(loss)=='span' or preds[0].shape[1:]==(C,))

def data(name):
    "Loaders with types where fastai has some, or rows"
    loss = LOSSES[name]()
    preds,ys = example(loss)
    if typed(name) and task_of(loss)!='real': return BLOCKS[task_of(loss)]()
    if typed(name): return loaders(RegressionBlock(n_out=max(1, ys[0][0].numel())), Values(ys[0]), TransformBlock, pixels)
    rows = list(zip(torch.randn(N,192), *ys))
    dls = DataLoaders.from_dsets(rows[:8], rows[8:], bs=4, num_workers=0, device='cpu')
    dls.n_inp = 1
    return dls

def fresh(name, *cbs, **kwargs):
    "A Learner that has seen nothing"
    loss = LOSSES[name](**kwargs)
    preds,_ = example(loss)
    shapes = [o.shape[1:] or torch.Size([1]) if task_of(loss)=='real' else o.shape[1:] for o in preds]
    set_seed(1)
    return Learner(data(name), Net(shapes, loss.from_logits), loss, cbs=cbs)

@cache
def shared(name):
    learn = fresh(name)
    train(learn, lambda: learn.fit(1, 1e-3))
    return learn

def state(learn): return [p.detach().clone() for p in learn.model.parameters()]

def train(learn, f):
    "`f()` moves the parameters, which stay finite, and leaves the loss where it was"
    before,loss = state(learn),learn.loss_func
    with learn.no_logging(): f()
    after = state(learn)
    assert all(p.isfinite().all() for p in after) and not all(map(torch.equal, before, after))
    assert learn.loss_func is loss and getattr(loss, 'reduction', 'mean')=='mean'

# ---- the uses

def fit(name): train(learn := fresh(name), lambda: learn.fit(1, 1e-3))
def fit_one_cycle(name): train(learn := shared(name), lambda: learn.fit_one_cycle(1, 1e-3))
def lr_find(name):
    learn = fresh(name)
    with learn.no_logging(): assert 1e-7<=learn.lr_find(num_it=12, stop_div=False).valley<=10
def validate(name):
    "The mean of the batches, by hand"
    learn = shared(name)
    learn.model.eval()
    with torch.no_grad():
        want = [learn.loss_func(learn.model(b[0]), *b[1:]) for b in learn.dls.valid]
    assert learn.validate()[0]==pytest.approx(sum(map(float, want))/len(want), rel=1e-4, abs=1e-6)

def close(a, b):
    "Tensors, or tuples of them, without the labels of fastai"
    a,b = ([torch.as_tensor(plain(o)) for o in (x if isinstance(x, (tuple,list)) else [x])] for x in (a,b))
    torch.testing.assert_close(a, b, equal_nan=True)

def get_preds(name):
    learn = shared(name)
    x,p,y,dec,losses = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert len(losses)==len(VALID) and losses.ndim==1 and losses.isfinite().all()
    close(dec, learn.loss_func.decodes(p))
    close(p, learn.loss_func.activation(learn.get_preds(act=lambda o: o, reorder=False)[0]))
    first = learn.get_preds(ds_idx=0)[0]
    assert len(first[0] if isinstance(first, (tuple,list)) else first)==N-len(VALID)
    assert learn.get_preds(with_preds=False, with_targs=False, with_loss=True)[-1].shape==(len(VALID),)
    (folder := Path('preds')).mkdir()
    learn.get_preds(save_preds=folder.resolve())
    assert len(list(folder.iterdir()))==2

def predict(name):
    learn = shared(name)
    dec,_,probs = learn.predict(0)
    close(probs, learn.get_preds(dl=learn.dls.test_dl([0], num_workers=0))[0][0])
    if task_of(learn.loss_func)=='classes': assert dec==LABELS[int(probs.argmax())]

def show_results(name): shared(name).show_results(max_n=2)
def interpretation(name):
    interp = Interpretation.from_learner(shared(name))
    losses,idx = interp.top_losses(4)
    assert len(losses)==4 and (losses.diff()<=0).all()
    # fastai has pictures for these alone
    if task_of(LOSSES[name]()) in ('classes','binary'): interp.plot_top_losses(2, nrows=1, figsize=(3,2))
    interp.show_results([0,1])
def class_interpretation(name):
    interp = ClassificationInterpretation.from_learner(shared(name))
    assert interp.confusion_matrix().sum()==len(VALID)
    interp.plot_confusion_matrix(figsize=(2,2))
    interp.most_confused(), interp.print_classification_report()
def mixup(name): train(learn := shared(name), lambda: learn.fit(1, 1e-3, cbs=MixUp()))
def cutmix(name): train(learn := shared(name), lambda: learn.fit(1, 1e-3, cbs=CutMix()))
def accumulation(name): train(learn := shared(name), lambda: learn.fit(1, 1e-3, cbs=GradientAccumulation(8)))
def exact_accumulation(name): train(learn := shared(name), lambda: learn.fit(1, 1e-3, cbs=[ExactAccumulation(8),MixUp()]
    if mixes(name) else ExactAccumulation(8)))

class Bfloat16(nn.Module):
    "A model under autocast, which gives bfloat16"
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, x):
        with torch.autocast('cpu', dtype=torch.bfloat16): return self.model(x)

def bfloat16(name):
    learn = fresh(name)
    learn.model = Bfloat16(learn.model)
    train(learn, lambda: learn.fit(1, 1e-2))
    assert learn.get_preds(with_loss=True)[-1].isfinite().all()

def export(name):
    learn = shared(name)
    learn.path = Path.cwd()
    want,text = learn.get_preds()[0],repr(learn.loss_func)
    learn.export('tiny.pkl')
    other = load_learner('tiny.pkl')
    assert repr(other.loss_func)==text
    close(other.get_preds(dl=other.dls.test_dl(VALID, num_workers=0))[0], want)

def save_and_load(name):
    "Model, optimiser and the parameters of the loss, if it has any"
    learn = fresh(name)
    learn.path,own = Path.cwd(),[p for p in learn.loss_func.parameters() if p.requires_grad]
    if own: learn.add_cb(TrainLoss())
    train(learn, lambda: learn.fit(1, 1e-2))
    kept = state(learn)+[p.detach().clone() for p in own]
    learn.save('tiny')
    train(learn, lambda: learn.fit(1, 1e-2))
    learn.load('tiny')
    for p,q in zip(state(learn)+own, kept): torch.testing.assert_close(p.detach(), q)

def summary(name): assert LOSSES[name].__name__ in str(fresh(name).summary())

def compiled(name):
    learn = fresh(name)
    learn.loss_func = torch.compile(learn.loss_func, backend='aot_eager')
    try: train(learn, lambda: learn.fit(1, 1e-3))
    finally: torch.compiler.reset()

def schedule(name):
    "A number of the loss, which it takes back"
    key = number_of(name)
    learn = fresh(name, ScheduleLoss({key: SchedLin(v := getattr(LOSSES[name](), key), v)}))
    train(learn, lambda: learn.fit(1, 1e-3))
    assert learn.recorder.hps[key]==[v]*2

def check_batch(name): train(learn := shared(name), lambda: learn.fit(1, 1e-3, cbs=CheckBatch()))
def record_parts(name):
    learn = shared(name)
    rec = RecordParts()
    train(learn, lambda: learn.fit(1, 1e-3, cbs=rec))
    assert all(len(v)==2 for v in rec.values().values())
    rec.plot()

@cache
def tables():
    df = pd.DataFrame(dict(a=np.arange(N)%4, b=rng.normal(size=N), y=[label(i) for i in range(N)]))
    return TabularDataLoaders.from_df(df, procs=[Categorify], cat_names=['a'], cont_names=['b'], y_names='y',
        y_block=CategoryBlock(), valid_idx=VALID, bs=4, num_workers=0)

class Scored(nn.Module):
    "A model with the last step that a loss on probabilities wants"
    def __init__(self, model, score):
        super().__init__()
        self.model,self.score = model,score
    def forward(self, *xs): return self.score(self.model(*xs))

def tabular(name):
    loss = LOSSES[name]()
    learn = tabular_learner(tables(), layers=[4], loss_func=loss)
    learn.model = Scored(learn.model, loss.from_logits)
    train(learn, lambda: learn.fit(1, 1e-2))
    _,y,dec,losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert len(y)==len(dec)==len(losses)==len(VALID)
    learn.validate()

class Words(Transform):
    def encodes(self, s:str): return L(s.split())

@cache
def texts(lm):
    vocab = sorted({w for s in SENTENCES for w in s.split()})
    blocks = TextBlock(Words(), vocab=['xxpad','xxunk',*vocab], is_lm=lm, seq_len=6, min_freq=1)
    get = dict(get_x=lambda i: SENTENCES[i])
    if not lm: get['get_y'] = label
    block = DataBlock(blocks if lm else (blocks,CategoryBlock), **get, splitter=IndexSplitter(VALID))
    return block.dataloaders(range(N), bs=4, seq_len=6, num_workers=0)

SMALL = dict(emb_sz=4, n_hid=4, n_layers=1)
def score_first(model, score):
    "Score the output of a recurrent model; the rest is for its regularisation"
    model.register_forward_hook(lambda m,args,out: (score(out[0]),*out[1:]))

def text_classifier(name):
    loss = LOSSES[name]()
    learn = text_classifier_learner(texts(False), AWD_LSTM, config=awd_lstm_clas_config | SMALL, pretrained=False, loss_func=loss, seq_len=6)
    score_first(learn.model, loss.from_logits)
    train(learn, lambda: learn.fit(1, 1e-2))
    assert learn.get_preds(with_loss=True)[-1].shape==(len(VALID),)

def language_model(name):
    "Scores (N, L, C)"
    loss = LOSSES[name](axis=-1)
    learn = language_model_learner(texts(True), AWD_LSTM, config=awd_lstm_lm_config | SMALL, pretrained=False)
    learn.loss_func = loss # fastai's function passes its own
    score_first(learn.model, loss.from_logits)
    train(learn, lambda: learn.fit(1, 1e-2))
    learn.validate()

@cache
def masks():
    block = DataBlock((ImageBlock,MaskBlock(codes=[*LABELS,'void'])), get_x=picture, get_y=lambda i: PILMask.create(MASKS[i]),
        splitter=IndexSplitter(VALID))
    return block.dataloaders(range(N), bs=4, num_workers=0)

class Pixels(nn.Module):
    def __init__(self, score):
        super().__init__()
        self.conv,self.score = nn.Conv2d(3, C, 1),score
    def forward(self, x): return self.score(self.conv(x))

def segmentation(name):
    "Pixels that are ignored change nothing, whatever the scores are there"
    loss = LOSSES[name](ignore_index=C)
    set_seed(1)
    learn = Learner(masks(), Pixels(loss.from_logits), loss)
    train(learn, lambda: learn.fit(1, 1e-2))
    p,y,dec,losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert len(losses)==len(VALID) and dec.shape==y.shape
    learn.show_results(max_n=1)
    x,t = learn.model(torch.randn(2,3,8,8)).detach(),torch.randint(C+1, (2,8,8))
    other = torch.where((t==C)[:,None], x.flip(0), x)
    torch.testing.assert_close(loss(x, t), loss(other, t))

# ---- two processes, once for all losses

def parallel_fits(rank, path, names):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    dist.init_process_group('gloo', init_method=f'file://{path}/init', rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for name in names:
        try:
            learn = fresh(name)
            learn.model = DistributedDataParallel(learn.model)
            if rank: learn.dls.loaders = learn.dls.loaders[::-1] # other data, as many batches
            with learn.no_logging(): learn.fit(1, 1e-3, cbs=[])
            res = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
        except Exception as e: res = f'{type(e).__name__}: {e}'
        torch.save(res, f'{path}/{name}-{rank}')
    dist.destroy_process_group()

@pytest.fixture
def two_processes(tmp_path_factory):
    "A folder with what two processes gave, which is filled once, whatever process of pytest comes first"
    path = tmp_path_factory.getbasetemp()
    path = (path.parent if os.environ.get('PYTEST_XDIST_WORKER') else path)/'gloo'
    try: path.mkdir()
    except FileExistsError:
        while not (path/'done').exists(): time.sleep(.2)
        return path
    try: multiprocessing.spawn(parallel_fits, (path, list(LOSSES)), nprocs=2)
    finally: (path/'done').touch()
    return path

def data_parallel(name, two_processes):
    "Both processes have the same parameters after a fit on different data"
    a,b = (torch.load(two_processes/f'{name}-{r}') for r in (0,1))
    assert isinstance(a, torch.Tensor), a
    torch.testing.assert_close(a, b)

# ---- what is left out, and why

CLASSES = 'class_interpretation','tabular','text_classifier','language_model','segmentation'
TYPED = 'predict','show_results','interpretation','export'
USES = dict(fit=fit, fit_one_cycle=fit_one_cycle, lr_find=lr_find, validate=validate, get_preds=get_preds, predict=predict,
    show_results=show_results, interpretation=interpretation, class_interpretation=class_interpretation, mixup=mixup, cutmix=cutmix,
    accumulation=accumulation, exact_accumulation=exact_accumulation, bfloat16=bfloat16, export=export, save_and_load=save_and_load,
    summary=summary, compiled=compiled, schedule=schedule, check_batch=check_batch, record_parts=record_parts, tabular=tabular,
    text_classifier=text_classifier, language_model=language_model, segmentation=segmentation, data_parallel=data_parallel)

def number_of(name): return next((k for k,v in LOSSES[name]().params().items() if isinstance(v, float)), None)

def mixes(name):
    loss = LOSSES[name]()
    return loss.y_int or all(o.is_floating_point() for o in example(loss)[1])

@cache
def why_not(name, use):
    "Why a cell is left out, or None"
    loss = LOSSES[name]()
    task,params = task_of(loss),loss.params()
    if use in TYPED and not typed(name): return f'fastai has no data block for such targets or outputs ({task})'
    if use in CLASSES and (task!='classes' or not typed(name)): return 'for losses over classes'
    if use in ('segmentation','language_model') and 'axis' not in params: return 'the loss takes no dense scores'
    if use=='segmentation' and 'ignore_index' not in params: return 'the loss has no ignore_index'
    if use in ('mixup','cutmix') and not mixes(name): return 'integer targets that are no classes cannot be mixed'
    if use=='cutmix' and not typed(name): return 'rows are no images'
    if task=='teacher' and use in ('mixup','accumulation','exact_accumulation','summary','check_batch'):
        return 'two targets, where this use of fastai takes one; AskTeacher brings the teacher there'
    if use=='schedule' and number_of(name) is None: return 'the loss has no number for a parameter'
    if use=='record_parts' and not hasattr(loss, 'parts'): return 'the loss has no parts'
    if use=='exact_accumulation' and 'accumulates' in getattr(loss, 'check_skips', {}): return loss.check_skips['accumulates']
    if use=='compiled' and 'compiles' in getattr(loss, 'check_skips', {}): return loss.check_skips['compiles']

ALL = [(k,u) for k in LOSSES for u in USES]
CELLS = [o for o in ALL if why_not(*o) is None]

@pytest.mark.parametrize('name,use', [pytest.param(*o, id='-'.join(o)) for o in CELLS])
def test_cell(name, use, request):
    args = [request.getfixturevalue('two_processes')] if use=='data_parallel' else []
    USES[use](name, *args)

def test_no_hole():
    "Most cells are run, and those of every use by some loss"
    assert {u for _,u in CELLS}==set(USES) and {k for k,_ in CELLS}==set(LOSSES) and len(CELLS)>.6*len(ALL)
