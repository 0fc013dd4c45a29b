// Events: marks in a stream that can be waited for and timed.
#pragma once

#include "graphs.h"
#include "state.h"

namespace emulated {

// One recording of an event. Recording it again makes another one, and whoever waits for the first
// still does.
struct Recording {
  std::shared_ptr<Stream> stream;
  uint64_t sequence = 0;     // of the piece of work that marks it
  double milliseconds = -1;  // when that ran; negative until then
};

struct Event {
  CUevent handle = nullptr;
  unsigned flags = 0;
  Context* context = nullptr;
  std::shared_ptr<Recording> last;  // null before the first

  bool captured = false;           // last recorded in a stream that was being captured
  std::weak_ptr<Capture> capture;  // that capture, while it goes on
  std::vector<std::shared_ptr<Node>> captured_after;
};

void record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream);

// Makes the stream's next work wait for the event's latest recording, if there is one.
void wait_for_event(const std::shared_ptr<Stream>& stream, const Event& event);

}  // namespace emulated
