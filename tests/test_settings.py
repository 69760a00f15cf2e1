"The package as a whole: its settings, what it imports, and the order of its chapters"
import ast, importlib, importlib.util, json, pytest, re, subprocess, sys
from importlib.resources import files
from pathlib import Path

root = Path(__file__).parent.parent
numbered = [(re.fullmatch(r'(\d\d)([a-z]?)_(\w+)', p.stem), p) for p in sorted((root/'nbs').glob('*.ipynb'))]
chapters = {m[3]: ((int(m[1]),m[2]),p) for m,p in numbered if m} # 12b comes between 12 and 13

@pytest.fixture
def setup_py():
    spec = importlib.util.spec_from_file_location('lossbook_setup', root/'setup.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod

def test_settings_are_all_read(setup_py): setup_py.settings(root/'settings.ini')

def test_a_key_that_is_not_read_raises(setup_py, tmp_path):
    path = tmp_path/'settings.ini'
    path.write_text((root/'settings.ini').read_text()+'\nhomepage = here\n')
    with pytest.raises(ValueError, match='homepage'): setup_py.settings(path)

def test_no_fact_stands_twice(setup_py):
    tomllib = pytest.importorskip('tomllib')
    project = tomllib.loads((root/'pyproject.toml').read_text())['project']
    names = dict(install_requires='dependencies', extras_require='optional-dependencies')
    supplied = {names.get(k, k) for k in setup_py.settings(root/'settings.ini')} | {'version','readme'}
    assert supplied == set(project['dynamic'])
    assert not supplied & set(project)

def test_the_package_is_whole():
    "The style sheet, the marker for type checkers and a stub for each module lie beside the modules"
    pkg = files('lossbook')
    modules = {o.name[:-3] for o in pkg.iterdir() if o.name.endswith('.py')} - {'_modidx'}
    assert {f'{k}.pyi' for k in modules} | {'book.mplstyle','py.typed'} <= {o.name for o in pkg.iterdir()}

def test_imports_are_light():
    "Up to chapter 41 the package needs torch and numpy alone"
    mods = [f'lossbook.{k}' for k,(n,_) in chapters.items() if n<(42,)]
    code = f'import sys, lossbook, {", ".join(mods)}\n' \
        'print(*({"fastai","fastcore","matplotlib","pandas"} & {o.split(".")[0] for o in sys.modules}))'
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert res.returncode==0, res.stderr
    assert not res.stdout.split()

def imported(tree):
    "The chapters that a piece of code imports"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom) and not o.level:
            names = [f'lossbook.{a.name}' for a in o.names] if o.module=='lossbook' else [o.module]
        else: continue
        yield from (n.split('.')[1] for n in names if n.startswith('lossbook.') and not n.startswith('lossbook._'))

@pytest.mark.parametrize('name', chapters)
def test_chapters_import_from_lower_ones_only(name):
    "A page may begin with its own module, too, and one without a module may import them all"
    number,path = chapters[name]
    own = {name} if (root/'lossbook'/f'{name}.py').exists() else {'all'}
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if c['cell_type']!='code': continue
        src = re.sub(r'^(\s*)[%!].*', r'\1pass', ''.join(c['source']), flags=re.M)
        for o in imported(ast.parse(src)): assert o in own or o in chapters and chapters[o][0]<number, f'{path.name} imports lossbook.{o}'

# ---- for whoever publishes it

def toml(): return pytest.importorskip('tomllib').loads((root/'pyproject.toml').read_text(encoding='utf-8'))

hidden = sorted([*root.glob('.github/**/*.yaml'), *root.glob('.github/**/*.yml'), root/'CITATION.cff'])

@pytest.mark.parametrize('path', hidden, ids=lambda p: p.name)
def test_yaml_loads(path): assert pytest.importorskip('yaml').safe_load(path.read_text(encoding='utf-8'))

def test_workflows():
    yaml = pytest.importorskip('yaml')
    ci,site = (yaml.safe_load((root/f'.github/workflows/{k}.yaml').read_text()) for k in ('ci','site'))
    steps = ci['jobs']['test']['steps']
    assert steps[-1]['run']=='.ci/run' and (root/'.ci'/'run').exists()
    assert {'push','pull_request'} <= set(ci[True]) # YAML reads `on` as true
    upload = next(o for o in site['jobs']['publish']['steps'] if 'upload-pages-artifact' in o['uses'])
    assert (root/upload['with']['path']/'index.html').exists() and (root/upload['with']['path']/'.nojekyll').exists()

def test_citation():
    cff = pytest.importorskip('yaml').safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version','message','title','authors'} <= set(cff) and all(o.get('name') for o in cff['authors'])
    assert cff['license']==toml()['project']['license']
    urls = toml()['project']['urls'] # the addresses stand there, and the citation says the same
    assert cff.get('repository-code')==urls.get('Repository') and cff.get('url')==urls.get('Documentation')

@pytest.mark.parametrize('name', ('bug','new_loss'))
def test_issue_forms(name):
    form = pytest.importorskip('yaml').safe_load((root/f'.github/ISSUE_TEMPLATE/{name}.yaml').read_text(encoding='utf-8'))
    assert {'name','description','body'} <= set(form)
    ids = [o['id'] for o in form['body']]
    assert len(ids)==len(set(ids)) and all(o['attributes']['label'] for o in form['body'])

def test_release_notes_have_their_place():
    release = pytest.importorskip('nbdev.release')
    text = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    new = release.update_changelog(text, '9.9.9', '\n## 9.9.9\n\n- a change')
    assert new.index('## 9.9.9')<new.index('## Unreleased')

def test_the_skill_is_found():
    "A host reads the docstring without an import, and lists its first paragraph"
    module = toml()['project']['entry-points']['pyskills']['lossbook']
    path = root.joinpath(*module.split('.')).with_suffix('.py')
    doc = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert 'Choose a loss' in doc.split('\n\n')[0]
    assert importlib.import_module(module).__doc__.startswith(doc.split('\n')[0])
