// The product of a matrix of members with columns: y = y + theta x + eps P x, where P has the member's signs.
//
// A look-up adds the signs of kGroup columns at once: for each group of x there is a table of eps times all sums
// +-x_1 +-x_2 ..., and the signs of a row and group are the index. Members of a probe share indices and theta, and differ
// in x and in the sign of eps. With both members of one sequence a vector of weights takes 13 operations for four columns
// of each, where making theta +- eps first takes 24.

constexpr int kEntries = 1 << kGroup;
constexpr int kNibbles = 8;  // groups of a word

// Finds the signs of runs of elements. Makes some tiles at once, so that consecutive rows share them.
class SignWindow {
 public:
  static constexpr int64_t kAhead = 8;

  static constexpr int64_t tiles_for(int64_t columns) { return columns / kTileElements + 2 + kAhead; }

  ZO_INLINE SignWindow(uint64_t seed, uint8_t* bytes, int64_t tiles)
      : seed_(seed), bytes_(bytes), tiles_(tiles), first_(0), end_(0) {}

  // The bit of element j within bytes(), where those of `count` elements from j on are.
  ZO_INLINE int64_t bit_of(int64_t j, int64_t count) {
    // Unsigned, since a word may reach beyond the end of the index space.
    const uint64_t end = static_cast<uint64_t>(j) + static_cast<uint64_t>(count) - 1;
    const int64_t tile = j / kTileElements, last = static_cast<int64_t>(end / kTileElements);
    if (tile < first_ || last >= end_) {
      first_ = tile;
      end_ = tile + tiles_;
      for (int64_t t = first_; t < end_; ++t) generate(t);
    }
    return j - first_ * kTileElements;
  }

  ZO_INLINE const uint8_t* bytes() const { return bytes_; }

 private:
  void generate(int64_t tile) {
    const uint64_t block = static_cast<uint64_t>(tile) * kLanes;
    generate_bits(tile_counters(block, bit_order), make_probe_key(seed_, static_cast<uint32_t>(block >> 32)),
                  bytes_ + (tile - first_) * (kTileElements / 8));
  }

  uint64_t seed_;
  uint8_t* bytes_;
  int64_t tiles_, first_, end_;
};

// The signs of kNibbles groups from a bit on, each group in four bits.
ZO_INLINE uint32_t index_word(const uint8_t* bytes, int64_t bit) {
  uint64_t signs;
  __builtin_memcpy(&signs, bytes + bit / 8, sizeof(signs));
  signs >>= bit % 8;
  if (kGroup == 4) return static_cast<uint32_t>(signs);
  uint32_t word = 0;
  for (int m = 0; m < kNibbles; ++m)
    word |= (static_cast<uint32_t>(signs >> (m * kGroup)) & (kEntries - 1u)) << (4 * m);
  return word;
}

// words[panel][word][lane]
void make_words(const DncMatrix& m, uint64_t seed, uint8_t* signs, uint32_t* words) {
  const int64_t columns_of_word = kNibbles * kGroup;
  SignWindow window(seed, signs, SignWindow::tiles_for(m.words * columns_of_word));
  for (int64_t row = 0; row < m.rows; ++row) {
    uint32_t* to = words + row / kLanes * m.words * kLanes + row % kLanes;
    if (m.source[row] < 0) {
      for (int64_t w = 0; w < m.words; ++w) to[w * kLanes] = 0;
      continue;
    }
    const int64_t j = m.parameter->offset + m.source[row] * m.row_stride + m.first_column;
    const int64_t bit = window.bit_of(j, m.words * columns_of_word);
    for (int64_t w = 0; w < m.words; ++w)
      to[w * kLanes] = index_word(window.bytes(), bit + w * columns_of_word);
  }
}

// out[i] = p[start + i] + eps * sign for `count` elements, then zeros to the end of the vector.
void perturb_vector(const DncPlan& plan, const Parameter& p, uint64_t seed, float eps, int64_t start, int64_t count,
                    float* out) {
  SignReader signs(seed);
  switch (plan.args->type) {
    case DType::kBFloat16: perturb_elements<DType::kBFloat16, false>(p, start, count, eps, signs, out); break;
    case DType::kFloat16: perturb_elements<DType::kFloat16, false>(p, start, count, eps, signs, out); break;
    default: perturb_elements<DType::kFloat32, false>(p, start, count, eps, signs, out);
  }
  for (int64_t i = count; i % kLanes != 0; ++i) out[i] = 0.0f;
}

// Copies a matrix of theta into its panels, which are zeros. `row` is a buffer.
void lay_out_kernel(const DncPlan& plan, const DncMatrix& m, float* row) {
  for (int64_t r = 0; r < m.rows; ++r) {
    if (m.source[r] < 0) continue;
    perturb_vector(plan, *m.parameter, 0, 0.0f, m.source[r] * m.row_stride + m.first_column, m.columns, row);
    float* to = m.theta + r / kLanes * m.depth * kLanes + r % kLanes;
    for (int64_t k = 0; k < m.columns; ++k) to[k * kLanes] = row[k];
  }
}

int64_t sign_bytes_kernel(int64_t columns) {
  return SignWindow::tiles_for(columns + kNibbles * kGroup) * (kTileElements / 8) + 64;
}

