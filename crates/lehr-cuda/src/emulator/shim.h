// CUDA C++ as ordinary C++, so that kernels can be run and tested on a machine without a GPU. It is
// slow and proves logic, not speed.
//
// A block's threads are fibers of one thread of the system. A fiber runs until it waits: at a
// barrier of the block, or in a warp's shuffle. Blocks run one after another.
// LEHR_EMULATOR_ORDER=reverse runs the fibers in falling order: results that then differ, or a
// block that never ends ("deadlock"), show a missing barrier.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define LEHR_EMULATED 1
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __global__
#define __shared__ static thread_local
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
struct __align__(8) float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(8) int2 {
    int x, y;
};
struct __align__(16) int4 {
    int x, y, z, w;
};
struct __align__(8) uint2 {
    unsigned x, y;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

namespace emu {

struct Barrier {
    unsigned arrived = 0, generation = 0, members = 0;
};

struct Warp {
    Barrier barrier;
    // Two generations: nobody can be more than one exchange ahead.
    unsigned char slots[2][32][32];
};

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    dim3 thread;
    int lane;
    Warp* warp;
    bool done;
    // What it waits for: until the generation is no longer this one.
    Barrier* waits_for;
    unsigned waits_generation;
    // Its asynchronous copies under way, and the number of the group that is open.
    std::vector<struct Copy>* copies;
    unsigned group;
};

struct State {
    Fiber* fiber = nullptr;
    dim3 block, grid, block_dim;
    Barrier barrier;
    unsigned char* dynamic = nullptr;
    void (*body)(void*) = nullptr;
    void* body_data = nullptr;
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
};
static thread_local State state;

#if defined(__x86_64__)
extern "C" void lehr_emu_switch(void** save, void* load);
asm(R"(
.text
.weak lehr_emu_switch
.hidden lehr_emu_switch
.type lehr_emu_switch, @function
lehr_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size lehr_emu_switch, . - lehr_emu_switch
)");
static inline void to_scheduler() { lehr_emu_switch(&state.fiber->stack_pointer, state.scheduler); }
static inline void to_fiber(Fiber* fiber) {
    state.fiber = fiber;
    lehr_emu_switch(&state.scheduler, fiber->stack_pointer);
}
#else
static inline void to_scheduler() { swapcontext(&state.fiber->context, &state.scheduler); }
static inline void to_fiber(Fiber* fiber) {
    state.fiber = fiber;
    swapcontext(&state.scheduler, &fiber->context);
}
#endif

[[noreturn]] static inline void fail(const char* what) {
    std::fprintf(stderr, "emulated kernel: %s (block %u,%u,%u)\n", what, state.block.x,
        state.block.y, state.block.z);
    std::abort();
}

static inline void release_if_complete(Barrier& barrier) {
    if (barrier.members > 0 && barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        barrier.generation++;
    }
}

static inline void wait(Barrier& barrier) {
    Fiber* fiber = state.fiber;
    unsigned generation = barrier.generation;
    barrier.arrived++;
    release_if_complete(barrier);
    if (barrier.generation != generation) return;
    fiber->waits_for = &barrier;
    fiber->waits_generation = generation;
    to_scheduler();
}

static inline void check_copies();
static inline void fiber_main() {
    state.body(state.body_data);
    check_copies();
    Fiber* fiber = state.fiber;
    fiber->done = true;
    // Threads that have ended no longer count at barriers.
    fiber->warp->barrier.members--;
    release_if_complete(fiber->warp->barrier);
    state.barrier.members--;
    release_if_complete(state.barrier);
    to_scheduler();
    fail("an ended thread went on");
}

static inline std::vector<struct Copy>* new_copies();
static const size_t STACK_BYTES = 256 << 10;
static const unsigned THREADS_MAX = 1024;

static inline void run(dim3 grid, dim3 block_dim, size_t shared_bytes, void (*body)(void*),
    void* data) {
    static thread_local unsigned char* stacks = nullptr;
    static thread_local Fiber* fibers = nullptr;
    static thread_local Warp* warps = nullptr;
    if (!stacks) {
        stacks = (unsigned char*)mmap(nullptr, STACK_BYTES * THREADS_MAX, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) fail("no room for stacks");
        fibers = new Fiber[THREADS_MAX]();
        warps = new Warp[THREADS_MAX / 32];
    }
    const unsigned n = block_dim.x * block_dim.y * block_dim.z;
    if (n == 0 || n > THREADS_MAX) fail("a block has 1 to 1024 threads");
    if (shared_bytes > 227 << 10) fail("a block has at most 227 KiB of shared memory");
    const char* order = std::getenv("LEHR_EMULATOR_ORDER");
    const bool reverse = order && !std::strcmp(order, "reverse");
    unsigned char* dynamic =
        (unsigned char*)std::aligned_alloc(128, (shared_bytes + 128) / 128 * 128);
    state.grid = grid, state.block_dim = block_dim, state.dynamic = dynamic;
    state.body = body, state.body_data = data;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                state.block = {x, y, z};
                state.barrier = Barrier{0, 0, n};
                // What was not written before it is read stands out.
                std::memset(dynamic, 0xff, shared_bytes);
                for (unsigned w = 0; w * 32 < n; w++)
                    warps[w].barrier = Barrier{0, 0, std::min(32u, n - w * 32)};
                for (unsigned i = 0; i < n; i++) {
                    Fiber& f = fibers[i];
                    f.thread = {i % block_dim.x, i / block_dim.x % block_dim.y,
                        i / (block_dim.x * block_dim.y)};
                    f.lane = i % 32, f.warp = &warps[i / 32], f.done = false, f.waits_for = nullptr;
                    if (!f.copies) f.copies = new_copies();
                    f.group = 0;
                    unsigned char* top = stacks + STACK_BYTES * (i + 1);
#if defined(__x86_64__)
                    // What the switch pops: six registers and the address it returns to. The stack
                    // is then as after a call.
                    void** sp = (void**)(top - 16);
                    sp[0] = (void*)fiber_main;
                    for (int r = 1; r <= 6; r++) sp[-r] = nullptr;
                    f.stack_pointer = sp - 6;
#else
                    getcontext(&f.context);
                    f.context.uc_stack.ss_sp = top - STACK_BYTES;
                    f.context.uc_stack.ss_size = STACK_BYTES;
                    f.context.uc_link = nullptr;
                    makecontext(&f.context, fiber_main, 0);
#endif
                }
                for (unsigned left = n; left > 0;) {
                    bool moved = false;
                    for (unsigned k = 0; k < n; k++) {
                        Fiber& f = fibers[reverse ? n - 1 - k : k];
                        if (f.done) continue;
                        if (f.waits_for && f.waits_for->generation == f.waits_generation) continue;
                        f.waits_for = nullptr;
                        moved = true;
                        to_fiber(&f);
                        if (f.done) left--;
                    }
                    if (!moved) fail("deadlock: threads wait at different barriers");
                }
            }
    std::free(dynamic);
}

