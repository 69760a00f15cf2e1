"What people bring as numbers, weights, labels and dtypes: read by its keys, kept in float32, counted with a sign, never dropped"
import numpy as np, pickle, pytest, torch, torch.nn.functional as F, warnings
from collections import Counter, OrderedDict, UserList, deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from torch import nn
from lossbook.all import *
from lossbook.check import loss_classes
from lossbook.contrastive import CLIPLoss, InfoNCELoss, SigLIPLoss
from lossbook.core import ClassLoss, assert_same, brief, check_batch, reduce, rounding, sum_and_norm
from lossbook.focal import OHEM, ohem, values_of
from lossbook.imbalance import adjust_logits, class_weights, deferred_weights, init_prior_bias
from lossbook.many_classes import AdaptiveSoftmaxLoss, LinearLoss, NCELoss
from lossbook.soft_metrics import brier_score, soft_accuracy
from lossbook.span import span_jaccard

class ListConfig(Sequence):
    "Like OmegaConf's: neither a list nor a tuple, and attributes that are not there raise an error of its own"
    def __init__(self, items): self.__dict__['items'] = items
    def __getitem__(self, i): return self.__dict__['items'][i]
    def __len__(self): return len(self.__dict__['items'])
    def __getattr__(self, k): raise AttributeError(f'ListConfig does not support attribute access: {k}')
class DictConfig(Mapping):
    "Like OmegaConf's: a mapping that is no dict"
    def __init__(self, d): self.d = d
    def __getitem__(self, k): return self.d[k]
    def __iter__(self): return iter(self.d)
    def __len__(self): return len(self.d)
class Series:
    "What a pandas Series looks like from outside, without pandas"
    def __init__(self, vals, index): self.vals,self.index = list(vals),index
    def tolist(self): return self.vals
    def __iter__(self): return iter(self.vals)
    def __len__(self): return len(self.vals)

vals = [1.,5.,2.]
x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
y = torch.tensor([0,1,2,0,1,1])
hot = F.one_hot(y, 3).float()

# ---- mappings, series and sequences

turned = {2: 2., 0: 1., 1: 5.}
keyed = dict(dict={0: 1., 1: 5., 2: 2.}, turned=turned, ordered=OrderedDict(turned), config=DictConfig(turned),
    numpy_keys={np.int64(k): np.float32(v) for k,v in turned.items()}, series=Series(turned.values(), list(turned)),
    numpy_index=Series(turned.values(), np.array(list(turned))))
plain_ones = dict(list=vals, tuple=tuple(vals), user_list=UserList(vals), config=ListConfig(vals), deque=deque(vals),
    array=np.array(vals), values=dict(zip('abc', vals)).values(), tensors=[torch.tensor(v) for v in vals])

def once_only(vals): return (v for v in vals)

@pytest.mark.parametrize('form', [*keyed, *plain_ones])
@pytest.mark.parametrize('name', ['weight','pos_weight','alpha','counts','prior'])
def test_any_form(form, name):
    "One mechanism: in constructors, where it becomes a buffer, and in functions"
    o,want = (keyed | plain_ones)[form],torch.tensor(vals)
    if name=='prior':
        a,b = (init_prior_bias(nn.Linear(2, 3), v, softmax=True).bias for v in (o, want))
        return assert_same(a, b)
    cls,t = dict(weight=(FocalLoss,y), pos_weight=(BCEWithLogitsLoss,hot), alpha=(FocalLoss,y), counts=(LogitAdjustedLoss,y))[name]
    loss = cls(**{name: o})
    assert_same(dict(loss.named_buffers())[name], want)
    assert_same(loss(x, t), cls.func(x, t, **{name: want}))
    assert_same(cls.func(x, t, **{name: o}), cls.func(x, t, **{name: want}))
    assert deepcopy(loss).to('meta').get_buffer(name).is_meta and 'reduction' in repr(pickle.loads(pickle.dumps(loss)))

def test_what_is_used_up():
    "An iterator is read once, when the loss is made; a range is a sequence"
    loss = CrossEntropyLoss(weight=once_only(vals))
    assert_same(loss(x, y), loss(x, y))
    assert_same(loss.weight, torch.tensor(vals))
    assert_same(CrossEntropyLoss(weight=range(1, 4)).weight, torch.tensor([1.,2.,3.]))
    assert_same(class_weights(map(float, [1,2,4])), class_weights([1,2,4]))

