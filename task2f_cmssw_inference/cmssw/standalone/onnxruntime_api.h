#ifndef STANDALONE_onnxruntime_api_h
#define STANDALONE_onnxruntime_api_h

// ONNX Runtime without its headers: the PyPI wheel and the npm package carry the shared library only.
//
// The library exports OrtGetApiBase(), which hands out a table of function pointers. The table is
// append-only ("Size of version 1 API cannot change" is a static_assert of ONNX Runtime itself, at
// slot 101), so the slot numbers below, counted in onnxruntime_c_api.h, hold for every release since
// 1.0. Version 1 of the table is asked for, which every release hands out. The library is opened at
// run time: one binary times several engines.

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ort {

  namespace slot {
    constexpr int GetErrorMessage = 2;
    constexpr int CreateEnv = 3;
    constexpr int CreateSession = 7;
    constexpr int Run = 9;
    constexpr int CreateSessionOptions = 10;
    constexpr int SetIntraOpNumThreads = 24;
    constexpr int SetInterOpNumThreads = 25;
    constexpr int SessionGetInputCount = 30;
    constexpr int SessionGetOutputCount = 31;
    constexpr int SessionGetInputTypeInfo = 33;
    constexpr int SessionGetInputName = 36;
    constexpr int SessionGetOutputName = 37;
    constexpr int CreateTensorWithDataAsOrtValue = 49;
    constexpr int GetTensorMutableData = 51;
    constexpr int CastTypeInfoToTensorInfo = 55;
    constexpr int GetTensorElementType = 60;
    constexpr int GetDimensionsCount = 61;
    constexpr int GetDimensions = 62;
    constexpr int GetTensorShapeElementCount = 64;
    constexpr int GetTensorTypeAndShape = 65;
    constexpr int CreateCpuMemoryInfo = 69;
    constexpr int AllocatorFree = 76;
    constexpr int GetAllocatorWithDefaultOptions = 78;
    constexpr int ReleaseEnv = 92;
    constexpr int ReleaseStatus = 93;
    constexpr int ReleaseMemoryInfo = 94;
    constexpr int ReleaseSession = 95;
    constexpr int ReleaseValue = 96;
    constexpr int ReleaseTypeInfo = 98;
    constexpr int ReleaseTensorTypeAndShapeInfo = 99;
    constexpr int ReleaseSessionOptions = 100;
  }  // namespace slot

  // Values of enumerations of the C API.
  constexpr int kLogErrors = 3;        // ORT_LOGGING_LEVEL_ERROR
  constexpr int kFloat = 1;            // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
  constexpr int kDeviceAllocator = 0;  // OrtDeviceAllocator
  constexpr int kDefaultMemory = 0;    // OrtMemTypeDefault

  // Objects of the engine are opaque.
  using Object = void*;

  class Library {
  public:
    explicit Library(const std::string& path) {
      // Never closed: the engine's threads may outlive the last session.
      void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle == nullptr)
        throw std::runtime_error(path + ": expected a shared library of ONNX Runtime, found: " + dlerror() +
                                 "; name a libonnxruntime.so with --library");
      struct Base {
        const void* const* (*getApi)(std::uint32_t version);
        const char* (*getVersion)();
      };
      auto* getBase = reinterpret_cast<const Base* (*)()>(dlsym(handle, "OrtGetApiBase"));
      if (getBase == nullptr)
        throw std::runtime_error(path + ": expected a shared library of ONNX Runtime, found no OrtGetApiBase in it" +
                                 "; name a libonnxruntime.so with --library");
      version_ = getBase()->getVersion();
      table_ = getBase()->getApi(1);
      if (table_ == nullptr)
        throw std::runtime_error(path + ": expected an engine with version 1 of the C API, found " + version_ +
                                 "; name another library with --library");
    }

    const std::string& version() const { return version_; }

    // A function of the table that reports its status; throws what the engine says.
    template <typename... Arguments>
    void call(int slot, Arguments... arguments) const {
      const Object status = reinterpret_cast<Object (*)(Arguments...)>(at(slot))(arguments...);
      if (status == nullptr)
        return;
      const std::string message = reinterpret_cast<const char* (*)(Object)>(at(slot::GetErrorMessage))(status);
      release(slot::ReleaseStatus, status);
      throw std::runtime_error(message);
    }

    void release(int slot, Object object) const {
      if (object != nullptr)
        reinterpret_cast<void (*)(Object)>(at(slot))(object);
    }

  private:
    void* at(int slot) const { return const_cast<void*>(table_[slot]); }

    const void* const* table_ = nullptr;
    std::string version_;
  };

  // Owner of an object of the engine, made by a function whose last argument is where to put it.
  class Handle {
  public:
    template <typename... Arguments>
    Handle(const Library& library, int release, int create, Arguments... arguments)
        : library_(&library), release_(release) {
      library.call(create, arguments..., &object_);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() { library_->release(release_, object_); }

    operator Object() const { return object_; }

  private:
    const Library* library_;
    int release_;
    Object object_ = nullptr;
  };

  // An environment, options and a session: what the reference makes anew for every event.
  class Session {
  public:
    // threads: of one operator; 0 is the engine's default (every core).
    Session(const Library& library, const std::string& model, int threads)
        : library_(library),
          environment_(library, slot::ReleaseEnv, slot::CreateEnv, kLogErrors, "score_events"),
          options_(library, slot::ReleaseSessionOptions, slot::CreateSessionOptions),
          memory_(library, slot::ReleaseMemoryInfo, slot::CreateCpuMemoryInfo, kDeviceAllocator, kDefaultMemory) {
      library.call(slot::SetIntraOpNumThreads, Object(options_), threads);
      library.call(slot::SetInterOpNumThreads, Object(options_), 1);
      session_ = std::make_unique<Handle>(library,
                                          slot::ReleaseSession,
                                          slot::CreateSession,
                                          Object(environment_),
                                          model.c_str(),
                                          Object(options_));
    }

    std::vector<std::string> inputNames() const {
      return names(slot::SessionGetInputCount, slot::SessionGetInputName);
    }
    std::vector<std::string> outputNames() const {
      return names(slot::SessionGetOutputCount, slot::SessionGetOutputName);
    }

    // Dimensions of the first input; -1 where free. Throws if it is not a float32 tensor.
    std::vector<std::int64_t> inputShape() const {
      const Handle type(
          library_, slot::ReleaseTypeInfo, slot::SessionGetInputTypeInfo, Object(*session_), std::size_t(0));
      Object info = nullptr;  // belongs to type
      library_.call(slot::CastTypeInfoToTensorInfo, Object(type), &info);
      int element = 0;
      if (info != nullptr)
        library_.call(slot::GetTensorElementType, info, &element);
      if (element != kFloat)
        throw std::runtime_error("the first input is no float32 tensor");
      std::size_t count = 0;
      library_.call(slot::GetDimensionsCount, info, &count);
      std::vector<std::int64_t> shape(count);
      library_.call(slot::GetDimensions, info, shape.data(), count);
      return shape;
    }

    // All values of the output, in its order. The input is read in place.
    std::vector<float> run(const std::string& input,
                           const std::string& output,
                           std::vector<float>& values,
                           const std::vector<std::int64_t>& shape) const {
      const Handle tensor(library_,
                          slot::ReleaseValue,
                          slot::CreateTensorWithDataAsOrtValue,
                          Object(memory_),
                          static_cast<void*>(values.data()),
                          values.size() * sizeof(float),
                          shape.data(),
                          shape.size(),
                          kFloat);
      const char* inputName = input.c_str();
      const char* outputName = output.c_str();
      const Object inputs[] = {tensor};
      const Handle result(library_,
                          slot::ReleaseValue,
                          slot::Run,
                          Object(*session_),
                          Object(nullptr),
                          &inputName,
                          &inputs[0],
                          std::size_t(1),
                          &outputName,
                          std::size_t(1));
      const Handle info(
          library_, slot::ReleaseTensorTypeAndShapeInfo, slot::GetTensorTypeAndShape, Object(result));
      std::size_t count = 0;
      library_.call(slot::GetTensorShapeElementCount, Object(info), &count);
      float* data = nullptr;
      library_.call(slot::GetTensorMutableData, Object(result), &data);
      return std::vector<float>(data, data + count);
    }

  private:
    std::vector<std::string> names(int counter, int getter) const {
      Object allocator = nullptr;  // the engine's own, not to be released
      library_.call(slot::GetAllocatorWithDefaultOptions, &allocator);
      std::size_t count = 0;
      library_.call(counter, Object(*session_), &count);
      std::vector<std::string> found;
      for (std::size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        library_.call(getter, Object(*session_), i, allocator, &name);
        found.emplace_back(name);
        library_.call(slot::AllocatorFree, allocator, static_cast<void*>(name));
      }
      return found;
    }

    const Library& library_;
    Handle environment_;
    Handle options_;
    Handle memory_;
    std::unique_ptr<Handle> session_;
  };

}  // namespace ort

#endif
