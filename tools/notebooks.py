"""Run notebooks, a process each, and tell every cell that fails, with what its assertion compared.

How they run is the environment's: OMP_NUM_THREADS and ATEN_CPU_CAPABILITY as PyTorch reads them;
LOSSBOOK_NUDGE=k draws first weights that differ by a rounding error; LOSSBOOK_SEED=k adds k to the
seeds that a notebook sets. Pages know nothing of it. A cell that asserts numbers of one seed, and no
claim, may say `#| one-seed`."""
import argparse, ast, functools, multiprocessing, os, re, subprocess, sys, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

root = Path(__file__).resolve().parent.parent
# what the pages import again and again: once, in the process that the others are forked from
PRELOAD = ['torch','torch._dynamo','fastai.basics','fastai.tabular.core','matplotlib.pyplot',
    'matplotlib_inline.backend_inline','pandas','sklearn.datasets','scipy.stats','nbdev.test',
    'nbdev.showdoc','_pytest.assertion.rewrite']
TRAINS = r'\.fit\w*\(|\.backward\('
SEEDERS = {'manual_seed','set_seed','seed','seed_everything','default_rng','RandomState'}
# as other machines would: (what it is, the environment, which pages)
# what was compiled for other instructions must not be found
PLAIN = dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41',
    TORCHINDUCTOR_CACHE_DIR=str(root/'.venv'/'inductor-default'))
FORMS = [('plain instructions', PLAIN, ''),
    ('two threads', dict(OMP_NUM_THREADS='2'), ''),
    *[(f'first weights {k}', dict(LOSSBOOK_NUDGE=str(k)), TRAINS) for k in (1,2,3)],
    *[(f'seeds + {k}', dict(LOSSBOOK_SEED=str(k)), TRAINS) for k in (100,200)]]

class Reseed(ast.NodeTransformer):
    "Add `k` to each seed that a cell sets"
    def __init__(self, k): self.k = k
    def shifted(self, node):
        return ast.copy_location(ast.BinOp(node, ast.Add(), ast.Constant(self.k)), node)
    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        if name in SEEDERS and node.args: node.args[0] = self.shifted(node.args[0])
        for o in node.keywords:
            splits = name=='RandomSplitter' and o.arg=='seed'
            if splits or o.arg=='random_state': o.value = self.shifted(o.value)
        return ast.fix_missing_locations(node)

class TellSides(ast.NodeTransformer):
    "Make assertions say what they compared, as pytest does"
    def visit(self, node):
        from _pytest.assertion.rewrite import rewrite_asserts
        rewrite_asserts(node, b'')
        for o in ast.walk(node): # the imports that it adds have a first line and no last one
            if hasattr(o, 'lineno') and getattr(o, 'end_lineno', None) is None:
                o.end_lineno,o.end_col_offset = o.lineno,o.col_offset
        return ast.fix_missing_locations(node)

def nudge(k):
    "Multiply first weights by 1 + 1e-6 noise, a function of the weight itself: equal ones stay equal"
    import torch
    def nudged(reset):
        @functools.wraps(reset)
        def reset_parameters(self, *args, **kwargs):
            reset(self, *args, **kwargs)
            with torch.no_grad():
                for p in self.parameters(recurse=False):
                    if torch.nn.parameter.is_lazy(p): continue
                    p.mul_(1 + 1e-6*torch.sin(p.double()*1e5 + k))
        return reset_parameters
    for o in vars(torch.nn).values():
        if not isinstance(o, type) or 'reset_parameters' not in vars(o): continue
        o.reset_parameters = nudged(o.reset_parameters)

def explained(e, cell):
    "The line of a cell that failed, and why"
    at = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename.startswith('<ipython')]
    lines = dict(enumerate(cell.source.splitlines(), 1))
    line = lines.get(at[0], '').strip() if at else ''
    return f'    {line}\n    {type(e).__name__}: ' + '\n      '.join(str(e).splitlines()[:25])