broken = dict(set={1.,5.,2.}, frozenset=frozenset(vals), keys={'a': 1, 'b': 5}.keys(), word='balanced', bytes=b'abc', number=2.,
    nothing=[], none_left=iter(()), empty={}, words=['a','b','c'], ragged=[[1,2],[3]], missing={0: 1., 2: 2.}, from_one={1: 1., 2: 2., 3: 3.},
    negative={-1: 1., 0: 5., 1: 2.}, bool_keys={True: 1., False: 5., 2: 1.}, float_keys={0.: 1., 1.: 5., 2.: 2.}, str_keys={'0': 1., '1': 5., '2': 2.},
    names=dict(zip('abc', vals)), counter=Counter('aabc'), named=Series(vals, list('abc')), twice=Series(vals, [0,1,1]), gap=Series(vals, [0,1,3]))

@pytest.mark.parametrize('form', broken)
def test_what_has_no_order(form):
    o = broken[form]
    for f in (lambda o: CrossEntropyLoss(weight=o), lambda o: BCEWithLogitsLoss(pos_weight='x' if form=='number' else o), class_weights,
        lambda o: LogitAdjustedLoss(counts=o), lambda o: cross_entropy_with_logits(x, y, weight=o)):
        with pytest.raises((TypeError,ValueError), match='weight|counts') as e: f(o)
        assert len(str(e.value))<400

def test_the_cure_is_named():
    n = Series([3,2,1], list('bac'))
    with pytest.raises(ValueError, match=r'counts\[list\(dls.vocab\)\]'): class_weights(n)
    with pytest.raises(ValueError, match=r'weight\[list\(dls.vocab\)\]'): CrossEntropyLoss(weight=n)
    with pytest.raises(ValueError, match=r'\[counts\[o\] for o in dls.vocab\]'): class_weights(dict(b=3, a=2))
    with pytest.raises(ValueError, match='got none for 1'): class_weights(Counter([0,0,2]))
    with pytest.raises(ValueError, match='shape .3,., one per class'): LogitAdjustedLoss(counts=Counter([0,0,1]))(x, y)

def test_a_series_of_pandas():
    pd = pytest.importorskip('pandas')
    labels = pd.Series([1,1,1,2,2,0])
    assert_same(class_weights(labels.value_counts()), class_weights([1,3,2]))
    assert_same(LogitAdjustedLoss(labels.value_counts()).counts, torch.tensor([1.,3.,2.]))
    named,vocab = labels.map({0: 'c', 1: 'b', 2: 'a'}).value_counts(),['a','b','c']
    with pytest.raises(ValueError, match='dls.vocab'): class_weights(named)
    assert_same(class_weights(named[vocab].tolist()), class_weights([2,3,1]))
    for o in (labels.value_counts().to_frame(), pd.DataFrame(dict(a=vals))):
        with pytest.raises(TypeError, match='counts must be one column'): class_weights(o)

@pytest.mark.parametrize('f', [class_weights, lambda n: deferred_weights(n, 1.), lambda n: adjust_logits(x, n), lambda n: adjust_logits(x, vals, to=n),
    lambda n: AdaptiveSoftmaxLoss(16, 3, [1], counts=n).rank, lambda n: NCELoss(4, 3, 2, noise=n).steps], ids=range(6))
def test_counts_everywhere(f):
    want = f(torch.tensor(vals))
    for o in (*keyed.values(), *plain_ones.values()): assert_same(f(o), want)
    with pytest.raises((TypeError,ValueError)): f({1.,2.,5.})

levels = [.1,.5,.9]
@pytest.mark.parametrize('o', [ListConfig(levels), UserList(levels), deque(levels), np.array(levels), dict(zip('abc', levels)).values(),
    {2: .9, 0: .1, 1: .5}, once_only(levels)], ids=lambda o: type(o).__name__)
def test_levels(o):
    loss,p,t = QuantileLoss(o),torch.randn(4, 3),torch.randn(4)
    assert_same(loss(p, t), QuantileLoss(levels)(p, t))
    assert_same(loss(p, t), QuantileLoss(levels)(p, t)) # and once more

