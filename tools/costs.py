"""What a loss costs a GPU, counted without one: kernels, bytes moved, bytes that autograd keeps.

`python tools/costs.py` prints tables, `--json` the rows. Forward and backward at 2048 x 1000 on the
pretend accelerator of tests/accelerator.py; bytes are multiples of those of the scores. A kernel is
an operation of PyTorch that is no view; what it moves are the tensors that it reads and writes."""
import json, sys, torch, torch.nn.functional as F
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))
from accelerator import NAME, Pretend, register, watched
from lossbook.check import loss_classes
from lossbook.core import BinaryLoss, ClassLoss
from lossbook.many_classes import LinearLoss

def place(t): return (t.held if isinstance(t, Pretend) else t).untyped_storage()

def cost(f, *args, unit=None, learned=1):
    "Kernels, bytes moved and bytes kept, of `f` and its gradient by the first arguments"
    args = [o.to(NAME) for o in args]
    for o in args[:learned]: o.requires_grad_()
    own,kept = {place(o).data_ptr() for o in args},{}
    def pack(t):
        if (at := place(t).data_ptr()) not in own: kept[at] = place(t).nbytes()
        return t
    with watched() as log:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): v = f(*args)
        n = sum(kept.values()) # the backward pass may save something, too
        v.backward()
    unit = unit or args[0].numel()*args[0].element_size()
    return log.kernels,log.bytes/unit,n/unit

# ---- what a user would write

def rows(f): return lambda x,y: f(F.log_softmax(x, 1), y).mean()
def classwise(f): return rows(lambda lp,y: (y*f(lp)).sum(1))
def nce(lp, y): return -((lp.gather(1, y[:,None])[:,0] if y.ndim==1 else (y*lp).sum(1))/lp.sum(1))
def mae(lp, y): return (lp.exp()-y).abs().sum(1)
def softmax_mae(x, y): return (x.softmax(1)-y).abs().sum(1).mean()
def rce(lp, y): return -(lp.exp()*y.log().clamp(min=-4)).sum(1)
def kl(x, y): return F.kl_div(F.log_softmax(x, 1), y, reduction='batchmean')
def binary_focal(x, y, gamma=2.):
    pos,neg = F.logsigmoid(x),F.logsigmoid(-x)
    return -(y*(gamma*neg).exp()*pos + (1-y)*(gamma*pos).exp()*neg).mean()
def asymmetric(x, y):
    p = x.sigmoid()
    q = (p-.05).clamp(min=0)
    return -(y*p.log()+(1-y)*q**4*(1-q).log()).mean()
def areas(x, y):
    p = x.sigmoid()
    return (p*y).sum(1),p.sum(1),y.sum(1)
def dice(x, y):
    b,p,t = areas(x, y)
    return (1-(2*b+1)/(p+t+1)).mean()
def jaccard(x, y):
    b,p,t = areas(x, y)
    return (1-(b+1)/(p+t-b+1)).mean()
def tversky(x, y):
    b,p,t = areas(x, y)
    return (1-(b+1)/(b+.3*(p-b)+.7*(t-b)+1)).mean()
def two_directions(a, b, t=.07):
    a,b = F.normalize(a),F.normalize(b)
    s,y = a@b.T/t,torch.arange(len(a), device=a.device)
    return .5*(F.cross_entropy(s, y)+F.cross_entropy(s.T, y))
def one_direction(a, b, t=.1):
    s = F.normalize(a)@F.normalize(b).T/t
    return F.cross_entropy(s, torch.arange(len(a), device=a.device))
def sigmoid_pairs(a, b, t=.09, bias=-10.):
    s = F.normalize(a)@F.normalize(b).T/t+bias
    return -F.logsigmoid(s*(2*torch.eye(len(a), device=a.device)-1)).sum(1).mean()
def layer(h, W, b, y): return F.cross_entropy(F.linear(h, W, b), y)

ce,bce = ('F.cross_entropy',F.cross_entropy),('F.binary_cross_entropy_with_logits',
    F.binary_cross_entropy_with_logits)
def plain(f): return 'plain formula',f
SOFT = dict(CrossEntropyLoss=ce, SoftLabelCrossEntropy=ce, NLLLoss=ce, LogitAdjustedLoss=ce,
    BalancedSoftmaxLoss=ce, FocalLoss=plain(rows(lambda lp, y: -(y*(1-lp.exp())**2*lp).sum(1))),
    KLDivWithLogitsLoss=('F.kl_div',kl), ClassificationMAE=plain(softmax_mae),
    ReverseCrossEntropy=plain(rows(rce)), NormalizedCrossEntropy=plain(rows(nce)),
    GeneralizedCrossEntropy=plain(classwise(lambda lp: (1-(.7*lp).exp())/.7)),
    PolyLoss=plain(classwise(lambda lp: 1-lp.exp()-lp)),
    SymmetricCrossEntropy=plain(rows(lambda lp,y: -.1*(y*lp).sum(1)+rce(lp, y))),
    ActivePassiveLoss=plain(rows(lambda lp,y: nce(lp, y)+mae(lp, y))))
