"""chkstyle, with two things it does not know: `#| exporti` is exported code too, and what stands
folded on the page is no part of the lesson"""
import re
from chkstyle import core

core.NB_EXPORT_KEYS.add('exporti')
narrative_cells = core._narrative_cells

def unfolded(nb, path):
    def folded(c): return re.search(r'^#\| *code-fold: *true', ''.join(c['source']), re.M)
    return narrative_cells({**nb, 'cells': [c for c in nb['cells'] if not folded(c)]}, path)

core._narrative_cells = unfolded
if __name__ == '__main__': core.cli()
