// The population forward: header and model in population.h.
//
// Plan. A persistent thread block keeps the recurrent and output weights in shared memory, as bfloat16, and processes
// items one after another. An item is a probe, with both signs, on a tile of sequences, for all time steps. Its signs
// are made once, as bits in shared memory, and its states stay there from step to step. Per step:
//   1. gates: a warp takes 8 units of a head, all four gates, all sequences, both signs. Fragments of W and of
//      +-eps P are made once and meet 2 * kRowTiles fragments of h; the token table adds the input; the cell follows in
//      the registers where the sums are.
//   2. output: a warp takes 8 tokens of the vocabulary at a time, again for all sequences and both signs, and keeps a
//      running maximum and sum of exponentials per sequence; logits are never stored.
#include "population.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "layout.h"
#include "mma.h"
#include "project.h"
#include "runtime.h"
#include "signs.h"

namespace zo::cuda {
namespace {

template <int kRowTiles>
class Item {
 public:
  static constexpr int kSequences = 16 * kRowTiles;
  static constexpr int kMembers = 2 * kSequences;  // [sign][sequence]

  __device__ Item(const PopulationArgs& args, char* shared)
      : args_(args),
        at_(args, kSequences),
        shared_(shared),
        D_(static_cast<int>(args.head_dim)),
        H_(static_cast<int>(args.num_heads * args.head_dim)),
        V_(static_cast<int>(args.vocab_size)),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        group_(thread_ % 32 / 4),
        pair_(2 * (thread_ % 4)),
        eps_pair_(to_bfloat16(args.eps) * 0x10001u) {}

  __device__ void load_weights() {
    for (int i = thread_; i < 4 * H_ * D_; i += kThreads)
      words16(at_.weight)[i / D_ * at_.weight_stride + i % D_] = to_bfloat16(args_.recurrent_weight.data[i]);
    for (int i = thread_; i < V_ * H_; i += kThreads)
      words16(at_.output)[i / H_ * at_.output_stride + i % H_] = to_bfloat16(args_.output_weight.data[i]);
    for (int i = thread_; i < 2 * kMembers * at_.h_stride; i += kThreads) words16(at_.h)[i] = 0;
  }

  __device__ void run(int64_t probe, int64_t tile, int64_t tiles) {
    probe_ = probe;
    first_ = tile * kSequences;
    count_ = static_cast<int>(min(args_.batch_size - first_, int64_t{kSequences}));
    __syncthreads();
    begin();
    double nats = 0.0;  // of member `thread_`
    for (int64_t t = 0; t < args_.num_steps; ++t) {
      const int now = static_cast<int>(t % 2);
      if (thread_ < kSequences) {
        const int64_t at = (first_ + thread_) * args_.num_steps + t;
        const bool here = thread_ < count_;
        // Two buffers: others may still be at the last step's targets.
        ints(at_.tokens)[now * kSequences + thread_] = here ? static_cast<int>(args_.tokens[at]) : 0;
        const int64_t target = here ? args_.targets[at] : -1;
        ints(at_.targets)[now * kSequences + thread_] = target < 0 ? -1 : static_cast<int>(target);
      }
      __syncthreads();
      bool scored = false;
      for (int b = 0; b < kSequences; ++b) scored |= ints(at_.targets)[now * kSequences + b] >= 0;
      advance(now);
      __syncthreads();
      if (!scored) continue;  // all threads together; the next step's barriers keep them so
      project(now);
      __syncthreads();
      if (thread_ < kMembers) nats += position_nats(now);
    }
    if (thread_ < kMembers) doubles(at_.nats)[thread_] = nats;
    __syncthreads();
    if (thread_ < 2) {
      double sum = 0.0;
      for (int b = 0; b < count_; ++b) sum += doubles(at_.nats)[thread_ * kSequences + b];
      args_.nats[(probe_ * 2 + thread_) * tiles + tile] = sum;
    }
    if (args_.h != nullptr) finish(static_cast<int>(args_.num_steps % 2));
  }

