"What the tests need on the oldest versions that lossbook allows"
import fastcore.test, pytest, re
from accelerator import has_backends

def expect_fail(ex=Exception, contains=''):
    "As fastcore has it since version 2"
    return pytest.raises(ex, match=re.escape(contains))

if not hasattr(fastcore.test, 'expect_fail'): fastcore.test.expect_fail = expect_fail

# it needs a device that is written in Python
collect_ignore = [] if has_backends else ['test_accelerator.py']
