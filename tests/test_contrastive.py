"The losses of the chapter on contrast: slow loops, peers, extremes, blocks, what is kept, other processes, refusals"
import importlib.util, math, pickle, processes, pytest, torch, torch.nn.functional as F
from copy import deepcopy
from functools import partial
from torch import nn, tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from lossbook.check import check_loss
from lossbook.core import assert_same as same, check_batch
from lossbook import contrastive as c
from lossbook.contrastive import *

fixed = partial(CLIPLoss, learnable=False)
LOSSES = {'contrastive': partial(ContrastiveLoss, 1.5), 'infonce': InfoNCELoss, 'infonce, both': partial(InfoNCELoss, symmetric=True),
    'ntxent': NTXentLoss, 'ntxent, negatives': partial(NTXentLoss, denominator='negatives'), 'supcon': SupConLoss,
    'supcon, negatives': partial(SupConLoss, denominator='negatives'), 'clip': fixed, 'clip, soft': partial(fixed, soft_targets=True),
    'siglip': partial(SigLIPLoss, learnable=False, bias=-2.), 'arcface': partial(ArcFaceLoss, 4, 5, scale=8.),
    'cosface': partial(CosFaceLoss, 4, 5, scale=8.), 'proxynca': partial(ProxyNCALoss, 4, 5),
    'proxynca, all': partial(ProxyNCALoss, 4, 5, denominator='all')}
each = pytest.mark.parametrize('name', LOSSES)
IN_BATCH = [k for k in LOSSES if k not in ('contrastive','arcface','cosface','proxynca','proxynca, all')]

def batch(name, n=6, dtype=torch.double, **kwargs):
    "A loss, what it takes, and of that what is a prediction"
    torch.manual_seed(n)
    f = LOSSES[name](**kwargs).to(dtype)
    args = f.example(n)
    if len(args)==1 or args[1].is_floating_point() and name!='contrastive': rest = ()
    else: rest = args[f.n_preds:]
    return f,[o.to(dtype).requires_grad_() for o in args[:f.n_preds]],rest

# slow loops in Python's numbers

def cos(a, b): return sum(p*q for p,q in zip(a, b))/math.sqrt(sum(p*p for p in a)*sum(q*q for q in b))
def lse(xs): return math.log(sum(math.exp(x) for x in xs))
def softplus(x): return math.log1p(math.exp(x))

def by_loop(name, f, preds, rest):
    "One value per example, or per anchor"
    xs,y = [o.tolist() for o in preds],rest[0].tolist() if rest else None
    a,N = xs[0],range(len(xs[0]))
    if name=='contrastive':
        for p,q,t in zip(*xs, y):
            d = math.sqrt(sum((u-v+f.eps)**2 for u,v in zip(p, q)))
            yield .5*d*d if t==1 else .5*max(0., f.margin-d)**2
    elif name in ('arcface','cosface') or name.startswith('proxynca'):
        w = f.proxies.tolist()
        for i in N:
            cs = [cos(a[i], o) for o in w]
            own = cs[y[i]]
            if name=='arcface': own = math.cos(math.acos(own)+f.margin) if math.acos(own)+f.margin<math.pi else own-f.margin*math.sin(f.margin)
            if name=='cosface': own -= f.margin
            k = f.scale*(1 if name in ('arcface','cosface') else 2)
            others = [k*o for j,o in enumerate(cs) if j!=y[i]]
            yield lse(others + [k*own]*(name!='proxynca')) - k*own
    elif name.startswith(('ntxent','supcon')):
        s = [[cos(p, q)/f.temperature for q in a] for p in a]
        for i in N:
            pos = [j for j in N if j!=i and y[j]==y[i]]
            neg = [s[i][j] for j in N if y[j]!=y[i]]
            if not pos:
                yield 0.
                continue
            if f.denominator=='all': vals = [lse([s[i][j] for j in N if j!=i]) - s[i][p] for p in pos]
            else: vals = [lse([*neg, s[i][p]]) - s[i][p] for p in pos]
            yield sum(vals)/(len(pos) if 'supcon' in name else 1)
    else:
        b = xs[1]
        s = [[cos(p, q)/f.temperature for q in b] for p in a] # rows are the first argument
        if name=='siglip':
            for i in N: yield sum(softplus(-(1 if i==j else -1)*(s[i][j]+f.bias)) for j in N)
        elif name=='clip, soft': # as in OpenAI-CLIP, rows of the logits are texts
            t = [[(cos(a[i], a[j])+cos(b[i], b[j]))/2*f.temperature for j in N] for i in N]
            t = [[math.exp(v-lse(r)) for v in r] for r in t]
            z = [[s[j][i] for j in N] for i in N]
            for i in N:
                texts = sum(t[i][j]*(lse(z[i])-z[i][j]) for j in N)
                images = sum(t[j][i]*(lse([z[k][i] for k in N])-z[j][i]) for j in N)
                yield (texts+images)/2
        else:
            for i in N:
                rows,cols = lse(s[i])-s[i][i],lse([s[j][i] for j in N])-s[i][i]
                yield rows if name=='infonce' else (rows+cols)/2

def pairs_of(name, rest, n): # what a mean divides by
    if not name.startswith(('ntxent','supcon')): return n
    y = rest[0].tolist()
    pos = [sum(a==b for b in y)-1 for a in y]
    return sum(pos) if 'ntxent' in name else sum(p>0 for p in pos)

@each
@pytest.mark.parametrize('n', [2,7])
def test_loop(name, n):
    f,preds,rest = batch(name, n)
    want = torch.tensor(list(by_loop(name, f, preds, rest)), dtype=torch.double)
    same(f.reduced('none', *preds, *rest).detach(), want, 1e-9, 1e-9)
    same(f.reduced('sum', *preds, *rest).detach(), want.sum(), 1e-9, 1e-9)
    same(f(*preds, *rest).detach(), want.sum()/pairs_of(name, rest, n), 1e-9, 1e-9)

