"""What every loss of the book should give: slow, plain formulas in float64, from the papers.

`expected(loss, args, kwargs)` is the value of a loss, differentiable as often as one likes.
`REFERENCES` has a formula for each loss, by the name of its class: from the parameters and a batch
to the values of the positions, and what each counts in the mean."""
import math, torch, torch.nn.functional as F
from functools import partial
from math import inf
from types import SimpleNamespace
from lossbook.core import ClassLoss
from lossbook.noisy_labels import classification_mae
from lossbook.soft_labels import soft_label_cross_entropy

# ---- what all losses share

def expected(loss, args, kwargs=None, reduction=None):
    "What a loss should give for a batch"
    value,count = REFERENCES[type(loss).__name__](told(loss), *args, **(kwargs or {}))
    reduction = reduction or loss.reduction
    if reduction=='none': return value
    if reduction=='sum' or not count.numel() or not count.sum(): return value.sum()
    return value.sum()/count.sum()

def told(loss):
    "The parameters of a loss, its tensors in float64, and what it learns as it is used"
    p = SimpleNamespace(**{k: getattr(loss, k) for k in loss.names})
    for k,v in vars(p).items():
        if isinstance(v, torch.Tensor): setattr(p, k, v.double())
    own = {k: o.double() for k,o in loss.named_parameters()}
    if 'logit_scale' in own: p.temperature = (-own['logit_scale']).exp()
    if 'logit_bias' in own: p.bias = own['logit_bias']
    if 'latent_alpha' in own:
        p.alpha,p.scale,p.full = 2*own['latent_alpha'].sigmoid(),own['latent_scale'].exp(),True
    p.own = own
    return p

def double(o): return tuple(map(double, o)) if isinstance(o, (tuple,list)) else o.double()
def one_hot(y, C): return (y.unsqueeze(-1)==torch.arange(C)).double() # classes last
def times(y, v): return y*v.masked_fill(y==0, 0.) # what has no mass counts nothing, be it infinite
def entropy(y): return times(y, y.masked_fill(y==0, 1.).log()) # y log y

def weights(sample_weight, shape):
    "One factor for each position, and where it is not 0; a learned one leaves nothing out"
    if sample_weight is None: return torch.ones(shape).double(),torch.ones(shape, dtype=torch.bool)
    w = sample_weight.double()
    w = w.reshape(*w.shape, *[1]*(len(shape)-w.ndim)).expand(shape)
    return w,torch.ones(shape, dtype=torch.bool) if sample_weight.requires_grad else w.detach()!=0

def spread(v, keep): return v.new_zeros(keep.shape).masked_scatter(keep, v)

# ---- losses over classes: the value of a row (M, C) and its label, a distribution (M, C)

def classes(p, scores, target, sample_weight=None, *, row, weighted=None):
    "A loss over classes from its rows. `row` gets y, and y with the weights of the classes in it"
    x = scores.double().movedim(p.axis, -1)
    C,pos = x.shape[-1],x.shape[:-1]
    w,keep = weights(sample_weight, pos)
    if target.is_floating_point(): y = target.double().movedim(p.axis, -1)
    else:
        if target.ndim==x.ndim: target = target.squeeze(p.axis)
        keep = keep & (target!=p.ignore_index)
        y = one_hot(torch.where(keep, target.long(), 0), C)
    c = getattr(p, 'weight', None) # factors that the mean counts
    x,y,w = x[keep],y[keep],w[keep]
    v = row(p, x, y, torch.ones(C).double() if c is None else c)
    return spread(w*v, keep),spread(w if c is None else w*(y*c).sum(1), keep)

def smoothed(y, share): return (1-share)*y + share/y.shape[-1]

def level_off(y, share):
    "Each class gives equally, but none more than it has, and all get the same back"
    if not isinstance(share, torch.Tensor) and share==0: return y
    give = share*y.sum(-1, keepdim=True)
    most = give/y.shape[-1]
    for _ in range(y.shape[-1]):
        poor,n = y<most,(y>=most).sum(-1, keepdim=True)
        most = torch.where(n>0, (give-(y*poor).sum(-1, keepdim=True))/n.clamp(min=1), most)
    return y - torch.minimum(y, most) + give/y.shape[-1]

def averaged(value, scores=lambda p,x: -x.log_softmax(1), smooth=smoothed, share='label_smoothing'):
    "The average over the label of a value of each class, from its negative log-likelihood"
    def row(p, x, y, c):
        # factors that the mean does not count
        alpha = getattr(p, 'alpha', None) if value is focal else None
        y,nll = smooth(y, getattr(p, share, 0.)),scores(p, x)
        y,nll = y*c*(1. if alpha is None else alpha),nll.masked_fill((y==0) & (nll==inf), 0.)
        return times(y, value(p, nll)).sum(1)
    return partial(classes, row=row)

def whole(f, smooth=None):
    "The loss of a row that is no sum over classes; the row weighs what its label does"
    def row(p, x, y, c):
        v = f(p, x, y if smooth is None else smooth(y, p.label_smoothing))
        return v if p.weight is None else (y*c).sum(1)*v
    return partial(classes, row=row)

TINY = 1e-300
def cross_entropy(p, nll): return nll
def focal(p, nll): # (1-p)^gamma of what is certain is 0, and has no slope
    sure = nll<=0
    return nll*(-torch.expm1(-nll.masked_fill(sure, 1.)))**p.gamma*~sure if p.gamma else nll
