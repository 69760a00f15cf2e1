"The site as a reader meets it, in Chromium: `make site-test`"
import os, pytest, shutil, tempfile, time
from pathlib import Path
from urllib.parse import unquote
from selenium import webdriver

root = Path(__file__).resolve().parents[1]
docs = root/'docs'
pages = sorted(p.relative_to(docs).as_posix() for p in docs.rglob('*.html') if p.name!='lossbook.html')
axe = Path(os.environ['AXE']).read_text()

def chromium():
    o = webdriver.ChromeOptions()
    o.binary_location = shutil.which('chromium')
    flags = 'headless=new','no-sandbox','disable-gpu','disable-background-networking','hide-scrollbars'
    for a in (*flags, f'user-data-dir={tempfile.mkdtemp()}'): o.add_argument(f'--{a}')
    o.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    d = webdriver.Chrome(options=o, service=webdriver.ChromeService(shutil.which('chromedriver')))
    d.set_script_timeout(300)
    return d

@pytest.fixture(scope='session')
def browser():
    d = chromium()
    yield d
    d.quit()

def show(d, page, width=1300, dark=False):
    "Open a page at a width, as a phone if it is narrow"
    d.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
        dict(width=width, height=900, deviceScaleFactor=1, mobile=width<600))
    media = {'prefers-color-scheme': 'dark' if dark else 'light', 'prefers-reduced-motion': 'reduce'}
    d.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name=k, value=v) for k,v in media.items()]))
    d.get(f'file://{docs}/{page}')

@pytest.mark.parametrize('width', (390,1300))
@pytest.mark.parametrize('page', pages)
def test_nothing_is_cut(browser, page, width):
    show(browser, page, width)
    cut = browser.execute_script('''
        const wide = (e) => e.offsetParent && e.scrollWidth > e.clientWidth+1;
        return [...document.querySelectorAll(".katex-display, pre.sourceCode")].filter(wide).map((e) => e.textContent.slice(0, 60))''')
    assert cut==[]
    assert browser.execute_script('return document.documentElement.scrollWidth - innerWidth')<=0, 'the page scrolls sideways'

@pytest.mark.parametrize('dark', (False,True), ids=('light','dark'))
@pytest.mark.parametrize('page', pages)
def test_accessible(browser, page, dark):
    show(browser, page, dark=dark)
    browser.execute_script(axe)
    found = browser.execute_async_script('''
        const done = arguments[arguments.length-1];
        axe.run(document, {resultTypes: ["violations"]}).then((r) =>
            done(r.violations.map((v) => `${v.id} (${v.impact}, ${v.nodes.length} times): ${v.nodes[0].html.slice(0, 160)}`)))''')
    assert found==[]

@pytest.mark.parametrize('page', pages)
def test_offline(browser, page):
    browser.get_log('browser')
    show(browser, page)
    assert [o['message'] for o in browser.get_log('browser') if o['level']=='SEVERE']==[]
    loaded = browser.execute_script('return performance.getEntriesByType("resource").map((o) => o.name)')
    assert [o for o in loaded if not o.startswith(('file:', 'data:'))]==[]

@pytest.mark.parametrize('page', pages)
def test_light(page):
    html = docs/page
    files = [html, *html.with_name(f'{html.stem}_files').glob('*')]
    assert sum(p.stat().st_size for p in files)<1.5e6

@pytest.mark.parametrize('page', ('which_loss.html','catalog.html','index.html'))
def test_links_land(browser, page):
    "Where a link to a place on another page ends: not a screen off"
    show(browser, page)
    links = browser.execute_script('''
        return [...new Set([...document.querySelectorAll("main a[href*='#']")].map((a) => a.getAttribute("href")))].filter((h) => !/^([a-z]+:|#)/.test(h))''')
    for link in links:
        browser.get('about:blank')
        show(browser, link)
        time.sleep(.1) # pictures load, and must not move what stands below them
        top = browser.execute_script('return document.getElementById(arguments[0]).getBoundingClientRect().top', unquote(link.split('#')[1]))
        end = browser.execute_script('return innerHeight + scrollY >= document.documentElement.scrollHeight - 2')
        assert end or -5<=top<=180, f'{link} lands at {top:.0f} px'

moved = [p for p in pages if 'class="moving"' in (docs/p).read_text()]

