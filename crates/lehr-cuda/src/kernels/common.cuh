// What all kernels share: element types, packs of 16 bytes, reductions in a fixed order, Philox.
//
// A file of kernels is compiled once per element type T, chosen by LEHR_T: 0 = f32, 1 = bf16, 2 =
// f16. It includes no header of CUDA's, because NVRTC finds none on a machine that has only the
// driver. With LEHR_EMULATED it is ordinary C++ (emulator/shim.h), so everything that is PTX has a
// second form here.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define DEVICE __device__ __forceinline__
#ifdef LEHR_EMULATED
// Dynamic shared memory, aligned to 16 bytes.
#define DYNAMIC_SHARED(type, name) type* name = (type*)emu::dynamic_shared()
#else
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char lehr_shared_mem[]; \
    type* name = (type*)lehr_shared_mem
#endif

// The upper half of an f32.
struct bf16 {
    u16 bits;
};
// 16-bit IEEE float.
struct f16 {
    u16 bits;
};

#if LEHR_T == 0
typedef float T;
#elif LEHR_T == 1
typedef bf16 T;
#elif LEHR_T == 2
typedef f16 T;
#else
#error "LEHR_T is 0 (f32), 1 (bf16) or 2 (f16)"
#endif

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_f32(f16 x) {
#ifdef LEHR_EMULATED
    return emu::f16_to_f32(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// Rounded to nearest, ties to even.
DEVICE void round_to(float x, float& y) { y = x; }
DEVICE void round_to(float x, bf16& y) {
#ifdef LEHR_EMULATED
    y.bits = emu::f32_to_bf16(x);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
}
DEVICE void round_to(float x, f16& y) {
#ifdef LEHR_EMULATED
    y.bits = emu::f32_to_f16(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
}
template <class E>
DEVICE E from_f32(float x) {
    E y;
    round_to(x, y);
    return y;
}

// N neighbours, moved at once: N * sizeof(E) is 2, 4, 8 or 16, and the address a multiple of that.
template <class E, int N>
struct __align__(N * sizeof(E)) Pack {
    static const int N_ELEMENTS = N;
    E v[N];
};
// Elements of T in 16 bytes.
#define LANES (16 / (int)sizeof(T))
typedef Pack<T, LANES> PackT;
template <class E, int N>
DEVICE Pack<E, N> load_pack(const E* p) {
    return *(const Pack<E, N>*)p;
}
template <class E, int N>
DEVICE void store_pack(E* p, const Pack<E, N>& pack) {
    *(Pack<E, N>*)p = pack;
}
// N floats between memory and registers, N = 1 or whole packs of 4, then at an address of 16 bytes.
template <int N>
DEVICE void load_floats(const float* from, float to[N]) {
    if (N == 1) to[0] = from[0];
#pragma unroll
    for (int i = 0; i + 3 < N; i += 4) {
        Pack<float, 4> pack = load_pack<float, 4>(from + i);
#pragma unroll
        for (int j = 0; j < 4; j++) to[i + j] = pack.v[j];
    }
}
template <int N>
DEVICE void store_floats(float* to, const float from[N]) {
    if (N == 1) to[0] = from[0];
#pragma unroll
    for (int i = 0; i + 3 < N; i += 4)
        store_pack(to + i, Pack<float, 4>{{from[i], from[i + 1], from[i + 2], from[i + 3]}});
}

// LANES elements of T in four registers: what a thread holds of a row. Unpacked 16-bit elements
// would take twice as many.
struct __align__(16) Bits {
    u32 v[4];
};
DEVICE Bits load_bits(const T* p) {
    Pack<u32, 4> pack = load_pack<u32, 4>((const u32*)p);
    return Bits{{pack.v[0], pack.v[1], pack.v[2], pack.v[3]}};
}
// For memory that is read only once: it does not push out of the first-level cache what is read
// often, such as weights.
DEVICE Bits load_bits_once(const T* p) {
#ifdef LEHR_EMULATED
    return load_bits(p);
#else
    Bits b;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b.v[0]), "=r"(b.v[1]), "=r"(b.v[2]), "=r"(b.v[3])
                 : "l"(p));
    return b;
#endif
}
// Element i, a constant, as f32.
DEVICE float element(const Bits& b, int i) {
#if LEHR_T == 0
    return __uint_as_float(b.v[i]);
#else
    T x;
    x.bits = (u16)(b.v[i / 2] >> i % 2 * 16);
    return to_f32(x);
#endif
}
// a + b, rounded to T.
DEVICE Bits add_rounded(const Bits& a, const Bits& b) {
    Bits sum;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if LEHR_T == 0
        sum.v[i] = __float_as_uint(element(a, i) + element(b, i));
#else
        T low = from_f32<T>(element(a, 2 * i) + element(b, 2 * i)),
            high = from_f32<T>(element(a, 2 * i + 1) + element(b, 2 * i + 1));
        sum.v[i] = (u32)low.bits | (u32)high.bits << 16;
#endif
    }
    return sum;
}
// Makes the compiler unpack the elements again where they are used next, instead of holding them
// unpacked until then.
DEVICE void stay_packed(Bits& b) {
#ifndef LEHR_EMULATED
    asm volatile("" : "+r"(b.v[0]), "+r"(b.v[1]), "+r"(b.v[2]), "+r"(b.v[3]));
#endif
}
// Whether rows of d elements of T, in memory that starts on 16 bytes, consist of whole packs.
DEVICE bool is_packed(int d) { return d % LANES == 0; }

