"""Reads compiled device code, cubins and shared objects, with the cuobjdump that Triton's wheel carries."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture: the registers of a thread, the bytes it spills to, and its instructions."""

    name: str
    arch: str
    registers: int
    stack: int
    local: int
    instructions: tuple[tuple[int, str], ...]  # address and text

    def __str__(self) -> str:
        return f"{self.name} for {self.arch}"

    def opcodes(self) -> Counter[str]:
        """How often each opcode with its modifiers (LDG.E.128) occurs."""
        return Counter(_opcode(text) for _, text in self.instructions)

    def count(self, pattern: str) -> int:
        """Instructions whose opcode matches the whole `pattern`."""
        return sum(n for opcode, n in self.opcodes().items() if re.fullmatch(pattern, opcode))

    def longest_loop(self) -> list[str]:
        """The instructions from the target of the farthest branch backwards to that branch."""
        first, last = 0, -1
        for address, text in self.instructions:
            target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
            if target and 0 < address - int(target[1], 16) > last - first:
                first, last = int(target[1], 16), address
        return [text for address, text in self.instructions if first <= address <= last]


def _opcode(text: str) -> str:
    return re.sub(r"^@!?\w+\s+", "", text).split()[0]


def cuobjdump() -> Path | None:
    """Triton's, None if it is not installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    return path if path.exists() else None


def read(path: Path) -> list[Kernel]:
    """Every kernel in a cubin, or in a shared object for every architecture it has machine code for."""
    code = {}
    for arch, section in _split(_dump(path, "-sass"), r"code for (sm_\w+)"):
        for name, body in _split(section, r"Function : (\S+)"):
            found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", body, re.MULTILINE)
            code[name, arch] = tuple((int(address, 16), text) for address, text in found)
    text, usage = _dump(path, "-res-usage"), {}
    alone = next((arch for _, arch in code), "")  # of a cubin, where this output does not name it
    for arch, section in _split(text, r"arch = (sm_\w+)") or [(alone, text)]:
        for name, body in _split(section, r"Function (\S+):"):
            usage[name, arch] = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", body)}
    assert usage.keys() == code.keys(), f"cuobjdump lists other kernels with -sass than with -res-usage in {path}"
    return [
        Kernel(demangled(name), arch, found["REG"], found["STACK"], found["LOCAL"], code[name, arch])
        for (name, arch), found in usage.items()
    ]


def _dump(path: Path, what: str) -> str:
    return subprocess.run([str(cuobjdump()), what, str(path)], capture_output=True, text=True, check=True).stdout


def _split(text: str, heading: str) -> list[tuple[str, str]]:
    """What `heading` matched and the text up to the next heading, for each."""
    _, *parts = re.split(heading, text)
    return list(zip(parts[::2], parts[1::2], strict=True))


def demangled(name: str) -> str:
    """Without the anonymous namespaces, whose names differ from build to build; a C name as it is."""
    status, demangle = ctypes.c_int(), ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
    demangle.restype = ctypes.c_void_p
    address = demangle(name.encode(), None, None, ctypes.byref(status))
    if not address:
        return name
    text = ctypes.string_at(address).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(address))
    return re.sub(r"(\(anonymous namespace\)|_GLOBAL__N_\w+)::", "", text)


@dataclass(frozen=True)
class Demands:
    """What a kernel must be like: no more registers than these, at least so many 16-byte loads and stores."""

    max_registers: int
    loads: int = 0
    stores: int = 0
    exact: bool = True  # each operation rounded to nearest: outside of square roots none is fused, no subnormal flushed


def complaints(kernel: Kernel, demands: Demands) -> list[str]:
    """Where a kernel falls short of the demands, or spills: a sentence each."""
    # A correctly rounded square root refines an approximation by two multiply-adds and two products that may flush. Of
    # the first, three are in the rare path that all roots share, and eight of the latter.
    roots = kernel.count(r"MUFU\.RSQ\b.*")
    fused, flushing = (2 * roots + 1, 2 * roots + 6) if roots else (0, 0)
    loads, stores = kernel.count(r"LDG\.E\b.*\.128\b.*"), kernel.count(r"STG\.E\b.*\.128\b.*")
    found = {
        f"has {kernel.stack} bytes of stack and {kernel.local} of local memory": kernel.stack + kernel.local > 0,
        "spills registers": kernel.count(r"(LDL|STL)\b.*") > 0,
        f"takes {kernel.registers} registers, not {demands.max_registers}": kernel.registers > demands.max_registers,
        f"has {loads} loads of 16 bytes, not {demands.loads}": loads < demands.loads,
        f"has {stores} stores of 16 bytes, not {demands.stores}": stores < demands.stores,
        "fuses multiplications with additions": demands.exact and kernel.count(r"[FD]FMA\b.*") > fused,
        "rounds otherwise than to nearest": demands.exact and kernel.count(r"(F|D|I2F).*\.R[ZMP]\b.*") > 0,
        "flushes subnormals to zero": demands.exact and kernel.count(r".*\.FTZ\b.*") > flushing,
    }
    return [f"{kernel} {complaint}" for complaint, holds in found.items() if holds]
