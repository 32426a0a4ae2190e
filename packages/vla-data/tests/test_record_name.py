"""The names of the package are the things themselves: no module of the same name stands before them."""

import inspect

import vla_data


def test_every_public_name_is_a_class_or_function():
    from vla_data import RecordConfig, record

    assert callable(record)
    assert inspect.isclass(RecordConfig)
    for name in vla_data.__all__:
        assert not inspect.ismodule(getattr(vla_data, name)), name
