"Every check of `lossbook.check` meets a loss that was broken for it, and what `check_loss` promises beside"
import logging, pytest, torch, torch.nn.functional as F
from torch import nn
from lossbook.check import CHECKS, Case, Report, check_loss, run_check, with_setting
from lossbook.focal import OHEM, FocalLoss, focal_loss_with_logits
from lossbook.core import ClassLoss, check_range, plain, reduce

# ---- a loss that is right, written without the machinery of the book

def scaled(logits, target, scale=1., reduction='mean', *, weight=None, sample_weight=None, ignore_index=-100, axis=1):
    "Cross entropy with a factor, as one formula for both forms of target"
    check_range(scale, 'scale', 0)
    x,y = plain(logits).movedim(axis, 1),plain(target)
    if not y.is_floating_point(): y = y.long()
    if x.dtype in (torch.half, torch.bfloat16): x = x.float()
    hard = not y.is_floating_point()
    want = x[:,0].shape if hard else logits.shape
    if y.shape!=want: raise ValueError(f'target must have shape {tuple(want)}, got {tuple(y.shape)}')
    if hard:
        keep = (y!=ignore_index).unsqueeze(1)
        traced = torch.jit.is_tracing() or type(y) is not torch.Tensor or y.is_meta
        traced = traced or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if not traced and ((y>=x.shape[1]) & (y!=ignore_index)).any():
            raise ValueError(f'target must be below {x.shape[1]}, got {y.max()}')
        y = (torch.where(keep, y.unsqueeze(1), 0)==torch.arange(x.shape[1], device=x.device).reshape(-1, *[1]*(x.ndim-2)))
        y = y.to(x.dtype)*keep
    else: y = y.to(x.dtype).movedim(axis, 1)
    if weight is not None: y = y*weight.to(x.dtype).reshape(-1, *[1]*(x.ndim-2))
    nll = -x.log_softmax(1)
    nll = nll.masked_fill((y==0) & (nll==torch.inf), 0.)
    return reduce(scale*(y*nll).sum(1), reduction, sample_weight, y.sum(1))

class Good(ClassLoss):
    func = staticmethod(scaled)
    def __init__(self, scale=1., weight=None, axis=1, ignore_index=-100, reduction='mean'):
        more = dict(axis=axis, ignore_index=ignore_index, reduction=reduction)
        super().__init__(scale=scale, weight=weight, **more)

def right(o, x, y, w=None, **params): return o.func(x, y, sample_weight=w, **{**o.params(), **params})
def rows(o, x, y): return right(o, x, y, reduction='none')

# ---- what is wrong with it, one thing at a time: name of the check -> (loss, logits, target, sample_weight)

def over_n(o, x, y, w):
    return right(o, x, y, w) if o.weight is None or o.reduction!='mean' else rows(o, x, y).mean()
def no_mask(o, x, y, w): return right(o, x, y, None if w is not None and w.dtype==torch.bool else w)
def over_all(o, x, y, w):
    plain_mean = o.reduction=='mean' and not y.is_floating_point() and o.weight is None and w is None and len(y)
    return rows(o, x, y).mean() if plain_mean else right(o, x, y, w)
def other_order(o, x, y, w):
    v = right(o, x, y, w)
    return v.flatten().flip(0).reshape(v.shape) if o.reduction=='none' else v
def naive(o, x, y, w): # the logarithm of the probability
    return right(o, x.softmax(o.axis).log(), y, w)
def zero_times_inf(o, x, y, w):
    if not y.is_floating_point() or o.weight is not None: return right(o, x, y, w)
    return reduce(-o.scale*(y*x.log_softmax(1)).sum(1), o.reduction)
def doubled(o, x, y, w): # in the gradient, not in the value
    v = right(o, x, y, w)
    return 2*v-v.detach() if x.dtype==torch.double else v
def flat_second(o, x, y, w): # value and gradient are right, the second derivative is 0
    if x.dtype!=torch.double or y.is_floating_point() or not x.requires_grad or w is not None: return right(o, x, y, w)
    g = (x.softmax(1)-F.one_hot(y, x.shape[1])).detach()
    return reduce(rows(o, x, y).detach()+o.scale*((x-x.detach())*g).sum(1), o.reduction)
