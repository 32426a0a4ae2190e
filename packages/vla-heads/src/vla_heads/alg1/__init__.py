"""alg1: world-model auxiliaries (dynamics, geometry, regularisation) with a phased schedule."""

from vla_heads.alg1.auxiliary import Alg1
from vla_heads.alg1.config import Alg1Config

__all__ = ["Alg1", "Alg1Config"]
