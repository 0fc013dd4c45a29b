#include "address_space.h"

#include <sys/mman.h>
#include <unistd.h>

namespace emulated {
namespace {

// Reserved, not allocated: enough for any test to waste.
constexpr size_t kReserved = size_t{1} << 40;

struct Region {
  char* start;
  size_t used = 0;

  Region() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* found = mmap(nullptr, kReserved, PROT_NONE, flags, -1, 0);
    start = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
  }
};

Region& region() {
  static Region only;
  return only;
}

}  // namespace

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

char* take_pages(size_t bytes) {
  Region& from = region();
  const size_t needed = bytes + page_bytes();  // the guard; the next one's guard comes after it
  if (!from.start || needed + page_bytes() > kReserved - from.used) return nullptr;
  char* start = from.start + from.used + page_bytes();
  if (mprotect(start, bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  from.used += needed;
  return start;
}

void give_back_pages(char* start, size_t bytes) {
  madvise(start, bytes, MADV_DONTNEED);
  mprotect(start, bytes, PROT_NONE);
}

bool is_in_address_space(uintptr_t address) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(region().start);
  return start && address >= start && address < start + kReserved;
}

}  // namespace emulated
