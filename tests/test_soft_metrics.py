"Measures of predictions whose labels are distributions, against slow loops and those for class indices"
import matplotlib.pyplot as plt, pytest, torch, torch.nn.functional as F
from math import isnan
from lossbook.core import assert_same
from lossbook.soft_metrics import bin_sums, brier_score, calibration_bins, calibration_error, gap
from lossbook.soft_metrics import plot_confusion, plot_reliability, soft_accuracy, soft_confusion_matrix

def batch(*shape, C=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    p,y = (torch.randn(shape[0], C, *shape[1:], generator=g).softmax(1) for _ in range(2))
    return p,y

DTYPES = [torch.float16,torch.bfloat16,torch.float32,torch.float64]

def rows(p, y): return zip(p.movedim(1,-1).flatten(0,-2).tolist(), y.movedim(1,-1).flatten(0,-2).tolist())

@pytest.mark.parametrize('shape', [(7,),(3,2,5)])
def test_slow_loops(shape):
    p,y = (o.double() for o in batch(*shape))
    best = [max(range(4), key=a.__getitem__) for a,_ in rows(p, y)]
    n = len(best)
    assert_same(soft_accuracy(p, y), sum(b[i] for i,(_,b) in zip(best, rows(p, y)))/n)
    assert_same(brier_score(p, y), sum(sum((u-v)**2 for u,v in zip(a, b)) for a,b in rows(p, y))/n)
    M = torch.zeros(4,4).double()
    for i,(_,b) in zip(best, rows(p, y)): M[:,i] += torch.tensor(b).double()
    assert_same(soft_confusion_matrix(p, y), M)
    err = 0
    for k in range(10):
        ins = [(max(a),b[i]) for i,(a,b) in zip(best, rows(p, y)) if k/10<max(a)<=(k+1)/10]
        if ins: err += abs(sum(u for u,_ in ins)-sum(v for _,v in ins))/n
    assert_same(calibration_error(p, y, 10).double(), err, atol=1e-6)
    assert soft_accuracy(p, y, 'none').shape==shape and brier_score(p, y, 'none').shape==shape

@pytest.mark.parametrize('shape', [(7,),(3,2,5)])
def test_forms_of_target(shape):
    "Indices and one-hot rows are the same; what is ignored counts nothing, whatever stands there"
    p,y = batch(*shape)
    i = y.argmax(1)
    hot = F.one_hot(i, 4).movedim(-1,1).float()
    for f in (soft_accuracy, brier_score, calibration_error, soft_confusion_matrix): assert_same(f(p, i), f(p, hot))
    assert_same(soft_accuracy(p, i), (p.argmax(1)==i).float().mean())
    i.view(-1)[:2] = -100
    keep = i!=-100
    few = p.movedim(1,-1)[keep],i[keep]
    for f in (soft_accuracy, brier_score, calibration_error, soft_confusion_matrix): assert_same(f(p, i), f(*few))
    assert soft_accuracy(p, i*0-100)==0 and calibration_error(p, i*0-100)==0

def test_axis():
    p,y = batch(3, 5)
    for f in (soft_accuracy, brier_score, calibration_error, soft_confusion_matrix): assert_same(f(p.mT, y.mT, axis=-1), f(p, y))

@pytest.mark.parametrize('dtype', DTYPES)
def test_dtypes(dtype):
    p,y = (o.to(dtype) for o in batch(50))
    tol = 2e-2 if dtype in DTYPES[:2] else 1e-6
    for f in (soft_accuracy, brier_score, calibration_error): assert_same(f(p, y).float(), f(*batch(50)), atol=tol)

def test_batches_add_up():
    p,y = batch(60)
    parts = sum(bin_sums(a, b, 12) for a,b in zip(p.split(13), y.split(13)))
    assert_same(gap(parts), calibration_error(p, y, 12))

def test_bins():
    "A bin has its upper end; empty ones have no mean"
    p = torch.tensor([[.5,.5],[.6,.4],[1.,0.]])
    n,conf,right = calibration_bins(p, torch.tensor([0,0,1]), 2)
    assert n.tolist()==[1,2] and right.tolist()==[1,.5]
    assert isnan(calibration_bins(p, torch.tensor([0,0,1]), 10)[1][0])
    assert_same(conf, [.5,.8])

def test_empty():
    p,y = batch(3)
    assert soft_accuracy(p[:0], y[:0])==0 and brier_score(p[:0], y[:0])==0 and calibration_error(p[:0], y[:0])==0

@pytest.mark.parametrize('f', [brier_score, calibration_error])
def test_refuses(f):
    p,y = batch(3)
    with pytest.raises(ValueError, match=r'probs must be in \[0, 1\]'): f(p*8-1, y)
    with pytest.raises(ValueError, match='probs must be in .0, 1., got nan'): f(p*torch.nan, y)
    with pytest.raises(ValueError, match='probs must sum to 1'): f(p/2, y)
    with pytest.raises(ValueError, match='target must sum to 1'): f(p, y*3)
    with pytest.raises(ValueError, match='target must have shape'): f(p, y[:2])
    for n in (0,-1):
        with pytest.raises(ValueError, match='n_bins must be >= 1'): calibration_error(p, y, n)
    with pytest.raises(TypeError, match='n_bins must be an integer'): calibration_error(p, y, 2.5)

def test_pictures():
    p,y = batch(40)
    ax = plot_reliability(dict(a=p, b=p**2/(p**2).sum(1, keepdim=True)), y, 5)
    assert len(ax.lines)==3 and ax.texts[0].get_text().startswith(('a, error','b, error'))
    m = soft_confusion_matrix(p, y)
    ax = plot_confusion(m, list('abcd'), normalize=True)
    assert ax.texts[0].get_text()==f'{m[0,0]/m[0].sum():.2f}' and [o.get_text() for o in ax.get_xticklabels()]==list('abcd')
    assert plot_confusion(torch.tensor([[3,0],[1,2]])).texts[2].get_text()=='1'
    plt.close('all')
