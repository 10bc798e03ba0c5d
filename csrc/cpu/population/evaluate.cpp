// Runs the members of a population on the threads.
//
// If there are at least as many members as threads, one thread runs a member from its first token to its last.
// Otherwise all members run together, and for each chunk the threads share out their heads and tiles of sequences, then
// their position blocks.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../parallel.h"
#include "buffers.h"

namespace zo::cpu {

void carve(Carver& carver, const OwnedPlan& plan, Member& m) {
  const int64_t rows = (plan.max_table_rows + plan.tile_lanes - 1) / plan.tile_lanes * plan.tile_lanes;
  // In the narrow layout whole blocks of positions are read, which may reach beyond the last.
  const int64_t position = plan.args->num_heads * plan.padded_words();
  const int64_t beyond = plan.wide ? 0 : (plan.tile_lanes + 1) * position + plan.lanes;
  m.embedded = carver.take<float>(rows * plan.args->embed_dim);
  m.table = carver.take<float>(plan.max_table_rows * plan.table_stride());
  m.hidden = carver.take<float>((plan.chunk_steps + 1) * plan.slot_size() + beyond);
  m.cell = carver.take<float>(plan.has_cell ? plan.cell_size() : 0);
  m.blocks = carver.take<float>(plan.wide ? 0 : plan.chunk_blocks * plan.tile_lanes * plan.hidden_words());
  m.maximum = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.sum = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.at_target = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.leads = carver.take<bool>(plan.args->correct ? plan.chunk_blocks * plan.tile_lanes : 0);
  m.correct = carver.take<int64_t>(plan.args->correct ? plan.chunk_blocks : 0);
  m.nats = carver.take<double>(plan.chunk_blocks);
}

void carve(Carver& carver, const OwnedPlan& plan, Scratch& s) {
  const PopulationArgs& args = *plan.args;
  const int64_t panel_units = plan.wide || plan.panel_units < args.head_dim ? plan.panel_units : plan.padded_dim;
  s.input_panel = carver.take<float>(plan.cell.input_rows * plan.table_units * args.embed_dim + plan.lanes);
  const int64_t beyond = 2 * plan.lanes;  // panels are written in whole vectors
  s.recurrent_panel =
      carver.take<float>(plan.panel_heads * plan.cell.recurrent_rows * panel_units * plan.head_words + beyond);
  s.output_panel = carver.take<float>(plan.panel_rows * plan.hidden_words() + plan.padded(plan.panel_rows) + beyond);
  const int64_t unpacked = std::max(panel_units * args.head_dim, plan.panel_rows * plan.hidden_size);
  s.unpacked = carver.take<float>(plan.depth > 1 ? unpacked + beyond : 0);
  s.rows = carver.take<float>(std::max(plan.lanes * std::max(plan.padded(args.embed_dim), plan.padded_dim) + beyond,
                                       plan.cell.rows * plan.table_units + plan.lanes));
  s.products = carver.take<float>(std::max(plan.panel_rows, plan.cell.rows * plan.table_units) * plan.tile_lanes);
  s.pre = carver.take<float>(plan.lanes * plan.tile_lanes);
}

namespace {

// A unit of the hidden state in a layout of words.
struct HiddenUnit {
  const OwnedPlan& plan;
  float* words;

