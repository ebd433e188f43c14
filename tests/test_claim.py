"""Claims: every sentence is registered, strictly read, and hashed over what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import claim
from bench.errors import UnknownName, UserError

EVERY = """
batch-crucial batch-fades cfg cond-blurry contrastive-better cpc-less ddpm-constant det-transfer
head-linear head-mlp head-why infonce-tight k-rule latent-easier moco-aug moco-cos moco-long
moco-memory moco-mlp moco-small-batch moco-time pixels-unnecessary pretext-few-labels
pretext-useful saturating semi-sup simclr-93g tied-to-pretext voc-order wgan-stable width-gap
"""
SMALL = """
id = "small"
quote = "More is better."
source = "A lecture"
track = "digits"
metric = { protocol = "knn", name = "top1" }
unit = "points"
seeds = 2
tuning = "None."
scale = "cpu"
reason = "Small."

[[contrasts]]
name = "a - b"
delta = 1.0
sides = [{ weight = 1, methods = ["a"] }, { weight = -1, methods = ["b"] }]
"""


def read(text: str) -> claim.Claim:
    return claim.parse_claim(text.encode(), Path("small.toml"))


def test_every_sentence_is_registered():
    assert set(EVERY.split()) <= set(claim.shipped())


@pytest.mark.parametrize("name", claim.shipped())
def test_a_registered_claim_is_whole(name):
    found = claim.load_claim(name)
    assert found.id == name
    assert len(found.sha256) == 64
    assert found.scale != "cpu" or found.track or all(c.study for c in found.contrasts)


def test_the_hash_is_of_what_the_file_says():
    same = "# a remark\n" + SMALL.replace("seeds = 2\n", "").replace(
        'unit = "points"', 'seeds = 2\nunit = "points"'
    )
    assert read(same).sha256 == read(SMALL).sha256
    for said, other in (("delta = 1.0", "delta = 1.5"), ('methods = ["b"]', 'methods = ["c"]')):
        assert read(SMALL.replace(said, other)).sha256 != read(SMALL).sha256


@pytest.mark.parametrize(
    ("said", "instead", "complaint"),
    [
        ("seeds = 2", "seeds = 0", "seeds: Input should be greater than or equal to 1, got 0"),
        ("seeds = 2", "seeds = 2.0", "seeds: Input should be a valid integer, got 2.0"),
        ("seeds = 2", "sedes = 2", "seeds: Field required"),
        ("delta = 1.0", "delta = -1.0", "contrasts.0.delta: Input should be greater"),
        ("delta = 1.0", "delta = nan", "contrasts.0.delta: Input should be"),
        ("delta = 1.0", 'rule = "within"', "range belongs to the rule within"),
        ("delta = 1.0", 'rule = "within"\nrange = [2.0, 1.0]', "range goes from low to high"),
        ("delta = 1.0", 'rule = "non-inferiority"', "needs a delta above 0"),
        ("delta = 1.0", 'study = "other"', "a study needs a quantity and a procedure"),
        ('id = "small"', 'id = "large"', "id is 'large'; expected the file's name, 'small'"),
        ('metric = { protocol = "knn", name = "top1" }', "", "a side has none of its own"),
        ('methods = ["a"]', 'methods = ["a", "c"], settings = { x = 1 }', "belong to one method"),
        ("weight = 1,", "weight = -2,", "one side needs a weight above 0"),
        ("[[contrasts]]", "[[contrasts", "is not TOML"),
    ],
)
def test_a_damaged_claim_is_refused_in_one_line(said, instead, complaint):
    assert said in SMALL
    with pytest.raises(UserError) as refused:
        read(SMALL.replace(said, instead))
    assert complaint in str(refused.value)
    assert "small.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_claim_offers_the_nearest():
    with pytest.raises(UnknownName, match="head-linear"):
        claim.load_claim("head-linaer")
