// Depthwise convolution of float32 arrays on CPU: the three maps that __init__.py defines.
//
// Compiled by native.py, called by XLA. Arrays are NHWC; the innermost loops run over channels, in
// vectors as wide as the machine's. Work is cut into tasks whose results do not depend on which
// thread runs which, so a result is the same bits every time.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using Index = int64_t;

// ---------------------------------------------------------------------------------------------
// Threads

// Runs task(0) … task(count - 1), on the caller's thread and on those of the pool. The caller waits
// for tasks that have begun only, never for threads: XLA itself runs on the pool's.
template <typename Task>
void Parallel(ffi::ThreadPool& pool, Index count, const Task& task) {
  struct Shared {
    std::atomic<Index> next{0};
    Index done = 0;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, count, &task] {
    Index ran = 0;
    for (Index i; (i = shared->next++) < count; ++ran) task(i);
    if (ran == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += ran;
    if (shared->done == count) shared->finished.notify_all();
  };
  Index helpers = std::min<Index>(pool.num_threads(), count) - 1;
  for (Index i = 0; i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == count; });
}

// ---------------------------------------------------------------------------------------------
// Vectors

#if defined(__AVX512F__)
constexpr Index kLanes = 16;
#elif defined(__AVX__)
constexpr Index kLanes = 8;
#else
constexpr Index kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));


// Floats at the start of a cache line: a vector that lies across two costs twice as much.
class Buffer {
 public:
  explicit Buffer(Index size = 0) { Reserve(size); }
  void Reserve(Index size) {
    if (size > static_cast<Index>(lines_.size()) * 16) lines_.resize((size + 15) / 16);
  }
  float* data() { return reinterpret_cast<float*>(lines_.data()); }

 private:
  struct alignas(64) Line { float values[16]; };
  std::vector<Line> lines_;
};

inline Vector Load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void Store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// ---------------------------------------------------------------------------------------------
// Depthwise convolution
//
// A task copies a block of channels of some rows of an image, with the zeros around it, into a
// buffer that stays in the first caches, and then only reads that.

constexpr Index kBlock = 2 * kLanes;        // channels
constexpr Index kBufferFloats = 12 * 1024;  // of the input's buffer, about

struct Image {  // one channel block of one image
  const float* data;
  Index height, width, channels, valid;  // `valid` channels of the block are the array's
};

