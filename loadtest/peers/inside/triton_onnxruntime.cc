// A Triton backend around ONNX Runtime's C API: the requests of a batch become one tensor, the session runs once, and
// each request gets its rows. For models of one input and one output, as are all that are compared here, on a CPU.
//
// Rule: failures are exceptions in here and TRITONSERVER_Errors outside; none crosses the C interface.
// Promise: each request that is taken gets exactly one response and is released once, whatever fails.
// Copies: a request that runs alone is executed where its input lies; in company, rows are copied once into staging
// memory that is kept. Answers are copied once, from ONNX Runtime's memory into the response.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime_c_api.h"
#include "triton_abi.h"

namespace {

const OrtApi* ort = nullptr;  // set once, by TRITONBACKEND_Initialize, before anything else is called

struct Failure : std::runtime_error {
  Failure(TRITONSERVER_Error_Code code, const std::string& text) : std::runtime_error(text), code(code) {}
  TRITONSERVER_Error_Code code;
};

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  Failure failure(TRITONSERVER_ERROR_INTERNAL, std::string("ONNX Runtime: ") + ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  throw failure;
}

void ignore(TRITONSERVER_Error* error) {  // where nobody is left who could be told
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

TRITONSERVER_Error* error_of(const std::exception& failed) {
  const auto* failure = dynamic_cast<const Failure*>(&failed);
  return TRITONSERVER_ErrorNew(failure != nullptr ? failure->code : TRITONSERVER_ERROR_INTERNAL, failed.what());
}

template <typename Body>
TRITONSERVER_Error* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& failed) {
    return error_of(failed);
  }
}

struct Release {
  void operator()(OrtEnv* it) const { ort->ReleaseEnv(it); }
  void operator()(OrtSession* it) const { ort->ReleaseSession(it); }
  void operator()(OrtSessionOptions* it) const { ort->ReleaseSessionOptions(it); }
  void operator()(OrtMemoryInfo* it) const { ort->ReleaseMemoryInfo(it); }
  void operator()(OrtTypeInfo* it) const { ort->ReleaseTypeInfo(it); }
  void operator()(OrtTensorTypeAndShapeInfo* it) const { ort->ReleaseTensorTypeAndShapeInfo(it); }
  void operator()(OrtValue* it) const { ort->ReleaseValue(it); }
  void operator()(TRITONSERVER_Message* it) const { ignore(TRITONSERVER_MessageDelete(it)); }
};

template <typename T>
using Owned = std::unique_ptr<T, Release>;

// What fill(&raw) makes, owned.
template <typename T, typename Fill>
Owned<T> owned(Fill fill) {
  T* raw = nullptr;
  check(fill(&raw));
  return Owned<T>(raw);
}

// An input or output of the model.
struct Port {
  std::string name;
  ONNXTensorElementDataType onnx = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  TRITONSERVER_DataType triton = TRITONSERVER_TYPE_INVALID;
  size_t bytes = 0;  // of one element
};

size_t elements(const int64_t* shape, size_t dims) {
  size_t product = 1;
  for (size_t at = 0; at < dims; ++at) product *= static_cast<size_t>(shape[at]);
  return product;
}

uint64_t now_ns() {  // of the clock that Triton's statistics ask for
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

// config.pbtxt's parameter `threads`, out of the JSON that Triton made of it: {"threads":{"string_value":"1"}, ...}.
int threads_of(TRITONBACKEND_Model* model) {
  const auto config = owned<TRITONSERVER_Message>([&](auto** out) { return TRITONBACKEND_ModelConfig(model, 1, out); });
  const char* text = nullptr;
  size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(config.get(), &text, &size));
  const std::string json(text, size), before = "\"threads\":{\"string_value\":\"";
  const size_t found = json.find(before);
  const int threads = found == std::string::npos ? 0 : std::atoi(json.c_str() + found + before.size());
  if (threads < 1) throw Failure(TRITONSERVER_ERROR_INVALID_ARG, "config.pbtxt has no parameter `threads` above 0");
  return threads;
}