def test_ranges_and_classes():
    for o in (ListConfig([0.,1.]), UserList([0.,1.]), deque([0.,1.]), np.array([0.,1.]), torch.tensor([0.,1.]), range(2)):
        for cls in (MSELoss, AdaptiveBarronLoss): assert cls(y_range=o).activation(torch.tensor([-1.,2.])).tolist()==[0.,1.]
    for o in ({0.,1.}, ListConfig([1.,0.]), ListConfig([0.,1.,2.]), 'ab'):
        with pytest.raises((TypeError,ValueError), match='y_range'): MSELoss(y_range=o)
    z,t = torch.randn(2,3,4,4),torch.randint(3, (2,4,4))
    for o in (ListConfig([0,2]), deque([0,2]), (0,2), {0,2}, np.array([0,2])): # the order of these does not matter
        assert_same(DiceLoss(classes=o)(z, t), DiceLoss(classes=[0,2])(z, t))
    for o in (ListConfig([2,5]), deque([2,5]), range(2,6,3)): assert AdaptiveSoftmaxLoss(16, 9, o).cutoffs==[2,5]

def test_labels_for_counts():
    "What can be known: integers that are all of 0..K or 1..K, each of them twice on the average"
    for o in ([1,2,1,3,1,1], [0,1]*50, np.array([2,1,2,1]), torch.tensor([1,2,3]*4), list(range(1,11))*10_000):
        for f in (class_weights, LogitAdjustedLoss, LDAMLoss):
            with pytest.raises(ValueError, match='look like labels.*bincount') as e: f(o)
            assert len(str(e.value))<300
    for o in ([1,1,1], [2,1,1], [3,1,2], [5,5,5,5], [1.,2.,1.,2.], {i: 1+i%2 for i in range(8)}, Counter([0,0,1,2,3,3])): class_weights(o)
    with pytest.raises(ValueError, match='labels are counted first'): LogitAdjustedLoss([7.]*50)(x, y)

@pytest.mark.parametrize('o', [[-1.]*10_000, ['cat','dog']*10_000, {i: 'x' for i in range(10_000)}, set(range(10_000)), 'x'*10_000,
    np.full(10_000, np.nan), torch.full((10_000,), -1.), dict.fromkeys(map(str, range(10_000)), 1.),
    Series([1]*10_000, ['a']*10_000)], ids=lambda o: type(o).__name__)
def test_no_error_prints_a_data_set(o):
    for f in (class_weights, lambda o: CrossEntropyLoss(weight=o), QuantileLoss, lambda o: FocalLoss(o), lambda o: CrossEntropyLoss(reduction=o),
        lambda o: MSELoss(y_range=o), lambda o: CrossEntropyLoss(ignore_index=o), lambda o: CrossEntropyLoss(label_smoothing=o)):
        with pytest.raises((TypeError,ValueError)) as e: f(o)
        assert len(str(e.value))<500, str(e.value)[:600]

def test_brief(): assert brief([1,2])=='[1, 2]' and brief('avg')=="'avg'" and len(brief(list(range(10**5))))<60

def test_soft_labels_by_name():
    "A data block reads what has the classes as keys by them, and counts votes that were counted"
    pytest.importorskip('fastai')
    from lossbook.learner import SoftLabelTransform
    t = SoftLabelTransform(['cat','dog','owl'])
    for o in (dict(owl=.1, cat=.2, dog=.7), {2: .1, 0: .2, 1: .7}, Series([.7,.1,.2], ['dog','owl','cat']), ListConfig([.2,.7,.1]), deque([.2,.7,.1]),
        np.array([.2,.7,.1]), torch.tensor([.2,.7,.1]), Series([.2,.7,.1], ['p1','p2','p3'])): assert_same(torch.Tensor(t.encodes(o)), [.2,.7,.1])
    for o in ({0: .2, 1: .8}, dict(cat=1.), {.2,.7,.1}):
        with pytest.raises((TypeError,ValueError)): t.encodes(o)
    votes = SoftLabelTransform(['cat','dog'], votes=True)
    assert_same(torch.Tensor(votes.encodes(Counter(dog=3, cat=1))), torch.Tensor(votes.encodes(['dog','dog','cat','dog'])))

# ---- no count in half precision

