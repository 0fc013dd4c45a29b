// Capturing streams into a graph, and which calls are illegal meanwhile.
#pragma once

#include <thread>

#include "graphs.h"
#include "state.h"

namespace emulated {

struct Capture {
  std::shared_ptr<Graph> graph;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id thread;                        // that began it
  std::shared_ptr<Stream> origin;                // the stream it began on
  std::vector<std::shared_ptr<Stream>> streams;  // that stream, and those that joined
  bool invalid = false;                          // an illegal call spoiled it
};

// Adds a node behind the last one of a captured stream.
void capture_operation(Stream& stream, Operation operation);

// Lets a stream take part: its next node comes after `after`.
void join_capture(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Capture>& capture,
                  const std::vector<std::shared_ptr<Node>>& after);

// Spoils the capture and refuses.
[[noreturn]] void spoil(Capture& capture, CUresult error, const std::string& reason);

// The following refuse, and spoil the capture, where ...
// ... the stream is being captured: there is nothing to wait for or to ask about.
void refuse_captured_stream(Stream& stream);
// ... any stream of the context is being captured.
void refuse_captured_context(Context& context);
// ... it is the default stream and a stream ordered with it is being captured.
void refuse_legacy_stream_in_capture(Stream& stream);
// ... this thread captures in a mode other than relaxed, or any thread captures in global mode.
void refuse_unsafe_call_in_capture();

// Ends a capture without a graph.
void drop_capture(std::shared_ptr<Capture> capture);
void drop_captures_of(const Context& context);

}  // namespace emulated
