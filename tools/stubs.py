"""Writes lossbook/*.pyi, from which editors and type checkers complete and check. The names and
their order come from the sources, the signatures from `inspect.signature`: a class that is made
`of` a function has its constructor from there, and `import lossbook as lb` finds its names late."""
import ast, inspect, re, sys
from functools import cached_property
from importlib import import_module
from pathlib import Path
from textwrap import indent
from torch import nn

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
lib = root/'lossbook'
header = '# written by tools/stubs.py\n# mypy: disable-error-code="override"\n'
keep = {'property', 'staticmethod', 'classmethod', 'cached_property', 'dataclass', 'abstractmethod'}

def definition(f):
    "The syntax of a function's definition"
    try: src = inspect.getsource(inspect.unwrap(f))
    except (OSError, TypeError): return
    node = ast.parse(inspect.cleandoc('\n'+src)).body[0]
    return node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None

def type_text(a):
    "An annotation that is no source text: by its name, where it is a class or a union of them"
    if a is inspect.Parameter.empty: return ''
    if isinstance(a, str): return a
    return 'None' if a is None else a.__name__ if isinstance(a, type) else repr(a).replace('torch.', '')

def notes(f):
    "The annotation of each parameter of `f` as it is written, and of what it gives as 'return'"
    res = {k: type_text(p.annotation) for k,p in inspect.signature(f).parameters.items()}
    if (node := definition(getattr(f, '__delwrap__', f))):
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        res |= {a.arg: ast.unparse(a.annotation) for a in args if a and a.annotation}
        if node.returns: res['return'] = ast.unparse(node.returns)
    bad = ('any', 'callable', '<')  # builtins that are no types
    return {k: v for k,v in res.items() if v and not v.startswith(bad)}

def default(v):
    "The default of a parameter, where it is a plain number or word"
    return repr(v) if isinstance(v, (int, float, str, type(None))) and repr(v).isprintable() and v == v else '...'

def signature(f, returns=None):
    "The signature of `f` as text"
    ann,res,star = notes(f),[],False
    for k,p in inspect.signature(f).parameters.items():
        if p.kind is p.KEYWORD_ONLY and not star: res.append('*')
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        s,a = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')+k,ann.get(k, '')
        if p.default is None and a and 'None' not in a: a += ' | None'
        if a: s += f': {a}'
        if p.default is not p.empty: s += f' = {default(p.default)}' if a else f'={default(p.default)}'
        res.append(s)
    returns = returns or ann.get('return', '')
    return f'({", ".join(res)})' + (f' -> {returns}' if returns else '')

def value_type(v, names):
    "The type of a value, by a name that the module has"
    t = type(v)
    plain = t in (bool, int, float, str, dict, list, tuple, set)
    return t.__name__ if plain or names.get(t.__name__) is t else 'Any'

def attribute(a, p):
    "The type of what a constructor stores: a list of factors became a tensor"
    a = re.sub(r' *\| *Sequence(\[[^]]*\])?', '', a)
    return a if p.default is not None or a.endswith('None') or a == 'Any' else f'{a} | None'

def method(node, f):
    "A method, with the decorators that say what it is"
    decs = [ast.unparse(d) for d in node.decorator_list]
    decs = ''.join(f'@{d}\n' for d in decs if d.partition('(')[0] in keep or d.endswith('.setter'))
    f = f.fset if '.setter' in decs else getattr(f, 'fget', None) or getattr(f, '__func__', None) or f
    f = f.func if isinstance(f, cached_property) else f
    return f'{decs}def {node.name}{signature(f)}: ...'