def over_counted(o, x, y, w):
    n = (y!=-100).sum()
    return right(o, x, y, w)*(n/n if len(x) else 1)
class Twice(torch.autograd.Function):
    "The identity, whose forward derivative is 0"
    generate_vmap_rule = True
    @staticmethod
    def forward(v): return v*1
    @staticmethod
    def setup_context(ctx, inputs, output): pass
    @staticmethod
    def backward(ctx, g): return g*1
    @staticmethod
    def jvp(ctx, t): return t*0
class NoVmap(torch.autograd.Function):
    @staticmethod
    def forward(v): return v*1
    @staticmethod
    def setup_context(ctx, inputs, output): pass
    @staticmethod
    def backward(ctx, g): return g*1
    @staticmethod
    def jvp(ctx, t): return t*1
def in_float32_sum(o, x, y, w): # one after the other, as a loop adds up
    if o.reduction!='mean' or len(x)<1000 or w is not None or o.weight is not None: return right(o, x, y, w)
    v = rows(o, x, y)
    return v.cumsum(0)[-1]/len(v) if v.dtype==torch.double else v.half().mean().float()
def in_float16_count(o, x, y, w): # from 65,520 on it is infinite
    if x.dtype!=torch.half or o.reduction!='mean' or w is not None or o.weight is not None: return right(o, x, y, w)
    n = torch.full((), float((y!=-100).sum()) if not y.is_floating_point() else len(x), dtype=torch.half)
    return right(o, x, y, w, reduction='sum')/n
def wraps(o, x, y, w): # a byte is compared with -100
    if y.dtype!=torch.uint8: return right(o, x, y, w)
    return right(o, x, torch.where(y!=o.ignore_index, y.long(), o.ignore_index), w)
def logged(o, x, y, w):
    logging.getLogger('loss').debug('called')
    return right(o, x, y, w)
def through_matmul(o, x, y, w):
    v = right(o, x, y, w)
    return (v.reshape(-1,1)@torch.ones(1, 1, dtype=v.dtype, device=v.device)).reshape(v.shape)
def in_place(o, x, y, w): return right(o, x if x.requires_grad else x.sub_(x.amax(1, keepdim=True)), y, w)
def looks(o, x, y, w): # at the targets, to save a mask
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or type(y) is not torch.Tensor
    if y.is_floating_point() or traced or y.is_meta or not len(y): return right(o, x, y, w)
    return right(o, x, y, w)*(1 if (y<0).any() else y.numel()/(y!=-100).sum())
def counts(o, x, y, w): # the rows, as a Python number
    if o.reduction!='mean' or y.is_floating_point() or w is not None or o.weight is not None: return right(o, x, y, w)
    return right(o, x, y, w, reduction='sum')/max(int((y!=-100).sum()), 1)
frozen = {}
def one_scale(o, x, y, w): # the first value that a compiler saw
    if not torch.compiler.is_compiling(): return right(o, x, y, w)
    v = frozen.setdefault('scale', 1.) # stands for a number that the compiler drops
    return right(o, x, y, w, scale=v)
def swaps(o, x, y, w): # the reduction for the time of a call
    if torch.compiler.is_compiling() or x.dtype!=torch.float: return right(o, x, y, w)
    was,o.reduction = o.reduction,'none'
    v = right(o, x, y, w)
    o.reduction = was
    return v if was=='none' else right(o, x, y, w)
def detached(o, x, y, w): # the scale is read as a number
    return right(o, x, y, w, scale=float(o.scale))
def unworded(o, x, y, w): return right(o, x, y, w, reduction=o.reduction if o.reduction in ('mean','sum') else 'none')
def broadcast(o, x, y, w):
    if y.ndim<x.ndim or y.is_floating_point(): return right(o, x, y, w)
    return -x.log_softmax(1)[:,y.flatten()].mean()
def wrapped(o, x, y, w):
    return right(o, x, y if y.is_floating_point() else torch.where(y==-100, y, y%x.shape[o.axis]), w)