def learned(f): return [p for p in f.parameters() if p.requires_grad]

def results(f, preds, rest, reduction, **kwargs):
    "Value, and the gradient by everything that has one"
    v = f.reduced(reduction, *preds, *rest, **kwargs)
    w = torch.arange(1., v.numel()+1, dtype=v.dtype).reshape(v.shape)
    return v.detach(),*grad((v*w).sum(), [*preds, *learned(f)])

OF_LEARNED = {**LOSSES, 'clip, learned': CLIPLoss, 'siglip, learned': SigLIPLoss, 'clip, soft, learned': partial(CLIPLoss, soft_targets=True),
    'clip, soft, dot': partial(CLIPLoss, 1., soft_targets=True, normalize=False)}

@pytest.mark.parametrize('name', OF_LEARNED)
@pytest.mark.parametrize('small', [True,False], ids=['at once','blocks'])
@pytest.mark.parametrize('weights', [None,(1.,2.,0.,1.,.5,3.)], ids=['','weighted'])
def test_formula(name, small, weights, monkeypatch):
    "The derivative by hand, at once and in blocks, is that of the plain formula, by every parameter too"
    if not small:
        monkeypatch.setattr(c, 'BLOCK', 14)
        monkeypatch.setattr(c, 'SMALL', 0)
    torch.manual_seed(0)
    f = OF_LEARNED[name]().double()
    args = f.example(6)
    preds,rest = [o.double().requires_grad_() for o in args[:f.n_preds]],args[f.n_preds:]
    kwargs = {} if weights is None else dict(sample_weight=tensor(weights))
    for r in ('mean','sum','none'):
        got = results(f, preds, rest, r, **kwargs)
        with monkeypatch.context() as m:
            m.setattr(c, 'is_eager', lambda: False)
            want = results(f, preds, rest, r, **kwargs)
        for g,h in zip(got, want): same(g, h, 1e-10, 1e-9)

@each
def test_derivatives(name):
    f,preds,rest = batch(name, 5)
    def g(*xs): return f(*xs, *rest)
    assert gradcheck(g, preds) and gradgradcheck(g, preds)

# known numbers

def test_two_denominators():
    "The same batch in the two meanings that libraries give to NT-Xent"
    torch.manual_seed(0)
    x,y = torch.randn(8, 16),tensor([0,0,0,0,1,1,2,2])
    a,b = (nt_xent_loss(x, y, denominator=d) for d in ('all','negatives'))
    assert a>b
    two = tensor([0,0,1,1,2,2,3,3]) # with one positive each they are one
    same(*[nt_xent_loss(x, two, denominator=d) for d in ('all','negatives')])

def test_collinear():
    "SimCLR's value for views that are all alike: log(2N-1)"
    x = torch.ones(5, 3)
    same(NTXentLoss()((x,x)), math.log(9))
    same(InfoNCELoss()(x, x), math.log(5))

def test_hand_worked():
    a,b = tensor([[1.,0.],[0.,1.]]),tensor([[1.,0.],[1.,0.]])
    same(info_nce_loss(a, b, temperature=1., reduction='none'), [math.log(2), math.log(2)])
    same(contrastive_loss(tensor([[0.,0.],[0.,0.]]), tensor([[3.,4.],[.3,.4]]), tensor([1.,-1.]), reduction='none', eps=0.), [12.5, .125])
    same(siglip_loss(a, a, 1., 0., 'none'), [softplus(-1)+softplus(0)]*2)

def test_views():
    "Views as a tuple, as one tensor, and as labels are one"
    torch.manual_seed(0)
    a,b = torch.randn(2, 6, 4)
    for f in (NTXentLoss(), SupConLoss()):
        want = f(torch.cat([a,b]), torch.arange(6).repeat(2))
        same(f((a,b)), want)
        same(f(torch.stack([a,b], 1)), want)
        assert f.reduced('none', (a,b)).shape==(6,2)
        y = tensor([0,0,1,1,2,3])
        same(f((a,b), y), f(torch.cat([a,b]), y.repeat(2)))

@pytest.mark.parametrize('cls', [NTXentLoss,SupConLoss])
@pytest.mark.parametrize('denominator', ['all','negatives'])
def test_anchors_without_positives(cls, denominator):
    torch.manual_seed(0)
    f = cls(denominator=denominator)
    x = torch.randn(5, 4, requires_grad=True)
    v = f.reduced('none', x, tensor([0,0,1,2,3]))
    assert v[2:].tolist()==[0.]*3 and (v[:2]>0).all()
    same(f(x, tensor([0,0,1,2,3])), v[:2].mean())
    for y in (torch.arange(5), torch.zeros(5).long() if denominator=='negatives' else torch.arange(5)): # none has a positive; all have
        v = f(x, y)
        assert v==0 and not grad(v, x)[0].any()

def test_several_labels():
    torch.manual_seed(0)
    x,y = torch.randn(6, 4),tensor([0,1,2,0,1,2])
    for f in (NTXentLoss(), SupConLoss()):
        same(f(x, F.one_hot(y)), f(x, y))
        same(f(x, F.one_hot(y).bool()), f(x, y))
    many = tensor([[1,1,0],[0,1,0],[0,0,1],[0,0,0]]) # one label shared, and an example without a label
    v = SupConLoss(reduction='none')(x[:4], many)
    assert (v[:2]>0).all() and not v[2:].any()

# negatives that are given

