"Pictures of losses from anywhere, and that they leave everything else as it was"
import functools, json, os, pytest, re, subprocess, sys, torch, torch.nn.functional as F
import fastai.losses as fl, lossbook, matplotlib.pyplot as plt, numpy as np
from matplotlib.text import Text
from pathlib import Path
from torch import nn, tensor
from lossbook.core import assert_same
from lossbook.plot import explore, find_task, loss_curve, loss_name, loss_rows, param_range, plot_loss
from lossbook.plot import as_svg, gap_to_boxes, in_two_rows, is_drawing, line_points, plot_loss_by_alpha, plot_simplex
from lossbook.plot import plot_surface, readable, simplex_minimum, sliders

ROOT = Path(lossbook.__file__).parent.parent

@pytest.fixture(autouse=True)
def undisturbed():
    "No picture changes a setting of matplotlib or the seed of PyTorch, and none is left open"
    plt.ioff()
    plt.get_backend() # found only when it is asked for
    before,seed = plt.rcParams.copy(),torch.get_rng_state()
    yield
    assert plt.rcParams==before and torch.equal(torch.get_rng_state(), seed)
    plt.close('all')

def focal(x, y):
    nll = F.cross_entropy(x, y, reduction='none')
    return (1-(-nll).exp())**2*nll

def test_imports_little():
    code = "from lossbook.plot import plot_loss; import sys; " \
        "assert not {'matplotlib','ipywidgets','fastai','pandas'} & {*sys.modules}"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)

def test_exports():
    import lossbook.plot
    assert set(lossbook.plot.__all__)=={'styled','label_lines','loss_curve','plot_loss','plot_simplex','plot_surface',
        'plot_loss_by_alpha','explore'}

def test_figures_stay_on():
    "The first picture of a new notebook leaves its figures on: a later one of anybody is shown"
    pytest.importorskip('ipykernel')
    from jupyter_client.manager import start_new_kernel
    env = {k: v for k,v in os.environ.items() if k!='MPLBACKEND'}
    manager,client = start_new_kernel(env=env, cwd=str(ROOT))
    shown = []
    def hook(msg):
        assert msg['msg_type']!='error', msg['content']['evalue']
        if msg['msg_type']=='display_data': shown.append(msg['content']['data'])
    def run(code): client.execute_interactive(code, output_hook=hook, timeout=120)
    try:
        run('import torch.nn.functional as F; from lossbook.plot import plot_loss; ax = plot_loss(F.cross_entropy)')
        run('import matplotlib.pyplot as plt; assert plt.isinteractive()')
        run('plt.plot([1,2])')
        run('plt.ioff(); ax = plot_loss(F.cross_entropy); assert not plt.isinteractive()')
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert len([o for o in shown if 'image/png' in o])==2

# rows and names

def test_loss_rows():
    "Three ways to write one loss, and the same three numbers"
    x,y = tensor([[2.,0.],[0.,0.],[0.,3.]]),tensor([0,0,0])
    keep = nn.CrossEntropyLoss()
    a,b,c = [loss_rows(o, x, y) for o in (keep, F.cross_entropy, lambda x,y: F.cross_entropy(x,y))]
    assert_same(a, F.cross_entropy(x, y, reduction='none'))
    assert_same(a, b)
    assert_same(b, c)
    assert keep.reduction=='mean'
    assert_same(loss_rows(lambda x,y: F.cross_entropy(x,y), x[:1], y[:1]), a[:1])
    def samples(x, y): return F.cross_entropy(x, y)+torch.rand(())
    loss_rows(samples, x, y) # and the seed stays

@pytest.mark.parametrize('loss,name', [(nn.CrossEntropyLoss(label_smoothing=.2),'CrossEntropyLoss(label_smoothing=0.2)'),
    (F.cross_entropy,'cross_entropy'), (lambda x,y: x,'loss'), (nn.L1Loss,'L1Loss'), (nn.L1Loss(),'L1Loss'),
    (functools.partial(F.cross_entropy, label_smoothing=.2),'cross_entropy(label_smoothing=0.2)'),
    (nn.CrossEntropyLoss(torch.ones(2)),'CrossEntropyLoss(weight=[1.0, 1.0])'),
    (fl.FocalLossFlat(gamma=3.),'FocalLossFlat(gamma=3.0)'), (nn.HuberLoss(),'HuberLoss')], ids=lambda o: str(o).split(' at 0x')[0])
def test_loss_name(loss, name): assert loss_name(loss)==name

def test_find_task():
    tasks = [find_task(o) for o in (F.cross_entropy, F.binary_cross_entropy_with_logits, nn.SoftMarginLoss())]
    assert tasks==['class','binary','binary']

# names of lines