// A session, and what goes in and comes out of it.
struct Model {
  Model(OrtEnv* env, const std::string& file, int threads) {
    const auto options = owned<OrtSessionOptions>([](auto** out) { return ort->CreateSessionOptions(out); });
    check(ort->SetIntraOpNumThreads(options.get(), threads));
    check(ort->SetInterOpNumThreads(options.get(), 1));
    check(ort->SetSessionGraphOptimizationLevel(options.get(), ORT_ENABLE_ALL));  // Python's default
    session = owned<OrtSession>([&](auto** out) { return ort->CreateSession(env, file.c_str(), options.get(), out); });
    memory = owned<OrtMemoryInfo>(
        [](auto** out) { return ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out); });
    size_t inputs = 0, outputs = 0;
    check(ort->SessionGetInputCount(session.get(), &inputs));
    check(ort->SessionGetOutputCount(session.get(), &outputs));
    if (inputs != 1 || outputs != 1) {
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG, "only models of one input and one output are served here");
    }
    input = port(ort->SessionGetInputName, ort->SessionGetInputTypeInfo);
    output = port(ort->SessionGetOutputName, ort->SessionGetOutputTypeInfo);
  }

  template <typename Name, typename Info>
  Port port(Name name_of, Info info_of) const {
    Port found;
    OrtAllocator* allocator = nullptr;
    char* name = nullptr;
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(name_of(session.get(), 0, allocator, &name));
    found.name = name;
    check(ort->AllocatorFree(allocator, name));
    const auto info = owned<OrtTypeInfo>([&](auto** out) { return info_of(session.get(), 0, out); });
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(ort->CastTypeInfoToTensorInfo(info.get(), &tensor));
    if (tensor != nullptr) check(ort->GetTensorElementType(tensor, &found.onnx));
    if (found.onnx == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      found.triton = TRITONSERVER_TYPE_FP32;
      found.bytes = 4;
    } else if (found.onnx == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
      found.triton = TRITONSERVER_TYPE_INT64;
      found.bytes = 8;
    } else {
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG, found.name + " is neither FP32 nor INT64");
    }
    return found;
  }

  Owned<OrtSession> session;
  Owned<OrtMemoryInfo> memory;
  Port input, output;
  mutable std::mutex turn;  // instances share the session and its threads: one executes while another gathers
};

// A request that was taken, and its input where it lies.
struct Call {
  TRITONBACKEND_Request* request = nullptr;
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = nullptr;
  int64_t rows = 0;  // none if it does not take part
  TRITONBACKEND_Input* input = nullptr;
  const int64_t* shape = nullptr;
  uint32_t dims = 0, buffers = 0;
  uint64_t bytes = 0;
};

// Executes batches of one model, one at a time, and keeps what it needs for the next.
class Instance {
 public:
  Instance(TRITONBACKEND_ModelInstance* handle, const Model& model) : handle_(handle), model_(model) {}

  // Takes the requests, or throws before it has taken any.
  void execute(TRITONBACKEND_Request** requests, uint32_t count) {
    const uint64_t began = now_ns();
    take(requests, count);
    uint64_t started = began, ended = began;
    int64_t rows = 0;
    for (Call& call : calls_) {
      call.error = guarded([&] { look_at(call); });
      rows += call.rows;
    }
    TRITONSERVER_Error* error = rows == 0 ? nullptr : guarded([&] {
      const Owned<OrtValue> input = gather(rows);
      started = now_ns();
      const Owned<OrtValue> output = run(input.get());
      ended = now_ns();
      scatter(output.get(), rows);
    });
    answer(error);
    count_and_release(rows, began, started, ended);
  }

