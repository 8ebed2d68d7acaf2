// A smooth bound on logits. Both kernels: n elements, any one-dimensional grid and block; best one
// pack of LANES to a thread.
#include "common.cuh"

// y = cap tanh(x / cap). x, y [n] T; y may be x.
extern "C" __global__ void softcap_forward(const T* x, T* y, i64 n, float cap) {
    const float inverse = 1.0f / cap;
    const i64 n_packs = n / LANES;
    for (i64 p = thread_index(); p < n_packs; p += n_threads()) {
        Bits v = load_bits_once(x + p * LANES);
        PackT out;
#pragma unroll
        for (int i = 0; i < LANES; i++)
            out.v[i] = from_f32<T>(cap * tanh_for_t(element(v, i) * inverse));
        store_pack(y + p * LANES, out);
    }
    for (i64 i = n_packs * LANES + thread_index(); i < n; i += n_threads())
        y[i] = from_f32<T>(cap * tanh_for_t(to_f32(x[i]) * inverse));
}

// dx (+)= dy (1 - (y / cap)^2). y, dy, dx [n] T; dx may be dy.
extern "C" __global__ void softcap_backward(const T* y, const T* dy, T* dx, i64 n, float cap,
    int accumulate) {
    const float inverse = 1.0f / cap;
    const i64 n_packs = n / LANES;
    for (i64 p = thread_index(); p < n_packs; p += n_threads()) {
        Bits ys = load_bits_once(y + p * LANES), dys = load_bits_once(dy + p * LANES), added = {};
        if (accumulate) added = load_bits_once(dx + p * LANES);
        PackT out;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float t = element(ys, i) * inverse;
            out.v[i] = from_f32<T>(element(added, i) + element(dys, i) * (1.0f - t * t));
        }
        store_pack(dx + p * LANES, out);
    }
    for (i64 i = n_packs * LANES + thread_index(); i < n; i += n_threads()) {
        float t = to_f32(y[i]) * inverse, value = to_f32(dy[i]) * (1.0f - t * t);
        dx[i] = from_f32<T>(accumulate ? to_f32(dx[i]) + value : value);
    }
}