// Rows [row, row + rows) and columns [column, column + columns) of the image, zeros outside it.
void Pack(const Image& image, Index row, Index rows, Index column, Index columns, float* out) {
  Index first = std::max<Index>(0, -column);
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

struct Pitch {  // floats from one row, one column to the next
  Index row, column;
};

// `Columns` neighbouring outputs: sums over kh x kw taps of x times w (kh, kw, kBlock).
template <int Columns, int Stride>
void CorrelatePixels(const float* x, Index row, const float* w, Index kh, Index kw, float* y,
                     Index pitch, Index valid) {
  for (Index c = 0; c < valid; c += kLanes) {
    Vector sum[Columns] = {};
    const float* tap = w + c;
    for (Index dy = 0; dy < kh; ++dy) {
      const float* at = x + dy * row + c;
      for (Index dx = 0; dx < kw; ++dx, at += kBlock, tap += kBlock) {
        Vector weight = Load(tap);
        for (int j = 0; j < Columns; ++j) sum[j] += Load(at + j * Stride * kBlock) * weight;
      }
    }
    for (int j = 0; j < Columns; ++j) {
      if (valid - c >= kLanes) {
        Store(y + j * pitch + c, sum[j]);
      } else {
        std::memcpy(y + j * pitch + c, &sum[j], (valid - c) * sizeof(float));
      }
    }
  }
}

// rows x columns outputs; `row` floats in a row of x.
template <int Stride>
void CorrelateRows(const float* x, Index row, const float* w, Index kh, Index kw, float* y,
                   Pitch out, Index rows, Index columns, Index valid) {
  for (Index i = 0; i < rows; ++i, x += Stride * row, y += out.row) {
    Index j = 0;
    auto run = [&](auto count) {
      constexpr int n = decltype(count)::value;
      for (; j + n <= columns; j += n) {
        CorrelatePixels<n, Stride>(x + j * Stride * kBlock, row, w, kh, kw, y + j * out.column,
                                   out.column, valid);
      }
    };
    run(std::integral_constant<int, 8>());
    run(std::integral_constant<int, 4>());
    run(std::integral_constant<int, 2>());
    run(std::integral_constant<int, 1>());
  }
}

struct Shape {
  Index batch, height, width, channels;
  explicit Shape(const Array& a)
      : batch(a.dimensions()[0]),
        height(a.dimensions()[1]),
        width(a.dimensions()[2]),
        channels(a.dimensions()[3]) {}
  Index pixels() const { return height * width; }
  Index blocks() const { return (channels + kBlock - 1) / kBlock; }
  Index valid(Index block) const { return std::min(kBlock, channels - block * kBlock); }
  Image image(const float* data, Index b, Index block) const {
    return {data + b * pixels() * channels + block * kBlock, height, width, channels,
            valid(block)};
  }
};

Index CeilDiv(Index a, Index b) { return (a + b - 1) / b; }

// floor(a / b) for b > 0.
Index FloorDiv(Index a, Index b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The taps first, first + step, … (`count` in each direction) of a channel block of w (k, k, C);
// turned round if `step` is negative.
Buffer PackTaps(const float* w, Index k, Index channels, Index block, Index first_row,
                            Index rows, Index first_column, Index columns, Index step) {
  Buffer buffer(rows * columns * kBlock);
  float* taps = buffer.data();
  Index valid = std::min(kBlock, channels - block * kBlock);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) {
      Index tap = (first_row + i * step) * k + first_column + j * step;
      std::memcpy(&taps[(i * columns + j) * kBlock], w + tap * channels + block * kBlock,
                  valid * sizeof(float));
    }
  }
  return buffer;
}

// y[i] = sum_d x[stride i + d - low] w[d]
ffi::Error Correlate(ffi::ThreadPool pool, Array x, Array w, Result y, Index stride, Index low) {
  Shape in(x), out(*y);
  Index k = w.dimensions()[0];
  Index columns = stride * (out.width - 1) + k;
  Index strip = std::max<Index>(1, (kBufferFloats / (columns * kBlock) - k) / stride + 1);
  Index strips = CeilDiv(out.height, strip);
  strip = CeilDiv(out.height, strips);
  Parallel(pool, in.blocks() * in.batch * strips, [&](Index task) {
    Index block = task % in.blocks(), row = task / in.blocks() % strips * strip;
    Index b = task / in.blocks() / strips;
    Index rows = std::min(strip, out.height - row);
    Buffer taps =
        PackTaps(w.typed_data(), k, in.channels, block, 0, k, 0, k, 1);
    static thread_local Buffer buffer;
    Index buffer_rows = stride * (rows - 1) + k;
    buffer.Reserve(buffer_rows * columns * kBlock);
    Pack(in.image(x.typed_data(), b, block), stride * row - low, buffer_rows, -low, columns,
         buffer.data());
    float* to = y->typed_data() + ((b * out.height + row) * out.width) * out.channels;
    auto run = stride == 1 ? CorrelateRows<1> : CorrelateRows<2>;
    run(buffer.data(), columns * kBlock, taps.data(), k, k, to + block * kBlock,
        {out.width * out.channels, out.channels}, rows, out.width, in.valid(block));
  });
  return ffi::Error::Success();
}

