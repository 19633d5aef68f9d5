"""What people look at: figures and pages drawn from stores and their statistics.

`page` is the report, `render` its HTML. `sections` read a store and yield figures with their words, `plots` draw plain
numbers, `text` holds definitions and references, `facts` and `images` say what a store is and what can be shown of it.
"""

from .page import report
from .text.methods import describe

__all__ = ["describe", "report"]
