// Tensor cores and asynchronous copies for 16-bit elements (sm_80 and later), with emulated forms.
//
// Fragments of one warp, lane = 4 * group + pair (group = lane / 4 in 0..8, pair = lane % 4), all
// indices in elements:
//   A 16x16:       a[0] = (group, 2 pair..+2)      a[1] = (group + 8, 2 pair..+2)
//                  a[2] = (group, 2 pair + 8..+2)  a[3] = (group + 8, 2 pair + 8..+2)
//   B 16x8 (k, n): b[0] = (2 pair..+2, group)      b[1] = (2 pair + 8..+2, group)
//   C 16x8:        c[0], c[1] = (group, 2 pair..+2)  c[2], c[3] = (group + 8, 2 pair..+2)
// Two elements share a register, the one with the smaller index in the lower half.
#pragma once
#include "common.cuh"

#if LEHR_T != 0

// Two floats rounded to T, `low` in the lower half.
DEVICE u32 pack2(float low, float high) {
#ifdef LEHR_EMULATED
    return (u32)from_f32<T>(low).bits | (u32)from_f32<T>(high).bits << 16;
#else
    u32 both;
#if LEHR_T == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
#endif
}
DEVICE float unpack_low(u32 x) { return to_f32(T{(u16)x}); }
DEVICE float unpack_high(u32 x) { return to_f32(T{(u16)(x >> 16)}); }

// c += a b.
DEVICE void mma_16816(float c[4], const u32 a[4], const u32 b[2]) {
#ifdef LEHR_EMULATED
    float as[4][2], bs[2][2];
    for (int i = 0; i < 4; i++) as[i][0] = unpack_low(a[i]), as[i][1] = unpack_high(a[i]);
    for (int i = 0; i < 2; i++) bs[i][0] = unpack_low(b[i]), bs[i][1] = unpack_high(b[i]);
    emu::mma_16816(c, as, bs);
#elif LEHR_T == 1
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8x8 matrices from shared memory: lane l gives the address (a multiple of 16 bytes) of row l
// % 8 of matrix l / 8, and gets elements 2 pair..+2 of row `group` of matrix i in r[i].
DEVICE void ldmatrix_x4(u32 r[4], const T* row) {
#ifdef LEHR_EMULATED
    emu::ldmatrix(r, row, 4, false);
#else
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}
// The same, each matrix transposed: elements (2 pair, group) and (2 pair + 1, group).
DEVICE void ldmatrix_x4_trans(u32 r[4], const T* row) {
#ifdef LEHR_EMULATED
    emu::ldmatrix(r, row, 4, true);
#else
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

#endif

// Copies 16 bytes from global to shared memory without waiting; zeros if `valid` is false, and then
// `from` is not read.
DEVICE void cp_async_16(void* to, const void* from, bool valid) {
#ifdef LEHR_EMULATED
    emu::copy_16(to, from, valid);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    int n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(n)
        : "memory");
#endif
}
// The same for 8 bytes.
DEVICE void cp_async_8(void* to, const void* from, bool valid) {
#ifdef LEHR_EMULATED
    emu::copy_8(to, from, valid);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    int n = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(n)
        : "memory");
#endif
}
// Ends a group of copies.
DEVICE void cp_async_commit() {
#ifdef LEHR_EMULATED
    emu::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most N groups of this thread are under way; __syncthreads() makes them visible to
// the others.
template <int N>
DEVICE void cp_async_wait() {
#ifdef LEHR_EMULATED
    emu::copy_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
