"The package by name: `import lossbook as lb`, `from lossbook.all import *`, and what stands beside fastai"
import ast, importlib, inspect, json, pytest, re, subprocess, sys
from pathlib import Path
import lossbook, lossbook.all
from lossbook._modidx import d as modidx

root = Path(__file__).parent.parent
chapters = [importlib.import_module(o) for o in sorted(modidx['syms'], key=lambda o: o!='lossbook.core') if o!='lossbook.all']
exported = {k: m.__name__ for m in reversed(chapters) for k in m.__all__}

# these hold once no chapter exports its helpers: then the mark fails the tests, and goes
waits = pytest.mark.xfail(strict=True, reason='chapters still export helpers')

def run(code, *args):
    "What `code` prints in a fresh process, in words"
    res = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=root)
    assert res.returncode==0, res.stderr
    return res.stdout.split()

heavy = 'import sys; print(*{"torch","numpy","pandas","matplotlib","fastcore","fastai"} & {*sys.modules})'

def test_package_loads_nothing(): assert not run('import lossbook as lb; dir(lb)\n'+heavy)

def test_a_loss_by_name_needs_torch_alone():
    code = 'import lossbook as lb; from lossbook import FocalLoss, focal; lb.SoftLabelCrossEntropy(), lb.plot_loss\n'
    assert set(run(code+heavy)) <= {'torch','numpy'}

def test_the_fastai_chapter_by_name(): assert 'fastai' in run('from lossbook import SpanBlock\n'+heavy)

def test_by_name():
    for k,m in exported.items():
        if f'lossbook.{k}' not in modidx['syms']: assert getattr(lossbook, k) is getattr(sys.modules[m], k), k

def test_dir():
    assert set(exported) <= set(dir(lossbook))
    assert not [o for o in dir(lossbook) if o.startswith('_') and not o.endswith('__')]
    for o in modidx['syms']: assert inspect.ismodule(getattr(lossbook, o.partition('.')[2]))

def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'lossbook' has no attribute 'FocalLos'"): lossbook.FocalLos
    with pytest.raises(ImportError): from lossbook import NoSuchLoss # chkstyle: ignore

def test_one_name_one_thing():
    "No two chapters export different things by one name"
    for m in chapters:
        for k in m.__all__: assert getattr(m, k) is getattr(importlib.import_module(exported[k]), k), f'{m.__name__}.{k}'

def test_all_is_what_one_calls():
    names = set(lossbook.all.__all__)
    wanted = 'FocalLoss focal_loss_with_logits check_loss check_batch properties plot_loss plot_simplex explore catalog'
    assert set(wanted.split()) <= names
    assert not names & set('power check places terms cuts Case'.split())
    assert not [k for k in names if inspect.ismodule(getattr(lossbook.all, k)) or k.startswith('_')]

def called(src):
    "The names that a piece of code uses, without what it documents"
    tree = ast.parse(src)
    documented = {a for o in ast.walk(tree) if isinstance(o, ast.Call) and getattr(o.func, 'id', '')=='show_doc' for a in o.args}
    return {o.id for o in ast.walk(tree) if isinstance(o, ast.Name) and o not in documented}

def test_every_exported_name_is_used_on_a_page():
    "What no visible example of a page, nor the one in CONTRIBUTING.md, uses is a helper, and not exported"
    used = set()
    for p in (*root.glob('nbs/*.ipynb'), *root.glob('nbs/tutorials/*.ipynb')):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            src = ''.join(c['source'])
            if c['cell_type']=='code' and not re.search(r'^#\| *(hide$|export)|^ *[%!]', src, re.M): used |= called(src)
    for o in re.findall(r'```python\n(.*?)```', (root/'CONTRIBUTING.md').read_text(), re.S): used |= called(o)
    # a module that is used stands for its function, and for the class that it is made from
    for o in [getattr(lossbook, k) for k in used & set(exported)]:
        if inspect.isclass(o) and issubclass(o, lossbook.Loss): used |= {o.func.__name__ if o.func else '', *(b.__name__ for b in o.__mro__)}
    left = sorted(set(exported)-used)
    assert not left, f'used nowhere: {left}'

def beside_fastai(order):
    code = f'''
from importlib import import_module
mine,theirs = [{{k: v for k,v in vars(import_module(o)).items() if k in getattr(import_module(o), '__all__', [k])
    and not k.startswith('_')}} for o in ('lossbook.all','fastai.basics')]
{order}
same = {{k for k in mine.keys() & theirs.keys() if mine[k] is theirs[k]}}
print(*sorted(mine.keys() & theirs.keys() - same))
print('|', *sorted(k for k in mine if globals()[k] is not mine[k]))
print('|', *sorted(k for k in theirs if globals()[k] is not theirs[k]))'''
    return [o.split() for o in ' '.join(run(code)).split('|')]

# the page on lossbook.all says so; `properties` is fastcore's helper for making properties of methods
SHARED = ['DiceLoss','FocalLoss','properties']

def test_beside_fastai():
    pytest.importorskip('fastai')
    both,lost,shadowed = beside_fastai('from fastai.basics import *; from lossbook.all import *')
    assert both==shadowed==SHARED and not lost
    both,lost,shadowed = beside_fastai('from lossbook.all import *; from fastai.basics import *')
    assert both==lost==SHARED and not shadowed

def test_all_without_fastai():
    "Chapters whose packages are not installed are left out, and nothing else is"
    code = '''import sys
for o in ('fastai','fastcore','fastprogress','fasttransform','matplotlib','pandas','IPython','ipywidgets'): sys.modules[o] = None
from lossbook.all import *
import lossbook.all as a
print(*a.__all__)'''
    assert set(lossbook.all.__all__) - set(run(code)) == {k for k,m in exported.items() if m in ('lossbook.learner','lossbook.training')}
