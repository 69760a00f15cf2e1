"""The site tool. `build` renders the notebooks to docs/ and writes README.md, `fresh` finds
generated files that are stale, `quickstart` runs the landing page. nbdev processes the notebooks
and smalldocs renders them; here stands what those two leave undone. docs/ comes out the same,
byte for byte, from any folder."""
import ast, base64, hashlib, json, os, re, shutil, subprocess, sys, time, warnings
from argparse import ArgumentParser
from html import unescape
from html.parser import HTMLParser
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from posixpath import dirname, join as urljoin, normpath
from urllib.parse import unquote
import yaml
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.clean import nbdev_clean
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, _build_modidx, nbdev_export, nbglob
import onepage
from entries import signature

root = Path(__file__).resolve().parents[1]
nbs,proc,docs,readme = root/'nbs',root/'_proc',root/'docs',root/'README.md'
site,tools = proc/'docs',root/'tools'
lib = get_config(root).lib_name
parts = {0: 'How it is built', 1: 'Classification', 2: 'Spans', 3: 'Regression',
    4: 'Margins and pairs', 6: 'fastai and other trainers'}
aliases = {'F': 'torch.nn.functional', 'nn': 'torch.nn'}
origin,findings,entry_names = {},[],{}  # the notebook of each page; what is wrong; the entries of each page

def fail(*lines):
    "Print one line per finding and stop"
    print(*lines, sep='\n', file=sys.stderr)
    sys.exit(1)

def find(where, what): findings.append(f'{origin.get(where, where)}: {what}')
def text(x): return ''.join(x) if isinstance(x, list) else x
def notebooks(): return sorted(Path(o).relative_to(nbs) for o in nbglob(nbs))
def sources(p): return [c.source for c in read_nb(nbs/p).cells]

def settled(x): return named(re.sub(r'[^\n]*\r', '', text(x)))  # progress bars overwrite their line
def named(x): return re.sub(r'\b__main__\.(?=[A-Za-z_])', '', text(x))  # that a notebook defines it is no news

def plain_output(x):
    "An output without what pandas and the notebook add to it"
    return re.sub(r'<style scoped>.*?</style>\n?', '', named(x), flags=re.S)

def page_of(p):
    "The page of a notebook, both relative to their folder: 13_focal.ipynb -> focal.html"
    return nbpath2html(p).as_posix()

# ---- nbs/ -> _proc/

def check_installed():
    "Doclinks are found through the entry point of the installed package, or vanish silently"
    eps,spec = [o for o in entry_points(group='nbdev') if o.name == lib],find_spec(lib)
    if eps and spec and spec.origin and Path(spec.origin).resolve().parent == root/lib: return
    fail(f'{lib} is not installed from this folder, so doclinks would vanish: run `make docs`')

def check_notebooks():
    "Find what nbdev would drop without a word"
    for p in notebooks():
        where,page = f'nbs/{p.as_posix()}',page_of(p)
        if page in origin: find(where, f'has the same page as {origin[page]}')
        origin[page] = where
        cells = [c.source.strip() for c in read_nb(nbs/p).cells if c.cell_type == 'markdown']
        title = cells[0] if cells else ''
        if not re.match(r'# \S', title): find(where, 'the first markdown cell is not a `# Title`')
        lost = [l for l in title.splitlines()[1:] if not re.match(r'>|- \w+:|\s*$', l)]
        if lost: find(where, f'text in the title cell vanishes, give it its own cell: {lost[0]}')

