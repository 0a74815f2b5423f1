"""The subspace stage at several positions."""

from test_subspace_pipeline import SMALL, Chain

from refusal_nn import planted


def test_bases_are_fitted_at_every_position_asked_for_and_the_planted_rank_is_found(tmp_path):
    planted.write_prompts(tmp_path / "prompts.csv", SMALL["n"])
    made = Chain(tmp_path, "planted-2", tmp_path / "prompts.csv").run(positions="-1,-3")
    names = {row["name"] for row in made.rows("candidates")}
    assert {"prompts 3", "prompts 3 at -3", "clusters 3", "clusters 3 at -3"} <= names
    verdict = made.json()
    assert verdict["pos"] in (-1, -3)
    assert (verdict["rank"]["rank"], verdict["planted"]["rank"]) == (2, 2)
    assert max(verdict["planted"]["angles"]) < 30
