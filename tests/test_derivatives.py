"Every derivative that a chapter attaches to a value, against autograd, first and second"
import inspect, itertools, pytest, torch
from functools import partial
from importlib import import_module
from lossbook._modidx import d
from lossbook.blocks import binary_loss, class_loss, derivatives

# chapters of losses; the others import more than torch
for mod in d['syms']:
    if mod.split('.')[-1] not in ('all','learner','plot','catalog','check','properties'): import_module(mod)
from lossbook.bi_tempered import raw
from lossbook.blocks import averaged, identity
from lossbook.noisy_labels import mae_row, nce

# numbers to try for the parameters of the values; one that is missing here fails by name
TRY = dict(gamma=(.5,1.,2.,3.3), q=(.3,1.), epsilon=(-.5,1.), pos=(1.,.3), neg=(1.,.7), pos_weight=(1.,2.5), A=(-4.,),
    t1=(.5,1.), t2=(1.,1.2,2.), value=(identity,), active=(nce,averaged), passive=(mae_row,), alpha=(-2.,.3,2.), beta=(.3,2.),
    delta=(.3,2.), eps=(.1,1.), scale=(.5,2.), top=(1.5,70.), margin=(0.,.05,.7), gamma_pos=(0.,1.5), gamma_neg=(0.,1.,4.))

def cases():
    for value in derivatives:
        names = list(inspect.signature(value).parameters)
        kind = 'raw' if names[0]=='z' else 'binary' if names[0]!='nll' else 'rows' if names[1:2]==['y'] else 'class'
        own = names[1 if kind=='class' else 2:]
        for vals in itertools.product(*(TRY[k] for k in own)):
            params = dict(zip(own, vals))
            yield pytest.param(value, kind, params, id=f'{value.__name__}-{list(own)}-{[getattr(o, "__name__", o) for o in vals]}')

def some(kind):
    torch.manual_seed(0)
    x = (torch.randn(40, 6, dtype=torch.double)*3).requires_grad_()
    y = torch.rand_like(x) if kind=='binary' else torch.randn_like(x).softmax(1)
    return x,y.detach()

@pytest.mark.parametrize('value,kind,params', list(cases()))
def test_attached(value, kind, params):
    "Value and derivative of the attached function are those of the formula"
    x,y = some(kind)
    if kind in ('class','rows'): x = (-x.log_softmax(1)).detach().requires_grad_()
    args = () if kind=='class' else (y,)
    v = value(x, *args, **params)
    grad, = torch.autograd.grad(v.sum(), x)
    inside = () if kind=='binary' else ((-x.detach()).exp(),) # p
    got,slope = derivatives[value](x.detach().clone(), *inside, *args, **params)
    torch.testing.assert_close(got, v.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(torch.as_tensor(slope, dtype=torch.double).expand_as(grad), grad, rtol=1e-7, atol=1e-9)

@pytest.mark.parametrize('value,kind,params', list(cases()))
def test_through_a_loss(value, kind, params, monkeypatch):
    "First and second derivative of a loss, with the attached function and without"
    x,y = some(kind)
    if kind=='binary':
        own = [k for k in params if k in ('pos','neg','pos_weight')]
        f = partial(value, **{k: v for k,v in params.items() if k not in own})
        def loss(x): return binary_loss(x, y, f, args=[params[k] for k in own])
    elif kind!='class': loss = partial(class_loss, target=y, rows=partial(value, **params), kind='logits' if kind=='rows' else raw)
    else: loss = partial(class_loss, target=y, value=partial(value, **params))
    def both():
        g, = torch.autograd.grad(loss(x), x)
        h, = torch.autograd.grad(loss(x), x, create_graph=True)
        return g,*torch.autograd.grad(h.square().sum() + 0*x.sum(), x) # a hinge has a slope without a graph
    quick = both()
    monkeypatch.delitem(derivatives, value)
    for a,b in zip(quick, both()): torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