def poly(p, nll): return nll + p.epsilon*(1-(-nll).exp())
def gce(p, nll): return -torch.expm1(-p.q*nll)/p.q if p.q else nll

def nll_of_probs(q, dtype):
    "-log q, along its tangent where it is too steep for the dtype"
    least = max(torch.finfo(torch.promote_types(dtype, torch.float)).tiny**.5,
        2/torch.finfo(dtype).max)
    return torch.where(q<least, 1-q/least-math.log(least), -q.clamp(min=least).log())

def kl(p, x, y): return entropy(y).sum(1) + times(y, -x.log_softmax(1)).sum(1)
def mae(p, x, y): return (x.softmax(1)-y).abs().sum(1)
def rce(p, x, y): return -(x.softmax(1)*y.log().clamp(min=getattr(p, 'A', -4.))).sum(1)
def ce_row(p, x, y): return times(y, -x.log_softmax(1)).sum(1)
def gce_row(p, x, y): return times(y, (1-x.softmax(1).clamp(min=TINY)**.7)/.7).sum(1)
def nce(p, x, y):
    out = x==-inf # ruled out, so it stands in no sum
    nll = (-x.log_softmax(1)).masked_fill(out, 0.)
    total = nll.sum(1)
    return (y*nll).sum(1)/(total + (total==0)) + times(y, torch.where(out, inf, 0.)).sum(1)
TERMS = dict(ce=ce_row, gce=gce_row, nce=nce, mae=mae, rce=rce)

def active_passive(p, logits, target, sample_weight=None):
    "Each term may be a loss with parameters of its own"
    res = []
    for o,factor in ((p.active,p.alpha), (p.passive,p.beta)):
        own = SimpleNamespace(**{**(vars(told(o)) if isinstance(o, ClassLoss) else {}),
            **dict(weight=p.weight, axis=p.axis, ignore_index=p.ignore_index)})
        f = REFERENCES[type(o).__name__] if isinstance(o, ClassLoss) else whole(TERMS[o])
        v,n = f(own, logits, target, sample_weight)
        res.append(factor*v)
    return sum(res),n

def sce(p, x, y): return p.alpha*ce_row(p, x, y) + p.beta*rce(p, x, y)

def log_t(logu, t): return logu if t==1 else torch.expm1((1-t)*logu)/(1-t)
def tempered(x, t):
    "The tempered softmax (Amid et al. 2019, section 2): the level is found by halving"
    z = x-x.detach().amax(1, keepdim=True)
    def mass(level): return (1+(1-t)*(z-level))**(1/(1-t))
    with torch.no_grad():
        lo,hi = torch.zeros_like(z[:,:1]),torch.full_like(z[:,:1], (z.shape[1]**(t-1)-1)/(t-1))
        for _ in range(45):
            at = (lo+hi)/2
            less = mass(at).sum(1, keepdim=True)<1
            lo,hi = torch.where(less, lo, at),torch.where(less, at, hi)
    level = lo
    for _ in range(2): # two steps of Newton from the root have its first and second derivative
        q = mass(level)
        level = level + (q.sum(1, keepdim=True)-1)/(q**t).sum(1, keepdim=True)
    return mass(level)

def bi_tempered(p, x, y):
    "The Bregman divergence (Amid et al. 2019, eq. 2)"
    t,logq = p.t1,x.log_softmax(1) if p.t2==1 else tempered(x.clamp(min=-1e30),
        p.t2).clamp(min=TINY).log()
    own = times(y, log_t(y.masked_fill(y==0, 1.).log(), t))
    return (own - times(y, log_t(logq, t)) - (y**(2-t) - ((2-t)*logq).exp())/(2-t)).sum(1)

def shifted(add):
    "Cross entropy after something is added to the logits"
    return averaged(cross_entropy, lambda p,x: -(x + (0. if p.counts is None else add(p,
        p.counts))).log_softmax(1))
def prior(p, n): return p.tau*(n/n.sum()).log()
def counted(p, n): return n.log()

def ldam(p, x, c):
    "One class after the other, each with its own margin"
    n = torch.ones(x.shape[1]).double() if p.counts is None else p.counts
    m = p.max_margin*(n.min()/n)**.25
    def less(i): return p.scale*(x - m[i]*one_hot(torch.tensor(i), x.shape[1]))
    return torch.stack([-less(i).log_softmax(1)[:,i] for i in range(x.shape[1])], 1)

def multi_margin(p, x, y, c):
    "The weights of the classes are no part of the mean"
    c,total = torch.ones(x.shape[1]).double() if p.factors is None else p.factors,0.
    for i in range(x.shape[1]):
        own = x[:,i]
        gap = p.margin - own.masked_fill(own==-inf, 0.).unsqueeze(1) + x
        z = gap.relu()**p.p*(torch.arange(x.shape[1])!=i)
        v = z.amax(1) if p.hardest else z.mean(1)
        total = total + times(y[:,i]*c[i], v.masked_fill(own==-inf, inf))
    return total

def multi_margin_loss(p, *args, **kwargs):
    p.factors,p.weight = p.weight,None
    return classes(p, *args, **kwargs, row=multi_margin)