// dx[n] = sum of g[i] w[d] over all (i, d) with stride i + d - low = n. For the n with
// n + low = p modulo stride only the taps p, p + stride, … count: a correlation for each such class.
ffi::Error InputGrad(ffi::ThreadPool pool, Array g, Array w, Result dx, Index stride, Index low) {
  Shape in(g), out(*dx);
  Index k = w.dimensions()[0];
  struct Class {
    Index first, step_first, count, taps;  // outputs from `first`, their inputs from `step_first`
  };
  // Of outputs [begin, end) along one axis, those of class p.
  auto of_class = [&](Index p, Index begin, Index end) {
    Index first = begin + ((p - begin - low) % stride + stride) % stride;
    Index taps = CeilDiv(k - p, stride);
    Index count = first < end ? CeilDiv(end - first, stride) : 0;
    return Class{first, FloorDiv(first + low, stride) - (taps - 1), count, taps};
  };
  Index reach = CeilDiv(k, stride);
  Index left = FloorDiv(low, stride) - (reach - 1);
  Index columns = FloorDiv(out.width - 1 + low, stride) - left + 1;
  Index strip = std::max<Index>(1, kBufferFloats / (columns * kBlock) - reach) * stride;
  Index strips = CeilDiv(out.height, strip);
  strip = CeilDiv(out.height, strips);
  Parallel(pool, in.blocks() * in.batch * strips, [&](Index task) {
    Index block = task % in.blocks(), row = task / in.blocks() % strips * strip;
    Index b = task / in.blocks() / strips;
    Index end = std::min(row + strip, out.height);
    Index top = FloorDiv(row + low, stride) - (reach - 1);
    Index buffer_rows = FloorDiv(end - 1 + low, stride) - top + 1;
    static thread_local Buffer buffer;
    buffer.Reserve(buffer_rows * columns * kBlock);
    Pack(in.image(g.typed_data(), b, block), top, buffer_rows, left, columns, buffer.data());
    Pitch window = {columns * kBlock, kBlock};
    float* to = dx->typed_data() + b * out.pixels() * out.channels + block * kBlock;
    Pitch pitch = {out.width * out.channels, out.channels};
    for (Index py = 0; py < stride; ++py) {
      Class v = of_class(py, row, end);
      for (Index px = 0; px < stride; ++px) {
        Class h = of_class(px, 0, out.width);
        Buffer taps =
            PackTaps(w.typed_data(), k, in.channels, block, py + stride * (v.taps - 1), v.taps,
                     px + stride * (h.taps - 1), h.taps, -stride);
        const float* from = buffer.data() + (v.step_first - top) * window.row +
                            (h.step_first - left) * window.column;
        CorrelateRows<1>(from, window.row, taps.data(), v.taps, h.taps,
                         to + v.first * pitch.row + h.first * pitch.column,
                         {stride * pitch.row, stride * pitch.column}, v.count, h.count,
                         in.valid(block));
      }
    }
  });
  return ffi::Error::Success();
}

// Adds to `Rows` x `Columns` taps of dw the products of x and g at all rows x columns pixels of g.
template <int Rows, int Columns, int Stride>
void AddTaps(const float* x, Index row, const float* g, Index rows, Index columns,
             float* dw, Index taps_pitch) {
  for (Index c = 0; c < kBlock; c += kLanes) {
    Vector sum[Rows][Columns] = {};
    for (Index i = 0; i < rows; ++i) {
      const float* pixel = g + i * columns * kBlock + c;
      const float* at = x + i * Stride * row + c;
      for (Index j = 0; j < columns; ++j, pixel += kBlock, at += Stride * kBlock) {
        Vector value = Load(pixel);
        for (int dy = 0; dy < Rows; ++dy) {
          for (int dx = 0; dx < Columns; ++dx) {
            sum[dy][dx] += Load(at + dy * row + dx * kBlock) * value;
          }
        }
      }
    }
    for (int dy = 0; dy < Rows; ++dy) {
      for (int dx = 0; dx < Columns; ++dx) {
        float* to = dw + dy * taps_pitch + dx * kBlock + c;
        Store(to, Load(to) + sum[dy][dx]);
      }
    }
  }
}