  float get(int64_t word, int64_t unit) const {
    if (plan.depth == 1) return words[word];
    uint32_t bits;
    std::memcpy(&bits, words + word, sizeof(bits));
    bits = unit % 2 == 0 ? bits << 16 : bits & 0xffff0000u;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  void set(int64_t word, int64_t unit, float value) const {
    if (plan.depth == 1) {
      words[word] = value;
      return;
    }
    uint32_t bits, both;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    std::memcpy(&both, words + word, sizeof(both));
    both = unit % 2 == 0 ? (both & 0xffff0000u) | bits : (both & 0xffffu) | bits << 16;
    std::memcpy(words + word, &both, sizeof(both));
  }
};

// Calls f(word of the hidden state, unit of the head, element of the cell state, element of [N, B, D]) for every state.
template <class F>
void for_each_state(const OwnedPlan& plan, F f) {
  const int64_t N = plan.args->num_heads, B = plan.args->batch_size, D = plan.args->head_dim;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t first = b / plan.tile_lanes * plan.tile_lanes;
      const int64_t width = plan.width(plan.batch_lanes - first);
      for (int64_t d = 0; d < D; ++d) {
        const int64_t outer = (n * B + b) * D + d;
        if (plan.wide)
          f(first * plan.hidden_words() + (n * plan.head_words + d / plan.depth) * width + (b - first), d,
            first * plan.hidden_size + (n * D + d) * width + (b - first), outer);
        else
          f((b * N + n) * plan.padded_words() + d / plan.depth, d, (b * N + n) * plan.padded_dim + d, outer);
      }
    }
}

class Evaluation {
 public:
  Evaluation(const OwnedPlan& plan, const PopulationKernels& isa)
      : plan_(plan), args_(*plan.args), isa_(isa), scratch_(plan), members_(plan) {}

  void run() {
    const int64_t count = args_.num_seeds * args_.num_signs;
    scratch_.reserve(max_threads());
    members_.reserve(std::min<int64_t>(count, max_threads()));
    if (count >= max_threads()) {
      parallel_for(count, 1, [&](int64_t first, int64_t last) {
        auto scratch = scratch_.take();
        auto member = members_.take();
        for (int64_t i = first; i < last; ++i) {
          const Team alone = {&member->buffers, i, 1, &scratch->buffers};
          run_team(alone);
        }
        members_.give_back(std::move(member));
        scratch_.give_back(std::move(scratch));
      });
      return;
    }
    std::vector<std::unique_ptr<Owned<Member>>> owned;
    std::vector<Member> members;
    for (int64_t i = 0; i < count; ++i) {
      owned.push_back(members_.take());
      members.push_back(owned.back()->buffers);
    }
    const Team all = {members.data(), 0, count, nullptr};
    // A loop of one item, so that this code runs in the same floating-point environment as the loops.
    parallel_for(1, 1, [&](int64_t, int64_t) { run_team(all); });
  }

 private:
  // Members that run together, on the thread of `scratch`, or on all threads if scratch is null.
  struct Team {
    Member* members;
    int64_t first;  // number of the first in the population
    int64_t count;
    const Scratch* scratch;
  };

  // f(member, scratch, first, last) over `items` items of each member.
  template <class F>
  void share_out(const Team& team, int64_t items, F f) {
    if (team.scratch) {
      for (int64_t i = 0; i < team.count; ++i) f(team.members[i], *team.scratch, int64_t{0}, items);
      return;
    }
    parallel_for(team.count * items, 1, [&](int64_t first, int64_t last) {
      auto scratch = scratch_.take();
      while (first < last) {
        const int64_t member = first / items;
        const int64_t end = std::min(last, (member + 1) * items);
        f(team.members[member], scratch->buffers, first - member * items, end - member * items);
        first = end;
      }
      scratch_.give_back(std::move(scratch));
    });
  }

  void run_team(const Team& team) {
    for (int64_t i = 0; i < team.count; ++i) begin(team.members[i], team.first + i);
    size_t span = 0;
    for (int64_t chunk = 0; chunk < plan_.num_chunks; ++chunk) {
      if (chunk == plan_.spans[span].first_chunk) make_table(team, plan_.spans[span]);
      const int64_t items = args_.num_heads * plan_.tiles();
      share_out(team, items, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
        isa_.recurrence(plan_, m, scratch, chunk, first, last);
      });
      score(team, chunk);
      if (chunk + 1 == plan_.spans[span].last_chunk) ++span;
      const int64_t steps = plan_.last_step(chunk) - plan_.first_step(chunk);
      for (int64_t i = 0; i < team.count; ++i) {
        float* hidden = team.members[i].hidden;
        std::memcpy(hidden, hidden + steps * plan_.slot_size(), static_cast<size_t>(plan_.slot_size()) * sizeof(float));
      }
    }
    for (int64_t i = 0; i < team.count; ++i) end(team.members[i], team.first + i);
  }

