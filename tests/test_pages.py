"What a reader can paste: the visible cells of every page, the blocks of README.md, the example of CONTRIBUTING.md"
import ast, builtins, importlib, os, pytest, re, subprocess, symtable, sys
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).parent.parent
pages = {p.relative_to(root/'nbs').with_suffix('').as_posix(): p
    for p in sorted([*root.glob('nbs/*.ipynb'), *root.glob('nbs/tutorials/*.ipynb')])}
chapters = [k for k in pages if k[0].isdigit()]

# pages that are not yet written in the form that these tests ask for; the list only gets shorter
not_yet = set()

def waiting(names): return [pytest.param(k, marks=[pytest.mark.xfail(run=False)]*(k in not_yet)) for k in names]

def off(d, k): return d.get(k, '').lower()=='false'

def code_cells(name): return [c for c in read_nb(pages[name]).cells if c.cell_type=='code' and c.source.strip()]

def bare(src): return [l for l in src.splitlines() if l.strip() and not re.match(r' *#', l)]

def housekeeping(c):
    "Cells that no reader misses: the module's name, the export, what nbdev needs"
    return 'default_exp' in c.directives or all(re.match(r'from nbdev|import nbdev|nbdev_export\(\)', l) for l in bare(c.source))

def shown(c):
    "Does the code of this cell stand on the page? Unshown `#| export` does not, what is folded does, and `code-fold: show`"
    d = c.directives
    if housekeeping(c) or {'hide','remove-cell'} & d.keys() or off(d, 'include') or off(d, 'echo'): return False
    if 'exporti' in d: return 'code-fold' in d
    return 'export' not in d and not re.match(r'show_doc\(', '\n'.join(bare(c.source)))

def visible(name):
    "The source of the cells that stand on a page and are meant to run"
    cells = [c.source for c in code_cells(name) if shown(c) and not off(c.directives, 'eval')]
    return [re.sub(r'^.*#\| *hide_line *$', '', s, flags=re.M) for s in cells]

def blocks(path): return re.findall(r'^```python\n(.*?)^```', path.read_text(encoding='utf-8'), re.M|re.S)

# an empty notebook, with nothing of nbdev's tests in its environment
notebook = '''import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for n,src in enumerate(sys.stdin.read().split('\\0'), 1):
    res = shell.run_cell(src, store_history=True)
    if not res.success: sys.exit(f'cell {n} of what is shown:\\n{src}\\n{res.error_before_exec or res.error_in_exec!r}')
'''

def paste(cells, folder):
    "Run `cells` in order in a process of their own, in an empty folder"
    env = {k: v for k,v in os.environ.items() if k not in ('IN_TEST','LOSSBOOK_FULL')}
    env |= dict(MPLBACKEND='agg', OMP_NUM_THREADS='1', PYTHONPATH=str(root), IPYTHONDIR=str(folder/'.ipython'))
    res = subprocess.run([sys.executable, '-c', notebook], input='\0'.join(cells), capture_output=True, text=True, cwd=folder, env=env)
    assert res.returncode==0, res.stderr[-3000:]

def starred(src):
    "The names that `from x import *` brings"
    for o in ast.walk(ast.parse(src)):
        if isinstance(o, ast.ImportFrom) and o.names[0].name=='*':
            mod = importlib.import_module(o.module)
            yield from getattr(mod, '__all__', None) or [k for k in vars(mod) if k[0]!='_']

def globals_of(table, top=True):
    "(name, is it bound?) of each global name that a piece of code has; those of functions are their own affair"
    for o in table.get_symbols():
        if top or o.is_global(): yield o.get_name(),top and (o.is_assigned() or o.is_imported())
    for t in table.get_children(): yield from globals_of(t, False)

def names_in(src):
    "(name, is it bound?) of the global names of a cell, those that `import *` brings included"
    src = re.sub(r'^(\s*)[%!].*', r'\1pass', src, flags=re.M)
    yield from ((k, True) for k in starred(src))
    yield from globals_of(symtable.symtable(src, 'cell', 'exec'))

