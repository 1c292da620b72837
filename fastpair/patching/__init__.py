"""One line to switch: other libraries' losses computed by fastpair where their definitions are the same.

``core.py`` replaces methods and restores them; each library has a file of its own, which is imported, as the library
is, when it is patched.
"""

from fastpair.patching.core import Report, patch, unpatch

__all__ = ["Report", "patch", "unpatch"]
