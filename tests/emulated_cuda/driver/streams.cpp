#include "streams.h"

#include <algorithm>

#include "allocations.h"
#include "capture.h"
#include "context.h"
#include "python_lock.h"

namespace emulated {
namespace {

void wait_for(const std::shared_ptr<Stream>& waiting, const std::shared_ptr<Stream>& other) {
  const uint64_t sequence = other->submitted;
  waiting->queue.push_back([other, sequence] { run_until(other, sequence); });
  ++waiting->submitted;
}

// The default stream waits for all blocking streams, and they wait for it.
void order_with_legacy_stream(const std::shared_ptr<Stream>& stream) {
  const Context& context = *stream->context;
  if (stream->blocking && context.legacy->pending()) wait_for(stream, context.legacy);
  if (!stream->legacy) return;
  for (const auto& other : context.streams)
    if (other->blocking && other->pending()) wait_for(stream, other);
}

// Until another thread finished a piece of work.
void wait_for_change() {
  void* python = give_up_python_lock();
  state().changed.wait(state().mutex);
  if (!python) return;
  state().mutex.unlock();
  take_back_python_lock(python);
  state().mutex.lock();
}

void run_front(const std::shared_ptr<Stream>& stream) {
  const Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  stream->running = true;
  Context& context = *stream->context;
  try {
    // After an error nothing more runs, host functions included.
    if (context.error == CUDA_SUCCESS) work();
  } catch (const Refusal& refusal) {
    break_context(context, refusal.result, refusal.reason);
  }
  stream->running = false;
  ++stream->completed;
  state().changed.notify_all();
}

void forget_finished_streams(Context& context) {
  const auto gone = [](const auto& stream) { return stream->destroyed && !stream->pending(); };
  auto& all = context.streams;
  all.erase(std::remove_if(all.begin(), all.end(), gone), all.end());
}

void create(CUstream* result, unsigned flags) {
  if (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING))
    refuse(CUDA_ERROR_INVALID_VALUE, "unknown flags");
  const auto stream = std::make_shared<Stream>();
  stream->context = current_context().get();
  stream->blocking = !(flags & CU_STREAM_NON_BLOCKING);
  stream->handle = state().streams.add(stream);
  stream->context->streams.push_back(stream);
  *result = stream->handle;
}

// The stream's work still runs, when somebody waits for the context.
void destroy(CUstream handle) {
  const auto stream = state().streams.get(handle, "stream");
  if (stream->capture) drop_capture(stream->capture);
  state().streams.remove(handle);
  stream->destroyed = true;
  forget_finished_streams(*stream->context);
}

// A program that asks again and again sees its work make progress.
void query(const std::shared_ptr<Stream>& stream) {
  refuse_captured_stream(*stream);
  refuse_unsafe_call_in_capture();
  if (stream->legacy) order_with_legacy_stream(stream);
  if (!stream->pending()) return refuse_if_broken(*stream->context);
  run_one(stream);
  refuse_if_broken(*stream->context);
  refuse(CUDA_ERROR_NOT_READY);
}

}  // namespace

std::shared_ptr<Stream> make_legacy_stream(const std::shared_ptr<Context>& context) {
  const auto stream = std::make_shared<Stream>();
  stream->context = context.get();
  stream->legacy = true;
  return stream;
}

std::shared_ptr<Stream> stream_of(CUstream handle) {
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return current_context()->legacy;
  if (handle == CU_STREAM_PER_THREAD)
    refuse(CUDA_ERROR_NOT_SUPPORTED, "default streams per thread are not emulated");
  return state().streams.get(handle, "stream");
}

void require_current_context(const Stream& stream) {
  if (stream.context != current_context().get())
    refuse(CUDA_ERROR_INVALID_HANDLE, "the stream belongs to another context");
}

void submit(const std::shared_ptr<Stream>& stream, Operation operation) {
  refuse_legacy_stream_in_capture(*stream);
  if (stream->capture) return capture_operation(*stream, std::move(operation));
  operation.count(state().totals);
  enqueue(stream, std::move(operation.run));
}

uint64_t enqueue(const std::shared_ptr<Stream>& stream, Work work) {
  order_with_legacy_stream(stream);
  stream->queue.push_back(std::move(work));
  const uint64_t sequence = ++stream->submitted;
  if (!state().settings.lazy) run_until(stream, sequence);
  return sequence;
}

void run_until(const std::shared_ptr<Stream>& stream, uint64_t sequence) {
  while (stream->completed < sequence) {
    if (stream->running)
      wait_for_change();
    else
      run_front(stream);
  }
}

void run_one(const std::shared_ptr<Stream>& stream) {
  if (!stream->running && !stream->queue.empty()) run_front(stream);
}

void synchronize(const std::shared_ptr<Stream>& stream, const char* function) {
  if (stream->legacy) order_with_legacy_stream(stream);
  run_until(stream, stream->submitted);
  check_red_zones(std::string("found at ") + function);
  refuse_if_broken(*stream->context);
}

void finish_streams(Context& context) {
  const auto streams = context.streams;  // other threads may change it meanwhile
  for (const auto& stream : streams) run_until(stream, stream->submitted);
  forget_finished_streams(context);
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuStreamCreate(CUstream* result, unsigned flags) {
  return call("cuStreamCreate", Needs::working_context, [&] { create(result, flags); });
}

CUresult cuStreamCreateWithPriority(CUstream* result, unsigned flags, int) {
  return call("cuStreamCreateWithPriority", Needs::working_context,
              [&] { create(result, flags); });
}

CUresult cuStreamDestroy(CUstream handle) {
  return call("cuStreamDestroy", Needs::context, [&] {
    destroy(handle);
    refuse_if_broken(*current_context());
  });
}

CUresult cuStreamSynchronize(CUstream handle) {
  return call("cuStreamSynchronize", Needs::working_context, [&] {
    const auto stream = stream_of(handle);
    refuse_captured_stream(*stream);
    refuse_legacy_stream_in_capture(*stream);
    refuse_unsafe_call_in_capture();
    synchronize(stream, "cuStreamSynchronize");
  });
}

CUresult cuStreamQuery(CUstream handle) {
  return call("cuStreamQuery", Needs::working_context, [&] {
    const auto stream = stream_of(handle);
    refuse_legacy_stream_in_capture(*stream);
    query(stream);
  });
}

}  // extern "C"