// Calls a kernel with the values that `args` points at, one after another.
template <class... A, size_t... I>
static inline void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)args[I]...);
}
template <class... A>
static inline void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block,
    size_t shared_bytes, void** args) {
    struct Data {
        void (*kernel)(A...);
        void** args;
    } data = {kernel, args};
    auto body = [](void* p) {
        Data* data = (Data*)p;
        call(data->kernel, data->args, std::index_sequence_for<A...>{});
    };
    run({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, body, &data);
}

static inline void* dynamic_shared() { return state.dynamic; }

// Every lane gives a value and gets that of lane `from(lane)`.
template <class V>
static inline const V* exchange(const V& value) {
    static_assert(sizeof(V) <= 32, "a slot has 32 bytes");
    Fiber* fiber = state.fiber;
    Warp* warp = fiber->warp;
    unsigned which = warp->barrier.generation & 1;
    std::memcpy(warp->slots[which][fiber->lane], &value, sizeof(V));
    wait(warp->barrier);
    return (const V*)warp->slots[which];
}
template <class V>
static inline V slot(const V* slots, int lane) {
    V value;
    std::memcpy(&value, (const unsigned char*)slots + 32 * lane, sizeof(V));
    return value;
}

static inline uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    float y;
    if (exponent == 31) {
        uint32_t bits = sign | 0x7f800000 | fraction << 13;
        std::memcpy(&y, &bits, 4);
        return y;
    }
    y = exponent ? std::ldexp((float)(1024 + fraction), (int)exponent - 25)
        : std::ldexp((float)fraction, -24);
    return sign ? -y : y;
}
static inline uint16_t f32_to_f16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    if (x != x) return 0x7fff;
    float a = std::fabs(x);
    if (a >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(a, &exponent);
    // Half of the smallest step at this size decides, as nearbyint rounds: ties to even.
    int step = std::max(exponent - 11, -24);
    float scaled = std::nearbyint(std::ldexp(a, -step));
    float rounded = std::ldexp(scaled, step);
    if (rounded == 0) return sign;
    std::frexp(rounded, &exponent);
    if (exponent - 1 < -14) return sign | (uint16_t)std::ldexp(rounded, 24);
    uint16_t fraction = (uint16_t)(std::ldexp(rounded, 11 - exponent) - 1024);
    return sign | (uint16_t)((exponent - 1 + 15) << 10) | fraction;
}