def one_number(o, x, y, w): return right(o, x, y, w) if torch.is_grad_enabled() else right(o, x, y, w).mean()

class Unpicklable(Good):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.value = lambda nll: nll
class Shallow(Good):
    def __deepcopy__(self, memo):
        res = Shallow(**self.params())
        res.weight = self.weight
        return res
class Forgetful(Good):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._non_persistent_buffers_set.add('weight')
class Heavy(Good):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.weight is not None: self.cache = self.weight.clone()
class ByPlace(Good): # what has keys is read by its place
    def __init__(self, scale=1., weight=None, **kwargs): super().__init__(scale, list(weight.values()) if isinstance(weight, dict) else weight, **kwargs)
class Cast(Good): # weights, too
    def _apply(self, fn, recurse=True): return nn.Module._apply(self, fn, recurse)
class Bound(Good): # the reduction is bound at the start
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bound = self.reduction
    def forward(self, x, y, sample_weight=None):
        return right(self, x, y, sample_weight, reduction=getattr(self, 'bound', self.reduction))
class Normless(Good): # a mean knows what it divides by, a function as reduction does not
    def reduced(self, reduction, x, y, sample_weight=None):
        r = (lambda v,norm: reduction(v, None)) if callable(reduction) else reduction
        return super().reduced(r, x, y, sample_weight)
class Sigmoid(Good):
    def activation(self, x): return x.sigmoid()
class LastAxis(Good):
    def decodes(self, x): return x.argmax(-1)
class NotInt(Good): y_int = False

BROKEN = dict(
    none_shape=lambda o,x,y,w: right(o, x, y, w)[:,None] if o.reduction=='none' else right(o, x, y, w),
    sums=lambda o,x,y,w: right(o, x, y, w)*(1+(o.reduction=='sum')),
    falls=lambda o,x,y,w: -right(o, x, y, w),
    means=lambda o,x,y,w: right(o, x, y, w)*(1+(o.reduction=='mean' and o.weight is None)),
    weighted_means=over_n,
    one_hot=lambda o,x,y,w: right(o, x, y, w)*(1.001 if y.is_floating_point() and o.weight is None else 1),
    weighted_one_hot=lambda o,x,y,w: (over_n if y.is_floating_point() else right)(o, x, y, w),
    masks=no_mask, repeats=lambda o,x,y,w: right(o, x, y, None if w is None else w!=0), ignores=over_all,
    dense=lambda o,x,y,w: right(o, x, y, w)*(1 if x.ndim<3 else 6),
    axis=lambda o,x,y,w: right(o, x.log_softmax(1), y, w), permutes=other_order,
    splits=lambda o,x,y,w: right(o, x, y, w)*(1 if len(x)!=1 else 3), accumulates=Normless(),
    large_float32=lambda o,x,y,w: (naive if x.dtype==torch.float else right)(o, x, y, w),
    large_float16=lambda o,x,y,w: right(o, x*4/4, y, w),
    large_bfloat16=lambda o,x,y,w: (naive if x.dtype==torch.bfloat16 else right)(o, x, y, w),
    half_precision=lambda o,x,y,w: right(o, x*1.003 if x.dtype==torch.half else x, y, w),
    many_rows=in_float32_sum, half_rows=in_float16_count, unsigned=wraps,
    nan=lambda o,x,y,w: right(o, x.nan_to_num(0., torch.inf, -torch.inf), y, w), minus_infinity=zero_times_inf,
    gradient=doubled, second_gradient=flat_second, forward_mode=lambda o,x,y,w: Twice.apply(right(o, x, y, w)),
    all_ignored=over_counted, empty=lambda o,x,y,w: right(o, x, y, w)+(0. if len(x) else torch.nan),
    compiles=logged, recompiles=one_scale, fake=counts, traces=looks, vmaps=lambda o,x,y,w: NoVmap.apply(right(o, x, y, w)),
    autocast=through_matmul, threads=swaps, learned_numbers=detached,
    strides=lambda o,x,y,w: right(o, x.view(-1).view(x.shape) if x.ndim==2 else x, y, w), pure=in_place,
    pickles=Unpicklable(), deepcopies=Shallow(), state=Forgetful(), weights_move=Heavy(), weight_forms=ByPlace(), casts=Cast(),
    bad_shape=broadcast, bad_class=wrapped, bad_word=unworded,
    bad_number=lambda o,x,y,w: o.scale*right(o, x, y, w, scale=1.),
    settable=Bound(), activation=Sigmoid(), decodes=LastAxis(), mixup=NotInt(), cutmix=NotInt(), get_preds=one_number)

