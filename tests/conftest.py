"What the tests need on the oldest versions that lossbook allows, and in two processes"
import fastcore.test, pytest, re

def expect_fail(ex=Exception, contains=''):
    "As fastcore has it since version 2"
    return pytest.raises(ex, match=re.escape(contains))

if not hasattr(fastcore.test, 'expect_fail'): fastcore.test.expect_fail = expect_fail

def pytest_collection_modifyitems(items):
    "Names without addresses, so that two processes agree on them"
    for i,o in enumerate(items):
        if ' at 0x' in o.nodeid: o._nodeid = re.sub(r' at 0x[0-9a-f]+', f' {i}', o.nodeid)