def test_given_negatives():
    torch.manual_seed(0)
    q,p,n = torch.randn(4, 3).double().requires_grad_(),torch.randn(4, 3).double(),torch.randn(5, 3).double()
    u = [F.normalize(o, dim=-1) for o in (q,p,n)]
    own,rest,others = (u[0]*u[1]).sum(1, keepdim=True),u[0]@u[2].T,u[0]@u[1].T
    zero = torch.zeros(4, dtype=torch.long)
    want = F.cross_entropy(torch.cat([own,rest], 1)/.1, zero)
    for got in (info_nce_loss(q, p, n), info_nce_loss(q, p, n.expand(4, 5, 3))):
        same(got, want)
        same(grad(got, q)[0], grad(want, q, retain_graph=True)[0])
    same(info_nce_loss(q, p, n, in_batch=True), F.cross_entropy(torch.cat([others,rest], 1)/.1, torch.arange(4)))
    same(InfoNCELoss()((q,p,n)), want)
    keep = tensor([True,False,True,True])
    same(info_nce_loss(q, p, n, sample_weight=keep), info_nce_loss(q[keep], p[keep], n))
    same(info_nce_loss(q, p, n, in_batch=True, sample_weight=keep), info_nce_loss(q[keep], p[keep], n, in_batch=True))

# extremes

@each
@pytest.mark.parametrize('dtype,big', [(torch.half,3e4), (torch.bfloat16,1e4), (torch.float,1e4), (torch.double,1e4)])
def test_extremes(name, dtype, big):
    f,preds,rest = batch(name, 4, dtype)
    ways = [lambda p: p.sign()*big, torch.zeros_like, lambda p: p*(torch.arange(len(p))>1)[:,None],
        lambda p: torch.ones_like(p)*big, lambda p: p*1e-4]
    for make in ways:
        xs = [make(p.detach()).requires_grad_() for p in preds]
        v = f(*xs, *rest)
        assert v.isfinite() and all(g.isfinite().all() for g in grad(v, [*xs, *learned(f)]))

@pytest.mark.parametrize('name', IN_BATCH)
@pytest.mark.parametrize('temperature', [1e-3,1.,100.])
def test_temperatures(name, temperature):
    f,preds,rest = batch(name, 6, torch.float, temperature=temperature)
    for xs in (preds, [torch.zeros_like(p).requires_grad_() for p in preds], [p.detach().half().requires_grad_() for p in preds]):
        v = f(*xs, *rest)
        assert v.isfinite() and all(g.isfinite().all() for g in grad(v, xs))

def test_arcface_at_the_ends():
    "Angles of 0 and of pi have a finite slope, and the cosine goes on falling beyond pi"
    f = ArcFaceLoss(2, 2)
    with torch.no_grad(): f.proxies.copy_(torch.eye(2))
    x = tensor([[1.,0.],[-1.,0.],[0.,-1.]], requires_grad=True)
    v = f(x, tensor([0,0,1]))
    assert v.isfinite() and grad(v, x)[0].isfinite().all()
    cosines = torch.linspace(-1, 1, 999, dtype=torch.double)
    assert (c.with_angle(cosines, .5).diff()>0).all()

@each
def test_left_out(name):
    "What has no weight may be anything, as in the batch without it, and is no negative"
    f,preds,rest = batch(name, 7)
    keep = torch.arange(7)!=3
    xs = [torch.where(keep[:,None], p.detach(), math.nan).requires_grad_() for p in preds]
    for r in ('mean','sum','none'):
        got,*gs = results(f, xs, rest, r, sample_weight=keep)
        want = f.reduced(r, *[p[keep] for p in preds], *[o[keep] for o in rest])
        same(got[keep] if r=='none' else got, want.detach(), 1e-12, 1e-12)
        for g in gs[:len(xs)]: assert g.isfinite().all() and not g[3].any()
    v = f(*xs, *rest, sample_weight=torch.zeros(7))
    assert v==0 and not any(g.any() for g in grad(v, xs))

@each
def test_weights(name):
    f,preds,rest = batch(name, 5)
    w = tensor([1.,2.,.5,3.,1.], dtype=torch.double, requires_grad=True)
    v = f.reduced('none', *preds, *rest)
    n = torch.ones(5) if not name.startswith('ntxent') else c.count_positives(rest[0], torch.arange(5), rest[0], None)
    if name.startswith('supcon'): n = (v>0).double()
    same(f(*preds, *rest, sample_weight=w), (v*w).sum()/(n*w).sum(), 1e-10, 1e-10)
    assert grad(f(*preds, *rest, sample_weight=w), w)[0].any()
    same(f(*preds, *rest, sample_weight=w.detach()), (v*w).sum()/(n*w).sum(), 1e-10, 1e-10)

@each
def test_empty(name):
    f,preds,rest = batch(name, 0)
    v = f(*preds, *rest)
    assert v==0 and all(g.shape==p.shape for g,p in zip(grad(v, preds), preds))

QUICK = dict(groups=('values','numerics','learner')) # what is compiled differs by the value alone

@pytest.mark.parametrize('cls,args', [(ArcFaceLoss,(3,6)), (CosFaceLoss,(3,6)), (ProxyNCALoss,(3,6))])
def test_contract_of_proxies(cls, args):
    torch.manual_seed(0)
    kwargs = {} if cls is ProxyNCALoss else dict(scale=8.)
    more = {} if cls is ArcFaceLoss else QUICK
    rep = check_loss(cls(*args, **kwargs), **more)
    assert rep.ok, rep

@pytest.mark.parametrize('loss', [CLIPLoss(soft_targets=True), fixed(), InfoNCELoss(symmetric=True), NTXentLoss(denominator='negatives')], ids=repr)
def test_contract_of_others(loss):
    more = {} if getattr(loss, 'soft_targets', False) else QUICK
    assert (rep := check_loss(loss, **more)).ok, rep

def test_proxy_learner_hooks():
    torch.manual_seed(0)
    f = CosFaceLoss(4, 6)
    p = f.activation(torch.randn(5, 6))
    same(p.sum(1), torch.ones(5))
    assert f.decodes(p).shape==(5,) and f.y_int

