// Streams: queues of work that runs when somebody waits for it (lazy) or at once (eager).
#pragma once

#include <deque>

#include "graphs.h"
#include "state.h"

namespace emulated {

struct Stream {
  CUstream handle = nullptr;
  Context* context = nullptr;
  bool legacy = false;    // the default stream
  bool blocking = false;  // ordered with the default stream
  bool destroyed = false;

  std::deque<Work> queue;
  uint64_t submitted = 0;  // pieces of work ever put into the queue
  uint64_t completed = 0;
  bool running = false;  // some thread is inside a piece of work

  std::shared_ptr<Capture> capture;         // set while the stream is being captured
  std::vector<std::shared_ptr<Node>> tail;  // of that capture: what the next node comes after

  bool pending() const { return completed < submitted; }
};

std::shared_ptr<Stream> make_legacy_stream(const std::shared_ptr<Context>& context);

// The stream of a handle; the current context's default stream for null.
std::shared_ptr<Stream> stream_of(CUstream handle);

// Refuses a stream of another context than the calling thread's current one.
void require_current_context(const Stream& stream);

// Puts an operation behind what was submitted before, or into the graph being captured.
void submit(const std::shared_ptr<Stream>& stream, Operation operation);

// Puts work behind what was submitted before; in order with the default stream. Returns its number.
uint64_t enqueue(const std::shared_ptr<Stream>& stream, Work work);

// Runs the stream's work in order up to its piece number `sequence`; waits where another thread is
// running it.
void run_until(const std::shared_ptr<Stream>& stream, uint64_t sequence);

// Runs one piece of work, if any is left and nobody is running one.
void run_one(const std::shared_ptr<Stream>& stream);

// Runs all work and refuses with the context's error.
void synchronize(const std::shared_ptr<Stream>& stream, const char* function);

// Runs the work of every stream of a context, and forgets the streams that were destroyed.
void finish_streams(Context& context);

}  // namespace emulated
