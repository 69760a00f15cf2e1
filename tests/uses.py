"""The ways to call a loss: all forms of target, weights and masks, in float64.

`losses()` are the losses of the book with all kinds of parameters, by name; `uses(loss)` are the
ways to call one, as {label: (loss, args, kwargs)}."""
import torch, torch.nn.functional as F
from copy import deepcopy
from functools import partial
from math import inf
from lossbook.check import all_losses, loss_classes, task_of
from lossbook.contrastive import ArcFaceLoss, CosFaceLoss, ProxyNCALoss
from lossbook.cross_entropy import MultiLabelSoftMarginLoss
from lossbook.distillation import DecoupledDistillationLoss, TopKDistillationLoss
from lossbook.focal import FocalLoss, PolyLoss
from lossbook.noisy_labels import GeneralizedCrossEntropy
from lossbook.regression import GaussianNLLLoss, NegativeBinomialNLLLoss
from lossbook.span import DistanceLoss
from reference import MAEOfProbs, SoftLabelOfProbs

def losses():
    "Every loss of the book, with other parameters that its functions have, too"
    tenth = [.1,.3,.6]
    more = dict(CrossEntropyLoss=[dict(weight=tenth, label_smoothing=.2)],
        FocalLoss=[dict(gamma=0.), dict(gamma=.5), dict(gamma=3.), dict(alpha=.25),
            dict(alpha=tenth, weight=[1.,2.,5.], label_smoothing=.2)],
        SoftLabelCrossEntropy=[dict(alpha=1.), dict(alpha=.2, weight=tenth)],
        GeneralizedCrossEntropy=[dict(q=0.), dict(q=1.)],
        BiTemperedLoss=[dict(t1=.5, t2=2.), dict(t1=1., t2=1.),
            dict(weight=tenth, label_smoothing=.2)],
        ActivePassiveLoss=[dict(active='gce', passive='rce'), dict(active='ce', weight=tenth),
            dict(active=FocalLoss(), passive=PolyLoss(2.), weight=tenth),
            dict(active=GeneralizedCrossEntropy(.3))],
        LogitAdjustedLoss=[dict(counts=[1.,5.,20.], weight=tenth)],
        BalancedSoftmaxLoss=[dict(counts=[1.,5.,20.])],
        LDAMLoss=[dict(counts=[1.,5.,20.], scale=3.)],
        MultiMarginLoss=[dict(p=2), dict(hardest=True, weight=tenth)],
        BCEWithLogitsLoss=[dict(pos_weight=3.),
            dict(pos_weight=[1.,2.,5.], weight=tenth, label_smoothing=.2), dict(weight=2.)],
        BinaryFocalLoss=[dict(gamma=0.), dict(gamma=0., alpha=.25), dict(alpha=.25, pos_weight=2.),
            dict(gamma=.5),
            dict(alpha=tenth, pos_weight=[1.,2.,5.], weight=tenth, label_smoothing=.2)],
        AsymmetricLoss=[dict(gamma_pos=1., margin=0.)], HuberLoss=[dict(delta=.3)],
        SmoothL1Loss=[dict(beta=0.)],
        BarronLoss=[dict(alpha=2.), dict(alpha=0.), dict(alpha=-2., scale=2.),
            dict(alpha=.7, full=True)],
        QuantileLoss=[dict(quantiles=.3)], ExpectileLoss=[dict(expectiles=.3), dict(axis=1)],
        GaussianNLLLoss=[dict(full=True, axis=1)], BetaNLLLoss=[dict(beta=1.)],
        PoissonNLLLoss=[dict(log_input=False), dict(full=True)],
        NegativeBinomialNLLLoss=[dict(dispersion=.5), dict(full=True)],
        SoftMarginLoss=[dict(negative=0)], CosineEmbeddingLoss=[dict(margin=.3, negative=0)],
        ContrastiveLoss=[dict(margin=4., negative=0)],
        TripletMarginLoss=[dict(swap=True), dict(p=3.)],
        MultiLabelMarginLoss=[dict(multi_hot=True)], LambdaRankLoss=[dict(k=2)],
        DiceLoss=[dict(per_image=False), dict(empty='skip', weight=tenth),
            dict(squared=True, classes=[0,2]), dict(empty=.3, per_image=False)],
        BinaryDiceLoss=[dict(per_image=False), dict(empty='skip', weight=tenth),
            dict(squared=True, classes=[0,1]), dict(axis=None)],
        LovaszLoss=[dict(per_image=False), dict(empty='skip')],
        BinaryLovaszLoss=[dict(per_image=False)],
        DistillationLoss=[dict(divergence='reverse'),
            dict(divergence='jensen-shannon', temperature=1.), dict(alpha=1.), dict(alpha=0.)],
        TopKDistillationLoss=[dict(divergence='reverse', temperature=2.)],
        DistanceLoss=[dict(unit=2.)], SpanLoss=[dict(axis=1)],
        InfoNCELoss=[dict(symmetric=True), dict(in_batch=True),
            dict(normalize=False, temperature=1.)],
        CLIPLoss=[dict(soft_targets=True, normalize=False), dict(learnable=False)],
        SigLIPLoss=[dict(learnable=False, normalize=False, bias=-2.)],
        NTXentLoss=[dict(denominator='negatives')],
        SupConLoss=[dict(denominator='negatives'), dict(normalize=False, temperature=1.)],
        ArcFaceLoss=[{}, dict(margin=1.5, scale=4.)], CosFaceLoss=[{}],
        ProxyNCALoss=[{}, dict(denominator='all', scale=2.)], SoftLabelOfProbs=[{}, dict(alpha=.2)],
        MAEOfProbs=[{}])
    res,named = all_losses(),loss_classes()
    named |= dict(SoftLabelOfProbs=SoftLabelOfProbs, MAEOfProbs=MAEOfProbs)
    # three proxies of five features
    named |= {o.__name__: partial(o, 3, 5) for o in (ArcFaceLoss,CosFaceLoss,ProxyNCALoss)}
    for name,params in more.items():
        for kw in params:
            res[f'{name}-{"-".join(f"{k}={label_of(v)}" for k,v in kw.items())}' if kw
                else name] = named[name](**kw)
    return res