# what is learned

def test_parameters():
    f = CLIPLoss(.05)
    assert [k for k,_ in f.named_parameters()]==['logit_scale'] and math.isclose(f.temperature, .05, rel_tol=1e-6)
    assert not list(CLIPLoss(learnable=False).parameters())
    g = SigLIPLoss()
    assert {k: round(v.item(), 5) for k,v in g.named_parameters()}==dict(logit_scale=2.30259, logit_bias=-10.)
    assert g.bias==-10 and pickle.loads(pickle.dumps(g)).bias==-10
    with torch.no_grad(): g.logit_bias += 1
    assert g.bias==-9 and g.with_params(reduction='sum').bias==-9 and "bias=-9.0" in repr(g)
    a = ArcFaceLoss(3, 4)
    assert a.proxies.shape==(3,4) and a.with_params(margin=.1).proxies.equal(a.proxies)

@pytest.mark.parametrize('cls', [CLIPLoss,SigLIPLoss])
def test_gradient_of_learned(cls):
    "That of the temperature as an argument, by the chain rule"
    torch.manual_seed(0)
    a,b = torch.randn(2, 5, 4).double()
    f = cls(.2).double()
    t = torch.tensor(.2, dtype=torch.double, requires_grad=True)
    g, = grad(f(a, b), f.logit_scale)
    same(g, -t.detach()*grad(f.func(a, b, t), t)[0], 1e-6, 1e-6)

def test_scale_is_held():
    "Beyond 100 the value stays, and the gradient still moves the parameter"
    f,x = CLIPLoss(),torch.eye(4)
    with torch.no_grad(): f.logit_scale.fill_(9.)
    same(f(x, x), clip_loss(x, x, .01))
    assert grad(f(x, x.flip(0)), f.logit_scale)[0]>0
    with pytest.raises(ValueError, match='temperature must be >= 1/max_scale = 0.01'): CLIPLoss(.001)
    assert CLIPLoss(.001, learnable=False)(x, x)==0

def test_learns_without_a_learner():
    import itertools
    torch.manual_seed(0)
    net,f = nn.Linear(4, 3),CLIPLoss()
    opt = torch.optim.SGD(itertools.chain(net.parameters(), f.parameters()), .1)
    f(net(torch.randn(6, 4)), torch.randn(6, 3)).backward()
    opt.step()
    assert f.temperature!=.07

# blocks and bytes

def kept_bytes(f, *args):
    "What autograd keeps, each storage once"
    seen = {}
    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with saved_tensors_hooks(pack, lambda t: t): v = f(*args)
    return v,sum(seen.values())

