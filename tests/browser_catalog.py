"The catalogue and the questions of *Which loss?* as a reader uses them, in Chromium"
import pytest, time
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from browser import browser, show # chkstyle: ignore
from lossbook.catalog import catalog

rows = {o.name: o for o in catalog()}

def all_of(d, css): return d.find_elements(By.CSS_SELECTOR, css)
def one(d, css): return d.find_element(By.CSS_SELECTOR, css)
def names(d):
    return d.execute_script('return [...document.querySelector(".catalog").querySelectorAll("tbody tr:not([hidden]) th")].map((e) => e.textContent)')

def pick(d, label, value):
    "Choose in the list that stands beside a label"
    d.execute_script('''
        const select = [...document.querySelectorAll(".catalog-tools label")].find((e) => e.firstChild.data.trim() === arguments[0]).querySelector("select");
        select.value = arguments[1];
        for (const k of ["input", "change"]) select.dispatchEvent(new Event(k, {bubbles: true}));''', label, value)

@pytest.fixture
def table(browser):
    show(browser, 'catalog.html')
    return browser

def test_all_losses_with_formula_and_picture(table):
    assert names(table)==list(rows)
    formulas,errors,pictures = [len(all_of(table, f'.catalog {o}')) for o in ('.formula .katex', '.katex-error', 'svg[aria-label]')]
    assert errors==0 and formulas>=len(rows) and pictures>=len(rows)
    assert 'not measured' in one(table, '.catalog [data-key=all]').text

def test_sort(table):
    head = one(table, 'th[data-key=loss]')
    button = head.find_element(By.TAG_NAME, 'button')
    button.click()
    assert names(table)==sorted(rows, key=str.lower) and head.get_attribute('aria-sort')=='ascending'
    button.send_keys(Keys.ENTER)
    assert names(table)==sorted(rows, key=str.lower, reverse=True) and head.get_attribute('aria-sort')=='descending'
    pick(table, 'sorted by', 'lipschitz')
    got = [rows[o].lipschitz for o in names(table)]
    some = [v for v in got if v is not None]
    assert [float(f'{v:.3g}') for v in some]==sorted(float(f'{v:.3g}') for v in some)
    assert got[len(some):]==[None]*(len(got)-len(some)), 'what was not measured stands last'
    one(table, '[data-key=lipschitz] button').click() # the other way round it does so, too
    assert rows[names(table)[0]].lipschitz==max(o for o in got if o is not None) and rows[names(table)[-1]].lipschitz is None
    pick(table, 'sorted by', '')
    assert names(table)==list(rows)

def test_filter(table):
    for k,v in (('proper',True), ('symmetric',False), ('bounded',None)):
        pick(table, k, {True: 'yes', False: 'no', None: 'not measured'}[v])
        assert names(table)==[o.name for o in rows.values() if getattr(o, k) is v]
        pick(table, k, '')
    pick(table, 'task', 'binary')
    pick(table, 'convex', 'yes')
    want = [o.name for o in rows.values() if o.task=='binary' and o.convex]
    assert names(table)==want and one(table, '.catalog-tools [role=status]').text==f'{len(want)} of {len(rows)} losses'
    pick(table, 'proper', 'no')
    pick(table, 'symmetric', 'yes')
    assert names(table)==[] and 'No loss' in one(table, '.catalog-tools [role=status]').text
    one(table, '.catalog-tools button').send_keys(Keys.SPACE)
    time.sleep(.1)
    assert names(table)==list(rows)

def test_find_a_parameter(table):
    find = one(table, '.catalog-tools input')
    find.send_keys('gamma')
    found = names(table)
    assert {'FocalLoss','BinaryFocalLoss'}<={*found} and len(found)<10
    told = table.execute_script('return [...document.querySelectorAll(".catalog tr:not([hidden]) details[open]")].map((e) => e.textContent).join()')
    assert 'focusing exponent, >= 0; 0 is cross entropy' in told
    find.clear()
    find.send_keys('girshick')
    assert names(table)==['SmoothL1Loss']