@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('shape', [(1,2,256,256), (70_000,2), (4,2,200,200)])
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(ignore_index=1)], ids=['module','function','ignoring'])
def test_ohem_counts(loss, shape, dtype):
    "From 65,536 positions on, a count in float16 is infinite"
    g = torch.Generator().manual_seed(0)
    z,t = torch.randn(shape, generator=g).to(dtype),torch.randint(2, (shape[0],*shape[2:]), generator=g)
    want = getattr(loss, 'ignore_index', -100)
    want = F.cross_entropy(z.double(), t, ignore_index=want)
    got = OHEM(loss, keep=1.)(z, t)
    assert got.dtype==torch.float
    assert_same(got, want.float(), rtol=2e-3, atol=0.)

def test_sums_in_half():
    v = torch.full((70_000,), 3.).half()
    for norm in (None, torch.ones_like(v), torch.ones_like(v)*.5):
        total,n = sum_and_norm(v, norm)
        assert total.dtype==n.dtype==torch.float and total==210_000 and n==70_000*(1 if norm is None else norm[0].item())
        assert reduce(v, norm=norm)==total/n and reduce(v, sample_weight=torch.ones(70_000).half(), norm=norm)==total/n
        assert ohem(v, 1., norm=norm)==total/n
    assert reduce(v, 'sum')==210_000

@pytest.fixture
def half_by_default():
    torch.set_default_dtype(torch.half) # as Lightning does for '16-true'
    yield
    torch.set_default_dtype(torch.float)

@pytest.mark.parametrize('name', loss_classes())
def test_half_by_default(name, half_by_default):
    "A loss that is made and called where half is the default dtype counts in float32 all the same"
    loss = loss_classes()[name]()
    assert all(o.dtype!=torch.half for o in loss.buffers() if o.is_floating_point())
    batch = loss.example(8)
    assert loss(*batch).isfinite().all()

def test_many_positions_by_default(half_by_default):
    z,t = torch.randn(70_000, 2),torch.randint(2, (70_000,))
    want = F.cross_entropy(z.double(), t)
    for loss in (CrossEntropyLoss(), CrossEntropyLoss(weight=[1.,1.]), OHEM(CrossEntropyLoss(), 1.), OHEM(nn.CrossEntropyLoss(), 1.), FocalLoss(0.),
        LogitAdjustedLoss(counts=[9e4,9e4])):
        assert_same(loss(z, t).double(), want, rtol=2e-3, atol=0.)
    assert OHEM(CrossEntropyLoss(reduction='none'), .5, reduction='none')(z, t).count_nonzero()==35_000
    want = F.binary_cross_entropy_with_logits(z.double(), F.one_hot(t, 2).double())
    assert_same(BCEWithLogitsLoss(ignore_index=-1.)(z, F.one_hot(t, 2)).double(), want, rtol=2e-3, atol=0.)

# ---- labels without a sign

unsigned = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]

@pytest.mark.parametrize('dtype', unsigned)
def test_unsigned(dtype):
    "Label 156 is no -100, label 255 no -1: in the loss, in the check, around losses of others"
    z,t = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)),torch.tensor([156,255,3,156,0,156,200,255])
    u = t.to(dtype)
    want = F.cross_entropy(z, t)
    for loss in (CrossEntropyLoss(), CrossEntropyLoss(ignore_index=-1), OHEM(CrossEntropyLoss(), 1.), OHEM(nn.CrossEntropyLoss(), 1.)):
        if dtype!=torch.uint8 and isinstance(loss, OHEM) and not isinstance(loss.loss, CrossEntropyLoss): continue # PyTorch takes bytes alone
        assert_same(loss(z, u), want)
        check_batch(loss, z, u)
        with pytest.raises(ValueError, match='target must be in 0..99'): check_batch(loss, z[:,:100], u)
    if dtype==torch.uint8:
        v,n = values_of(nn.CrossEntropyLoss(), z, u)
        assert n.sum()==8
        check_batch(nn.CrossEntropyLoss(), z, u)
    d = DistillationLoss(ignore_index=-100)
    assert_same(d(z, z+1, u), d(z, z+1, t))
    with pytest.raises(ValueError, match='teacher_logits'): check_batch(d, z, torch.where(t[:,None]==156, torch.nan, z), u)
    assert_same(soft_accuracy(z, u), soft_accuracy(z, t))
    m = DiceLoss()
    assert_same(m(z[None].mT, u[None]), m(z[None].mT, t[None]))

