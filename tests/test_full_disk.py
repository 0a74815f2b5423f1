"""A disk that is full in the midst of a stage costs nothing that was there, and little work."""

import pytest
from test_journal import room
from test_subspace_pipeline import Chain, contents

from refusal_nn import planted
from refusal_nn.errors import DiskError
from refusal_nn.journal import Journal
from refusal_nn.runs import JOURNAL

FEW = {"n": 72, "tokens": 6, "controls": 1, "val": 8, "max_rank": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted1")
    planted.write_prompts(root / "prompts.csv", FEW["n"])
    return Chain(root, "planted-1", root / "prompts.csv").run(**FEW)


@pytest.mark.parametrize("stage", ["sweep", "subspace"])
def test_a_stage_on_a_full_disk_keeps_the_old_files_says_what_it_needs_and_goes_on_later(
    done, tmp_path, monkeypatch, stage
):
    made = done.copied(tmp_path)
    folder = made.folder.with_name(stage)
    (folder / "summary.json").unlink()
    old, add, added = contents(folder), Journal.add, []
    monkeypatch.setattr(Journal, "add", lambda *unit: added.append(unit[1]) or add(*unit))
    with room(16_000), pytest.raises(DiskError, match=r"[\d,]+ bytes needed, [\d,]+ are free"):
        made.run(**FEW)
    left = contents(folder)
    *kept, lost = added
    assert kept
    assert len(left.pop(JOURNAL).splitlines()) == 1 + len(kept)
    assert left == old
    made.run(**FEW)
    assert added.count(lost) == 2
    assert len(set(added)) == len(added) - 1
    whole = contents(done.folder.with_name(stage))
    assert contents(folder) == whole