def label_of(v): return type(v).__name__ if isinstance(v, torch.nn.Module) else v

def uses(loss):
    "The ways to call a loss, as {label: (loss, args, kwargs)}"
    torch.manual_seed(0)
    loss = deepcopy(loss).double()
    res = KINDS.get(kind_of(loss), other_uses)(loss)
    return {k: (o[0],tuple(map(as_double,
        o[1])),{n: as_double(v) for n,v in o[2].items()}) for k,o in res.items()}

def kind_of(loss): return 'span' if isinstance(loss, DistanceLoss) else task_of(loss)

def as_double(o):
    if isinstance(o, (tuple,list)): return tuple(map(as_double, o))
    return o.double() if isinstance(o, torch.Tensor) and o.is_floating_point() else o

def how(loss, **params):
    return loss.with_params(**{k: v for k,v in params.items() if k in loss.names}).double()
def takes(loss, *names): return all(k in loss.names for k in names)

def weighings(shape):
    "Ways to weigh positions of a shape, as {label: sample_weight}"
    n = shape[0]
    res = dict(weighted=torch.rand(n)*3, zeros=torch.rand(n)*(torch.arange(n)%3!=0),
        mask=torch.arange(n)%3!=1,
        whole_numbers=torch.arange(n)%3)
    if len(shape)>1: res |= dict(each=torch.rand(shape), each_mask=torch.rand(shape)<.6)
    return res

def spoilt(o, out):
    "Scores that are no numbers where positions are left out"
    return torch.where(out, torch.nan, o)

