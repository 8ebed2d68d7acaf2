// The choice of the next token of each text of a batch, without a sort of the vocabulary.
//
// Candidates are ordered from the largest logit to the smallest, equals by id. Top-k, top-p and the
// draw each look for the first candidate of that order with which the number of candidates, or the
// sum of their weights exp((l - top) / temperature), reaches a target; top-p and the draw then only
// need the sum of the weights of what is kept. Weights are integers in units of 2^-40, so their
// sums are exact and do not depend on the order of threads.
//
//   1. sample_best: finds the largest logit `top` of each part of a row.
//   2. sample_bins: puts every logit into one of 2048 bins by (top - l) / temperature, 64 bins to a
//      power of e, and keeps count and sum of each bin. It also sums the weights that pass min-p:
//      those are the first candidates of the order.
//   3. sample_pick: finds a target's bin by running sums over the bins. If the bins up to it hold
//      at most 2048 candidates, it gathers, sorts and searches those; the next target is mostly
//      among the same. Otherwise it gathers the target's bin alone. If even that bin has too many
//      (as with many equal logits), it first cuts the bin by 8 more bits of (logit, id) per pass.
//
// A row of V logits is read three times with top-k or top-p, at most once more for every target
// beyond the gathered bins.
#include "sample.cuh"

// The most candidates that are sorted.
#define LIST 2048

// bests[row, part] = the largest of the first n logits of a part of a row of `logits` [B, stride],
// after penalties: the lowest id of equals, never NaN. A part with a NaN counts as infinite, which
// sample_pick reports. It also sets the row's sums to 0 for
// sample_bins. Grid (parts, B), at most 64 parts; block 256.
extern "C" __global__ void __launch_bounds__(256)
    sample_best(const T* logits, int stride, int n, const Settings* settings, const u32* seen,
        Best* bests, Sums* sums) {
    int row = blockIdx.y;
    u64* words = (u64*)(sums + row);
    int n_words = (int)(sizeof(Sums) / sizeof(u64));
    for (int i = thread_index(); i < n_words; i += n_threads()) words[i] = 0;
    __shared__ u32 n_nan;
    if (threadIdx.x == 0) n_nan = 0;
    __syncthreads();
    Best best = {-INFINITY, NO_INDEX};
    bool is_nan = false;
    Row of = row_of(logits, row, stride, n, settings[row], seen, 0.0f);
    each_logit_of_part<2>(of, n, [&](int id, float l) {
        take_better(best, l, id);
        is_nan |= l != l;
    });
    if (is_nan) atomicAdd(&n_nan, 1u);
    best = block_best(best);
    __syncthreads();
    if (n_nan) best.value = INFINITY;
    if (threadIdx.x == 0) bests[row * gridDim.x + blockIdx.x] = best;
}

// Counts and sums of the bins of each row, and the sum of the weights of at least min_p. Grid and
// block as of sample_best, whose results it reads.
extern "C" __global__ void __launch_bounds__(256)
    sample_bins(const T* logits, int stride, int n, const Settings* settings, const u32* seen,
        const Best* bests, Sums* sums) {
    __shared__ u32 counts[BINS], low[BINS], high[BINS];
    __shared__ u32 likely_low, likely_high, shared_nan;
    int row = blockIdx.y;
    Settings s = settings[row];
    if (is_greedy(s)) return;
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) counts[i] = low[i] = high[i] = 0;
    if (threadIdx.x == 0) likely_low = likely_high = shared_nan = 0;
    float top = best_of_parts(bests + row * gridDim.x, gridDim.x).value;
    __syncthreads();
    Row of = row_of(logits, row, stride, n, s, seen, top);
    u64 likely = 0;
    u32 n_nan = 0;
    each_logit_of_part<1>(of, n, [&](int, float l) {
        float weight = weight_of(of, l);
        u64 units = to_units(weight);
        int bin = bin_of(of, l);
        atomicAdd(&counts[bin], 1u);
        if (units) add_in_halves(&low[bin], &high[bin], units);
        likely += weight >= s.min_p ? units : 0;
        n_nan += weight != weight;
    });
#pragma unroll
    for (int other = 16; other > 0; other >>= 1)
        likely += __shfl_xor_sync(FULL_MASK, likely, other);
    if (threadIdx.x % WARP == 0) add_in_halves(&likely_low, &likely_high, likely);
    if (n_nan) atomicAdd(&shared_nan, n_nan);
    __syncthreads();
    Sums* all = sums + row;
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
        u64 weight = (u64)high[i] << 32 | low[i];
        if (counts[i]) atomicAdd(&all->counts[i], counts[i]);
        if (weight) atomicAdd(&all->weights[i], weight);
    }
    if (threadIdx.x == 0) {
        atomicAdd(&all->likely, (u64)likely_high << 32 | likely_low);
        if (shared_nan) atomicAdd(&all->n_nan, (u64)shared_nan);
    }
}

