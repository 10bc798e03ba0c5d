// The interface of the CPU kernels, with raw pointers and sizes, without torch or Python.
//
// Element i of a piece is element j = offset + i of the flat parameter space. `offset` must be a multiple of 128, and
// offset + numel at most 2^63. Where there is an `out`, its pieces have the sizes and offsets of those of x. The threads
// share the tiles of all pieces of a call. Results do not depend on the number of threads or the ISA. Floating point is IEEE with round-to-nearest-even; no operation is contracted. "Compute type" is
// double where the input is float64 and float otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../philox.h"
#include "../types.h"

namespace zo::cpu {

// out[i] = p_j(seed)
void probe(void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset);

// out[i] = cast(x[i] + alpha * p_j(seed)); out may be x.
void apply_probe(const Pieces& x, const Pieces& out, Term term);

// x[i] = cast((x[i] + from.alpha * p_j(from.seed)) + to.alpha * p_j(to.seed)), which moves from one probe to the next.
void swap_probe(const Pieces& x, Term from, Term to);

// With S = sum_k quantised[k] * p_j(seeds[k]), an exact int32 sum (the caller keeps sum_k |quantised[k]| < 2^31):
//   v = x[i];  v += undo.alpha * p_j(undo.seed);  v *= decay;  v += S * 2^-shift;  v = rint(v / grid) * grid
// each step rounded to the compute type, then cast to the type of x: if update.rounds_at_random, 16-bit types by
// stochastic rounding (rounding.h).
void accumulate_probes(const Pieces& x, const int32_t* quantised, const uint64_t* seeds, int64_t num_seeds, int shift,
                       const Update& update);

// The same for p(seed) drawn from any distribution: z_j, a float32 number of zo_kernels/distributions.py.
//   out[i] = z_j;   out[i] = cast(x[i] + alpha * z_j)
void probe_from(Distribution distribution, void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset);
void apply_probe_from(Distribution distribution, const Pieces& x, const Pieces& out, Term term);

// As accumulate_probes, with the sum S_j = sum_k coeffs[k] * z_kj of doubles, in the order of k, each operation
// rounded:
//   v += compute_type(S_j) * scale, with scale a power of two.
void accumulate_probes_from(Distribution distribution, const Pieces& x, const double* coeffs, const uint64_t* seeds,
                            int64_t num_seeds, double scale, const Update& update);

// The same for one piece.
inline void apply_probe(const void* x, DType x_type, void* out, DType out_type, int64_t numel, Term term,
                        int64_t offset) {
  const Piece from = {const_cast<void*>(x), numel, offset}, to = {out, numel, offset};
  apply_probe({&from, 1, x_type}, {&to, 1, out_type}, term);
}

inline void swap_probe(void* x, DType type, int64_t numel, Term from, Term to, int64_t offset) {
  const Piece piece = {x, numel, offset};
  swap_probe({&piece, 1, type}, from, to);
}

inline void accumulate_probes(void* x, DType type, int64_t numel, const int32_t* quantised, const uint64_t* seeds,
                              int64_t num_seeds, int shift, int64_t offset, const Update& update) {
  const Piece piece = {x, numel, offset};
  accumulate_probes({&piece, 1, type}, quantised, seeds, num_seeds, shift, update);
}

inline void apply_probe_from(Distribution distribution, const void* x, DType x_type, void* out, DType out_type,
                             int64_t numel, Term term, int64_t offset) {
  const Piece from = {const_cast<void*>(x), numel, offset}, to = {out, numel, offset};
  apply_probe_from(distribution, {&from, 1, x_type}, {&to, 1, out_type}, term);
}

inline void accumulate_probes_from(Distribution distribution, void* x, DType type, int64_t numel, const double* coeffs,
                                   const uint64_t* seeds, int64_t num_seeds, double scale, int64_t offset,
                                   const Update& update) {
  const Piece piece = {x, numel, offset};
  accumulate_probes_from(distribution, {&piece, 1, type}, coeffs, seeds, num_seeds, scale, update);
}

// Generates the signs of all seeds and folds their words with XOR. Used to measure generation alone, and as a digest of
// the bits of many seeds.
uint64_t fold_probes(int64_t numel, const uint64_t* seeds, int64_t num_seeds, int64_t offset);

// Instruction sets: those compiled in, those this processor runs, and the one in use.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();
std::string active_isa();                    // throws std::runtime_error if ZO_KERNELS_ISA can't be used
void set_active_isa(const std::string& name);  // "" returns to the automatic choice

}  // namespace zo::cpu