def class_uses(loss):
    C = loss.per_class()[0] or 4
    def x(*shape, axis=1): return how(loss, axis=axis).from_logits(2*torch.randn(shape).double())
    def y(*shape): return torch.randint(C, shape)
    def soft(*shape, axis=1): return torch.randn(shape).softmax(axis)
    flat,dense,last,third = (6,C),(4,C,2,3),(3,4,C),(3,2,C,2)
    res = dict(indices=(loss,(x(*flat),y(6)),{}), int32=(loss,(x(*flat),y(6).int()),{}),
        uint8=(loss,(x(*flat),y(6).to(torch.uint8)),{}),
        column=(loss,(x(*flat),y(6,1)),{}), one_hot=(loss,(x(*flat),F.one_hot(y(6),
            C).float()),{}), soft=(loss,(x(*flat),soft(*flat)),{}),
        dense=(loss,(x(*dense),y(4,2,3)),{}), dense_soft=(loss,(x(*dense),soft(*dense)),{}),
        last=(how(loss, axis=-1),(x(*last, axis=-1),y(3,4)),{}), last_soft=(how(loss,
            axis=-1),(x(*last, axis=-1),soft(*last, axis=-1)),{}),
        last_flat=(how(loss, axis=-1),(x(*flat),y(6)),{}), third=(how(loss,
            axis=2),(x(*third, axis=2),y(3,2,2)),{}),
        third_soft=(how(loss, axis=2),(x(*third, axis=2),soft(*third, axis=2)),{}))
    for k,w in weighings((6,)).items():
        res[k] = loss,(x(*flat),y(6)),dict(sample_weight=w)
        res['soft_'+k] = loss,(x(*flat),soft(*flat)),dict(sample_weight=w)
    for k,w in weighings((4,2,3)).items():
        res['dense_'+k] = loss,(x(*dense),y(4,2,3)),dict(sample_weight=w)
        res['dense_soft_'+k] = loss,(x(*dense),soft(*dense)),dict(sample_weight=w)
    res['last_each'] = how(loss, axis=-1),(x(*last, axis=-1),soft(*last,
        axis=-1)),dict(sample_weight=torch.rand(3,4))
    def some(t, i=-100): return torch.where(torch.rand(t.shape)<.4, i, t)
    res |= dict(ignored=(loss,(x(*flat),some(y(6))),{}),
        ignored_class=(how(loss, ignore_index=1),(x(*flat),y(6)),{}),
        ignored_255=(how(loss, ignore_index=255),(x(*flat),some(y(6).to(torch.uint8), 255)),{}),
        dense_ignored=(loss,(x(*dense),some(y(4,2,3))),{}), last_ignored=(how(loss,
            axis=-1),(x(*last, axis=-1),some(y(3,4))),{}),
        all_ignored=(loss,(x(*flat),torch.full((6,),
            -100)),{}), no_weight=(loss,(x(*flat),y(6)),dict(sample_weight=torch.zeros(6))),
        no_weight_soft=(loss,(x(*flat),soft(*flat)),dict(sample_weight=torch.zeros(6))),
        empty=(loss,(x(0,C),y(0)),{}), empty_soft=(loss,(x(0,C),soft(0,C)),{}), no_pixels=(loss,
            (x(2,C,0,3),y(2,0,3)),{}))
    # what is left out may be anything
    t,w,q = some(y(6)),torch.tensor([1.,0.,2.,0.,1.,3.]),soft(*flat)
    res |= dict(nan_ignored=(loss,(spoilt(x(*flat), (t==-100)[:,None]),t),{}),
        nan_masked=(loss,(spoilt(x(*flat), (w==0)[:,None]),y(6)),dict(sample_weight=w)),
        nan_soft=(loss,(spoilt(x(*flat), (w==0)[:,None]),spoilt(q,
            (w==0)[:,None])),dict(sample_weight=w)),
        learned_weight=(loss,(x(*flat),y(6)),
            dict(sample_weight=torch.rand(6).double().requires_grad_())),
        learned_soft=(loss,(x(*flat),soft(*flat).double().requires_grad_()),{}))
    full = how(loss, **({} if C!=3 else dict(weight=[1.,2.,5.])), label_smoothing=.2)
    w = torch.rand(4,2,3)*(torch.rand(4,2,3)<.7)
    res |= dict(everything=(full,(x(*dense),some(y(4,2,3))),dict(sample_weight=w)),
        everything_soft=(full,(x(*dense),soft(*dense)),dict(sample_weight=w)))
    if takes(loss, 'label_smoothing'): res |= dict(smoothed=(how(loss,
        label_smoothing=.2),(x(*flat),y(6)),{}),
        smoothed_soft=(how(loss, label_smoothing=.2),(x(*flat),soft(*flat)),
            {}), smoothed_to_the_end=(how(loss, label_smoothing=1.),(x(*flat),y(6)),{}))
    # a class that is ruled out, and has no mass
    if takes_infinity(loss):
        z,t = x(*flat),y(6)
        z[torch.arange(6),(t+1)%C] = -inf
        q = soft(*flat).double().masked_fill(z==-inf, 0.)
        res |= dict(ruled_out=(loss,(z,t),{}),
            ruled_out_soft=(loss,(z,q/q.sum(1, keepdim=True)),{}))
    return res

