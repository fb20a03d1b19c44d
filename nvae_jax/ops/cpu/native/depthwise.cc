// Depthwise convolution of float32 arrays: the three maps that ops/portable/depthwise.py defines.
//
// A task copies a block of channels of some rows of an image, with the zeros around it, into a
// buffer that fits into the first-level caches, and then reads only the buffer. The result of a task
// does not depend on the thread, so results are reproducible bit for bit.

#include "depthwise.h"

namespace {

constexpr Index kBufferFloats = 12 * 1024;  // approximate size of the input's buffer

// The number of output rows per task: their inputs fill a buffer, and tasks are about equal.
Index StripOf(Index height, Index columns, Index k, Index stride) {
  Index rows = std::max<Index>(1, (kBufferFloats / (columns * kBlock) - k) / stride + 1);
  return CeilDiv(height, CeilDiv(height, rows));
}

// A task is a strip of an image, with several of its blocks of channels one after the other: values
// that are adjacent in memory are then read at about the same time.
struct Work {
  Index strips, parts, blocks, all_blocks, tasks;
  Work(const Shape& like, Index strips)
      : strips(strips),
        parts(std::min(like.blocks(), CeilDiv(16, std::max<Index>(1, like.batch * strips)))),
        blocks(CeilDiv(like.blocks(), parts)),
        all_blocks(like.blocks()),
        tasks(like.batch * strips * parts) {}
  Index strip(Index task) const { return task / parts % strips; }
  Index image(Index task) const { return task / parts / strips; }
  Index first(Index task) const { return task % parts * blocks; }
  Index last(Index task) const { return std::min(first(task) + blocks, all_blocks); }
};

void Correlate(ThreadPool pool, Array x, Array w, Result y, Index stride, Index low) {
  RequireConvolution(x, y, w, 3, stride, low);
  Shape in(x), out(y);
  Index k = w.dimensions()[0], columns = stride * (out.width - 1) + k;
  Index strip = StripOf(out.height, columns, k, stride), strips = CeilDiv(out.height, strip);
  auto run = stride == 1 ? CorrelateRows<1, Identity> : CorrelateRows<2, Identity>;
  Work work(in, strips);
  Parallel(pool, work.tasks, [&](Index task) {
    Index row = work.strip(task) * strip, b = work.image(task);
    Index rows = std::min(strip, out.height - row), buffer_rows = stride * (rows - 1) + k;
    static thread_local Buffer buffer, taps;
    buffer.Reserve(buffer_rows * columns * kBlock);
    taps.Reserve(k * k * kBlock);
    Pitch pitch = {out.width * out.channels, out.channels};
    for (Index block = work.first(task); block < work.last(task); ++block) {
      Image image = in.image(x.typed_data(), b, block);
      Pack(image, stride * row - low, buffer_rows, -low, columns, buffer.data());
      PackTaps(w.typed_data(), k, in.channels, block * kBlock, in.valid(block), 0, k, 0, k, -1,
               taps.data());
      run(buffer.data(), columns * kBlock, taps.data(), k, k,
          y.typed_data() + out.at(b, block) + row * pitch.row, pitch, rows, out.width,
          in.valid(block), Identity());
    }
  });
}

void InputGrad(ThreadPool pool, Array g, Array w, Result dx, Index stride, Index low) {
  RequireConvolution(dx, g, w, 3, stride, low);
  Shape in(g), out(dx);
  InputGradient gradient = {w.dimensions()[0], stride, low};
  Index k = gradient.k;
  Reach across(0, out.width, k, stride, low);
  Index strip = StripOf(CeilDiv(out.height, stride), across.count, CeilDiv(k, stride), 1) * stride;
  Index strips = CeilDiv(out.height, strip);
  Work work(in, strips);
  Parallel(pool, work.tasks, [&](Index task) {
    Index row = work.strip(task) * strip, end = std::min(row + strip, out.height);
    Reach down(row, end, k, stride, low);
    static thread_local Buffer buffer, taps;
    buffer.Reserve(down.count * across.count * kBlock);
    taps.Reserve(k * k * kBlock);
    for (Index block = work.first(task); block < work.last(task); ++block) {
      Image image = in.image(g.typed_data(), work.image(task), block);
      Pack(image, down.first, down.count, across.first, across.count, buffer.data());
      gradient.Pack(w.typed_data(), in.channels, block * kBlock, in.valid(block), taps.data());
      gradient.Run(buffer.data(), down, across, taps.data(), row, end, out.width,
                   dx.typed_data() + out.at(work.image(task), block), out.channels,
                   in.valid(block), Identity());
    }
  });
}

// Adds to `Rows` x `Columns` taps of dw the products of x and g at all rows x columns pixels of g.
template <int Rows, int Columns, int Stride>
void AddTaps(const float* x, Index row, const float* g, Index rows, Index columns, float* dw,
             Index pitch) {
  for (Index c = 0; c < kBlock; c += kLanes) {
    Vector sum[Rows][Columns];
    Clear(sum);
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
        float* to = dw + dy * pitch + dx * kBlock + c;
        Store(to, Load(to) + sum[dy][dx]);
      }
    }
  }
}

