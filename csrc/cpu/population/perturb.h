// Makes perturbed weights where they are used: short runs of theta + eps * p(seed), in a panel that fits the caches.

// Reads the signs of one parameter in order, through a window of two tiles that moves with the requested runs, so that
// consecutive runs share tiles.
class SignReader {
 public:
  ZO_INLINE explicit SignReader(uint64_t seed) : seed_(seed), window_(-2), has_second_(false) {}

  // The signs of elements j .. j + kLanes - 1 and after, as a bit string that begins `shift` bits into `bytes`; `count`
  // elements whose whole vectors it holds, at least kLanes.
  struct Bits {
    const uint8_t* bytes;
    int shift;
    int64_t count;
  };

  ZO_INLINE Bits bits_at(int64_t j) {
    const int64_t tile = j / kTileElements;
    if (tile != window_) move_to(tile);
    const int i = static_cast<int>(j - tile * kTileElements);
    if (i > kTileElements - kLanes && !has_second_) {
      generate(tile + 1, bytes_ + kTileBytes);
      has_second_ = true;
    }
    return {bytes_ + i / 8, i % 8, (has_second_ ? 2 : 1) * int64_t{kTileElements} - i};
  }

 private:
  static constexpr int kTileBytes = kTileElements / 8;

  void move_to(int64_t tile) {
    if (tile == window_ + 1 && has_second_)
      __builtin_memcpy(bytes_, bytes_ + kTileBytes, kTileBytes);
    else
      generate(tile, bytes_);
    window_ = tile;
    has_second_ = false;
  }

  void generate(int64_t tile, uint8_t* bytes) {
    const uint64_t block = static_cast<uint64_t>(tile) * kLanes;
    const ProbeKey key = make_probe_key(seed_, static_cast<uint32_t>(block >> 32));
    generate_bits(tile_counters(block, bit_order), key, bytes);
  }

  uint64_t seed_;
  int64_t window_;  // the tile that bytes_ begins with
  bool has_second_;
  alignas(64) uint8_t bytes_[2 * kTileBytes + 8] = {};
};

// Lane l: sign bit clear where p of element i + l of the bit string is +1, set where it is -1; i is a multiple of
// kLanes.
ZO_INLINE U32 flip_at(const SignReader::Bits& bits, int64_t i) {
  constexpr bool whole_bytes = kLanes % 8 == 0;  // of a vector: then the bits to skip are the same in all of a run
  const int64_t bit = i + bits.shift, byte = whole_bytes ? i / 8 : bit / 8;
  uint32_t word;
  __builtin_memcpy(&word, bits.bytes + byte, sizeof(word));
  return ~bit_to_sign(word, whole_bytes ? bits.shift : static_cast<int>(bit % 8)) & 0x80000000u;
}

// w rounded to a multiple of the last bit that a bfloat16 of size |w| + eps has.
ZO_INLINE F32 on_bfloat16_grid(F32 w, F32 eps) {
  const F32 size = reinterpret_cast<F32>(reinterpret_cast<U32>(w) & 0x7fffffffu) + eps;
  const F32 power = reinterpret_cast<F32>(reinterpret_cast<U32>(size) & 0x7f800000u);
  const F32 shifter = power * splat<F32>(0x1.8p16f);
  return (w + shifter) - shifter;
}

template <DType type, bool on_grid>
void perturb_elements(const Parameter& p, int64_t start, int64_t count, float eps, SignReader& signs, float* out) {
  using In = Element<type>;
  const typename In::Stored* x = static_cast<const typename In::Stored*>(p.data) + start;
  const F32 step = splat<F32>(eps), size = splat<F32>(eps < 0.0f ? -eps : eps);
  const auto moved = [&](F32 w, U32 flip) {
    if (on_grid) w = on_bfloat16_grid(w, size);
    return w + reinterpret_cast<F32>(reinterpret_cast<U32>(step) ^ flip);
  };
  typename In::Stored padded[kLanes] = {};
  // The last vector may be read in full unless that would pass the end of the parameter.
  const bool in_place = start + (count + kLanes - 1) / kLanes * kLanes <= p.numel;
  const int64_t whole = in_place ? count : count / kLanes * kLanes;
  if (p.offset < 0 || eps == 0.0f) {
    for (int64_t i = 0; i < whole; i += kLanes) store(out + i, In::get(x + i));
  } else {
    for (int64_t i = 0; i < whole;) {
      const SignReader::Bits bits = signs.bits_at(p.offset + start + i);
      const int64_t vectors_end = bits.count / kLanes * kLanes;
      const int64_t end = vectors_end < whole - i ? vectors_end : whole - i;
      int64_t done = 0;
      for (; done < end; done += kLanes) store(out + i + done, moved(In::get(x + i + done), flip_at(bits, done)));
      i += done;
    }
  }
  if (whole < count) {
    __builtin_memcpy(padded, x + whole, static_cast<uint64_t>(count - whole) * sizeof(padded[0]));
    F32 value = In::get(padded);
    if (p.offset >= 0 && eps != 0.0f) value = moved(value, flip_at(signs.bits_at(p.offset + start + whole), 0));
    store(out + whole, value);
  }
}

// out[i] = p[start + i] + eps * sign, for `count` elements. The weights are first rounded to the bfloat16 grid if
// requested. May write up to the end of the last whole vector.
template <bool on_grid = false>
void perturb(const Plan& plan, const Parameter& p, int64_t start, int64_t count, float eps, SignReader& signs,
             float* out) {
  switch (plan.args->type) {
    case DType::kBFloat16: return perturb_elements<DType::kBFloat16, on_grid>(p, start, count, eps, signs, out);
    case DType::kFloat16: return perturb_elements<DType::kFloat16, on_grid>(p, start, count, eps, signs, out);
    default: return perturb_elements<DType::kFloat32, on_grid>(p, start, count, eps, signs, out);
  }
}

// to[row][lane] = from[lane][row], for kLanes rows of `from` and `count` rows of `to`; strides in floats. Reads whole
// vectors.
ZO_INLINE void transpose_block(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t count) {
  I32 rows[kLanes];
  load_transposed([&](int i) { return from + i * from_stride; }, rows);
  if (count >= kLanes) {
    for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, rows[i]);
  } else {
    for (int i = 0; i < count; ++i) store(to + i * to_stride, rows[i]);
  }
}