class Links:
    "Mends the links of one page: doclinks, and links to notebooks, which lose their number"
    link = re.compile(r'(?P<text>(?<!!)\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<url>[^()\s]+)\)'
        r'|`(?P<sym>[A-Za-z][\w.]*)(?:\(\))?`')
    number = re.compile(r'((?:\]\(|\]: |href=")[^\s()"]*?)\b\d+[a-zA-Z0-9]*_(\w+\.ipynb)')
    doclink = re.compile(r'\[(`[^`]*`)\]\([^()\s]*\)')
    fragment = re.compile(r'(?P<page>[\w./-]*)\.ipynb#(?P<frag>[^\s()"]+)')

    def __init__(self, page, entries, helpers, modules):
        self.page,self.entries,self.helpers,self.modules = page,entries,helpers,modules
        self.lookup = NbdevLookup()
        fastai = [k for k in self.lookup.syms if re.match(r'fastai\.[\w.]+\.[A-Z]\w+$', k)]
        self.fastai = {k.split('.')[-1]: k for k in fastai}

    def own(self, url, txt):
        "Where a doclink to this book goes: a method without an entry of its own goes to its class"
        page,_,frag = url[1:].partition('#')
        if not frag: return url
        ids = self.entries.get(page, {})
        def match(f): return sorted((n for n in ids if n.lower() == f), key=lambda n: n not in txt)
        for n in match(frag) or match(frag.rpartition('.')[0]): return f'/{page}#{ids[n]}'
        if frag.startswith('_') or frag.partition('.')[0] in self.helpers.get(page, ()): return
        find(self.page, f'doclink that leads nowhere: {txt} on {page}')

    def symbol(self, s):
        "Where a symbol goes that nbdev has not linked: `F.relu`, `Learner`, `lossbook.core`"
        pre,_,post = s.partition('.')
        if s in self.modules: return '/' + self.modules[s]
        lost = pre == lib and post and not exists(s)
        if lost: find(self.page, f'doclink that leads nowhere: `{s}`')
        if pre in aliases and post: s = f'{aliases[pre]}.{post}'
        return self.lookup.doc(self.fastai.get(s, s))

    def place(self, m):
        "A heading as Jupyter writes it, #The-idea, or an entry, where `Scan` beside `scan` keeps its capital"
        page = normpath(urljoin(dirname(self.page), f'{m["page"]}.html'))
        frag = self.entries.get(page, {}).get(m['frag'], m['frag'].lower())
        return f'{m["page"]}.ipynb#{frag}'

    def one(self, m):
        if m['sym']: return f'[{m[0]}]({url})' if (url := self.symbol(m['sym'])) else m[0]
        txt = self.doclink.sub(r'\1', m['text'][1:-1])  # a doclink inside a link
        url = self.own(m['url'], txt) if m['url'].startswith('/') else m['url']
        return f'[{txt}]({url})' if url else txt

    def __call__(self, md):
        out,fence = [],''
        for l in md.splitlines():
            if m := re.match(r'\s*(```|~~~)', l): fence = '' if fence == m[1] else fence or m[1]
            elif re.match('#+ ', l): l = self.doclink.sub(r'\1', l)  # a heading links to itself
            elif not fence:
                l = self.number.sub(r'\1\2', self.link.sub(self.one, l))
                l = self.fragment.sub(self.place, l)
            out.append(l)
        return '\n'.join(out)

def module_of(code):
    "The module that a notebook exports to"
    m = re.search(r'^#\|\s*default_exp:?\s+(\S+)', code, re.M)
    return m and f'{lib}.{m[1]}'

def helper_names(code):
    "What the `exporti` cells of a notebook define, in lower case as nbdev's links have it"
    cells = [c for c in code if re.search(r'^#\|\s*exporti\b', c, re.M)]
    return {n.lower() for c in cells for n in re.findall(r'^(?:async )?(?:def|class) (\w+)', c, re.M)}

def exists(s):
    "Is `s` a module or an attribute of one?"
    pre,_,name = s.rpartition('.')
    try:
        if find_spec(s): return True
    except ImportError: pass
    return bool(pre) and exists(pre) and hasattr(__import__(pre, fromlist=[name]), name)

def shown(cell):
    "The symbol that a cell documents"
    m = re.search(r'^show_doc\(([\w.]+)', cell.source, re.M)
    return m[1] if m and cell.cell_type == 'code' else ''

def entry_ids(cells):
    "The id of each entry as nbdev's links have it; `Scan` beside `scan` keeps its capital"
    ids = {}
    # lower-case names first, so that a class beside a function of its name keeps its capital
    for n in sorted(filter(None, map(shown, cells)), key=lambda n: n!=n.lower()):
        ids[n] = n if n.lower() in ids.values() else n.lower()
    return ids