struct Patterns {  // of each entry: the sign of each column of the group
  alignas(64) float sign[kGroup][kEntries] = {};
  constexpr Patterns() {
    for (int j = 0; j < kGroup; ++j)
      for (int entry = 0; entry < kEntries; ++entry) sign[j][entry] = entry >> j & 1 ? 1.0f : -1.0f;
  }
};
constexpr Patterns kPatterns;

// tables[group][entry] = eps * (the entry's sum of the group's x)
void make_tables(const float* x, int64_t groups, float eps, float* tables) {
  const F32 factor = splat<F32>(eps);
  for (int64_t g = 0; g < groups; ++g)
    for (int entry = 0; entry < kEntries; entry += kLanes) {
      F32 sum = {};
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j)
        sum = fma(splat<F32>(x[g * kGroup + j]), load<F32>(&kPatterns.sign[j][entry]), sum);
      store(tables + g * kEntries + entry, factor * sum);
    }
}

// v, loaded once: GCC would repeat a load for each multiply-add that uses it, and loads are the bottleneck.
ZO_INLINE F32 in_register(F32 v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// A product's columns. The pointers are to x [depth] and y [rows] of each.
struct Operands {
  const float* x[kMostColumns];
  float* y[kMostColumns];
  const float* tables;  // null: eps is 0
};

// Panels [panel, panel + vectors).
template <int columns, int vectors>
__attribute__((noinline)) void multiply_panels(const DncMatrix& m, const uint32_t* words, int64_t panel,
                                               const Operands& operands) {
  const float *x[columns], *table[columns];
  float* y[columns];
  for (int c = 0; c < columns; ++c) {
    x[c] = operands.x[c];
    y[c] = operands.y[c] + panel * kLanes;
    table[c] = operands.tables ? operands.tables + c * m.groups * kEntries : nullptr;
  }
  const float* theta = m.theta + panel * m.depth * kLanes;
  words += panel * m.words * kLanes;
  F32 sum[columns][vectors];
#pragma GCC unroll 8
  for (int c = 0; c < columns; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[c][v] = load<F32>(y[c] + v * kLanes);
  int64_t k = 0;
  for (int64_t word = 0; word < m.words; ++word) {
    U32 index[vectors] = {};
    if (operands.tables)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) index[v] = load<U32>(words + (v * m.words + word) * kLanes);
    const int64_t end = m.depth < k + kNibbles * kGroup ? m.depth : k + kNibbles * kGroup;
    for (; k < end; k += kGroup) {
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        F32 value[columns];
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) value[c] = splat<F32>(x[c][k + j]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
          const F32 w = in_register(load<F32>(theta + (v * m.depth + k + j) * kLanes));
#pragma GCC unroll 8
          for (int c = 0; c < columns; ++c) sum[c][v] = fma(w, value[c], sum[c][v]);
        }
      }
      if (!operands.tables) continue;
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        const Table entries = load_table(reinterpret_cast<const int32_t*>(table[c] + k / kGroup * kEntries));
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[c][v] += reinterpret_cast<F32>(look_up(entries, index[v]));
      }
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) index[v] >>= 4;
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < columns; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      store(y[c] + v * kLanes,
            reinterpret_cast<U32>(sum[c][v]) & load<U32>(m.kept + (panel + v) * kLanes));
}

constexpr int kProductSums = kSums < 16 ? kSums : 16;  // columns, indices and tables take registers too

template <int columns>
void multiply_columns(const DncMatrix& m, const uint32_t* words, const Operands& operands) {
  constexpr int most = kProductSums / columns;
  constexpr int vectors = most < 1 ? 1 : most > 8 ? 8 : most;
  const int64_t panels = m.rows / kLanes;
  int64_t panel = 0;
  for (; panel + vectors <= panels; panel += vectors)
    multiply_panels<columns, vectors>(m, words, panel, operands);
  for (; panel < panels; ++panel) multiply_panels<columns, 1>(m, words, panel, operands);
}

// y[i] += M x[i] for `count` columns, of which number i belongs to member i % num_signs. The rows of padding of y
// become 0.
void multiply(const DncPlan& plan, const DncScratch& s, DncProduct product, const float* const* x, float* const* y,
              int64_t count) {
  const DncMatrix& m = plan.products[product];
  const bool perturbed = m.parameter->offset >= 0 && s.members[0].eps != 0.0f;
  for (int64_t first = 0; first < count;) {
    const int64_t left = count - first;
    const int columns = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    Operands operands = {};
    for (int c = 0; c < columns; ++c) {
      operands.x[c] = x[first + c];
      operands.y[c] = y[first + c];
      if (perturbed)
        make_tables(x[first + c], m.groups, s.members[(first + c) % plan.args->num_signs].eps,
                    s.tables + c * m.groups * kEntries);
    }
    operands.tables = perturbed ? s.tables : nullptr;
    if (columns == 8) multiply_columns<8>(m, s.words[product], operands);
    if (columns == 4) multiply_columns<4>(m, s.words[product], operands);
    if (columns == 2) multiply_columns<2>(m, s.words[product], operands);
    if (columns == 1) multiply_columns<1>(m, s.words[product], operands);
    first += columns;
  }
}