# ---- losses over independent labels, and over numbers: the value of one of them

def by_column(o, like, axis):
    "Factors of classes (C,) such that they multiply; numbers stay"
    if not isinstance(o, torch.Tensor) or o.ndim!=1 or like.ndim<2: return o
    return o.reshape(-1, *[1]*(like.ndim-1-axis%like.ndim))

def items(value, p, x, y, sample_weight=None, *more):
    "A loss of single items from the value of one of them"
    x,y = x.double(),y.double()
    w,keep = weights(sample_weight, x.shape)
    if getattr(p, 'ignore_index', None) is not None: keep = keep & (y!=p.ignore_index)
    x,y,*more = (torch.where(keep, o, .5) for o in (x,y,*more))
    axis = getattr(p, 'axis', 1)
    y = y + getattr(p, 'label_smoothing', 0.)*(.5-y)
    p = SimpleNamespace(**vars(p))
    for k in ('weight','alpha','pos_weight'):
        if k in vars(p): setattr(p, k, by_column(getattr(p, k), x, axis))
    c = getattr(p, 'weight', None)
    c = torch.ones_like(x)*(1. if c is None else c)
    return torch.where(keep, w*c*value(p, x, y, *more), 0.),torch.where(keep, w*c, 0.)

def binary(value): return partial(items, value)
def log_sigmoids(x): return F.logsigmoid(x),F.logsigmoid(-x)
def or_one(o): return 1. if o is None else o

def bce(p, x, y):
    lp,lq = log_sigmoids(x)
    return -times(or_one(getattr(p, 'pos_weight', None))*y, lp) - times(1-y, lq)
def bce_of_probs(p, x, y): return times(y, nll_of_probs(x, p.dtype)) + times(1-y,
    nll_of_probs(1-x, p.dtype))
def of_probs(p, x, *args, **kwargs):
    p.dtype = x.dtype
    return items(bce_of_probs, p, x, *args, **kwargs)
def binary_focal(p, x, y):
    lp,lq = log_sigmoids(x)
    a,b = (1.,1.) if p.alpha is None else (p.alpha,1-p.alpha)
    return -times(or_one(p.pos_weight)*a*y, lp)*(p.gamma*lq).exp() - times(b*(1-y),
        lq)*(p.gamma*lp).exp()
def asymmetric(p, x, y):
    lp,lq = log_sigmoids(x)
    pm = (x.sigmoid()-p.margin).clamp(min=0)
    # a zero that is less probable than the margin costs nothing
    lqm = torch.log1p(-pm) if p.margin else lq
    return -times(y, lp)*(p.gamma_pos*lq).exp() - times(1-y, lqm)*pm**p.gamma_neg

def multi_label(p, x, y, sample_weight=None):
    "The mean over the classes of an example"
    w = sample_weight
    if w is not None: w = w.reshape(*w.shape,
        *[1]*(x.ndim-1-w.ndim)).expand(x.select(p.axis, 0).shape).unsqueeze(p.axis).expand_as(x)
    v,c = items(bce, p, x, y, w)
    known = torch.ones_like(v) if p.ignore_index is None else (y!=p.ignore_index).to(v.dtype)
    n = known.sum(p.axis).clamp(min=1)
    return v.sum(p.axis)/n,c.sum(p.axis)/n

def signs(value, p, x, y, sample_weight=None):
    "The value for targets of 1 and -1"
    y = y.double()
    return items(value, p, x, (2*y-1 if p.negative==0 else y), sample_weight)
def soft_margin(p, x, y): return F.softplus(-y*x)
def ranking(p, x, y): return (p.margin-y*x).relu()
def hinge(p, x, y): return torch.where(y==1, x, (p.margin-x).relu())
def far(p, x, y): return .5*torch.where(y==1, x**2, (p.margin-x).relu()**2)
def angle(p, x, y): return torch.where(y==1, 1-x, (x-p.margin).relu())

def left_at_zero(sample_weight, *xs):
    "Embeddings (N, D), those that are left out as ones, so that no NaN of theirs gets on"
    _,keep = weights(sample_weight, xs[0].shape[:1])
    return [torch.where(keep[:,None], x.double(), 1.) for x in xs]
def distance(p, a, b): return ((a-b+p.eps).abs()**getattr(p, 'p', 2)).sum(1)**(1/getattr(p, 'p', 2))
def cosine(p, a, b): # eps keeps vectors of zeros from infinity
    return ((a*b)/((a*a).sum(1, keepdim=True)+p.eps).sqrt()/((b*b).sum(1,
        keepdim=True)+p.eps).sqrt()).sum(1)
def of_pairs(value, far, p, a, b, y, sample_weight=None):
    return signs(value, p, far(p, *left_at_zero(sample_weight, a, b)), y, sample_weight)
def difference(p, a, b, y, sample_weight=None): return signs(ranking, p, a.double()-b.double(), y,
    sample_weight)

def triplet(p, a, b, c, sample_weight=None):
    w,_ = weights(sample_weight, a.shape[:1])
    a,b,c = left_at_zero(sample_weight, a, b, c)
    apart = distance(p, a, c)
    if p.swap: apart = torch.minimum(apart, distance(p, b, c))
    return torch.where(w==0, 0., w*(distance(p, a, b)-apart+p.margin).relu()),w