def entry(cell, after, classes, ids, code):
    "A `show_doc` cell as markdown: name, docstring, import, and the signature unless the source follows"
    name = shown(cell)
    md = ''.join(text(o['data'].get('text/markdown', '')) for o in cell.outputs if 'data' in o)
    md = re.sub(r'^(---|\[source\]\(.*)\n+', '', md, flags=re.M)
    md = re.sub(r'^(#+) .*$', rf'\1 `{name}` {{#{ids[name]} .entry}}', md, count=1, flags=re.M)
    sig = re.search(r'^```python\n.*?^```\n*', md, re.M|re.S)
    if not sig: return mk_cell(md, 'markdown')
    new = sig[0]
    new = re.sub(r' at 0x[0-9a-f]+|:NoneType|torch\.(?=Tensor)|\b(collections\.abc|typing)\.', '', new)
    new = re.sub(r'\btorch\.nn\.modules\.\w+\.', 'nn.', new)
    new = re.sub(r'^[^#\n]+', lambda m: m[0].replace(' | ', '|'), new, flags=re.M)
    if name in classes:  # one that is made `of` a function has that function's comment on what it returns
        new = re.sub(r'^\)(->.*)?:.*', '):', new.replace(f'def {name}', f'class {name}'), flags=re.M)
    last,top = name.split('.')[-1],name.split('.')[0]
    follows = re.search(rf'^(async def|def|class) {last}\b', after, re.M)
    parts = [md.replace(sig[0], ''), f'`from {module_of(code)} import {top}`']
    return mk_cell('\n\n'.join(parts + ([] if follows else [signature(last, new, code)])), 'markdown')

def in_order(cells, code):
    "nbdev adds entries for the definitions of a cell backwards, around it: put them in order, before it"
    define,res = r'^(?:async )?(?:def|class) (\w+)',[]
    pos = {n: i for i,n in enumerate(re.findall(define, code, re.M))}
    def name(c): return shown(c).split('.')[-1] if getattr(c, 'has_sd', False) else ''
    for c in cells:
        last = res[-1].source if res else ''
        own = re.findall(define, last, re.M) if '#| exports' in last else ()
        res.insert(len(res) - (name(c) in own), c)
    runs = [list(g) for _,g in groupby(res, lambda c: name(c) in pos)]
    return [c for g in runs for c in sorted(g, key=lambda c: pos.get(name(c), 0))]

def kept(cell):
    "nbdev deletes the code that is not for the page; `#| exporti` with `code-fold` is for it, folded or shown"
    d = cell.directives_
    wanted = 'exporti' in d and 'code-fold' in d and 'hide' not in d
    unshown = {'export', 'exporti', 'hide', 'default_exp'} & d.keys()
    if cell.cell_type == 'code' and unshown and not wanted: del cell['source']

def fold(src):
    "The source of a cell without nbdev's directives; what is folded says so on its summary"
    src = re.sub(r'^#\| code-fold: show\n(#\| code-summary: "Exported source"\n)?', '', src, flags=re.M)
    src = re.sub(r'^#\| export[is]?:.*\n', '', src, flags=re.M)
    named = not re.search(r'^#\| code-fold:', src, re.M) or re.search(r'^#\| code-summary:', src, re.M)
    return src if named else f'#| code-summary: "Implementation"\n{src}'

def mend(nb, ids, code, links):
    "Change what smalldocs reads otherwise than Quarto"
    from smalldocs.markdown import pandoc_id
    def heading(m):  # leaves an id to the entry that owns it
        name = pandoc_id(m[1].replace('`', ''))
        return f'{m[0]} {{#{name}-section}}' if name in ids.values() else m[0]
    classes = re.findall(r'^class (\w+)', code, re.M)
    cells = [c for c in nb.cells if not c.source.startswith('<!-- WARNING: THIS FILE WAS AUTO')]
    nb.cells = in_order(cells, code)
    for i,c in enumerate(nb.cells):
        if c.cell_type == 'raw': c.set_source(re.sub(r'\noutput-file:.*', '', c.source))
        elif c.cell_type == 'markdown':
            md = re.sub(r'\A(#\|.*\n)+', '', c.source)  # `#| export` leaks
            c.set_source(links(re.sub(r'^##+ ([^{}\n]+)$', heading, md, flags=re.M)))
        elif shown(c):
            after = next((o for o in nb.cells[i+1:] if not shown(o)), c).source
            nb.cells[i] = entry(c, after, classes, ids, code)
            nb.cells[i].set_source(links(nb.cells[i].source))
        else:
            c.set_source(fold(c.source))
            for o in c.outputs:
                if 'text' in o: o['text'] = settled(o['text'])
                d = o.get('data', {})
                d.update({k: plain_output(d[k]) for k in ('text/plain', 'text/html') if k in d})
                if 'text/markdown' in d: d['text/markdown'] = links(text(d['text/markdown']))

