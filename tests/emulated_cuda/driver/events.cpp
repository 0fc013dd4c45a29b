#include "events.h"

#include <chrono>

#include "allocations.h"
#include "capture.h"
#include "context.h"
#include "streams.h"

namespace emulated {
namespace {

double milliseconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

std::shared_ptr<Event> event_of(CUevent handle) { return state().events.get(handle, "event"); }

void create(CUevent* result, unsigned flags) {
  const auto event = std::make_shared<Event>();
  event->flags = flags;
  event->context = current_context().get();
  *result = event->handle = state().events.add(event);
}

// Inside a capture an event only remembers what it comes after.
void record_in_capture(Event& event, const Stream& stream) {
  event.captured = true;
  event.capture = stream.capture;
  event.captured_after = stream.tail;
}

void record_or_capture(CUevent handle, CUstream stream_handle, unsigned flags) {
  const auto event = event_of(handle);
  const auto stream = stream_of(stream_handle);
  const bool external = flags & CU_EVENT_RECORD_EXTERNAL;
  if (flags & ~static_cast<unsigned>(CU_EVENT_RECORD_EXTERNAL))
    refuse(CUDA_ERROR_INVALID_VALUE, "unknown flags");
  if (event->context != stream->context)
    refuse(CUDA_ERROR_INVALID_HANDLE, "the event and the stream are of different contexts");
  refuse_legacy_stream_in_capture(*stream);
  if (external && !stream->capture)
    refuse(CUDA_ERROR_INVALID_VALUE, "CU_EVENT_RECORD_EXTERNAL is for a captured stream");
  if (!stream->capture) return record(event, stream);
  if (!external) return record_in_capture(*event, *stream);
  Operation operation;
  operation.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
  operation.event = event;
  capture_operation(*stream, std::move(operation));
}

// A stream that waits for an event of a capture takes part in the capture.
void wait_for_captured(const std::shared_ptr<Stream>& stream, const Event& event) {
  const auto capture = event.capture.lock();
  if (!capture) refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a past capture");
  if (stream->legacy)
    spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the default stream cannot be captured");
  if (stream->capture && stream->capture != capture)
    spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE, "the event is of another capture");
  join_capture(stream, capture, event.captured_after);
}

void wait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event,
          bool external) {
  refuse_legacy_stream_in_capture(*stream);
  if (external && !stream->capture)
    refuse(CUDA_ERROR_INVALID_VALUE, "CU_EVENT_WAIT_EXTERNAL is for a captured stream");
  if (external) {
    Operation operation;
    operation.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT;
    operation.event = event;
    return capture_operation(*stream, std::move(operation));
  }
  if (event->captured) return wait_for_captured(stream, *event);
  if (stream->capture)
    spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
          "the event was recorded outside the capture");
  wait_for_event(stream, *event);
}

bool pending(const Event& event) {
  return event.last && event.last->stream->completed < event.last->sequence;
}

// Refuses where there is no point in time to ask about or to wait for.
void require_outside_capture(const Event& event) {
  if (event.captured) {
    if (const auto capture = event.capture.lock()) capture->invalid = true;
    refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a captured stream");
  }
  refuse_unsafe_call_in_capture();
}

void query(const Event& event) {
  require_outside_capture(event);
  if (!pending(event)) return refuse_if_broken(*event.context);
  run_one(event.last->stream);
  refuse_if_broken(*event.context);
  refuse(CUDA_ERROR_NOT_READY);
}

void synchronize_event(const Event& event) {
  require_outside_capture(event);
  if (event.last) run_until(event.last->stream, event.last->sequence);
  check_red_zones("found at cuEventSynchronize");
  refuse_if_broken(*event.context);
}

double elapsed(const Event& start, const Event& end) {
  if (start.context != end.context)
    refuse(CUDA_ERROR_INVALID_HANDLE, "the events are of different contexts");
  if ((start.flags | end.flags) & CU_EVENT_DISABLE_TIMING)
    refuse(CUDA_ERROR_INVALID_HANDLE, "an event was made with CU_EVENT_DISABLE_TIMING");
  if (start.captured || end.captured)
    refuse(CUDA_ERROR_INVALID_HANDLE, "an event was last recorded in a captured stream");
  if (!start.last || !end.last)
    refuse(CUDA_ERROR_INVALID_HANDLE, "an event was not recorded yet");
  if (pending(start) || pending(end)) refuse(CUDA_ERROR_NOT_READY);
  return end.last->milliseconds - start.last->milliseconds;
}

}  // namespace

void record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream) {
  const auto recording = std::make_shared<Recording>();
  event->last = recording;
  event->captured = false;
  event->capture.reset();
  event->captured_after.clear();
  recording->stream = stream;
  recording->sequence =
      enqueue(stream, [recording] { recording->milliseconds = milliseconds_now(); });
}

void wait_for_event(const std::shared_ptr<Stream>& stream, const Event& event) {
  const auto recording = event.last;
  if (!recording || recording->stream == stream) return;
  enqueue(stream, [recording] { run_until(recording->stream, recording->sequence); });
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuEventCreate(CUevent* result, unsigned flags) {
  return call("cuEventCreate", Needs::working_context, [&] { create(result, flags); });
}

// Whoever waits for the event's last recording still does.
CUresult cuEventDestroy(CUevent handle) {
  return call("cuEventDestroy", Needs::context, [&] {
    event_of(handle);
    state().events.remove(handle);
    refuse_if_broken(*current_context());
  });
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  return call("cuEventRecord", Needs::working_context,
              [&] { record_or_capture(event, stream, 0); });
}

CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  return call("cuEventRecordWithFlags", Needs::working_context,
              [&] { record_or_capture(event, stream, flags); });
}

CUresult cuEventQuery(CUevent handle) {
  return call("cuEventQuery", Needs::working_context, [&] { query(*event_of(handle)); });
}

CUresult cuEventSynchronize(CUevent handle) {
  return call("cuEventSynchronize", Needs::working_context,
              [&] { synchronize_event(*event_of(handle)); });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return call("cuEventElapsedTime", Needs::working_context, [&] {
    *milliseconds = static_cast<float>(elapsed(*event_of(start), *event_of(end)));
  });
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  return call("cuStreamWaitEvent", Needs::working_context, [&] {
    if (flags & ~static_cast<unsigned>(CU_EVENT_WAIT_EXTERNAL))
      refuse(CUDA_ERROR_INVALID_VALUE, "unknown flags");
    wait(stream_of(stream), event_of(event), flags & CU_EVENT_WAIT_EXTERNAL);
  });
}

}  // extern "C"
