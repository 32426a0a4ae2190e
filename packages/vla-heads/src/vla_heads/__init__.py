"""Action heads: they turn what a vision-language backbone has seen into a chunk of robot actions."""

from vla_core.interfaces import Context, HeadDims, HeadInputs, VLMOutput

from vla_heads.adapter import AdapterHead, AdapterHeadConfig
from vla_heads.fast import ActionTokenizer, FASTConfig, FASTHead
from vla_heads.groot_flow import GR00TFlow, GR00TFlowConfig
from vla_heads.layerwise_fm import LayerwiseFM, LayerwiseFMConfig
from vla_heads.mlp_regression import MLPRegression, MLPRegressionConfig
from vla_heads.pi0 import PI0Config, PI0Head

__all__ = [
    "ActionTokenizer",
    "AdapterHead",
    "AdapterHeadConfig",
    "Context",
    "FASTConfig",
    "FASTHead",
    "GR00TFlow",
    "GR00TFlowConfig",
    "HeadDims",
    "HeadInputs",
    "LayerwiseFM",
    "LayerwiseFMConfig",
    "MLPRegression",
    "MLPRegressionConfig",
    "PI0Config",
    "PI0Head",
    "VLMOutput",
]