@pytest.mark.parametrize('dtype', unsigned)
def test_unsigned_elsewhere(dtype):
    spans = torch.tensor([[3,1],[2,2]])
    assert_same(span_jaccard(spans.to(dtype), spans.flip(1).to(dtype)), span_jaccard(spans, spans.flip(1)))
    lists = MultiLabelMarginLoss(multi_hot=True)
    assert_same(lists(x, hot.to(dtype)), lists(x, hot.long()))
    check_batch(lists, x, hot.to(dtype))
    named = torch.tensor([[1,0,2]]*6) # lists of indices that are full
    assert_same(MultiLabelMarginLoss()(x, named.to(dtype)), MultiLabelMarginLoss()(x, named))
    check_batch(MultiLabelMarginLoss(), x, named.to(dtype))
    b = BCEWithLogitsLoss(ignore_index=-1.)
    check_batch(b, x, hot.to(dtype))
    if dtype!=torch.uint8: return
    with pytest.raises(ValueError, match='target must be in'): check_batch(b, x, (hot*255).to(dtype)) # 255 is no -1
    with pytest.raises(ValueError, match='target must be'): check_batch(SoftMarginLoss(), x[:,0], torch.full((6,), 255, dtype=dtype))
    hidden = torch.randn(8, 4)
    layer = nn.Linear(4, 200)
    t = torch.tensor([156,3]*4)
    assert_same(LinearLoss(CrossEntropyLoss())(hidden, layer, t.to(dtype)), CrossEntropyLoss()(layer(hidden), t))

# ---- what is given twice, or has no place

pair,truth,var,w = torch.randn(5, 2),torch.randn(5),torch.rand(5)+.1,torch.rand(5)
gauss = GaussianNLLLoss()

@pytest.mark.parametrize('f,message', [
    (lambda: gauss(pair, truth, var, sample_weight=w), 'var has no place'), (lambda: gauss(pair, truth, var=var), 'var has no place'),
    (lambda: gauss(pair, truth, var, w), 'var has no place'), (lambda: gauss(pair.unbind(1), truth, var=var, sample_weight=w), 'var has no place'),
    (lambda: gauss(truth, truth, var, w, sample_weight=w), 'sample_weight is given twice'), (lambda: gauss(truth, truth, var, var=var), 'var is given twice'),
    (lambda: gauss(truth, truth, var, w, w), 'got 3 arguments'), (lambda: gauss.reduced('sum', pair, truth, var, sample_weight=w), 'var has no place')])
def test_variances(f, message):
    with pytest.raises(TypeError, match=message): f()

def test_variances_that_have_a_place():
    assert_same(gauss(pair, truth, w), gauss(pair, truth, sample_weight=w))
    assert_same(gauss(pair, truth, None, w), gauss(pair, truth, sample_weight=w))
    for v in (gauss(truth, 0*truth, var, w), gauss(truth, 0*truth, var, sample_weight=w)): assert_same(v, gauss(truth, 0*truth, var=var, sample_weight=w))
    assert_same(gauss(truth, 0*truth, var), F.gaussian_nll_loss(truth, 0*truth, var))

scores,span = torch.randn(4, 2, 6),torch.tensor([[1,2],[0,0],[2,4],[3,3]])
mask,lengths = torch.ones(4, 6, dtype=torch.bool),torch.full((4,), 6)
hidden,layer = torch.randn(6, 4),nn.Linear(4, 3)
handed = hidden,layer.weight,layer.bias
a,b,c = torch.randn(3, 5, 4)