def takes_infinity(loss):
    "Scores of minus infinity make sense where no class has mass by smoothing"
    smooths = loss.alpha if type(loss).__name__=='SoftLabelCrossEntropy' else getattr(loss,
        'label_smoothing', 0.)
    return bool((loss.from_logits(torch.zeros(1,3))==0).all()) and not smooths

def binary_uses(loss):
    C = loss.per_class()[0] or 3
    def x(*shape): return loss.from_logits(2*torch.randn(shape).double())
    def y(*shape): return torch.randint(2, shape)
    flat,dense = (6,C),(4,C,2,3)
    res = dict(floats=(loss,(x(*flat),y(*flat).float()),{}), integers=(loss,(x(*flat),y(*flat)),{}),
        bools=(loss,(x(*flat),y(*flat)>0),{}),
        uint8=(loss,(x(*flat),y(*flat).to(torch.uint8)),{}), soft=(loss,(x(*flat),torch.rand(flat)),
            {}), dense=(loss,(x(*dense),y(*dense).float()),{}),
        last=(how(loss, axis=-1),(x(3,2,C),y(3,2,C).float()),{}), empty=(loss,
            (x(0,C),y(0,C).float()),{}), no_pixels=(loss,(x(2,C,0),y(2,C,0)),{}),
        learned_soft=(loss,(x(*flat),torch.rand(flat).double().requires_grad_()),{}))
    per_row = takes(loss, 'per_image') or type(loss) is MultiLabelSoftMarginLoss
    if loss.per_class()[0] is None and not per_row: res['numbers'] = loss,(x(6),y(6).float()),{}
    # an image, or an example, weighs as a whole; its pixels may weigh besides
    row = (6,) if type(loss) is MultiLabelSoftMarginLoss else flat
    for k,w in weighings(row).items():
        res[k] = loss,(x(*flat),y(*flat).float()),dict(sample_weight=w)
    row = (4,2,3) if type(loss) is MultiLabelSoftMarginLoss else dense
    for k,w in weighings(row).items():
        res['dense_'+k] = loss,(x(*dense),torch.rand(dense)),dict(sample_weight=w)
    w = torch.tensor([1.,0.,2.,0.,1.,3.])
    out = (w==0)[:,None]
    res |= dict(no_weight=(loss,(x(*flat),y(*flat).float()),dict(sample_weight=torch.zeros(6))),
        nan_masked=(loss,(spoilt(x(*flat), out),spoilt(torch.rand(flat),
            out)),dict(sample_weight=w)),
        learned_weight=(loss,(x(*flat),y(*flat).float()),
            dict(sample_weight=torch.rand(6).double().requires_grad_())))
    full = how(loss, label_smoothing=.2, ignore_index=-1.)
    if takes(loss, 'ignore_index'):
        t = torch.where(torch.rand(dense)<.3, -1., torch.rand(dense))
        res |= dict(ignored=(full,(x(*dense),t),{}),
            ignored_integers=(full,(x(*flat),torch.where(torch.rand(flat)<.3, -1, y(*flat))),{}),
            nan_ignored=(full,(spoilt(x(*dense),
                t==-1),t),{}), all_ignored=(full,(x(*flat),torch.full(flat, -1.)),{}),
            everything=(full,(x(*dense),t),dict(sample_weight=torch.rand(4)*(torch.arange(4)>0))))
    if takes(loss, 'label_smoothing'): res['smoothed'] = how(loss,
        label_smoothing=.2),(x(*flat),torch.rand(flat)),{}
    return res