@pytest.mark.parametrize('f', [InfoNCELoss(), InfoNCELoss(symmetric=True), CLIPLoss(), SigLIPLoss(), NTXentLoss(), SupConLoss()], ids=repr)
def test_bytes(f):
    "N = 8192, D = 256: the matrix has 256 MiB, the embeddings 16"
    a,b = (torch.randn(8192, 256, requires_grad=True) for _ in range(2))
    args,size = ((a,torch.arange(8192)//2),a.nbytes) if f.n_preds==1 else ((a,b),2*a.nbytes)
    _,kept = kept_bytes(f, *args)
    assert kept<=1.2*size

def test_bytes_of_a_formula():
    "The counter sees the matrix where it is kept"
    a,b = (torch.randn(512, 16, requires_grad=True) for _ in range(2))
    assert kept_bytes(lambda: F.cross_entropy(a@b.T, torch.arange(512)))[1]>=512*512*4

def test_bytes_of_soft_targets():
    a,b = (torch.randn(4096, 32, requires_grad=True) for _ in range(2))
    v,kept = kept_bytes(CLIPLoss(soft_targets=True), a, b)
    assert kept<=1.2*2*a.nbytes

# peers

def peer(name): return pytest.importorskip(f'pytorch_metric_learning.{name}')

@pytest.mark.parametrize('y', [[0,0,1,1,2,2],[0,0,0,1,1,2]], ids=['pairs','groups'])
def test_metric_learning_pairs(y):
    "NT-Xent, SupCon and the contrastive loss of pytorch-metric-learning"
    losses,reducers,distances = (peer(o) for o in ('losses','reducers','distances'))
    torch.manual_seed(0)
    x,y = torch.randn(len(y), 5).requires_grad_(),tensor(y)
    both = [(nt_xent_loss(x, y, .3, denominator='negatives'), losses.NTXentLoss(.3)(x, y)),
        (sup_con_loss(x, y, .3), losses.SupConLoss(.3)(x, y))]
    for ours,theirs in both:
        same(ours, theirs, 1e-5, 1e-5)
        same(grad(ours, x)[0], grad(theirs, x)[0], 1e-5, 1e-5)
    i,j = torch.combinations(torch.arange(len(y)), 2).T
    sign = 2.*(y[i]==y[j])-1
    u = F.normalize(x)
    d = distances.LpDistance(normalize_embeddings=True, power=1)
    theirs = losses.ContrastiveLoss(pos_margin=0, neg_margin=1, distance=d, reducer=reducers.DoNothingReducer())(x, y)
    ours = contrastive_loss(u[i], u[j], sign, 1., 'none', eps=0.)
    pos,neg = theirs['pos_loss']['losses'],theirs['neg_loss']['losses']
    same((ours[sign>0]*2).sum(), (pos**2).sum()/2, 1e-4, 1e-4) # each pair stands there twice
    same((ours[sign<0]*2).sum(), (neg**2).sum()/2, 1e-4, 1e-4)

def test_metric_learning_proxies():
    "ArcFace, CosFace and ProxyNCA, whose margin is in degrees and whose weights stand in columns"
    losses = peer('losses')
    torch.manual_seed(0)
    x,y = torch.randn(8, 5).requires_grad_(),torch.arange(8)%3
    both = [(ArcFaceLoss(3, 5, .5, 16.), losses.ArcFaceLoss(3, 5, margin=math.degrees(.5), scale=16)),
        (CosFaceLoss(3, 5, .2, 16.), losses.CosFaceLoss(3, 5, margin=.2, scale=16)),
        (ProxyNCALoss(3, 5, 2., denominator='all'), losses.ProxyNCALoss(3, 5, softmax_scale=2))]
    for ours,theirs in both:
        w = theirs.proxies if hasattr(theirs, 'proxies') else theirs.W
        with torch.no_grad(): ours.proxies.copy_(w if hasattr(theirs, 'proxies') else w.T)
        a,b = ours(x, y),theirs(x, y)
        same(a, b, 1e-4, 1e-4)
        same(grad(a, x)[0], grad(b, x)[0], 1e-4, 1e-4)

def test_open_clip():
    "The formulas of open_clip's ClipLoss and SigLipLoss"
    torch.manual_seed(0)
    a,b = (F.normalize(torch.randn(6, 5)).requires_grad_() for _ in range(2))
    logits,y = 14.3*a@b.T,torch.arange(6)
    want = (F.cross_entropy(logits, y)+F.cross_entropy(logits.T, y))/2
    labels = 2*torch.eye(6)-1
    sig = -F.logsigmoid(labels*(14.3*a@b.T-3)).sum()/6
    dot = dict(normalize=False) # they are of length 1
    for ours,theirs in ((clip_loss(a, b, 1/14.3, **dot), want), (siglip_loss(a, b, 1/14.3, -3., **dot), sig)):
        same(ours, theirs, 1e-5, 1e-5)
        for g,h in zip(grad(ours, (a,b)), grad(theirs, (a,b), retain_graph=True)): same(g, h, 1e-5, 1e-5)
    if not (found := importlib.util.find_spec('open_clip')): return
    spec = importlib.util.spec_from_file_location('open_clip_loss', f'{found.submodule_search_locations[0]}/loss.py') # the package needs torchvision
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    both = [(clip_loss(a, b, 1/14.3, **dot), mod.ClipLoss()(a, b, tensor(14.3))),
        (siglip_loss(a, b, 1/14.3, -3., **dot), mod.SigLipLoss()(a, b, tensor(14.3), tensor(-3.)))]
    for ours,theirs in both:
        same(ours, theirs, 1e-5, 1e-5)
        for g,h in zip(grad(ours, (a,b)), grad(theirs, (a,b))): same(g, h, 1e-5, 1e-5)

def test_as_written_in_the_source():
    "The soft targets as the code they come from has them, with its gradient"
    torch.manual_seed(0)
    image,text = torch.randn(8, 6).requires_grad_(),torch.randn(8, 6).requires_grad_()
    def cross_entropy(preds, targets): return (-targets*preds.log_softmax(-1)).sum(1)
    T = 1.5
    logits = (text @ image.T)/T
    targets = F.softmax((image@image.T + text@text.T)/2*T, dim=-1)
    loss = (cross_entropy(logits.T, targets.T)+cross_entropy(logits, targets))/2
    ours = clip_loss(image, text, T, 'none', soft_targets=True, normalize=False)
    same(ours, loss)
    for g,h in zip(grad(ours.mean(), (image,text)), grad(loss.mean(), (image,text))): same(g, h, 1e-5, 1e-5)

def test_soft_targets_at_length_one():
    "Where all targets are nearly the same, equal embeddings are the minimum, which the entry says; long vectors have another"
    right,equal = torch.eye(16),torch.ones(16, 16)
    f = CLIPLoss(soft_targets=True)
    same(f(equal, equal), math.log(16))
    assert f(right, right)>4*f(equal, equal)
    g = CLIPLoss(1., soft_targets=True, normalize=False)
    assert g(5*right, 5*right)<1e-3 and g(5*equal, 5*equal)>2.7
    assert 'they need normalize=False' in CLIPLoss.__init__.__doc__

def test_learned_numbers_are_shown_short():
    loss = CLIPLoss()
    assert 'temperature=0.07,' in repr(loss) and repr(loss.with_params(soft_targets=True)).startswith('CLIPLoss(temperature=0.07,')
    assert 'bias=-10.0,' in repr(SigLIPLoss())

@each
@pytest.mark.parametrize('size', [1e-30,1e-20,1e20,1e30])
def test_embeddings_of_any_length(name, size):
    "Only directions count, and no square leaves the range of float32"
    f,preds,rest = batch(name, 6, dtype=torch.float)
    if name=='contrastive': f = f.with_params(margin=size, eps=0.)
    torch.manual_seed(0)
    preds = [(torch.randn_like(o)*size).requires_grad_() for o in preds]
    wide = [o.detach().double().requires_grad_() for o in preds]
    v = f.reduced('none', *preds, *rest)
    w = deepcopy(f).double().reduced('none', *wide, *rest)
    if name=='contrastive': # squared distances are out of range themselves
        p = [c.p_norm(*xs, eps=0.) for xs in (preds, wide)]
        return same(p[0].detach(), p[1].detach().float(), rtol=1e-5, atol=0.)
    same(v.detach(), w.detach().float(), atol=1e-4)
    for g,h in zip(grad(f.reduced('sum', *preds, *rest), preds), grad(w.sum(), wide)): same(g*size, (h*size).float(), atol=1e-3)

@pytest.mark.parametrize('size', [1e20,1e30])
def test_features_of_any_size(size):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 4)*size
    same(barlow_twins(*x), barlow_twins(*x.double()).float(), 1e-5, 1e-5)

# a batch whose items occur twice

ALIKE = {'infonce': InfoNCELoss, 'infonce, both': partial(InfoNCELoss, symmetric=True), 'infonce, dot': partial(InfoNCELoss, 1., normalize=False),
    'clip': fixed, 'clip, learned': CLIPLoss, 'siglip': partial(SigLIPLoss, learnable=False, bias=-2.), 'siglip, learned': partial(SigLIPLoss, bias=-1.)}
alike = pytest.mark.parametrize('name', ALIKE)
both_kinds = pytest.mark.parametrize('kind', ['eliminate','attract'])
GROUPS = tensor([5,-2,5,0,7,7,5])

def grouped_batch(name, kind, n=7, **kwargs):
    torch.manual_seed(3)
    return ALIKE[name](false_negatives=kind, **kwargs).double(),[o.requires_grad_() for o in torch.randn(2, n, 5).double()]

def grouped_loop(name, f, a, b, g, kind, w=None):
    "One value per example, in Python's numbers"
    a,b,g = (o.tolist() for o in (a, b, g))
    N,w = range(len(a)),[1.]*len(a) if w is None else w.tolist()
    def dot(p, q): return sum(u*v for u,v in zip(p, q))
    near = dot if 'dot' in name else cos
    s = [[near(p, q)/f.temperature for q in b] for p in a]
    def row(s, i):
        cols = [j for j in N if w[i]==0 or w[j]!=0]
        pos = [j for j in cols if g[j]==g[i]] if kind=='attract' else [i]
        neg = [j for j in cols if g[j]!=g[i]]
        if 'siglip' in name: return sum(softplus(-s[i][j]-f.bias) for j in pos) + sum(softplus(s[i][j]+f.bias) for j in neg)
        return lse([s[i][j] for j in (*pos, *neg)]) - sum(s[i][j] for j in pos)/len(pos)
    t = [[s[j][i] for j in N] for i in N]
    for i in N: yield (row(s, i)+row(t, i))/2 if 'clip' in name or 'both' in name else row(s, i)

@alike
@both_kinds
def test_groups_by_loop(name, kind):
    f,xs = grouped_batch(name, kind)
    want = torch.tensor(list(grouped_loop(name, f, *xs, GROUPS, kind)), dtype=torch.double)
    for dtype in (torch.long,torch.int,torch.int8): same(f.reduced('none', *xs, groups=GROUPS.to(dtype)).detach(), want, 1e-6, 1e-6)
    same(f(*xs, groups=GROUPS).detach(), want.mean(), 1e-6, 1e-6)
    same(f(tuple(xs), groups=GROUPS).detach(), want.mean(), 1e-6, 1e-6) # as one tuple, whatever target comes with it
    w = tensor([1.,2.,0.,.5,1.,3.,1.]).double()
    want = w*torch.tensor(list(grouped_loop(name, f, *xs, GROUPS, kind, w)), dtype=torch.double)
    same(f.reduced('none', *xs, sample_weight=w, groups=GROUPS).detach(), want, 1e-6, 1e-6)
    same(f(*xs, sample_weight=w, groups=GROUPS).detach(), want.sum()/w.sum(), 1e-6, 1e-6)

@alike
@both_kinds
@pytest.mark.parametrize('small', [True,False], ids=['at once','blocks'])
@pytest.mark.parametrize('weights', [None,(1.,2.,0.,1.,.5,3.,0.)], ids=['','weighted'])
def test_groups_by_formula(name, kind, small, weights, monkeypatch):
    "The derivative by hand, at once and in blocks, is that of the plain formula; of second order too"
    if not small:
        monkeypatch.setattr(c, 'BLOCK', 14)
        monkeypatch.setattr(c, 'SMALL', 0)
    f,xs = grouped_batch(name, kind)
    kwargs = dict(groups=GROUPS) | ({} if weights is None else dict(sample_weight=tensor(weights)))
    for r in ('mean','sum','none'):
        got = results(f, xs, (), r, **kwargs)
        with monkeypatch.context() as m:
            m.setattr(c, 'is_eager', lambda: False)
            want = results(f, xs, (), r, **kwargs)
        for g,h in zip(got, want): same(g, h, 1e-9, 1e-9)
    assert gradgradcheck(lambda a,b: f(a, b, **kwargs), xs)

@alike
@both_kinds
def test_groups_of_one(name, kind):
    "Where all differ, nothing changes; the order of examples and the numbers of groups say nothing"
    f,xs = grouped_batch(name, kind)
    same(f.reduced('none', *xs, groups=torch.arange(7)*3-5).detach(), f.reduced('none', *xs).detach(), 1e-12, 1e-12)
    i,v = torch.randperm(7),f.reduced('none', *xs, groups=GROUPS)
    same(f.reduced('none', *[o[i] for o in xs], groups=GROUPS[i]), v[i], 1e-12, 1e-12)
    same(f.reduced('none', *xs, groups=GROUPS*1000+1), v, 0, 0)

@alike
def test_an_item_twice_is_not_its_own_negative(name):
    "Right embeddings of a batch that holds an item twice cost what those of a batch without it do, but for how many there are"
    f,_ = grouped_batch(name, 'eliminate')
    twice,once = torch.eye(4).double()[[0,1,2,0]],torch.eye(3).double()
    g = tensor([0,1,2,0])
    got,naive = (f.reduced('none', twice, twice, **k) for k in (dict(groups=g), {}))
    if 'dot' not in name: assert (naive[[0,3]]>got[[0,3]]+.1).all()
    same(got[0], f.reduced('none', once, once)[0], 1e-9, 1e-9)
    apart = twice.clone() # of the two, one is moved away from the other
    apart[3] = torch.eye(4)[3]
    a,b = (f.reduced('none', apart, apart, **k)[0] for k in (dict(groups=g), {}))
    same(a, got[0], 1e-9, 1e-9) # which is no gain
    assert b<naive[0]

@both_kinds
def test_groups_beside_given_negatives(kind):
    torch.manual_seed(0)
    q,p = torch.randn(2, 6, 5).double()
    k,g = torch.randn(3, 5).double(),tensor([0,1,0,2,2,0])
    f = InfoNCELoss(.5, in_batch=True, false_negatives=kind)
    s,y = torch.tensor([[cos(a, b)/.5 for b in [*p.tolist(), *k.tolist()]] for a in q.tolist()]).double(),torch.arange(6)
    keep = torch.cat([(g[:,None]!=g) | (kind=='attract') | torch.eye(6).bool(), torch.ones(6, 3).bool()], 1)
    pos = torch.cat([(g[:,None]==g) & ((kind=='attract') | torch.eye(6).bool()), torch.zeros(6, 3).bool()], 1).double()
    want = s.masked_fill(~keep, -math.inf).logsumexp(1) - (pos*s).sum(1)/pos.sum(1)
    same(f.reduced('none', q, p, k, groups=g), want, 1e-6, 1e-6)

@alike
@both_kinds
@pytest.mark.parametrize('dtype,big', [(torch.half,100.), (torch.bfloat16,1e4), (torch.float,1e4)])
def test_groups_far_out(name, kind, dtype, big):
    f,_ = grouped_batch(name, kind)
    f = f.float()
    for xs in (torch.randn(2, 7, 5)*big, torch.zeros(2, 7, 5), torch.ones(2, 7, 5)):
        for g in (GROUPS, torch.zeros(7).long()): # one group: there is nothing to tell apart
            a,b = (o.to(dtype).requires_grad_() for o in xs)
            v = f(a, b, groups=g)
            assert v.isfinite() and all(o.isfinite().all() for o in grad(v, (a,b)))
    v = f(a[:0], b[:0], groups=GROUPS[:0])
    assert v==0

@alike
def test_groups_compiled(name):
    f,xs = grouped_batch(name, 'eliminate')
    g = torch.compile(f, fullgraph=True, backend='aot_eager')
    same(g(*xs, groups=GROUPS), f(*xs, groups=GROUPS), 1e-9, 1e-9)
    torch.compiler.reset()

@pytest.mark.parametrize('loss', [InfoNCELoss(false_negatives='attract'), CLIPLoss(false_negatives='attract')], ids=repr)
def test_contract_with_a_kind(loss): assert (rep := check_loss(loss, **QUICK)).ok, rep

class InGroups:
    "Examples whose first number has one sign are the same, wherever they stand"
    def reduced(self, reduction, *batch, **kwargs):
        xs = batch[0] if isinstance(batch[0], (tuple,list)) else batch
        return super().reduced(reduction, *batch, **kwargs | dict(groups=(xs[0][:,0]>0).long()))
class InfoNCEInGroups(InGroups, InfoNCELoss): pass
class CLIPInGroups(InGroups, CLIPLoss): pass
class SigLIPInGroups(InGroups, SigLIPLoss): pass

@both_kinds
@pytest.mark.parametrize('cls', [InfoNCEInGroups,CLIPInGroups,SigLIPInGroups])
def test_contract_in_groups(cls, kind): assert (rep := check_loss(cls(false_negatives=kind), **QUICK)).ok, rep

@pytest.mark.parametrize('call,text', [
    (lambda a: InfoNCELoss(false_negatives='keep'), "false_negatives must be 'eliminate' or 'attract', got 'keep'"),
    (lambda a: CLIPLoss()(a, a, groups=[0]*6), 'groups must be a tensor, got list'),
    (lambda a: CLIPLoss()(a, a, groups=torch.zeros(6)), 'groups must be integers, the same for what is the same, got torch.float32'),
    (lambda a: CLIPLoss()(a, a, groups=torch.zeros(6).bool()), 'groups must be integers'),
    (lambda a: SigLIPLoss()(a, a, groups=torch.arange(5)), r'groups must have shape \(6,\), got \(5,\)'),
    (lambda a: SigLIPLoss()(a, a, groups=torch.zeros(6,1).long()), r'groups must have shape \(6,\), got \(6, 1\)'),
    (lambda a: CLIPLoss(soft_targets=True)(a, a, groups=torch.arange(6)), 'groups has no meaning beside soft_targets'),
    (lambda a: InfoNCELoss()(a, a, a, groups=torch.arange(6)), 'groups has no meaning beside negatives without in_batch=True'),
    (lambda a: CLIPLoss().check_values(a, a, groups=torch.zeros(6).long()), 'groups must tell examples apart, got one group for all'),
    (lambda a: SupConLoss()(a, torch.arange(6), groups=torch.arange(6)), 'groups')])
def test_groups_refused(call, text):
    with pytest.raises((ValueError,TypeError), match=text): call(torch.randn(6, 4))

# two batches whose features are compared

def test_barlow_twins():
    torch.manual_seed(0)
    a,b = torch.randn(2, 9, 4).double().requires_grad_()
    z = [(o-o.mean(0))/(o.var(0, correction=0)+1e-5).sqrt() for o in (a,b)]
    want = sum(((1-(z[0][:,i]*z[1][:,j]).mean())**2 if i==j else .005*(z[0][:,i]*z[1][:,j]).mean()**2) for i in range(4) for j in range(4))
    same(barlow_twins(a, b), want, 1e-10, 1e-10)
    assert gradcheck(barlow_twins, (a.detach().requires_grad_(), b.detach().requires_grad_()))
    assert barlow_twins(a, a)<.3 and barlow_twins(a[:0], b[:0])==4 # nothing correlates

def test_vicreg():
    torch.manual_seed(0)
    a,b = torch.randn(2, 9, 4).double()
    want = 25*(a-b).square().mean()
    for o in (a,b):
        cov = torch.cov(o.T)
        want = want + 25/2*F.relu(1-(o.var(0)+1e-4).sqrt()).mean() + (cov.square().sum()-cov.diagonal().square().sum())/4
    same(vicreg(a, b), want, 1e-10, 1e-10)
    assert gradcheck(vicreg, (a.requires_grad_(), b.requires_grad_()))
    VIC = importlib.util.find_spec('pytorch_metric_learning')
    if VIC: same(vicreg(a, b), peer('losses').VICRegLoss()(a, ref_emb=b), 1e-6, 1e-6)

@pytest.mark.parametrize('f', [barlow_twins,vicreg])
@pytest.mark.parametrize('dtype,big', [(torch.half,10.), (torch.bfloat16,100.), (torch.float,1e4)])
def test_views_finite(f, dtype, big):
    torch.manual_seed(0)
    for x in (torch.randn(2, 6, 4)*big, torch.zeros(2, 6, 4), torch.ones(2, 1, 4), torch.ones(2, 0, 4)):
        a,b = x.to(dtype).requires_grad_()
        v = f(a, b)
        assert v.isfinite() and all(g.isfinite().all() for g in grad(v, (a,b)))

# refusals

@pytest.mark.parametrize('call,text', [
    (lambda a: InfoNCELoss(0.), 'temperature must be > 0, got 0'),
    (lambda a: CLIPLoss(-1.), 'temperature must be > 0, got -1'),
    (lambda a: InfoNCELoss(processes='all'), "processes must be None, 'local' or 'global', got 'all'"),
    (lambda a: SupConLoss(denominator='others'), "denominator must be 'all' or 'negatives', got 'others'"),
    (lambda a: clip_loss(a, a[:3]), r'image must have the shape of text, \(3, 4\), got \(6, 4\)'),
    (lambda a: info_nce_loss(a[0], a[0]), r'query must have shape \(N, D\), got \(4,\)'),
    (lambda a: sup_con_loss(a), 'without a target there must be two views of each example'),
    (lambda a: sup_con_loss(a, a), r'target must be integers or bools, got torch.float32; views go in together, as a tuple'),
    (lambda a: sup_con_loss(a, torch.arange(5)), r'target must have shape \(6,\) or \(6, L\), got \(5,\)'),
    (lambda a: nt_xent_loss((a,a[:2])), r'views must have one shape'),
    (lambda a: info_nce_loss(a, a, a[:,:2]), r'negatives must have shape \(K, 4\) or \(6, K, 4\), got \(6, 2\)'),
    (lambda a: info_nce_loss(a, a, a, symmetric=True), 'symmetric and processes have no meaning beside negatives'),
    (lambda a: clip_loss(a, a, soft_targets=True, processes='local'), "soft_targets needs processes='global'"),
    (lambda a: info_nce_loss(a, a, processes='local'), 'init_process_group'),
    (lambda a: ArcFaceLoss(), "ArcFaceLoss: missing a required argument: 'n_classes'"),
    (lambda a: ArcFaceLoss(3, 4)(a, torch.full((6,), 3)), 'target must be in 0..2'),
    (lambda a: ArcFaceLoss(3, 5)(a, torch.zeros(6).long()), r'proxies must have shape \(C, 4\)'),
    (lambda a: ArcFaceLoss(3, 4, 4.), 'margin must be in'),
    (lambda a: check_batch(InfoNCELoss(), a[:1], a[:1]), 'InfoNCELoss needs two examples in a batch, got 1'),
    (lambda a: check_batch(SupConLoss(), a, torch.arange(6)), 'no two examples of the batch share a label')])
def test_refused(call, text):
    with pytest.raises((ValueError,TypeError,RuntimeError), match=text): call(torch.randn(6, 4))

def test_batch_of_one():
    "There is nothing to tell it from: 0, with a gradient of zeros; SigLIP still has its own pair"
    torch.manual_seed(0)
    a,b = torch.randn(2, 1, 4).requires_grad_()
    for f in (InfoNCELoss(), CLIPLoss(), CLIPLoss(soft_targets=True)):
        v = f(a, b)
        assert v==0 and not any(g.any() for g in grad(v, (a,b)))
    for f in (NTXentLoss(), SupConLoss()): assert f(a, tensor([3]))==0 and f((a,b))==0
    assert SigLIPLoss()(a, b)>0

# across processes

@pytest.fixture(scope='module', params=[2,4])
def across(request, tmp_path_factory):
    out = tmp_path_factory.mktemp('across')/'res.pt'
    torch.multiprocessing.spawn(processes.worker, (request.param, processes.free_port(), out), nprocs=request.param)
    return request.param,torch.load(out)

def test_processes(across):
    "Value and gradient, averaged over 2 and 4 processes, are those of one process with the whole batch"
    _,res = across
    for name in processes.MANY:
        for weighted in (False,True):
            v,grads = processes.one_step(name, None, slice(None), weighted)
            for form in processes.forms(name):
                got = res[name,form,weighted]
                same(got[0], v, 1e-9, 1e-9)
                assert len(got[1])==len(grads)>=2
                for g,h in zip(got[1], grads): same(g, h, 1e-9, 1e-9)

def test_without_a_gradient_it_is_too_small(across):
    "Gathered without a gradient, it is 1/W of what it should be"
    world,res = across
    v,grads = processes.one_step('infonce', None, slice(None), False)
    same(res['no gradient']*world, grads[0], 1e-9, 1e-9)

def test_gather_twice(across):
    "The second derivative of what is gathered"
    world,res = across
    x = torch.arange(2.*processes.N//world)
    same(res['twice'], world*6*x.double())

def test_unequal(across):
    world,res = across
    n = processes.N//world
    sizes = ', '.join(map(str, [n]*(world-1)+[n+1]))
    assert res['unequal']==f'every process must have as many examples as the others, got {sizes}'
    assert 'every process must have as many examples' in res['unequal in a loss']