def multilabel_margin(p, x, y, sample_weight=None):
    "Row by row, pair by pair"
    w,keep = weights(sample_weight, x.shape[:1])
    def row(x, y):
        y = y.tolist()
        if p.multi_hot: labels = [i for i,o in enumerate(y) if o]
        else: labels = y[:next((i for i,o in enumerate(y) if o<0), len(y))]
        others = [i for i in range(len(x)) if i not in labels]
        return sum(((p.margin-x[j]+x[i]).relu() for j in labels for i in others), x.sum()*0)/len(x)
    return by_rows(row, keep, w, x.double(), y),w

def by_rows(f, keep, w, *batch):
    "A loss that is made row by row"
    zero = torch.zeros(()).double()
    if not len(keep): return batch[0].double().flatten(1).sum(1)
    return torch.stack([f(*(o[i] for o in batch))*w[i] if keep[i] else zero
        for i in range(len(keep))])

# ---- regression

def real(value): return partial(numbers, value)
def numbers(value, p, x, y, sample_weight=None, *more):
    if x.ndim==y.ndim+1: x = x[:,0] # (N, 1) beside (N,)
    # of which items make factors
    own = {k: v for k,v in vars(p).items() if k not in ('alpha','axis')}
    p = SimpleNamespace(**own, shape=getattr(p, 'alpha', None))
    return items(value, p, x, y, sample_weight, *more)
def squared(p, x, y): return (x-y)**2
def absolute(p, x, y): return (x-y).abs()
def huber(p, x, y):
    e = (x-y).abs()
    return torch.where(e<p.delta, .5*e*e, p.delta*(e-.5*p.delta))
def smooth_l1(p, x, y): return huber(SimpleNamespace(delta=p.beta), x,
    y)/p.beta if p.beta else absolute(p, x, y)
def log_cosh(p, x, y):
    # e + log(1+exp(-2e)) - log 2, and near 0 by the sinh, which keeps the digits
    e = (x-y).abs()
    near = .5*torch.log1p(e.clamp(max=1).sinh()**2)
    return torch.where(e<1, near, e + torch.log1p((-2*e).exp()) - math.log(2))
def charbonnier(p, x, y): return ((x-y)**2+p.eps**2).sqrt()
def rho(u, a):
    "Barron 2019, eq. 8, of the squared error in scales; at 0 and 2 its limits"
    if not isinstance(a, torch.Tensor) and a==2: return .5*u
    if not isinstance(a, torch.Tensor) and a==0: return torch.log1p(.5*u)
    return abs(a-2)/a*((u/abs(a-2)+1)**(a/2)-1)
def barron(p, x, y):
    v = rho(((x-y)/p.scale)**2, p.shape)
    if not p.full: return v
    t = torch.linspace(-25, 25, 5001).double() # the integral over e = sinh t
    z = torch.trapezoid((-rho(t.sinh()**2, p.shape)).exp()*t.cosh(), t)
    return v + z.log() + torch.as_tensor(p.scale).double().log()

def levels(f, key):
    "The mean over the outputs, each with its level"
    def ref(p, x, y, sample_weight=None):
        q = getattr(p, key)
        def value(p, x, y): return f(x, y, p.q)
        if not isinstance(q, tuple): return numbers(value, SimpleNamespace(q=q), x, y,
            sample_weight)
        x = x.movedim(p.axis, -1)
        if y.ndim==x.ndim: y = y[:,0]
        res = [numbers(value, SimpleNamespace(q=o), x[...,i], y,
            sample_weight) for i,o in enumerate(q)]
        return sum(v for v,_ in res)/len(q),res[0][1]
    return ref
def pinball(x, y, q): return torch.where(y>x, q*(y-x), (q-1)*(y-x))
def expectile(x, y, q): return torch.where(y>x, q*(y-x)**2, (1-q)*(y-x)**2)

def two_heads(value):
    "A loss on two numbers for each target"
    def ref(p, pred, y, *rest, **kwargs):
        a,b = pred if isinstance(pred, tuple) else pred.movedim(p.axis, -1).unbind(-1)
        if y.ndim>a.ndim: y = y[:,0]
        return numbers(value, p, a, y, *(rest or [kwargs.get('sample_weight')]), b.double())
    return ref
def growth(x, top): return torch.where(x<top, x.clamp(max=top).exp(),
    math.exp(top)*(1+x-top)) # exp, along its tangent from `top` on
def constant(p): return .5*math.log(2*math.pi)*bool(getattr(p, 'full', False))
def gaussian(p, x, y, s): return .5*(s + (x-y)**2*growth(-s, -math.log(p.eps))) + constant(p)
def beta_nll(p, x, y, s):
    return s.detach().clamp(math.log(p.eps),
        70).exp()**p.beta*.5*(s + (x-y)**2*growth(-s, -math.log(p.eps)))
def gaussian_nll(p, x, y, var=None, sample_weight=None):
    many = isinstance(x, tuple) or x.ndim>y.ndim
    if many: return two_heads(gaussian)(p, x, y, sample_weight if var is None else var)
    def value(p, x, y, v):
        v = v.clamp(min=p.eps)
        return .5*(v.log()+(x-y)**2/v) + constant(p)
    return numbers(value, p, x, y, sample_weight, var.double())
