// Unstacks many arrays at once, and stacks them again: see ops/cpu/stacks.py.

#include "common.h"

namespace {

struct Copy {
  const float* from;
  float* to;
  Index count;
};

void Run(ThreadPool& pool, const std::vector<Copy>& copies) {
  std::vector<Index> counts;
  for (const Copy& copy : copies) counts.push_back(copy.count);
  auto tasks = Tasks(counts);
  Parallel(pool, tasks.size(), [&](Index task) {
    for (const Piece& piece : tasks[task]) {
      const Copy& copy = copies[piece.array];
      std::memcpy(copy.to + piece.begin, copy.from + piece.begin, piece.count * sizeof(float));
    }
  });
}

// Refuses stacks whose size differs from the total size of their entries.
template <typename Stacks, typename Entries>
void RequireWhole(const Stacks& stacks, const Entries& entries) {
  Index n = stacks.size(), count = entries.size();
  Require(n > 0 && count % n == 0, "the stacks have not as many entries each");
  for (Index i = 0; i < count; ++i) {
    Index size = entries[i].element_count();
    Require(HasSize(stacks[i % n], size * (count / n)), "an entry is no part of its stack");
  }
}

// Entries are ordered by their indices first, and then by the stacks.
void Unstack(ThreadPool pool, Arrays stacks, Results entries) {
  std::vector<Copy> copies;
  Index n = stacks.size();
  RequireWhole(stacks, entries);
  for (size_t i = 0; i < entries.size(); ++i) {
    Array stack = stacks[i % n], entry = entries[i];
    Index size = entry.element_count();
    copies.push_back({stack.typed_data() + i / n * size, entry.typed_data(), size});
  }
  Run(pool, copies);
}

void Stack(ThreadPool pool, Arrays entries, Results stacks) {
  std::vector<Copy> copies;
  Index n = stacks.size();
  RequireWhole(stacks, entries);
  for (size_t i = 0; i < entries.size(); ++i) {
    Array entry = entries[i], stack = stacks[i % n];
    Index size = entry.element_count();
    copies.push_back({entry.typed_data(), stack.typed_data() + i / n * size, size});
  }
  Run(pool, copies);
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_unstack, Unstack)
NVAE_JAX_EXPORT(nvae_jax_stack, Stack)