@pytest.mark.parametrize('f,message', [
    (lambda: SpanLoss()(scores, span, mask, mask=mask), 'mask is given twice'), (lambda: DistanceLoss()(scores, span, lengths, lengths=lengths), 'lengths is given twice'),
    (lambda: LinearLoss(CrossEntropyLoss())(handed, y, torch.ones(6), sample_weight=torch.ones(6)), 'sample_weight is given twice'),
    (lambda: LinearLoss(CrossEntropyLoss())(handed, y, linear_bias=layer.bias), 'linear_bias has no place'),
    (lambda: LinearLoss(CrossEntropyLoss())(x, y, linear_bias=layer.bias), 'linear_bias has no place'),
    (lambda: LinearLoss(CrossEntropyLoss())(hidden, layer, y, layer.bias), 'linear_bias is given twice'),
    (lambda: TripletMarginLoss()((a,b,c), y, w), 'a target at most'), (lambda: InfoNCELoss()((a,b), c), 'has no place'),
    (lambda: CLIPLoss()((a,b), y, w), 'a target at most'), (lambda: SigLIPLoss()((a,b), c), 'has no place')])
def test_dropped_arguments(f, message):
    with pytest.raises(TypeError, match=message): f()

def test_arguments_in_their_place():
    "A target beside a tuple is what a Learner has, and a layer without a bias may be given one"
    assert_same(InfoNCELoss()((a,b), torch.arange(5)), InfoNCELoss()(a, b))
    assert_same(TripletMarginLoss()((a,b,c), torch.arange(5.)), TripletMarginLoss()(a, b, c))
    bare = nn.Linear(4, 3, bias=False)
    assert_same(LinearLoss(CrossEntropyLoss())(hidden, bare, y, layer.bias), CrossEntropyLoss()(bare(hidden)+layer.bias, y))

def forwards():
    for k,o in loss_classes().items():
        if k not in ('SpanLoss','DistanceLoss'): yield k # whose mask and lengths are told apart by their shape

@pytest.mark.parametrize('name', forwards())
def test_one_argument_too_many(name):
    "In every `forward`: nothing takes the place of what is missing, and nothing falls off the end"
    loss = loss_classes()[name]()
    batch = loss.example(4)
    n = len(batch[0]) if isinstance(batch[0], torch.Tensor) else len(batch[0][0])
    with pytest.raises((TypeError,ValueError)): loss(*batch, *[torch.ones(n)]*3)
    with pytest.raises(TypeError): loss(*batch, nonsense=torch.ones(n))

# ---- casts

casts = dict(half=lambda o: o.half(), bfloat16=lambda o: o.bfloat16(), to=lambda o: o.to(torch.half), type=lambda o: o.type(torch.half),
    wrapped=lambda o: nn.ModuleDict(dict(loss=o)).half()['loss'], twice=lambda o: o.double().half(), back=lambda o: o.half().float(),
    meta=lambda o: o.to(dtype=torch.half, device='cpu'))
big = [dict(cls=LogitAdjustedLoss, counts=[1e5,10,5]), dict(cls=BalancedSoftmaxLoss, counts=[1e5,10,5]), dict(cls=LDAMLoss, counts=[1e5,10,5]),
    dict(cls=BCEWithLogitsLoss, pos_weight=[1e5,1,1e-6]), dict(cls=BinaryFocalLoss, pos_weight=[1e5,1,1]), dict(cls=CrossEntropyLoss, weight=[1e-8,1e-6,1e5]),
    dict(cls=FocalLoss, weight=[1e-8,1e-9,1e-8]), dict(cls=FocalLoss, alpha=[1e-8,1e5,1.]), dict(cls=MultiMarginLoss, weight=[1e-8,1e5,1.]),
    dict(cls=MultiLabelSoftMarginLoss, weight=[1e-8,1e-8,1e-9]), dict(cls=DistillationLoss, weight=[1e-8,1e-9,1e-8])]

@pytest.mark.parametrize('how', casts)
@pytest.mark.parametrize('params', big, ids=lambda o: '-'.join([o['cls'].__name__, *o][::2]))
def test_casts(params, how):
    "Counts, weights and priors are what they were, and the loss is right"
    kw = dict(params)
    loss = kw.pop('cls')(**kw)
    z,t = x.half(),hot if isinstance(loss, BinaryLoss) else y
    batch = (z,z.flip(0),t) if isinstance(loss, DistillationLoss) else (z,t)
    want,was = loss(*(o.float() if o.dtype==torch.half else o for o in batch)),{k: v.clone() for k,v in loss.named_buffers() if v is not None}
    f = casts[how](deepcopy(loss))
    for k,v in f.named_buffers(): assert_same(v, was[k])
    assert_same(f(*batch), want, rtol=1e-5, atol=1e-10)
    g = type(loss)(**{k: torch.ones(3) for k in kw})
    g.load_state_dict(f.state_dict())
    assert_same(g(*batch), want, rtol=1e-5, atol=1e-10)
    for o in (deepcopy(f), pickle.loads(pickle.dumps(f))): assert_same(o(*batch), want, rtol=1e-5, atol=1e-10)