def class_text(node, cls, names):
    "A class with its attributes, its constructor and its methods"
    bases = [ast.unparse(o) for o in node.bases]
    decs = ''.join(f'@{d}\n' for d in map(ast.unparse, node.decorator_list) if d.partition('(')[0] in keep)
    own,body,made = vars(cls),[],vars(cls).get('__init__')
    defined = {o.name for o in node.body if isinstance(o, ast.FunctionDef)}
    if made and '__init__' not in defined and 'dataclass' not in decs:
        ann,params = notes(made),list(inspect.signature(made).parameters.values())[1:]
        ann = {p.name: attribute(ann.get(p.name, 'Any'), p) for p in params}
        body += [f'{k}: {a}' for k,a in ann.items()]
        body.append(f'def __init__{signature(made, "None")}: ...')
    else: ann = {}
    for o in node.body:
        if isinstance(o, ast.FunctionDef) and o.name in own:
            body.append(method(o, own[o.name]))
            if o.name == 'forward' and issubclass(cls, nn.Module): body.append(body[-1].replace('forward', '__call__', 1))
        elif isinstance(o, ast.AnnAssign) and o.target.id not in ann:
            body.append(f'{o.target.id}: {ast.unparse(o.annotation)}' + (' = ...' if o.value else ''))
        elif isinstance(o, ast.Assign):
            ks = [k.id for t in o.targets for k in ast.walk(t) if isinstance(k, ast.Name)]
            body += [f'{k}: {value_type(getattr(cls, k, None), names)}' for k in ks if k not in ann]
    head = f'{decs}class {node.name}' + (f'({", ".join(bases)})' if bases else '')
    return f'{head}:\n{indent(chr(10).join(body), "    ")}' if body else f'{head}: ...'

def statements(body):
    "What stands at the top level, `if` and `try` opened"
    for o in body:
        if isinstance(o, (ast.If, ast.Try)): yield from statements([*o.body, *o.orelse])
        else: yield o

def import_text(o):
    "An import; what has no types of its own, or may be missing, is nothing to complain of"
    names = [a.name for a in o.names] if isinstance(o, ast.Import) else ['torch' if o.level else o.module]
    typed = {*sys.stdlib_module_names, 'torch', 'numpy', lib.name}
    return ast.unparse(o) + '  # type: ignore' * bool({n.partition('.')[0] for n in names} - typed)

def module_text(mod):
    "The stub of a module: its imports, and all that it defines"
    names,imports,res = vars(mod),['from typing import Any'],[]
    for o in statements(ast.parse(Path(mod.__file__).read_text(encoding='utf-8')).body):
        if isinstance(o, (ast.Import, ast.ImportFrom)): imports.append(import_text(o))
        elif isinstance(o, ast.Assign):
            ks = [k.id for t in o.targets for k in ast.walk(t) if isinstance(k, ast.Name) and isinstance(k.ctx, ast.Store)]
            res += [ast.unparse(o) if k == '__all__' else f'{k}: {value_type(names.get(k), names)}' for k in ks]
        elif isinstance(o, ast.AnnAssign): res.append(f'{o.target.id}: {ast.unparse(o.annotation)}')
        elif isinstance(o, ast.FunctionDef): res.append(f'def {o.name}{signature(names[o.name])}: ...')
        elif isinstance(o, ast.ClassDef): res.append(class_text(o, names[o.name], names))
    return '\n'.join([*imports, '', *res])

def exports(skip=()):
    "An import for each public name of the chapters"
    mods = {p.stem: import_module(f'{lib.name}.{p.stem}') for p in chapters()}
    pairs = {k: m for m in sorted(mods, key=lambda m: m != 'core', reverse=True) for k in mods[m].__all__}
    return {k: f'from .{m} import {k} as {k}' for k,m in sorted(pairs.items(), key=lambda o: o[::-1]) if k not in skip}

def chapters(): return [p for p in sorted(lib.glob('*.py')) if not p.name.startswith('_') and p.stem != 'all']

def write():
    "Write the stubs of all modules, and delete those whose module is gone"
    texts = {p.stem: module_text(import_module(f'{lib.name}.{p.stem}')) for p in chapters()}
    names = import_module(f'{lib.name}.all').__all__
    all_names = {k: o for k,o in exports().items() if k in names}
    texts['all'] = '\n'.join([*all_names.values(), '', f'__all__ = {list(all_names)}'])
    mods = [*texts]
    lazy = [f'from . import {k} as {k}' for k in mods] + list(exports(mods).values())
    texts['__init__'] = '\n'.join([*lazy, '', '__version__: str'])
    for p in lib.glob('*.pyi'):
        if p.stem not in texts: p.unlink()
    for k,s in texts.items(): (lib/f'{k}.pyi').write_text(f'{header}{s}\n', encoding='utf-8')

if __name__ == '__main__': write()
