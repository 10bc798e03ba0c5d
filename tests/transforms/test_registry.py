"""Transforms as the command line writes them."""

import pytest

from tests.transforms.cases import TABLES, run, same, table
from zo_kernels.transforms import (
    TRANSFORMS,
    centred_rank,
    chain,
    clip_coeffs,
    clip_norm,
    momentum,
    parse_transforms,
    scale,
    scale_by_lr,
    sign,
    z_score,
)

WRITTEN = {
    "": chain(),
    " ": chain(),
    "scale:-0.5": chain(scale(-0.5)),
    "scale-by-lr": chain(scale_by_lr()),
    "clip-coeffs:0.25": chain(clip_coeffs(0.25)),
    "centred-rank": chain(centred_rank()),
    "sign": chain(sign()),
    "clip-norm:1e-1, momentum:0.9:2, z-score": chain(clip_norm(0.1), momentum(0.9, 2), z_score()),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_is_its_chain(text):
    steps = [table(TABLES["several"], first=10 * i) for i in range(4)]
    actual, expected = run(parse_transforms(text), steps), run(WRITTEN[text], steps)
    assert actual[0] == expected[0]
    assert same(actual[1], expected[1])


def test_every_transform_can_be_written():
    assert {item.split(":")[0].strip() for text in WRITTEN for item in text.split(",")} - {""} == TRANSFORMS.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip:1", r"unknown transform 'clip': choose from scale:FACTOR, .*, momentum:BETA:WINDOW$"),
        ("sign,,sign", "unknown transform ''"),
        ("sign,", "unknown transform ''"),
        ("clip-norm", "'clip-norm' does not fit clip-norm:LIMIT"),
        ("clip-norm:", "'clip-norm:' does not fit clip-norm:LIMIT"),
        ("clip-norm:a", "'clip-norm:a' does not fit clip-norm:LIMIT"),
        ("sign:1", "'sign:1' does not fit sign"),
        ("momentum:0.9", "'momentum:0.9' does not fit momentum:BETA:WINDOW"),
        ("momentum:0.9:8.5", "'momentum:0.9:8.5' does not fit momentum:BETA:WINDOW"),
        ("momentum:2:8", r"momentum takes a beta in \[0, 1\], not 2.0"),
        ("clip-norm:nan", "clip_norm takes a positive and finite limit, not nan"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_transforms(text)