 private:
  __device__ uint16_t* words16(int64_t offset) const { return reinterpret_cast<uint16_t*>(shared_ + offset); }
  __device__ uint32_t* words(int64_t offset) const { return reinterpret_cast<uint32_t*>(shared_ + offset); }
  __device__ float* floats(int64_t offset) const { return reinterpret_cast<float*>(shared_ + offset); }
  __device__ double* doubles(int64_t offset) const { return reinterpret_cast<double*>(shared_ + offset); }
  __device__ int* ints(int64_t offset) const { return reinterpret_cast<int*>(shared_ + offset); }
  // Hidden states of a member, of the step before (`buffer` now) or after it.
  __device__ uint16_t* hidden(int buffer, int member) const {
    return words16(at_.h) + (buffer * kMembers + member) * at_.h_stride;
  }
  __device__ int64_t state_index(int member, int unit) const {  // in args.h and args.c
    const int64_t sign = member / kSequences, sequence = first_ + member % kSequences;
    return (((probe_ * 2 + sign) * args_.num_heads + unit / D_) * args_.batch_size + sequence) * D_ + unit % D_;
  }

  // Signs, perturbed output bias and the first states.
  __device__ void begin() {
    const uint64_t seed = args_.seeds[probe_];
    weight_bits_ = SignBits(args_.recurrent_weight, 0, 4 * H_ * D_, seed, words(at_.weight_signs), thread_, kThreads);
    output_bits_ = SignBits(args_.output_weight, 0, V_ * H_, seed, words(at_.output_signs), thread_, kThreads);
    for (int v = thread_; v < V_; v += kThreads) {
      const float bias = args_.output_bias.data[v], step = step_of(args_.output_bias, v, args_.eps, seed);
      floats(at_.output_bias)[v] = bias + step;
      floats(at_.output_bias)[V_ + v] = bias - step;
    }
    for (int i = thread_; i < kMembers * H_; i += kThreads) {
      const int member = i / H_, unit = i % H_;
      const bool given = args_.h != nullptr && member % kSequences < count_;
      const int64_t at = given ? state_index(member, unit) : 0;
      hidden(0, member)[unit] = given ? to_bfloat16(args_.h[at]) : uint16_t{0};
      floats(at_.c)[i] = given ? args_.c[at] : 0.0f;
    }
  }

  __device__ void finish(int buffer) {
    for (int i = thread_; i < kMembers * H_; i += kThreads) {
      const int member = i / H_, unit = i % H_;
      if (member % kSequences >= count_) continue;
      args_.h[state_index(member, unit)] = __bfloat162float(__ushort_as_bfloat16(hidden(buffer, member)[unit]));
      args_.c[state_index(member, unit)] = floats(at_.c)[i];
    }
  }

  // Columns k0 + pair_ and the next of a row of weights, 0 beyond `length`; and the same of +-eps P.
  __device__ uint32_t weight_pair(const uint16_t* row, bool here, int k, int length) const {
    return here && k < length ? *reinterpret_cast<const uint32_t*>(row + k) : 0u;
  }
  __device__ uint32_t step_pair(const SignBits& bits, int row_start, bool here, int k, int length) const {
    if (!here || k >= length || !bits.perturbed()) return 0u;
    const uint32_t minus = ~bits.pair(row_start + k);
    return eps_pair_ ^ (minus << 15 & 0x8000u) ^ (minus << 30 & 0x80000000u);
  }

  __device__ void load_hidden(uint32_t (&a)[4], int buffer, int row_tile, int sign, int column) const {
    const int member = sign * kSequences + 16 * row_tile + group_;
    const uint16_t* low = hidden(buffer, member) + column + pair_;
    const uint16_t* high = hidden(buffer, member + 8) + column + pair_;
    a[0] = *reinterpret_cast<const uint32_t*>(low);
    a[1] = *reinterpret_cast<const uint32_t*>(high);
    a[2] = *reinterpret_cast<const uint32_t*>(low + 8);
    a[3] = *reinterpret_cast<const uint32_t*>(high + 8);
  }