def broken(f):
    "The loss with another `forward`"
    if isinstance(f, nn.Module): return f
    def forward(self, x, y, sample_weight=None): return f(self, x, y, sample_weight)
    return type('Broken', (Good,), dict(forward=forward, check_skips=dict(pickles='made on the fly')))()

def failing(loss, *slow):
    case = Case(loss)
    names = [k for k,f in CHECKS.items() if k in slow or not f.slow]
    return {k: r.reason for k in names if (r := run_check(CHECKS[k], case)).status=='failed'}

def test_every_check_has_a_broken_loss(): assert set(BROKEN)==set(CHECKS)

@pytest.mark.parametrize('loss', [Good(), Good(2., axis=-1), Good(weight=[1.,2.,5.,7.])], ids=lambda o: str(o).split(' at 0x')[0])
def test_right_loss_holds(loss): assert not failing(loss, *CHECKS)

# what also breaks something else, by its nature
also = dict(pure={'strides'}, fake={'vmaps','traces'}, large_float32={'minus_infinity'},
    gradient={'learned_numbers'}, second_gradient={'learned_numbers'})

@pytest.mark.parametrize('name', BROKEN)
def test_check_finds_its_broken_loss(name):
    found = failing(broken(BROKEN[name]), name)
    assert name in found and set(found) <= {name}|also.get(name, set()), found

# ---- what is found out about a loss, whatever its arguments are called

class DiceLoss(nn.modules.loss._Loss):
    "With the signature and the shapes of segmentation-models-pytorch"
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
    def forward(self, y_pred, y_true):
        n,C = y_true.size(0),y_pred.size(1)
        if self.mode=='multiclass':
            p,y = y_pred.softmax(1).view(n, C, -1),F.one_hot(y_true.view(n, -1), C).permute(0, 2, 1)
        else:
            k = 1 if self.mode=='binary' else C
            p,y = y_pred.sigmoid().view(n, k, -1),y_true.view(n, k, -1)
        y = y.type_as(p)
        score = 2*(p*y).sum((0,2))/(p+y).sum((0,2)).clamp_min(1e-7)
        return ((1-score)*(y.sum((0,2))>0)).mean()
    def extra_repr(self): return self.mode

def renamed(logits, y_true): return F.cross_entropy(logits, y_true)
def positional(*args): return F.cross_entropy(*args)
def of_probs(p, t): return -p.gather(1, t[:,None]).log().mean()
def bce_of_probs(p, t): return -(t*p.log()+(1-t)*(1-p).log()).mean()
def absolute(a, b): return (a-b).abs().mean()
def minus(x, y): return -F.cross_entropy(x, y)
def twice(x, y): return F.cross_entropy(x.softmax(1), y)
def sigmoid_twice(x, y): return F.binary_cross_entropy_with_logits(x.sigmoid(), y)
def triplet(u, v, w): return ((u-v).norm(dim=1)-(u-w).norm(dim=1)+1).relu().mean()
def contrastive(u, v, s):
    d = (u-v).norm(dim=1)
    return (d**2*(s>0)+(1-d).relu()**2*(s<=0)).mean()

