#include "capture.h"

#include <algorithm>
#include <cstdint>
#include <set>

#include "context.h"
#include "streams.h"

namespace emulated {
namespace {

void begin(const std::shared_ptr<Stream>& stream, CUstreamCaptureMode mode) {
  if (stream->legacy)
    refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
  if (stream->capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
  const auto capture = std::make_shared<Capture>();
  capture->graph = std::make_shared<Graph>();
  capture->graph->handle = state().graphs.add(capture->graph);  // cuStreamGetCaptureInfo tells it
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = stream;
  state().captures.push_back(capture);
  join_capture(stream, capture, {});
}

// Every node that must be done before `last` are all done; those included.
std::set<const Node*> all_before(const std::vector<std::shared_ptr<Node>>& last) {
  std::set<const Node*> found;
  std::vector<std::shared_ptr<Node>> open = last;
  while (!open.empty()) {
    const auto node = open.back();
    open.pop_back();
    if (found.insert(node.get()).second)
      open.insert(open.end(), node->after.begin(), node->after.end());
  }
  return found;
}

void detach(Capture& capture) {
  for (const auto& stream : capture.streams) {
    stream->capture.reset();
    stream->tail.clear();
  }
  auto& all = state().captures;
  const auto same = [&](const auto& other) { return other.get() == &capture; };
  all.erase(std::remove_if(all.begin(), all.end(), same), all.end());
}

void require_right_end(const Stream& stream) {
  if (!stream.capture) refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
  const Capture& capture = *stream.capture;
  if (capture.origin.get() != &stream)
    refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
  if (capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      capture.thread != std::this_thread::get_id())
    refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began in another thread");
}

std::shared_ptr<Graph> end(const std::shared_ptr<Stream>& stream) {
  require_right_end(*stream);
  const std::shared_ptr<Capture> capture = stream->capture;
  const bool joined = all_before(stream->tail).size() == capture->graph->nodes.size();
  detach(*capture);
  if (!capture->invalid && joined) return capture->graph;
  forget(*capture->graph);
  if (capture->invalid)
    refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an illegal call came during the capture");
  refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "work of a second stream was not waited for");
}

CUstreamCaptureStatus status(const Stream& stream) {
  if (!stream.capture) return CU_STREAM_CAPTURE_STATUS_NONE;
  return stream.capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

bool forbids_unsafe_calls(const Capture& capture) {
  if (capture.thread == std::this_thread::get_id())
    return capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
  return capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

Capture* capture_ordered_with_legacy(const Context& context) {
  for (const auto& stream : context.streams)
    if (stream->blocking && stream->capture) return stream->capture.get();
  return nullptr;
}

}  // namespace

void capture_operation(Stream& stream, Operation operation) {
  if (stream.capture->invalid)
    refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an illegal call came during the capture");
  const auto node = add_node(*stream.capture->graph, std::move(operation), stream.tail);
  stream.tail = {node};
}

void join_capture(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Capture>& capture,
                  const std::vector<std::shared_ptr<Node>>& after) {
  if (!stream->capture) {
    stream->capture = capture;
    capture->streams.push_back(stream);
  }
  stream->tail.insert(stream->tail.end(), after.begin(), after.end());
}

void spoil(Capture& capture, CUresult error, const std::string& reason) {
  capture.invalid = true;
  refuse(error, reason + "; the capture is invalid now");
}

void refuse_captured_stream(Stream& stream) {
  if (stream.capture)
    spoil(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream is being captured");
}

void refuse_captured_context(Context& context) {
  for (const auto& stream : context.streams) refuse_captured_stream(*stream);
}

void refuse_legacy_stream_in_capture(Stream& stream) {
  if (!stream.legacy) return;
  if (Capture* capture = capture_ordered_with_legacy(*stream.context))
    spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
          "the default stream is used while a stream ordered with it is being captured");
}

void refuse_unsafe_call_in_capture() {
  bool forbidden = false;
  for (const auto& capture : state().captures) {
    if (!forbids_unsafe_calls(*capture)) continue;
    capture->invalid = true;
    forbidden = true;
  }
  if (forbidden)
    refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
           "not allowed during a capture, which is invalid now");
}

void drop_capture(std::shared_ptr<Capture> capture) {
  detach(*capture);
  forget(*capture->graph);
}

void drop_captures_of(const Context& context) {
  const auto captures = state().captures;
  for (const auto& capture : captures)
    if (capture->origin->context == &context) drop_capture(capture);
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  return call("cuStreamBeginCapture", Needs::working_context,
              [&] { begin(stream_of(handle), mode); });
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* result) {
  return call("cuStreamEndCapture", Needs::working_context, [&] {
    *result = nullptr;
    const auto graph = end(stream_of(handle));
    *result = graph->handle;
  });
}

CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status_out,
                                cuuint64_t* id, CUgraph* graph, const CUgraphNode** dependencies,
                                const CUgraphEdgeData** edges, size_t* dependency_count) {
  return call("cuStreamGetCaptureInfo", Needs::working_context, [&] {
    const auto stream = stream_of(handle);
    *status_out = status(*stream);
    if (id) *id = stream->capture ? reinterpret_cast<uintptr_t>(stream->capture->graph->handle) : 0;
    if (graph) *graph = stream->capture ? stream->capture->graph->handle : nullptr;
    if (dependencies) *dependencies = nullptr;
    if (edges) *edges = nullptr;
    if (dependency_count) *dependency_count = 0;
  });
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* result) {
  return call("cuStreamIsCapturing", Needs::working_context, [&] {
    const auto stream = stream_of(handle);
    if (stream->legacy && capture_ordered_with_legacy(*stream->context))
      refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "a stream ordered with it is being captured");
    *result = status(*stream);
  });
}

}  // extern "C"