def named(ax):
    "Names of the lines, and what is wrong with their places"
    ax.figure.draw_without_rendering()
    lines,names = [o for o in ax.lines if not o.get_label().startswith('_')],[o for o in ax.texts if o.get_gid()]
    em = names[0].get_fontsize()*ax.figure.dpi/72
    boxes = np.array([Text.get_window_extent(o).extents for o in names])
    gaps = np.array([gap_to_boxes(line_points(o, em/3), boxes).min(1) for o in lines])
    led = [o.arrow_patch.get_visible() for o in names]
    return [o.get_text() for o in names],wrong_places(boxes, gaps, ax.bbox.extents, led)

def wrong_places(boxes, gaps, frame, led):
    "What is wrong with boxes (K, 4), whose distances to the lines are (K, K): line, name; a leader says whose a name is"
    (l,b,r,t),wrong = boxes.T,[]
    for i in range(len(boxes)):
        if l[i]<frame[0]-1 or b[i]<frame[1]-1 or r[i]>frame[2]+1 or t[i]>frame[3]+1: wrong.append(f'{i} is outside')
        for j in range(i):
            if l[i]<r[j] and l[j]<r[i] and b[i]<t[j] and b[j]<t[i]: wrong.append(f'{i} overlaps {j}')
        if gaps[:,i].min()<gaps[i,i]-1 and not led[i]: wrong.append(f'{i} is nearer to line {gaps[:,i].argmin()}')
    return wrong

def fan(n): return {f'line {i}': (lambda x,i=i: (3-x)*(i+1)) for i in range(n)}
hard = dict(fan=(fan(6), (0,3)), cross=dict(a=lambda x: x, b=lambda x: -x, c=lambda x: 0*x),
    steep=dict(a=lambda x: x**9, bb=lambda x: x**2))
@pytest.mark.parametrize('kind', hard)
@pytest.mark.parametrize('size', [(6,3.5),(4,2.5)], ids=str)
def test_names_of_lines(kind, size):
    losses,lims = hard[kind] if isinstance(hard[kind], tuple) else (hard[kind],(-2,2))
    ax = plt.figure(figsize=size).subplots()
    names,wrong = named(plot_loss(losses, lambda x: (x,), lims=lims, ax=ax))
    assert names==list(losses) and not wrong

def test_names_follow():
    "Names are placed when the picture is drawn: on other scales, too, and anew when lines are added"
    ax = plot_loss({'a': lambda x: x.exp(), 'b': lambda x: 1/x}, lambda x: (x,), lims=(.01,4))
    ax.set(yscale='log', ylabel='another\nlabel')
    assert named(ax)==(['a','b'],[])
    plot_loss({'c': lambda x: 30+0*x}, lambda x: (x,), lims=(.01,4), ax=ax)
    assert named(ax)==(['a','b','c'],[])

def test_lines_that_end_early():
    "A line that is shorter than the others has its name beside it, and one that is nowhere has none"
    def part(x): return x.where(x<1, torch.nan)
    losses = dict(part=part, none=lambda x: x*torch.nan, whole=lambda x: x+1)
    ax = plot_loss(losses, lambda x: (x,), lims=(0,2), n=21)
    ax.figure.draw_without_rendering()
    assert [(o.get_text(),o.get_visible()) for o in ax.texts]==[('part',True),('none',False),('whole',True)]
    assert ax.texts[0].xy[0]<1

def test_in_two_rows():
    for a in ('HuberLoss\n(delta=2.0)','Generalized\nCrossEntropy','cross\nentropy','gamma 0.5'):
        assert in_two_rows(a.replace('y\ne', 'y e').replace('s\ne', 's e').replace('\n', ''))==a

def test_readable():
    "Names of all colours of the book are dark enough to be read"
    def light(c): return sum(w*(o/12.92 if o<=.04045 else ((o+.055)/1.055)**2.4) for w,o in zip((.2126,.7152,.0722), c))
    for c in ('#0072B2','#D55E00','#009E73','#CC79A7','#56B4E9','#E69F00','#000000'): assert 1.05/(light(readable(c))+.05)>=4.49

def test_svg():
    "A drawing is the same text each time, and no map is one"
    a,b = (plot_loss(F.cross_entropy).figure for _ in range(2))
    assert is_drawing(a) and as_svg(a)==as_svg(b)
    assert not is_drawing(plot_simplex(F.cross_entropy, 0, n=9).figure)

def path_points(d):
    xy = np.array(re.findall(r'(-?[\d.]+) (-?[\d.]+)', d), dtype=float)
    parts = [xy[i]+(xy[i+1]-xy[i])*np.linspace(0, 1, 20)[:,None] for i in range(len(xy)-1)]
    return np.concatenate(parts) if parts else xy

