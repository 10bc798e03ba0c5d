// The recurrence of any cell in either layout.

void recurrence_kernel(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first,
                       int64_t last) {
  const int64_t tiles = plan.tiles();
  with_cell(plan.args->cell, [&](auto cell) {
    using Cell = decltype(cell);
    while (first < last) {
      int64_t end = last;
      if (plan.wide) {
        const int64_t head = first / tiles;
        end = last < (head + 1) * tiles ? last : (head + 1) * tiles;
        wide_recurrence<Cell>(plan, m, scratch, chunk, head, first - head * tiles, end - head * tiles);
      } else {
        end = last < first + plan.panel_heads ? last : first + plan.panel_heads;
        narrow_recurrence<Cell>(plan, m, scratch, chunk, first, end);
      }
      first = end;
    }
  });
}
