"What the evidence page draws is what the tutorials' saved outputs say"
import json, pytest, re
from html.parser import HTMLParser
from pathlib import Path

root = Path(__file__).parent.parent
tutorials = {p.stem: p for p in sorted(root.glob('nbs/tutorials/*.ipynb'))}
columns = ['claim','baseline','effect','low','high','unit','seeds','held','section']

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def outputs(path, kind):
    found = [o['data'][kind] for c in cells(path) for o in c.get('outputs', []) if kind in o.get('data', {})]
    return [''.join(o) for o in found]

def markdown(path): return [''.join(c['source']) for c in cells(path) if c['cell_type']=='markdown']

class Table(HTMLParser):
    "The rows of an html table"
    def __init__(self, html):
        super().__init__()
        self.rows,self.cell = [],None
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag=='tr': self.rows.append([])
        if tag in ('td','th'): self.cell = ''
    def handle_data(self, data):
        if self.cell is not None: self.cell += data
    def handle_endtag(self, tag):
        if tag not in ('td','th'): return
        self.rows[-1].append(self.cell)
        self.cell = None

def claims(name):
    head,*rows = Table(outputs(tutorials[name], 'text/html')[-1]).rows
    assert head[1:]==columns
    res = [dict(zip(columns, o[1:])) for o in rows]
    return [o | {k: float(o[k]) for k in ('effect','low','high')} for o in res]

def signed(x): return f'{x:+.1f}' if round(abs(x), 1) or not x else f'{x:+.2f}'

def shown(o):
    unit = ' points' if o['unit']=='points' else '%'
    return f"{signed(o['effect'])}{unit} ({signed(o['low'])} to {signed(o['high'])})"

def slug(s): return re.sub(r'[^\w -]', '', s).lower().replace(' ', '-')

@pytest.mark.parametrize('name', tutorials)
def test_every_tutorial_contributes(name):
    rows = claims(name)
    assert len(rows)>=5 and len({(o['claim'],o['baseline']) for o in rows})==len(rows)
    headings = {m for s in markdown(tutorials[name]) for m in re.findall(r'^##+ (.*)$', s, re.M)}
    for o in rows:
        assert o['section'] in headings and o['unit'] in ('points','%') and int(o['seeds'])>=1
        assert not any('...' in str(v) for v in o.values()), o # pandas cuts what is long

@pytest.mark.parametrize('name', tutorials)
def test_a_claim_is_held_by_its_whole_interval(name):
    for o in claims(name):
        assert o['low']<=o['effect']<=o['high']
        assert o['held']==('held' if o['low']>0 else 'did not hold' if o['high']<0 else 'undecided')

def test_some_claims_did_not_hold():
    verdicts = {o['held'] for k in tutorials for o in claims(k)}
    assert verdicts=={'held','undecided','did not hold'}

def test_the_page_shows_what_the_tutorials_show():
    page = root/'nbs'/'evidence.ipynb'
    want = []
    for k in tutorials:
        for o in claims(k):
            numbers = shown(o)
            link = f"[{o['claim']}](tutorials/{k}.ipynb#{slug(o['section'])})"
            want.append(f"| {link} | {o['baseline']} | {numbers} | {int(o['seeds'])} | {o['held']} |")
    short,full = outputs(page, 'text/markdown')
    assert full.splitlines()[2:]==want
    assert len(short.splitlines())==2+len(tutorials) and all(f'(tutorials/{k}.ipynb)' in short for k in tutorials)
    said = ' '.join(outputs(page, 'text/plain'))
    assert re.search(rf"'all': {len(want)}\b", said) and len(outputs(page, 'image/png'))+len(outputs(page, 'image/svg+xml'))==1
    for v in ('held','undecided','did not hold'):
        assert re.search(rf"'{v}': {sum(o.endswith(f'| {v} |') for o in want)}\b", said)

@pytest.mark.parametrize('name', tutorials)
def test_the_answer_comes_first_and_the_summary_last(name):
    texts,rows = markdown(tutorials[name]),claims(name)
    assert texts[1].startswith('**In short.**')
    said = set(map(shown, rows))
    found = re.findall(r'[+-][\d.]+(?: points|%) \([+-][\d.]+ to [+-][\d.]+\)', ' '.join([texts[1],texts[-1]]))
    assert found and set(found)<=said, set(found)-said
    assert texts[-1].startswith('## Summary\n') and 3<=len(re.findall(r'^- ', texts[-1], re.M))<=6
    first = next(i for i,c in enumerate(cells(tutorials[name])) if any({'image/png','image/svg+xml'} & o.get('data', {}).keys() for o in c.get('outputs', [])))
    lines = sum(len(c['source']) for c in cells(tutorials[name])[:first] if 'code-fold: true' not in ''.join(c['source']))
    assert lines<=80, f'the first picture comes after {lines} lines'
