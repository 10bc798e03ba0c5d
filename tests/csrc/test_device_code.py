"""The machine code of the CUDA kernels, read without a GPU: no spills, registers, 16-byte accesses, no contraction."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.device_code import Demands, complaints, cuobjdump, demangled, read
from zo_kernels import _C

# By name, the first that fits. 168 registers leave 12 warps on a multiprocessor. The kernels of the ops round each
# operation and have 16-byte accesses where tensors are aligned, but for those of other distributions, which draw
# elements one by one; the forward is float32 arithmetic of its own order.
EXPECTED = {
    r"\baccumulate_kernel<.*, true>": Demands(168, loads=8, stores=8),
    r"\baccumulate_kernel<": Demands(168, loads=16, stores=16),
    r"\bapply_both_kernel<": Demands(80, loads=4, stores=2),
    r"\bapply_kernel<.*, true, \d>": Demands(64, loads=4, stores=1),
    r"\bapply_kernel<.*, false, 1>": Demands(40, stores=4),
    r"\baccumulate_from_kernel<": Demands(40),
    r"\bapply_from_kernel<": Demands(40),
    r"\brecurrence_kernel<.*, false>": Demands(128, loads=16, exact=False),  # two thread blocks of up to 256
    r"\brecurrence_kernel<.*, true>": Demands(128, exact=False),
    r"\boutput_kernel\b": Demands(168, exact=False),
    r"\boutput_weights_kernel\b": Demands(64, stores=2, exact=False),
    r"\btoken_table_kernel\b": Demands(64, exact=False),
    r"\btrial_kernel\b": Demands(32),  # which does nothing, for the sake of loading it
}

needs_cuobjdump = pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump: Triton is not installed")


@needs_cuobjdump
@pytest.mark.skipif(not _C.cuda_build(), reason="zo_kernels was built without CUDA: it has no device code")
@pytest.mark.slow
def test_kernels():
    kernels = read(Path(_C.__file__))
    found, met = [], set()
    for kernel in kernels:
        print(f"{kernel.registers:4} registers, {len(kernel.instructions):5} instructions: {kernel}")
        pattern = next((pattern for pattern in EXPECTED if re.search(pattern, kernel.name)), None)
        assert pattern is not None, f"{kernel} is not in the list of what to expect"
        met.add((pattern, kernel.arch))
        found += complaints(kernel, EXPECTED[pattern])
    assert not found, "\n".join(found)
    built = {f"sm_{number}" for number in re.findall(r"\d+", _C.cuda_build().split("architectures")[1])}
    assert {kernel.arch for kernel in kernels} == built
    assert met == {(pattern, arch) for pattern in EXPECTED for arch in built}, "a kernel in the list is not there"


SOURCE = """
namespace named { namespace {
template <int count> __global__ void good(const float4* x, float4* y) {
  float4 v = x[threadIdx.x];
  for (int i = 0; i < gridDim.x; ++i) { v.x = __fadd_rn(v.x, v.y); v.w = __fmul_rn(v.w, v.z); }
  y[threadIdx.x] = v;
}
template __global__ void good<3>(const float4*, float4*);
} }
extern "C" __global__ void narrow(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void fused(const float4* x, float4* y) {
  float4 v = x[threadIdx.x];
  v.x = v.x * v.y + v.z;
  y[threadIdx.x] = v;
}
extern "C" __global__ void stacked(const float4* x, float4* y, int k) {
  float4 v[16];
  for (int i = 0; i < 16; ++i) v[i] = x[i * threadIdx.x];
  for (int i = 0; i < 16; ++i) v[(i * k) % 16].x = v[i].y;
  y[threadIdx.x] = v[k];
}
extern "C" __global__ void flushing(const float4* x, float4* y) {
  float4 v = x[threadIdx.x];
  asm("add.rn.ftz.f32 %0, %0, %1;" : "+f"(v.x) : "f"(v.y));
  y[threadIdx.x] = v;
}
extern "C" __global__ void truncating(const float4* x, float4* y) {
  float4 v = x[threadIdx.x];
  v.x = __fadd_rz(v.x, v.y);
  y[threadIdx.x] = v;
}
"""


@pytest.mark.slow
@needs_cuobjdump
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile kernels with known faults")
def test_the_reader_sees_each_fault(tmp_path):
    (tmp_path / "kernels.cu").write_text(SOURCE)
    output = tmp_path / "kernels.so"
    architectures = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    command = ["nvcc", "--shared", "-Xcompiler=-fPIC", *architectures, "-o", str(output), str(tmp_path / "kernels.cu")]
    subprocess.run(command, check=True, capture_output=True)
    kernels = {(kernel.name, kernel.arch): kernel for kernel in read(output)}
    good = "void named::good<3>(float4 const*, float4*)"
    assert kernels.keys() == {
        (name, arch)
        for name in (good, "narrow", "fused", "stacked", "flushing", "truncating")
        for arch in ("sm_80", "sm_90")
    }
    expected = {
        good: [],
        "narrow": ["has 0 loads of 16 bytes, not 1", "has 0 stores of 16 bytes, not 1"],
        "fused": ["fuses multiplications with additions"],
        "stacked": ["has 256 bytes of stack and 0 of local memory", "spills registers"],
        "flushing": ["flushes subnormals to zero"],
        "truncating": ["rounds otherwise than to nearest"],
    }
    for (name, arch), kernel in kernels.items():
        assert complaints(kernel, Demands(255, 1, 1)) == [f"{name} for {arch} {fault}" for fault in expected[name]]
        few = Demands(kernel.registers - 1, exact=False)
        assert f"{kernel} takes {kernel.registers} registers, not {few.max_registers}" in complaints(kernel, few)
    loop = kernels[good, "sm_90"].longest_loop()
    assert any("FADD" in text for text in loop)
    assert "BRA" in loop[-1]
    assert not any("128" in text for text in loop)


def test_names():
    assert demangled("apply") == "apply"
    mangled = "_ZN2zo4cuda46_GLOBAL__N__d6ebc77d_13_accumulate_cu_b401c0bb17accumulate_kernelILNS_5DTypeE3EEEvNS1_1AE"
    assert demangled(mangled) == "void zo::cuda::accumulate_kernel<(zo::DType)3>(zo::cuda::A)"
