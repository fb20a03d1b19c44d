// The body of an inverted residual cell with fixed statistics: see ops/inverted_residual.py.
//
// A task computes the outputs of some images, one block of hidden channels after the other, so that
// hidden values stay in the core's caches. The result of a task does not depend on the thread, so
// results are reproducible bit for bit.

#include "depthwise.h"

namespace {

// A tile has `Vectors` vectors of channels for several pixels: its sums fill the registers that the
// weights and one input leave. A wider tile needs fewer broadcasts of inputs.
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;
template <int Vectors>
constexpr int kTilePixels = Vectors == 4 || kRegisters == 16 ? 6 : 8;
constexpr Index kWide = kMaxVectors * kLanes;  // channels in a block of hidden or output channels
constexpr Index kParts = kWide / kBlock;       // blocks of the depthwise convolution in such a block
constexpr Index kPixelsPerTask = 128;          // approximately, so that weights are reused
constexpr Index kTasksPerThread = 2;           // at least, if there are enough images

// Calls run(std::integral_constant<int, n>()) for the vectors of `valid` channels.
template <int Vectors = kMaxVectors, typename Run>
void WithVectors(Index valid, const Run& run) {
  if constexpr (Vectors > 1) {
    if (valid <= (Vectors - 1) * kLanes) return WithVectors<Vectors - 1>(valid, run);
  }
  run(std::integral_constant<int, Vectors>());
}

// The destinations of a tile's rows, and the distance between their parts in floats.
template <int Pixels>
struct Rows {
  float* at[Pixels];
  Index part;
  float* place(int row, int vector) const {
    return at[row] + vector * kLanes / kBlock * part + vector * kLanes % kBlock;
  }
};

// to[r] = x[r] w, or to[r] += x[r] w, for rows of x that are `pitch` floats apart and w (depth,
// Vectors · kLanes). It is a separate function so that the surrounding code takes no registers from
// the sums, and its loops are explicitly unrolled so that the sums do not pass through memory.
template <bool Add, int Vectors, int Pixels>
__attribute__((noinline)) void MultiplyTile(const float* x, Index pitch, const float* w,
                                            Index depth, const Rows<Pixels>& to) {
  const float* at[Pixels];
  Vector sum[Pixels][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Pixels; ++r) {
    at[r] = x + r * pitch;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Add ? Load(to.place(r, v)) : Vector{};
  }
  for (Index i = 0; i < depth; ++i) {
    Vector weights[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v, w += kLanes) weights[v] = Load(w);
#pragma GCC unroll 8
    for (int r = 0; r < Pixels; ++r) {
      float value = at[r][i];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] += value * weights[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Pixels; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) Store(to.place(r, v), sum[r][v]);
  }
}

// Rows and columns of w, whose rows are `pitch` floats apart, as (block, row, column). A block has
// kWide columns, and the last one a whole number of vectors.
void PackColumns(const float* w, Index rows, Index columns, Index pitch, float* packed) {
  for (Index c = 0; c < columns; c += kWide) {
    Index n = std::min(kWide, columns - c), width = Width(n);
    for (Index i = 0; i < rows; ++i, packed += width) {
      std::memset(packed + width - kLanes, 0, kLanes * sizeof(float));
      std::memcpy(packed, w + i * pitch + c, n * sizeof(float));
    }
  }
}

struct Sizes {
  Index batch, height, width, inputs, hidden, outputs, out_height, out_width;
  InputGradient gradient;
  Reach down, across;  // of the depthwise convolution
  Sizes(const Array& x, const Array& depthwise, const Array& project, Index stride, Index low)
      : batch(x.dimensions()[0]),
        height(x.dimensions()[1]),
        width(x.dimensions()[2]),
        inputs(x.dimensions()[3]),
        hidden(depthwise.dimensions()[2]),
        outputs(project.dimensions().back()),
        out_height(stride * height),
        out_width(stride * width),
        gradient{depthwise.dimensions()[0], stride, low},
        down(0, out_height, gradient.k, stride, low),
        across(0, out_width, gradient.k, stride, low) {}
  Index pixels() const { return height * width; }
  Index out_pixels() const { return out_height * out_width; }
  Index taps() const { return gradient.k * gradient.k * kBlock; }
  Index blocks() const { return CeilDiv(hidden, kWide); }
  Index valid(Index block) const { return std::min(kWide, hidden - block * kWide); }
  // The size of an image of kBlock channels, with zeros around it.
  Index image() const { return down.count * across.count * kBlock; }
  Index place(Index row, Index column) const {
    return ((row - down.first) * across.count + column - across.first) * kBlock;
  }
};

// The three kernels in the order in which they are read, for a block of hidden channels each.
class Kernels {
 public:
  Kernels(const Sizes& size, Buffer& kept)
      : size_(size),
        expand_(size.inputs * kWide),
        taps_(kParts * size.taps()),
        project_(kWide * Width(size.outputs)) {
    kept.Reserve(size.blocks() * (expand_ + taps_ + project_));
    data_ = kept.data();
  }
  void Pack(Index block, const float* expand, const float* depthwise, const float* project) {
    Index first = block * kWide, n = size_.valid(block);
    PackColumns(expand + first, size_.inputs, n, size_.hidden, Expand(block));
    PackColumns(project + first * size_.outputs, n, size_.outputs, size_.outputs, Project(block));
    std::memset(Taps(block), 0, taps_ * sizeof(float));
    for (Index part = 0; part * kBlock < n; ++part) {
      Index c = first + part * kBlock, valid = std::min(kBlock, size_.hidden - c);
      size_.gradient.Pack(depthwise, size_.hidden, c, valid, Taps(block) + part * size_.taps());
    }
  }
  float* Expand(Index block) const { return At(block); }             // (inputs, Width)
  float* Taps(Index block) const { return At(block) + expand_; }     // (part, taps, kBlock)
  float* Project(Index block) const { return Taps(block) + taps_; }  // as PackColumns makes it

