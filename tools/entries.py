"""An entry of the reference: how a thing is imported and called, and a table of its parameters, from
the signature that nbdev writes, which has the comments. The copies for language models keep that."""
import ast, re
from html import escape
from textwrap import wrap

def coded(x): return f'<code>{escape(x, quote=False)}</code>' if x else ''
def prose(x): return re.sub(r'`([^`]*)`', r'<code>\1</code>', escape(x, quote=False))

def kind(x):
    "An annotation, which may break between its types"
    return coded(ast.unparse(x).replace(' | ', '|').replace('__main__.', '')).replace('|', '|<wbr>') if x else ''

def arguments(a):
    "(stars, argument, default) of each parameter in order"
    given = [*a.posonlyargs, *a.args]
    yield from (('', o, d) for o,d in zip(given, [None]*(len(given)-len(a.defaults)) + a.defaults))
    if a.vararg: yield '*', a.vararg, None
    yield from (('', o, d) for o,d in zip(a.kwonlyargs, a.kw_defaults))
    if a.kwarg: yield '**', a.kwarg, None

def called(name, a):
    "The signature without types, in lines that fit"
    for _,o,_ in arguments(a): o.annotation = None
    lines = wrap(f'{name}({ast.unparse(a)})', 76, subsequent_indent='    ', break_long_words=False)
    return '\n'.join(['```python', *lines, '```'])

def comment(k, lines):
    "What a line says of the parameter that it ends with"
    ends = re.compile(rf'(?:^|[ ,*(]){k}\b(?:\s*[:=][^#]*)?,? # (.+)$')
    return next((m[1] for l in lines if (m := ends.search(l))), '')

def table(f, lines, elsewhere):
    "A row for each parameter: name, type, default, meaning; what is said of an attribute of the class counts"
    def meaning(k): return comment(k, lines) or next((c for s in elsewhere if (c := comment(k, s.splitlines()))), '')
    rows = [(coded(s+o.arg), kind(o.annotation), kind(d), prose(meaning(o.arg))) for s,o,d in arguments(f.args)]
    back = re.match(r'\)[^#]*# (.+)', lines[-1])
    if back: rows.append(('gives', kind(f.returns), '', prose(back[1])))
    if not rows: return ''
    head = '<thead><tr>' + ''.join(f'<th>{o}</th>' for o in ('name','type','default','meaning')) + '</tr></thead>'
    body = '\n'.join('<tr>' + ''.join(f'<td>{o}</td>' for o in r) + '</tr>' for r in rows)
    return f'<table class="parameters">\n{head}\n<tbody>\n{body}\n</tbody>\n</table>'

def only(where, md): return f'::: {{.content-visible {where}-format="llms-txt"}}\n{md}\n:::'

def signature(name, sig, code):
    "A signature in a fence as the page shows it and as its copy does; `code` is that of the chapter"
    lines = sig.strip().splitlines()[1:-1]
    bare = re.sub(r'^(async def|class)', 'def', '\n'.join(l.partition(' # ')[0] for l in lines))
    f = ast.parse(f'{bare.rstrip()} ...').body[0]
    own = re.search(rf'^class {name}\b.*?(?=^\S|\Z)', code, re.M|re.S)
    rows = table(f, lines, [*([own[0]] if own else []), code])
    return only('unless', f'{called(name, f.args)}\n\n{rows}') + '\n\n' + only('when', sig.strip())
