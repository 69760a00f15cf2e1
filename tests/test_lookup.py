"The pages to look things up: nothing that the book cites, exports or abbreviates is missing from what they show"
import inspect, pytest, re
from pathlib import Path
from urllib.parse import unquote
from fastcore.docments import docments
from fastcore.nbio import read_nb
from lossbook import all as book
from lossbook.core import Loss

nbs = Path(__file__).parent.parent/'nbs'
pages = [p for p in sorted([*nbs.glob('*.ipynb'), *nbs.glob('tutorials/*.ipynb')]) if p.stem!='bibliography']

def shown(name):
    "The markdown that a page shows as outputs, saved in the notebook"
    outs = [o for c in read_nb(nbs/f'{name}.ipynb').cells if c.cell_type=='code' for o in c.outputs]
    return '\n'.join(''.join(o.data['text/markdown']) for o in outs if 'text/markdown' in o.get('data', {}))

again = 'run `make save`, or nbdev-test --save nbs/{}.ipynb'

def prose(p): return '\n'.join(c.source for c in read_nb(p).cells if c.cell_type=='markdown')

@pytest.mark.parametrize('path', pages, ids=lambda p: p.stem)
def test_every_paper_is_in_the_bibliography(path):
    paper = r'https?://(?:[^\s()]|\([^\s()]*\))*(?:arxiv\.org|doi\.org|proceedings|openreview|aclanthology)(?:[^\s()]|\([^\s()]*\))*'
    links = {unquote(u) for u in re.findall(paper, prose(path))}
    rows = [unquote(l) for l in shown('bibliography').splitlines()]
    for u in links:
        row = [l for l in rows if f'({u})' in l]
        assert len(row)==1, f'{u}: {again.format("bibliography")}'
        assert f'({path.relative_to(nbs).as_posix()})' in row[0], f'{u}: {again.format("bibliography")}'

def test_the_bibliography_has_no_source_that_nobody_cites():
    urls = re.findall(r'\]\((https?://[^\s]+)\): \[', shown('bibliography'))
    text = unquote('\n'.join(map(prose, pages)))
    assert len(urls)>60 and not [u for u in urls if unquote(u) not in text]

def test_every_name_is_in_the_a_to_z():
    rows = dict(re.findall(r'^- \[`(\w+)`\]\(.*?\): (.*)$', shown('a_to_z'), re.M))
    said = {k: inspect.getdoc(getattr(book, k)).partition('\n')[0] for k in book.__all__}
    assert {k: v.replace('\\', '') for k,v in rows.items()}==said, again.format('a_to_z')

def test_every_greek_letter_is_in_the_notation():
    text = shown('notation')
    for k in book.__all__:
        o = getattr(book, k)
        if not (inspect.isclass(o) and issubclass(o, Loss)): continue
        for name,said in docments(o).items():
            if not said or name not in ('alpha','beta','gamma','delta','epsilon','tau','temperature'): continue
            rows = [l for l in text.splitlines() if l.startswith('| ') and f'| `{name}` | {said} |' in l]
            assert rows and f'`{k}`' in rows[0], f'{name} of {k}: {again.format("notation")}'