def stage():
    "Process the notebooks into _proc, under the names of their pages; gives the sidebar's entries"
    from nbdev import processors, serve
    class Kept(processors.FilterDefaults):
        def base_procs(self): return [kept if o is processors.rm_export else o for o in super().base_procs()]
    do_eval = processors._do_eval
    def needed(cell):  # nbdev runs what imports anything anywhere; entries need definitions and imports alone
        run = do_eval(cell)
        defines = {'export', 'exports', 'exporti', 'exec_doc'} & cell.directives_.keys() or shown(cell)
        return run and (defines or all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in cell.parsed_()))
    serve.FilterDefaults,processors._do_eval = Kept,needed
    _build_modidx()
    shutil.rmtree(proc, ignore_errors=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        try: serve.proc_nbs(n_workers=0)
        except Exception as e: fail(f'nbdev cannot process the notebooks: {e}')
    staged = {p: read_nb(proc/p) for p in notebooks()}
    code = {p: '\n'.join(sources(p)) for p in staged}
    helpers = {page_of(p): helper_names(sources(p)) for p in staged}
    for w in sorted({str(w.message) for w in warned if 'imports and other code' in str(w.message)}):
        line = next(l for l in w.split('---')[1].splitlines() if 'import' in l)
        page = next((page_of(p) for p in code if line in code[p].splitlines()), 'nbs')
        find(page, f'imports need a cell of their own: {line}')
    entries = {page_of(p): entry_ids(nb.cells) for p,nb in staged.items()}
    entry_names.update({k: set(v.values()) for k,v in entries.items()})
    modules = {module_of(s): page_of(p) for p,s in code.items() if module_of(s)}
    for p,nb in staged.items():
        mend(nb, entries[page_of(p)], code[p], Links(page_of(p), entries, helpers, modules))
        (proc/p).unlink()
        write_nb(nb, (proc/page_of(p)).with_suffix('.ipynb'))
    return sidebar(staged)

def sidebar(pages):
    "A reader's order: the losses by the tens of the file number, tutorials and their evidence, the rest, and last part 0"
    def section(p):
        if p.name == 'evidence.ipynb' or len(p.parts) > 1: return 5,'Tutorials'
        if p.name == '61_catalog.ipynb': return 9,parts[0]
        if not p.name[0].isdigit(): return 7,'To look up'
        n = int(p.name[0])
        return n or 9,parts.get(n, 'More chapters')
    first,groups = [Path(o) for o in ('index.ipynb', '62_which_loss.ipynb') if Path(o) in pages],{}
    for p in sorted(set(pages) - set(first), key=lambda p: (section(p), p)):
        groups.setdefault(section(p)[1], []).append(link_of(p))
    return [link_of(p) for p in first] + [dict(section=k, contents=v) for k,v in groups.items()]

def link_of(p): return Path(page_of(p)).with_suffix('.ipynb').as_posix()

# ---- _proc/ -> docs/

def skip_folded(rules):
    "Have smalldocs leave folded code out of the search index"
    search_text = rules.search_text
    def unfolded(self, state):
        tokens = state.tokens
        state.tokens = [t for t in tokens if 'code-fold="true"' not in t.info]
        search_text(self, state)
        state.tokens = tokens
    rules.search_text = unfolded

def found(o, words):
    "A row of the search index: formulas as text, what kind it is, the words that its chapter wants to be found by"
    tex = re.sub(r'\\(?:mathrm|text|frac|operatorname|[,;! ()\[\]])|[{}]', '', o['text'])
    tex = re.sub(rf' from {lib}[\w.]* import \w+(?= |$)', '', tex)  # of an entry
    o = dict(o, text=re.sub(r'\\([a-z]+)', r'\1', tex))
    o.pop('objectID')
    path,_,frag = o['href'].partition('#')
    if frag in entry_names.get(path, ()): o['entry'] = 1
    last = 'setup', 'when-it-refuses', 'questions', 'exercises', 'sources', 'sources-and-exercises'
    if frag in last or re.match(r'nbs/(0|a_to_z|all|benchmarks|bibliography)', origin[path]): o['behind'] = 1
    if not frag and path in words: o['words'] = words[path]
    return o

def chapter_words():
    "What a chapter wants to be found by: `- search: a, b` in its title cell"
    found = {page_of(p): re.search(r'^- search: *(.+)$', '\n'.join(sources(p)[:2]), re.M) for p in notebooks()}
    return {k: m[1] for k,m in found.items() if m}

def render(contents):
    "Render _proc with smalldocs, then have formulas and search work offline, and pictures as files"
    from smalldocs.site import build as smalldocs
    from smalldocs.layout import KATEX
    from smalldocs.llms import NB_ORDER
    from smalldocs.markdown import Rules
    words = chapter_words()
    skip_folded(Rules)
    NB_ORDER.sort(key='text/markdown'.__ne__)  # a copy for models has no use for HTML where there is both
    cfg,own = yaml.safe_load((nbs/'_quarto.yml').read_text()),get_config()
    cfg.pop('metadata-files', None)
    cfg['project']['output-dir'] = site.name
    cfg['website'].update(title=own.title, description=own.description)
    cfg['website'].update({k: v for k,v in {'repo-url': own.git_url, 'site-url': own.doc_url}.items() if v})
    cfg['website']['sidebar']['contents'] = contents
    (proc/'_quarto.yml').write_text(yaml.safe_dump(cfg, sort_keys=False))
    try: res = smalldocs(proc, quiet=True)
    except Exception as e: fail(f'smalldocs cannot render the site: {e}')
    for w in res.warnings:  # check_site finds the dead links
        if 'broken link' not in w: find('renderer', w)
    for p in site.glob('sitemap.xml'): p.write_text(re.sub(r'\s*<lastmod>.*?</lastmod>', '', p.read_text()))  # the time of the build
    libs = site/'site_libs'
    for lib in ('katex', 'uplot'): shutil.copytree(tools/lib, libs/lib)
    for o in (tools/'moving.js', tools/'catalog.js', nbs/'catalog.css'): shutil.copy(o, libs)
    css = libs/'katex'/'katex.min.css'
    css.write_text(re.sub(r',url\([^)]*\.(woff|ttf)\) format\("\w+"\)', '', css.read_text()))
    index = [found(o, words) for o in json.loads((site/'search.json').read_text())]
    rows = ',\n'.join(json.dumps(o, ensure_ascii=False) for o in index)
    (libs/'search.js').write_text(f'window.searchIndex = [\n{rows}\n];\n{(tools/"search.js").read_text()}')
    (site/'search.json').unlink()
    js = libs/'smalldocs.js'
    code,n = re.subn(r'(?s)const r = await fetch\(.*?await r\.json\(\);', search_js, js.read_text())
    code,m = re.subn(r'(?s)fuse \? fuse\.search\(.*?slice\(0, limit\)', 'window.lossbookSearch(index, q, limit)', code)
    if (n,m) != (1,1): fail('smalldocs.js no longer searches as it did: mend tools/docs.py')
    js.write_text(code)
    for p in site.rglob('*.llms.md'):
        md = re.sub(r' \{#.* \.entry\}$', '', p.read_text(), flags=re.M)
        p.write_text(re.sub(r'<div class="moving".*?</div>', '', md))
    for p in site.rglob('*.html'):
        up = '../' * (len(p.relative_to(site).parts)-1)
        html = re.sub(r' id="cell-\d+"| role="navigation"', '', p.read_text())
        html = pictures(accessible(html.replace(KATEX, f'{up}site_libs/katex')), p)
        p.write_text(tables(moving(html, up), up))
    return len(res.pages)

def accessible(html):
    "What a screen reader, a keyboard and a phone need and smalldocs leaves out"
    # the sections of the sidebar are always open, so their headings are no switches
    html = re.sub(r'<a class="(sidebar-item-text [^"]*)" data-bs-toggle[^>]*>(.*?)</a>', r'<span class="\1">\2</span>', html)
    html = re.sub(r'<a [^>]*sidebar-item-toggle.*?</a>', '', html)
    for name,nav in dict(Site='class="navbar ', Chapters='id="quarto-sidebar"', Neighbours='class="page-navigation').items():
        html = html.replace(f'<nav {nav}', f'<nav aria-label="{name}" {nav}')
    html = re.sub(r'<th([^>]*)>\s*</th>', r'<td\1></td>', html)
    # what may scroll can be reached
    html = re.sub(r'<pre(?![^>]*sourceCode)([^>]*)>', r'<pre\1 tabindex="0">', html)
    html = re.sub(r'(<div class="(?:sd-table|cell-output cell-output-display)[^"]*")>', r'\1 tabindex="0">', html)
    toc = re.search(r'<nav id="TOC".*?</h2>(.*?)</nav>', html, re.S)
    if not toc: return html
    links = re.sub(r' (id|class|data-scroll-target)="[^"]*"', '', toc[1])
    fold = f'<details class="on-this-page"><summary>On this page</summary>{links}</details>'
    return re.sub(r'id="title-block-header".*?</header>', lambda m: m[0]+fold, html, count=1, flags=re.S)

def digest(b): return hashlib.sha1(b).hexdigest()[:12]

def png_size(b):
    "Width and height at 100 points an inch, as the page shows a picture of any density; so its words are of one size"
    w,h = (int.from_bytes(b[i:i+4], 'big') for i in (16,20))
    i = b.find(b'pHYs', 0, 4000)
    scale = 100/(int.from_bytes(b[i+4:i+8], 'big')*.0254) if i > 0 and b[i+12] == 1 else 1
    return round(w*scale),round(h*scale)

def svg_size(s):
    w,h = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', s).groups()
    return round(float(w)*100/72),round(float(h)*100/72)

drawn_svg = re.compile(r'<svg((?: alt="[^"]*")?) (xmlns:xlink=[^>]* version="1.1">.*?</svg>)', re.S)

def pictures(html, page):
    "Point the pictures of a page to the files of its markdown copy, named by their content"
    files,copy = page.with_name(f'{page.stem}_files'),page.with_suffix('.llms.md')
    for p in list(files.glob('*')):
        p.write_bytes(p.read_bytes().strip() + b'\n' if p.suffix == '.svg' else p.read_bytes())
        new = p.with_stem(digest(p.read_bytes()))
        copy.write_text(copy.read_text().replace(f'/{p.name}', f'/{new.name}'))
        p.rename(new)
    def look(b, ext, size):  # with its size, so that nothing moves when it loads
        size = ' width="{}" height="{}"'.format(*size) if size else ''
        return f'src="{files.name}/{digest(b)}.{ext}"{size} loading="lazy"'
    def src(m):
        b = base64.b64decode(m[2])
        return look(b, m[1], png_size(b) if m[1] == 'png' else None)
    def svg(m):
        text = f'<svg {m[2]}\n'
        return f'<img{m[1]} {look(text.encode(), "svg", svg_size(text))} class="img-fluid drawing">'
    return drawn_svg.sub(svg, re.sub(r'src="data:image/(\w+);base64,([^"]+)"', src, html))

def moving(html, up):
    "The script that moves the pictures of a page, if it has any"
    if '<div class="moving"' not in html: return html
    libs = f'{up}site_libs'
    head = f'<link rel="stylesheet" href="{libs}/uplot/uPlot.min.css">\n'
    for js in ('uplot/uPlot.iife.min.js', 'moving.js'): head += f'<script defer src="{libs}/{js}"></script>\n'
    return html.replace('</head>', f'{head}</head>', 1)

def tables(html, up):
    "The script and the style of the catalogue and of *Which loss?*, for a page that has one of their tables"
    if not re.search('class="(catalog|questions|cards)', html): return html
    libs = f'{up}site_libs/catalog'
    html = html.replace('</head>', f'<link rel="stylesheet" href="{libs}.css">\n</head>', 1)
    # before the script that sets formulas, since this one reads the text of the rows
    return html.replace('<script src', f'<script defer src="{libs}.js"></script>\n<script src', 1)

# a page opened from disk may not fetch, but it may load a script
search_js = '''await new Promise((done, failed) => {
        const s = document.createElement("script");
        s.src = offset + "site_libs/search.js"; s.onload = done; s.onerror = failed;
        document.head.append(s);
      });
      index = window.searchIndex;'''

class Page(HTMLParser):
    "What a page has and asks for"
    def __init__(self, path):
        super().__init__()
        self.ids,self.links,self.loads,self.alts,self.twice,self.pics = set(),[],[],[],[],0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        if (i := d.get('id')): (self.twice.append if i in self.ids else self.ids.add)(i)
        if tag == 'a' and d.get('href'): self.links.append(d['href'])
        elif tag != 'a': self.loads += [d[k] for k in ('src', 'href', 'data', 'poster') if d.get(k)]
        self.pics += tag in ('img', 'svg')
        named = (d.get('alt') or d.get('aria-label') or '').strip()
        if tag in ('img', 'svg') and not named: self.alts.append(self.pics)

def check_site():
    "Links, fragments, alt texts and hosts"
    pages = {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob('*.html'))}
    files = {p.relative_to(site).as_posix() for p in site.rglob('*') if p.is_file()}
    def local(name, url):
        "Path and fragment of a local address"
        path,_,frag = (unquote(o) for o in re.sub(r'\?[^#]*', '', url).partition('#'))
        return normpath(urljoin(dirname(name), path)) if path else name, frag
    for name,page in pages.items():
        for url in dict.fromkeys(page.loads + page.links):
            if re.match(r'(?!file:)[a-z]+:|//', url):
                away = url in page.loads and not url.startswith('data:')
                if away: find(name, f'loads from another host: {url}')
                continue
            path,frag = local(name, url)
            if path not in files: find(name, f'dead link: {url}')
            elif frag and frag not in pages[path].ids: find(name, f'dead fragment: {url}')
        for i in page.alts: find(name, f'picture {i} on the page has no alt text')
        for i in page.twice: find(name, f'two elements have the id {i}')
    for p in sorted(site.rglob('*.css')):
        where = p.relative_to(site).as_posix()
        for url in re.findall(r'''(?:@import\s+|url\(\s*)+['"]?([^'")\s;]+)''', p.read_text()):
            if re.match(r'https?:|//', url): find(where, f'loads from another host: {url}')
            elif not url.startswith(('data:', '#')) and local(where, url)[0] not in files:
                find(where, f'dead link: {url}')

