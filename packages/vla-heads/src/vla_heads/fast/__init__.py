"""FAST: an action chunk as words that the backbone speaks (arXiv 2501.09747)."""

from vla_heads.fast.config import FASTConfig
from vla_heads.fast.head import FASTHead
from vla_heads.fast.report import Report, measure
from vla_heads.fast.tokenizer import ActionTokenizer

__all__ = ["ActionTokenizer", "FASTConfig", "FASTHead", "Report", "measure"]