 private:
  void take(TRITONBACKEND_Request** requests, uint32_t count) {
    calls_.assign(count, Call());
    for (uint32_t at = 0; at < count; ++at) {
      calls_[at].request = requests[at];
      TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&calls_[at].response, requests[at]);
      if (error == nullptr) continue;
      for (uint32_t made = 0; made < at; ++made) ignore(TRITONBACKEND_ResponseDelete(calls_[made].response));
      check(error);
    }
  }

  // Finds a request's input; a Failure if it does not suit the model or the batch. Sets rows only if it does.
  void look_at(Call& call) const {
    const Port& port = model_.input;
    TRITONSERVER_DataType type = TRITONSERVER_TYPE_INVALID;
    check(TRITONBACKEND_RequestInput(call.request, port.name.c_str(), &call.input));
    check(TRITONBACKEND_InputProperties(
        call.input, nullptr, &type, &call.shape, &call.dims, &call.bytes, &call.buffers));
    if (type != port.triton || call.dims == 0 || call.shape[0] < 1 ||
        call.bytes != elements(call.shape, call.dims) * port.bytes) {
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG, port.name + " has a wrong type, shape or size");
    }
    const Call* first = first_good();
    if (first != nullptr && !std::equal(call.shape + 1, call.shape + call.dims, first->shape + 1,
                                        first->shape + first->dims)) {
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG, port.name + " has other dimensions than its batch");
    }
    call.rows = call.shape[0];
  }

  const Call* first_good() const {
    for (const Call& call : calls_) {
      if (call.rows > 0) return &call;
    }
    return nullptr;
  }

  // The rows of all good requests as one tensor.
  Owned<OrtValue> gather(int64_t rows) {
    const Call& first = *first_good();
    std::vector<int64_t> shape(first.shape, first.shape + first.dims);
    shape[0] = rows;
    const size_t bytes = elements(shape.data(), shape.size()) * model_.input.bytes;
    const bool alone = first.rows == rows && first.buffers == 1;
    void* data = alone ? const_cast<void*>(buffer(first, 0).first) : stage(bytes);
    return owned<OrtValue>([&](auto** out) {
      return ort->CreateTensorWithDataAsOrtValue(
          model_.memory.get(), data, bytes, shape.data(), shape.size(), model_.input.onnx, out);
    });
  }

  void* stage(size_t bytes) {
    if (staging_.size() < bytes) staging_.resize(bytes);
    char* at = staging_.data();
    for (const Call& call : calls_) {
      for (uint32_t index = 0; call.rows > 0 && index < call.buffers; ++index) {
        const auto [data, size] = buffer(call, index);
        std::memcpy(at, data, size);
        at += size;
      }
    }
    return staging_.data();
  }

  static std::pair<const void*, uint64_t> buffer(const Call& call, uint32_t index) {
    std::pair<const void*, uint64_t> piece{nullptr, 0};
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_InputBuffer(call.input, index, &piece.first, &piece.second, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) throw Failure(TRITONSERVER_ERROR_INTERNAL, "an input in GPU memory");
    return piece;
  }

  Owned<OrtValue> run(const OrtValue* input) const {
    const char *in = model_.input.name.c_str(), *out = model_.output.name.c_str();
    const std::lock_guard<std::mutex> lock(model_.turn);
    return owned<OrtValue>(
        [&](auto** value) { return ort->Run(model_.session.get(), nullptr, &in, &input, 1, &out, 1, value); });
  }

  // Gives each good request its rows.
  void scatter(OrtValue* output, int64_t rows) {
    const auto info =
        owned<OrtTensorTypeAndShapeInfo>([&](auto** out) { return ort->GetTensorTypeAndShape(output, out); });
    size_t dims = 0;
    check(ort->GetDimensionsCount(info.get(), &dims));
    std::vector<int64_t> shape(dims);
    check(ort->GetDimensions(info.get(), shape.data(), dims));
    void* data = nullptr;
    check(ort->GetTensorMutableData(output, &data));
    if (dims == 0 || shape[0] != rows) {
      throw Failure(TRITONSERVER_ERROR_INTERNAL, model_.output.name + " has other rows than the input");
    }
    const size_t row_bytes = elements(shape.data() + 1, dims - 1) * model_.output.bytes;
    const char* at = static_cast<const char*>(data);
    for (Call& call : calls_) {
      if (call.rows == 0) continue;
      shape[0] = call.rows;
      const size_t bytes = row_bytes * static_cast<size_t>(call.rows);
      call.error = guarded([&] { std::memcpy(room(call, shape, bytes), at, bytes); });
      at += bytes;
    }
  }

  // Where the output of a response belongs.
  void* room(const Call& call, const std::vector<int64_t>& shape, size_t bytes) const {
    const Port& port = model_.output;
    TRITONBACKEND_Output* output = nullptr;
    check(TRITONBACKEND_ResponseOutput(
        call.response, &output, port.name.c_str(), port.triton, shape.data(), static_cast<uint32_t>(shape.size())));
    void* into = nullptr;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_OutputBuffer(output, &into, bytes, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) throw Failure(TRITONSERVER_ERROR_INTERNAL, "an output in GPU memory");
    return into;
  }

  // Sends all responses; `error`, if there is one, to those who have none of their own. Theirs are kept to be counted.
  void answer(TRITONSERVER_Error* error) {
    for (Call& call : calls_) {
      if (error != nullptr && call.error == nullptr) {
        call.error = TRITONSERVER_ErrorNew(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
      }
      ignore(TRITONBACKEND_ResponseSend(call.response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, call.error));
    }
    ignore(error);
  }

  // After the answers, which are in more of a hurry.
  void count_and_release(int64_t rows, uint64_t began, uint64_t started, uint64_t ended) {
    const uint64_t done = now_ns();
    for (const Call& call : calls_) {
      const bool good = call.error == nullptr;
      ignore(TRITONBACKEND_ModelInstanceReportStatistics(handle_, call.request, good, began, started, ended, done));
      ignore(TRITONBACKEND_RequestRelease(call.request, TRITONSERVER_REQUEST_RELEASE_ALL));
      ignore(call.error);
    }
    if (rows > 0) {
      ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(
          handle_, static_cast<uint64_t>(rows), began, started, ended, done));
    }
  }

  TRITONBACKEND_ModelInstance* handle_;
  const Model& model_;
  std::vector<Call> calls_;
  std::vector<char> staging_;  // grows to the largest batch
};

