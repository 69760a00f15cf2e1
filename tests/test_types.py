"The stubs beside the modules: what a type checker lets pass, what it finds, and how a one-line class is written down"
import importlib.util, pytest, subprocess, sys, os
from pathlib import Path

root = Path(__file__).parent.parent

def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    mod = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod

right = '''
import torch
import lossbook as lb
from lossbook import FocalLoss, span
from lossbook.all import check_loss, focal_loss_with_logits
from lossbook.soft_labels import SoftLabelCrossEntropy

x,y = torch.randn(4,3),torch.tensor([0,1,2,0])
loss = FocalLoss(1, reduction='sum', axis=1)
value: torch.Tensor = loss(x, y)
value = focal_loss_with_logits(x, y, 2., reduction='none', weight=torch.ones(3))
both = [SoftLabelCrossEntropy(.1), lb.CrossEntropyLoss(torch.ones(3), label_smoothing=.1)]
total: torch.Tensor = sum((o(x, y) for o in both), torch.zeros(()))
lb.ClassLoss.activation(loss, x)
check_loss(loss)
span.SpanLoss()
'''

# each line is an error of the kind that its comment names
wrong = '''
import torch, lossbook as lb
from lossbook import FocalLos # attr-defined
from lossbook.all import focal_loss_with_logits
x,y = torch.randn(4,3),torch.tensor([0,1,2,0])
lb.FocalLoss(gama=1) # call-arg
lb.FocalLoss(gamma='two') # arg-type
lb.FocalLoss(1, reduction=2) # arg-type
lb.FocalLoss()(x, 'y') # arg-type
lb.SoftLabelCrossEntropy(.1)(x) # call-arg
focal_loss_with_logits(x, y, alfa=.5) # call-arg
focal_loss_with_logits(x, y, 2., axis='last') # arg-type
lb.focal_los # attr-defined
'''

# a class that takes its constructor from a function, decorated functions, and what else a module may hold
toy = '''
import functools, inspect
from dataclasses import dataclass
from typing import NamedTuple
from torch import nn, Tensor

__all__ = ['toy_loss', 'ToyLoss']
LIMIT = 3
table: dict[str,int] = {}

class Base(nn.Module):
    def __init_subclass__(cls, of=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if of is None: return
        ps = [p for p in inspect.signature(of).parameters.values() if p.default is not p.empty and p.name!='sample_weight']
        sig = inspect.Signature([inspect.Parameter('self', 1), *ps])
        def __init__(self, *args, **kwargs):
            super(cls, self).__init__()
            vars(self).update(sig.bind(self, *args, **kwargs).arguments)
        __init__.__signature__,__init__.__delwrap__ = sig,of
        cls.__init__ = __init__
    def forward(self, logits:Tensor, target:Tensor)->Tensor: return logits

def toy_loss(
    logits:Tensor, # scores
    target:Tensor, # labels
    gamma:float=2., # exponent
    reduction:str='mean', # word
    *,
    weight:Tensor|list|None=None, # factors
    sample_weight:Tensor=None, # factors
)->Tensor: # the loss
    "A toy"
    return logits

class ToyLoss(Base, of=toy_loss):
    "A toy"
    thresh:float=.5
    @property
    def first(self)->float: return self.gamma/2

def doubled(f):
    @functools.wraps(f)
    def _f(*args, **kwargs): return 2*f(*args, **kwargs)
    return _f

@doubled
def plain(n:int=1)->int: return n

try: from nothing_here import nothing
except ImportError: nothing = None

class Pair(NamedTuple):
    a:int
    b:str='x'

@dataclass
class Point:
    x:float
    y:float=0.
'''

toy_user = '''
from torch import Tensor
from toy import LIMIT, Pair, Point, ToyLoss, plain, table
loss = ToyLoss(1., 'sum', weight=[1,2])
loss.reduction = 'none'
half: float = loss.first + loss.gamma + loss.thresh
n: int = plain(2) + LIMIT + table['a'] + Pair(1).a
p: float = Point(1.).y
'''

toy_wrong = '''
from toy import Pair, Point, ToyLoss, plain
ToyLoss(sample_weight=None) # call-arg
ToyLoss(1., 'sum', [1]) # call-arg
ToyLoss(weight=3) # arg-type
ToyLoss(logits=3) # call-arg
ToyLoss()(3, 4) # arg-type
plain('x') # arg-type
Pair('x') # arg-type
Point(y=1.) # call-arg
'''

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What mypy says of each script, as {script: {line: kind}}, in one run, since it reads PyTorch for a while"
    pytest.importorskip('mypy')
    tmp = tmp_path_factory.mktemp('types')
    (tmp/'toy.py').write_text(toy)
    (tmp/'toy.pyi').write_text(load(root/'tools'/'stubs.py').module_text(load(tmp/'toy.py')))
    scripts = dict(right=right, wrong=wrong, toy_user=toy_user, toy_wrong=toy_wrong)
    for k,s in scripts.items(): (tmp/f'{k}.py').write_text(s)
    cmd = [sys.executable, '-m', 'mypy', '--config-file=', f'--cache-dir={root/".mypy_cache"}', '--no-error-summary', '--no-pretty']
    res = subprocess.run([*cmd, *(f'{k}.py' for k in scripts)], capture_output=True, text=True, cwd=tmp,
        env={**os.environ, 'MYPYPATH': f'{root}:{tmp}'})
    assert not res.stderr, res.stderr
    out = {k: {} for k in scripts}
    for l in res.stdout.splitlines():
        path,_,rest = l.partition('.py:')
        n,_,what = rest.partition(': ')
        if what.startswith('note'): continue
        assert path in out, l # an error in the stubs themselves
        out[path][int(n)] = l.rpartition('[')[2].rstrip(']')
    return out

@pytest.mark.parametrize('name', ['right','toy_user'])
def test_correct_use_passes(found, name): assert not found[name]

@pytest.mark.parametrize('name,src', [('wrong',wrong), ('toy_wrong',toy_wrong)])
def test_wrong_use_is_found(found, name, src):
    marked = {i: l.rpartition('# ')[2] for i,l in enumerate(src.split('\n'), 1) if '# ' in l}
    assert found[name]==marked

def test_the_correct_script_runs(): exec(right, {})