# ---- docs/llms.txt

def write_llms():
    "After the list of pages that smalldocs writes: what to remember, from the skill, and a line for each entry"
    path = site/'llms.txt'
    skill = next(c for c in sources(Path('skill.ipynb')) if '## Things to remember' in c)
    api = []
    for p in sorted(site.glob('*.llms.md')):
        for k,doc in re.findall(r'^### `([\w.]+)`\n\n\*(.*)\*$', p.read_text(), re.M):
            api.append(f'- [{k}]({p.name}): ' + re.sub(r'\[([^\[\]]*)\]\([^()]*\)', r'\1', doc))
    parts = [path.read_text().strip(), re.sub(r'\A(#\|.*\n)+', '', skill).strip().replace(r'\*', '*'), '## API', '\n'.join(api)]
    path.write_text('\n\n'.join(parts) + '\n')

# ---- index.ipynb -> README.md

def fence(s, lang=''): return f'```{lang}\n{s.rstrip()}\n```'

def table(html):
    "An HTML table as markdown"
    def cell(s): return unescape(re.sub(r'<[^>]+>', '', s)).strip().replace('|', r'\|')
    rows = re.findall(r'<tr\b.*?</tr>', html, re.S)
    rows = [[cell(s) for s in re.findall(r'<t[hd]\b[^>]*>(.*?)</t[hd]>', r, re.S)] for r in rows]
    rows.insert(1, ['---']*len(rows[0]))
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in rows)

