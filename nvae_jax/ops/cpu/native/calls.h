// How XLA calls a kernel, through its C interface only. Its C++ headers would take most of the time
// to compile the kernels.

#ifndef NVAE_JAX_OPS_NATIVE_CALLS_H_
#define NVAE_JAX_OPS_NATIVE_CALLS_H_

#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <utility>

#include "vectors.h"
#include "xla/ffi/api/c_api.h"

// Refuses a call with wrong arrays or attributes.
inline void Require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

template <typename T>
class Span {
 public:
  Span(const T* data, Index size) : data_(data), size_(size) {}
  Index size() const { return size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  const T& back() const { return data_[size_ - 1]; }
  const T& operator[](Index i) const { return data_[i]; }

 private:
  const T* data_;
  Index size_;
};
using Indices = Span<int64_t>;

// An array in row-major order. XLA owns its memory.
template <typename T, XLA_FFI_DataType kType>
class ArrayOf {
 public:
  explicit ArrayOf(const void* buffer) : buffer_(static_cast<const XLA_FFI_Buffer*>(buffer)) {
    Require(buffer_->dtype == kType, "an array is not of float32, or a count not of int32");
  }
  T* typed_data() const { return static_cast<T*>(buffer_->data); }
  Indices dimensions() const { return {buffer_->dims, buffer_->rank}; }
  Index element_count() const {
    Index count = 1;
    for (Index size : dimensions()) count *= size;
    return count;
  }

 private:
  const XLA_FFI_Buffer* buffer_;
};
using Array = ArrayOf<float, XLA_FFI_DataType_F32>;
using Counts = ArrayOf<int32_t, XLA_FFI_DataType_S32>;

struct Result : Array {  // an array to write
  using Array::Array;
};

// A variable number of arrays.
template <typename Kind>
class List {
 public:
  List(void** buffers, Index size) : buffers_(buffers), size_(size) {}
  Index size() const { return size_; }
  Kind operator[](Index i) const { return Kind(buffers_[i]); }

 private:
  void** buffers_;
  Index size_;
};
using Arrays = List<Array>;
using Results = List<Result>;

// XLA's threads, which a kernel can use in addition to its own.
class ThreadPool {
 public:
  ThreadPool(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context)
      : api_(api), context_(context) {}

  Index num_threads() const {
    int64_t count = 0;
    XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
                                               nullptr, context_, &count};
    Forget(api_->XLA_FFI_ThreadPool_NumThreads(&args));
    return count;
  }

  // Runs a task later on a thread of the pool, or at once on this thread.
  template <typename Task>
  void Schedule(Task task) const {
    auto* kept = new Task(std::move(task));
    XLA_FFI_Task* run = [](void* data) {
      auto* task = static_cast<Task*>(data);
      (*task)();
      delete task;
    };
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr,
                                             context_, run, kept};
    if (Forget(api_->XLA_FFI_ThreadPool_Schedule(&args))) run(kept);
  }

 private:
  bool Forget(XLA_FFI_Error* error) const {
    if (!error) return false;
    XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    api_->XLA_FFI_Error_Destroy(&args);
    return true;
  }

  const XLA_FFI_Api* api_;
  XLA_FFI_ExecutionContext* context_;
};

// Returns the arguments of a call in the order of a kernel's parameters: `Next<parameter type>()`.
class Reader {
 public:
  // `names` are the names of the attributes, in the same order.
  Reader(const XLA_FFI_CallFrame& frame, std::initializer_list<const char*> names)
      : frame_(frame), names_(names) {}

  template <typename Kind>
  Kind Next() {
    return Next(static_cast<Kind*>(nullptr));
  }

  void RequireEnd() const {
    Require(array_ == frame_.args.size && result_ == frame_.rets.size,
            "there are more arrays than a kernel takes");
    Require(static_cast<Index>(names_.size()) == frame_.attrs.size,
            "there are more attributes than a kernel takes");
  }