// The fragments of mma.cuh.
struct FragmentA {
    float v[4][2];
};
struct FragmentB {
    float v[2][2];
};
static inline void mma_16816(float c[4], const float a[4][2], const float b[2][2]) {
    FragmentA mine_a;
    FragmentB mine_b;
    std::memcpy(&mine_a, a, sizeof mine_a);
    std::memcpy(&mine_b, b, sizeof mine_b);
    float as[16][16], bs[16][8];
    const FragmentA* all_a = exchange(mine_a);
    for (int lane = 0; lane < 32; lane++) {
        FragmentA f = slot(all_a, lane);
        int group = lane / 4, pair = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++) as[group + i % 2 * 8][2 * pair + i / 2 * 8 + j] = f.v[i][j];
    }
    const FragmentB* all_b = exchange(mine_b);
    for (int lane = 0; lane < 32; lane++) {
        FragmentB f = slot(all_b, lane);
        int group = lane / 4, pair = lane % 4;
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) bs[2 * pair + i * 8 + j][group] = f.v[i][j];
    }
    int lane = state.fiber->lane, group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = group + i / 2 * 8, column = 2 * pair + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) sum += as[row][k] * bs[k][column];
        c[i] = sum;
    }
}
static inline void ldmatrix(unsigned* r, const void* row, int n, bool trans) {
    const void* const* rows = exchange(row);
    int lane = state.fiber->lane, group = lane / 4, pair = lane % 4;
    for (int i = 0; i < n; i++) {
        uint16_t halves[2];
        for (int j = 0; j < 2; j++) {
            int at_row = trans ? 2 * pair + j : group, at_column = trans ? group : 2 * pair + j;
            const uint16_t* p = (const uint16_t*)slot(rows, 8 * i + at_row);
            if ((uintptr_t)p % 16) fail("a row of ldmatrix starts on a multiple of 16 bytes");
            halves[j] = p[at_column];
        }
        r[i] = halves[0] | (unsigned)halves[1] << 16;
    }
    // Nobody writes the rows before all have read them, as on a GPU, where the warp is in step.
    exchange(0);
}
// Asynchronous copies land as late as a GPU may let them: when their thread waits for their group.
// A missing wait shows.
struct Copy {
    void* to;
    const void* from;
    // Bytes to write, and how many of them are copied; the others become 0.
    int n, n_valid;
    unsigned group;
};
static inline std::vector<Copy>* new_copies() { return new std::vector<Copy>; }
static inline void copy_later(void* to, const void* from, int n_valid, int n) {
    if ((uintptr_t)to % n || (n_valid && (uintptr_t)from % n))
        fail("an asynchronous copy starts on a multiple of its size");
    state.fiber->copies->push_back({to, from, n, n_valid, state.fiber->group});
}
static inline void copy_16(void* to, const void* from, bool valid) {
    copy_later(to, from, valid ? 16 : 0, 16);
}
static inline void copy_8(void* to, const void* from, bool valid) {
    copy_later(to, from, valid ? 8 : 0, 8);
}
static inline void copy_commit() { state.fiber->group++; }
// Until at most `n_open` groups of this thread are under way.
static inline void copy_wait(unsigned n_open) {
    std::vector<Copy>& copies = *state.fiber->copies;
    size_t done = 0;
    for (; done < copies.size() && copies[done].group + n_open < state.fiber->group; done++) {
        const Copy& copy = copies[done];
        std::memset(copy.to, 0, copy.n);
        std::memcpy(copy.to, copy.from, copy.n_valid);
    }
    copies.erase(copies.begin(), copies.begin() + done);
}
static inline void check_copies() {
    if (!state.fiber->copies->empty()) fail("a thread ended with copies it did not wait for");
}

}  // namespace emu

