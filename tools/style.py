"""chkstyle, with two things it does not know: `#| exporti` is exported code too, and neither what
stands folded on the page nor an entry of the reference is part of the lesson"""
import re
from chkstyle import core

core.NB_EXPORT_KEYS.add('exporti')
narrative_cells = core._narrative_cells

def lesson_cells(nb, path):
    def aside(c): return re.search(r'^(#\| *code-fold: *true|show_doc\()', ''.join(c['source']), re.M)
    return narrative_cells({**nb, 'cells': [c for c in nb['cells'] if not aside(c)]}, path)

core._narrative_cells = lesson_cells
if __name__ == '__main__': core.cli()
