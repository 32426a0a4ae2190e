"""Adapter head: action tokens that read vision and query states of the backbone's layers."""

from vla_heads.adapter.config import AdapterHeadConfig
from vla_heads.adapter.head import AdapterHead

__all__ = ["AdapterHead", "AdapterHeadConfig"]
