"""Transforms as the command line writes them, and as objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.cases import TABLES, run, same, table
from zo_kernels.transforms import (
    TRANSFORMS,
    centred_rank,
    chain,
    clip_coeffs,
    clip_norm,
    fzoo,
    get_transform,
    meazo,
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
    "fzoo": chain(fzoo()),
    "meazo:0.9": chain(meazo(0.9)),
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


ITEMS = {
    "clip-norm:0.5": clip_norm(0.5),
    "momentum:0.5:3": momentum(0.5, 3),
    "z-score": z_score(),
    "sign,momentum:0.9:2": chain(sign(), momentum(0.9, 2)),
    "": chain(),
}


@given(st.lists(st.tuples(st.sampled_from(list(ITEMS)), st.booleans()), max_size=4), st.booleans())
def test_a_list_of_names_and_objects_is_their_chain(items, is_tuple):
    steps = [table(TABLES["several"], first=10 * i) for i in range(3)]
    mixed = [name if by_name else ITEMS[name] for name, by_name in items]
    # A text in a list is a chain of its own, though of one: the names in the state tell.
    written = [parse_transforms(name) if by_name else ITEMS[name] for name, by_name in items]
    actual = run(get_transform(tuple(mixed) if is_tuple else mixed), steps)
    expected = run(chain(*written), steps)
    assert actual[0] == expected[0]
    assert same(actual[1], expected[1])


@pytest.mark.parametrize("one", ["momentum:0.5:3", momentum(0.5, 3)], ids=["text", "object"])
def test_one_is_a_list_of_one(one):
    steps = [table(TABLES["several"], first=10 * i) for i in range(3)]
    alone, listed = run(get_transform(one), steps), run(get_transform([one]), steps)
    assert alone[0] == listed[0]
    assert same(alone[1], listed[1])
    assert len(alone[1]) == 3


@pytest.mark.parametrize("given", [clip_norm, [clip_norm], (sign, sign)], ids=["alone", "in a list", "in a tuple"])
def test_a_function_that_was_not_called(given):
    with pytest.raises(TypeError, match=r"^(clip_norm|sign) is not a transform: call the function that builds one"):
        get_transform(given)


@pytest.mark.parametrize("given", [None, 3, [None], ["sign", 3], [["sign"]]])
def test_other_types(given):
    with pytest.raises(TypeError, match=r"must be a Transform, a text or a list of these, not .*: known are scale:F"):
        get_transform(given)


def test_an_unknown_name_in_a_list():
    with pytest.raises(ValueError, match="unknown transform 'magic'"):
        get_transform(["sign", "magic"])