// The state that Triton keeps for us beside a handle.
template <typename State, typename Handle>
State* state_of(Handle* handle, TRITONSERVER_Error* (*get)(Handle*, void**)) {
  void* state = nullptr;
  check(get(handle, &state));
  return static_cast<State*>(state);
}

}  // namespace

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
  return guarded([&] {
    uint32_t major = 0, minor = 0;
    check(TRITONBACKEND_ApiVersion(&major, &minor));
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (major != 1 || ort == nullptr) {
      throw Failure(TRITONSERVER_ERROR_INTERNAL, "Triton's or ONNX Runtime's interface is another than was built for");
    }
    auto env = owned<OrtEnv>([](auto** out) { return ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "triton", out); });
    check(TRITONBACKEND_BackendSetState(backend, env.get()));
    env.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend* backend) {
  return guarded([&] { Owned<OrtEnv>(state_of<OrtEnv>(backend, TRITONBACKEND_BackendState)); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    TRITONBACKEND_Backend* backend = nullptr;
    TRITONBACKEND_ArtifactType kind = TRITONBACKEND_ARTIFACT_FILESYSTEM;
    const char* folder = nullptr;
    uint64_t version = 0;
    check(TRITONBACKEND_ModelBackend(model, &backend));
    check(TRITONBACKEND_ModelRepository(model, &kind, &folder));
    check(TRITONBACKEND_ModelVersion(model, &version));
    const std::string file = std::string(folder) + "/" + std::to_string(version) + "/model.onnx";
    OrtEnv* env = state_of<OrtEnv>(backend, TRITONBACKEND_BackendState);
    auto made = std::make_unique<Model>(env, file, threads_of(model));
    check(TRITONBACKEND_ModelSetState(model, made.get()));
    made.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] { delete state_of<Model>(model, TRITONBACKEND_ModelState); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto made = std::make_unique<Instance>(instance, *state_of<Model>(model, TRITONBACKEND_ModelState));
    check(TRITONBACKEND_ModelInstanceSetState(instance, made.get()));
    made.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState); });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
  return guarded([&] { state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState)->execute(requests, count); });
}
