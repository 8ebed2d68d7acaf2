// Conversions between f32 and the 16-bit types, rounded to nearest with ties to even. All kernels
// here: grid and block of one dimension, any grid, at most 256 threads; tensors start on 16 bytes;
// no shared memory.
//
// Between types of different sizes a pack is 4 elements: then neighbouring threads touch
// neighbouring addresses on both sides.
#include "common.cuh"

// y = x for n elements, f32 to T.
extern "C" __global__ void __launch_bounds__(256, 4) cast_from_f32(const float* x, T* y, i64 n) {
    auto step = [=](i64 i, auto x) {
        auto out = pack_like<T>(x);
        for (int k = 0; k < x.N_ELEMENTS; k++) out.v[k] = from_f32<T>(x.v[k]);
        store_pack(y + i, out);
    };
    elementwise<4, 4>(n, step, x);
}

// y (+)= x for n elements, T to f32.
extern "C" __global__ void __launch_bounds__(256, 4) cast_to_f32(const T* x, float* y, i64 n,
    int accumulate) {
    if (accumulate) {
        auto step = [=](i64 i, auto x, auto old) {
            for (int k = 0; k < x.N_ELEMENTS; k++) old.v[k] += to_f32(x.v[k]);
            store_pack(y + i, old);
        };
        elementwise<4, 2>(n, step, x, (const float*)y);
    } else {
        auto step = [=](i64 i, auto x) {
            auto out = pack_like<float>(x);
            for (int k = 0; k < x.N_ELEMENTS; k++) out.v[k] = to_f32(x.v[k]);
            store_pack(y + i, out);
        };
        elementwise<4, 4>(n, step, x);
    }
}

// y = x for n elements: exact to f32, then rounded once. Infinity where f16 ends. y may be at x.
extern "C" __global__ void __launch_bounds__(256, 4) cast_bf16_to_f16(const bf16* x, f16* y,
    i64 n) {
    auto step = [=](i64 i, auto x) {
        auto out = pack_like<f16>(x);
        for (int k = 0; k < x.N_ELEMENTS; k++) out.v[k] = from_f32<f16>(to_f32(x.v[k]));
        store_pack(y + i, out);
    };
    elementwise<8, 2>(n, step, x);
}
extern "C" __global__ void __launch_bounds__(256, 4) cast_f16_to_bf16(const f16* x, bf16* y,
    i64 n) {
    auto step = [=](i64 i, auto x) {
        auto out = pack_like<bf16>(x);
        for (int k = 0; k < x.N_ELEMENTS; k++) out.v[k] = from_f32<bf16>(to_f32(x.v[k]));
        store_pack(y + i, out);
    };
    elementwise<8, 2>(n, step, x);
}