  // sums += h (W +- eps P) for 8 rows of weights, of which this lane holds row `row`.
  __device__ void multiply(float (&sums)[kRowTiles][2][4], const uint32_t (&a)[kRowTiles][2][4], const uint16_t* row,
                           const SignBits& bits, int row_start, bool here, int k, int length) const {
    const uint32_t w0 = weight_pair(row, here, k, length), w1 = weight_pair(row, here, k + 8, length);
    const uint32_t p0 = step_pair(bits, row_start, here, k, length);
    const uint32_t p1 = step_pair(bits, row_start, here, k + 8, length);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t flip = s == 0 ? 0u : 0x80008000u;
        multiply_add(sums[r][s], a[r][s], w0, w1);
        multiply_add(sums[r][s], a[r][s], p0 ^ flip, p1 ^ flip);
      }
  }

  // One time step of the recurrence, from hidden buffer `now` to the other.
  __device__ void advance(int now) {
    const int unit_tiles = (D_ + 7) / 8;
    for (int item = warp_; item < static_cast<int>(args_.num_heads) * unit_tiles; item += kWarps) {
      __syncwarp();  // the products need all lanes at once
      const int head = item / unit_tiles, first = item % unit_tiles * 8;
      float sums[4][kRowTiles][2][4] = {};
      const bool here = first + group_ < D_;
      for (int k0 = 0; k0 < D_; k0 += 16) {
        uint32_t a[kRowTiles][2][4];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          for (int s = 0; s < 2; ++s) load_hidden(a[r][s], now, r, s, head * D_ + k0);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const int row = gate * H_ + head * D_ + first + (here ? group_ : 0);
          multiply(sums[gate], a, words16(at_.weight) + row * at_.weight_stride, weight_bits_, row * D_, here,
                   k0 + pair_, D_);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int d = first + pair_ + i % 2, sequence = 16 * r + group_ + (i < 2 ? 0 : 8);
            if (d >= D_) continue;
            update_unit(now, s, sequence, head * D_ + d, sums[0][r][s][i], sums[1][r][s][i], sums[2][r][s][i],
                        sums[3][r][s][i]);
          }
    }
  }

  __device__ void update_unit(int now, int sign, int sequence, int unit, float i, float f, float z, float o) {
    const int member = sign * kSequences + sequence;
    const int64_t token = ints(at_.tokens)[now * kSequences + sequence];
    const float4 input = reinterpret_cast<const float4*>(args_.table)[((probe_ * 2 + sign) * V_ + token) * H_ + unit];
    float& c = floats(at_.c)[member * H_ + unit];
    c = sigmoid(f + input.y) * c + sigmoid(i + input.x) * hyperbolic_tangent(z + input.z);
    hidden(1 - now, member)[unit] = to_bfloat16(sigmoid(o + input.w) * hyperbolic_tangent(c));
  }

  // Logits of all sequences after the step that began with buffer `now`, as this warp's part of their sums of
  // exponentials and the logit of the target.
  __device__ void project(int now) {
    RunningSum running[kRowTiles][2][2];
    for (int first = 8 * warp_; first < V_; first += 8 * kWarps) {
      __syncwarp();
      float sums[kRowTiles][2][4] = {};
      const bool here = first + group_ < V_;
      const int row = here ? first + group_ : 0;
      for (int k0 = 0; k0 < H_; k0 += 16) {
        uint32_t a[kRowTiles][2][4];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          for (int s = 0; s < 2; ++s) load_hidden(a[r][s], 1 - now, r, s, k0);
        multiply(sums, a, words16(at_.output) + row * at_.output_stride, output_bits_, row * H_, here, k0 + pair_, H_);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int v = first + pair_ + i % 2, sequence = 16 * r + group_ + (i < 2 ? 0 : 8);
            if (v >= V_) continue;
            const float logit = sums[r][s][i] + floats(at_.output_bias)[s * V_ + v];
            running[r][s][i / 2].add(logit);
            const bool is_target = v == ints(at_.targets)[now * kSequences + sequence];
            if (is_target) floats(at_.picked)[s * kSequences + sequence] = logit;
          }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          RunningSum& sum = running[r][s][half];
#pragma unroll
          for (int mask = 1; mask <= 2; mask *= 2) {
            const float largest = __shfl_xor_sync(~0u, sum.largest, mask), other = __shfl_xor_sync(~0u, sum.sum, mask);
            sum.merge(largest, other);
          }
          if (pair_ != 0) continue;
          const int member = s * kSequences + 16 * r + group_ + 8 * half;
          floats(at_.partial)[(2 * warp_) * kMembers + member] = sum.largest;
          floats(at_.partial)[(2 * warp_ + 1) * kMembers + member] = sum.sum;
        }
  }