@pytest.mark.parametrize('loss,task,scores', [(renamed,'classes','logits'), (positional,'classes','logits'),
    (minus,'classes','logits'), (twice,'classes','logits'), (of_probs,'classes','probs'), (bce_of_probs,'binary','probs'),
    (sigmoid_twice,'binary','logits'), (absolute,'real','logits'), (triplet,'triplets','logits'),
    (contrastive,'pairs','logits'), (DiceLoss('multiclass'),'classes','logits'), (DiceLoss('binary'),'binary','logits'),
    (DiceLoss('multilabel'),'binary','logits'), (nn.CosineEmbeddingLoss(),'pairs','logits'), (nn.MSELoss(),'real','logits'),
    (nn.TripletMarginLoss(),'triplets','logits'), (nn.BCELoss(),'binary','probs')], ids=lambda o: str(getattr(o, '__name__', o)))
def test_task_is_found(loss, task, scores):
    case = Case(loss)
    assert (case.task,case.scores,case.n_preds) == (task, scores, dict(pairs=2, triplets=3).get(task, 1))

def test_names_of_arguments_do_not_matter():
    def named(input, target): return F.cross_entropy(input, target)
    a,b = [check_loss(o, groups=['values','numerics']).failed for o in (named,renamed)]
    assert a.keys()==b.keys()

def test_only_real_faults_of_dice():
    "Over the whole batch, no class that is absent, no `reduction`: what segmentation-models-pytorch chose"
    failed = set(check_loss(DiceLoss('multiclass')).failed)
    assert failed == {'none_shape','splits','empty','vmaps','bad_class','bad_word','settable','activation','decodes','mixup',
        'cutmix','get_preds'}

@pytest.mark.parametrize('loss', [nn.MarginRankingLoss(), nn.GaussianNLLLoss(), lambda: None])
def test_unknown_losses_ask_for_an_example(loss):
    with pytest.raises(ValueError, match='pass `example`'): Case(loss)

def test_unknown_task_names_the_list():
    for f in (Case,check_loss):
        with pytest.raises(ValueError, match="task must be one of classes, binary, real, pairs, triplets, span, got 'boxes'"):
            f(F.mse_loss, task='boxes')

# ---- a right answer costs less

@pytest.mark.parametrize('loss,message', [(minus,'a right answer costs'), (twice,'a softmax or a sigmoid before'),
    (sigmoid_twice,'a softmax or a sigmoid before')])
def test_sign_and_double_softmax(loss, message):
    assert message in check_loss(loss, groups=['values'])['falls'].reason

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(label_smoothing=.9), nn.MultiMarginLoss(margin=5.), nn.MultiLabelSoftMarginLoss(),
    nn.PoissonNLLLoss(), lambda x,y: 1-x.softmax(1).gather(1, y[:,None]).mean(),
    lambda x,y: 1000*F.cross_entropy(x, y), lambda x,y: F.cross_entropy(x, y)+1e-4*x.logsumexp(1).square().mean()], ids=lambda o: str(o).split(' at 0x')[0])
def test_no_false_alarm(loss): assert run_check(CHECKS['falls'], Case(loss)).status=='held'

# ---- other promises

def test_forward_mode_of_chunked_cross_entropy():
    "PyTorch's own gives a derivative of 0 without a word"
    options = getattr(nn, 'LinearCrossEntropyOptions', None)
    if options is None: pytest.skip('this PyTorch has no chunked cross entropy')
    W = torch.randn(6, 4, generator=torch.manual_seed(0))
    def loss(x, y, reduction='mean'): return F.linear_cross_entropy(x, W.to(x.dtype), y, reduction=reduction, options=options())
    def example(n): return torch.randn(n, 4),torch.arange(n)%6
    res = run_check(CHECKS['forward_mode'], Case(loss, example))
    assert res.status=='failed' and 'got 0' in res.reason

def dropped(logits, target, smooth=.2, reduction='mean'):
    y = torch.rsub(1-target, 1-smooth/2, alpha=1-smooth)
    return F.binary_cross_entropy_with_logits(logits, y, reduction=reduction)
def kept(logits, target, smooth=.2, reduction='mean'):
    return F.binary_cross_entropy_with_logits(logits, smooth/2+target*(1-smooth), reduction=reduction)

def test_numbers_that_the_compiler_drops():
    "PyTorch 2.13 drops `alpha=` of rsub for symbolic numbers, others may not"
    found = [run_check(CHECKS['recompiles'], Case(o, backend='inductor')).status for o in (dropped,kept)]
    assert found[1]=='held' and (found[0]=='failed' or not torch.__version__.startswith('2.13'))

