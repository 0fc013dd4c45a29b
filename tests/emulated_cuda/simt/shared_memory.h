// Shared memory, static and dynamic, with the contents a kernel must not rely on.
//
// `__shared__` stands for `thread_local`. All fibers of a launch run in one operating-system
// thread, and blocks run one after the other, so that its thread-local variables are exactly one
// block's shared memory; and, unlike variables in a named section, they may sit in templates and
// inline functions. Nothing else in a kernel file is thread-local, so that the whole
// thread-local segment of the library can be filled with 0xFF (NaN, -1) before each block. The
// segment also has the marks that say whether a variable with a constructor, like an array of
// __half, has been constructed; 0xFF says yes, and as on the device no constructor runs.
//
// Dynamic shared memory is one array; a rewrite of the source points `extern __shared__` at it.
// Writes shortly past its end are noticed. Those past the end of a static array are not.
#pragma once

#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace simt {

constexpr unsigned char poison = 0xFF;
constexpr size_t most_dynamic_shared_bytes = 227 << 10;  // what the largest GPUs grant a block
constexpr size_t watched_bytes = 1024;

alignas(1024) inline unsigned char dynamic_shared[most_dynamic_shared_bytes + watched_bytes];

inline thread_local unsigned char segment_marker;  // so that there always is a segment

struct MemoryRange {
  unsigned char* begin;
  size_t bytes;
};

inline bool loads(const dl_phdr_info& library, uintptr_t address) {
  for (int index = 0; index < library.dlpi_phnum; ++index) {
    const auto& header = library.dlpi_phdr[index];
    const uintptr_t begin = library.dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && address >= begin && address < begin + header.p_memsz)
      return true;
  }
  return false;
}

inline int find_own_segment(dl_phdr_info* library, size_t, void* found) {
  if (!loads(*library, reinterpret_cast<uintptr_t>(dynamic_shared))) return 0;
  for (int index = 0; index < library->dlpi_phnum; ++index) {
    const auto& header = library->dlpi_phdr[index];
    if (header.p_type != PT_TLS) continue;
    *static_cast<MemoryRange*>(found) = {static_cast<unsigned char*>(library->dlpi_tls_data),
                                         header.p_memsz};
  }
  return 1;
}

// The thread-local segment of this library in the calling operating-system thread.
inline MemoryRange static_shared() {
  *static_cast<volatile unsigned char*>(&segment_marker) = poison;  // makes libc allocate it
  MemoryRange range = {nullptr, 0};
  dl_iterate_phdr(find_own_segment, &range);
  return range;
}

// An upper bound: variables of all kernels of the file, and the padding between them.
inline unsigned static_shared_bytes() {
  return static_cast<unsigned>(static_shared().bytes - sizeof(segment_marker));
}

class SharedMemory {
 public:
  void prepare_launch(size_t dynamic_bytes) {
    static_ = static_shared();
    dynamic_bytes_ = dynamic_bytes;
    memset(dynamic_shared, poison, dynamic_bytes + watched_bytes);
  }

  void prepare_block() {
    memset(static_.begin, poison, static_.bytes);
    memset(dynamic_shared, poison, dynamic_bytes_);
  }

  bool written_past_end() const {
    const unsigned char* end = dynamic_shared + dynamic_bytes_;
    return *end != poison || memcmp(end, end + 1, watched_bytes - 1) != 0;
  }

 private:
  MemoryRange static_ = {nullptr, 0};
  size_t dynamic_bytes_ = 0;
};

}  // namespace simt
