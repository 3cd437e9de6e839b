// What carries a rule's arithmetic over memory: the loop of every sweep, and its sums in their one fixed shape. NVRTC
// compiles it with the printed rule; so does g++, for tests.
//
// It needs no header. Whoever compiles it switches contraction and flush-to-zero off, and IEEE division and root on:
// the results are then those of every other backend, bit for bit.

typedef long long i64;

#define FGD_THREADS 256  // of a block, and lanes of a sum

static __device__ __forceinline__ float fgd_sqrt(float x) { return __fsqrt_rn(x); }
static __device__ __forceinline__ double fgd_sqrt(double x) { return __dsqrt_rn(x); }
static __device__ __forceinline__ float fgd_abs(float x) { return fabsf(x); }
static __device__ __forceinline__ double fgd_abs(double x) { return fabs(x); }
static __device__ __forceinline__ float fgd_copysign(float x, float y) { return copysignf(x, y); }
static __device__ __forceinline__ double fgd_copysign(double x, double y) { return copysign(x, y); }

// A row of the table of tiles; the columns of fastgd.kernels.blocks.
struct fgd_Tile {
    i64 lo, hi, row, segment, first;
};

// N neighbours, loaded and stored at once.
template <class T, int N> struct alignas(N * sizeof(T)) fgd_Pack {
    T e[N];
};

// A pointer that the compiler knows to be into global memory: a generic load is slower.
template <class T> static __device__ __forceinline__ T *fgd_global(T *pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

// ---- sweeps ---------------------------------------------------------------------------------------------------------
// `Rule` is printed: a type T; the counts ARRAYS, SCALARS and SUMS; READ and WRITTEN, a bit for each array; and
// `apply(a, row, t)`, which takes the elements a and a row of scalars, and gives new elements and terms of sums.

// Adds this thread's terms, of elements that lie N to a thread, to lanes that lie one to a thread.
template <class Rule, int N>
static __device__ __forceinline__ void fgd_to_lanes(const typename Rule::T (&term)[N][Rule::SUMS],
                                                    typename Rule::T (&lane)[Rule::SUMS], typename Rule::T *shared,
                                                    bool inside, i64 left) {
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < Rule::SUMS; k++) {
        if (N == 1) {
            if (inside) lane[k] += term[0][k];
            continue;
        }
        __syncthreads();  // what was shared last is taken
        if (inside) {
#pragma unroll
            for (int e = 0; e < N; e++) shared[N * thread + e] = term[e][k];
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < N; e++) {
            const int at = e * FGD_THREADS + thread;
            if (at < left) lane[k] += shared[at];
        }
    }
}

// Adds the lanes of a block to each other by the binary tree.
template <class Rule>
static __device__ __forceinline__ void fgd_fold_lanes(const typename Rule::T (&lane)[Rule::SUMS],
                                                      typename Rule::T *shared, double *sums) {
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < Rule::SUMS; k++) {
        __syncthreads();
        shared[thread] = lane[k];
#pragma unroll
        for (int width = FGD_THREADS / 2; width > 0; width /= 2) {
            __syncthreads();
            if (thread < width) shared[thread] += shared[thread + width];
        }
        if (thread == 0) sums[k] = shared[0];
    }
}

// One sweep over a table of tiles; N divides the length of each. With sums a tile is one block of them.
template <class Rule, int N>
static __device__ __forceinline__ void fgd_sweep(typename Rule::T *const *arrays, const typename Rule::T *rows,
                                                 const fgd_Tile *table, i64 tiles, double *block_sums) {
    typedef typename Rule::T T;
    typedef fgd_Pack<T, N> Pack;
    __shared__ T shared[Rule::SUMMED ? N * FGD_THREADS : 1];
    for (i64 b = blockIdx.x; b < tiles; b += gridDim.x) {
        const fgd_Tile tile = table[b];
        T *array[Rule::ARRAYS];
        T row[Rule::SCALARS];
        T lane[Rule::SUMS];
#pragma unroll
        for (int a = 0; a < Rule::ARRAYS; a++) array[a] = fgd_global(arrays[tile.segment * Rule::ARRAYS + a]);
#pragma unroll
        for (int s = 0; s < Rule::SCALARS; s++) row[s] = rows[tile.row * Rule::SCALARS + s];
#pragma unroll
        for (int k = 0; k < Rule::SUMS; k++) lane[k] = T(0);
#pragma unroll 1
        for (i64 from = tile.lo; from < tile.hi; from += N * FGD_THREADS) {
            const i64 i = from + N * (int)threadIdx.x;
            const bool inside = i < tile.hi;
            T term[N][Rule::SUMS];
            if (inside) {
                Pack x[Rule::ARRAYS];
#pragma unroll
                for (int a = 0; a < Rule::ARRAYS; a++) {
                    if (Rule::READ >> a & 1) x[a] = *reinterpret_cast<const Pack *>(array[a] + i);
                    else x[a] = Pack();
                }
#pragma unroll
                for (int e = 0; e < N; e++) {
                    T element[Rule::ARRAYS];
#pragma unroll
                    for (int a = 0; a < Rule::ARRAYS; a++) element[a] = x[a].e[e];
                    Rule::apply(element, row, term[e]);
#pragma unroll
                    for (int a = 0; a < Rule::ARRAYS; a++) x[a].e[e] = element[a];
                }
#pragma unroll
                for (int a = 0; a < Rule::ARRAYS; a++)
                    if (Rule::WRITTEN >> a & 1) *reinterpret_cast<Pack *>(array[a] + i) = x[a];
            }
            if (Rule::SUMMED) fgd_to_lanes<Rule, N>(term, lane, shared, inside, tile.hi - from);
        }
        if (Rule::SUMMED) fgd_fold_lanes<Rule>(lane, shared, block_sums + tile.first * Rule::SUMS);
    }
}