template <int Stride>
void AddAllTaps(const float* x, Index row, const float* g, Index rows, Index columns, Index k,
                float* dw) {
  auto tile = [&](auto height, auto width, Index dy, Index dx) {
    AddTaps<decltype(height)::value, decltype(width)::value, Stride>(
        x + dy * row + dx * kBlock, row, g, rows, columns, dw + (dy * k + dx) * kBlock, k * kBlock);
  };
  auto band = [&](auto height, Index dy) {
    Index dx = 0;
    for (; dx + 5 <= k; dx += 5) tile(height, std::integral_constant<int, 5>(), dy, dx);
    for (; dx + 3 <= k; dx += 3) tile(height, std::integral_constant<int, 3>(), dy, dx);
    for (; dx < k; ++dx) tile(height, std::integral_constant<int, 1>(), dy, dx);
  };
  Index dy = 0;
  for (; dy + 2 <= k; dy += 2) band(std::integral_constant<int, 2>(), dy);
  for (; dy < k; ++dy) band(std::integral_constant<int, 1>(), dy);
}

// dw[d] = sum_i x[stride i + d - low] g[i]
ffi::Error KernelGrad(ffi::ThreadPool pool, Array x, Array g, Result dw, Index stride, Index low) {
  Shape in(x), out(g);
  Index k = dw->dimensions()[0];
  Index columns = stride * (out.width - 1) + k;
  Index strip = std::max<Index>(1, (kBufferFloats / (columns * kBlock) - k) / stride + 1);
  strip = std::min(strip, out.height);
  // Parts of the batch, whose sums are added up afterwards, in their order.
  Index parts = std::min(in.batch, std::max<Index>(1, 16 / in.blocks()));
  Index images = CeilDiv(in.batch, parts);
  Index taps = k * k * kBlock;
  Buffer sums(parts * in.blocks() * taps);
  Parallel(pool, in.blocks() * parts, [&](Index task) {
    Index block = task / parts, part = task % parts;
    float* sum = sums.data() + task * taps;
    static thread_local Buffer inputs, outputs;
    inputs.Reserve((stride * (strip - 1) + k) * columns * kBlock);
    outputs.Reserve(strip * out.width * kBlock);
    for (Index b = part * images; b < std::min((part + 1) * images, in.batch); ++b) {
      for (Index row = 0; row < out.height; row += strip) {
        Index rows = std::min(strip, out.height - row);
        Pack(in.image(x.typed_data(), b, block), stride * row - low, stride * (rows - 1) + k, -low,
             columns, inputs.data());
        Pack(out.image(g.typed_data(), b, block), row, rows, 0, out.width, outputs.data());
        auto run = stride == 1 ? AddAllTaps<1> : AddAllTaps<2>;
        run(inputs.data(), columns * kBlock, outputs.data(), rows, out.width, k, sum);
      }
    }
  });
  float* to = dw->typed_data();
  for (Index block = 0; block < in.blocks(); ++block) {
    for (Index tap = 0; tap < k * k; ++tap) {
      for (Index c = 0; c < in.valid(block); ++c) {
        float sum = 0;
        for (Index part = 0; part < parts; ++part) {
          sum += sums.data()[(block * parts + part) * taps + tap * kBlock + c];
        }
        to[tap * in.channels + block * kBlock + c] = sum;
      }
    }
  }
  return ffi::Error::Success();
}

#define NVAE_JAX_EXPORT(name, function)                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                  \
                                ffi::Ffi::Bind()                 \
                                    .Ctx<ffi::ThreadPool>()      \
                                    .Arg<Array>()                \
                                    .Arg<Array>()                \
                                    .Ret<Array>()                \
                                    .Attr<Index>("stride")       \
                                    .Attr<Index>("low"))
NVAE_JAX_EXPORT(correlate, Correlate);
NVAE_JAX_EXPORT(input_grad, InputGrad);
NVAE_JAX_EXPORT(kernel_grad, KernelGrad);