def poisson(p, x, y, sample_weight=None):
    top = {torch.half: 11., torch.double: 560.}.get(x.dtype,
        70.) # the slope is a number of the dtype
    def value(p, x, y):
        v = growth(x, top)-y*x if p.log_input else x-y*(x+p.eps).log()
        t = y.clamp(min=1)
        return v + torch.where(y>1, t*t.log()-t+.5*(2*math.pi*t).log(), 0.) if p.full else v
    return numbers(value, p, x, y, sample_weight)
def negative_binomial(p, x, y, sample_weight=None):
    top = 11. if (x[0] if isinstance(x, tuple) else x).dtype==torch.half else 30.
    def value(p, x, y, c):
        d = torch.distributions.NegativeBinomial((-c.clamp(-top, top)).exp(),
            logits=x+c.clamp(-top, top), validate_args=False)
        return -d.log_prob(y) - (0. if p.full else torch.lgamma(y+1))
    if p.dispersion is None: return two_heads(value)(p, x, y, sample_weight)
    return numbers(value, p, x, y, sample_weight,
        torch.full(y.shape, math.log(p.dispersion)).double())

# ---- areas: probabilities and masks (N, C, P)

def pixels(o): return o.flatten(2) if o.ndim>2 else o.unsqueeze(2)

def masks(p, x, prob, y, w, image, value):
    "The mean over the classes of a value of each image; what has no weight is nothing"
    N = x.shape[0]
    if not p.per_image: # one large image
        whole = w if image is None else w*image[:,None,None]
        w_,x,prob,y = (o.transpose(0, 1).flatten(1).unsqueeze(0)
            for o in (whole.expand_as(y),x,prob,y))
    else: w_ = w.expand_as(y)
    v,true = value(p, x, prob, y, w_),(w_*y).sum(-1)
    share = torch.ones_like(v)*(1. if p.weight is None else p.weight)
    if p.classes is not None:
        share = share*torch.tensor([float(i in p.classes) for i in range(v.shape[1])])
    if p.empty=='skip': share = share*(true>0)
    elif p.empty!='keep': v = torch.where(true>0, v, p.empty)
    total = share.sum(1)
    v,n = (share*v).sum(1)/(total+(total==0)),((total!=0)*torch.ones(N)).double()
    if y.shape[-1]: n = n*(w!=0).flatten(1).any(1)
    if image is not None: n = n*image
    # what counts nothing may be anything
    return torch.where(n!=0, v*(1. if image is None else image), 0.),n

def pixel_weights(sample_weight, pos):
    "Factors of the pixels, those of the images, and which pixels are there"
    w,keep = weights(sample_weight, pos)
    of_images = sample_weight is not None and sample_weight.ndim==1 and len(pos)>0
    return (keep.double() if of_images else w),(sample_weight.double() if of_images else None),keep

def class_areas(value):
    def ref(p, logits, target, sample_weight=None):
        x = logits.double().movedim(p.axis, 1)
        pos = x.select(1, 0).shape
        w,image,keep = pixel_weights(sample_weight, pos)
        if target.is_floating_point(): y = target.double().movedim(p.axis, 1)
        else:
            if target.ndim==x.ndim: target = target.squeeze(p.axis)
            keep = keep & (target!=p.ignore_index)
            y = one_hot(torch.where(keep, target.long(), 0), x.shape[1]).movedim(-1, 1)
        x,y,w = (torch.where(keep.unsqueeze(1), o, 0.) for o in (x,y,w.unsqueeze(1)))
        return masks(p, *map(pixels, (x, x.softmax(1), y, w)), image, value)
    return ref

def binary_areas(value):
    def ref(p, logits, target, sample_weight=None):
        w,image,keep = pixel_weights(sample_weight, logits.shape)
        if p.ignore_index is not None: keep = keep & (target!=p.ignore_index)
        x,y,w = (torch.where(keep, o.double(), 0.) for o in (logits,target,w))
        x,y,w = (pixels(o.unsqueeze(1) if p.axis is None else o.movedim(p.axis,
            1)) for o in (x,y,w))
        return masks(p, x, x.sigmoid(), y, w, image, value)
    return ref

def of_areas(index):
    def value(p, x, q, y, w):
        b,s,t = (w*q*y).sum(-1),(w*(q*q if getattr(p, 'squared',
            False) else q)).sum(-1),(w*(y*y if getattr(p, 'squared', False) else y)).sum(-1)
        return index(p, b, s, t)
    return value
def ratio(p, top, bottom): return 1-(top+p.smooth_nr)/(bottom+p.smooth_dr).clamp(min=1e-7)
def dice(p, b, s, t): return ratio(p, 2*b, s+t)
def jaccard(p, b, s, t): return 1-(2*b+p.smooth_nr)/(2*(s+t-b)+p.smooth_dr).clamp(min=1e-7)
def tversky(p, b, s, t): return ratio(p, b, b+p.alpha*(s-b)+p.beta*(t-b))
def focal_tversky(p, b, s, t):
    v = tversky(p, b, s, t)
    return torch.where(v>1e-12, v.clamp(min=1e-12)**(1/p.gamma), v*1e-12**(1/p.gamma-1))

