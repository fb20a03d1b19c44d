// Stacked arrays to their entries and back, many of them at once: see ops/stacks.py.

#include "common.h"

namespace {

// Of n stacks and `length` entries of each, in the order of entries and then of stacks.
template <typename Stack, typename Entry, typename Copy>
void ForEach(ffi::ThreadPool& pool, Index n, Index length, const Stack& stack, const Entry& entry,
             const Copy& copy) {
  std::vector<Index> sizes;
  for (Index i = 0; i < n * length; ++i) sizes.push_back(stack(i % n).element_count() / length);
  auto tasks = Tasks(sizes);
  Parallel(pool, tasks.size(), [&](Index task) {
    for (const Piece& piece : tasks[task]) {
      Index i = piece.array;
      float* stacked = stack(i % n).typed_data() + i / n * sizes[i] + piece.begin;
      copy(stacked, entry(i).typed_data() + piece.begin, piece.count * sizeof(float));
    }
  });
}

ffi::Error Unstack(ffi::ThreadPool pool, ffi::RemainingArgs stacks, ffi::RemainingRets entries) {
  Index n = stacks.size();
  if (n == 0) return ffi::Error::Success();
  ForEach(
      pool, n, entries.size() / n, [&](Index i) { return *stacks.get<Array>(i); },
      [&](Index i) { return **entries.get<Array>(i); },
      [](const float* stacked, float* entry, size_t size) { std::memcpy(entry, stacked, size); });
  return ffi::Error::Success();
}

ffi::Error Stack(ffi::ThreadPool pool, ffi::RemainingArgs entries, ffi::RemainingRets stacks) {
  Index n = stacks.size();
  if (n == 0) return ffi::Error::Success();
  ForEach(
      pool, n, entries.size() / n, [&](Index i) { return **stacks.get<Array>(i); },
      [&](Index i) { return *entries.get<Array>(i); },
      [](float* stacked, const float* entry, size_t size) { std::memcpy(stacked, entry, size); });
  return ffi::Error::Success();
}

ffi::Error Entry(ffi::ThreadPool pool, Scalar index, Array stack, Result entry) {
  Index size = entry->element_count();
  const float* stacked = stack.typed_data() + Within(index, stack) * size;
  auto tasks = Tasks({size});
  Parallel(pool, tasks.size(), [&](Index task) {
    for (const Piece& piece : tasks[task]) {
      std::memcpy(entry->typed_data() + piece.begin, stacked + piece.begin,
                  piece.count * sizeof(float));
    }
  });
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