def shown_output(o, d):
    "One saved output as markdown"
    data = {k: text(v) for k,v in o.get('data', {}).items()}
    if 'text' in o: return fence(settled(o['text'])) if settled(o['text']).strip() else ''
    if (svg := data.get('image/svg+xml')) or 'image/png' in data:
        pic = f"{digest((svg.strip()+chr(10)).encode())}.svg" if svg else f"{digest(base64.b64decode(data['image/png']))}.png"
        alt,cap = ((d.get(k) or '').strip('"') for k in ('fig-alt', 'fig-cap'))
        return f'![{alt}](docs/index_files/{pic})' + (f'\n\n*{cap}*' if cap else '')
    if '<table' in data.get('text/html', ''): return table(data['text/html'])
    if 'text/markdown' in data: return data['text/markdown']
    return fence(data['text/plain']) if 'text/html' not in data and data.get('text/plain') else ''

def how_to_open(url):
    "Where the book is to be read, which a README on a code host has to say"
    there = f'on [its site]({url}), or in a checkout: open' if url else 'open'
    return f'**To read the book**, {there} [docs/index.html](docs/index.html) in a browser. It needs neither a server\n' \
        'nor a network. [docs/lossbook.html](docs/lossbook.html) is all of it on one page. Links below go to the notebooks.'