// All k x k taps, as many at once as the registers allow.
template <int Stride>
void AddAllTaps(const float* x, Index row, const float* g, Index rows, Index columns, Index k,
                float* dw) {
  InParts<2, 1>(k, [&](auto height, Index dy) {
    InParts<5, 3, 1>(k, [&](auto width, Index dx) {
      AddTaps<height.value, width.value, Stride>(x + dy * row + dx * kBlock, row, g, rows, columns,
                                                 dw + (dy * k + dx) * kBlock, k * kBlock);
    });
  });
}

void KernelGrad(ThreadPool pool, Array x, Array g, Result dw, Index stride, Index low) {
  RequireConvolution(x, g, dw, 3, stride, low);
  Shape in(x), out(g);
  Index k = dw.dimensions()[0], columns = stride * (out.width - 1) + k;
  Index strip = StripOf(out.height, columns, k, stride);
  // Parts of the batch, whose sums are added up afterwards in a fixed order.
  Index parts = std::max<Index>(1, std::min(in.batch, 16 / in.blocks()));
  Index images = CeilDiv(in.batch, parts), taps = k * k * kBlock;
  auto run = stride == 1 ? AddAllTaps<1> : AddAllTaps<2>;
  Buffer sums(parts * in.blocks() * taps);
  Parallel(pool, in.blocks() * parts, [&](Index task) {
    Index block = task / parts, part = task % parts;
    static thread_local Buffer inputs, outputs;
    inputs.Reserve((stride * (strip - 1) + k) * columns * kBlock);
    outputs.Reserve(strip * out.width * kBlock);
    for (Index b = part * images; b < std::min((part + 1) * images, in.batch); ++b) {
      for (Index row = 0; row < out.height; row += strip) {
        Index rows = std::min(strip, out.height - row);
        Pack(in.image(x.typed_data(), b, block), stride * row - low, stride * (rows - 1) + k, -low,
             columns, inputs.data());
        Pack(out.image(g.typed_data(), b, block), row, rows, 0, out.width, outputs.data());
        run(inputs.data(), columns * kBlock, outputs.data(), rows, out.width, k,
            sums.data() + task * taps);
      }
    }
  });
  for (Index block = 0; block < in.blocks(); ++block) {
    for (Index tap = 0; tap < k * k; ++tap) {
      for (Index c = 0; c < in.valid(block); ++c) {
        float sum = 0;
        for (Index part = 0; part < parts; ++part) {
          sum += sums.data()[(block * parts + part) * taps + tap * kBlock + c];
        }
        dw.typed_data()[tap * in.channels + block * kBlock + c] = sum;
      }
    }
  }
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_depthwise_correlate, Correlate, "stride", "low")
NVAE_JAX_EXPORT(nvae_jax_depthwise_input_grad, InputGrad, "stride", "low")
NVAE_JAX_EXPORT(nvae_jax_depthwise_kernel_grad, KernelGrad, "stride", "low")