#define WARP 32
#define FULL_MASK 0xffffffffu

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(FULL_MASK, x, lane);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lane));
    return x;
}
// Sum over the block, the same bits in every thread. The block is whole warps, at most 32;
// `scratch` holds 33 floats of shared memory and may be used again at once.
DEVICE float block_sum(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    if (warp == 0) {
        x = warp_sum(lane < n_warps ? scratch[lane] : 0.0f);
        if (lane == 0) scratch[32] = x;
    }
    __syncthreads();
    x = scratch[32];
    __syncthreads();
    return x;
}
DEVICE float block_max(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    if (warp == 0) {
        x = warp_max(lane < n_warps ? scratch[lane] : -INFINITY);
        if (lane == 0) scratch[32] = x;
    }
    __syncthreads();
    x = scratch[32];
    __syncthreads();
    return x;
}

// Rows in a block of two dimensions: threadIdx.y is the row, threadIdx.x counts the threads of a
// row. Either blockDim.x is a power of two up to 32 and the block whole warps, or blockDim.x is
// whole warps and blockDim.y 1. All threads of a row call and all get the same bits. `scratch`
// holds 32 floats of shared memory, in use until the next barrier: rows one after another take
// turns with two.
DEVICE float row_sum(float x, float* scratch) {
    if (blockDim.x <= WARP) {
        for (int lane = blockDim.x / 2; lane > 0; lane >>= 1)
            x += __shfl_xor_sync(FULL_MASK, x, lane);
        return x;
    }
    int lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < n_warps ? scratch[lane] : 0.0f);
}
DEVICE float row_max(float x, float* scratch) {
    if (blockDim.x <= WARP) {
        for (int lane = blockDim.x / 2; lane > 0; lane >>= 1)
            x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lane));
        return x;
    }
    int lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(lane < n_warps ? scratch[lane] : -INFINITY);
}

// out[c] (+)= sum over b of partials[b, c], partials [n_blocks, d], in a fixed order. Block (32,
// 32), grid ceil(d / 32).
DEVICE void sum_rows_of_blocks(const float* partials, float* out, int n_blocks, int d,
    int accumulate) {
    __shared__ float sums[32][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < d) {
#pragma unroll 4
        for (int b = threadIdx.y; b < n_blocks; b += 32) sum += partials[(i64)b * d + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < d) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) total += sums[i][threadIdx.x];
        out[column] = accumulate ? out[column] + total : total;
    }
}

// Copies a row of d elements with the threads of threadIdx.x; both rows start on 16 bytes if d is
// whole packs.
DEVICE void copy_row(T* to, const T* from, int d) {
    if (!is_packed(d)) {
        for (int c = threadIdx.x; c < d; c += blockDim.x) to[c] = from[c];
        return;
    }
    const int step = blockDim.x * LANES;
    for (int first = threadIdx.x * LANES; first < d; first += 4 * step) {
        Bits v[4] = {};
#pragma unroll
        for (int p = 0; p < 4; p++) {
            if (first + p * step < d) v[p] = load_bits_once(from + first + p * step);
        }
#pragma unroll
        for (int p = 0; p < 4; p++) {
            if (first + p * step < d) *(Bits*)(to + first + p * step) = v[p];
        }
    }
}