def other_uses(loss):
    "From the example that a loss brings: weights, rows that are no numbers, an empty batch"
    def batch(n): return tuple(as_double(o) for o in loss.example(n))
    def with_weight(w, spoil=False):
        args = list(batch(6))
        if spoil: args[:n_preds(loss)] = [spoilt(o,
            (w==0).reshape(-1, *[1]*(o.ndim-1))) for o in args[:n_preds(loss)]]
        return loss,tuple(args),dict(sample_weight=w)
    res = dict(floats=(loss,batch(6),{}), empty=(loss,batch(0),{}),
        no_weight=with_weight(torch.zeros(6)),
        nan_masked=with_weight(torch.tensor([1.,0.,2.,0.,1.,3.]),
            True), learned_weight=with_weight(torch.rand(6).double().requires_grad_()))
    for k,w in weighings((6,)).items(): res[k] = with_weight(w)
    return res | OWN.get(kind_of(loss), lambda loss: {})(loss)

def n_preds(loss): return getattr(loss, 'n_preds', None) or 1

def real_uses(loss):
    res,(x,y) = other_uses(loss),map(as_double, loss.example(6))
    if y.ndim==1: x,y = as_double(torch.randn(2, 6, 2)).unbind() # a mean is over all numbers
    for k,w in weighings(y.shape).items():
        res['row_'+k if k in res else k] = loss,(x,y),dict(sample_weight=w)
    if x.shape==y.shape: res |= dict(rows=(loss,(x,y),{}),
        integers=(loss,(x,y.abs().round().long()),{}), numbers=(loss,(x[:,0],y[:,0]),{}),
        dense=(loss,(x.reshape(3,2,2),y.reshape(3,2,2)),{}),
        column=(loss,(x[:,:1],y[:,0]),{}), learned_target=(loss,(x,y.clone().requires_grad_()),{}))
    two = type(loss) is NegativeBinomialNLLLoss and loss.dispersion is None
    if two or hasattr(loss, 'coverage'):
        a = loss.axis
        res |= dict(tuple=(loss,(tuple(x.unbind(a)),y),{}), far=(loss,(8*x,y),{}))
    if type(loss) is GaussianNLLLoss:
        m = x.select(loss.axis, 0)
        res |= dict(var=(loss,(m,y,torch.rand(y.shape)*2),{}),
            var_learned=(loss,(m,y,torch.rand(y.shape).double().requires_grad_()),{}),
            var_weighted=(loss,(m,y,torch.rand(y.shape)),
                dict(sample_weight=torch.tensor([1.,0.,2.,0.,1.,3.]))))
    return res

def teacher_uses(loss):
    C = loss.per_class()[0] or 5
    def batch(n, *more, axis=1):
        shape = [n,*more]
        shape.insert(axis%(len(shape)+1), C)
        x,t = torch.randn(2, *shape)
        t = (2*t,) if type(loss) is not TopKDistillationLoss else tuple((2*t).softmax(axis).topk(2,
            axis))
        return x,*t,torch.randint(C, (n,*more))
    x,*t,y = batch(6)
    hole = torch.where(torch.arange(6)%2==0, -100, y)
    res = dict(dense=(loss,batch(4,2,3),{}), last=(how(loss, axis=-1),batch(3,4, axis=-1),{}),
        ignored=(loss,(x,*t,hole),{}),
        nan_ignored=(loss,(spoilt(x, (hole==-100)[:,None]),*t,hole),{}), dense_each=(loss,
            batch(4,2,3),dict(sample_weight=torch.rand(4,2,3)*(torch.rand(4,2,3)<.7))),
        all_ignored=(loss,(x,*t,torch.full((6,), -100)),{}))
    if type(loss) is not DecoupledDistillationLoss:
        res['soft'] = loss,(x,*t,torch.randn(6,C).softmax(1)),{}
        if loss.alpha==1: res['no_labels'] = loss,(x,*t),{}
    return res

def span_uses(loss):
    axis = -1 if loss.axis is None else loss.axis
    def both(n, L): return torch.randn(n, 2, L).movedim(-1, axis)
    y,q = torch.tensor([[0,2],[1,1],[0,3],[2,2],[1,3],[0,1]]),both(6, 6).softmax(axis)
    hole = torch.where(torch.arange(6)[:,None]%2==0, -100, y)
    mask = torch.arange(6)<torch.tensor([4,5,6,4,4,5])[:,None]
    x = both(6, 6)
    return dict(soft=(loss,(x,q),{}), pair=(loss,(tuple(x.unbind(3-axis%3)),y),{}),
        two=(loss,(x,y[:,0],y[:,1]),{}), ignored=(loss,(x,hole),{}),
        mask=(loss,(x,y,mask),{}), lengths=(loss,(x,y),dict(lengths=mask.sum(1))), holes=(loss,
            (x,y,torch.arange(6).expand(6,6)!=4),{}),
        nan_ignored=(loss,(spoilt(x, (hole[:,:1]==-100)[:,:,None]),hole),{}), all_ignored=(loss,
            (x,hole*0-100),{}),
        mask_weighted=(loss,(x,y,mask),dict(sample_weight=torch.tensor([1.,0.,2.,0.,1.,3.]))))