@pytest.mark.parametrize('page', moved)
def test_sliders(browser, page):
    "Every slider of every picture, set as Python set it, draws what Python computed"
    show(browser, page)
    for i,spec in enumerate(browser.execute_script('return [...document.querySelectorAll(".moving")].map((e) => JSON.parse(e.dataset.spec))')):
        for check in spec['checks']:
            got = browser.execute_script('''
                const box = document.querySelectorAll(".moving")[arguments[0]];
                for (const [k, v] of Object.entries(arguments[1])) {
                  const e = box.querySelector(`[id$="-${k}"]`);
                  if (e.type === "checkbox") e.checked = Boolean(v); else e.value = v;
                  e.dispatchEvent(new Event("input"));
                }
                const plain = (v) => (Number.isFinite(v) ? v : Number.isNaN(v) ? "nan" : v > 0 ? "inf" : "-inf");
                return {curves: box.shown.curves.map((c) => c.map(plain)), says: box.shown.says.map(plain)}''', i, check['set'])
            drawn = [c[::spec['step']] if spec['kind']=='curves' else c for c in got['curves']]
            for g,w in zip([*drawn, got['says']], [*check['curves'], check['says']], strict=True):
                for a,b in zip(g, w, strict=True):
                    assert a==b or isinstance(a, float|int) and a==pytest.approx(b, rel=1e-6, abs=1e-6), f'{check["set"]}: {a} is not {b}'

@pytest.mark.parametrize('page', moved)
def test_moved_by_keyboard(browser, page):
    show(browser, page)
    for slider in browser.find_elements('css selector', '.moving input[type=range]'):
        before = slider.get_attribute('value')
        slider.send_keys('\ue014' if float(before)<float(slider.get_attribute('max')) else '\ue012') # right or left
        assert slider.get_attribute('value')!=before

def test_the_book_on_one_page(browser):
    "All chapters, all formulas, no link that leaves the file but to other hosts, to files and to the page by page book"
    browser.get_log('browser')
    show(browser, 'lossbook.html')
    assert [o['message'] for o in browser.get_log('browser') if o['level']=='SEVERE']==[]
    assert browser.execute_script('return document.querySelectorAll("section.chapter").length')==len(pages)
    assert browser.execute_script('return [...document.querySelectorAll(".math")].filter((e) => !e.querySelector(".katex")).length')==0
    away = browser.execute_script('return [...document.querySelectorAll("main a[href]")].map((a) => a.getAttribute("href")).filter((h) => !/^(#|[a-z]+:)/.test(h))')
    assert {h for h in away if h.endswith('.html')}<={'index.html'}
    assert browser.execute_script('return document.documentElement.scrollWidth - innerWidth')<=0

queries = {'focal': 'focal.html', 'FocalLoss': 'focal.html#focalloss', 'gamma': 'focal.html', 'label smoothing': 'soft_labels.html', 'smoothing': 'soft_labels.html',
    'dice': 'segmentation.html', 'iou': 'segmentation.html', 'MixUp': 'training.html#mixup', 'nan': 'cross_entropy.html', 'contrastive': 'contrastive.html',
    'imbalance': 'imbalance.html', 'wrong labels': 'noisy_labels.html', 'noisy labels': 'noisy_labels.html', 'label noise': 'tutorials/label_noise.html',
    'GCE': 'noisy_labels.html#generalised-cross-entropy', 'class weights': 'imbalance.html', 'knowledge distillation': 'distillation.html', 'quantile': 'regression.html',
    'huber': 'regression.html', 'uncertainty': 'regression.html', 'triplet': 'margin.html', 'calibration': 'soft_metrics.html', 'brier score': 'soft_metrics.html',
    'soft labels': 'soft_labels.html', 'multi-label': 'cross_entropy.html#several-labels-at-once', 'gradient accumulation': 'training.html', 'word2vec': 'many_classes.html',
    'large vocabulary': 'many_classes.html', 'simclr': 'contrastive.html', 'clip': 'contrastive.html', 'span': 'span.html', 'temperature': 'distillation.html',
    'hugging face': 'trainers.html', 'lightning': 'trainers.html', 'half precision': 'coming_from.html#half-precision'}

@pytest.mark.parametrize('query', queries)
def test_search(browser, query):
    "What one looks for is among the first three"
    show(browser, 'index.html')
    browser.execute_async_script('''
        const s = document.createElement("script"), done = arguments[arguments.length-1];
        s.src = "site_libs/search.js"; s.onload = () => done(); document.head.append(s)''')
    hits = browser.execute_script('return lossbookSearch(searchIndex, arguments[0], 3).map((o) => o.href)', query)
    assert any(o==queries[query] or o.split('#')[0]==queries[query] for o in hits), hits
