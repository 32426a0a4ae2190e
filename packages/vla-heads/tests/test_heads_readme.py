import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 15
    names: dict = {}
    exec(code, names)
    assert names["sampled"].shape == (2, 16, 7)
    assert names["loss"].isfinite()