#define threadIdx (emu::state.fiber->thread)
#define blockIdx (emu::state.block)
#define blockDim (emu::state.block_dim)
#define gridDim (emu::state.grid)

static inline void __syncthreads() { emu::wait(emu::state.barrier); }
static inline void __syncwarp(unsigned = ~0u) { emu::exchange(0); }
template <class V>
static inline V __shfl_sync(unsigned, V value, int from, int width = 32) {
    const V* slots = emu::exchange(value);
    int lane = emu::state.fiber->lane;
    return emu::slot(slots, lane / width * width + (from & (width - 1)));
}
template <class V>
static inline V __shfl_xor_sync(unsigned, V value, int mask, int width = 32) {
    const V* slots = emu::exchange(value);
    int lane = emu::state.fiber->lane, other = lane ^ mask;
    return emu::slot(slots, other / width == lane / width ? other : lane);
}
template <class V>
static inline V __shfl_down_sync(unsigned, V value, int delta, int width = 32) {
    const V* slots = emu::exchange(value);
    int lane = emu::state.fiber->lane, other = lane + delta;
    return emu::slot(slots, other / width == lane / width ? other : lane);
}
template <class V>
static inline V __shfl_up_sync(unsigned, V value, int delta, int width = 32) {
    const V* slots = emu::exchange(value);
    int lane = emu::state.fiber->lane, other = lane - delta;
    return emu::slot(slots, other >= lane / width * width ? other : lane);
}
static inline unsigned __ballot_sync(unsigned, int predicate) {
    const int* slots = emu::exchange(predicate);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= (emu::slot(slots, lane) != 0 ? 1u : 0u) << lane;
    return bits;
}
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, !predicate) == 0;
}

static inline float __uint_as_float(unsigned x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
static inline unsigned __float_as_uint(float x) {
    unsigned y;
    std::memcpy(&y, &x, 4);
    return y;
}
static inline float __int_as_float(int x) { return __uint_as_float((unsigned)x); }
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
// The C library declares functions of these names that it does not have.
#define __expf(x) std::exp((float)(x))
#define __logf(x) std::log((float)(x))
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline void sincospi(double x, double* sine, double* cosine) {
    *sine = std::sin(x * 3.14159265358979323846), *cosine = std::cos(x * 3.14159265358979323846);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
template <class V>
static inline V __ldg(const V* p) { return *p; }
// Byte i of the result is the byte of (y, x) that nibble i of `selector` names.
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned z = 0;
    for (int i = 0; i < 4; i++)
        z |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return z;
}
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++)
        c += (int)(signed char)(a >> 8 * i) * (int)(signed char)(b >> 8 * i);
    return c;
}
static inline float atomicAdd(float* p, float x) {
    float old = *p;
    *p += x;
    return old;
}
static inline int atomicAdd(int* p, int x) {
    int old = *p;
    *p += x;
    return old;
}
static inline unsigned atomicAdd(unsigned* p, unsigned x) {
    unsigned old = *p;
    *p += x;
    return old;
}
static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) {
    unsigned long long old = *p;
    *p += x;
    return old;
}
static inline int atomicMax(int* p, int x) {
    int old = *p;
    *p = std::max(old, x);
    return old;
}
static inline void __threadfence() {}
using std::max;
using std::min;