def test_a_number_that_is_read():
    def f(logits, target, scale=2.): return float(scale)*F.cross_entropy(logits, target)
    assert run_check(CHECKS['learned_numbers'], Case(f)).reason=='scale as a tensor gets no gradient'
    def h(logits, target, scale=2.):
        if isinstance(scale, torch.Tensor): raise TypeError('scale must be a number, got a tensor')
        return scale*F.cross_entropy(logits, target)
    assert run_check(CHECKS['learned_numbers'], Case(h)).status=='held'

def hasty(x, y): return (x.exp().sum(1).log()-x.gather(1, y[:,None])[:,0]).mean()

def test_half_precision_allows_one_rounding():
    "PyTorch's own cross entropy rounds once and passes; what rounds on the way to a small difference does not"
    for o in (F.cross_entropy, F.binary_cross_entropy_with_logits, F.smooth_l1_loss):
        assert run_check(CHECKS['half_precision'], Case(o)).status=='held'
    assert 'the value in float16 should be 0.06' in run_check(CHECKS['half_precision'], Case(hasty)).reason

def test_mixup_says_what_mends_it():
    rep = check_loss(nn.CrossEntropyLoss(), groups=['learner'])
    for k in ('mixup','cutmix'): assert rep[k].reason.endswith('losses and not class indices') and 'y_int = True' in rep[k].reason
    loss = nn.CrossEntropyLoss()
    loss.y_int = True
    assert not {'mixup','cutmix'} & set(check_loss(loss, groups=['learner']).failed)

def test_sums_and_norms_of_functions():
    "A function of this book takes a function as its reduction, others are left alone"
    assert run_check(CHECKS['accumulates'], Case(focal_loss_with_logits)).status=='held'
    for o in (F.cross_entropy, nn.CrossEntropyLoss()):
        assert run_check(CHECKS['accumulates'], Case(o)).reason=='the loss takes no function as its reduction'

def test_hardest_values_do_not_accumulate():
    assert run_check(CHECKS['accumulates'], Case(OHEM(FocalLoss(), 1.), task='classes')).status=='held'
    res = run_check(CHECKS['accumulates'], Case(OHEM(FocalLoss(), .5), task='classes'))
    assert res.status=='not applicable' and 'hardest' in res.reason

# ---- the report

def test_report():
    rep = check_loss(F.mse_loss, groups=['values'], skip=['sums'])
    assert isinstance(rep, Report) and rep.ok and rep['sums'].reason=='left out by the caller'
    assert 'Held: ' in rep._repr_markdown_() and '| failed |' not in rep._repr_markdown_()
    assert len(rep.to_frame())==len(rep.results)
    bad = check_loss(minus, groups=['values'])
    assert '| falls | a right answer costs' in bad._repr_markdown_() and repr(bad).startswith('minus: ')
    with pytest.raises(AssertionError, match='falls: a right answer'): check_loss(minus, groups=['values'], strict=True)

def test_random_state_stays():
    was = torch.get_rng_state()
    check_loss(nn.CrossEntropyLoss())
    assert torch.equal(torch.get_rng_state(), was)

def test_modules_that_do_not_load_are_not_passed_over(monkeypatch):
    "One that needs fastai is left out without it; one that is broken is not"
    from lossbook import check
    def fails(e):
        def load(name): raise e
        monkeypatch.setattr(check, 'import_module', load)
        return check.loss_classes()
    assert fails(ModuleNotFoundError('no fastai', name='fastai'))=={}
    for e in (ImportError('cannot import name'), ModuleNotFoundError('no chapter', name='lossbook.chapter')):
        with pytest.raises(ImportError): fails(e)

def test_with_setting():
    a,b = with_setting(F.mse_loss, reduction='sum'),with_setting(nn.HuberLoss(), reduction='none')
    assert a(torch.zeros(3), torch.ones(3))==3 and b(torch.zeros(3), torch.ones(3)).tolist()==[.5]*3
