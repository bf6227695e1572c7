// Warp-group matrix instructions (wgmma) of sm_90a: four warps multiply tiles that lie in shared memory. nvcc's half of device.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device_memory.cuh"

namespace fastdl::device {

// Describes an operand in shared memory: 8 x 8 core matrices, each of eight 16-byte chunks. `rows` are those of a, or the columns
// of b. K contiguous: without a swizzle a core matrix is 128 bytes, `leading_bytes` from the next along K and `stride_bytes` from
// that of the next 8 rows. With one, 8 rows of 32, 64 or 128 bytes lie as tile_load leaves them, `stride_bytes` from the next 8;
// `leading_bytes` is unused, and the next 16 elements along K are 32 bytes further. Rows contiguous (`..._transposed`): without a
// swizzle `stride_bytes` is the distance to the core matrix of the next 8 rows and `leading_bytes` to that of the next 8 along K.
// With one, 8 lines along K of 16, 32 or 64 rows each lie as tile_load leaves them, `stride_bytes` from the next 8 along K, and
// `leading_bytes` from the rows that follow.
FASTDL_DEVICE uint64_t matrix_descriptor(const void* shared, unsigned leading_bytes, unsigned stride_bytes, Swizzle swizzle) {
  const uint64_t code = swizzle == Swizzle::none ? 0 : 4 - int(swizzle);
  const auto field = [](uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  return field(shared_address(shared)) | field(leading_bytes) << 16 | field(stride_bytes) << 32 | code << 62;
}

// Before the first wgmma, and wherever registers that one will read were written; closing a group; waiting until at most `pending`
// groups are under way. All by the whole warp group. Until then nobody may touch the accumulators or the operands.
FASTDL_DEVICE void wgmma_fence() {
#if FASTDL_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
FASTDL_DEVICE void wgmma_commit() {
#if FASTDL_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int pending>
FASTDL_DEVICE void wgmma_wait() {
#if FASTDL_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}

#if FASTDL_HAS_WGMMA
// Inline assembly needs every register by name: FASTDL_NAMES_i and FASTDL_OPERANDS_i are 4 i of them.
#define FASTDL_NAMES_1 "%0, %1, %2, %3"
#define FASTDL_NAMES_2 FASTDL_NAMES_1 ", %4, %5, %6, %7"
#define FASTDL_NAMES_3 FASTDL_NAMES_2 ", %8, %9, %10, %11"
#define FASTDL_NAMES_4 FASTDL_NAMES_3 ", %12, %13, %14, %15"
#define FASTDL_NAMES_5 FASTDL_NAMES_4 ", %16, %17, %18, %19"
#define FASTDL_NAMES_6 FASTDL_NAMES_5 ", %20, %21, %22, %23"
#define FASTDL_NAMES_7 FASTDL_NAMES_6 ", %24, %25, %26, %27"
#define FASTDL_NAMES_8 FASTDL_NAMES_7 ", %28, %29, %30, %31"
#define FASTDL_NAMES_9 FASTDL_NAMES_8 ", %32, %33, %34, %35"
#define FASTDL_NAMES_10 FASTDL_NAMES_9 ", %36, %37, %38, %39"
#define FASTDL_NAMES_11 FASTDL_NAMES_10 ", %40, %41, %42, %43"
#define FASTDL_NAMES_12 FASTDL_NAMES_11 ", %44, %45, %46, %47"
#define FASTDL_NAMES_13 FASTDL_NAMES_12 ", %48, %49, %50, %51"
#define FASTDL_NAMES_14 FASTDL_NAMES_13 ", %52, %53, %54, %55"
#define FASTDL_NAMES_15 FASTDL_NAMES_14 ", %56, %57, %58, %59"
#define FASTDL_NAMES_16 FASTDL_NAMES_15 ", %60, %61, %62, %63"
#define FASTDL_NAMES_17 FASTDL_NAMES_16 ", %64, %65, %66, %67"
#define FASTDL_NAMES_18 FASTDL_NAMES_17 ", %68, %69, %70, %71"
#define FASTDL_NAMES_19 FASTDL_NAMES_18 ", %72, %73, %74, %75"
#define FASTDL_NAMES_20 FASTDL_NAMES_19 ", %76, %77, %78, %79"
#define FASTDL_NAMES_21 FASTDL_NAMES_20 ", %80, %81, %82, %83"
#define FASTDL_NAMES_22 FASTDL_NAMES_21 ", %84, %85, %86, %87"
#define FASTDL_NAMES_23 FASTDL_NAMES_22 ", %88, %89, %90, %91"
#define FASTDL_NAMES_24 FASTDL_NAMES_23 ", %92, %93, %94, %95"
#define FASTDL_NAMES_25 FASTDL_NAMES_24 ", %96, %97, %98, %99"
#define FASTDL_NAMES_26 FASTDL_NAMES_25 ", %100, %101, %102, %103"
#define FASTDL_NAMES_27 FASTDL_NAMES_26 ", %104, %105, %106, %107"
#define FASTDL_NAMES_28 FASTDL_NAMES_27 ", %108, %109, %110, %111"
#define FASTDL_NAMES_29 FASTDL_NAMES_28 ", %112, %113, %114, %115"
#define FASTDL_NAMES_30 FASTDL_NAMES_29 ", %116, %117, %118, %119"
#define FASTDL_NAMES_31 FASTDL_NAMES_30 ", %120, %121, %122, %123"
#define FASTDL_NAMES_32 FASTDL_NAMES_31 ", %124, %125, %126, %127"
#define FASTDL_OPERANDS_1 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define FASTDL_OPERANDS_2 FASTDL_OPERANDS_1, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define FASTDL_OPERANDS_3 FASTDL_OPERANDS_2, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define FASTDL_OPERANDS_4 FASTDL_OPERANDS_3, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define FASTDL_OPERANDS_5 FASTDL_OPERANDS_4, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define FASTDL_OPERANDS_6 FASTDL_OPERANDS_5, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define FASTDL_OPERANDS_7 FASTDL_OPERANDS_6, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define FASTDL_OPERANDS_8 FASTDL_OPERANDS_7, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define FASTDL_OPERANDS_9 FASTDL_OPERANDS_8, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define FASTDL_OPERANDS_10 FASTDL_OPERANDS_9, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define FASTDL_OPERANDS_11 FASTDL_OPERANDS_10, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define FASTDL_OPERANDS_12 FASTDL_OPERANDS_11, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define FASTDL_OPERANDS_13 FASTDL_OPERANDS_12, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define FASTDL_OPERANDS_14 FASTDL_OPERANDS_13, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define FASTDL_OPERANDS_15 FASTDL_OPERANDS_14, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define FASTDL_OPERANDS_16 FASTDL_OPERANDS_15, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define FASTDL_OPERANDS_17 FASTDL_OPERANDS_16, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define FASTDL_OPERANDS_18 FASTDL_OPERANDS_17, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define FASTDL_OPERANDS_19 FASTDL_OPERANDS_18, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define FASTDL_OPERANDS_20 FASTDL_OPERANDS_19, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define FASTDL_OPERANDS_21 FASTDL_OPERANDS_20, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define FASTDL_OPERANDS_22 FASTDL_OPERANDS_21, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define FASTDL_OPERANDS_23 FASTDL_OPERANDS_22, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define FASTDL_OPERANDS_24 FASTDL_OPERANDS_23, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define FASTDL_OPERANDS_25 FASTDL_OPERANDS_24, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define FASTDL_OPERANDS_26 FASTDL_OPERANDS_25, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define FASTDL_OPERANDS_27 FASTDL_OPERANDS_26, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define FASTDL_OPERANDS_28 FASTDL_OPERANDS_27, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define FASTDL_OPERANDS_29 FASTDL_OPERANDS_28, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define FASTDL_OPERANDS_30 FASTDL_OPERANDS_29, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define FASTDL_OPERANDS_31 FASTDL_OPERANDS_30, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define FASTDL_OPERANDS_32 FASTDL_OPERANDS_31, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

// i0 to i6 are the numbers of the operands that follow the accumulators.
#define FASTDL_WGMMA_SHARED(n, fours, type, i0, i1, i2, i3, i4, i5, i6)                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               " {" FASTDL_NAMES_##fours "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                    \
               : FASTDL_OPERANDS_##fours                                                                             \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(a_transposed)), "n"(int(b_transposed)))
#define FASTDL_WGMMA_REGISTERS(n, fours, type, i0, i1, i2, i3, i4, i5, i6)                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type    \
               " {" FASTDL_NAMES_##fours "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}" \
               : FASTDL_OPERANDS_##fours                                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(b_transposed)))
#define FASTDL_WGMMA_CASE(form, n, fours, ...)                                                         \
  if constexpr (2 * count == n) {                                                                      \
    if constexpr (std::is_same_v<T, half_bits>) FASTDL_WGMMA_##form(n, fours, "f16.f16", __VA_ARGS__); \
    else FASTDL_WGMMA_##form(n, fours, "bf16.bf16", __VA_ARGS__);                                      \
  }
#define FASTDL_WGMMA(form)                                            \
  FASTDL_WGMMA_CASE(form, 8, 1, 4, 5, 6, 7, 8, 9, 10)                 \
  FASTDL_WGMMA_CASE(form, 16, 2, 8, 9, 10, 11, 12, 13, 14)            \
  FASTDL_WGMMA_CASE(form, 24, 3, 12, 13, 14, 15, 16, 17, 18)          \
  FASTDL_WGMMA_CASE(form, 32, 4, 16, 17, 18, 19, 20, 21, 22)          \
  FASTDL_WGMMA_CASE(form, 40, 5, 20, 21, 22, 23, 24, 25, 26)          \
  FASTDL_WGMMA_CASE(form, 48, 6, 24, 25, 26, 27, 28, 29, 30)          \
  FASTDL_WGMMA_CASE(form, 56, 7, 28, 29, 30, 31, 32, 33, 34)          \
  FASTDL_WGMMA_CASE(form, 64, 8, 32, 33, 34, 35, 36, 37, 38)          \
  FASTDL_WGMMA_CASE(form, 72, 9, 36, 37, 38, 39, 40, 41, 42)          \
  FASTDL_WGMMA_CASE(form, 80, 10, 40, 41, 42, 43, 44, 45, 46)         \
  FASTDL_WGMMA_CASE(form, 88, 11, 44, 45, 46, 47, 48, 49, 50)         \
  FASTDL_WGMMA_CASE(form, 96, 12, 48, 49, 50, 51, 52, 53, 54)         \
  FASTDL_WGMMA_CASE(form, 104, 13, 52, 53, 54, 55, 56, 57, 58)        \
  FASTDL_WGMMA_CASE(form, 112, 14, 56, 57, 58, 59, 60, 61, 62)        \
  FASTDL_WGMMA_CASE(form, 120, 15, 60, 61, 62, 63, 64, 65, 66)        \
  FASTDL_WGMMA_CASE(form, 128, 16, 64, 65, 66, 67, 68, 69, 70)        \
  FASTDL_WGMMA_CASE(form, 136, 17, 68, 69, 70, 71, 72, 73, 74)        \
  FASTDL_WGMMA_CASE(form, 144, 18, 72, 73, 74, 75, 76, 77, 78)        \
  FASTDL_WGMMA_CASE(form, 152, 19, 76, 77, 78, 79, 80, 81, 82)        \
  FASTDL_WGMMA_CASE(form, 160, 20, 80, 81, 82, 83, 84, 85, 86)        \
  FASTDL_WGMMA_CASE(form, 168, 21, 84, 85, 86, 87, 88, 89, 90)        \
  FASTDL_WGMMA_CASE(form, 176, 22, 88, 89, 90, 91, 92, 93, 94)        \
  FASTDL_WGMMA_CASE(form, 184, 23, 92, 93, 94, 95, 96, 97, 98)        \
  FASTDL_WGMMA_CASE(form, 192, 24, 96, 97, 98, 99, 100, 101, 102)     \
  FASTDL_WGMMA_CASE(form, 200, 25, 100, 101, 102, 103, 104, 105, 106) \
  FASTDL_WGMMA_CASE(form, 208, 26, 104, 105, 106, 107, 108, 109, 110) \
  FASTDL_WGMMA_CASE(form, 216, 27, 108, 109, 110, 111, 112, 113, 114) \
  FASTDL_WGMMA_CASE(form, 224, 28, 112, 113, 114, 115, 116, 117, 118) \
  FASTDL_WGMMA_CASE(form, 232, 29, 116, 117, 118, 119, 120, 121, 122) \
  FASTDL_WGMMA_CASE(form, 240, 30, 120, 121, 122, 123, 124, 125, 126) \
  FASTDL_WGMMA_CASE(form, 248, 31, 124, 125, 126, 127, 128, 129, 130) \
  FASTDL_WGMMA_CASE(form, 256, 32, 128, 129, 130, 131, 132, 133, 134)
#endif

// d = a b, or d += a b with `accumulate`: a 64 x 16 and b 16 x N, N = 8, 16 .. 256, both described in shared memory with K
// contiguous, or the other dimension with `..._transposed`; d in float32, N / 2 registers a thread: with g = lane / 4 and t = lane
// % 4, thread of warp w holds in d[4 i + 0..3] elements (16 w + g, 8 i + 2 t), (same, +1), (16 w + g + 8, 8 i + 2 t), (same, +1).
template <class T, bool a_transposed = false, bool b_transposed = false, int count>
FASTDL_DEVICE void wgmma(float (&d)[count], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(count % 4 == 0 && count >= 4 && count <= 128);
  static_assert(std::is_same_v<T, half_bits> || std::is_same_v<T, bfloat16_bits>);
#if FASTDL_HAS_WGMMA
  FASTDL_WGMMA(SHARED)
#else
  __trap();
#endif
}

// The same with a in registers: warp w holds rows 16 w to 16 w + 15 as in mma_m16n8k16.
template <class T, bool b_transposed = false, int count>
FASTDL_DEVICE void wgmma(float (&d)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(count % 4 == 0 && count >= 4 && count <= 128);
  static_assert(std::is_same_v<T, half_bits> || std::is_same_v<T, bfloat16_bits>);
#if FASTDL_HAS_WGMMA
  FASTDL_WGMMA(REGISTERS)
#else
  __trap();
#endif
}

}  // namespace fastdl::device
