"""TextStream: characters appear as soon as they are whole."""

from zo_kernels.generate.stream import TextStream
from zo_kernels.tasks.codecs import Bytes


def pushed(data: bytes, context: bytes = b"") -> list[str]:
    stream = TextStream(Bytes().decode, list(context))
    return [*map(stream.push, data), stream.close()]


def test_a_character_waits_for_its_last_byte() -> None:
    assert pushed("a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_is_shown() -> None:
    assert pushed(b"a\xe2\x82") == ["a", "", "", "\ufffd"]


def test_bytes_of_no_character_do_not_wait_for_ever() -> None:
    assert pushed(b"\xffa") == ["", "\ufffda", ""]
    assert "".join(pushed(b"\x80" * 9)) == "\ufffd" * 9


def test_a_prompt_may_end_within_a_character() -> None:
    assert "".join(pushed(b"b", "long é".encode())) == "b"
