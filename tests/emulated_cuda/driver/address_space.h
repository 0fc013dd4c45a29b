// Memory at addresses that are handed out once. Touching an address after its memory was given back
// is a segmentation fault, never a read of somebody else's data.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulated {

size_t page_bytes();

// Fresh zeroed pages with an inaccessible page before and after them; null when the system has no
// more. `bytes` is a multiple of the page size.
char* take_pages(size_t bytes);
void give_back_pages(char* start, size_t bytes);

bool is_in_address_space(uintptr_t address);

}  // namespace emulated
