"""Names of parametrized tests."""

import re


def name_of(value: object) -> str:
    """`value` as text, without addresses: all processes that run the tests together must give a test the same name."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
