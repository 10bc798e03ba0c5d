"""What a launcher's variables may say, and what is said of others."""

import pytest

from zo_kernels.distributed.launch import Launch, is_launched, read_launch
from zo_kernels.errors import UsageError
from zo_kernels.train.__main__ import main

GOOD = {
    **{"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return monkeypatch


def test_good_variables(launcher: pytest.MonkeyPatch) -> None:
    launch = read_launch()
    assert launch == Launch(1, 4, 1, 2, "127.0.0.1", 29500, False)
    assert not launch.is_on_one_node
    launcher.setenv("LOCAL_WORLD_SIZE", "4")
    assert read_launch().is_on_one_node
    launcher.delenv("LOCAL_RANK")
    launcher.delenv("LOCAL_WORLD_SIZE")
    launcher.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert read_launch() == Launch(1, 4, None, None, "127.0.0.1", 29500, True)
    launcher.delenv("MASTER_PORT")
    assert read_launch() is None


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.0.3", "::1"])
def test_loopback_addresses(address: str, launcher: pytest.MonkeyPatch) -> None:
    launcher.setenv("MASTER_ADDR", address)
    assert read_launch().has_loopback_address
    for other in ("node0", "128.0.0.1", "::2"):
        launcher.setenv("MASTER_ADDR", other)
        assert not read_launch().has_loopback_address


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "x", "RANK must be a whole number of at least 0 and at most 3, not 'x'"),
        ("RANK", "4", "RANK must be a whole number of at least 0 and at most 3, not '4'"),
        ("RANK", "-1", "RANK must be"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be a whole number of at least 1, not '0'"),
        ("WORLD_SIZE", "", "WORLD_SIZE must be"),
        ("WORLD_SIZE", "9" * 30, "WORLD_SIZE must be"),
        ("LOCAL_RANK", "2", "LOCAL_RANK must be a whole number of at least 0 and at most 1"),
        ("LOCAL_RANK", "1.0", "LOCAL_RANK must be"),
        ("LOCAL_WORLD_SIZE", "none", "LOCAL_WORLD_SIZE must be"),
        ("LOCAL_WORLD_SIZE", "8", "LOCAL_WORLD_SIZE is 8, but WORLD_SIZE only 4"),
        ("MASTER_PORT", "abc", "MASTER_PORT must be a whole number of at least 1 and at most 65535, not 'abc'"),
        ("MASTER_PORT", "65536", "MASTER_PORT must be"),
        ("MASTER_ADDR", "", "MASTER_ADDR must be the name or the address of rank 0's node, not ''"),
        ("MASTER_ADDR", "a b", "MASTER_ADDR must be"),
    ],
)
def test_bad_variables_end_in_one_sentence(
    name: str, value: str, said: str, launcher: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.setenv(name, value)
    with pytest.raises(UsageError, match=said[:10]):
        read_launch()
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_a_local_rank_alone(launcher: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read without the other variables, too."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        launcher.delenv(name)
    launcher.setenv("LOCAL_RANK", "first")
    assert not is_launched()
    assert main([]) == 2
    assert "LOCAL_RANK must be a whole number of at least 0, not 'first'" in capsys.readouterr().err