def bound(cells): return {k for s in cells for k,is_bound in names_in(s) if is_bound}

def proved(cells, unseen):
    """Does every cell use only what shown cells bind, and do unseen ones not draw? Then the notebook's own run is theirs,
    too. What a function uses may be bound after it; but what unseen cells bind as well must be there before"""
    if any('seed' in s for s in unseen): return False
    known,seen,elsewhere = {*dir(builtins), '__name__'},bound(cells),bound(unseen)
    for s in cells:
        known |= bound([s])
        if {k for k,_ in names_in(s)} - known - (seen-elsewhere): return False
    return True

def test_a_proof_is_one():
    assert proved(['from math import *', 'x = sqrt(2)', 'print([x for o in (1,2)])'], ['y = 1'])
    assert not proved(['x = sqrt(2)'], []) and not proved(['print(y)', 'y = 1'], ['y = 0']) and not proved(['x = 1'], ['seed(0)'])
    assert proved(['def f(): return y', 'y = 1', 'f()'], ['z = 0']) and not proved(['def f(): return y', 'f()', 'y = 1'], ['y = 0'])
    assert not proved(['def f(y): return y', 'print(y)'], ['y = 0']) and not proved(['def f(): return y'], ['y = 0'])

@pytest.mark.parametrize('name', waiting(pages))
def test_visible_cells_run(name, tmp_path):
    cells = visible(name)
    unseen = [c.source for c in code_cells(name) if not shown(c) and not housekeeping(c)]
    if 'LOSSBOOK_FULL' in os.environ or not proved(cells, unseen): paste(cells, tmp_path)

def test_readme_runs(tmp_path): paste(blocks(root/'README.md'), tmp_path)

def test_the_example_of_a_new_loss_runs(tmp_path):
    example, = blocks(root/'CONTRIBUTING.md')
    assert len(example.splitlines())<=15 and 'class_loss' in example and 'of=' in example and 'check_loss' in example
    paste([example], tmp_path)

@pytest.mark.parametrize('name', waiting(chapters))
def test_hidden_cells_are_rare(name):
    "At most one in ten, not counting what a reader never misses and exported code that is not shown"
    cells = [c for c in code_cells(name) if not housekeeping(c) and not {'export','exporti'} & c.directives.keys() or shown(c)]
    hidden = [c.id for c in cells if 'hide' in c.directives]
    assert len(hidden)*10<=len(cells), f'{len(hidden)} of {len(cells)} cells are hidden: {hidden}'

@pytest.mark.parametrize('name', waiting(pages))
def test_shown_lines_fit(name):
    "What stands open on a page is at most 100 columns wide"
    cells = [c for c in code_cells(name) if shown(c) and c.directives.get('code-fold', 'show')=='show']
    wide = [l for c in cells for l in c.source.splitlines() if len(l)>100 and not l.startswith('#|')]
    assert not wide, '\n'.join(wide)

def module(name): return root/'lossbook'/f'{name.partition("_")[2]}.py'

@pytest.mark.parametrize('name', waiting([k for k in chapters if module(k).exists()]))
def test_reference(name):
    "All that a chapter exports has an entry under `## Reference`, and nothing stands there twice"
    src = [c.source for c in read_nb(pages[name]).cells]
    assert '## Reference' in [s.split('\n')[0] for s in src]
    entries = [o for s in src for o in re.findall(r'^show_doc\(([\w.]+)', s, re.M)]
    code = module(name).read_text(encoding='utf-8')
    names = ast.literal_eval(re.search(r'^__all__ = (\[.*?\])', code, re.M|re.S)[1])
    defined = set(re.findall(r'^(?:def|class) (\w+)', code, re.M))
    missing = sorted(set(names) & defined - set(entries))
    assert not missing and len(entries)==len(set(entries)), missing
