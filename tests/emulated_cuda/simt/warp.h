// Operations of a warp: they end when every lane that the mask names and that has not exited has
// come with the same mask. Then, and only then, lanes see each other's values.
#pragma once

#include <string.h>

#include "scheduler.h"

namespace simt {

// Lanes on their way through one operation. A warp can have several under way, with other masks.
struct Gathering {
  Operation operation;
  unsigned mask;
  unsigned arrived;
};

struct Warp {
  unsigned alive;
  unsigned gathering_count;
  Gathering gatherings[warp_size];
  uint64_t given[warp_size];
  unsigned source[warp_size];
  uint64_t result[warp_size];
};

inline Warp warps[most_threads / warp_size];

inline bool names(unsigned mask, unsigned lane) { return mask >> lane & 1; }

// Lanes of the warp that starts with thread `first`: fewer than 32 in the last warp of some blocks.
inline unsigned lanes_from(unsigned first) {
  const unsigned left = thread_count - first;
  return left < warp_size ? left : warp_size;
}

inline Gathering& gathering_of(Warp& warp, Operation operation, unsigned mask) {
  for (unsigned index = 0; index < warp.gathering_count; ++index)
    if (warp.gatherings[index].mask == mask) return warp.gatherings[index];
  Gathering& made = warp.gatherings[warp.gathering_count++];
  made = {operation, mask, 0};
  return made;
}

inline uint64_t votes_of(const Warp& warp, unsigned lanes) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < warp_size; ++lane)
    if (names(lanes, lane) && warp.given[lane] != 0) votes |= 1u << lane;
  return votes;
}

inline uint64_t shuffled_value(const Warp& warp, const Gathering& gathering, unsigned lane) {
  const unsigned source = warp.source[lane];
  if (!names(gathering.arrived, source))
    report("lane %u reads lane %u by %s with mask 0x%08x, but that lane %s", lane, source,
           name_of(gathering.operation), gathering.mask,
           names(gathering.mask, source) ? "has exited or never was" : "is not in the mask");
  return warp.given[source];
}

// Works the results out for all lanes at once: the first to go on may be at its next operation,
// with another value to give, before the last has looked at its result.
inline void work_out_results(Warp& warp, const Gathering& gathering) {
  const bool shuffles = is_shuffle(gathering.operation);
  const uint64_t votes = shuffles ? 0 : votes_of(warp, gathering.arrived);
  for (unsigned lane = 0; lane < warp_size; ++lane)
    if (names(gathering.arrived, lane))
      warp.result[lane] = shuffles ? shuffled_value(warp, gathering, lane) : votes;
}

inline void release_if_complete(unsigned warp_number, Gathering& slot) {
  Warp& warp = warps[warp_number];
  const Gathering gathering = slot;
  if (gathering.arrived != (gathering.mask & warp.alive)) return;
  slot = warp.gatherings[--warp.gathering_count];
  work_out_results(warp, gathering);
  const unsigned first = warp_number * warp_size;
  in_order(first, lanes_from(first), [&](Thread& thread) {
    if (names(gathering.arrived, thread.lane())) ready.push(&thread);
  });
}

inline void check_mask(const Gathering& gathering, Operation operation, unsigned lane) {
  if (!names(gathering.mask, lane))
    report("lane %u calls %s with mask 0x%08x, which does not name it", lane, name_of(operation),
           gathering.mask);
  if (gathering.operation != operation)
    report("lane %u is at %s while others of mask 0x%08x are at %s", lane, name_of(operation),
           gathering.mask, name_of(gathering.operation));
}

// Gives a value to the other lanes of the mask; returns that of lane `source` for shuffles, else
// the lanes that gave another value than 0.
inline uint64_t wait_for_lanes(Operation operation, unsigned mask, uint64_t value = 0,
                               unsigned source = 0) {
  Warp& warp = warps[current->warp()];
  const unsigned lane = current->lane();
  Gathering& gathering = gathering_of(warp, operation, mask);
  check_mask(gathering, operation, lane);
  warp.given[lane] = value;
  warp.source[lane] = source;
  gathering.arrived |= 1u << lane;
  current->waits_at = operation;
  current->waits_with = mask;
  release_if_complete(current->warp(), gathering);
  wait_for_turn();
  return warp.result[lane];
}

template <class Value>
Value exchange(Operation operation, unsigned mask, Value value, unsigned operand, int width) {
  static_assert(sizeof(Value) <= sizeof(uint64_t), "shuffles move at most 8 bytes");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    report("%s with width %d, which is no power of two up to 32", name_of(operation), width);
  const unsigned source = source_lane(operation, current->lane(), operand, unsigned(width));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = wait_for_lanes(operation, mask, bits, source % warp_size);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt
