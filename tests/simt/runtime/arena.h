// The memory that kernels may touch: the arrays of the case and the shared memory of the blocks that run, all in one range of
// addresses. Each array has pages of its own, ends at their end, and has unmapped pages on both sides; what is left over is
// poisoned for AddressSanitizer, known to the race detector, and holds a pattern that is checked after every launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt::arena {

// Shared memory of a block: the dynamic part first, at an address that is a multiple of 128 and not of 256.
inline constexpr size_t segment_bytes = 512 * 1024;
inline constexpr size_t dynamic_offset = 1024 + 128;
inline constexpr size_t dynamic_limit = 227 * 1024;
inline constexpr size_t static_offset = 232 * 1024;
inline constexpr size_t static_limit = 48 * 1024;
inline constexpr unsigned segment_count = 16;  // blocks of a cluster

void reserve();

// NaN-filled memory of `bytes` bytes whose address is a multiple of 256 plus `offset`.
void* allocate(size_t bytes, size_t offset, const char* name);
// Ends the case if something was written beside an array; to be called between launches.
void check_guards();

char* segment(unsigned rank);
// Forgets what the segment held, and makes `dynamic_bytes` of it usable.
void begin_segment(unsigned rank, size_t dynamic_bytes);
// Makes bytes of a segment usable, full of NaN.
void use_in_segment(unsigned rank, size_t offset, size_t bytes, const char* name);
void check_segment(unsigned rank);
// Nobody may touch it from here on.
void end_segment(unsigned rank);

bool contains(const void* pointer);
inline bool is_shared(size_t offset) { return offset < segment_count * segment_bytes; }
size_t offset_of(const void* pointer);
size_t reserved_bytes();
// Whether all bytes belong to one array; true for what is no memory of the arena's.
bool is_usable(const void* pointer, size_t bytes);
// "byte 12 of array 'output'", "4 bytes behind the end of 'partial'".
std::string describe(const void* pointer);

}  // namespace simt::arena
