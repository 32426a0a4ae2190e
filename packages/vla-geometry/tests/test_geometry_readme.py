import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 15
    names: dict = {}
    exec(code, names)
    assert names["features"].tokens.shape == (1, 2, 16, 16, 128)
    assert names["features"].depth.shape == (1, 2, 224, 224)