  // Of member `thread_`, from the parts of all warps.
  __device__ double position_nats(int now) const {
    if (ints(at_.targets)[now * kSequences + thread_ % kSequences] < 0) return 0.0;
    RunningSum sum;
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* part = floats(at_.partial) + 2 * warp * kMembers + thread_;
      sum.merge(part[0], part[kMembers]);
    }
    return static_cast<double>(__logf(sum.sum) + (sum.largest - floats(at_.picked)[thread_]));
  }

  const PopulationArgs& args_;
  const Layout at_;
  char* const shared_;
  const int D_, H_, V_, thread_, warp_, group_, pair_;
  const uint32_t eps_pair_;
  SignBits weight_bits_, output_bits_;
  int64_t probe_ = 0, first_ = 0;
  int count_ = 0;
};

template <int kRowTiles>
__global__ void __launch_bounds__(kThreads, 1) population_kernel(const PopulationArgs args, int64_t tiles) {
  ZO_DYNAMIC_SHARED(shared);
  Item<kRowTiles> item(args, shared);
  item.load_weights();
  for (int64_t i = blockIdx.x; i < args.num_seeds * tiles; i += gridDim.x) item.run(i / tiles, i % tiles, tiles);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "no CUDA device");
  return value;
}

}  // namespace

int64_t tile_sequences(const PopulationArgs& args, int device) {
  const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (args.head_dim % 2 != 0 || project_shared_bytes(args) > most - 16 * 1024) return 0;
  if (args.batch_size > 16 && Layout(args, 32).size <= most) return 32;
  return Layout(args, 16).size <= most ? 16 : 0;
}

int64_t batch_tiles(const PopulationArgs& args, int device) {
  const int64_t sequences = tile_sequences(args, device);
  return sequences == 0 ? 0 : (args.batch_size + sequences - 1) / sequences;
}

int64_t table_floats(const PopulationArgs& args) {
  return args.num_seeds * 2 * args.vocab_size * args.num_heads * args.head_dim * 4;
}

void evaluate_population(const PopulationArgs& args, Queue queue) {
  const int64_t sequences = tile_sequences(args, queue.device), tiles = batch_tiles(args, queue.device);
  if (sequences == 0) throw std::invalid_argument(kPopulationLimits);
  if (__bfloat162float(__float2bfloat16_rn(args.eps)) != args.eps)
    throw std::invalid_argument("the population kernel needs an eps that bfloat16 holds");
  if (args.num_seeds == 0) return;
  const int64_t rows = 4 * args.num_heads * args.head_dim;
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows),
                  static_cast<unsigned>((args.vocab_size + kTokens - 1) / kTokens),
                  static_cast<unsigned>(args.num_seeds));
  const int project_bytes = static_cast<int>(project_shared_bytes(args));
  launch("token table", &project_kernel, grid, kProjectThreads, project_bytes, queue, args);
  const int64_t most = attribute(cudaDevAttrMultiProcessorCount, queue.device);
  const int64_t blocks = std::min(args.num_seeds * tiles, most);
  const int bytes = static_cast<int>(Layout(args, static_cast<int>(sequences)).size);
  launch("population", sequences == 32 ? &population_kernel<2> : &population_kernel<1>,
         dim3(static_cast<unsigned>(blocks)), kThreads, bytes, queue, args, tiles);
}

}  // namespace zo::cuda
