"""docs/lossbook.html: the book on one page, in the sidebar's order, to print, to read anywhere, to search with a browser.
It is made from the pages as they are rendered; ids get the name of their page, so that links stay within the file."""
import re
from posixpath import dirname, join, normpath

name = 'lossbook.html'
left_out = (r'<nav [^>]*class="page-navigation".*?</nav>', r'<details class="on-this-page">.*?</details>',
    r'<nav class="quarto-page-breadcrumbs quarto-title-breadcrumbs.*?</nav>', r'<script\b.*?</script>', r'<style\b.*?</style>',
    r'<div class="moving".*?</div>', ' loading="lazy"')

def key(page): return page.removesuffix('.html').replace('/', '-')

def link(url, page, pages):
    "Where a link of `page` goes in the one file"
    if re.match(r'[a-z]+:|//', url): return url
    path,_,frag = url.partition('#')
    path = normpath(join(dirname(page), path)) if path else page
    if path == name: return '#contents'
    if path in pages: return f'#{key(path)}--{frag}' if frag else f'#{key(path)}'
    return f'{path}#{frag}' if frag else path

def chapter(html, page, pages):
    "The text of a page as a section"
    text = re.search(r'<main[^>]*>(.*)</main>', html, re.S)[1]
    for o in left_out: text = re.sub(o, '', text, flags=re.S)
    def attribute(m):
        k,v = m.groups()
        if k in ('href', 'src'): return f' {k}="{link(v, page, pages) if k == "href" else normpath(join(dirname(page), v))}"'
        return f' {k}="#{key(page)}--{v[1:]}"' if v.startswith('#') else f' {k}="{key(page)}--{v}"'
    def tag(m): return re.sub(r' (href|src|id|data-anchor-id|data-bs-target|for|aria-controls|aria-labelledby)="([^"]*)"', attribute, m[0])
    return f'<section class="chapter" id="{key(page)}">\n{re.sub("<[a-zA-Z][^<>]*>", tag, text)}\n</section>'

def title_of(html): return re.search(r'<h1 class="title">(.*?)</h1>', html, re.S)[1]

def contents(sections, htmls):
    "The list of chapters"
    def item(p): return f'<li><a href="#{key(p)}">{title_of(htmls[p])}</a></li>'
    def part(title, ps): return (f'<h2>{title}</h2>\n' if title else '') + '<ul>' + '\n'.join(map(item, ps)) + '</ul>'
    return '<nav id="contents" aria-label="Contents">\n' + '\n'.join(part(*o) for o in sections) + '\n</nav>'

def in_order(sidebar):
    "(title, pages) of each part of the sidebar, the pages above the first part without a title"
    def html(o): return re.sub(r'\.ipynb$', '.html', o)
    res = [('', [html(o) for o in sidebar if isinstance(o, str)])]
    return res + [(o['section'], [html(p) for p in o['contents']]) for o in sidebar if not isinstance(o, str)]

def write(site, sidebar, title, description):
    "Write the one file; its head is that of a page with formulas"
    sections = in_order(sidebar)
    pages = [p for _,ps in sections for p in ps]
    htmls = {p: (site/p).read_text() for p in pages}
    head = re.search(r'.*?</head>', next(h for p,h in htmls.items() if 'katex.min.js' in h and '/' not in p), re.S)[0]
    head = re.sub(r'<title>.*?</title>', f'<title>{title} on one page</title>', head, flags=re.S)
    head = re.sub(r'<meta name="description"[^>]*>', f'<meta name="description" content="{description}">', head)
    head = re.sub(r'<script[^>]*(?:fuse|moving|uPlot)[^>]*></script>\n?|<link[^>]*uPlot[^>]*>\n?', '', head)
    body = '\n'.join(chapter(htmls[p], p, set(pages)) for p in pages)
    top = f'<h1 class="title">{title}</h1>\n<p>{description}. The whole book on one page; pictures that move stand still here. ' \
        'It is easier to find one\'s way in <a href="index.html">the book page by page</a>.</p>'
    (site/name).write_text(f'{head}<body class="book"><a class="skip-link" href="#contents">Skip to the contents</a>'
        f'<main class="content">\n<header>{top}</header>\n{contents(sections, htmls)}\n{body}\n</main></body></html>\n')