def test_casts_that_go_through():
    "float64 and devices are followed, and what is learned is cast as ever"
    loss = CrossEntropyLoss(weight=vals)
    assert loss.double().weight.dtype==torch.double and loss.to('meta').weight.is_meta
    assert loss.half().weight.dtype==torch.float and loss.weight.is_meta
    assert loss.to_empty(device='cpu').weight.device.type=='cpu'
    assert AdaptiveBarronLoss().half().latent_alpha.dtype==torch.half
    assert CrossEntropyLoss(weight=nn.Parameter(torch.ones(3))).half().weight.dtype==torch.half
    assert CrossEntropyLoss(weight=torch.ones(3).half()).weight.dtype==torch.float
    assert AdaptiveSoftmaxLoss(16, 9, counts=range(9, 0, -1)).half().rank.dtype==torch.long
    inner = OHEM(CrossEntropyLoss(weight=[1e-8,1e5,1.])).half()
    assert_same(inner.loss.weight, torch.tensor([1e-8,1e5,1.]))

# ---- a single class

one,zeros = torch.randn(4, 1),torch.zeros(4).long()

@pytest.mark.parametrize('loss,batch', [(CrossEntropyLoss(), (one,zeros)), (FocalLoss(), (one,zeros)), (MultiMarginLoss(), (one,zeros)), (LDAMLoss(), (one,zeros)),
    (KLDivWithLogitsLoss(), (one,zeros)), (OHEM(FocalLoss()), (one,zeros)), (OHEM(nn.CrossEntropyLoss()), (one,zeros)), (nn.CrossEntropyLoss(), (one,zeros)),
    (F.cross_entropy, (one,zeros)), (nn.NLLLoss(), (one,zeros)), (nn.MultiMarginLoss(), (one,zeros)), (CrossEntropyLoss(axis=-1), (one[None],zeros[None])),
    (DiceLoss(), (one.reshape(2,1,2),zeros.reshape(2,2))), (DistillationLoss(), (one,one,zeros)), (NLLLoss(), (0*one,zeros)),
    (ArcFaceLoss(1, 3), (torch.randn(4,3),zeros)),
    (MultiLabelMarginLoss(), (one,zeros[:,None])), (LinearLoss(CrossEntropyLoss()), (torch.randn(4,3),nn.Linear(3,1),zeros)),
    (CrossEntropyLoss()+FocalLoss(), (one,zeros))], ids=lambda o: getattr(o, '__name__', type(o).__name__))
def test_one_class(loss, batch):
    with pytest.warns(UserWarning, match='one class.*BCEWithLogitsLoss'): check_batch(loss, *batch)

@pytest.mark.parametrize('loss', [BCEWithLogitsLoss(), BinaryFocalLoss(), BinaryDiceLoss(), nn.BCEWithLogitsLoss(), MSELoss(), nn.MSELoss(), L1Loss()],
    ids=lambda o: type(o).__name__)
def test_one_score_is_no_mistake(loss):
    "A sigmoid or a number of one column, constant targets included"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for t in (0.,1.): check_batch(loss, one, torch.full((4,1), t))
        check_batch(CrossEntropyLoss(), torch.randn(4,2), zeros)

# ---- a rounding error

binary = [BCEWithLogitsLoss(), BinaryFocalLoss(), AsymmetricLoss(), MultiLabelSoftMarginLoss(), BinaryDiceLoss(), BinaryJaccardLoss(), BinaryTverskyLoss(),
    BinaryFocalTverskyLoss(), BinaryLovaszLoss()]
sized = dict(ids=lambda o: type(o).__name__)

