// A step of one head for a tile of sequences, one per lane: gathering, recurrent projection, cells. wide.h has the order.

// pre[column][lane] of kLanes columns from `column` on of each lane's row of the table.
template <int vectors>
ZO_INLINE void gather_columns(const float* const* table_rows, int64_t column, float* pre) {
  constexpr int width = vectors * kLanes;
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    I32 columns[kLanes];
    load_transposed([&](int i) { return table_rows[v * kLanes + i] + column; }, columns);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(pre + i * width + v * kLanes, columns[i]);
  }
}

struct TileStep {
  const float* previous;  // [word][width]: the head's hidden state before the step
  float* hidden;          // [word][width]: and after it
  float* cell;            // [unit][width], if there are cell states
  const float* weights;   // [recurrent row][unit - first_unit][word]
  int64_t row_stride;     // words from one recurrent row to the next
  int64_t head_words;
};

// Adds the recurrent projection to the pre-activations [unit][row][lane] of `units` consecutive units, whose weights
// begin at `weights`. Not inlined, because next to the cell it would lose registers to the cell's constants.
template <class Cell, int vectors, int units>
__attribute__((noinline)) void add_recurrence(const TileStep& s, const float* weights, float* pre) {
  constexpr CellShape shape = Cell::shape;
  constexpr int width = vectors * kLanes;
  const int64_t row_stride = s.row_stride, head_words = s.head_words;
  const float* previous = s.previous;
  F32 sum[units][shape.recurrent_rows][vectors];
#pragma GCC unroll 16
  for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
    for (int r = 0; r < shape.recurrent_rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[u][r][v] = load<F32>(pre + (u * shape.rows + r) * width + v * kLanes);
  for (int64_t k = 0; k < head_words; ++k) {
    F32 h[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) h[v] = load<F32>(previous + k * width + v * kLanes);
#pragma GCC unroll 16
    for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
      for (int r = 0; r < shape.recurrent_rows; ++r) {
        const F32 w = splat_word(weights + r * row_stride + u * head_words + k);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[u][r][v] = multiply_add(w, h[v], sum[u][r][v]);
      }
  }
#pragma GCC unroll 16
  for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
    for (int r = 0; r < shape.recurrent_rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) store(pre + (u * shape.rows + r) * width + v * kLanes, sum[u][r][v]);
}

// The first vector from `lane` on of a unit of `s`, and its pre-activations.
template <class Cell, int n>
struct UnitVectors {
  CellStates at[n];
  float* pre;
  int width;

  Vectors<n> rows[Cell::shape.rows];

  ZO_INLINE UnitVectors(const TileStep& s, float* pre, int width, int64_t unit, int lane) : pre(pre + lane), width(width) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i)
      at[i] = {s.previous + unit / kDepth * width + lane + i * kLanes, s.cell + unit * width + lane + i * kLanes};
  }

  ZO_INLINE void load_rows(int count) {
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) rows[r] = for_each<n>([&](int i) { return load<F32>(pre + r * width + i * kLanes); });
  }

  ZO_INLINE void store_rows(int count) {
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) store(pre + r * width + i * kLanes, rows[r].v[i]);
  }
};

// The new states of `units` consecutive units from `unit` on, a multiple of kDepth, from their pre-activations.
template <class Cell, int vectors>
ZO_INLINE void update_units(const TileStep& s, float* pre, int64_t unit, int units) {
  constexpr CellShape shape = Cell::shape;
  constexpr int width = vectors * kLanes;
  constexpr int n = kInterleavesCells ? vectors : 1;
  constexpr bool in_two_passes = kInterleavesCells && Cell::parked > 0;
  for (int u = 0; in_two_passes && u < units; ++u) {
    UnitVectors<Cell, n> v(s, pre + u * shape.rows * width, width, unit + u, 0);
    v.load_rows(shape.rows);
    begin_cells<Cell>(v.rows, v.at);
    v.store_rows(Cell::parked);
  }
  for (int u = 0; u < units; u += kDepth) {
    for (int lane = 0; lane < width; lane += n * kLanes) {
      Vectors<n> h[kDepth] = {};
      for (int i = 0; i < kDepth && u + i < units; ++i) {
        UnitVectors<Cell, n> v(s, pre + (u + i) * shape.rows * width, width, unit + u + i, lane);
        v.load_rows(in_two_passes ? Cell::parked : shape.rows);
        if (!in_two_passes) begin_cells<Cell>(v.rows, v.at);
        h[i] = finish_cells<Cell>(v.rows, v.at);
      }
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) {
        F32 both[kDepth];
        for (int k = 0; k < kDepth; ++k) both[k] = h[k].v[i];
        store(s.hidden + (unit + u) / kDepth * width + lane + i * kLanes, pack(both));
      }
    }
  }
}