def saved_drawings():
    "The SVGs with names of lines among the saved outputs of the book"
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for c in json.loads(p.read_text())['cells']:
            for o in c.get('outputs', []):
                svg = ''.join(o.get('data', {}).get('image/svg+xml', ''))
                if 'id="name-' in svg: yield pytest.param(svg, id=f'{p.stem}-{c["id"]}')

@pytest.mark.parametrize('svg', list(saved_drawings()))
def test_names_in_the_book(svg):
    "In each picture of the book, each name stands inside of its axes, beside its own line, and on no other"
    for k in sorted({*re.findall(r'id="name-(\d+)-', svg)}):
        ids = re.findall(rf'id="name-{k}-(\d+)"', svg)
        face = re.search(rf'<g id="axes_{int(k)+1}">.*?<path d="([^"]*)"', svg, re.S)[1]
        frame = np.array(re.findall(r'(-?[\d.]+) (-?[\d.]+)', face), dtype=float)
        boxes,lines = [],[]
        for i in ids:
            name = re.search(rf'<g id="name-{k}-{i}">.*?<path d="([^"]*)"', svg, re.S)[1]
            xy = np.array(re.findall(r'(-?[\d.]+) (-?[\d.]+)', name), dtype=float)
            boxes.append([*xy.min(0), *xy.max(0)])
            lines.append(path_points(re.search(rf'<g id="line-{k}-{i}">.*?<path d="([^"]*)"', svg, re.S)[1]))
        gaps = np.array([gap_to_boxes(o, np.array(boxes)).min(1) for o in lines])
        led = [bool(re.search(rf'<g id="lead-{k}-{i}">', svg)) for i in ids]
        assert not wrong_places(np.array(boxes), gaps, [*frame.min(0), *frame.max(0)], led)

# curves

many = [fl.LabelSmoothingCrossEntropy(), fl.LabelSmoothingCrossEntropyFlat(), fl.BCEWithLogitsLossFlat(), nn.CrossEntropyLoss(),
    fl.BCEWithLogitsLossFlat, nn.MultiLabelSoftMarginLoss, F.soft_margin_loss, fl.FocalLossFlat,
    lambda x,y: F.cross_entropy(x,y), lambda x,y: (x.sigmoid()-y).abs().mean(), lambda x,y: (x.argmax(1)!=y).float(),
    functools.partial(F.cross_entropy, label_smoothing=.1)]
@pytest.mark.parametrize('loss', many, ids=lambda o: loss_name(o))
def test_curves_from_elsewhere(loss):
    up,down = plot_loss(loss, grad=True, x='prob')
    assert np.isfinite(up.lines[0].get_ydata()).all() and np.isfinite(down.lines[0].get_ydata()).all()

def test_numbers_of_curves():
    weighted = nn.CrossEntropyLoss(weight=tensor([1.,3.]))
    assert_same(loss_curve(weighted, target=1)[1], 3*loss_curve(F.cross_entropy)[1])
    assert_same(loss_curve(F.binary_cross_entropy_with_logits, target=0)[1], loss_curve(F.cross_entropy)[1])
    with torch.no_grad(): assert_same(loss_curve(F.cross_entropy)[2].min(), -.9933, atol=1e-4)
    x,v,_ = loss_curve(F.cross_entropy, 'prob', n_classes=7)
    assert_same(v, -x.log(), atol=1e-5)

def test_points(): assert len(plot_loss(F.cross_entropy, n=11).lines[0].get_xdata())==11

def test_into_axes():
    axs = plt.Figure().subplots(1, 2)
    for loss in (focal, F.cross_entropy): assert plot_loss(loss, ax=axs[0]) is axs[0]
    assert len({o.get_linestyle() for o in axs[0].lines})==2
    assert plot_loss(focal, grad=True, ax=axs) is axs and len(axs[1].lines)==1
    assert plot_simplex(F.cross_entropy, 0, ax=axs[1]) is axs[1]
    assert plot_surface(lambda a,b: (a-b)**2, ax=axs[1]) is axs[1]

@pytest.mark.parametrize('name', ['FocalLoss','BinaryFocalLoss','SpanLoss'])
def test_surface_of_another_batch(name):
    "A loss that is not of two numbers says what it needs"
    loss = getattr(lossbook, name)()
    with pytest.raises(TypeError, match=f'{name} is no loss of two numbers .*; args= makes what it takes'): plot_surface(loss)
    assert not plt.get_fignums()

def test_surface_with_args():
    from lossbook.focal import FocalLoss
    def logits(a, b): return torch.stack([a,b], 1),torch.zeros(len(a)).long()
    assert plot_surface(FocalLoss(), logits).lines

