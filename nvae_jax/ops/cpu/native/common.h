// Code that the kernels share: threads, memory, blocks of channels, and the geometry of taps.

#ifndef NVAE_JAX_OPS_NATIVE_COMMON_H_
#define NVAE_JAX_OPS_NATIVE_COMMON_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include "calls.h"
#include "vectors.h"

// floor(a / b) for b > 0.
inline Index FloorDiv(Index a, Index b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// ---------------------------------------------------------------------------------------------
// Shapes

inline bool HasShape(const Array& array, std::initializer_list<Index> sizes) {
  auto dimensions = array.dimensions();
  return std::equal(dimensions.begin(), dimensions.end(), sizes.begin(), sizes.end());
}

inline bool HasSize(const Array& array, Index size) {
  return static_cast<Index>(array.element_count()) == size;
}

inline void RequireVectors(Index channels, std::initializer_list<Array> vectors) {
  for (const Array& vector : vectors) Require(HasShape(vector, {channels}), "a vector is not (C,)");
}

// ---------------------------------------------------------------------------------------------
// Threads

// Runs task(0) … task(count - 1) on the caller's thread and on those of the pool. The caller waits
// only for tasks that have started, never for threads, because XLA runs on the pool's threads, too.
// At the end it throws the first exception of a task.
template <typename Task>
void Parallel(ThreadPool& pool, Index count, const Task& task) {
  struct Shared {
    std::atomic<Index> next{0};
    Index done = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &task] {
    Index ran = 0;
    std::exception_ptr error;
    for (Index i; (i = shared->next++) < count; ++ran) {
      try {
        task(i);
      } catch (...) {
        error = std::current_exception();
      }
    }
    if (ran == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if (error && !shared->error) shared->error = error;
    shared->done += ran;
    if (shared->done == count) shared->finished.notify_all();
  };
  Index helpers = std::min<Index>(pool.num_threads(), count) - 1;
  try {
    for (Index i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  } catch (const std::bad_alloc&) {
  }  // fewer of them do it too
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == count; });
  if (shared->error) std::rethrow_exception(shared->error);
}

// Runs first(0) … first(count - 1) and, when all of them have ended, then(0) … then(more - 1). This
// is faster than two calls of `Parallel`, because threads take long to wake up.
template <typename First, typename Then>
void Parallel(ThreadPool& pool, Index count, const First& first, Index more,
              const Then& then) {
  std::atomic<Index> ended{0};
  std::atomic<bool> failed{false};
  Parallel(pool, count + more, [&](Index i) {  // they begin in order
    if (i < count) {
      try {
        first(i);
      } catch (...) {
        failed = true;
        ++ended;
        throw;
      }
      ++ended;
    } else {
      while (ended < count) std::this_thread::yield();
      if (!failed) then(i - count);
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Memory

// Floats aligned to a cache line: a vector that crosses a boundary takes twice as long to read.
class Buffer {
 public:
  explicit Buffer(Index size = 0) { Reserve(size); }
  void Reserve(Index size) {
    if (size > static_cast<Index>(lines_.size()) * 16) lines_.resize(CeilDiv(size, 16));
  }
  float* data() { return reinterpret_cast<float*>(lines_.data()); }
  const float* data() const { return reinterpret_cast<const float*>(lines_.data()); }

 private:
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> lines_;
};

// ---------------------------------------------------------------------------------------------
// Sums over rows

// The longest sums in float32 with negligible rounding.
constexpr Index kRowsToSum = 256;

// Calls run(std::integral_constant<int, n>(), row, c) for all channels of all rows: each call is for
// the vector of channels that starts at c, in n rows.
template <typename Run>
[[gnu::flatten]] void ForRows(Index rows, Index channels, const Run& run) {
  InParts<kTogether, 1>(rows, [&](auto n, Index row) {
    for (Index c = 0; c < channels; c += kLanes) run(n, row, c);
  });
}

// Adds to `Sums` vectors, `width` floats apart, the sums over n rows that
// add(std::integral_constant<int, n>(), row, c, sums) finds for channels from c on. Blocks of rows
// are summed first, and then their sums, which reduces rounding errors.
template <int Sums, typename Add>
void SumRows(Index rows, Index channels, float* totals, Index width, const Add& add) {
  ForRows(rows, channels, [&](auto n, Index row, Index c) {
    Vector sums[Sums];
    add(n, row, c, sums);
    for (int i = 0; i < Sums; ++i) {
      float* total = totals + i * width + c;
      Store(total, Load(total) + sums[i]);
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Lists of arrays

// Entries [begin, begin + count) of an array.
struct Piece {
  Index array, begin, count;
};

// Lists of pieces, one for each task, of about equal total length.
inline std::vector<std::vector<Piece>> Tasks(const std::vector<Index>& sizes) {
  constexpr Index kLength = 32 * 1024;
  std::vector<std::vector<Piece>> tasks(1);
  Index length = 0;
  for (size_t array = 0; array < sizes.size(); ++array) {
    for (Index begin = 0; begin < sizes[array]; begin += kLength) {
      if (length >= kLength) {
        tasks.emplace_back();
        length = 0;
      }
      Index count = std::min(kLength, sizes[array] - begin);
      tasks.back().push_back({static_cast<Index>(array), begin, count});
      length += count;
    }
  }
  return tasks;
}

// A kernel (k, k, in, out) as (rest, out), or one of a stack of them.
struct Matrix {
  Index array, index;   // number of the kernel, and index in its stack
  Index offset;         // where it starts in the array
  Index rows, columns;
  Index first_row;      // rows of all the matrices before
};

// Of the first `count` of `kernels`.
inline std::vector<Matrix> Matrices(const Arrays& kernels, Index count) {
  std::vector<Matrix> matrices;
  Index first_row = 0;
  for (Index i = 0; i < count; ++i) {
    auto sizes = kernels[i].dimensions();
    Index rank = sizes.size();
    Require(rank == 4 || rank == 5, "a kernel is not (k, k, in, out), or a stack of them");
    Index columns = sizes[rank - 1];
    Index rows = sizes[rank - 4] * sizes[rank - 3] * sizes[rank - 2];
    for (Index j = 0; j < (rank == 5 ? sizes[0] : 1); ++j, first_row += rows) {
      matrices.push_back({i, j, j * rows * columns, rows, columns, first_row});
    }
  }
  return matrices;
}

// ---------------------------------------------------------------------------------------------
// Arrays (B, H, W, C), in blocks of channels

constexpr Index kBlock = 2 * kLanes;

struct Image {  // a block of channels of one image
  const float* data;
  Index height, width, channels, valid;  // `valid` channels of the block are the array's
};

struct Shape {
  Index batch, height, width, channels;
  explicit Shape(const Array& a)
      : batch(a.dimensions()[0]),
        height(a.dimensions()[1]),
        width(a.dimensions()[2]),
        channels(a.dimensions()[3]) {}
  Index pixels() const { return height * width; }
  Index blocks() const { return CeilDiv(channels, kBlock); }
  Index valid(Index block) const { return std::min(kBlock, channels - block * kBlock); }
  Index at(Index b, Index block) const { return b * pixels() * channels + block * kBlock; }
  Image image(const float* data, Index b, Index block) const {
    return {data + at(b, block), height, width, channels, valid(block)};
  }
};

// The shapes of a convolution of stride 1 or 2: inputs and outputs (B, H, W, C), and a kernel
// (k, k, …) with `low` zeros in front of the input.
inline void RequireConvolution(const Array& in, const Array& out, const Array& kernel, size_t rank,
                               Index stride, Index low) {
  for (const Array& images : {in, out}) {
    Require(images.dimensions().size() == 4, "images are not (B, H, W, C)");
    for (int axis = 1; axis < 4; ++axis) Require(images.dimensions()[axis] > 0, "images are empty");
  }
  auto size = kernel.dimensions();
  Require(size.size() == rank && size[0] == size[1] && size[0] > 0, "a kernel is not square");
  Require(in.dimensions()[0] == out.dimensions()[0], "inputs and outputs are not as many images");
  Require(in.dimensions()[3] == size[2] && out.dimensions()[3] == size[rank - 1],
          "a kernel has not the channels of its images");
  Require(stride == 1 || stride == 2, "a stride is not 1 or 2");
  Require(low >= 0 && low < size[0], "low is not from 0 to the size of the kernel");
}

struct Pitch {  // distance in floats from one row, and one column, to the next
  Index row, column;
};

// Rows [row, row + rows) and columns [column, column + columns) of the image, with zeros outside of
// it, as (rows, columns, kBlock).
inline void Pack(const Image& image, Index row, Index rows, Index column, Index columns,
                 float* out) {
  Index first = std::min(columns, std::max<Index>(0, -column));
  Index last = std::max(first, std::min(columns, image.width - column));
  for (Index i = 0; i < rows; ++i, out += columns * kBlock) {
    Index y = row + i;
    if (y < 0 || y >= image.height) {
      std::memset(out, 0, columns * kBlock * sizeof(float));
      continue;
    }
    std::memset(out, 0, first * kBlock * sizeof(float));
    const float* from = image.data + (y * image.width + column + first) * image.channels;
    float* to = out + first * kBlock;
    for (Index j = first; j < last; ++j, from += image.channels, to += kBlock) {
      if (image.valid == kBlock) {
        std::memcpy(to, from, kBlock * sizeof(float));
      } else {
        std::memset(to, 0, kBlock * sizeof(float));
        std::memcpy(to, from, image.valid * sizeof(float));
      }
    }
    std::memset(to, 0, (columns - last) * kBlock * sizeof(float));
  }
}

// ---------------------------------------------------------------------------------------------
// Gradients for the input

// The gradient for input n is the sum of g[i] w[d] over all (i, d) with stride i + d - low = n. For
// all n with n + low = p modulo stride, only the taps p, p + stride, … contribute: along one axis,
// this is a correlation of stride 1 with these taps reversed.
struct Class {
  Index first, count;  // inputs first, first + stride, …
  Index taps, last;    // how many, and the last of them
  Index start;         // the first i that the first of the inputs meets

  // Of the inputs [begin, end), those of class p; k taps in all.
  Class(Index p, Index begin, Index end, Index k, Index stride, Index low)
      : first(begin + ((p - begin - low) % stride + stride) % stride),
        count(first < end ? CeilDiv(end - first, stride) : 0),
        taps(std::max<Index>(0, CeilDiv(k - p, stride))),
        last(p + stride * (taps - 1)),
        start(FloorDiv(first + low, stride) - (taps - 1)) {}
};

// The outputs [first, first + count) that inputs [begin, end) contribute to along one axis.
struct Reach {
  Index first, count;
  Reach(Index begin, Index end, Index k, Index stride, Index low)
      : first(FloorDiv(begin + low, stride) - (CeilDiv(k, stride) - 1)),
        count(FloorDiv(end - 1 + low, stride) - first + 1) {}
};

#endif  // NVAE_JAX_OPS_NATIVE_COMMON_H_