 private:
  float* At(Index block) const { return data_ + block * (expand_ + taps_ + project_); }
  const Sizes& size_;
  Index expand_, taps_, project_;
  float* data_;
};

// to[p] = gain · from[p] + shift for pixels of `channels`.
void Affine(const float* from, Index from_pitch, Index pixels, Index channels, const Array& gain,
            const Array& shift, float* to) {
  const float* __restrict a = gain.typed_data();
  const float* __restrict b = shift.typed_data();
  for (Index p = 0; p < pixels; ++p, from += from_pitch, to += channels) {
    for (Index c = 0; c < channels; ++c) to[c] = a[c] * from[c] + b[c];
  }
}

void RequireBody(const Array& x, const Array& expand, const Array& depthwise, const Array& project,
                 const Array& y, Index stride, Index low) {
  Require(x.dimensions().size() == 4 && project.dimensions().size() == 4,
          "images are not (B, H, W, C), or kernels not (1, 1, in, out)");
  Require(stride == 1 || stride == 2, "a stride is not 1 or 2");
  auto size = x.dimensions(), taps = depthwise.dimensions();
  Require(size[1] > 0 && size[2] > 0 && size[3] > 0, "images are empty");
  Require(taps.size() == 3 && taps[0] == taps[1] && taps[0] > 0 && taps[2] > 0,
          "the taps are not (k, k, hidden)");
  Require(low >= 0 && low < taps[0], "low is not from 0 to the size of the kernel");
  Index outputs = project.dimensions()[3];
  Require(outputs > 0, "there are no outputs");
  Require(HasShape(expand, {1, 1, size[3], taps[2]}) && HasShape(project, {1, 1, taps[2], outputs}),
          "the kernels do not follow each other");
  Require(HasShape(y, {size[0], stride * size[1], stride * size[2], outputs}),
          "the result is not (B, H', W', out)");
}

void InvertedResidual(ThreadPool pool, Array x, Array expand, Array depthwise, Array project,
                      Array in_gain, Array in_shift, Array expand_gain, Array expand_shift,
                      Array depthwise_gain, Array depthwise_shift, Array out_gain, Array out_shift,
                      Result y, Index stride, Index low) {
  RequireBody(x, expand, depthwise, project, y, stride, low);
  Sizes size(x, depthwise, project, stride, low);
  RequireVectors(size.inputs, {in_gain, in_shift});
  RequireVectors(size.hidden, {expand_gain, expand_shift, depthwise_gain, depthwise_shift});
  RequireVectors(size.outputs, {out_gain, out_shift});
  static thread_local Buffer kept;
  Kernels kernels(size, kept);
  auto pack = [&](Index block) {
    kernels.Pack(block, expand.typed_data(), depthwise.typed_data(), project.typed_data());
  };
  Buffer gains[] = {Padded(expand_gain), Padded(depthwise_gain)};
  Buffer shifts[] = {Padded(expand_shift), Padded(depthwise_shift)};
  Index threads = std::max<Index>(1, pool.num_threads());
  Index images = std::min(kPixelsPerTask / std::max<Index>(1, size.pixels()),
                          size.batch / (kTasksPerThread * threads));
  images = std::max<Index>(1, images);
  Index sum_width = Width(size.outputs);
  auto run = [&](Index task) {
    Index first = task * images, count = std::min(images, size.batch - first);
    Index pixels = count * size.pixels(), out_pixels = count * size.out_pixels();
    Index part_size = count * size.image();
    static thread_local Buffer inputs, padded, activated, sums;
    static thread_local std::vector<Index> places;  // positions of the pixels in the padded image
    inputs.Reserve(pixels * size.inputs);
    padded.Reserve(kParts * part_size);
    activated.Reserve(out_pixels * kWide);
    sums.Reserve(out_pixels * sum_width);
    std::memset(padded.data(), 0, kParts * part_size * sizeof(float));
    std::memset(sums.data(), 0, out_pixels * sum_width * sizeof(float));
    places.clear();
    for (Index b = 0; b < count; ++b) {
      for (Index i = 0; i < size.height; ++i) {
        for (Index j = 0; j < size.width; ++j) {
          places.push_back(b * size.image() + size.place(i, j));
        }
      }
    }
    Affine(x.typed_data() + first * size.pixels() * size.inputs, size.inputs, pixels, size.inputs,
           in_gain, in_shift, inputs.data());
    for (Index block = 0; block < size.blocks(); ++block) {
      Index n = size.valid(block);
      auto activation = [&](int which, Index part) -> Activation {
        Index c = block * kWide + part * kBlock;
        return {gains[which].data() + c, shifts[which].data() + c};
      };
      WithVectors(n, [&](auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        InParts<kTilePixels<kVectors>, 4, 2, 1>(pixels, [&](auto tile, Index p) {
          constexpr int kPixels = decltype(tile)::value;
          Rows<kPixels> to{{}, part_size};
          for (int r = 0; r < kPixels; ++r) to.at[r] = padded.data() + places[p + r];
          MultiplyTile<false, kVectors>(inputs.data() + p * size.inputs, size.inputs,
                                        kernels.Expand(block), size.inputs, to);
        });
      });
      for (Index part = 0; part * kBlock < n; ++part) {
        const float* taps = kernels.Taps(block) + part * size.taps();
        Activation before = activation(0, part);
        for (Index b = 0; b < count; ++b) {
          float* image = padded.data() + part * part_size + b * size.image();
          for (Index i = 0; i < size.height; ++i) {
            before(image + size.place(i, 0), kBlock, size.width, kBlock);
          }
          size.gradient.Run(image, size.down, size.across, taps, 0, size.out_height, size.out_width,
                            activated.data() + b * size.out_pixels() * kWide + part * kBlock,
                            kWide, std::min(kBlock, n - part * kBlock), activation(1, part));
        }
      }
      const float* w = kernels.Project(block);
      for (Index o = 0; o < size.outputs; o += kWide) {
        Index valid = std::min(kWide, size.outputs - o);
        WithVectors(valid, [&](auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          InParts<kTilePixels<kVectors>, 4, 2, 1>(out_pixels, [&](auto tile, Index p) {
            constexpr int kPixels = decltype(tile)::value;
            Rows<kPixels> to{{}, kBlock};
            for (int r = 0; r < kPixels; ++r) to.at[r] = sums.data() + (p + r) * sum_width + o;
            MultiplyTile<true, kVectors>(activated.data() + p * kWide, kWide, w, n, to);
          });
        });
        w += n * Width(valid);
      }
    }
    Affine(sums.data(), sum_width, out_pixels, size.outputs, out_gain, out_shift,
           y.typed_data() + first * size.out_pixels() * size.outputs);
  };
  Parallel(pool, size.blocks(), pack, CeilDiv(size.batch, images), run);
}

}  // namespace

NVAE_JAX_EXPORT(nvae_jax_inverted_residual, InvertedResidual, "stride", "low")