def run_notebook(path, save, send):
    "In a process of its own: run all cells, send the failures, save the outputs if there are none"
    from fastcore.basics import defaults
    from nbdev.test import CaptureShell, NBProcessor, _skip_cell, get_config, working_directory, write_nb
    # data are small here: fastai's processes that load them, two an epoch, would take most of the time
    defaults.cpus = 0
    multiprocessing.set_start_method('fork', force=True)
    os.environ['IN_TEST'] = '1'
    sys.path.insert(0, str(root))
    if k := int(os.environ.get('LOSSBOOK_NUDGE', 0)): nudge(k)
    seed,found,excepted = int(os.environ.get('LOSSBOOK_SEED', 0)),[],0
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    skip = _skip_cell(nb, get_config(path.parent).get('tst_flags', 'notest').split())
    shell = CaptureShell(path)
    if seed: shell.ast_transformers.append(Reseed(seed))
    if not save: shell.ast_transformers.append(TellSides())
    with working_directory(path.parent):
        for cell in nb.cells:
            if skip(cell): continue
            shell.cell(cell, timeout=3600)
            if shell.exc is None: continue
            if seed and re.search(r'^#\| *one-seed', cell.source, re.M): excepted += 1
            else: found.append(f'{path.stem} [{cell.id}]\n{explained(shell.exc, cell)}')
            shell.exc = None
        if save and not found: write_nb(nb, path)
    send.send((found,excepted))
    send.close()
    # threads that a notebook left behind have nothing more to say
    sys.stdout.flush()
    os._exit(0)

def in_process(context, path, save):
    "The failures of a notebook, how many cells were excepted, and the seconds it took"
    start,(get,send) = time.time(),context.Pipe(False)
    p = context.Process(target=run_notebook, args=(path, save, send))
    p.start()
    send.close()
    try: found,excepted = get.recv()
    except EOFError: found,excepted = [f'{path.stem}\n    the process ended before it told anything'],0
    p.join()
    return path,found,excepted,time.time()-start

def run_all(paths, save, n):
    "Run notebooks `n` at a time, with a line for each, and give all failures"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    failures,without = [],0
    with ThreadPoolExecutor(n) as pool:
        jobs = [pool.submit(in_process, context, p, save) for p in paths]
        for i,job in enumerate(as_completed(jobs), 1):
            path,found,excepted,seconds = job.result()
            verdict = f'FAILED {len(found)} cells' if found else 'passed'
            print(f'{i:3}/{len(paths)} {verdict} {path.stem} {seconds:.0f} s', flush=True)
            failures += found
            without += excepted
    if without: print(f'{without} cells show numbers of one seed and were excepted')
    return failures

def portable(paths, argv):
    "Run the notebooks in every form, and tell all failures of all forms at the end"
    told = []
    for name,env,which in FORMS:
        some = [p for p in paths if re.search(which, p.read_text(encoding='utf-8'))]
        print(f'== {name}: {len(some)} notebooks', flush=True)
        with tempfile.NamedTemporaryFile('r', suffix='.txt') as f:
            cmd = [sys.executable, __file__, *map(str, some), '--failures', f.name, *argv]
            if not subprocess.run(cmd, env={**os.environ, **env}).returncode: continue
            told.append(f'== {name}\n{f.read()}')
    return told

def main():
    how = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    p.add_argument('paths', nargs='*', type=Path, help='notebooks, by default all')
    p.add_argument('--save', action='store_true', help='write outputs back where all cells passed')
    p.add_argument('--portable', action='store_true', help='as other machines and other seeds would')
    p.add_argument('--failures', type=Path, help='a file to write the failing cells to')
    p.add_argument('-n', type=int, default=os.cpu_count(), help='how many at a time')
    args = p.parse_args()
    every = [*root.glob('nbs/*.ipynb'), *root.glob('nbs/tutorials/*.ipynb')]
    paths = [o.resolve() for o in args.paths or every]
    paths.sort(key=lambda o: -o.stat().st_size)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('MPLBACKEND', 'agg')
    if args.portable: failures = portable(paths, ['-n', str(args.n)])
    else: failures = run_all(paths, args.save, args.n)
    if args.failures: args.failures.write_text('\n'.join(failures), encoding='utf-8')
    elif failures: print('\ncells that failed:\n' + '\n'.join(failures))
    if failures: sys.exit(f'{len(failures)} failed')
    print(f'{len(paths)} notebooks passed')

if __name__=='__main__': main()