// The sum over all threads before this one; `total` is over all. The block is whole warps.
DEVICE Sum sum_before(Sum mine, Sum& total) {
    __shared__ u32 counts[32];
    __shared__ u64 weights[32];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    Sum sum = mine;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        u32 count = __shfl_up_sync(FULL_MASK, sum.count, distance);
        u64 weight = __shfl_up_sync(FULL_MASK, sum.weight, distance);
        if (lane >= distance) sum = sum + Sum{count, weight};
    }
    if (lane == WARP - 1) {
        counts[warp] = sum.count;
        weights[warp] = sum.weight;
    }
    __syncthreads();
    Sum before = {0, 0};
    total = {0, 0};
#pragma unroll 1
    for (int i = 0; i < n_warps; i++) {
        if (i == warp) before = total;
        total = total + Sum{counts[i], weights[i]};
    }
    __syncthreads();
    return before + Sum{sum.count - mine.count, sum.weight - mine.weight};
}
// A place in a list: the sums before it and with it. Index -1: there is none.
struct Place {
    int index;
    Sum before, with;
};
// The first of n with which the sums, beginning at `start`, reach a target; sum_of(i) is that of i
// alone. For all threads.
template <class F>
DEVICE Place first_to_reach(int n, Sum start, Sum target, const F& sum_of) {
    __shared__ Place found;
    int each = (n - 1) / (int)blockDim.x + 1, first = (int)threadIdx.x * each,
        end = min(first + each, n);
    Sum mine = {0, 0}, total;
#pragma unroll 1
    for (int i = first; i < end; i++) mine = mine + sum_of(i);
    if (threadIdx.x == 0) found.index = -1;
    Sum before = start + sum_before(mine, total);
#pragma unroll 1
    for (int i = first; i < end; i++) {
        Sum with = before + sum_of(i);
        if (!reaches(before, target) && reaches(with, target)) found = {i, before, with};
        before = with;
    }
    __syncthreads();
    Place place = found;
    __syncthreads();
    return place;
}
// Sorts n numbers, at most LIST, in rising order.
DEVICE void sort_list(u64* list, int n) {
    int padded = 2;
    while (padded < n) padded *= 2;
    for (int i = n + threadIdx.x; i < padded; i += blockDim.x) list[i] = ~0ull;
    for (int size = 2; size <= padded; size *= 2) {
        for (int distance = size / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
                int a = pair / distance * distance * 2 + pair % distance, b = a + distance;
                u64 x = list[a], y = list[b];
                if ((x > y) == ((a & size) == 0)) {
                    list[a] = y;
                    list[b] = x;
                }
            }
        }
    }
    __syncthreads();
}

// What is gathered: the candidates of the bins from `first` to `last`, n of them; `start` is the
// sum of all before.
struct Gathered {
    int first, last, n;
    Sum start;
};
// Gathers and sorts the candidates of a bin and, if there is room, of all bins before it.
DEVICE Gathered gather(const Row& row, int n, Sum target, const Place& bin, u64* list) {
    __shared__ u32 counts[256], low[256], high[256];
    __shared__ int n_listed;
    Gathered to = {bin.index, bin.index, 0, bin.before};
    if (bin.with.count <= LIST) {
        to.first = 0;
        to.start = {0, 0};
    }
    u32 n_left = bin.with.count - to.start.count;
    // Candidates whose ranks begin with these bits.
    u64 prefix = 0;
    int n_bits = 0;
    auto is_in = [&](float l, u64 rank) {
        int bin = bin_of(row, l);
        return bin >= to.first && bin <= to.last
            && (n_bits == 0 || rank >> (64 - n_bits) == prefix);
    };
#pragma unroll 1
    while (n_left > LIST && n_bits < 64) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) counts[i] = low[i] = high[i] = 0;
        __syncthreads();
        each_logit<LANES, 1>(row, 0, n, [&](int id, float l) {
            u64 rank = rank_of(l, id);
            if (!is_in(l, rank)) return;
            int digit = (int)(rank >> (56 - n_bits)) & 255;
            atomicAdd(&counts[digit], 1u);
            add_in_halves(&low[digit], &high[digit], to_units(weight_of(row, l)));
        });
        __syncthreads();
        auto sum_of = [&](int i) { return Sum{counts[i], (u64)high[i] << 32 | low[i]}; };
        Place digit = first_to_reach(256, to.start, target, sum_of);
        if (digit.index < 0) break;
        prefix = prefix << 8 | (u32)digit.index;
        n_bits += 8;
        n_left = digit.with.count - digit.before.count;
        to.start = digit.before;
    }
    if (threadIdx.x == 0) n_listed = 0;
    __syncthreads();
    each_logit<LANES, 4>(row, 0, n, [&](int id, float l) {
        u64 rank = rank_of(l, id);
        if (!is_in(l, rank)) return;
        int slot = atomicAdd(&n_listed, 1);
        if (slot < LIST) list[slot] = rank;
    });
    __syncthreads();
    to.n = min(n_listed, LIST);
    // A part of a bin serves only this target.
    if (n_bits > 0) to.last = -1;
    sort_list(list, to.n);
    return to;
}