@pytest.mark.parametrize('page,width', [(p,w) for p in ('catalog.html','which_loss.html') for w in (320,390,1300)])
def test_fits(browser, page, width):
    "No table of these pages is wider than its place; on a phone nothing has to be moved sideways"
    show(browser, page, width)
    wide = browser.execute_script('''
        return [...document.querySelectorAll("table.catalog, table.catalog *, .cards *, .questions-form *, .answer *")].filter((e) =>
            e.offsetParent && e.getBoundingClientRect().right > document.querySelector("main").getBoundingClientRect().right + 1).map((e) => e.textContent.slice(0, 40))''')
    assert wide==[]

@pytest.mark.parametrize('page', ('catalog.html','which_loss.html'))
def test_paper(browser, page):
    "On a sheet of A4 (718 px between its margins) nothing of a table is cut, and what is for the screen is gone"
    show(browser, page, 718)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='print'))
    cut = browser.execute_script('''
        return [...document.querySelectorAll("main table *")].filter((e) => e.offsetParent && e.getBoundingClientRect().right > innerWidth).map((e) => e.textContent.slice(0, 40))''')
    tools = [o.is_displayed() for o in all_of(browser, '.catalog-tools, .questions-form')]
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=''))
    assert cut==[] and not any(tools)

@pytest.mark.parametrize('page,css,n', (('catalog.html','table.catalog tbody tr',len(rows)), ('which_loss.html','table.questions pre',24)))
def test_without_script(browser, page, css, n):
    browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', dict(value=True))
    try:
        show(browser, page)
        found = all_of(browser, css)
        assert len(found)>=n and found[0].is_displayed() and not all_of(browser, '.catalog-tools, .questions-form')
    finally: browser.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', dict(value=False))

# ---- the questions

def asked(d): return d.execute_script('return [...document.querySelectorAll(".questions-form fieldset")].map((e) => e.dataset.key)')
def reply(d, key, value): one(d, f'.questions-form input[name={key}][value={value}]').click()
def answer(d): return d.execute_script('const e = document.querySelector(".answer .take code"); return e && e.textContent')

def ways(d, replies=()):
    "Every way through the questions, and where it ends"
    if answer(d): return [(replies,answer(d))]
    key = asked(d)[len(replies)]
    values = d.execute_script('return [...document.querySelectorAll(`.questions-form [name=${arguments[0]}]`)].map((e) => e.value)', key)
    res = []
    for v in values:
        show(d, 'which_loss.html') # replies that still fit would stay
        for k,o in replies: reply(d, k, o)
        reply(d, key, v)
        res += ways(d, (*replies,(key,v)))
    return res

def test_every_way_ends_with_an_answer(browser):
    show(browser, 'which_loss.html')
    takes = browser.execute_script('return [...document.querySelectorAll("table.questions .take code")].map((e) => e.textContent)')
    found = ways(browser)
    assert {o for _,o in found}=={*takes} and len(found)>=len(takes)
    assert dict(found)[('target','one'),('truth','some'),('use','answer')]=='GeneralizedCrossEntropy()'

def test_wrong_labels_to_a_learner(browser):
    show(browser, 'which_loss.html')
    assert asked(browser)==['target'] and answer(browser) is None
    for k,v in (('target','one'), ('truth','some'), ('use','answer')): reply(browser, k, v)
    assert answer(browser)=='GeneralizedCrossEntropy()'
    lines = one(browser, '.answer pre').text
    assert 'loss_func=GeneralizedCrossEntropy()' in lines and 'from lossbook.all import GeneralizedCrossEntropy' in lines
    assert one(browser, '.answer a[href*=label_noise]').is_displayed()
    copy = one(browser, '.answer .copy')
    copy.click()
    time.sleep(.2)
    marked = browser.execute_script('return getSelection().toString()')
    assert copy.text=='Copied' or marked.strip()==lines.strip()
    reply(browser, 'target', 'span') # another beginning: what followed is forgotten
    assert answer(browser)=='SpanLoss()' and asked(browser)==['target']

def test_questions_by_keyboard(browser):
    show(browser, 'which_loss.html')
    first = one(browser, '.questions-form input')
    first.send_keys(Keys.SPACE)
    assert asked(browser)==['target','truth'] and browser.switch_to.active_element==first
    first.send_keys(Keys.ARROW_DOWN)
    assert one(browser, '.questions-form input:checked').get_attribute('value')=='labels' and asked(browser)==['target','like']
    first.send_keys(Keys.TAB)
    one(browser, '.questions-form [name=like]').send_keys(Keys.SPACE)
    assert answer(browser)=='BCEWithLogitsLoss()'
