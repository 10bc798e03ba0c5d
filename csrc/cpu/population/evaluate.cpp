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
  const PopulationArgs& args = *plan.args;
  const bool reads_blocks = plan.delivers || !plan.wide;
  const int64_t buffers = args.residual ? 2 : reads_blocks ? 1 : 0;  // a sum of inputs and outputs needs both
  m.embedded = carver.take<float>(rows * args.embed_dim);
  m.table = carver.take<float>(plan.max_table_rows * plan.table_stride());
  m.lifted = carver.take<float>(args.num_layers > 1 ? plan.chunk_steps * plan.batch_lanes * plan.table_stride() : 0);
  m.hidden = carver.take<float>(args.num_layers * plan.hidden_stride);
  m.cell = carver.take<float>(args.num_layers * plan.cell_stride);
  m.outputs = carver.take<float>(buffers * plan.outputs_size());
  m.maximum = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.sum = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.at_target = carver.take<float>(plan.chunk_blocks * plan.tile_lanes);
  m.leads = carver.take<bool>(args.correct ? plan.chunk_blocks * plan.tile_lanes : 0);
  m.correct = carver.take<int64_t>(args.correct ? plan.chunk_blocks : 0);
  m.nats = carver.take<double>(plan.chunk_blocks);
}

void carve(Carver& carver, const OwnedPlan& plan, Scratch& s) {
  const PopulationArgs& args = *plan.args;
  const int64_t panel_units = plan.wide || plan.panel_units < args.head_dim ? plan.panel_units : plan.padded_dim;
  const bool lifts = args.num_layers > 1;
  const int64_t beyond = 2 * plan.lanes;  // panels are written in whole vectors
  const int64_t most_units = lifts ? std::max(plan.table_units, plan.lift_units) : plan.table_units;
  const int64_t lifting = lifts ? plan.lift_units * plan.hidden_words() : 0;
  s.input_panel =
      carver.take<float>(plan.cell.input_rows * std::max(plan.table_units * args.embed_dim, lifting) + beyond);
  s.recurrent_panel =
      carver.take<float>(plan.panel_heads * plan.cell.recurrent_rows * panel_units * plan.head_words + beyond);
  s.output_panel = carver.take<float>(plan.panel_rows * plan.hidden_words() + plan.padded(plan.panel_rows) + beyond);
  const int64_t unpacked = std::max(
      {panel_units * args.head_dim, plan.panel_rows * plan.hidden_size, lifts ? plan.lift_units * plan.hidden_size : 0});
  s.unpacked = carver.take<float>(plan.depth > 1 ? unpacked + beyond : 0);
  s.rows = carver.take<float>(std::max(plan.lanes * std::max(plan.padded(args.embed_dim), plan.padded_dim) + beyond,
                                       plan.cell.rows * most_units + plan.lanes));
  s.products = carver.take<float>(std::max(plan.panel_rows, plan.cell.rows * most_units) * plan.tile_lanes);
  s.pre = carver.take<float>(plan.lanes * plan.tile_lanes);
  s.norm = carver.take<float>(args.layer_norm ? 2 * plan.padded(plan.hidden_size) : 0);
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

  // A member as one of its layers sees it.
  Member at_layer(const Member& m, int64_t layer) const {
    Member view = m;
    view.layer = plan_.layers + layer;
    view.table = layer == 0 ? m.table : m.lifted;
    view.hidden = m.hidden + layer * plan_.hidden_stride;
    view.cell = m.cell + layer * plan_.cell_stride;
    view.outputs = outputs_of(m, layer);
    view.inputs = layer == 0 ? nullptr : outputs_of(m, layer - 1);
    return view;
  }

  float* outputs_of(const Member& m, int64_t layer) const {
    if (plan_.wide && !plan_.delivers) return m.hidden + layer * plan_.hidden_stride + plan_.slot_size();
    return m.outputs + (args_.residual ? layer % 2 : 0) * plan_.outputs_size();
  }

  // f(member at a layer, scratch, first, last) over `items` items of each member.
  template <class F>
  void share_out(const Team& team, int64_t layer, int64_t items, F f) {
    if (team.scratch) {
      for (int64_t i = 0; i < team.count; ++i) f(at_layer(team.members[i], layer), *team.scratch, int64_t{0}, items);
      return;
    }
    parallel_for(team.count * items, 1, [&](int64_t first, int64_t last) {
      auto scratch = scratch_.take();
      while (first < last) {
        const int64_t member = first / items;
        const int64_t end = std::min(last, (member + 1) * items);
        f(at_layer(team.members[member], layer), scratch->buffers, first - member * items, end - member * items);
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
      for (int64_t layer = 0; layer < args_.num_layers; ++layer) run_layer(team, layer, chunk);
      score(team, chunk);
      if (chunk + 1 == plan_.spans[span].last_chunk) ++span;
    }
    for (int64_t i = 0; i < team.count; ++i) end(team.members[i]);
  }

  void run_layer(const Team& team, int64_t layer, int64_t chunk) {
    if (layer > 0) {
      const int64_t unit_blocks = args_.num_heads * ((args_.head_dim + plan_.lift_units - 1) / plan_.lift_units);
      share_out(team, layer, unit_blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
        isa_.lift(plan_, m, scratch, chunk, first, last);
      });
    }
    const int64_t items = args_.num_heads * plan_.tiles();
    share_out(team, layer, items, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
      isa_.recurrence(plan_, m, scratch, chunk, first, last);
    });
    if (!plan_.delivers) return;
    share_out(team, layer, plan_.blocks(chunk), [&](const Member& m, const Scratch& scratch, int64_t first,
                                                    int64_t last) {
      isa_.deliver(plan_, m, scratch, chunk, first, last);
    });
  }

  void make_table(const Team& team, const Span& span) {
    const int64_t row_blocks = (span.num_rows + plan_.tile_lanes - 1) / plan_.tile_lanes;
    const int64_t unit_blocks = args_.num_heads * ((args_.head_dim + plan_.table_units - 1) / plan_.table_units);
    share_out(team, 0, row_blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
      isa_.embed(plan_, m, scratch, span, first, last);
    });
    share_out(team, 0, unit_blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
      isa_.project(plan_, m, scratch, span, first, last);
    });
  }

  void score(const Team& team, int64_t chunk) {
    const int64_t steps = plan_.last_step(chunk) - plan_.first_step(chunk);
    const int64_t blocks = plan_.blocks(chunk), top = args_.num_layers - 1;
    if (args_.targets) {
      share_out(team, top, blocks, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
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
      share_out(team, top, blocks - first_block, [&](const Member& m, const Scratch& scratch, int64_t first, int64_t last) {
        isa_.output(plan_, m, scratch, chunk, first_block + first, first_block + last,
                    args_.logits + m.index * args_.batch_size * args_.vocab_size);
      });
    }
  }

  void begin(Member& m, int64_t index) {
    m.index = index;
    m.seed = args_.seeds[index / args_.num_signs];
    m.eps = static_cast<float>(index % args_.num_signs == 0 ? args_.eps : -args_.eps);
    args_.nats[index] = 0.0;
    if (args_.correct) args_.correct[index] = 0;
    for (int64_t layer = 0; layer < args_.num_layers; ++layer) {
      const Member view = at_layer(m, layer);
      std::memset(view.hidden, 0, static_cast<size_t>(plan_.slot_size()) * sizeof(float));
      if (plan_.has_cell) std::memset(view.cell, 0, static_cast<size_t>(plan_.cell_size()) * sizeof(float));
      if (!args_.h) continue;
      const States outer = outer_states(m, layer);
      const HiddenUnit hidden = {plan_, view.hidden};
      for_each_state(plan_, [&](int64_t word, int64_t unit, int64_t cell, int64_t element) {
        hidden.set(word, unit, outer.h[element]);
        if (plan_.has_cell) view.cell[cell] = outer.c[element];
      });
    }
  }

  void end(const Member& m) {
    for (int64_t layer = 0; args_.h && layer < args_.num_layers; ++layer) {
      const Member view = at_layer(m, layer);
      const States outer = outer_states(m, layer);
      const HiddenUnit hidden = {plan_, view.hidden + plan_.slot_before(plan_.num_steps) * plan_.slot_size()};
      for_each_state(plan_, [&](int64_t word, int64_t unit, int64_t cell, int64_t element) {
        outer.h[element] = hidden.get(word, unit);
        if (plan_.has_cell) outer.c[element] = view.cell[cell];
      });
    }
  }

  // A layer's [N, B, D] of a member in the caller's arrays; c is h where the cell has no state of its own.
  struct States {
    float *h, *c;
  };

  States outer_states(const Member& m, int64_t layer) const {
    const int64_t first = (m.index * args_.num_layers + layer) * plan_.hidden_size * args_.batch_size;
    return {args_.h + first, (plan_.cell.has_cell_state ? args_.c : args_.h) + first};
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