@pytest.mark.parametrize('draw', [explore, plot_surface, lambda o: plot_simplex(o, 0), lambda o: explore(o, live=True)])
def test_one_loss(draw):
    "What draws one loss names what draws several"
    with pytest.raises(TypeError, match='loss must be one loss, got a list: plot_loss draws several'):
        draw([nn.CrossEntropyLoss(), F.cross_entropy])

def test_nothing_half_drawn():
    with pytest.raises(ValueError, match='the loss is finite nowhere'): plot_surface(lambda a,b: a/0)
    assert not plt.get_fignums()

# maps

def test_simplex_minimum():
    label = tensor([.6,.3,.1])
    def drawn_mae(x, y): return (y*(2-2*x.softmax(1))).sum(1)
    for y in (label, tensor([.003,.9,.097]), tensor([.5,.49,.01])):
        assert_same(simplex_minimum(F.cross_entropy, y), y, atol=1e-3)
        assert_same(simplex_minimum(lambda x,y: (x.softmax(1)-y).abs().sum(1), y), y, atol=1e-3)
    assert_same(simplex_minimum(drawn_mae, label), [1.,0.,0.], atol=1e-3)
    assert_same(simplex_minimum(F.cross_entropy, 2), [0.,0.,1.], atol=1e-3)

@pytest.mark.parametrize('loss', [fl.CrossEntropyLossFlat(), fl.FocalLossFlat(), fl.LabelSmoothingCrossEntropy(),
    nn.CrossEntropyLoss], ids=lambda o: loss_name(o))
def test_minimum_of_others(loss):
    assert_same(simplex_minimum(loss, 1)[1], 1., atol=.08)
    assert getattr(loss, 'reduction', 'mean')=='mean'

def test_by_alpha_of_a_class():
    from lossbook.soft_labels import SoftLabelCrossEntropy
    x,y = torch.tensor([[2.,0.,1.],[0.,1.,0.]]),tensor([0,1])
    ax = plot_loss_by_alpha(x, y, SoftLabelCrossEntropy, [0.,.5], labels=['a','b'])
    want = torch.stack([F.cross_entropy(x, y, label_smoothing=a, reduction='none') for a in (0.,.5)], 1)
    for line,w in zip(ax.lines, want): np.testing.assert_allclose(line.get_ydata(), w, rtol=1e-5)

# sliders

def ranges_of(loss, **fixed):
    return {k: (o.min,o.max) if hasattr(o, 'min') else o.value for k,o in sliders(loss, **fixed).items()}

class Odd(nn.Module):
    "A loss with a parameter of every kind"
    def __init__(self, k:int=3, scale:float=30, on:bool=True, word:str='a', none:float=None, axis:int=1, weight=None):
        super().__init__()
        if k<1: raise ValueError('k')
        self.k,self.scale,self.on,self.word,self.weight = k,scale,on,word,weight
    def forward(self, x, y): return F.cross_entropy(x*self.scale if self.on else x/self.k, y, self.weight)

def test_param_range():
    assert param_range(lambda v: 0<=v<=1, .1)==(0,1)
    assert param_range(lambda v: v>0, .07)==(.01,5)
    assert param_range(lambda v: v>=0, 2.)==(0,5)

def test_sliders():
    assert ranges_of(nn.HuberLoss)==dict(delta=(.01,5)) # refused when called, not when made
    assert sliders(nn.CrossEntropyLoss)['label_smoothing'].max==1
    assert ranges_of(F.cross_entropy, label_smoothing=.1)=={}
    assert sliders(nn.CrossEntropyLoss(label_smoothing=.3))['label_smoothing'].value==.3
    assert ranges_of(Odd)==dict(k=(1,20), scale=(-5,60), on=True, word='a')
    assert sliders(Odd(k=2))['k'].value==2

def test_sliders_of_this_book():
    from lossbook.focal import BinaryFocalLoss, FocalLoss
    assert ranges_of(FocalLoss)==dict(gamma=(0,5), label_smoothing=(0,1))
    assert ranges_of(BinaryFocalLoss, gamma=1.)==dict(label_smoothing=(0,1))

def test_explore():
    box = explore(nn.HuberLoss, x='error', live=True, delta=2.)
    assert box.result.lines[0].get_label()=='HuberLoss(delta=2.0)'
    box = explore(Odd, scale=1., live=True)
    assert [o.description for o in box.children[:-1]]==['k','on','word']
    box.children[1].value = False
    assert box.result.lines[0].get_label()=='Odd(scale=1.0, on=False)'
    assert explore(Odd(weight=torch.ones(3)), plot_simplex, target=1, live=True).result.lines
    assert explore(Odd(weight=torch.ones(3)), n_classes=3, live=True).children[0].max==20
    assert explore(lambda a,b: (a-b)**2, plot_surface, live=True).result.lines
    assert explore(F.cross_entropy).lines # no kernel, no sliders