 private:
  ThreadPool Next(ThreadPool*) { return {frame_.api, frame_.ctx}; }
  Array Next(Array*) { return Array(NextArray()); }
  Counts Next(Counts*) { return Counts(NextArray()); }
  Result Next(Result*) {
    Require(result_ < frame_.rets.size, "a result is missing");
    return Result(frame_.rets.rets[result_++]);
  }
  Arrays Next(Arrays*) {
    Index first = std::exchange(array_, frame_.args.size);
    return {frame_.args.args + first, array_ - first};
  }
  Results Next(Results*) {
    Index first = std::exchange(result_, frame_.rets.size);
    return {frame_.rets.rets + first, result_ - first};
  }
  Index Next(Index*) { return Scalar<Index>(XLA_FFI_DataType_S64); }
  float Next(float*) { return Scalar<float>(XLA_FFI_DataType_F32); }
  Indices Next(Indices*) {
    auto* array = static_cast<const XLA_FFI_Array*>(Attribute(XLA_FFI_AttrType_ARRAY));
    Require(array->dtype == XLA_FFI_DataType_S64, "an attribute is not of int64");
    return {static_cast<const int64_t*>(array->data), static_cast<Index>(array->size)};
  }

  const void* NextArray() {
    Require(array_ < frame_.args.size, "an array is missing");
    return frame_.args.args[array_++];
  }

  template <typename T>
  T Scalar(XLA_FFI_DataType type) {
    auto* scalar = static_cast<const XLA_FFI_Scalar*>(Attribute(XLA_FFI_AttrType_SCALAR));
    Require(scalar->dtype == type, "an attribute is of another type");
    return *static_cast<const T*>(scalar->value);
  }

  const void* Attribute(XLA_FFI_AttrType type) {
    const char* name = names_.begin()[attribute_++];
    const XLA_FFI_Attrs& attributes = frame_.attrs;
    for (Index i = 0; i < attributes.size; ++i) {
      const XLA_FFI_ByteSpan& other = *attributes.names[i];
      if (other.len != std::strlen(name) || std::memcmp(other.ptr, name, other.len)) continue;
      Require(attributes.types[i] == type, "an attribute is of another type");
      return attributes.attrs[i];
    }
    throw std::invalid_argument("an attribute is missing");
  }

  const XLA_FFI_CallFrame& frame_;
  std::initializer_list<const char*> names_;
  Index array_ = 0, result_ = 0, attribute_ = 0;
};

template <typename... Parameters>
void RunKernel(void (*kernel)(Parameters...), Reader reader) {
  struct Call {  // initialised with braces, which fixes the order of evaluation
    Call(void (*kernel)(Parameters...), const Reader& reader, Parameters... parameters) {
      reader.RequireEnd();
      kernel(parameters...);
    }
  };
  Call{kernel, reader, reader.Next<Parameters>()...};
}

inline XLA_FFI_Error* MakeError(const XLA_FFI_CallFrame* frame, XLA_FFI_Error_Code code,
                                const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Whether XLA only queries the version of the interface that a kernel was compiled with.
inline bool AnswersVersion(const XLA_FFI_CallFrame* frame) {
  auto* extension = frame->extension_start;  // its type's name depends on jaxlib's version
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata->traits = 0;
  metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                           XLA_FFI_API_MINOR};
  return true;
}

// Calls a kernel and catches all exceptions, because an uncaught one would end the process.
template <typename Kernel>
XLA_FFI_Error* Handle(const XLA_FFI_CallFrame* frame, Kernel kernel,
                      std::initializer_list<const char*> attributes) {
  if (AnswersVersion(frame)) return nullptr;
  try {
    RunKernel(kernel, Reader(*frame, attributes));
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return MakeError(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return MakeError(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
                     "out of memory in a C++ kernel");
  } catch (const std::exception& error) {
    return MakeError(frame, XLA_FFI_Error_Code_INTERNAL, error.what());
  }
}

// Exports a kernel as `name`: a function of a ThreadPool, Arrays and Results, and attributes, whose
// names follow.
#define NVAE_JAX_EXPORT(name, kernel, ...)                   \
  extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { \
    return Handle(frame, &kernel, {__VA_ARGS__});            \
  }

#endif  // NVAE_JAX_OPS_NATIVE_CALLS_H_
