"""StarVLA's config keys in ours: the table, and what applies it to files and command lines."""

from vla_train.starvla.keys.table import TABLE
from vla_train.starvla.keys.translation import Translation, translate

__all__ = ["TABLE", "Translation", "translate"]