@pytest.mark.parametrize('dtype', [torch.float, torch.half, torch.double])
@pytest.mark.parametrize('loss', binary, **sized)
def test_target_off_by_rounding(loss, dtype):
    "As `F.interpolate` makes of a mask of ones; the value is that of a mask of ones"
    eps,z = torch.finfo(dtype).eps,torch.randn(2, 3, 4)
    for edge in (1+3*eps, -3*eps):
        t = torch.full((2,3,4), edge, dtype=dtype)
        p = z.clone().requires_grad_()
        v = loss(p, t)
        check_batch(loss, z, t)
        assert_same(v.detach(), loss(z, t.round()), rtol=2e-2 if dtype==torch.half else 1e-4, atol=1e-2 if dtype==torch.half else 1e-5)
        assert torch.autograd.grad(v, p)[0].isfinite().all()
        for big in (1e4,-1e4): assert loss(big*torch.ones_like(z), t).isfinite()
    resized = F.interpolate(torch.ones(2, 3, 7, dtype=torch.float), 97, mode='linear')
    if dtype==torch.float: check_batch(loss, torch.randn(2, 3, 97), resized)
    for bad in (1.02,-.02,2.,255.,float('inf')):
        with pytest.raises(ValueError, match='target must be in .0, 1.'): loss(z, torch.full((2,3,4), bad, dtype=dtype))
        with pytest.raises(ValueError, match='target must be in .0, 1.'): check_batch(loss, z, torch.full((2,3,4), bad, dtype=dtype))
    with pytest.raises(ValueError): check_batch(loss, z, torch.full((2,3,4), float('nan'), dtype=dtype))

def test_rounding():
    assert 12*torch.finfo(torch.float).eps<rounding(torch.float)<1e-5 and rounding(torch.double)<1e-14
    assert rounding(torch.half)<.0098 and rounding(torch.long)==0
    for bad in (1.01,1+1e-4):
        with pytest.raises(ValueError, match=f'got {bad:g}'): BCEWithLogitsLoss()(x, torch.full_like(x, bad))
    with pytest.raises(ValueError): BCEWithLogitsLoss()(x, torch.full_like(x, 1.01).half())

@pytest.mark.parametrize('dtype', [torch.float, torch.half, torch.double])
def test_probabilities_off_by_rounding(dtype):
    "Value and gradient are those of 0 and 1, where log(1-p) is none"
    eps = 4*torch.finfo(dtype).eps
    for edge,off in ((1.,1+eps),(0.,-eps)):
        for t in (0.,1.,.5):
            got,want = [],[]
            for p,res in ((off,got), (edge,want)):
                p = torch.full((2,3), p, dtype=dtype, requires_grad=True)
                v = BCELoss()(p, torch.full((2,3), t))
                res += [v.detach(),torch.autograd.grad(v, p)[0]]
                assert all(o.isfinite().all() for o in res)
            assert_same(got[0], want[0], rtol=1e-2 if dtype==torch.half else 1e-4, atol=1e-2 if dtype==torch.half else 1e-5)
            assert_same(got[1], want[1], rtol=2e-2, atol=1e-2)
    for bad in (1.02,-.02,255.,float('inf')):
        with pytest.raises(ValueError, match='probs must be in .0, 1.'): BCELoss()(torch.full((2,3), bad, dtype=dtype), torch.ones(2,3))

def test_probabilities_of_classes():
    p = torch.tensor([[1.0000004,-4e-7,0.],[.2,.3,.5]])
    q = p.clamp(0, 1)
    t = torch.tensor([0,1])
    for f in (soft_label_cross_entropy, classification_mae, brier_score): assert_same(f(p, t), f(q, t), rtol=1e-5, atol=1e-5)
    a = p.clone().requires_grad_()
    v = soft_label_cross_entropy(a, torch.tensor([1,1]))
    v.backward()
    assert v<100 and a.grad.isfinite().all()

soft = [k for k,o in loss_classes().items() if issubclass(o, ClassLoss) and 'Masks' not in o.__mro__[1].__name__ and o not in (NLLLoss,)]
@pytest.mark.parametrize('name', soft)
def test_distributions_off_by_rounding(name):
    "A share of -3e-8 is 0, a share of 1.0000004 is 1"
    loss = loss_classes()[name]()
    t = torch.tensor([[1.0000004,-3e-8,0.],[.5,.5,-3e-8]])
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    check_batch(loss, z, t)
    v = loss(z, t)
    assert_same(v.detach(), loss(z.detach(), t.clamp(0, 1)), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(v, z)[0].isfinite().all()
