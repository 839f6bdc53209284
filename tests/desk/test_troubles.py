"""The findings page says what each finding is, in the words of its rule, without importing torch."""

import html
import re
import subprocess
import sys

from fastapi.testclient import TestClient

from thalweg._core.discover import modules
from thalweg.desk.app import create_app
from thalweg.desk.troubles import troubles
from thalweg.papers import load
from thalweg.watch import rules
from thalweg.watch.rule import Rule


def test_every_rule_has_its_sentence():
    names = {
        name
        for module in modules(rules.__name__)
        for one in vars(module).values()
        if isinstance(one, type) and one.__module__ == module.__name__ and issubclass(one, Rule)
        for name in (one.name, *one.further)
    }
    assert names == set(troubles())
    assert all(len(said) > 20 and said.endswith((".", "?", ")")) for said in troubles().values())
    assert not [said for said in troubles().values() if re.search(r"\d{4}\.\d{4}", said)]


def test_the_page_leads_from_every_trouble_to_its_papers_those_measured_first():
    text = TestClient(create_app()).get("/findings").text
    for name in {name for entry in load() for name in entry.addresses}:
        mark = name.replace(" ", "-")
        assert f'href="#{mark}"' in text
        section = text.split(f'id="{mark}"')[1].split("</section>")[0]
        held = set(re.findall(r'href="/papers/([^"]+)"', section))
        assert held == {entry.key for entry in load() if name in entry.addresses}
        verdicts = re.findall(r'class="verdict [a-z-]+">([a-z ]+)<', section)
        done = [one in ("planned", "partial", "working") for one in verdicts]
        assert done == sorted(done)
        assert html.escape(troubles().get(name, ""), quote=False)[:20] in text.replace("&#39;", "'")


def test_torch_is_not_needed_to_say_it():
    code = (
        "import sys; from thalweg.desk.troubles import troubles; troubles(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