def lovasz(error):
    "The worst pixel first, with what each adds (Berman et al. 2018, algorithm 1)"
    def value(p, x, q, y, w):
        e = error(x, q, y)
        order = e.detach().argsort(dim=-1, descending=True, stable=True)
        y,w,e = (o.gather(-1, order) for o in (y,w,e))
        true = (w*y).sum(-1, keepdim=True)
        left,union = true-(w*y).cumsum(-1),true+(w*(1-y)).cumsum(-1)
        j = torch.where(union>0, 1-left/(union+(union==0)), 0.)
        return (e*j.diff(dim=-1, prepend=torch.zeros_like(j[...,:1]))).sum(-1)
    return value
def off(x, q, y): return (y-q).abs()
def lovasz_hinge(x, q, y): return (1-(2*y-1)*x).relu()

# ---- a teacher

def divergence(name, a, b): # of log-probabilities of the student and of the teacher
    def kl(u, v): return (u.exp()*torch.where(u==-inf, 0., u-v)).sum(1)
    if name=='jensen-shannon':
        m = torch.logaddexp(a, b)-math.log(2)
        return .5*kl(a, m)+.5*kl(b, m)
    return kl(b, a) if name=='forward' else kl(a, b)

def taught(soft, share):
    "Cross entropy on labels and what a teacher says, each position with the weight of its label"
    def ref(p, logits, *rest, sample_weight=None):
        if len(rest)==soft.n_teacher+2: *rest,sample_weight = rest
        *teacher,target = rest if len(rest)>soft.n_teacher else (*rest,None)
        plain = SimpleNamespace(axis=p.axis, ignore_index=p.ignore_index, weight=p.weight)
        if target is None: v,n = 0.,weights(sample_weight, logits.select(p.axis, 0).shape)[0]
        else: v,n = classes(plain, logits, target, sample_weight,
            row=lambda p,x,y,c: times(y*c, -x.log_softmax(1)).sum(1))
        learned = sample_weight is not None and sample_weight.requires_grad
        keep = torch.ones_like(n, dtype=torch.bool) if learned else n.detach()!=0
        x,*teacher = (o.detach() if i else o for i,o in enumerate((logits,*teacher)))
        if target is not None and not target.is_floating_point():
            teacher = (*teacher,target.unsqueeze(p.axis))
        x,*teacher = ((o.double() if o.is_floating_point() else o.long()).movedim(p.axis,
            -1)[keep] for o in (x,*teacher))
        return share(p)*v + n*spread(soft(p, x, *teacher), keep),n
    return ref
def distilled(p, x, t, *_):
    T = p.temperature
    return p.alpha*T*T*divergence(p.divergence, (x/T).log_softmax(1), (t/T).log_softmax(1))
def top_k(p, x, q, i, *_):
    "All other classes are one"
    T = p.temperature
    s = (x/T).log_softmax(1)
    others = s.scatter(1, i, -1e9).logsumexp(1, keepdim=True)
    rest = 1-q.sum(1, keepdim=True) if q.shape[1]<x.shape[1] else 0*q[:,:1]
    a = torch.cat([s.gather(1, i), others], 1)
    return p.alpha*T*T*divergence(p.divergence, a, torch.cat([q, rest], 1).clamp(min=1e-37).log())
def decoupled(p, x, t, y):
    T,own = p.temperature,one_hot(y[:,0], x.shape[1])>0
    def two(o): # the label and the rest, and what the rest is made of
        logq = (o/T).log_softmax(1)
        both = [logq.masked_fill(~m, -1e30).logsumexp(1) for m in (own,~own)]
        return torch.stack(both, 1),(o/T).masked_fill(own, -1e30).log_softmax(1)
    (a,c),(b,d) = two(x),two(t)
    return T*T*(p.alpha*divergence('forward', a, b) + p.beta*divergence('forward', c, d))
distilled.n_teacher,top_k.n_teacher,decoupled.n_teacher = 1,2,1

# ---- spans and lists, row by row

def spans(with_ce):
    def ref(p, pred, *target, mask=None, lengths=None, sample_weight=None):
        pair = isinstance(pred, tuple)
        def ends(o): return o.unbind((1 if o.shape[1]==2 else 2) if p.axis is None else 3-p.axis%3)
        a,b = pred if pair else ends(pred)
        first,*rest = target
        if isinstance(first, tuple): ys = first
        elif first.ndim==3: ys = ends(first)
        elif first.ndim==2 and not first.is_floating_point(): ys = first.unbind(1)
        else: ys,rest = (first,rest[0]),rest[1:]
        for o in rest: mask,lengths = (o,lengths) if o.ndim==2 else (mask,o)
        L = a.shape[1]
        if lengths is not None: mask = torch.arange(L)<lengths[:,None]
        mask = torch.ones(a.shape, dtype=torch.bool) if mask is None else mask!=0
        w,keep = weights(sample_weight, a.shape[:1])
        for y in ys:
            if y.ndim==1: keep = keep & (y!=p.ignore_index)
        def row(m, a, b, s, e):
            at,total = torch.arange(int(m.sum())).double(),0.
            ends = []
            for x,y in ((a,s), (b,e)):
                x,y = x.double()[m],(one_hot(y, L) if y.ndim==0 else y.double())[m]
                if with_ce: total = total - (smoothed(y, p.label_smoothing)*x.log_softmax(0)).sum()
                ends.append(((y-x.softmax(0))*at).sum())
            d = ((ends[1]-ends[0])/(len(at) if p.unit is None else p.unit)).abs()
            edge = 1-2**-10
            return total + p.scale*torch.where(d<=edge, -torch.log1p(-d.clamp(max=edge)),
                -math.log(2**-10)+(d-edge)*2**10)
        return by_rows(row, keep, w, mask, a, b, *ys),w*keep
    return ref

