// Dense convolution of float32 arrays, and its gradients: see ops/convolution.py.
//
// Inputs are packed in blocks of channels, with the zeros around them, and kernels in the order in
// which they are read. Then tiles of pixels x output channels are summed up in registers. The result
// of a task does not depend on the thread, so results are reproducible bit for bit.

#include "common.h"

namespace {

// Pixels of a tile: with two vectors each, their sums fill the registers.
constexpr Index kPixels = kRegisters == 32 ? 8 : 4;
constexpr Index kPixelsPerTask = 64;  // at least, so that each read of a kernel block is used often

// The taps w[row - i step, column - j step] of w (k, k, C, O), with its last two axes exchanged if
// requested, in the order (block of outputs, block of inputs, tap, input, output).
struct KernelPart {
  Index k, inputs, outputs;
  bool exchanged;
  Index row, rows, column, columns, step;
  Index block() const { return rows * columns * inputs * kBlock; }  // floats of a block of outputs
  Index size() const { return block() * CeilDiv(outputs, kBlock); }
};

void PackKernel(ThreadPool& pool, const float* w, const KernelPart& part, float* packed) {
  Index inputs = part.inputs, outputs = part.outputs, input_blocks = CeilDiv(inputs, kBlock);
  Parallel(pool, CeilDiv(outputs, kBlock) * input_blocks, [&](Index task) {
    Index out = task / input_blocks * kBlock, in = task % input_blocks * kBlock;
    Index n = std::min(kBlock, inputs - in), m = std::min(kBlock, outputs - out);
    float* to = packed + out / kBlock * part.block() + in * part.rows * part.columns * kBlock;
    for (Index i = 0; i < part.rows; ++i) {
      for (Index j = 0; j < part.columns; ++j, to += n * kBlock) {
        Index tap = (part.row - i * part.step) * part.k + part.column - j * part.step;
        const float* from = w + tap * inputs * outputs;
        if (part.exchanged) {
          for (Index o = 0; o < m; ++o) {
            for (Index c = 0; c < n; ++c) to[c * kBlock + o] = from[(out + o) * inputs + in + c];
          }
        } else {
          for (Index c = 0; c < n; ++c) {
            std::memcpy(to + c * kBlock, from + (in + c) * outputs + out, m * sizeof(float));
          }
        }
      }
    }
  });
}

struct Packed {  // an input in blocks of channels: (block, row, column, kBlock)
  const float* data;
  Index row, block, channels;
};

struct Taps {
  const float* data;
  Index rows, columns;
};

// Rows x Columns outputs, `Vectors` of channels each.
template <int Rows, int Columns, int Vectors, int Stride>
void MultiplyTile(Packed x, Taps w, float* y, Pitch out, Index valid) {
  Vector sum[Rows][Columns][Vectors];
  Clear(sum);
  const float* weight = w.data;
  for (Index c = 0; c < x.channels; c += kBlock, x.data += x.block) {
    Index n = std::min(kBlock, x.channels - c);
    for (Index dy = 0; dy < w.rows; ++dy) {
      for (Index dx = 0; dx < w.columns; ++dx) {
        const float* at = x.data + dy * x.row + dx * kBlock;
        for (Index i = 0; i < n; ++i, weight += kBlock) {
          Vector weights[Vectors];
          for (int v = 0; v < Vectors; ++v) weights[v] = Load(weight + v * kLanes);
          for (int r = 0; r < Rows; ++r) {
            for (int j = 0; j < Columns; ++j) {
              float value = at[r * Stride * x.row + j * Stride * kBlock + i];
              for (int v = 0; v < Vectors; ++v) sum[r][j][v] += value * weights[v];
            }
          }
        }
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < Columns; ++j) {
      for (int v = 0; v < Vectors; ++v) {
        StorePart(y + r * out.row + j * out.column + v * kLanes, sum[r][j][v], valid - v * kLanes);
      }
    }
  }
}

// rows x columns outputs of a block of channels.
template <int Stride, int Vectors>
void MultiplyRowsOf(Packed x, Taps w, float* y, Pitch out, Index rows, Index columns, Index valid) {
  InParts<kPixels, 4, 2, 1>(columns, [&](auto n, Index j) {
    InParts<kPixels / n.value, 1>(rows, [&](auto m, Index i) {
      Packed from = x;
      from.data += i * Stride * x.row + j * Stride * kBlock;
      MultiplyTile<m.value, n.value, Vectors, Stride>(from, w, y + i * out.row + j * out.column,
                                                      out, valid);
    });
  });
}

template <int Stride>
void MultiplyRows(Packed x, Taps w, float* y, Pitch out, Index rows, Index columns, Index valid) {
  auto run = valid > kLanes ? MultiplyRowsOf<Stride, 2> : MultiplyRowsOf<Stride, 1>;
  run(x, w, y, out, rows, columns, valid);
}

// How the images and rows of an output are divided into tasks.
struct Work {
  Index images, rows;           // per task
  Index groups, strips, parts;  // numbers of groups of images, strips of rows, parts of channels
  Index tasks() const { return groups * strips * parts; }
  Work(Index batch, Index height, Index width, Index multiple, Index blocks) {
    images = std::max<Index>(1, std::min(batch, CeilDiv(kPixelsPerTask, height * width)));
    rows = std::min(height, CeilDiv(CeilDiv(2 * kPixelsPerTask, width), multiple) * multiple);
    groups = CeilDiv(batch, images);
    strips = CeilDiv(height, rows);
    parts = std::min(blocks, CeilDiv(16, std::max<Index>(1, groups * strips)));
  }
};

void Correlate(ThreadPool pool, Array x, Array w, Result y, Index stride, Index low) {
  RequireConvolution(x, y, w, 4, stride, low);
  Shape in(x), out(y);
  Index k = w.dimensions()[0], columns = stride * (out.width - 1) + k;
  KernelPart part_of_w = {k, in.channels, out.channels, false, 0, k, 0, k, -1};
  static thread_local Buffer kept;
  kept.Reserve(part_of_w.size());
  float* kernel = kept.data();
  PackKernel(pool, w.typed_data(), part_of_w, kernel);
  Work work(in.batch, out.height, out.width, 1, out.blocks());
  Index size = (stride * (work.rows - 1) + k) * columns * kBlock;  // of a packed block
  auto run = stride == 1 ? MultiplyRows<1> : MultiplyRows<2>;
  Parallel(pool, work.tasks(), [&](Index task) {
    Index part = task % work.parts, row = task / work.parts % work.strips * work.rows;
    Index first = task / work.parts / work.strips * work.images;
    Index images = std::min(work.images, in.batch - first);
    Index rows = std::min(work.rows, out.height - row);
    static thread_local Buffer buffer;
    buffer.Reserve(images * in.blocks() * size);
    for (Index b = 0; b < images; ++b) {
      for (Index block = 0; block < in.blocks(); ++block) {
        Pack(in.image(x.typed_data(), first + b, block), stride * row - low,
             stride * (rows - 1) + k, -low, columns,
             buffer.data() + (b * in.blocks() + block) * size);
      }
    }
    Pitch pitch = {out.width * out.channels, out.channels};
    for (Index block = part; block < out.blocks(); block += work.parts) {
      for (Index b = 0; b < images; ++b) {
        Packed from = {buffer.data() + b * in.blocks() * size, columns * kBlock, size, in.channels};
        run(from, {kernel + block * part_of_w.block(), k, k},
            y.typed_data() + out.at(first + b, block) + row * pitch.row, pitch, rows, out.width,
            out.valid(block));
      }
    }
  });
}

void InputGrad(ThreadPool pool, Array g, Array w, Result dx, Index stride, Index low) {
  RequireConvolution(dx, g, w, 4, stride, low);
  Shape in(g), out(dx);
  Index k = w.dimensions()[0];
  Reach across(0, out.width, k, stride, low);
  Work work(in.batch, out.height, out.width, stride, out.blocks());
  Index size = (CeilDiv(work.rows, stride) + CeilDiv(k, stride)) * across.count * kBlock;
  std::vector<KernelPart> classes;
  std::vector<float*> kernels;
  Index total = 0;
  for (Index p = 0; p < stride * stride; ++p) {
    Class v(p / stride, 0, 1, k, stride, low), h(p % stride, 0, 1, k, stride, low);
    classes.push_back(
        {k, in.channels, out.channels, true, v.last, v.taps, h.last, h.taps, stride});
    total += classes[p].size();
  }
  static thread_local Buffer kept;
  kept.Reserve(total);
  for (const KernelPart& part : classes) {
    kernels.push_back(kernels.empty() ? kept.data() : kernels.back() + (&part - 1)->size());
    PackKernel(pool, w.typed_data(), part, kernels.back());
  }
  Parallel(pool, work.tasks(), [&](Index task) {
    Index part = task % work.parts, row = task / work.parts % work.strips * work.rows;
    Index first = task / work.parts / work.strips * work.images;
    Index images = std::min(work.images, in.batch - first);
    Index end = std::min(row + work.rows, out.height);
    Reach down(row, end, k, stride, low);
    static thread_local Buffer buffer;
    buffer.Reserve(images * in.blocks() * size);
    for (Index b = 0; b < images; ++b) {
      for (Index block = 0; block < in.blocks(); ++block) {
        Pack(in.image(g.typed_data(), first + b, block), down.first, down.count, across.first,
             across.count, buffer.data() + (b * in.blocks() + block) * size);
      }
    }
    Index pitch = across.count * kBlock;
    for (Index block = part; block < out.blocks(); block += work.parts) {
      for (Index p = 0; p < stride * stride; ++p) {
        Class v(p / stride, row, end, k, stride, low), h(p % stride, 0, out.width, k, stride, low);
        for (Index b = 0; b < images; ++b) {
          const float* from = buffer.data() + b * in.blocks() * size +
                              (v.start - down.first) * pitch + (h.start - across.first) * kBlock;
          MultiplyRows<1>({from, pitch, size, in.channels},
                          {kernels[p] + block * classes[p].block(), v.taps, h.taps},
                          dx.typed_data() + out.at(first + b, block) +
                              (v.first * out.width + h.first) * out.channels,
                          {stride * out.width * out.channels, stride * out.channels}, v.count,
                          h.count, out.valid(block));
        }
      }
    }
  });
}

// Adds to dw (kBlock, kBlock) of one tap: `Inputs` channels of x times g, over all pixels of g.
template <int Inputs, int Stride>
void AddProducts(Packed x, const float* g, Index images, Index rows, Index columns, float* dw) {
  Vector sum[Inputs][2];
  Clear(sum);
  for (Index b = 0; b < images; ++b, x.data += x.block) {
    for (Index i = 0; i < rows; ++i) {
      const float* at = x.data + i * Stride * x.row;
      for (Index j = 0; j < columns; ++j, at += Stride * kBlock, g += kBlock) {
        Vector values[2] = {Load(g), Load(g + kLanes)};
        for (int c = 0; c < Inputs; ++c) {
          for (int v = 0; v < 2; ++v) sum[c][v] += at[c] * values[v];
        }
      }
    }
  }
  for (int c = 0; c < Inputs; ++c) {
    for (int v = 0; v < 2; ++v) {
      float* to = dw + c * kBlock + v * kLanes;
      Store(to, Load(to) + sum[c][v]);
    }
  }
}

template <int Stride>
void AddAllProducts(Packed x, const float* g, Index images, Index rows, Index columns, Index k,
                    float* dw) {
  for (Index tap = 0; tap < k * k; ++tap, dw += kBlock * kBlock) {
    InParts<kPixels, 2, 1>(x.channels, [&](auto n, Index c) {
      Packed from = x;
      from.data += tap / k * x.row + tap % k * kBlock + c;
      AddProducts<n.value, Stride>(from, g, images, rows, columns, dw + c * kBlock);
    });
  }
}

void KernelGrad(ThreadPool pool, Array x, Array g, Result dw, Index stride, Index low) {
  RequireConvolution(x, g, dw, 4, stride, low);
  Shape in(x), out(g);
  Index k = dw.dimensions()[0], columns = stride * (out.width - 1) + k;
  Index strip = std::min(out.height, CeilDiv(4 * kPixelsPerTask, out.width));
  Index group = CeilDiv(4 * kPixelsPerTask, out.pixels());  // images whose pixels are one sum
  Index blocks = in.blocks() * out.blocks(), taps = k * k * kBlock * kBlock;
  // Parts of the batch, whose sums are added up afterwards in a fixed order.
  Index parts = std::max<Index>(1, std::min(in.batch, 16 / blocks));
  Index images = CeilDiv(in.batch, parts);
  auto run = stride == 1 ? AddAllProducts<1> : AddAllProducts<2>;
  // Adds up the parts of a block, which are `taps` floats apart.
  auto finish = [&](Index block, const float* sums) {
    Index from = block % in.blocks(), to = block / in.blocks();
    for (Index tap = 0; tap < k * k; ++tap) {
      for (Index c = 0; c < in.valid(from); ++c) {
        const float* sum = sums + (tap * kBlock + c) * kBlock;
        float* result = dw.typed_data() +
                        (tap * in.channels + from * kBlock + c) * out.channels + to * kBlock;
        for (Index o = 0; o < out.valid(to); ++o) {
          float total = sum[o];
          for (Index part = 1; part < parts; ++part) total += sum[part * taps + o];
          result[o] = total;
        }
      }
    }
  };
  static thread_local Buffer kept;
  if (parts > 1) kept.Reserve(parts * blocks * taps);
  float* all_sums = kept.data();
  Parallel(pool, blocks * parts, [&](Index task) {
    Index block = task / parts, part = task % parts;
    Index from = block % in.blocks(), to = block / in.blocks();
    Index size = (stride * (strip - 1) + k) * columns * kBlock;
    static thread_local Buffer inputs, outputs, own_sums;
    inputs.Reserve(group * size);
    outputs.Reserve(group * strip * out.width * kBlock);
    own_sums.Reserve(taps);
    float* sums = parts > 1 ? all_sums + task * taps : own_sums.data();
    std::memset(sums, 0, taps * sizeof(float));
    Index last = std::min((part + 1) * images, in.batch);
    for (Index b = part * images; b < last; b += group) {
      Index count = std::min(group, last - b);
      for (Index row = 0; row < out.height; row += strip) {
        Index rows = std::min(strip, out.height - row);
        for (Index i = 0; i < count; ++i) {
          Pack(in.image(x.typed_data(), b + i, from), stride * row - low, stride * (rows - 1) + k,
               -low, columns, inputs.data() + i * size);
          Pack(out.image(g.typed_data(), b + i, to), row, rows, 0, out.width,
               outputs.data() + i * rows * out.width * kBlock);
        }
        run({inputs.data(), columns * kBlock, size, in.valid(from)}, outputs.data(), count, rows,
            out.width, k, sums);
      }
    }
    if (parts == 1) finish(block, sums);
  });
  if (parts > 1) {
    Parallel(pool, blocks, [&](Index block) { finish(block, all_sums + block * parts * taps); });
  }
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_conv_correlate, Correlate, "stride", "low")
NVAE_JAX_EXPORT(nvae_jax_conv_input_grad, InputGrad, "stride", "low")
NVAE_JAX_EXPORT(nvae_jax_conv_kernel_grad, KernelGrad, "stride", "low")
