"""Whether a runtime gives what the graph says: layer by layer, against the processor in float32, a store, or cases.

`comparing` is the way through all pictures, `inputs` are the pictures with what is expected of them, `cases` is their
file for a runtime that attlas does not drive, `measures` are the differences, and `causes` names what made them.
"""

from .cases import write_cases
from .comparing import conform
from .measures import Conformity

__all__ = ["Conformity", "conform", "write_cases"]
