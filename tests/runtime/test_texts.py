"""Every text stands in every language, and the pages ask for no other."""

from __future__ import annotations

import re
from pathlib import Path

from nnet_edge.runtime import texts
from nnet_edge.runtime.web import shift

STATIC = Path(shift.__file__).with_name("static")
IN_SCRIPTS = re.compile(
    r"""\bt\("(\w+)"|data-(?:text|title|label|placeholder)="(\w+)"|say\("(\w+)"|text\(language, "(\w+)\""""
)
MADE = {  # keys that scripts make of what the line says
    *(f"state_{state}" for state in ("live", "ended", "paused", "connecting", "stalled", "lost", "failed")),
    *(f"DOWN_{state}" for state in ("connecting", "stalled", "lost", "failed")),
    "false_alarm", "true_defect", "missed", "good", "operator", "engineer",
}  # fmt: skip


def test_every_key_has_a_text_in_every_language_with_the_same_places() -> None:
    for key, found in texts.table().items():
        assert tuple(found) == texts.LANGUAGES, key
        assert all(found.values()), key
        places = [sorted(re.findall(r"\{(\w+)\}", words)) for words in found.values()]
        assert places[0] == places[1] == places[2], key


def test_the_pages_ask_for_known_keys_and_leave_none_over() -> None:
    sources = [*STATIC.glob("*.js"), *STATIC.glob("*.html"), Path(shift.__file__).parents[1] / "history/report.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    asked = {key for found in IN_SCRIPTS.findall(text) for key in found if key}
    assert asked <= set(texts.table())
    unused = {
        key
        for key in texts.table()
        if key not in asked | MADE and not re.search(rf'\W{key}"|"{key}\W|table\.{key}\b', text)
    }
    assert unused == set()


def test_a_text_fills_its_places() -> None:
    assert texts.text("de", "from_to", since="1", until="2") == "1 bis 2"
