"""Action heads: they turn what a vision-language backbone has seen into a chunk of robot actions.

Names are imported on first use: naming one head imports that head alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_core.interfaces import Context, HeadDims, HeadInputs, VLMOutput

    from vla_heads.adapter import AdapterHead, AdapterHeadConfig
    from vla_heads.fast import ActionTokenizer, FASTConfig, FASTHead
    from vla_heads.groot_flow import GR00TFlow, GR00TFlowConfig
    from vla_heads.layerwise_fm import LayerwiseFM, LayerwiseFMConfig
    from vla_heads.mlp_regression import MLPRegression, MLPRegressionConfig
    from vla_heads.pi0 import PI0Config, PI0Head

_MODULES = {
    "vla_core.interfaces": ("Context", "HeadDims", "HeadInputs", "VLMOutput"),
    "vla_heads.adapter": ("AdapterHead", "AdapterHeadConfig"),
    "vla_heads.fast": ("ActionTokenizer", "FASTConfig", "FASTHead"),
    "vla_heads.groot_flow": ("GR00TFlow", "GR00TFlowConfig"),
    "vla_heads.layerwise_fm": ("LayerwiseFM", "LayerwiseFMConfig"),
    "vla_heads.mlp_regression": ("MLPRegression", "MLPRegressionConfig"),
    "vla_heads.pi0": ("PI0Config", "PI0Head"),
}
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


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'vla_heads' has no attribute '{name}'")