INDEX = dict(NormalizedCrossEntropy=plain(rows(nce)))
BINARY = dict(BinaryFocalLoss=plain(binary_focal), AsymmetricLoss=plain(asymmetric),
    BinaryDiceLoss=plain(dice), BinaryJaccardLoss=plain(jaccard), BinaryTverskyLoss=plain(tversky),
    BCELoss=('F.binary_cross_entropy',lambda x, y: F.binary_cross_entropy(x.sigmoid(), y)))
REAL = dict(MSELoss=('F.mse_loss',F.mse_loss), L1Loss=('F.l1_loss',F.l1_loss),
    HuberLoss=('F.huber_loss',F.huber_loss), SmoothL1Loss=('F.smooth_l1_loss',F.smooth_l1_loss),
    CharbonnierLoss=plain(lambda x,y: ((x-y)**2+1e-6).sqrt().mean()),
    LogCoshLoss=plain(lambda x, y: (x-y).cosh().log().mean()),
    PoissonNLLLoss=('F.poisson_nll_loss',F.poisson_nll_loss))
PAIRS = dict(InfoNCELoss=plain(one_direction), CLIPLoss=plain(two_directions),
    SigLIPLoss=plain(sigmoid_pairs))

def on_logits(loss):
    "A loss on probabilities begins with what makes them"
    return lambda x,y: loss(loss.from_logits(x), y)

def rows_of(kind):
    "(name, loss, arguments, what it is measured by, unit) of all losses of a kind"
    torch.manual_seed(0)
    N,C = 2048,1000
    x,classes = torch.randn(N,C),loss_classes()
    def losses(cls): return {k: o() for k,o in classes.items() if issubclass(o, cls)}
    if kind in ('indices','soft targets'):
        y = torch.randint(C, (N,)) if kind=='indices' else torch.randn(N,C).softmax(1)
        for k,o in losses(ClassLoss).items():
            # every class against every other takes 8 GB
            if kind!='indices' and k=='MultiMarginLoss': continue
            yield k,on_logits(o),(x,y),INDEX.get(k, ce) if kind=='indices' else SOFT.get(k),None
        smooth = dict(label_smoothing=.1)
        other = 'F.cross_entropy, smoothed',lambda x,y: F.cross_entropy(x, y, **smooth)
        for k in ('CrossEntropyLoss','FocalLoss'):
            yield f'{k}, smoothed',classes[k](**smooth),(x,y),other,None
    elif kind=='labels':
        y = (torch.rand(N,C)<.3).float()
        for k,o in losses(BinaryLoss).items(): yield k,on_logits(o),(x,y),BINARY.get(k, bce),None
    elif kind=='numbers':
        for k,ref in REAL.items(): yield k,classes[k](),(x,torch.rand(N,C)),ref,None
    elif kind=='pairs':
        a,b = torch.randn(2,1024,128)
        for k,ref in PAIRS.items(): yield k,classes[k]().to(NAME),(a,b),ref,1024*1024*4
    else:
        h,W,b,y = torch.randn(N,256),torch.randn(C,256),torch.randn(C),torch.randint(C, (N,))
        for k in ('CrossEntropyLoss','FocalLoss'):
            inner = LinearLoss(classes[k]())
            yield f'LinearLoss({k})',lambda h,W,b,y,f=inner: f(h, W, y,
                b),(h,W,b,y),('F.linear, F.cross_entropy',layer),N*C*4

KINDS = {'indices': 'logits', 'soft targets': 'logits', 'labels': 'logits',
    'numbers': 'predictions', 'pairs': 'scores', 'layers': 'logits'}

def table(kind):
    "A row for each loss of a kind"
    res = []
    for name,f,args,ref,unit in rows_of(kind):
        n = 3 if kind=='layers' else 2 if kind=='pairs' else 1
        kernels,size,kept = cost(f, *args, unit=unit, learned=n)
        row = dict(loss=name, kernels=kernels, bytes=round(size, 1), kept=round(kept, 1))
        if ref is not None:
            k,b,m = cost(ref[1], *args, unit=unit, learned=n)
            row |= dict(beside=ref[0], its_kernels=k, its_bytes=round(b, 1), its_kept=round(m, 1),
                ratio=round(size/b, 2))
        res.append(row)
    return res

COLUMNS = dict(loss='loss', kernels='kernels', bytes='bytes', kept='kept', beside='beside',
    its_kernels='kernels', its_bytes='bytes', its_kept='kept', ratio='ratio of bytes')
def show(kind, rows):
    def line(cells): print('| '+' | '.join(cells)+' |')
    print(f'\n{kind}: bytes and kept as multiples of the {KINDS[kind]}\n')
    line(COLUMNS.values())
    line('---' for _ in COLUMNS)
    for o in rows: line(str(o.get(k, '')) for k in COLUMNS)

if __name__=='__main__':
    register()
    found = {k: table(k) for k in KINDS}
    if '--json' in sys.argv: print(json.dumps(found, indent=1))
    else:
        for k,o in found.items(): show(k, o)
