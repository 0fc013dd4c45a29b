// The table of device and pinned memory, and the red zones around each piece.
#pragma once

#include "state.h"

namespace emulated {

enum class Memory {
  device,
  pinned,      // allocated by the driver
  registered,  // the program's own memory, pinned afterwards
};

struct Allocation {
  uintptr_t address = 0;
  size_t bytes = 0;
  Memory memory = Memory::device;
  unsigned flags = 0;
  bool mapped = false;  // pinned memory that kernels may use
  Context* context = nullptr;
  char* pages = nullptr;  // null for registered memory
  size_t page_bytes = 0;

  bool holds(uintptr_t start, size_t count) const {
    return start >= address && count <= bytes && start - address <= bytes - count;
  }
  bool usable_by_kernels() const { return memory == Memory::device || mapped; }
};

// Every piece there is, by its address.
std::map<uintptr_t, Allocation>& allocations();

// Memory filled with 0xFF between two red zones. Refuses when the limit or the system is exhausted.
Allocation& allocate(Memory memory, size_t bytes, unsigned flags);
void register_host_memory(uintptr_t address, size_t bytes, unsigned flags);

// Forgets the piece that starts at `address`, after a check of its red zones.
void release(uintptr_t address);
void release_allocations_of(const Context& context);

// The piece that `address` lies in or follows at once; null where there is none.
const Allocation* find_allocation(uintptr_t address);
const Allocation& allocation_at(uintptr_t start, const char* kind);

// Refuses `error` unless all of the range is in one piece that kernels may use.
void require_device_range(uintptr_t start, size_t bytes, CUresult error);
// Refuses `error` unless all of the range is in one piece of pinned host memory.
void require_pinned_range(uintptr_t start, size_t bytes, CUresult error);

// Breaks the context of every piece whose red zones were written to; `when` ends the message.
void check_red_zones(const std::string& when);

size_t free_memory();
Census census();

}  // namespace emulated
