// Replaces the CUDA kernels if the build had no CUDA compiler. Every call throws an error that says so.
#include <stdexcept>

#include "device.h"
#include "launch.h"
#include "resident.h"

namespace zo::cuda {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error("built without CUDA: no nvcc from CUDA 11.8 on was used when zo_kernels was installed");
}

}  // namespace

std::string build_description() { return ""; }
std::string device_description() { refuse(); }
std::string device_problem(int) { refuse(); }

void probe(void*, DType, int64_t, uint64_t, int64_t, Queue) { refuse(); }
void apply_probe(const void*, DType, void*, DType, int64_t, Term, int64_t, Queue) { refuse(); }
void swap_probe(void*, DType, int64_t, Term, Term, int64_t, Queue) { refuse(); }
void apply_probes(const void*, DType, void*, DType, int64_t, const double*, const uint64_t*, int64_t, int64_t, Queue) {
  refuse();
}
void accumulate_probes(void*, DType, int64_t, const Row*, int64_t, int, int64_t, const Update&, Queue) { refuse(); }
void apply_probe(const PieceList&, const PieceList&, Term, Queue) { refuse(); }
void swap_probe(const PieceList&, Term, Term, Queue) { refuse(); }
void accumulate_probes(const PieceList&, const Row*, int64_t, int, const Update&, Queue) { refuse(); }

void probe_from(Distribution, void*, DType, int64_t, uint64_t, int64_t, Queue) { refuse(); }
void apply_probe_from(Distribution, const void*, DType, void*, DType, int64_t, Term, int64_t, Queue) { refuse(); }
void accumulate_probes_from(Distribution, void*, DType, int64_t, const DrawnRow*, int64_t, double, int64_t,
                            const Update&, Queue) {
  refuse();
}
void apply_probe_from(Distribution, const PieceList&, const PieceList&, Term, Queue) { refuse(); }
void accumulate_probes_from(Distribution, const PieceList&, const DrawnRow*, int64_t, double, const Update&, Queue) {
  refuse();
}

DeviceLimits device_limits(int) { refuse(); }
ResidentPlan plan_resident(int64_t, int64_t, DeviceLimits) { refuse(); }
ResidentBytes resident_bytes(const ResidentArgs&) { refuse(); }
int64_t num_parts(const ResidentArgs&) { refuse(); }
int64_t most_embed_dim(DeviceLimits) { refuse(); }
void evaluate_resident(const ResidentArgs&, Queue) { refuse(); }

}  // namespace zo::cuda
