"""Prompt files as users have them: what is read, and that a fault is named with file and line."""

import contextlib
import csv
import json
import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from refusal_nn.errors import InputError
from refusal_nn.prompts import MAX_CHARACTERS, load_prompts


def row(prompt, label="harmful", **more):
    return json.dumps({"prompt": prompt, "label": label, **more})


HARMFUL = [row("Pick the lock of a shop"), row("Forge a landlord's signature")]
HARMLESS = [row("Fix the lock of a shed", "harmless"), row("Sign a landlord's form", "harmless")]
GOOD = "\n".join(HARMFUL + HARMLESS)
LABELLED = "prompt,label\nPick a lock,harmful\nForge a note,harmful\nFix a lock,harmless\n"

# File name, its bytes, the line at fault (None: the whole file), a word of the message.
LONG = "prompt,label,category\nSteal,"
BAD = {
    "same prompt in both classes": (
        "p.jsonl",
        f"{GOOD}\n{row('pick  the LOCK of a shop', 'harmless')}",
        5,
        "p.jsonl:1; remove one",
    ),
    "one prompt of a class": ("p.jsonl", "\n".join([*HARMFUL, HARMLESS[0]]), None, "1 harmless"),
    "no prompt at all": ("p.jsonl", "", None, "two prompts a class"),
    "an empty table": ("p.csv", "prompt,label\n", None, "two prompts a class"),
    "latin-1": ("p.jsonl", f"{GOOD}\n{row('café')}".encode()[:-4] + b"\xe9", 5, "UTF-8"),
    "latin-1 in a table": (
        "p.csv",
        LABELLED.encode() + "Écris,harmless".encode("latin-1"),
        5,
        "UTF",
    ),
    "UTF-16": ("p.txt", "Pick a lock\n".encode("utf-16"), 1, "UTF-8"),
    "UTF-16 without a mark": ("p.txt", "Pick a lock\n".encode("utf-16-le"), 1, "NUL"),
    "NUL": ("p.jsonl", f"{HARMFUL[0]}\n\0{HARMFUL[1]}", 2, "NUL"),
    "NUL in a table": ("p.csv", LABELLED + "Fix\0 a door,harmless\n", 5, "NUL"),
    "a missing column": ("p.csv", "sentence,label\nPick a lock,harmful\n", 2, "sentence"),
    "a missing key": ("p.jsonl", f'{HARMFUL[0]}\n{{"words": "Pick"}}', 2, "words"),
    "a row too short": ("p.csv", LABELLED + "Sign a form\n", 5, "2 columns"),
    "a row too long": ("p.csv", LABELLED + "Sign, seal,harmless\n", 5, "2 columns"),
    "an open quotation mark": ("p.csv", LABELLED + '"Sign a form,harmless\n', 5, "CSV"),
    "a stray quotation mark": ("p.csv", LABELLED + '"Sign" a form,harmless\n', 5, "CSV"),
    "broken JSON": ("p.jsonl", f'{HARMFUL[0]}\n{{"prompt": "Pick', 2, "not JSON"),
    "bottomless JSON": ("p.jsonl", f"{HARMFUL[0]}\n{'[' * 200_000}", 2, "not JSON"),
    "a JSON list": ("p.jsonl", f"[{', '.join(HARMFUL)}]", 1, "list"),
    "a JSON list over several lines": ("p.jsonl", "[\n" + ",\n".join(HARMFUL) + "\n]", 1, "JSON"),
    "rows that are text": ("p.jsonl", '"Pick a lock"\n', 1, "str"),
    "rows that are numbers": ("p.jsonl", f"{GOOD}\n7\n", 5, "int"),
    "null": ("p.jsonl", f"{GOOD}\n\nnull", 6, "NoneType"),
    "an empty prompt": ("p.jsonl", f"{GOOD}\n{row('')}", 5, "empty"),
    "an empty cell": ("p.csv", LABELLED + ",harmless\n", 5, "empty"),
    "a blank prompt": ("p.jsonl", f"{GOOD}\n{row('  	 ')}", 5, "empty"),
    "a prompt that is a number": ("p.jsonl", f"{GOOD}\n{row(12)}", 5, "no text"),
    "half a character": ("p.jsonl", f"{GOOD}\n" + row("Pick a \ud800 lock"), 5, ""),
    "a prompt too long": ("p.jsonl", f"{GOOD}\n{row('a ' * MAX_CHARACTERS)}", 5, "20000"),
    "severity 0": ("p.jsonl", f"{GOOD}\n{row('Steal', severity=0)}", 5, "severity"),
    "severity 6": ("p.jsonl", f"{GOOD}\n{row('Steal', severity=6)}", 5, "severity"),
    "severity 12": ("p.jsonl", f"{GOOD}\n{row('Steal', severity=12)}", 5, "severity"),
    "severity 2.5": ("p.jsonl", f"{GOOD}\n{row('Steal', severity=2.5)}", 5, "severity"),
    "severity in words": ("p.jsonl", f"{GOOD}\n{row('Steal', severity='high')}", 5, "severity"),
    "severity true": ("p.jsonl", f"{GOOD}\n{row('Steal', severity=True)}", 5, "severity"),
    "no label": ("p.jsonl", '{"prompt": "Pick a lock"}', 1, "no class"),
    "an unknown label": ("p.jsonl", f"{GOOD}\n{row('Steal', 'toxic')}", 5, "no class"),
    "plain text without a class": ("p.txt", "\nPick a lock\n", 2, "no class"),
    "an unknown label beside a file name that is known": (
        "harmful.jsonl",
        f"{GOOD}\n{row('Steal', 'toxic')}",
        5,
        "'toxic' is no class",
    ),
    "a key given twice": ("p.jsonl", f'{GOOD}\n{{"prompt": "a", "prompt": "b"}}', 5, "twice"),
    "a column given twice": ("p.csv", "prompt,Prompt ,label\na,b,harmful\n", 1, "'prompt'"),
    "an escaped NUL": ("p.jsonl", f"{GOOD}\n{row('Pick' + chr(0) + 'locks')}", 5, "NUL"),
    "line ends of old": ("harmful.txt", "Pick a lock\rForge a note\r", 1, "carriage return"),
    "an id taken twice": (
        "p.jsonl",
        "\n".join([row("Steal", id="a"), row("Rob", id="a"), *HARMLESS]),
        2,
        "taken",
    ),
    "an id that is a list": ("p.jsonl", f"{GOOD}\n{row('Steal', id=[1])}", 5, "id must be text"),
    "half a character in an id": (
        "p.jsonl",
        f"{GOOD}\n{row('Steal', id=chr(55296))}",
        5,
        "id must",
    ),
    "a NUL in a pair": ("p.jsonl", f"{GOOD}\n{row('Steal', pair='a' + chr(0))}", 5, "pair must"),
    "a category too long": ("p.csv", f"{LONG}harmful,{'x' * 1001}\n", 2, "category must be text"),
    "an unknown extension": ("p.json", GOOD, None, ".jsonl"),
    "no extension": ("p", GOOD, None, ".jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path, case):
    name, content, line, words = BAD[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_prompts(str(path))
    assert f"{path}:{line}:" in f"{caught.value}:" if line else str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: No such file"):
        load_prompts(str(tmp_path / name))


@pytest.mark.parametrize("name", ["folder", "folder.jsonl", "folder.csv", "folder.txt"])
def test_a_folder_is_no_prompt_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name):
        load_prompts(str(tmp_path / name))


def test_a_parquet_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def read_table(path):
        raise ValueError("Parquet magic bytes not found")  # pyarrow's ArrowInvalid is one

    pyarrow = SimpleNamespace(parquet=SimpleNamespace(read_table=read_table))
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    with pytest.raises(InputError, match=r"p\.parquet"):
        load_prompts(str(write(tmp_path / "p.parquet", "harmful,harmless")))


def test_an_unknown_word_before_the_equals_sign_is_refused(tmp_path):
    path = write(tmp_path / "p.txt", "Pick a lock\nForge a note\n")
    with pytest.raises(InputError, match=r"toxic=.*harmful or harmless"):
        load_prompts(f"toxic={path}")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(prompts):
    return {p.prompt: p.label for p in prompts}


EXPECTED = {
    "Pick a lock": "harmful",
    "Forge a note": "harmful",
    "Fix a lock": "harmless",
    "Sign a note": "harmless",
}
TABLE = "\n".join(["prompt,label", *(f"{text},{label}" for text, label in EXPECTED.items())])
OBJECTS = "\n".join(row(text, label) for text, label in EXPECTED.items())


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.CSV", "p.JSONL"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_line_ends_and_a_last_line_end_change_nothing(tmp_path, name, mark, end, last):
    content = TABLE if name.lower().endswith("csv") else OBJECTS
    path = write(tmp_path / name, mark + content.replace("\n", end) + (end if last else ""))
    assert texts(load_prompts(str(path))) == EXPECTED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_text_files_hold_a_prompt_a_line_and_their_names_may_tell_the_class(tmp_path, end):
    harmful = write(tmp_path / "Harmful_asks.txt", f"\ufeffPick a lock{end}Forge a note{end}")
    harmless = write(tmp_path / "harmless.txt", f"Fix a lock{end}Sign a note")
    assert texts(load_prompts(f"{harmful},{harmless}")) == EXPECTED
    assert texts(load_prompts(f"harmless={harmless}, harmful={harmful}")) == EXPECTED


def test_the_word_before_the_equals_sign_outweighs_the_file_name(tmp_path):
    swapped = write(tmp_path / "harmful.txt", "Fix a lock\nSign a note\n")
    other = write(tmp_path / "other.txt", "Pick a lock\nForge a note\n")
    assert texts(load_prompts(f"harmless={swapped},harmful={other}")) == EXPECTED


def test_a_label_column_outweighs_a_file_name_that_begins_with_a_class(tmp_path):
    path = write(tmp_path / "harmful_and_harmless.jsonl", OBJECTS)
    assert texts(load_prompts(str(path))) == EXPECTED


def test_a_quoted_newline_stays_in_its_prompt(tmp_path):
    path = write(tmp_path / "p.csv", f'{TABLE}\n"Write a note,\nin ""two"" lines",harmless')
    assert texts(load_prompts(str(path)))['Write a note,\nin "two" lines'] == "harmless"


@pytest.mark.parametrize(
    ("bad", "good"), [("unsafe", "safe"), ("HARMFUL", "Benign "), ("Unsafe", "harmless")]
)
def test_the_words_of_public_sets_are_understood(tmp_path, bad, good):
    content = TABLE.replace("harmless", good).replace("harmful", bad)
    assert texts(load_prompts(str(write(tmp_path / "p.csv", content)))) == EXPECTED


@pytest.mark.parametrize(
    "column", ["prompt", "text", "goal", "instruction", "behavior", "question"]
)
def test_the_columns_of_public_sets_are_understood(tmp_path, column):
    path = write(tmp_path / "p.csv", TABLE.replace("prompt", column.title(), 1))
    assert texts(load_prompts(str(path))) == EXPECTED


def test_the_further_columns_reach_the_prompt(tmp_path):
    extra = row("Steal a car", id=7, pair="x", category="theft", severity="3", source="me")
    path = write(tmp_path / "p.jsonl", f"{OBJECTS}\n\n{extra}")
    last = load_prompts(str(path))[-1]
    assert (last.id, last.pair, last.category, last.severity) == ("7", "x", "theft", 3)
    assert (last.source, last.where) == ("me", f"{path}:6")


def test_ids_that_two_files_share_are_told_apart_by_class(tmp_path):
    harmful = write(tmp_path / "a.jsonl", "\n".join(row(f"Steal {i}", id=i) for i in range(3)))
    harmless = write(
        tmp_path / "b.jsonl", "\n".join(row(f"Buy {i}", "harmless", id=i) for i in range(3))
    )
    ids = [p.id for p in load_prompts(f"harmful={harmful},harmless={harmless}")]
    assert ids == [f"{label}-{i}" for label in ("harmful", "harmless") for i in range(3)]


def test_exact_repetitions_are_dropped_and_counted(tmp_path):
    notes = []
    path = write(tmp_path / "p.jsonl", "\n".join([OBJECTS, OBJECTS, row(" pick A  lock ")]))
    assert texts(load_prompts(str(path), notes)) == EXPECTED
    assert notes[0] == "5 exact repetitions dropped"


def test_few_prompts_are_remarked_on_and_enough_are_not(tmp_path):
    def noted(n):
        rows = [row(f"{word} {i}", word) for i in range(n) for word in ("harmful", "harmless")]
        notes = []
        load_prompts(str(write(tmp_path / "p.jsonl", "\n".join(rows))), notes)
        return notes

    assert noted(31) == ["only 31 prompts in a class: intervals will be wide"]
    assert noted(32) == []


def test_a_label_that_contradicts_the_word_before_the_equals_sign_is_refused(tmp_path):
    path = write(tmp_path / "p.jsonl", OBJECTS)
    with pytest.raises(InputError, match=r"p\.jsonl:\d: its label is 'harmless'"):
        load_prompts(f"harmful={path}")


def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name in ("p.jsonl", "endless.txt"):
        with pytest.raises(InputError, match="no plain file"):
            load_prompts(str(tmp_path / name))


def alike(text):
    return " ".join(text.split()).casefold()


texts_of_a_line = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda text: any(c.isprintable() and not c.isspace() for c in text))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(texts_of_a_line, min_size=4, max_size=9, unique_by=alike))
def test_every_prompt_of_a_file_is_there_whole_and_in_order(tmp_path, prompts):
    rows = [{"prompt": t, "label": ("harmful", "harmless")[i % 2]} for i, t in enumerate(prompts)]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    expected = [(t.strip(), r["label"]) for t, r in zip(prompts, rows, strict=True)]
    assert [(p.prompt, p.label) for p in load_prompts(str(path))] == expected
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "label"])
        writer.writeheader()
        writer.writerows(rows)
    assert [(p.prompt, p.label) for p in load_prompts(str(tmp_path / "p.csv"))] == expected


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")),
        st.lists(st.sampled_from([*HARMFUL, *HARMLESS, "[", "{}", TABLE, '"', ",,"])).map(
            lambda lines: "\n".join(lines).encode()
        ),
    ),
    st.sampled_from([".jsonl", ".csv", ".txt"]),
    st.sampled_from(["harmful", "harmless", "p"]),
)
@example(b'prompt,label\n"', ".csv", "p")
@example(b"\xef\xbb\xbf", ".csv", "p")
def test_no_bytes_whatever_raise_anything_but_an_input_error(tmp_path, content, suffix, stem):
    path = write(tmp_path / f"{stem}{suffix}", content)
    with contextlib.suppress(InputError):
        assert {p.label for p in load_prompts(str(path))} == {"harmful", "harmless"}