  void make_table(const Team& team, const Span& span) {
    const int64_t row_blocks = (span.num_rows + plan_.tile_lanes - 1) / plan_.tile_lanes;
    const int64_t unit_blocks = args_.num_heads * ((args_.head_dim + plan_.table_units - 1) / plan_.table_units);
    share_out(team, row_blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
      isa_.embed(plan_, m, scratch, span, first, last);
    });
    share_out(team, unit_blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
      isa_.project(plan_, m, scratch, span, first, last);
    });
  }

  void score(const Team& team, int64_t chunk) {
    const int64_t steps = plan_.last_step(chunk) - plan_.first_step(chunk);
    const int64_t blocks = plan_.wide ? steps * plan_.tiles()
                                      : (steps * plan_.batch_lanes + plan_.tile_lanes - 1) / plan_.tile_lanes;
    if (args_.targets) {
      share_out(team, blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
        isa_.output(plan_, m, scratch, chunk, first, last, nullptr);
      });
      for (int64_t i = 0; i < team.count; ++i)
        for (int64_t block = 0; block < blocks; ++block) {
          args_.nats[team.first + i] += team.members[i].nats[block];
          if (args_.correct) args_.correct[team.first + i] += team.members[i].correct[block];
        }
    }
    if (args_.logits && chunk + 1 == plan_.num_chunks) {
      const int64_t last_positions = (steps - 1) * plan_.batch_lanes;
      const int64_t first_block = plan_.wide ? plan_.tiles() * (steps - 1) : last_positions / plan_.tile_lanes;
      share_out(team, blocks - first_block, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
        const int64_t index = team.first + (&m - team.members);
        isa_.output(plan_, m, scratch, chunk, first_block + first, first_block + last,
                    args_.logits + index * args_.batch_size * args_.vocab_size);
      });
    }
  }

  void begin(Member& m, int64_t index) {
    m.seed = args_.seeds[index / args_.num_signs];
    m.eps = static_cast<float>(index % args_.num_signs == 0 ? args_.eps : -args_.eps);
    args_.nats[index] = 0.0;
    if (args_.correct) args_.correct[index] = 0;
    std::memset(m.hidden, 0, static_cast<size_t>(plan_.slot_size()) * sizeof(float));
    if (plan_.has_cell) std::memset(m.cell, 0, static_cast<size_t>(plan_.cell_size()) * sizeof(float));
    if (!args_.h) return;
    const float* h = args_.h + index * plan_.hidden_size * args_.batch_size;
    const float* c = plan_.cell.has_cell_state ? args_.c + index * plan_.hidden_size * args_.batch_size : h;
    const HiddenUnit hidden = {plan_, m.hidden};
    for_each_state(plan_, [&](int64_t word, int64_t unit, int64_t cell, int64_t outer) {
      hidden.set(word, unit, h[outer]);
      if (plan_.has_cell) m.cell[cell] = c[outer];
    });
  }

  void end(const Member& m, int64_t index) {
    if (!args_.h) return;
    float* h = args_.h + index * plan_.hidden_size * args_.batch_size;
    float* c = plan_.cell.has_cell_state ? args_.c + index * plan_.hidden_size * args_.batch_size : h;
    const HiddenUnit hidden = {plan_, m.hidden};
    for_each_state(plan_, [&](int64_t word, int64_t unit, int64_t cell, int64_t outer) {
      h[outer] = hidden.get(word, unit);
      if (plan_.has_cell) c[outer] = m.cell[cell];
    });
  }

  const OwnedPlan& plan_;
  const PopulationArgs& args_;
  const PopulationKernels& isa_;
  Pool<Scratch> scratch_;
  Pool<Member> members_;
};

}  // namespace

void evaluate_population(const PopulationArgs& args) {
  const PopulationKernels* const chosen = args.bfloat16 ? bfloat16_kernels() : kernels().population;
  if (!chosen) throw std::runtime_error("bfloat16 products need a processor with AVX512_BF16: use float32");
  const PopulationKernels& isa = *chosen;
  const OwnedPlan plan(args, isa);
  Evaluation(plan, isa).run();
}

}  // namespace zo::cpu