// Where 16-bit elements hide the error, the exponential and the tanh are the fast ones.
DEVICE float exp_for_t(float x) { return sizeof(T) == 4 ? expf(x) : __expf(x); }
DEVICE float tanh_for_t(float x) {
    if (sizeof(T) == 4) return tanhf(x);
    // The difference of two numbers near 1 has no digits left near 0: there the series.
    float square = x * x;
    float near = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f)));
    float far = 1.0f - __fdividef(2.0f, __expf(2.0f * x) + 1.0f);
    return fabsf(x) < 0.2f ? near : far;
}

// The sum over the block in f64, for thread 0 alone; `scratch` holds a double for each warp and may
// be used again at once.
DEVICE double block_sum(double x, double* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) x += __shfl_xor_sync(FULL_MASK, x, other);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
        x = 0;
#pragma unroll 1
        for (int i = 0; i < n_warps; i++) x += scratch[i];
    }
    __syncthreads();
    return x;
}

// The index of this thread in a grid of one dimension, and the number of threads:
// `for (i64 i = thread_index(); i < n; i += n_threads())` visits every element once.
DEVICE i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE i64 n_threads() { return (i64)gridDim.x * blockDim.x; }

// f(i, packs...) with one pack of N elements of each tensor in `in`, at pack i and at UNROLL - 1
// more, `step` packs apart. All packs are loaded before f writes any, for that could be what is
// read next, as far as the compiler knows.
template <int N, int UNROLL, class F, class... In>
DEVICE void elementwise_step(i64 i, i64 step, const F& f, const In*... in) {
    auto next = [&](auto... packs) {
        if constexpr (UNROLL > 1) elementwise_step<N, UNROLL - 1>(i + step, step, f, in...);
        f(i * N, packs...);
    };
    next(load_pack<In, N>(in + i * N)...);
}
// Elementwise loops over n elements, shared by `n_threads` threads; this is number
// `thread`. Calls f(i, packs...) with the packs of N elements, from element i on, of the tensors in
// `in`, and for the last n % N elements with packs of one. f may write to the places it was given.
// UNROLL packs of each tensor are loaded ahead: 1 for two tensors or more, 2 or 4 for one.
template <int N, int UNROLL, class F, class... In>
DEVICE void elementwise_by(i64 thread, i64 n_threads, i64 n, const F& f, const In*... in) {
    i64 n_packs = n / N, i = thread;
    if constexpr (UNROLL > 1) {
#pragma unroll 1
        for (; i + (UNROLL - 1) * n_threads < n_packs; i += UNROLL * n_threads)
            elementwise_step<N, UNROLL>(i, n_threads, f, in...);
    }
#pragma unroll 1
    for (; i < n_packs; i += n_threads) elementwise_step<N, 1>(i, n_threads, f, in...);
    if constexpr (N > 1) {
#pragma unroll 1
        for (i64 k = n_packs * N + thread; k < n; k += n_threads) f(k, load_pack<In, 1>(in + k)...);
    }
}
// The same with all threads of a grid of one dimension; the tensors start on 16 bytes.
template <int N, int UNROLL, class F, class... In>
DEVICE void elementwise(i64 n, const F& f, const In*... in) {
    elementwise_by<N, UNROLL>(thread_index(), n_threads(), n, f, in...);
}
// A pack of E as long as `like`, to be filled.
template <class E, class P>
DEVICE Pack<E, P::N_ELEMENTS> pack_like(const P&) {
    return Pack<E, P::N_ELEMENTS>();
}

// Philox 4x32-10, as in random.rs: block `index` of the stream.
DEVICE void philox(u64 seed, u64 stream, u64 index, u32 out[4]) {
    u32 c0 = (u32)index, c1 = (u32)(index >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)c0 * 0xD2511F53u, b = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(b >> 32) ^ c1 ^ k0;
        c2 = (u32)(a >> 32) ^ c3 ^ k1;
        c1 = (u32)b;
        c3 = (u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// Moves packs of N elements: pack i from `from(i)` to `to(i)`, for n packs. Two loads are under way
// at once.
template <int N, class From, class To>
DEVICE void move_packs(i64 n, const From& from, const To& to) {
    i64 i = thread_index(), step = n_threads();
#pragma unroll 1
    for (; i + step < n; i += 2 * step) {
        auto first = load_pack<T, N>(from(i)), second = load_pack<T, N>(from(i + step));
        store_pack(to(i), first);
        store_pack(to(i + step), second);
    }
    if (i < n) store_pack(to(i), load_pack<T, N>(from(i)));
}
