"""The report of a real chain on a planted model whose prompts have hostile names: it answers first,
shows what is there, names what is missing, and acts on nothing."""

import importlib
import itertools
import json
import re
import shutil
import sys
from html import unescape
from pathlib import Path

import pytest
from browser import Browser

from refusal_nn import runs
from refusal_nn.estimates import Estimate
from refusal_nn.files import read_csv, read_json, write_text
from refusal_nn.names import safe_name
from refusal_nn.planted import write_prompts

HOSTILE = "<script>window.ran=1</script><img src=x onerror=window.ran=2>{{7*7}}$x^2$"
STAGES = ("validate", "similarity", "select", "baseline", "sweep", "causal", "behaviour")
STAGES = (*STAGES, "subspace")
OWN = {"tokens": 12, "controls": 2, "val": 8, "layers": 3, "max-rank": 2}
OWN = {name: OWN for name in STAGES[2:]} | {"validate": {"permutations": 100}}
MODEL = "planted-2"


def run(stage, *words, **options):
    """An experiment from its command line, in this process."""
    given = [f"--{name}={value}" for name, value in options.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage, *given, *words])
        importlib.import_module(f"experiments.{stage}").main()


def report(root, model=MODEL):
    """The page of these results, as text."""
    run("report", model=model, results=root / "results", figures=root / "figures")
    path = root / "results" / safe_name(model) / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results, figures and prompts of a whole chain; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    write_prompts(root / "plain.csv", 104, 0)
    rows = [
        row | {"id": f"{HOSTILE}{i}", "category": f"{HOSTILE} {row['category']}"}
        for i, row in enumerate(read_csv(root / "plain.csv"))
    ]
    write_text(root / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    paths = {"results": root / "results", "figures": root / "figures"}
    given = {"model": MODEL, "n": 104, "dtype": "float32", "device": "cpu", **paths}
    for stage in STAGES:
        options = given | {"prompts": root / "prompts.jsonl"} | OWN.get(stage, {})
        run(stage, **options)
        run(stage, "--draw", **options)
    report(root)
    return root


@pytest.fixture(scope="module")
def page(made):
    return (made / "results" / MODEL / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copied(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copied"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


def text_of(html):
    """What is read of a piece of markup."""
    plain = unescape(re.sub(r"<[^>]*>", " ", html)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(plain.split())


def answer_of(page):
    return text_of(page[page.index('<section id="answer"') : page.index("</section>")])


def test_the_first_lines_answer_the_question(made, page):
    sweep, rank = (
        read_json(made / "results" / MODEL / name)
        for name in ("sweep/summary.json", "subspace/verdict.json")
    )
    said = answer_of(page)
    assert said.startswith("Is refusal in planted-2 one direction? ")
    assert f"one direction? {sweep['verdict']}: " in said
    assert rank["rank"]["label"].lower() in said.lower()
    assert Estimate(**sweep["test"]["compliance"]).percent() in said
    assert "Not measured yet" not in said


def test_every_reason_of_both_verdicts_is_there(made, page):
    folder, said = made / "results" / MODEL, text_of(page)
    verdict = read_json(folder / "subspace" / "verdict.json")
    reasons = [verdict[name]["reasons"] for name in ("single_direction", "rank")]
    assert all(reasons)
    assert all(reason in said for of in reasons for reason in of)


def test_every_figure_is_there_and_every_layer_and_every_prompt_has_a_point(made, page):
    pictures = list((made / "figures").rglob("*.svg"))
    assert len(pictures) == 16
    assert page.count("<svg ") == len(pictures)
    titles = {unescape(t) for t in re.findall(r"<title>([^<]*)</title>", page)}
    for row in read_csv(made / "results" / MODEL / "behaviour" / "behaviour.csv"):
        assert any(title.startswith(f"{row['id']}, {row['class']}: ") for title in titles)


def test_neither_prompts_nor_completions_are_shown(made, page):
    said = text_of(page)
    for line in (made / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["prompt"] not in said


def test_the_command_names_every_setting_that_is_not_the_usual_one(made, page):
    prompts = f"PROMPTS={made}/prompts.jsonl"
    wanted = f"make all MODEL=planted-2 N=104 DTYPE=float32 DEVICE=cpu {prompts} PERMUTATIONS=100"
    wanted += f" VAL=8 TOKENS=12 LAYERS=3 CONTROLS=2 MAX_RANK=2 RESULTS={made}/results"
    assert wanted in text_of(page)


def test_a_second_time_writes_nothing_and_another_stage_does(copied, capsys):
    first = report(copied)
    path = copied / "results" / MODEL / "report.html"
    before = path.stat().st_mtime_ns
    assert report(copied) == first
    assert path.stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out
    shutil.rmtree(path.parent / "causal")
    assert report(copied) != first


def test_what_is_missing_is_named_with_the_command_that_makes_it(copied):
    for stage in ("sweep", "subspace"):
        shutil.rmtree(copied / "results" / MODEL / stage)
    said = answer_of(report(copied))
    assert "NOT ANSWERED YET" in said
    assert "That is no evidence on refusal." in said
    assert "make sweep MODEL=planted-2 N=104" in said
    assert "make subspace MODEL=planted-2 N=104" in said
    assert "make causal" not in said


def test_a_stage_that_was_changed_by_hand_is_left_out_and_named(copied, capsys):
    path = copied / "results" / MODEL / "sweep" / "sweep.csv"
    path.write_text(path.read_text().replace("3", "4"))
    assert "make sweep" in answer_of(report(copied))
    assert "sweep.csv is not what was written there" in capsys.readouterr().err


def test_a_figure_of_earlier_results_is_not_shown(copied):
    (copied / "results" / MODEL / "sweep" / "summary.json").touch()
    page = report(copied)
    assert "The figure sweep has not been drawn of these results" in text_of(page)
    assert page.count("<svg ") == 15


def test_stages_of_different_settings_are_said_to_be(copied):
    path = copied / "results" / MODEL / "causal" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["tokens"] = 40
    path.write_text(runs._signed(manifest))
    said = answer_of(report(copied))
    assert "Caution" in said
    assert "tokens differs between stages: 12 in baseline, sweep" in said


def test_a_page_of_32_layers_has_at_most_5_megabytes(made, page):
    pictures = sorted((made / "figures").glob("*/layer_distributions/*.svg"))
    more = 32 * max(path.stat().st_size for path in pictures)
    assert len(page.encode()) + more < 5e6


# 718: A4 without its margins.
LOOKS = [{"width": width, "dark": dark} for width in (320, 375, 1280) for dark in (False, True)]


@pytest.mark.parametrize("look", [*LOOKS, {"width": 718, "media": "print"}])
def test_the_page_fits_asks_for_nothing_and_has_no_complaint(browser, made, look):
    browser.open(made / "results" / MODEL / "report.html", **look)
    width = look["width"]
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert 2000 < browser.value("document.documentElement.scrollHeight") < 20000
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.value("[...document.querySelectorAll('svg')].every(s => s.clientWidth > 200)")


def test_hostile_names_are_text(browser, copied):
    folder = copied / "results"
    (folder / MODEL).rename(folder / safe_name(HOSTILE))
    (copied / "figures" / MODEL).rename(copied / "figures" / safe_name(HOSTILE))
    for path in (folder / safe_name(HOSTILE)).glob("*/manifest.json"):
        manifest = read_json(path)
        manifest["settings"]["model"] = HOSTILE
        write_text(path, runs._signed(manifest))
    report(copied, HOSTILE)
    browser.open(folder / safe_name(HOSTILE) / "report.html")
    assert browser.value("document.title") == f"Refusal in {HOSTILE}"
    assert f"Is refusal in {HOSTILE} one direction?" in browser.value("document.body.innerText")
    assert browser.value("document.querySelectorAll('script, img, iframe, object').length") == 0
    assert browser.value("'ran' in window") is False
    titles = browser.value("[...document.querySelectorAll('use title')].map(t => t.textContent)")
    assert any(re.match(rf"{re.escape(HOSTILE)}\d+, harmful: ", title) for title in titles)
    assert browser.complaints() == []
    assert browser.requests() == []


# The least contrast (WCAG 2) between a text and what is painted behind it.
CONTRAST = r"""(() => {
  const part = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\d.]+/g).map(v => part(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const clear = colour => /, 0\)$/.test(colour);
  const paper = e => clear(getComputedStyle(e).backgroundColor)
    ? paper(e.parentElement) : getComputedStyle(e).backgroundColor;
  const texts = 'p, li, a, td, th, caption, figcaption, summary, code, h1, h2';
  return Math.min(...[...document.querySelectorAll(texts)].map(e => {
    const [a, b] = [getComputedStyle(e).color, paper(e)].map(light);
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }));
})()"""


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"media": "print", "dark": True}])
def test_all_text_stands_out_from_its_paper(browser, made, look):
    browser.open(made / "results" / MODEL / "report.html", **look)
    assert browser.value(CONTRAST) >= 4.5


def test_a_screen_reader_finds_its_way(browser, made):
    browser.open(made / "results" / MODEL / "report.html")
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert browser.value("document.documentElement.lang") == "en"
    names = browser.names()
    for role in ("image", "table", "columnheader", "rowheader", "region"):
        assert names[role]
        assert all(names[role]), role
    ids = browser.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
