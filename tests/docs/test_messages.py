"""docs/what-can-go-wrong.md words messages as the code does."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "what-can-go-wrong.md").read_text("utf-8")


def texts(path: Path) -> set[str]:
    """Every text in a module's code, with … for what is put in."""
    answer = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
            answer.add(re.sub("…+", "…", "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            answer.add(node.value)
    return answer


def test_the_messages_are_those_of_the_code() -> None:
    said = {
        text
        for package in ("pretrain", "transfer", "pipeline")
        for path in (ROOT / package).rglob("*.py")
        for text in texts(path)
    }
    messages = re.findall(r"^\| `(.+?)` \| ", TEXT, re.MULTILINE)
    assert len(set(messages)) == len(messages) == 21
    for message in messages:
        assert any(message in text for text in said), message
