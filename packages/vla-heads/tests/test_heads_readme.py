import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_runs():
    head, tokenizer = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(head.splitlines()) <= 15
    names: dict = {}
    exec(head, names)
    assert names["sampled"].shape == (2, 16, 7)
    assert names["loss"].isfinite()
    exec(tokenizer, names)
    assert 1 <= len(names["ids"]) < 16 * 7
