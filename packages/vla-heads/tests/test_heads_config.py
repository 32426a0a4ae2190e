import pytest
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.registry import load
from vla_heads import AdapterHead, GR00TFlow, LayerwiseFM, LayerwiseFMConfig, MLPRegression, PI0Head


def test_found_by_name():
    assert load("vla.heads", "adapter") is AdapterHead
    assert load("vla.heads", "groot_flow") is GR00TFlow
    assert load("vla.heads", "layerwise_fm") is LayerwiseFM
    assert load("vla.heads", "mlp_regression") is MLPRegression
    assert load("vla.heads", "pi0") is PI0Head


def test_yaml_nodes_are_validated():
    config = build_config(LayerwiseFM.Config, {"width": 128, "vl_layer_selection": "first"}, "head")
    assert config == LayerwiseFMConfig(width=128, vl_layer_selection="first")
    assert build_config(GR00TFlow.Config, {"size": "L", "steps": 8}, "head").steps == 8
    with pytest.raises(ConfigError, match="n_future_tokens"):
        build_config(LayerwiseFM.Config, {"n_future_token": 4}, "head")
    with pytest.raises(ConfigError, match="n_blocks"):
        build_config(MLPRegression.Config, {"n_blocks": "many"}, "head")
