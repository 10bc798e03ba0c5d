// The probe contract, which gives the sign of element j of the probe of a seed.
//
//   p_j(seed) = +1 if bit(j) else -1,   bit(j) = bit (j mod 32) of word ((j div 32) mod 4) of
//   Philox4x32-10( counter = (lo32(j div 128), hi32(j div 128), stream, 0), key = (lo32(seed), hi32(seed)) )
//
// j is an index in the flat parameter space. One Philox call makes the 128 signs of a *block*. Nothing here may depend
// on thread, launch shape, ISA or data type. This is plain C++ for nvcc and the host compiler. The vectorised generator
// (cpu/generate.h) must agree with it bit for bit.
//
// Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; check values are those
// of Random123.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define ZO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ZO_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace zo {

// Counter word 2 separates the uses of one seed. zo_kernels/philox.py holds the same table; a test compares them.
// Counter word 3 is 0, with three exceptions: sparsity and stochastic rounding (below), and normals and uniforms
// (zo_kernels/distributions.py). These need a word per element instead of a bit, so counter word 3 is j mod 32.
enum Stream : uint32_t {
  kStreamRademacher = 0,
  kStreamNormal = 1,
  kStreamUniform = 2,
  kStreamStochasticRounding = 3,  // counter word 3 = (j mod 128) div 8: eight elements take 16 bits each, in order
  kStreamSeeds = 4,  // counter (lo32(step), hi32(step), stream, probe): the seeds of a run's probes
  kStreamSparsity = 5,  // counter word 3 = 0..m-1: an element of sparse-2^m is kept where all m bits are 1
  kStreamActivity = 6,  // counter word 3 = the sequence; j counts the pre-activations of its steps (docs/contract.md)
};

constexpr int64_t kBlockSigns = 128;  // signs of one Philox call; offsets are multiples of 128

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;  // golden ratio
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;  // sqrt(3) - 1
constexpr int kPhiloxRounds = 10;

struct Philox4 {
  uint32_t word[4];
};

ZO_HOST_DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }

ZO_HOST_DEVICE Philox4 philox4x32_10(Philox4 counter, uint32_t key0, uint32_t key1) {
  Philox4 c = counter;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t hi0 = mul_hi(kPhiloxM0, c.word[0]);
    const uint32_t lo0 = kPhiloxM0 * c.word[0];
    const uint32_t hi1 = mul_hi(kPhiloxM1, c.word[2]);
    const uint32_t lo1 = kPhiloxM1 * c.word[2];
    c.word[0] = hi1 ^ c.word[1] ^ key0;
    c.word[1] = lo1;
    c.word[2] = hi0 ^ c.word[3] ^ key1;
    c.word[3] = lo0;
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return c;
}

// 128 random bits of block `block` (= j div 128) of `seed`: signs for stream 0. `number` is counter word 3.
ZO_HOST_DEVICE Philox4 philox_block(uint64_t seed, uint64_t block, uint32_t stream, uint32_t number = 0) {
  const Philox4 counter = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, number}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace zo
