"""``vla-data cache``: a copy of a data set whose videos have the training resolution and a short GOP."""

from vla_data.cache.build import CacheConfig as CacheConfig
from vla_data.cache.build import CacheReport as CacheReport
from vla_data.cache.build import build_cache as build_cache