def folded(md, d):
    "Code that is folded on the page is folded in README.md, too"
    if d.get('code-fold') != 'true': return md
    name = d.get('code-summary', 'Code').strip('"')
    return f'<details><summary>{name}</summary>\n\n{md}\n\n</details>'

def write_readme():
    "The landing page as README.md: links go to the notebooks or to pages of docs/, and so do pictures"
    def link(m): return f'{m[1]}({"docs" if ".html" in m[2] else "nbs"}/{m[2].partition("#")[0]})'
    def callout(m): return re.sub(r'^', '> ', f'[!{m[1].upper()}]\n{m[2].strip()}', flags=re.M)
    out = []
    for c in read_nb(nbs/'index.ipynb').cells:
        d = {k: v if isinstance(v, str) else ' '.join(v or []) for k,v in c.directives.items()}
        src = re.sub(r'^(#\||.*#\| *hide_line).*\n?', '', c.source, flags=re.M)
        if 'hide' in d or d.get('include') == 'false': continue
        if c.cell_type == 'markdown':
            src = re.sub(r'^::: \{\.callout-(\w+).*?\}\n(.*?)^:::$', callout, src, flags=re.M|re.S)
            src = re.sub(r'^:::.*\n?', '', src, flags=re.M)
            out.append(re.sub(r'(?<!!)(\[[^\[\]]*\])\((?![a-z]+:|[/#])([^()\s]+)\)', link, src))
        elif c.cell_type == 'code' and not {'export', 'exporti', 'default_exp'} & d.keys():
            if d.get('echo') != 'false' and src.strip(): out.append(folded(fence(src.strip(), 'python'), d))
            if d.get('output') != 'false': out += [shown_output(o, d) for o in c.outputs]
    out.insert(1, how_to_open(get_config().doc_url))
    readme.write_text('\n\n'.join(o.strip() for o in out if o.strip()) + '\n')