def lists(row):
    def ref(p, s, r, mask=None, sample_weight=None):
        mask = torch.ones(s.shape, dtype=torch.bool) if mask is None else mask!=0
        w,keep = weights(sample_weight, s.shape[:1])
        keep = keep & mask.any(1)
        return by_rows(lambda m,s,r: row(p, s.double()[m], r.double()[m]), keep, w, mask, s,
            r),w*keep
    return ref
def list_net(p, s, r): return -(r.softmax(0)*s.log_softmax(0)).sum()
def lambda_rank(p, s, r):
    "Pair by pair, with what a swap changes of the NDCG, on average over the orders of what is tied"
    def places(o): return [[sum(v>w for v in o)+k for k in range(o.count(w))] for w in o]
    def discount(k): return 1/math.log2(k+2) if p.k is None or k<p.k else 0.
    at,gain = places(s.tolist()),[2**o-1 for o in r.tolist()]
    def apart(i, j):
        gaps = [abs(discount(a)-discount(b)) for a in at[i] for b in at[j] if a!=b]
        return sum(gaps)/len(gaps)
    ideal = sum(g*discount(k) for k,g in enumerate(sorted(gain, reverse=True))) or 1e-30
    total = s.sum()*0
    for i in range(len(s)):
        for j in range(len(s)):
            if r[i]<=r[j]: continue
            change = abs(gain[i]-gain[j])*apart(i, j)/ideal
            total = total + change*F.softplus(-p.sigma*(s[i]-s[j]))
    return total

# ---- contrastive: the whole matrix of scores, of those that are not left out

def unit(x): return x/(x*x).sum(-1, keepdim=True).sqrt()
def views(o): return o if isinstance(o[0], torch.Tensor) and len(o)>1 else o[0]

def pairs(rows):
    "A loss on two embeddings of each"
    def ref(p, *two, sample_weight=None):
        a,b,*more = two if isinstance(two[0], torch.Tensor) else two[0]
        w,keep = weights(sample_weight, a.shape[:1])
        a,b = a.double()[keep],b.double()[keep]
        if p.normalize: a,b = unit(a),unit(b)
        return w*spread(rows(p, a, b, keep, *more), keep),w
    return ref
def diagonal_ce(s): return s.logsumexp(1)-s.diagonal()
def info_nce(p, a, b, keep, negatives=None):
    s = a@b.T/p.temperature
    if negatives is not None:
        n = negatives.double()
        n = n[keep] if n.ndim==3 else n
        if p.normalize: n = unit(n)
        more = (a@n.T if n.ndim==2 else torch.einsum('nd,nkd->nk', a, n))/p.temperature
        return torch.cat([s if p.in_batch else s.diagonal()[:,None], more],
            1).logsumexp(1)-s.diagonal()
    return .5*(diagonal_ce(s)+diagonal_ce(s.T)) if p.symmetric else diagonal_ce(s)
def clip(p, a, b, keep):
    s = b@a.T/p.temperature # of texts to images
    if not p.soft_targets: return .5*(diagonal_ce(s)+diagonal_ce(s.T))
    t = ((a@a.T+b@b.T)*p.temperature/2).softmax(1)
    return -.5*((t*s.log_softmax(1)).sum(1)+(t*s.log_softmax(0)).sum(0))
def siglip(p, a, b, keep):
    s = a@b.T/p.temperature+p.bias
    return F.softplus(s*(1-2*torch.eye(len(s)).double())).sum(1)

def groups(each_pair):
    "Anchors against all others; positives share a label"
    def ref(p, x, target=None, sample_weight=None):
        x = torch.stack(x, 1) if isinstance(x, tuple) else x
        pos = x.shape[:-1]
        y = torch.arange(len(x)) if target is None else target
        y = y.repeat_interleave(pos[1], 0) if x.ndim==3 else y
        w,keep = weights(sample_weight, pos)
        x,keep_,w_ = x.double().reshape(-1, x.shape[-1]),keep.reshape(-1),w.reshape(-1)
        x,y = x[keep_],y[keep_]
        if p.normalize: x = unit(x)
        s,other = x@x.T/p.temperature,~torch.eye(len(x), dtype=torch.bool)
        same = ((y.double()@y.double().T>0) if y.ndim==2 else y[:,None]==y) & other
        n = same.sum(1).double()
        if p.denominator=='all': cost = s.masked_fill(~other, -1e30).logsumexp(1, keepdim=True)-s
        else:
            rest = other & ~same
            cost = F.softplus(s.masked_fill(~rest, -1e30).logsumexp(1, keepdim=True)-s)*rest.any(1,
                keepdim=True)
        v = (cost*same).sum(1)
        if not each_pair: v,n = v/n.clamp(min=1),(n>0).double()
        return (w_*spread(v, keep_)).reshape(pos),(w_*spread(n, keep_)).reshape(pos)
    return ref

