// Stacked arrays to their entries and back, many of them at once: see ops/stacks.py.

#include "common.h"

namespace {

struct Copy {
  const float* from;
  float* to;
  Index count;
};

void Run(ffi::ThreadPool& pool, const std::vector<Copy>& copies) {
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

// Entries are in the order of their indices and then of the stacks.
ffi::Error Unstack(ffi::ThreadPool pool, ffi::RemainingArgs stacks, ffi::RemainingRets entries) {
  std::vector<Copy> copies;
  Index n = stacks.size();
  for (size_t i = 0; i < entries.size(); ++i) {
    Array stack = *stacks.get<Array>(i % n), entry = **entries.get<Array>(i);
    Index size = entry.element_count();
    copies.push_back({stack.typed_data() + i / n * size, entry.typed_data(), size});
  }
  Run(pool, copies);
  return ffi::Error::Success();
}

ffi::Error Stack(ffi::ThreadPool pool, ffi::RemainingArgs entries, ffi::RemainingRets stacks) {
  std::vector<Copy> copies;
  Index n = stacks.size();
  for (size_t i = 0; i < entries.size(); ++i) {
    Array entry = *entries.get<Array>(i), stack = **stacks.get<Array>(i % n);
    Index size = entry.element_count();
    copies.push_back({entry.typed_data(), stack.typed_data() + i / n * size, size});
  }
  Run(pool, copies);
  return ffi::Error::Success();
}

ffi::Error Entry(ffi::ThreadPool pool, Scalar index, Array stack, Result entry) {
  Index size = entry->element_count();
  Run(pool, {{stack.typed_data() + Within(index, stack) * size, entry->typed_data(), size}});
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_entry, Entry,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Scalar>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_unstack, Unstack,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    nvae_jax_stack, Stack,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
