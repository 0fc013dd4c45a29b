#include "allocations.h"

#include <algorithm>
#include <cstring>

#include "address_space.h"
#include "context.h"

namespace emulated {
namespace {

constexpr size_t kRedZone = 512;  // before each piece; after it up to the end of the page too
constexpr unsigned char kRed = 0xCD;
constexpr unsigned char kFill = 0xFF;  // NaN as a floating-point number, -1 as an integer

uintptr_t number(const char* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

std::string described(const Allocation& piece) {
  return std::string(piece.memory == Memory::device ? "device" : "pinned") + " memory of " +
         std::to_string(piece.bytes) + " bytes";
}

void paint(const Allocation& piece) {
  const size_t before = piece.address - number(piece.pages);
  std::memset(piece.pages, kRed, before);
  char* after = piece.pages + before + piece.bytes;
  std::memset(after, kRed, piece.page_bytes - before - piece.bytes);
}

// The first written byte of a red zone, from its start; or `bytes`.
size_t first_damage(const char* zone, size_t bytes) {
  // Quick where all bytes are alike, which is nearly always.
  if (static_cast<unsigned char>(*zone) == kRed && !std::memcmp(zone, zone + 1, bytes - 1))
    return bytes;
  const auto red = [](char byte) { return static_cast<unsigned char>(byte) == kRed; };
  return static_cast<size_t>(std::find_if_not(zone, zone + bytes, red) - zone);
}

// Where red zones were written to; empty: nowhere.
std::string damage(const Allocation& piece) {
  if (!piece.pages) return "";
  const size_t before = piece.address - number(piece.pages);
  const size_t after = piece.page_bytes - before - piece.bytes;
  const size_t early = first_damage(piece.pages, before);
  if (early < before) return std::to_string(before - early) + " bytes before the start of ";
  const size_t late = first_damage(piece.pages + before + piece.bytes, after);
  if (late < after) return std::to_string(late) + " bytes past the end of ";
  return "";
}

void check_piece(const Allocation& piece, const std::string& when) {
  const std::string where = damage(piece);
  if (where.empty()) return;
  paint(piece);  // reported once
  const std::string reason = "out-of-bounds write " + where + described(piece) + ", " + when;
  break_context(*piece.context, CUDA_ERROR_ILLEGAL_ADDRESS, reason);
}

size_t used_memory() {
  const Census now = census();
  // Where the GPU has no memory of its own, pinned memory comes out of the same pool.
  return now.device_bytes + (state().settings.integrated ? now.pinned_bytes : 0);
}

std::string address_text(uintptr_t address) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%zx", static_cast<size_t>(address));
  return text;
}

[[noreturn]] void refuse_range(uintptr_t start, size_t bytes, const char* kind, CUresult error) {
  const Allocation* near = find_allocation(start);
  const std::string range = std::to_string(bytes) + " bytes at " + address_text(start);
  if (near)
    refuse(error, range + " leave or are not allowed in " + described(*near) + " at " +
                      address_text(near->address));
  const bool freed = is_in_address_space(start);
  refuse(error, range + " are not " + kind + (freed ? " (any more: it was freed)" : ""));
}

}  // namespace

std::map<uintptr_t, Allocation>& allocations() {
  static auto& all = *new std::map<uintptr_t, Allocation>;  // never destroyed, as the state
  return all;
}

Allocation& allocate(Memory memory, size_t bytes, unsigned flags) {
  const bool counts = memory == Memory::device || state().settings.integrated;
  if (counts && bytes > free_memory())
    refuse(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes were asked for, " +
                                         std::to_string(free_memory()) + " are free");
  Allocation piece;
  const size_t page = page_bytes();
  piece.page_bytes = (bytes + 2 * kRedZone + page - 1) / page * page;
  piece.pages = take_pages(piece.page_bytes);
  if (!piece.pages) refuse(CUDA_ERROR_OUT_OF_MEMORY, "this machine has no more memory");
  piece.address = number(piece.pages) + kRedZone;
  piece.bytes = bytes;
  piece.memory = memory;
  piece.flags = flags;
  piece.context = current_context().get();
  paint(piece);
  std::memset(piece.pages + kRedZone, kFill, bytes);
  return allocations()[piece.address] = piece;
}

void register_host_memory(uintptr_t address, size_t bytes, unsigned flags) {
  Allocation piece;
  piece.address = address;
  piece.bytes = bytes;
  piece.memory = Memory::registered;
  piece.flags = flags;
  piece.context = current_context().get();
  allocations()[address] = piece;
}

void release(uintptr_t address) {
  const auto found = allocations().find(address);
  check_piece(found->second, "found as it was freed");
  if (found->second.pages) give_back_pages(found->second.pages, found->second.page_bytes);
  allocations().erase(found);
}

void release_allocations_of(const Context& context) {
  std::vector<uintptr_t> addresses;
  for (const auto& [address, piece] : allocations())
    if (piece.context == &context) addresses.push_back(address);
  for (const uintptr_t address : addresses) release(address);
}

const Allocation* find_allocation(uintptr_t address) {
  auto next = allocations().upper_bound(address);
  if (next == allocations().begin()) return nullptr;
  const Allocation& piece = std::prev(next)->second;
  return address - piece.address <= piece.bytes ? &piece : nullptr;
}

const Allocation& allocation_at(uintptr_t start, const char* kind) {
  const auto found = allocations().find(start);
  if (found == allocations().end())
    refuse(CUDA_ERROR_INVALID_VALUE, std::string("this is not the start of any ") + kind);
  return found->second;
}

void require_device_range(uintptr_t start, size_t bytes, CUresult error) {
  const Allocation* piece = find_allocation(start);
  if (!piece || !piece->usable_by_kernels() || !piece->holds(start, bytes))
    refuse_range(start, bytes, "device memory", error);
}

void require_pinned_range(uintptr_t start, size_t bytes, CUresult error) {
  const Allocation* piece = find_allocation(start);
  if (!piece || piece->memory == Memory::device || !piece->holds(start, bytes))
    refuse_range(start, bytes, "pinned memory", error);
}

void check_red_zones(const std::string& when) {
  for (const auto& [address, piece] : allocations()) check_piece(piece, when);
}

size_t free_memory() {
  const size_t used = used_memory();
  const size_t total = state().settings.memory_bytes;
  return used < total ? total - used : 0;
}

Census census() {
  Census result;
  for (const auto& [address, piece] : allocations()) {
    const bool device = piece.memory == Memory::device;
    ++(device ? result.device_allocations : result.pinned_allocations);
    (device ? result.device_bytes : result.pinned_bytes) += piece.bytes;
  }
  result.streams = state().streams.size();
  result.events = state().events.size();
  result.graphs = state().graphs.size();
  result.graph_executables = state().executables.size();
  result.modules = state().modules.size();
  return result;
}

}  // namespace emulated