def proxies(rows):
    def ref(p, x, y, sample_weight=None):
        w,keep = weights(sample_weight, x.shape[:1])
        c = unit(x.double()[keep])@unit(p.own['proxies']).T
        own = one_hot(y.long()[keep], c.shape[1])
        return w*spread(rows(p, c, own), keep),w
    return ref
def ce_of(s, own): return s.logsumexp(1)-(own*s).sum(1)
def cosface(p, c, own): return ce_of(p.scale*(c-p.margin*own), own)
def arcface(p, c, own):
    m = p.margin
    turned = torch.where(c>-math.cos(m), c*math.cos(m)-(1-c*c).clamp(min=1e-12).sqrt()*math.sin(m),
        c-m*math.sin(m))
    return ce_of(p.scale*torch.where(own>0, turned, c), own)
def proxy_nca(p, c, own):
    s = 2*p.scale*c
    return (s if p.denominator=='all' else s.masked_fill(own>0, -1e30)).logsumexp(1)-(own*s).sum(1)

# ---- the table

def nll_given(p, x): return -x
# functions of the book without a module
class SoftLabelOfProbs(ClassLoss, of=soft_label_cross_entropy):
    def from_logits(self, x): return x.softmax(self.axis)
class MAEOfProbs(ClassLoss, of=classification_mae):
    def from_logits(self, x): return x.softmax(self.axis)

def soft_label_of_probs(p, x, *args, **kwargs):
    return averaged(cross_entropy, lambda p,q: nll_of_probs(q, x.dtype), level_off, 'alpha')(p, x,
        *args, **kwargs)

REFERENCES = dict(CrossEntropyLoss=averaged(cross_entropy),
    NLLLoss=averaged(cross_entropy, nll_given),
    SoftLabelCrossEntropy=averaged(cross_entropy, smooth=level_off, share='alpha'),
    SoftLabelOfProbs=soft_label_of_probs, KLDivWithLogitsLoss=whole(kl),
    ClassificationMAE=whole(mae), MAEOfProbs=whole(lambda p,x, y: (x-y).abs().sum(1)),
    GeneralizedCrossEntropy=averaged(gce), ReverseCrossEntropy=whole(rce),
    NormalizedCrossEntropy=whole(nce), ActivePassiveLoss=active_passive,
    SymmetricCrossEntropy=whole(sce), BiTemperedLoss=whole(bi_tempered, level_off),
    FocalLoss=averaged(focal), PolyLoss=averaged(poly), LogitAdjustedLoss=shifted(prior),
    BalancedSoftmaxLoss=shifted(counted),
    LDAMLoss=partial(classes, row=lambda p,x,y,c: times(y*c, ldam(p, x, c)).sum(1)),
    MultiMarginLoss=multi_margin_loss, BCEWithLogitsLoss=binary(bce), BCELoss=of_probs,
    MultiLabelSoftMarginLoss=multi_label, BinaryFocalLoss=binary(binary_focal),
    AsymmetricLoss=binary(asymmetric), SoftMarginLoss=partial(signs, soft_margin),
    HingeEmbeddingLoss=partial(signs, hinge), MarginRankingLoss=difference,
    CosineEmbeddingLoss=partial(of_pairs, angle, cosine),
    ContrastiveLoss=partial(of_pairs, far, distance), TripletMarginLoss=triplet,
    MultiLabelMarginLoss=multilabel_margin, ListNetLoss=lists(list_net),
    LambdaRankLoss=lists(lambda_rank), MSELoss=real(squared), L1Loss=real(absolute),
    HuberLoss=real(huber), SmoothL1Loss=real(smooth_l1), LogCoshLoss=real(log_cosh),
    CharbonnierLoss=real(charbonnier), BarronLoss=real(barron), AdaptiveBarronLoss=real(barron),
    QuantileLoss=levels(pinball, 'quantiles'), ExpectileLoss=levels(expectile, 'expectiles'),
    GaussianNLLLoss=gaussian_nll, BetaNLLLoss=two_heads(beta_nll), PoissonNLLLoss=poisson,
    NegativeBinomialNLLLoss=negative_binomial, DiceLoss=class_areas(of_areas(dice)),
    JaccardLoss=class_areas(of_areas(jaccard)), TverskyLoss=class_areas(of_areas(tversky)),
    FocalTverskyLoss=class_areas(of_areas(focal_tversky)), LovaszLoss=class_areas(lovasz(off)),
    BinaryDiceLoss=binary_areas(of_areas(dice)), BinaryJaccardLoss=binary_areas(of_areas(jaccard)),
    BinaryTverskyLoss=binary_areas(of_areas(tversky)),
    BinaryFocalTverskyLoss=binary_areas(of_areas(focal_tversky)),
    BinaryLovaszLoss=binary_areas(lovasz(lovasz_hinge)),
    DistillationLoss=taught(distilled, lambda p: 1-p.alpha),
    TopKDistillationLoss=taught(top_k, lambda p: 1-p.alpha),
    DecoupledDistillationLoss=taught(decoupled, lambda p: p.label_weight),
    DistanceLoss=spans(False), SpanLoss=spans(True), InfoNCELoss=pairs(info_nce),
    CLIPLoss=pairs(clip), SigLIPLoss=pairs(siglip), NTXentLoss=groups(True),
    SupConLoss=groups(False), ArcFaceLoss=proxies(arcface), CosFaceLoss=proxies(cosface),
    ProxyNCALoss=proxies(proxy_nca))