# ---- the commands

def build():
    "Render the notebooks to docs/ and write README.md, or say why not"
    start = time.time()
    check_installed()
    check_notebooks()
    contents = stage()
    n = render(contents)
    onepage.write(site, contents, lib, get_config().description)
    write_llms()
    check_site()
    if findings: fail(*dict.fromkeys(findings))
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(site, docs)
    shutil.rmtree(proc)
    (docs/'.nojekyll').touch()  # GitHub would not publish names that begin with an underscore
    write_readme()
    print(f'{n} pages in {time.time()-start:.0f} s: open docs/index.html in a browser')

def digests():
    "A digest for each file that is generated or cleaned"
    files = [p for d in (root/lib, nbs, docs) for p in d.rglob('*') if p.is_file()] + [readme]
    skip = {'__pycache__', '.ipynb_checkpoints'}
    files = [p for p in files if p.exists() and not skip & {*p.parts}]
    return {p.relative_to(root).as_posix(): hashlib.sha1(p.read_bytes()).digest() for p in files}

def fresh():
    "Export, clean and build in place, and name each file that this changes"
    old = digests()
    nbdev_export()
    subprocess.run([sys.executable, root/'tools'/'stubs.py'], check=True)
    nbdev_clean()
    build()
    new = digests()
    stale = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    if stale: fail(*(f'stale: {k}' for k in stale))
    print(f'all {len(new)} files are fresh')

def quickstart():
    "Run the code of the landing page, save its last figure and say what it reached"
    import matplotlib.pyplot as plt
    ns = {'__name__': '__main__'}
    os.chdir(nbs)
    for c in read_nb('index.ipynb').cells:
        if c.cell_type != 'code' or c.directives.get('eval') == 'false': continue
        src = re.sub(r'^[%!].*$', '', c.source, flags=re.M)
        exec(compile(src, f'index.ipynb, cell {c.id}', 'exec'), ns)
    if not plt.get_fignums(): fail('quickstart: nbs/index.ipynb draws no figure')
    plt.figure(plt.get_fignums()[-1]).savefig(root/'quickstart.png', bbox_inches='tight', dpi=150)
    if not isinstance(ns.get('reached'), str): fail('quickstart: index sets no string `reached`')
    print(f'quickstart: {ns["reached"]}; its last figure is in quickstart.png')

if __name__ == '__main__':
    os.environ.setdefault('MPLBACKEND', 'agg')
    os.chdir(root)
    p = ArgumentParser(description=__doc__)
    p.add_argument('command', choices=['build', 'fresh', 'quickstart'])
    globals()[p.parse_args().command]()
