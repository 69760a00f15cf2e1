"Every loss of the book against every check of `lossbook.check`, and what must hold on random input"
import os, pytest, torch
from hypothesis import given, settings, strategies as st
from lossbook.check import CHECKS, Case, all_losses, loss_classes, run_check, with_setting

# inductor compiles for seconds where aot_eager traces the same graph in a tenth of one
BACKEND = 'inductor' if os.environ.get('LOSSBOOK_FULL') else 'aot_eager'
LOSSES = all_losses()
CASES = {k: Case(o, backend=BACKEND) for k,o in LOSSES.items()}
few = settings(max_examples=15, deadline=None, derandomize=True, database=None)

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "The tensors are tiny, so a second thread only waits"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

GROUPS = list(dict.fromkeys(o.group for o in CHECKS.values()))

def checks(name, group):
    "The losses with other numbers ('FocalLoss-gamma') would compile what `recompiles` varies anyhow"
    return [o for k,o in CHECKS.items() if o.group==group and (k!='recompiles' or '-' not in name)]

@pytest.mark.parametrize('group', GROUPS)
@pytest.mark.parametrize('name', LOSSES)
def test_checks(name, group):
    "A check that does not apply says so itself; `check_loss` lists them"
    results = [run_check(o, CASES[name]) for o in checks(name, group)]
    failed = [f'{o.check}: {o.reason} [{o.example}]' for o in results if o.status=='failed']
    assert not failed, '\n'.join(failed)

def test_there_are_losses(): assert 'SoftLabelCrossEntropy' in LOSSES

@pytest.mark.parametrize('name', LOSSES)
def test_skips_are_checks(name): assert set(CASES[name].skips) <= set(CHECKS)

def of(*tasks): return [k for k in loss_classes() if CASES[k].task in tasks and CASES[k].example is None]

@st.composite
def losses(draw, name):
    "A loss with random numbers for its parameters"
    loss = LOSSES[name]
    for k,v in loss.params().items():
        if not isinstance(v, float): continue
        try: loss = with_setting(loss, **{k: draw(st.sampled_from([v, v/2, v*2, v+.3, 0., 1.]))})
        except ValueError: pass # out of range
    return loss

@st.composite
def batches(draw, task, scores='logits', axis=1, dtype=None):
    "Predictions of any size and shape, and targets"
    n,C = draw(st.integers(0, 5)),draw(st.integers(2, 6))
    extra = draw(st.sampled_from([(), (2,), (2,3)]))
    scale = 10.**draw(st.floats(-3, 4))
    dtype = dtype or draw(st.sampled_from([torch.half, torch.bfloat16, torch.float, torch.double]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = (torch.randn(n, C, *extra)*scale).clamp(-1e4, 1e4)
    y = dict(classes=lambda: torch.randint(C, (n,*extra)), binary=lambda: torch.randint(2, x.shape).to(x.dtype),
        real=lambda: torch.randn(x.shape))[task]()
    if scores!='logits': x = x.softmax(1) if task=='classes' else x.sigmoid()
    return (x.movedim(1, axis) if task=='classes' else x).to(dtype).requires_grad_(),y,C

def pick(data, name, **kwargs):
    case = CASES[name]
    return data.draw(losses(name)),*data.draw(batches(case.task, case.scores, case.axis, **kwargs))

@pytest.mark.parametrize('name', of('classes','binary','real'))
@few
@given(data=st.data())
def test_reductions(name, data):
    "'sum' adds 'none' up, and 'mean' divides by the number of values"
    loss,x,y,_ = pick(data, name, dtype=torch.double)
    none,total,mean = [with_setting(loss, reduction=r)(x, y) for r in ('none','sum','mean')]
    torch.testing.assert_close(total, none.sum(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, none.sum()/max(none.numel(), 1), rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('name', of('classes'))
@few
@given(data=st.data())
def test_target_forms(name, data):
    "Indices and one-hot rows give the same value and gradient"
    loss,x,y,C = pick(data, name, dtype=torch.double)
    rows = torch.nn.functional.one_hot(y, C).movedim(-1, CASES[name].axis).to(x.dtype)
    for r in ('mean','sum','none'):
        a,b = [with_setting(loss, reduction=r)(x, t) for t in (y,rows)]
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        g,h = [torch.autograd.grad(v.sum(), x)[0] for v in (a,b)]
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('name', of('classes','binary','real'))
@few
@given(data=st.data())
def test_finite(name, data):
    "Value and gradient are finite in every dtype and at every scale"
    loss,x,y,_ = pick(data, name)
    v = loss(x, y)
    assert v.isfinite() and torch.autograd.grad(v, x)[0].isfinite().all()
