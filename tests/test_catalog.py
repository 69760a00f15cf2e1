"What the catalogue shows of each loss: its formula, its picture, its parameters"
import pytest, re, torch
from lossbook.catalog import catalog, explained, sketch, walk
from lossbook.check import loss_classes

classes = loss_classes()

@pytest.mark.parametrize('name', classes)
def test_formula(name):
    "One short line of TeX of its own, which opens and closes alike"
    f = vars(classes[name]).get('formula', '')
    assert f and '\n' not in f and len(f)<90
    assert f.count('{')==f.count('}') and f.count('(')==f.count(')') and len(re.findall(r'\\[bB]igl', f))==len(re.findall(r'\\[bB]igr', f))

@pytest.mark.parametrize('name', classes)
def test_picture(name):
    "Drawn from the loss: it ends where the loss does, and is at its least where the loss is"
    loss = classes[name]()
    what,lo,hi,batch = walk(loss)
    with torch.no_grad(): v = [loss(*batch(x)).item() for x in torch.linspace(lo, hi, 37)]
    svg = sketch(classes[name])
    line = [tuple(map(int, o.split())) for o in re.findall(r'\d+ \d+', re.search(r' d="M([^"HV]*)" stroke', svg)[1])]
    assert [x for x,_ in line]==list(range(0, 73, 2)) and all(0<=y<=36 for _,y in line)
    low,high = min(*v, 0),max(*v, 0)
    for (_,y),w in zip(line, v): assert abs(y - (34-32*(w-low)/(high-low)))<=.51
    said = re.search('aria-label="(.*?)"', svg)[1]
    assert said.startswith(f'{name} over the {what}: {abs(round(v[0], 2)):g} at {lo}') and 'currentColor' in svg

@pytest.mark.parametrize('name', classes)
def test_parameters_are_explained(name):
    left = [k for k,v in explained(classes[name]).items() if not v]
    assert not left

def test_html_and_markdown_tell_no_from_unmeasured():
    few = catalog(task='span') + catalog(task='classes')[:1]
    few = type(catalog())(few)
    html,md = few._repr_html_(),few._repr_markdown_()
    assert html.count('>not measured<')==2 and '>no<' in html and 'svg' in html
    assert 'svg' not in md and '<' not in md.replace(r'\le', '') and md.count('not measured')==12