def list_uses(loss):
    s,r = loss.example(6)
    mask = torch.rand(6,5)<.7
    mask[0] = False # a list of nothing
    return dict(list_mask=(loss,(s,r,mask),{}),
        list_mask_weighted=(loss,(s,r,mask),dict(sample_weight=torch.tensor([1.,0.,2.,0.,1.,3.]))),
        nan_masked=(loss,(spoilt(s, ~mask),spoilt(r, ~mask),mask),{}))

def embedding_uses(loss):
    if n_preds(loss)==2:
        a,b = torch.randn(2,6,4)
        res = dict(tuple=(loss,((a,b),),{}), one=(loss,(a[:1],b[:1]),{}))
        if takes(loss, 'in_batch'):
            res |= dict(negatives=(loss,(a,b,torch.randn(3,4)),{}),
                negatives_weighted=(loss,(a,b,torch.randn(3,4)),
                    dict(sample_weight=torch.tensor([1.,0.,2.,0.,1.,3.]))))
            if not loss.in_batch: res['negatives_each'] = loss,(a,b,torch.randn(6,3,4)),{}
            if loss.symmetric: res = {k: o for k,o in res.items() if 'negatives' not in k}
        return res
    if hasattr(loss, 'proxies'): return {}
    x,y = torch.randn(6,4),torch.tensor([0,1,0,2,1,1])
    v,hot = torch.randn(4,3,4),torch.tensor([[1,0,0],[1,1,0],[0,1,0],[0,0,1],[1,0,1],[0,0,0]])
    w = torch.tensor([1.,0.,2.,0.,1.,3.])
    return dict(labels=(loss,(x,y),{}), views=(loss,(v,),{}), tuple=(loss,(tuple(v.unbind(1)),),{}),
        views_labels=(loss,(v,torch.tensor([0,1,0,1])),{}),
        many_labels=(loss,(x,hot),{}), bools=(loss,(x,hot>0),{}), alone=(loss,(x,torch.arange(6)),
            {}), all_alike=(loss,(x,y*0),{}),
        labels_weighted=(loss,(x,y),dict(sample_weight=w)), views_weighted=(loss,(v,),
            dict(sample_weight=w[:4])),
        views_each=(loss,(v,),dict(sample_weight=torch.rand(4,3)*(torch.rand(4,3)<.7))))

def sign_uses(loss):
    "Those that are not on embeddings take numbers of any shape"
    preds = loss.example(6)[:n_preds(loss)]
    if preds[0].ndim>1: return {}
    xs,y = torch.randn(n_preds(loss), 6, 2).unbind(),torch.randint(2, (6,2))
    y = y if loss.negative==0 else 2*y-1
    w = dict(sample_weight=torch.rand(6,2)*(torch.rand(6,2)<.7))
    return dict(dense=(loss,(*xs,y),{}), each=(loss,(*xs,y.float()),w),
        dense_weighted=(loss,(*xs,y),dict(sample_weight=torch.rand(6))))

OWN = dict(signs=sign_uses, pairs=sign_uses, teacher=teacher_uses, span=span_uses, lists=list_uses,
    embeddings=embedding_uses)
KINDS = dict(classes=class_uses, binary=binary_uses, real=real_uses)

# of a loss with other numbers: what these could change
SOME = '''indices soft dense_soft_each last_soft nan_soft nan_masked everything everything_soft
    learned_weight learned_soft ruled_out ruled_out_soft empty one_hot smoothed_soft floats each
    ignored mask weighted dense last dense_each tuple views labels many_labels bools
    negatives_weighted no_labels no_pixels dense_mask'''.split()