// ids[row] = the chosen token; counts it in `seen` [B, n]; n_drawn[row] rises if it was drawn. If a
// logit is NaN or the largest is infinite, probabilities are undefined: report[row] = -1, and some
// large logit's token is taken, because the next step looks it up. Else report[row] = ids[row].
// Grid B; block whole warps, at most 512 threads.
extern "C" __global__ void __launch_bounds__(512, 1)
    sample_pick(const T* logits, int stride, int n, const Settings* settings, u32* seen,
        const Best* bests, int n_parts, const Sums* sums, u64* n_drawn, int* ids,
        int* report) {
    __shared__ u64 weights[BINS], list[LIST];
    __shared__ u32 counts[BINS];
    int row = blockIdx.x;
    Settings s = settings[row];
    const Sums* of_row = sums + row;
    Best best = best_of_parts(bests + row * n_parts, n_parts);
    int id = best.index;
    if (!is_greedy(s) && of_row->n_nan == 0) {
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
            weights[i] = of_row->weights[i];
            counts[i] = of_row->counts[i];
        }
        __syncthreads();
        Row of = row_of(logits, row, stride, n, s, seen, best.value);
        auto bin_sum = [&](int i) { return Sum{counts[i], weights[i]}; };
        auto listed_sum = [&](int i) { return Sum{1, to_units(weight_of(of, logit_of(list[i])))}; };
        Sum all = {0, 0}, total;
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) all = all + bin_sum(i);
        sum_before(all, total);
        u64 kept = total.weight;
        Gathered gathered = {0, -1, 0, {0, 0}};
        enum { TOP_K, TOP_P, DRAW };
        // One body for all three keeps the code small.
#pragma unroll 1
        for (int stage = TOP_K; stage <= DRAW; stage++) {
            Sum target = {0xffffffffu, ~0ull};
            if (stage == TOP_K) {
                if (s.top_k == 0 || s.top_k >= (u32)n) continue;
                target.count = s.top_k;
            } else if (stage == TOP_P) {
                if (s.top_p >= 1.0f) continue;
                target.weight = (u64)ceil((double)s.top_p * (double)kept);
            } else {
                if (s.min_p > 0.0f) kept = min(kept, of_row->likely);
                u64 index = n_drawn[row];
                u32 words[4];
                philox(s.seed, 0x5A4D, index / 4, words);
                int word = (int)(index % 4);
                u32 uniform = (word < 2 ? word == 0 ? words[0] : words[1] : word == 2 ? words[2]
                    : words[3]) >> 8;
                // The first sum of more than uniform * 2^-24 * kept.
                target.weight = (kept >> 24) * uniform + ((kept & 0xffffff) * uniform >> 24) + 1;
            }
            Place place = first_to_reach(BINS, {0, 0}, target, bin_sum);
            if (place.index < 0) break;
            if (place.index < gathered.first || place.index > gathered.last)
                gathered = gather(of, n, target, place, list);
            place = first_to_reach(gathered.n, gathered.start, target, listed_sum);
            if (place.index < 0) break;
            if (stage == DRAW) id = (int)(u32)list[place.index];
            kept = place.with.weight;
        }
    }
    if (threadIdx.x != 0) return;
    ids[row] = id;
    report[row] = fabsf(best.value) < INFINITY ? id : -1;
    seen[(i64)row * n + id] += 2;
    if (!is_greedy(s)) n_drawn[row] += 1;
}

// Marks tokens in a row of `seen`: those of a prompt with 1, of what was generated with 2 for each
// time. The launch with the prompt comes first. Ids outside of 0..n are passed over. Any grid of
// one dimension.
extern "C" __global__ void sample_see(const int* tokens, i64 n_tokens, int is_generated, u32* seen,
    int n) {
    for (i64 i = thread_index(); i < n_tokens; i += n_threads()) {
        int id = tokens[i];
        if (id < 0 || id >= n) continue;
        if (is_generated) {
            atomicAdd(&seen[id], 2u);
        } else {
            seen[id] = 1;
        }
    }
}
